//! What is measured, and when it is reported.

use std::time::Duration;

use blockloom_plugin_stats::StatsFilter;
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Errno, Filter, Kind, NodeIndex};

fn harness(config: &str) -> Harness<StatsFilter> {
    let mut host = Harness::new(config).expect("a configuration");
    host.add_node("disk", 1 << 20).expect("a node");
    host
}

fn one(host: &mut Harness<StatsFilter>, kind: Kind, len: u64, micros: u64, end: Result<(), Errno>) {
    let id = host.submit(kind, 0, len);
    let Some(Answer::Forwarded { notify: true, .. }) = host.answer(id) else {
        panic!("{:?}", host.answer(id))
    };
    host.advance(Duration::from_micros(micros));
    host.end(id, end);
    assert_eq!(host.answer(id), Some(Answer::Completed(end)));
}

fn lines(host: &Harness<StatsFilter>) -> Vec<String> {
    host.logged().into_iter().map(|(_, line)| line).collect()
}

#[test]
fn a_report_covers_what_ended_since_the_last() {
    let mut host = harness(r#"{"every":"1s"}"#);
    one(&mut host, Kind::Read, 4096, 1000, Ok(()));
    one(&mut host, Kind::Read, 4096, 64, Err(Errno::EIO));
    assert_eq!(lines(&host), [""; 0]);
    one(&mut host, Kind::Flush, 0, 1_000_000, Ok(()));
    let expect = [
        "disk: read: 2 requests, 1 failed, 8192 bytes; latency: half 65.535µs, 99 % 1ms, longest 1ms",
        "disk: flush: 1 requests, 0 failed, 0 bytes; latency: half 1s, 99 % 1s, longest 1s",
    ];
    assert_eq!(lines(&host), expect);
    one(&mut host, Kind::Write, 1, 10, Ok(()));
    assert_eq!(lines(&host).len(), 2, "its time has not come");
    host.filter().remove_node(NodeIndex(0));
    let last = lines(&host).split_off(2);
    assert_eq!(last.len(), 3, "the last one covers all: {last:?}");
    assert_eq!((&*last[0], &*last[2]), (expect[0], expect[1]));
}

#[test]
fn without_a_time_only_the_last_report_comes() {
    let mut host = harness(r#"{"every":"0s"}"#);
    one(&mut host, Kind::Write, 1, 10_000_000, Ok(()));
    one(&mut host, Kind::Write, 1, 10, Ok(()));
    assert_eq!(host.logged(), []);
    host.filter().remove_node(NodeIndex(0));
    assert_eq!(host.logged().len(), 1);
}

/// The next version goes on counting.
#[test]
fn what_was_counted_goes_over() {
    let mut host = harness("{}");
    one(&mut host, Kind::Read, 4096, 1000, Ok(()));
    one(&mut host, Kind::Flush, 0, 70, Err(Errno::EIO));
    let state = host.filter().save();
    let mut host = host.replace::<StatsFilter>("{}").expect("replaced");
    assert_eq!(host.filter().save(), state);
    one(&mut host, Kind::Read, 4096, 64, Ok(()));
    host.filter().remove_node(NodeIndex(0));
    let expect = [
        "disk: read: 2 requests, 0 failed, 8192 bytes; latency: half 65.535µs, 99 % 1ms, longest 1ms",
        "disk: flush: 1 requests, 1 failed, 0 bytes; latency: half 70µs, 99 % 70µs, longest 70µs",
    ];
    assert_eq!(lines(&host), expect);
    for end in [0, 1, 8, state.len() - 8] {
        host.filter().restore(&state[..end]).expect_err("not whole");
    }
}
