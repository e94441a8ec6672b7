//! The arithmetic of one limit: a leaky bucket in virtual time.
//!
//! A bucket is a schedule: the time at which all that was admitted has leaked out at the rate. A request may
//! start once the schedule is less than the bucket's depth ahead of the clock, and moves it on by what it
//! costs. Fractions of a nanosecond are carried over, so the rate is exact however long it runs and however it
//! is divided into requests.

use super::MAX_RATE;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// One limit. Its unit is a request, or a byte, or whatever else is limited.
///
/// ```
/// use blockloom_sdk::rate::Bucket;
///
/// let mut lines = Bucket::new(10, 200_000_000);
/// let now_ns = 7_000_000_000;
/// let passed = (0..5).filter(|_| {
///     let passes = lines.ready_ns() <= now_ns;
///     passes && lines.charge(1, now_ns) > 0
/// });
/// assert_eq!(passed.count(), 3, "a burst of 200 ms, and one that the rate allows");
/// assert_eq!(lines.ready_ns(), now_ns + 100_000_000);
/// ```
#[derive(Clone, Debug)]
pub struct Bucket {
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
    /// An empty one. The rate is between 1 and [`MAX_RATE`]; `depth_ns` is a burst, as the time that it takes at the
    /// rate.
    #[must_use]
    pub fn new(units_per_second: u64, depth_ns: u64) -> Self {
        let units_per_second = units_per_second.clamp(1, MAX_RATE);
        let cost = Cost { units: 0, nanos: 0, remainder: 0 };
        Self { units_per_second, depth_ns, drained_ns: 0, remainder: 0, cost }
    }

    /// Begins where another one stands.
    pub fn follow(&mut self, former: &Self) {
        self.drained_ns = former.empty_ns();
    }

    /// The rate, and what was admitted at it.
    #[must_use]
    pub fn level(&self) -> [u64; 3] {
        [self.units_per_second, self.drained_ns, self.remainder]
    }

    /// Begins at a level, perhaps one of another rate.
    pub fn take_level(&mut self, [rate, drained_ns, remainder]: [u64; 3]) {
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
    #[must_use]
    #[inline]
    pub fn ready_ns(&self) -> u64 {
        self.empty_ns().saturating_sub(self.depth_ns)
    }

    /// Charges what starts at `start_ns`; returns for how long the rate is used by it.
    #[inline]
    pub fn charge(&mut self, units: u64, start_ns: u64) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_exact_however_it_is_divided() {
        for rate in [1, 3, 7, 99_991, MAX_RATE] {
            for units in [1, 2, 3, 1000] {
                let mut bucket = Bucket::new(rate, 0);
                for _ in 0..1000 {
                    bucket.charge(units, 0);
                }
                let exact = (u128::from(1000 * units) * 1_000_000_000).div_ceil(rate.into());
                assert_eq!(u128::from(bucket.ready_ns()), exact, "{units} at {rate}");
            }
        }
    }

    #[test]
    fn what_leaked_out_in_a_pause_is_not_saved_up() {
        let mut bucket = Bucket::new(10, 0);
        bucket.charge(1, 0);
        bucket.charge(1, 5_000_000_000);
        assert_eq!(bucket.ready_ns(), 5_100_000_000);
        bucket.charge(u64::MAX, 0);
        bucket.charge(u64::MAX, 0);
        assert_eq!(bucket.ready_ns(), u64::MAX);
    }

    #[test]
    fn a_level_goes_over_to_another_rate() {
        let mut bucket = Bucket::new(3, 0);
        bucket.charge(1, 0);
        let mut same = Bucket::new(3, 0);
        same.take_level(bucket.level());
        assert_eq!(same.level(), bucket.level());
        let mut other = Bucket::new(4, 0);
        other.take_level(bucket.level());
        assert_eq!(other.level(), [4, 333_333_333, 0]);
        other.follow(&bucket);
        assert_eq!(other.level(), [4, 333_333_334, 0]);
        assert_eq!(Bucket::new(0, 0).level()[0], 1, "a rate of none is none");
    }
}
