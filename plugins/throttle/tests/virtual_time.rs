//! The throttle in virtual time: exact rates, bursts, directions, groups, order.

use std::time::Duration;

use blockloom_plugin_throttle::{Throttle, ThrottleConfig, ThrottleFilter};
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Kind, NodeIndex, RequestFlags, Time};

const SECOND: u64 = 1_000_000_000;

fn throttle(json: &str) -> Throttle {
    Throttle::new(&ThrottleConfig::from_json(json).expect("valid"))
}

/// Admits a request and returns when it starts.
fn start(throttle: &mut Throttle, kind: Kind, len: u64, now: u64) -> u64 {
    throttle.admit(kind, len, now).max(now)
}

/// A client that keeps `depth` requests in flight, each taking 70 µs after its start. Returns how
/// many started in the seconds from `from` to `to`.
fn closed_loop(throttle: &mut Throttle, depth: u64, len: u64, from: u64, to: u64) -> u64 {
    let mut free: std::collections::VecDeque<u64> = (0..depth).collect();
    let mut started = 0;
    while let Some(now) = free.pop_front() {
        let at = start(throttle, Kind::Read, len, now);
        if at >= to * SECOND {
            break;
        }
        started += u64::from(at >= from * SECOND);
        free.push_back(at + 70_000);
    }
    started
}

#[test]
fn requests_a_second_do_not_drift() {
    for iops in [1, 7, 1_000, 10_000, 20_000, 99_991, 100_000] {
        let mut throttle = throttle(&format!(r#"{{"iops":{iops},"burst":"1s"}}"#));
        let started = closed_loop(&mut throttle, 32, 4096, 10, 40);
        let expect = iops * 30;
        assert!(started.abs_diff(expect) <= 1, "{iops}: {started} instead of {expect}");
    }
}

#[test]
fn bytes_a_second_do_not_drift_whatever_their_requests() {
    let bps = 400 << 20;
    for len in [512, 4096, 4097, 65_537, 1 << 20] {
        let mut throttle = throttle(r#"{"bps":"400MiB"}"#);
        let bytes = len * closed_loop(&mut throttle, 64, len, 5, 25);
        assert!(bytes.abs_diff(20 * bps) <= len, "{len}: {bytes}");
    }
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate_holds() {
    let mut throttle = throttle(r#"{"iops":1000,"burst":"100ms"}"#);
    let now = 5 * SECOND;
    let starts: Vec<u64> = (0..1000).map(|_| start(&mut throttle, Kind::Read, 0, now)).collect();
    let at_once = starts.iter().filter(|at| **at == now).count();
    assert_eq!(at_once, 101, "the burst, and one that the rate allows");
    for (index, pair) in starts[100..].windows(2).enumerate() {
        assert_eq!(pair[1] - pair[0], SECOND / 1000, "{index}");
    }
    // A pause longer than the burst is not saved up.
    let later = 100 * SECOND;
    let again = (0..1000).filter(|_| start(&mut throttle, Kind::Read, 0, later) == later).count();
    assert_eq!(again, 101);
}

#[test]
fn without_a_burst_requests_are_spaced() {
    let mut throttle = throttle(r#"{"iops":3,"burst":"0s"}"#);
    let starts: Vec<u64> = (0..4).map(|_| start(&mut throttle, Kind::Write, 0, SECOND)).collect();
    assert_eq!(starts, [SECOND, 1_333_333_334, 1_666_666_667, 2 * SECOND]);
}

#[test]
fn directions_are_limited_separately_or_together() {
    let json = r#"{"iops-read":10,"iops-write":1000,"burst":"0s"}"#;
    let mut separate = throttle(json);
    let now = SECOND;
    for _ in 0..100 {
        separate.admit(Kind::Read, 4096, now);
    }
    assert_eq!(separate.admit(Kind::Write, 4096, now), 0, "reads hold back no write");
    assert_eq!(separate.admit(Kind::Zero, 1 << 40, now), now + SECOND / 1000);
    assert_eq!(separate.admit(Kind::Discard, 1 << 40, now), now + 2 * SECOND / 1000);
    assert_eq!(separate.admit(Kind::Flush, 0, now), 0);

    let mut together = throttle(r#"{"iops":10,"burst":"0s"}"#);
    assert_eq!(together.admit(Kind::Read, 4096, now), 0);
    assert_eq!(together.admit(Kind::Write, 4096, now), now + SECOND / 10);
}

#[test]
fn the_narrower_of_two_limits_holds_and_the_other_is_kept_too() {
    let mut throttle = throttle(r#"{"iops":10,"bps":"1MiB","burst":"0s"}"#);
    let small: Vec<u64> = (0..100).map(|_| start(&mut throttle, Kind::Read, 1, SECOND)).collect();
    assert_eq!(small[99], SECOND + 99 * SECOND / 10);
    // They start when the small ones are through, and then one a second.
    let large: Vec<u64> =
        (0..5).map(|_| start(&mut throttle, Kind::Read, 1 << 20, SECOND)).collect();
    assert_eq!(large[0], SECOND + 100 * SECOND / 10);
    assert!(large.windows(2).all(|pair| pair[1] - pair[0] == SECOND), "{large:?}");
}

#[test]
fn a_request_larger_than_the_burst_passes_whole_and_is_paid_for() {
    let mut throttle = throttle(r#"{"bps":"1MiB","burst":"10ms"}"#);
    let now = SECOND;
    assert_eq!(throttle.admit(Kind::Write, 64 << 20, now), 0);
    assert_eq!(throttle.admit(Kind::Write, 1, now), now + 64 * SECOND - 10_000_000);
    assert!(throttle.admit(Kind::Write, u64::MAX, now) < u64::MAX);
    assert!(throttle.admit(Kind::Write, u64::MAX, now) > now);
}

#[test]
fn a_long_request_counts_as_several() {
    let mut throttle = throttle(r#"{"iops":10,"iops-size":"64KiB","burst":"0s"}"#);
    let lens = [1, 64 << 10, (64 << 10) + 1, 1 << 20, 0, 1];
    let starts: Vec<u64> =
        lens.iter().map(|len| start(&mut throttle, Kind::Read, *len, SECOND)).collect();
    let tenths = [0, 1, 2, 4, 20, 21];
    assert_eq!(starts, tenths.map(|tenth| SECOND + tenth * SECOND / 10));
    assert_eq!(start(&mut throttle, Kind::Discard, 1 << 40, SECOND), SECOND + 22 * SECOND / 10);
    ThrottleConfig::from_json(r#"{"bps":1,"iops-size":1}"#).expect_err("requests are not limited");
}

#[test]
fn nothing_is_limited_by_default() {
    let mut throttle = throttle("{}");
    for now in 0..1000 {
        assert_eq!(throttle.admit(Kind::Write, 1 << 30, now), 0);
    }
}

#[test]
fn another_configuration_keeps_what_is_owed() {
    let mut throttle = throttle(r#"{"iops":10,"burst":"0s"}"#);
    let now = SECOND;
    for _ in 0..10 {
        throttle.admit(Kind::Read, 0, now);
    }
    throttle
        .reconfigure(&ThrottleConfig::from_json(r#"{"iops":100,"burst":"0s"}"#).expect("valid"));
    assert_eq!(throttle.admit(Kind::Read, 0, now), 2 * SECOND);
    assert_eq!(throttle.admit(Kind::Read, 0, now), 2 * SECOND + SECOND / 100);
    throttle.reconfigure(&ThrottleConfig::default());
    assert_eq!(throttle.admit(Kind::Read, 0, now), 0, "nothing is limited any more");
}

#[test]
fn nodes_of_an_instance_share_its_limits_in_order_of_arrival() {
    let json = r#"{"iops":1000,"burst":"0s"}"#;
    let mut host = Harness::<ThrottleFilter>::new(json).expect("valid");
    let begin = host.now();
    for index in 0..100 {
        let node = NodeIndex(index % 2);
        let id = host.submit_to(node, Kind::Read, RequestFlags::NONE, 0, 4096);
        let at = begin + Duration::from_millis(index.into());
        let expect = if index == 0 { Time::from_nanos(0) } else { at };
        assert_eq!(host.answer(id), Some(Answer::forwarded_at(expect)));
    }
}

#[test]
fn one_call_or_many_give_the_same_times() {
    let json = r#"{"iops-read":1000,"bps-write":"1MiB","burst":"2ms"}"#;
    let kinds = [Kind::Read, Kind::Write, Kind::Discard, Kind::Zero, Kind::Flush, Kind::Resize];
    let requests: Vec<_> = kinds.iter().cycle().take(500).map(|kind| (*kind, 0, 4096)).collect();
    let mut batch = Harness::<ThrottleFilter>::new(json).expect("valid");
    let ids = batch.submit_all(requests.iter().copied());
    let mut single = Harness::<ThrottleFilter>::new(json).expect("valid");
    for ((kind, offset, len), in_batch) in requests.into_iter().zip(ids) {
        let id = single.submit(kind, offset, len);
        assert!(single.answer(id).is_some());
        assert_eq!(single.answer(id), batch.answer(in_batch));
    }
    assert!(single.operations().is_empty());
}

/// What was admitted counts in the version that takes over.
#[test]
fn levels_go_over_to_the_next_version() {
    let config = r#"{ "iops": 10, "burst": "0s" }"#;
    let mut host = Harness::<ThrottleFilter>::new(config).expect("valid");
    host.add_node("disk", 1 << 20).expect("a node");
    let now = host.now();
    for nth in 0..3 {
        let id = host.submit(Kind::Write, 0, 512);
        let at = if nth == 0 { Time::default() } else { now + Duration::from_millis(100 * nth) };
        assert_eq!(host.answer(id), Some(Answer::forwarded_at(at)));
    }
    let mut host = host.replace::<ThrottleFilter>(config).expect("replaced");
    let id = host.submit(Kind::Write, 0, 512);
    let expect = Answer::forwarded_at(now + Duration::from_millis(300));
    assert_eq!(host.answer(id), Some(expect));
    let throttle = throttle(config);
    for state in [&[][..], &[2], &[1], &throttle.save()[1..], &throttle.save()[..144]] {
        throttle.clone().restore(state).expect_err("of another form");
    }
}

/// Requests that are held get the times that other limits ask for.
#[test]
fn held_requests_are_timed_anew() {
    let mut host =
        Harness::<ThrottleFilter>::new(r#"{ "iops": 1, "burst": "0s" }"#).expect("valid");
    host.add_node("disk", 1 << 20).expect("a node");
    let ids: Vec<_> = (0..4).map(|_| host.submit(Kind::Read, 0, 512)).collect();
    host.advance(Duration::from_millis(1500));
    let now = host.now();
    let gone = [host.answer(ids[0]), host.answer(ids[1])];
    host.reconfigure(r#"{ "iops": "fast" }"#).expect_err("no number");
    host.reconfigure(r#"{ "iops": 10, "burst": "0s" }"#).expect("valid");
    let times = [Time::default(), now + Duration::from_millis(100)].map(Answer::forwarded_at);
    assert_eq!([host.answer(ids[2]), host.answer(ids[3])], times.map(Some));
    assert_eq!([host.answer(ids[0]), host.answer(ids[1])], gone, "they have gone");
    let next = host.submit(Kind::Read, 0, 512);
    let expect = Answer::forwarded_at(now + Duration::from_millis(200));
    assert_eq!(host.answer(next), Some(expect));
    host.reconfigure("{}").expect("valid");
    assert_eq!(host.answer(next), Some(Answer::forwarded_now()), "without limits none is held");
}
