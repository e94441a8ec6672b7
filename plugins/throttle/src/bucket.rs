//! The arithmetic of one limit: a leaky bucket in virtual time.
//!
//! A bucket is a schedule: the time at which all that was admitted has leaked out at the rate. A request may
//! start once the schedule is less than the bucket's depth ahead of the clock, and moves it on by what it
//! costs. Fractions of a nanosecond are carried over, so the rate is exact however long it runs and however it
//! is divided into requests.

use crate::config::MAX_RATE;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// One limit. Its unit is a request or a byte.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    units_per_second: u64,
    depth_ns: u64,
    /// When all that was admitted has leaked out: nanoseconds, and what is left over of them in units of
    /// 1/`units_per_second`.
    drained_ns: u64,
    remainder: u64,
    /// Of the last charge; most are alike, and divisions are dear.
    cost: Cost,
}

impl Bucket {
    pub(crate) fn new(units_per_second: u64, depth_ns: u64) -> Self {
        let cost = Cost { units: 0, nanos: 0, remainder: 0 };
        Self { units_per_second, depth_ns, drained_ns: 0, remainder: 0, cost }
    }

    /// Begins where another one stands.
    pub(crate) fn follow(&mut self, former: &Self) {
        self.drained_ns = former.empty_ns();
    }

    /// The rate, and what was admitted at it.
    pub(crate) fn level(&self) -> [u64; 3] {
        [self.units_per_second, self.drained_ns, self.remainder]
    }

    /// Begins at a level, perhaps one of another rate.
    pub(crate) fn take_level(&mut self, [rate, drained_ns, remainder]: [u64; 3]) {
        self.drained_ns = drained_ns;
        let is_same = rate == self.units_per_second && remainder < rate;
        self.remainder = if is_same { remainder } else { 0 };
    }

    /// The first whole nanosecond at which all that was admitted has leaked out.
    #[inline]
    fn empty_ns(&self) -> u64 {
        self.drained_ns.saturating_add(u64::from(self.remainder > 0))
    }

    /// When the next request may start.
    #[inline]
    pub(crate) fn ready_ns(&self) -> u64 {
        self.empty_ns().saturating_sub(self.depth_ns)
    }

    /// Charges what starts at `start_ns`; returns for how long the rate is used by it.
    #[inline]
    pub(crate) fn charge(&mut self, units: u64, start_ns: u64) -> u64 {
        if self.empty_ns() < start_ns {
            (self.drained_ns, self.remainder) = (start_ns, 0);
        }
        if self.cost.units != units {
            self.cost = Cost::new(units, self.units_per_second);
        }
        self.drained_ns = self.drained_ns.saturating_add(self.cost.nanos);
        self.remainder += self.cost.remainder;
        if self.remainder >= self.units_per_second {
            self.remainder -= self.units_per_second;
            self.drained_ns = self.drained_ns.saturating_add(1);
        }
        self.cost.nanos
    }
}

/// How far some units move a schedule on: nanoseconds and a remainder, as the schedule has them.
#[derive(Clone, Debug)]
struct Cost {
    units: u64,
    nanos: u64,
    remainder: u64,
}

impl Cost {
    /// Apart, so that the divisions are not copied to wherever something is charged.
    #[inline(never)]
    fn new(units: u64, units_per_second: u64) -> Self {
        let (seconds, rest) = (units / units_per_second, units % units_per_second);
        // Below 2^64, as rates are at most MAX_RATE.
        let cost = rest * NANOS_PER_SECOND;
        let nanos =
            seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(cost / units_per_second);
        Self { units, nanos, remainder: cost % units_per_second }
    }
}

/// The time that some units take at a rate; the last there is for more.
pub(crate) fn nanos_of(units: u64, units_per_second: u64) -> u64 {
    Cost::new(units, units_per_second).nanos
}

const _: () = assert!(MAX_RATE.checked_mul(NANOS_PER_SECOND).is_some());
