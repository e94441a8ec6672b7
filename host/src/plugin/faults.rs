//! What becomes of an instance whose plugin has failed: the policy, and what has come of it so far.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use blockloom_abi::Violation;

use super::breach::Breach;
use crate::io::Time;

/// Wait before the first new store, and the longest one.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// Why a store is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// It broke the protocol.
    pub(super) is_violation: bool,
}

impl Fault {
    /// Of a call that did not end as it should, or of something that took too long.
    pub(super) fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_violation: false }
    }

    /// Of an answer that is none.
    pub(super) fn breach(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_violation: true }
    }
}

impl From<Breach> for Fault {
    fn from(breach: Breach) -> Self {
        Self::breach(breach.to_string())
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Breach::Layout(violation).into()
    }
}

/// What happens to the nodes of an instance when its plugin fails.
///
/// Whatever it is, a request that the plugin had forwarded ends with the child's result, and a flush goes to
/// the child. It decides over those that the plugin had not forwarded, and those that come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFault {
    /// They fail with `EIO`.
    #[default]
    Fail,
    /// They go to the filtered child. For plugins whose description allows it.
    Bypass,
    /// They are offered to a new store, and wait for it; within the budget.
    Restart(RestartBudget),
}

/// How many faults are restarted; one more, and requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartBudget {
    /// So many faults,
    pub faults: u32,
    /// in so long a time.
    pub within: Duration,
}

impl Default for RestartBudget {
    fn default() -> Self {
        Self { faults: 5, within: Duration::from_secs(60) }
    }
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Requests are offered.
    Running,
    /// They wait.
    Down,
    /// They go to the child.
    Bypassed,
    /// They fail.
    Failed,
    /// They wait for another plugin to take the place.
    Reloading,
}

/// A [`Phase`] that every worker looks at.
pub(super) struct PhaseCell(AtomicU8);

impl PhaseCell {
    pub(super) const fn new() -> Self {
        Self(AtomicU8::new(Phase::Running as u8))
    }

    #[inline]
    pub(super) fn get(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Down,
            2 => Phase::Bypassed,
            3 => Phase::Failed,
            _ => Phase::Reloading,
        }
    }

    pub(super) fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }
}

/// What comes after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A new store, then.
    Restart(Time),
    Bypass,
    Fail,
}

/// The faults of an instance that still count. At most as many as the budget has.
#[derive(Debug, Default)]
pub(super) struct Faults(VecDeque<Time>);

impl Faults {
    /// Forgets those of another plugin.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Counts one, and decides what comes next.
    pub(super) fn count(&mut self, policy: OnFault, now: Time) -> Next {
        let budget = match policy {
            OnFault::Fail => return Next::Fail,
            OnFault::Bypass => return Next::Bypass,
            OnFault::Restart(budget) => budget,
        };
        while self.0.front().is_some_and(|fault| now.since(*fault) >= budget.within) {
            self.0.pop_front();
        }
        if self.0.len() >= budget.faults as usize {
            return Next::Fail;
        }
        let (first, longest) = BACK_OFF;
        let doublings = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let wait = first.saturating_mul(2_u32.saturating_pow(doublings)).min(longest);
        self.0.push_back(now);
        Next::Restart(now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_restarted_ever_later_within_the_budget() {
        let budget = RestartBudget { faults: 12, within: Duration::from_secs(60) };
        let (mut faults, policy) = (Faults::default(), OnFault::Restart(budget));
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        let waits: Vec<u64> = (0..12)
            .map(|_| match faults.count(policy, at(1)) {
                Next::Restart(then) => then.since(at(1)).as_millis() as u64,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000]);
        assert_eq!(faults.count(policy, at(60)), Next::Fail);
        let then = at(61) + Duration::from_millis(10);
        assert_eq!(faults.count(policy, at(61)), Next::Restart(then), "those have been forgotten");
    }

    #[test]
    fn other_policies_count_nothing() {
        let mut faults = Faults::default();
        assert_eq!(faults.count(OnFault::Fail, Time::default()), Next::Fail);
        assert_eq!(faults.count(OnFault::Bypass, Time::default()), Next::Bypass);
        let none = OnFault::Restart(RestartBudget { faults: 0, within: Duration::from_secs(1) });
        assert_eq!(faults.count(none, Time::default()), Next::Fail);
    }
}
