//! The processor time of a store: what it may have of each second, and what becomes of one that wants more.
//!
//! Each call is bounded by itself; this bounds many of them. A store that has used up its time is not called until
//! it has some again. One that is always at its limit, for as long as it may hold a request, has failed.
//!
//! Far from the limit the ticks that bound calls are the samples: a call that meets none is charged nothing, one
//! that meets any is charged at least the time between two, which is what calls use on average. Near the limit
//! each call is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::PluginLimits;
use super::runtime::TICK;
use crate::io::{Time, clock_now, thread_time, turn_now};

/// A share that is no limit: all of each second.
pub(super) const ALL: Duration = Duration::from_secs(1);

/// What a store has used.
pub(super) struct Account {
    /// How often the clock that bounds calls has ticked, once each [`TICK`].
    ticks: Arc<AtomicU64>,
    /// Of each second.
    share: Duration,
    patience: Duration,
    /// A call cannot use more.
    call_most: Duration,
    /// Nanoseconds that it has left; at most those of one second.
    left_ns: i64,
    filled: Time,
    /// Since when it has not had half of a second's share left at any moment.
    short_since: Option<Time>,
}

/// A call that is under way.
pub(super) struct Begun {
    /// What the ticks were.
    ticks: u64,
    /// Processor time of the thread, where it has to be exact.
    used: Option<Duration>,
}

/// What a store is to do that has just been called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may be called again.
    Well,
    /// Not before this time.
    PutOff(Time),
    /// It has used all that it may have for too long.
    Starving,
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

impl Account {
    pub(super) fn new(limits: &PluginLimits, ticks: Arc<AtomicU64>) -> Self {
        let &PluginLimits { cpu: share, hold: patience, call, .. } = limits;
        let (left_ns, call_most) = (nanos(share), call + 2 * TICK);
        let (filled, short_since) = (Time::default(), None);
        Self { ticks, share, patience, call_most, left_ns, filled, short_since }
    }

    /// A call begins; `None` where nothing is counted. Costs a load, unless little is left.
    #[inline]
    pub(super) fn begin(&self) -> Option<Begun> {
        if self.share >= ALL {
            return None;
        }
        let is_exact = self.left_ns < nanos(self.share) / 2;
        let ticks = self.ticks.load(Ordering::Relaxed);
        Some(Begun { ticks, used: is_exact.then(thread_time) })
    }

    /// It has ended. Costs a load, unless a tick came meanwhile or it is measured.
    #[inline]
    pub(super) fn end(&mut self, begun: Option<Begun>) -> Standing {
        let Some(begun) = begun else { return Standing::Well };
        let ticked = self.ticks.load(Ordering::Relaxed).wrapping_sub(begun.ticks);
        if ticked == 0 && begun.used.is_none() {
            return Standing::Well;
        }
        self.look(ticked, begun.used)
    }

    /// Looks at the clocks, and charges the call that has just ended.
    #[cold]
    fn look(&mut self, ticked: u64, before: Option<Duration>) -> Standing {
        let (now, turn) = (clock_now(), turn_now());
        let used = match before {
            // Simulated time stands still while a guest runs.
            _ if now == turn => Duration::ZERO,
            Some(before) => thread_time().saturating_sub(before),
            None => self.sampled(ticked, now, turn),
        };
        self.charge(now, used)
    }

    /// What is charged for a call that met so many ticks, in a turn since then. Ticks that come late stand for
    /// more time; the whole turn is too much, but what was charged already in it is not charged again.
    fn sampled(&self, ticked: u64, now: Time, turn: Time) -> Duration {
        let ticks = TICK.saturating_mul(u32::try_from(ticked).unwrap_or(u32::MAX));
        ticks.max(now.since(turn.max(self.filled))).min(self.call_most)
    }

    fn charge(&mut self, now: Time, used: Duration) -> Standing {
        let (full, share) = (nanos(self.share), self.share.as_nanos());
        let gained = now.since(self.filled).as_nanos().min(ALL.as_nanos()) * share / ALL.as_nanos();
        self.filled = now;
        self.left_ns = self.left_ns.saturating_add(gained as i64).min(full);
        if self.left_ns >= full / 2 {
            self.short_since = None;
        }
        self.left_ns = self.left_ns.saturating_sub(nanos(used)).max(-full);
        if self.left_ns >= full / 2 {
            return Standing::Well;
        }
        let since = *self.short_since.get_or_insert(now);
        if self.left_ns >= 0 {
            return Standing::Well;
        }
        if now.since(since) > self.patience {
            return Standing::Starving;
        }
        let wait = u128::from(self.left_ns.unsigned_abs()) * ALL.as_nanos() / share.max(1);
        Standing::PutOff(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn account() -> Account {
        let limits = PluginLimits { cpu: ms(100), hold: ms(5000), ..PluginLimits::default() };
        Account::new(&limits, Arc::default())
    }

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn who_uses_more_waits_until_it_has_some_again() {
        let mut account = self::account();
        assert_eq!(account.charge(at(10_000), ms(60)), Standing::Well);
        assert_eq!(
            account.charge(at(10_000), ms(50)),
            Standing::PutOff(at(10_100)),
            "10 ms too much"
        );
        assert_eq!(account.charge(at(10_100), ms(0)), Standing::Well);
        assert_eq!(account.charge(at(20_000), ms(90)), Standing::Well, "at most a second's share");
        assert_eq!(
            account.charge(at(20_000), ms(9000)),
            Standing::PutOff(at(21_000)),
            "and at most a second"
        );
    }

    #[test]
    fn who_is_always_at_its_limit_starves() {
        let mut account = self::account();
        let mut now = 1000;
        let standing = loop {
            match account.charge(at(now), ms(50)) {
                Standing::Well => {}
                Standing::PutOff(then) => now = then.as_nanos() / 1_000_000,
                Standing::Starving => break now,
            }
        };
        assert!((6000..6600).contains(&standing), "{standing}");
        let mut calm = self::account();
        for second in 1..60 {
            assert_eq!(calm.charge(at(1000 * second), ms(99)), Standing::Well, "{second}");
        }
    }

    #[test]
    fn a_call_that_meets_no_tick_costs_nothing() {
        let mut account = self::account();
        let left_ns = account.left_ns;
        for _ in 0..3 {
            let begun = account.begin();
            assert!(begun.as_ref().is_some_and(|begun| begun.used.is_none()));
            assert_eq!(account.end(begun), Standing::Well);
            account.ticks.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!((account.left_ns, account.filled), (left_ns, Time::default()), "no look");
    }

    #[test]
    fn a_call_that_meets_ticks_is_charged_for_each() {
        let account = self::account();
        assert_eq!(account.sampled(1, at(7), at(7)), TICK);
        assert_eq!(account.sampled(3, at(8), at(7)), 3 * TICK);
        assert_eq!(account.sampled(1, at(12), at(7)), ms(5), "a tick that came late");
        assert_eq!(account.sampled(u64::MAX, at(12), at(7)), account.call_most);
        let filled = Account { filled: at(11), ..account };
        assert_eq!(filled.sampled(1, at(13), at(7)), ms(2), "once for each part of a turn");
    }

    #[test]
    fn samples_amount_to_what_calls_use() {
        const CALL_NS: u64 = 30_011;
        let (mut account, mut charged) = (self::account(), Duration::ZERO);
        account.call_most = ms(10);
        for call in 0..100_000 {
            let (begin, end) = (call * 2 * CALL_NS, (call * 2 + 1) * CALL_NS);
            let ticked = end / 1_000_000 - begin / 1_000_000;
            if ticked > 0 {
                charged += account.sampled(ticked, Time::from_nanos(end), Time::from_nanos(begin));
            }
        }
        let used = Duration::from_nanos(100_000 * CALL_NS);
        assert!(charged > used * 9 / 10 && charged < used * 11 / 10, "{charged:?} of {used:?}");
    }

    #[test]
    fn who_has_little_left_is_measured() {
        let mut account = self::account();
        assert_eq!(account.charge(at(10_000), ms(51)), Standing::Well);
        assert!(account.begin().is_some_and(|begun| begun.used.is_some()));
        assert_eq!(account.charge(at(11_000), ms(0)), Standing::Well);
        assert!(account.begin().is_some_and(|begun| begun.used.is_none()), "it has some again");
    }
}
