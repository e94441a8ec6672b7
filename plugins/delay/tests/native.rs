//! How long requests are held.

use std::time::Duration;

use blockloom_plugin_delay::DelayFilter;
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Filter, Kind, Kinds, NodeIndex, Rule, Time};

fn harness(config: &str) -> Harness<DelayFilter> {
    let mut host = Harness::new(config).expect("a configuration");
    host.add_node("disk", 1 << 20).expect("a node");
    host
}

fn not_before(host: &mut Harness<DelayFilter>, kind: Kind) -> Time {
    let id = host.submit(kind, 0, 1);
    match host.answer(id) {
        Some(Answer::Forwarded { not_before, notify: false, claim: false }) => not_before,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kinds_have_their_delays() {
    let mut host = harness(r#"{"read":"2ms","write":"5ms","discard":"0s","flush":"7ms"}"#);
    let asked = Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::FLUSH);
    assert_eq!(host.rules(NodeIndex(0)), Some((vec![Rule::always(asked)], 0)));
    let now = host.now();
    for (kind, millis) in [(Kind::Read, 2), (Kind::Write, 5), (Kind::Zero, 5), (Kind::Flush, 7)] {
        assert_eq!(not_before(&mut host, kind), now + Duration::from_millis(millis), "{kind:?}");
    }
    for kind in [Kind::Discard, Kind::Resize] {
        assert_eq!(not_before(&mut host, kind), Time::default(), "{kind:?}");
    }
}

#[test]
fn jitter_is_within_bounds_and_the_same_for_the_same_seed() {
    let config = r#"{"read":"2ms","jitter":"1ms","seed":7}"#;
    let (least, most) = (Duration::from_millis(2), Duration::from_millis(3));
    let run = || {
        let mut host = harness(config);
        let now = host.now();
        (0..100).map(|_| not_before(&mut host, Kind::Read) - now).collect::<Vec<_>>()
    };
    let delays = run();
    assert!(delays.iter().all(|delay| (least..most).contains(delay)), "{delays:?}");
    assert!(delays.windows(2).any(|pair| pair[0] != pair[1]));
    assert_eq!(delays, run());
}

#[test]
fn delays_can_be_changed() {
    let mut host = harness(r#"{"read":"2ms"}"#);
    host.filter().reload(r#"{"write":"1ms"}"#).expect("valid");
    assert_eq!(not_before(&mut host, Kind::Read), Time::default());
    let error = host.filter().reload(r#"{"write":"2h"}"#).expect_err("too long");
    assert_eq!(error.to_string(), "write: must be at most 1h");
    let at = host.now() + Duration::from_millis(1);
    assert_eq!(not_before(&mut host, Kind::Write), at, "the former one stays in force");
}
