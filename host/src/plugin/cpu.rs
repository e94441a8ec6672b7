//! The processor time of a store: what it may have of each second, and what becomes of one that wants more.
//!
//! Each call is bounded by itself; this bounds many of them. A store that has used up its time is not called until
//! it has some again. One that is always at its limit, for as long as it may hold a request, has failed.

use std::time::Duration;

use super::PluginLimits;
use super::runtime::TICK;
use crate::io::{Time, clock_now, thread_time, turn_now};

/// A share that is no limit: all of each second.
pub(super) const ALL: Duration = Duration::from_secs(1);

/// What a store has used.
pub(super) struct Account {
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
    at: Time,
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
    pub(super) fn new(limits: &PluginLimits) -> Self {
        let &PluginLimits { cpu: share, hold: patience, call, .. } = limits;
        let (left_ns, call_most) = (nanos(share), call + 2 * TICK);
        Self { share, patience, call_most, left_ns, filled: Time::default(), short_since: None }
    }

    /// A call begins; `None` where nothing is counted.
    ///
    /// Time since the turn's beginning is more than what the guest uses, and costs one look at the clock, in
    /// further calls of a turn two. Only who comes near the limit by that measure is measured exactly.
    #[inline]
    pub(super) fn begin(&self) -> Option<Begun> {
        if self.share >= ALL {
            return None;
        }
        let is_exact = self.left_ns < nanos(self.share) / 2;
        let turn = turn_now();
        // What was charged already in this turn is not charged again.
        let at = if self.filled > turn { clock_now() } else { turn };
        Some(Begun { at, used: is_exact.then(thread_time) })
    }

    /// It has ended.
    #[inline]
    pub(super) fn end(&mut self, begun: Option<Begun>) -> Standing {
        let Some(begun) = begun else { return Standing::Well };
        let now = clock_now();
        let used = match begun.used {
            None => now.since(begun.at).min(self.call_most),
            // Simulated time stands still while a guest runs.
            Some(_) if now == begun.at => Duration::ZERO,
            Some(before) => thread_time().saturating_sub(before),
        };
        self.charge(now, used)
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
        Account::new(&limits)
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
}
