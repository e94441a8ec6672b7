//! The throttle in virtual time: exact rates, bursts, directions, groups, order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use blockloom_plugin_throttle::{Next, Throttle, ThrottleConfig, ThrottleFilter};
use blockloom_sdk::testing::{Answer, Harness};
use blockloom_sdk::{Errno, Kind, NodeIndex, RequestFlags, RequestId};

const SECOND: u64 = 1_000_000_000;

fn config(json: &str) -> ThrottleConfig {
    ThrottleConfig::from_json(json).expect("valid")
}

/// A throttle whose clock is set forward to when something starts.
struct Bench {
    throttle: Throttle<u64>,
    keys: u64,
}

fn throttle(json: &str) -> Bench {
    Bench { throttle: Throttle::new(&config(json)), keys: 0 }
}

impl Bench {
    /// Offers a request; its key.
    fn offer(&mut self, member: u16, kind: Kind, len: u64, now: u64) -> (u64, bool) {
        self.keys += 1;
        (self.keys, self.throttle.offer(member, kind, len, self.keys, now))
    }

    /// What starts by the time `until`, and when.
    fn run(&mut self, now: u64, until: u64) -> Vec<(u64, u64)> {
        let (mut now, mut started) = (now, Vec::new());
        loop {
            match self.throttle.next(now) {
                Next::Start(key) => started.push((key, now)),
                Next::At(at) if at <= until => now = at,
                Next::At(_) | Next::Idle => return started,
            }
        }
    }

    /// Requests of one member that arrive at one time: when each starts.
    fn starts(&mut self, requests: &[(Kind, u64)], now: u64) -> Vec<u64> {
        let mut starts = BTreeMap::new();
        let mut keys = Vec::new();
        for (kind, len) in requests {
            let (key, at_once) = self.offer(0, *kind, *len, now);
            starts.extend(at_once.then_some((key, now)));
            keys.push(key);
        }
        starts.extend(self.run(now, u64::MAX - 1));
        keys.iter().map(|key| starts[key]).collect()
    }

    /// Clients that each keep a number of requests in flight, which take 70 µs after their start. Returns how
    /// many of each started in the seconds from `from` to `to`.
    fn closed_loop(&mut self, clients: &[(u16, Kind, u64, usize)], from: u64, to: u64) -> Vec<u64> {
        let mut arrivals: BinaryHeap<_> = (0..clients.len())
            .flat_map(|client| (0..clients[client].3).map(move |_| Reverse((SECOND / 2, client))))
            .collect();
        let (mut waiting, mut started) = (BTreeMap::new(), vec![0; clients.len()]);
        let mut now = 0;
        while now < to * SECOND {
            let mut begun = Vec::new();
            while let Some(&Reverse((at, client))) = arrivals.peek()
                && at <= now
            {
                arrivals.pop();
                let (member, kind, len, _) = clients[client];
                let (key, at_once) = self.offer(member, kind, len, now);
                if at_once { begun.push(client) } else { waiting.extend([(key, client)]) }
            }
            begun.extend(self.run(now, now).iter().filter_map(|(key, _)| waiting.remove(key)));
            for client in begun {
                started[client] += u64::from(now >= from * SECOND);
                arrivals.push(Reverse((now + 70_000, client)));
            }
            let next = match self.throttle.next(now) {
                Next::At(at) => at,
                Next::Idle => u64::MAX,
                Next::Start(key) => panic!("{key} was left"),
            };
            now = arrivals.peek().map_or(next, |Reverse((at, _))| next.min(*at));
        }
        started
    }
}

#[test]
fn requests_a_second_do_not_drift() {
    for iops in [1, 7, 1_000, 10_000, 20_000, 99_991, 100_000] {
        let mut throttle = throttle(&format!(r#"{{"iops":{iops},"burst":"1s"}}"#));
        let started = throttle.closed_loop(&[(0, Kind::Read, 4096, 32)], 10, 20)[0];
        let expect = iops * 10;
        assert!(started.abs_diff(expect) <= 1, "{iops}: {started} instead of {expect}");
    }
}

#[test]
fn bytes_a_second_do_not_drift_whatever_their_requests() {
    let bps = 400 << 20;
    for len in [4096, 4097, 65_537, 1 << 20] {
        let mut throttle = throttle(r#"{"bps":"400MiB"}"#);
        let bytes = len * throttle.closed_loop(&[(0, Kind::Read, len, 64)], 5, 8)[0];
        assert!(bytes.abs_diff(3 * bps) <= len, "{len}: {bytes}");
    }
}

/// Who asks late is not late: the schedule goes on from when a request could have started.
#[test]
fn time_until_somebody_asks_is_not_lost() {
    let mut throttle = throttle(r#"{"iops":1000,"burst":"0s"}"#);
    for _ in 0..10 {
        throttle.offer(0, Kind::Read, 0, SECOND);
    }
    let late = SECOND + 5_500_000;
    assert_eq!(throttle.run(late, late).len(), 5);
    assert_eq!(throttle.throttle.next(late), Next::At(SECOND + 6_000_000));
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate_holds() {
    let mut throttle = throttle(r#"{"iops":1000,"burst":"100ms"}"#);
    let now = 5 * SECOND;
    let starts = throttle.starts(&[(Kind::Read, 0); 1000], now);
    let at_once = starts.iter().filter(|at| **at == now).count();
    assert_eq!(at_once, 101, "the burst, and one that the rate allows");
    for (index, pair) in starts[100..].windows(2).enumerate() {
        assert_eq!(pair[1] - pair[0], SECOND / 1000, "{index}");
    }
    // A pause longer than the burst is not saved up.
    let later = 100 * SECOND;
    let again = throttle.starts(&[(Kind::Read, 0); 1000], later);
    assert_eq!(again.iter().filter(|at| **at == later).count(), 101);
}

/// A bucket holds what its burst brings, and a long burst keeps to a rate of its own.
#[test]
fn a_burst_may_have_a_rate_and_a_length() {
    let mut short = throttle(r#"{"iops":100,"iops-max":500}"#);
    let starts = short.starts(&[(Kind::Write, 0); 700], SECOND);
    assert_eq!(starts.iter().filter(|at| **at == SECOND).count(), 501, "one second's worth");
    assert_eq!(starts[699] - starts[501], 198 * SECOND / 100);

    let mut long = throttle(r#"{"iops":100,"iops-max":500,"iops-max-length":"10s"}"#);
    let starts = long.starts(&[(Kind::Write, 0); 7000], SECOND);
    let in_second = |second: u64| {
        let second = SECOND * second..SECOND * (second + 1);
        starts.iter().filter(|at| second.contains(at)).count()
    };
    assert_eq!(in_second(1), 550, "100 ms of the burst's rate at once");
    assert_eq!([2, 3, 9].map(in_second), [500; 3]);
    // 5000 above what leaks out meanwhile, at 400 a second: for 12.5 seconds in all.
    assert_eq!([12, 15, 20].map(in_second), [500, 100, 100]);
    let burst = starts.iter().take_while(|at| **at < 14 * SECOND).count();
    assert!((6250..6350).contains(&burst), "{burst}");
}

#[test]
fn without_a_burst_requests_are_spaced() {
    let mut throttle = throttle(r#"{"iops":3,"burst":"0s"}"#);
    let starts = throttle.starts(&[(Kind::Write, 0); 4], SECOND);
    assert_eq!(starts, [SECOND, 1_333_333_334, 1_666_666_667, 2 * SECOND]);
}

#[test]
fn directions_are_limited_separately_or_together() {
    let json = r#"{"iops-read":10,"iops-write":1000,"burst":"0s"}"#;
    let mut separate = throttle(json);
    for _ in 0..100 {
        separate.offer(0, Kind::Read, 4096, SECOND);
    }
    assert!(separate.offer(0, Kind::Write, 4096, SECOND).1, "reads hold back no write");
    let (zero, _) = separate.offer(0, Kind::Zero, 1 << 40, SECOND);
    let (discard, _) = separate.offer(0, Kind::Discard, 1 << 40, SECOND);
    assert!(separate.offer(0, Kind::Flush, 0, SECOND).1);
    let soon = SECOND + 2 * SECOND / 1000;
    assert_eq!(separate.run(SECOND, soon), [(zero, SECOND + SECOND / 1000), (discard, soon)]);

    let mut together = throttle(r#"{"iops":10,"burst":"0s"}"#);
    let starts = together.starts(&[(Kind::Read, 4096), (Kind::Write, 4096)], SECOND);
    assert_eq!(starts, [SECOND, SECOND + SECOND / 10]);
}

#[test]
fn the_narrower_of_two_limits_holds_and_the_other_is_kept_too() {
    let mut throttle = throttle(r#"{"iops":10,"bps":"1MiB","burst":"0s"}"#);
    let requests = [[(Kind::Read, 1); 100].as_slice(), &[(Kind::Read, 1 << 20); 5]].concat();
    let starts = throttle.starts(&requests, SECOND);
    assert_eq!(starts[99], SECOND + 99 * SECOND / 10);
    // They start when the small ones are through, and then one a second.
    assert_eq!(starts[100], SECOND + 100 * SECOND / 10);
    assert!(starts[100..].windows(2).all(|pair| pair[1] - pair[0] == SECOND), "{starts:?}");
}

#[test]
fn a_request_larger_than_the_burst_passes_whole_and_is_paid_for() {
    let mut throttle = throttle(r#"{"bps":"1MiB","burst":"10ms"}"#);
    let starts = throttle.starts(&[(Kind::Write, 64 << 20), (Kind::Write, 1)], SECOND);
    assert_eq!(starts, [SECOND, SECOND + 64 * SECOND - 10_000_000]);
    throttle.offer(0, Kind::Write, u64::MAX, SECOND);
    throttle.offer(0, Kind::Write, u64::MAX, SECOND);
    assert_eq!(throttle.run(100 * SECOND, 100 * SECOND).len(), 1);
    let Next::At(at) = throttle.throttle.next(100 * SECOND) else { panic!("one waits") };
    assert!(at > 100 * SECOND);
}

#[test]
fn a_long_request_counts_as_several() {
    let mut throttle = throttle(r#"{"iops":10,"iops-size":"64KiB","burst":"0s"}"#);
    let lens = [1, 64 << 10, (64 << 10) + 1, 1 << 20, 0, 1];
    let requests = lens.map(|len| (Kind::Read, len));
    let tenths = [0, 1, 2, 4, 20, 21];
    let starts = throttle.starts(&requests, SECOND);
    assert_eq!(starts, tenths.map(|tenth| SECOND + tenth * SECOND / 10));
    let starts = throttle.starts(&[(Kind::Discard, 1 << 40)], SECOND);
    assert_eq!(starts, [SECOND + 22 * SECOND / 10]);
}

#[test]
fn nothing_is_limited_by_default() {
    let mut throttle = throttle("{}");
    for now in 0..1000 {
        assert!(throttle.offer(0, Kind::Write, 1 << 30, now).1);
    }
}

#[test]
fn another_configuration_keeps_what_is_owed() {
    let mut throttle = throttle(r#"{"iops":10,"burst":"0s"}"#);
    throttle.starts(&[(Kind::Read, 0); 10], SECOND);
    let waits = throttle.offer(0, Kind::Read, 0, SECOND).0;
    throttle.throttle.reconfigure(&config(r#"{"iops":100,"burst":"0s"}"#));
    let then = throttle.offer(0, Kind::Read, 0, SECOND).0;
    let expect = [(waits, 2 * SECOND), (then, 2 * SECOND + SECOND / 100)];
    assert_eq!(throttle.run(SECOND, 3 * SECOND), expect);
    let last = throttle.offer(0, Kind::Read, 0, SECOND).0;
    throttle.throttle.reconfigure(&ThrottleConfig::default());
    assert_eq!(throttle.run(SECOND, SECOND), [(last, SECOND)], "nothing is limited any more");
}

/// Whoever is busy gets as much as the others, whatever its depth and its requests.
#[test]
fn members_that_wait_share_equally() {
    for (json, unit) in [(r#"{"iops":1000}"#, 1), (r#"{"bps":"40MiB"}"#, 4096)] {
        for (depth, other, len) in [(1, 64, 4096), (2, 3, 4096), (32, 1, 65536)] {
            let mut throttle = throttle(json);
            let clients = [(0, Kind::Read, 4096, depth), (1, Kind::Write, len, other)];
            let started = throttle.closed_loop(&clients, 5, 25);
            let in_bytes = if unit == 1 { [1, 1] } else { [4096, len] };
            let shares = [started[0] * in_bytes[0], started[1] * in_bytes[1]];
            let total = shares[0] + shares[1];
            let share = shares[0] as f64 / total as f64;
            assert!((0.49..=0.51).contains(&share), "{json}, {depth}: {shares:?}");
            let expect = 20 * if unit == 1 { 1000 } else { 40 << 20 };
            assert!(total.abs_diff(expect) <= 2 * len, "{json}: {total} of {expect}");
        }
    }
}

/// Three quarters of a third that one does not want are there for the others, in equal parts.
#[test]
fn what_one_does_not_use_is_for_the_others() {
    let mut throttle = throttle(r#"{"iops":30000}"#);
    // One request at a time, each of which takes 70 µs and its turn: less than 14286 a second.
    let clients = [(0, Kind::Read, 1, 16), (1, Kind::Read, 1, 48), (2, Kind::Discard, 1, 1)];
    let started = throttle.closed_loop(&clients, 5, 10);
    let total: u64 = started.iter().sum();
    assert!(total.abs_diff(150_000) <= 1, "{started:?}");
    assert!(started[0].abs_diff(started[1]) < started[0] / 50, "{started:?}");
    assert!(started[2] <= started[0] + started[0] / 50, "{started:?}");
}

/// Reads and writes of one drive take turns, and do not count twice against another drive.
#[test]
fn reads_and_writes_share_what_is_their_drives() {
    let mut throttle = throttle(r#"{"iops":4000}"#);
    let clients = [(0, Kind::Read, 1, 64), (0, Kind::Write, 1, 4), (1, Kind::Read, 1, 8)];
    let started = throttle.closed_loop(&clients, 5, 10);
    for (client, expect) in [(0, 5000), (1, 5000), (2, 10_000)] {
        assert!(started[client].abs_diff(expect) <= expect / 50, "{started:?}");
    }
}

/// Who comes back after a pause is served first, for as long as the credit lasts and no longer.
#[test]
fn a_pause_gives_little_credit() {
    let mut throttle = throttle(r#"{"iops":1000,"burst":"0s"}"#);
    let quiet = throttle.offer(1, Kind::Read, 0, SECOND).0;
    for _ in 0..10_000 {
        throttle.offer(0, Kind::Read, 0, SECOND);
    }
    assert_ne!(throttle.run(SECOND, 5 * SECOND)[0].0, quiet, "it went at once");
    let first = throttle.offer(1, Kind::Read, 0, 5 * SECOND).0;
    for _ in 1..1000 {
        throttle.offer(1, Kind::Read, 0, 5 * SECOND);
    }
    let started = throttle.run(5 * SECOND, 6 * SECOND);
    let ahead = started.iter().take_while(|(key, _)| *key >= first).count();
    assert!((99..=102).contains(&ahead), "{ahead}");
    let own = started.iter().filter(|(key, _)| *key >= first).count();
    assert!((545..=555).contains(&own), "{own}");
}

fn held(host: &Harness<ThrottleFilter>, id: RequestId) -> bool {
    let far = Answer::Forwarded {
        not_before: blockloom_sdk::Time::from_nanos(u64::MAX),
        notify: true,
        claim: false,
    };
    host.answer(id) == Some(far)
}

fn submit(host: &mut Harness<ThrottleFilter>, node: u16) -> RequestId {
    host.submit_to(NodeIndex(node), Kind::Read, RequestFlags::NONE, 0, 4096)
}

#[test]
fn what_waits_is_held_and_let_go_in_turn() {
    let mut host = Harness::<ThrottleFilter>::new(r#"{"iops":1000,"burst":"0s"}"#).expect("valid");
    let first = submit(&mut host, 0);
    assert_eq!(host.answer(first), Some(Answer::forwarded_now()));
    let deep: Vec<_> = (0..10).map(|_| submit(&mut host, 0)).collect();
    let other = submit(&mut host, 1);
    assert!(deep.iter().chain([&other]).all(|id| held(&host, *id)));
    host.advance(Duration::from_micros(999));
    assert!(held(&host, other));
    host.advance(Duration::from_micros(1));
    assert_eq!(
        host.answer(other),
        Some(Answer::forwarded_now()),
        "the first was of the other node"
    );
    host.advance(Duration::from_millis(2));
    assert_eq!(host.answer(deep[1]), Some(Answer::forwarded_now()));
    assert!(held(&host, deep[2]));
    // The end of each is asked for, and its result is the child's.
    host.end(other, Err(Errno::EIO));
    assert_eq!(host.answer(other), Some(Answer::Completed(Err(Errno::EIO))));
}

/// A drained node's requests go without having been let go: their places are not kept.
#[test]
fn what_has_gone_is_not_waited_for() {
    let mut host = Harness::<ThrottleFilter>::new(r#"{"iops":1,"burst":"0s"}"#).expect("valid");
    submit(&mut host, 0);
    let gone: Vec<_> = (0..50).map(|_| submit(&mut host, 0)).collect();
    let last = submit(&mut host, 0);
    for id in gone {
        host.end(id, Ok(()));
        assert_eq!(host.answer(id), Some(Answer::Completed(Ok(()))));
    }
    host.advance(Duration::from_millis(1000));
    assert_eq!(host.answer(last), Some(Answer::forwarded_now()));
}

/// A new limit is in force for those that wait, too.
#[test]
fn limits_can_be_changed_while_requests_wait() {
    let mut host = Harness::<ThrottleFilter>::new(r#"{"bps":1,"burst":"0s"}"#).expect("valid");
    submit(&mut host, 0);
    let waits = submit(&mut host, 0);
    host.advance(Duration::from_secs(3));
    assert!(held(&host, waits));
    let reload = |json| blockloom_sdk::Filter::reload(host.filter(), json);
    reload(r#"{"bps":1,"bps-max-length":"3s"}"#).expect_err("wrong");
    reload("{}").expect("right");
    host.advance(Duration::from_secs(1));
    assert_eq!(host.answer(waits), Some(Answer::forwarded_now()));
}

#[test]
fn one_call_or_many_give_the_same_order() {
    let json = r#"{"iops-read":1000,"bps-write":"1MiB","burst":"2ms"}"#;
    let kinds = [Kind::Read, Kind::Write, Kind::Discard, Kind::Zero, Kind::Flush, Kind::Resize];
    let requests: Vec<_> = kinds.iter().cycle().take(500).map(|kind| (*kind, 0, 4096)).collect();
    let mut batch = Harness::<ThrottleFilter>::new(json).expect("valid");
    let ids = batch.submit_all(requests.iter().copied());
    let mut single = Harness::<ThrottleFilter>::new(json).expect("valid");
    for (kind, offset, len) in requests {
        single.submit(kind, offset, len);
    }
    for _ in 0..600 {
        assert!(ids.iter().all(|id| held(&single, *id) == held(&batch, *id)));
        single.advance(Duration::from_micros(700));
        batch.advance(Duration::from_micros(700));
    }
    assert!(ids.iter().all(|id| single.answer(*id).is_some() && !held(&batch, *id)));
    assert!(single.operations().is_empty());
}

/// What was admitted counts in the version that takes over.
#[test]
fn levels_go_over_to_the_next_version() {
    let config = ThrottleConfig::from_json(r#"{ "iops": 10, "burst": "0s" }"#).expect("valid");
    let mut former = Throttle::new(&config);
    let now = 5 * SECOND;
    assert!(former.offer(0, Kind::Write, 512, 'a', now));
    let mut next = Throttle::new(&config);
    next.restore(&former.save()).expect("its state");
    assert_eq!(next.save(), former.save());
    assert!(!next.offer(0, Kind::Write, 512, 'b', now), "as if it had admitted that");
    assert_eq!(next.next(now), Next::At(now + SECOND / 10));
    let other = ThrottleConfig::from_json(r#"{ "iops": 20, "bps": 5 }"#).expect("valid");
    Throttle::<char>::new(&other).restore(&former.save()).expect("of other limits");
    let state = former.save();
    for state in [&[][..], &[2; 8], &state[1..], &state[..state.len() - 8]] {
        next.restore(state).expect_err("of another form");
    }
}
