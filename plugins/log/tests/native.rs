//! Which requests become lines, and how many.

use std::time::Duration;

use blockloom_plugin_log::LogFilter;
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Filter, Kind, Kinds, Level, NodeIndex, RequestFlags, Rule};

fn harness(config: &str) -> Harness<LogFilter> {
    let mut host = Harness::new(config).expect("a configuration");
    host.add_node("disk", 1 << 20).expect("a node");
    host
}

#[test]
fn requests_become_lines() {
    let mut host = harness(r#"{"kinds":["read","write","flush"],"level":"debug"}"#);
    let kinds = Kinds::READ.with(Kinds::WRITE).with(Kinds::FLUSH);
    assert_eq!(host.rules(NodeIndex(0)), Some((vec![Rule::always(kinds)], 0)));
    let read = host.submit(Kind::Read, 4096, 512);
    host.submit_to(NodeIndex(0), Kind::Write, RequestFlags::FUA, 0, 8);
    host.submit(Kind::Flush, 0, 0);
    host.submit(Kind::Zero, 0, 8);
    assert_eq!(host.answer(read), Some(Answer::forwarded_now()));
    let expect =
        ["disk: read 512 bytes at 4096", "disk: write 8 bytes at 0, durable", "disk: flush"];
    assert_eq!(host.logged(), expect.map(|line| (Level::Debug, line.to_owned())));
}

#[test]
fn lines_beyond_the_rate_are_counted() {
    let mut host = harness(r#"{"rate":3}"#);
    for offset in 0..10 {
        host.submit(Kind::Read, offset, 1);
    }
    assert_eq!(host.logged().len(), 3);
    host.advance(Duration::from_secs(1));
    host.submit(Kind::Read, 0, 1);
    assert_eq!(host.logged()[3].1, "7 requests were left out");
    assert_eq!(host.logged()[4].1, "disk: read 1 bytes at 0");
}

#[test]
fn what_is_logged_can_be_changed() {
    let mut host = harness("{}");
    host.filter().reload(r#"{"kinds":["write"]}"#).expect("valid");
    assert_eq!(host.rules(NodeIndex(0)), Some((vec![Rule::always(Kinds::WRITE)], 0)));
    host.submit(Kind::Read, 0, 1);
    assert_eq!(host.logged(), []);
    let error = host.filter().reload(r#"{"level":"loud"}"#).expect_err("refused");
    assert_eq!(error.path, "level");
}
