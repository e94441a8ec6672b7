//! Which requests fail, and how.

use blockloom_plugin_error::ErrorFilter;
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Errno, Filter, Kind, NodeIndex};

fn harness(config: &str) -> Harness<ErrorFilter> {
    let mut host = Harness::new(config).expect("a configuration");
    host.add_node("disk", 1 << 20).expect("a node");
    host
}

fn fails(host: &mut Harness<ErrorFilter>, kind: Kind, offset: u64, len: u64) -> Option<Errno> {
    let id = host.submit(kind, offset, len);
    match host.answer(id) {
        Some(Answer::Completed(Err(errno))) => Some(errno),
        answer => {
            assert_eq!(answer, Some(Answer::forwarded_now()));
            None
        }
    }
}

#[test]
fn a_kind_fails_in_a_range() {
    let config = r#"{"kinds":["write","flush"],"errno":"ENOSPC","offset":100,"length":10}"#;
    let mut host = harness(config);
    for (kind, offset, len, expect) in [
        (Kind::Write, 0, 100, None),
        (Kind::Write, 0, 101, Some(Errno::ENOSPC)),
        (Kind::Write, 109, 1, Some(Errno::ENOSPC)),
        (Kind::Write, 110, 1, None),
        (Kind::Read, 100, 10, None),
        (Kind::Flush, 0, 0, Some(Errno::ENOSPC)),
    ] {
        assert_eq!(fails(&mut host, kind, offset, len), expect, "{kind:?} {offset}+{len}");
    }
}

#[test]
fn some_pass_first_and_an_end_comes() {
    let mut host = harness(r#"{"after":2,"count":3}"#);
    let failed: Vec<bool> = (0..8).map(|_| fails(&mut host, Kind::Read, 0, 1).is_some()).collect();
    assert_eq!(failed, [false, false, true, true, true, false, false, false]);
    assert_eq!(host.rules(NodeIndex(0)), Some((vec![], 0)), "nothing is asked any more");
    host.filter().reload(r#"{"count":1}"#).expect("valid");
    assert_eq!(fails(&mut host, Kind::Read, 0, 1), Some(Errno::EIO), "counting begins anew");
}

#[test]
fn chance_is_as_likely_as_it_should_be_and_repeats() {
    let run = || {
        let mut host = harness(r#"{"probability":0.25,"seed":3}"#);
        (0..4000).filter(|_| fails(&mut host, Kind::Read, 0, 1).is_some()).count()
    };
    assert!(run().abs_diff(1000) < 100, "{}", run());
    assert_eq!(run(), run());
    let mut never = harness(r#"{"probability":0}"#);
    assert!((0..100).all(|_| fails(&mut never, Kind::Read, 0, 1).is_none()));
}

#[test]
fn an_unknown_error_is_refused() {
    let error = ErrorFilter::configure(r#"{"errno":"EFOO"}"#).expect_err("unknown");
    assert_eq!(error.to_string(), "errno: is no error such as \"EIO\" or \"ENOSPC\"");
}
