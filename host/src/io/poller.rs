//! How long a worker polls before it sleeps.

use std::time::Duration;

/// Whether to poll before a sleep: while it pays. A wait that polling could have spared is worth a try;
/// tries that fail make the next ones rarer, and a long pause ends them.
pub(super) struct Poller {
    max: Duration,
    /// Traffic flows: the last wait was short.
    flowing: bool,
    /// Tries that failed since one succeeded, as a power of two of waits to let pass.
    failures: u32,
    skip: u32,
}

impl Poller {
    /// A wait this many times as long as the window may be short without the cost of the sleep.
    const FLOWING_WAITS: u32 = 8;
    const FAILURES_MAX: u32 = 6;

    pub(super) fn new(max: Duration) -> Self {
        Self { max, flowing: false, failures: 0, skip: 0 }
    }

    /// How long to poll now.
    pub(super) fn window(&mut self) -> Duration {
        if !self.flowing || self.max.is_zero() {
            return Duration::ZERO;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Duration::ZERO;
        }
        self.max
    }

    /// Learns from a wait that polling for `window` did or did not end.
    pub(super) fn learn(&mut self, ended: bool, window: Duration, waited: Duration) {
        self.flowing = waited <= self.max * Self::FLOWING_WAITS;
        if window.is_zero() {
            return;
        }
        if ended {
            self.failures = 0;
        } else {
            self.failures = (self.failures + 1).min(Self::FAILURES_MAX);
            self.skip = (1 << self.failures) - 1;
        }
    }
}
