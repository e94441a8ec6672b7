//! The arithmetic of the throttle: leaky buckets in virtual time.
//!
//! A bucket is a schedule: the time at which all that was admitted has leaked out at the rate. A
//! request may start once the schedule is less than a burst ahead of the clock, and moves it on by
//! what it costs. Fractions of a nanosecond are carried over, so the rate is exact however long it
//! runs and however it is divided into requests. Nothing is queued here: the answer is a time.
//!
//! - Requests that the same limits apply to are admitted in the order of their arrival: their times
//!   never decrease.
//! - A request larger than a burst is admitted whole, and those after it wait for it.
//! - With a burst of nothing, requests are spaced evenly, and time that nobody used is lost.

use blockloom_sdk::Kind;

use crate::ThrottleConfig;
use crate::config::{Limits, MAX_RATE};

/// Of what [`Throttle::save`] returns.
const FORM: u8 = 1;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// One limit. Its unit is a request or a byte.
#[derive(Clone, Debug)]
struct Bucket {
    /// The rate; 0 is no limit, and the schedule never moves.
    units_per_second: u64,
    /// When all that was admitted has leaked out: nanoseconds, and what is left over of them
    /// in units of 1/`units_per_second`.
    drained_ns: u64,
    remainder: u64,
    /// Of the last charge; most are alike, and divisions are dear.
    cost: Cost,
}

impl Bucket {
    fn new(units_per_second: u64) -> Self {
        // Nothing costs nothing.
        let cost = Cost { units: 0, nanos: 0, remainder: 0 };
        Self { units_per_second, drained_ns: 0, remainder: 0, cost }
    }

    /// The first whole nanosecond at which all that was admitted has leaked out.
    #[inline]
    fn empty_ns(&self) -> u64 {
        self.drained_ns.saturating_add(u64::from(self.remainder > 0))
    }

    /// Charges what starts at `start_ns`.
    #[inline]
    fn charge(&mut self, units: u64, start_ns: u64) {
        if self.units_per_second == 0 {
            return;
        }
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

const _: () = assert!(MAX_RATE.checked_mul(NANOS_PER_SECOND).is_some());

/// The limits of a throttle and what they have admitted.
///
/// ```
/// use blockloom_plugin_throttle::{Throttle, ThrottleConfig};
/// use blockloom_sdk::Kind;
///
/// let config = ThrottleConfig::from_json(r#"{ "iops": 1000, "burst": "1ms" }"#)?;
/// let mut throttle = Throttle::new(&config);
/// let now_ns = 7_000_000;
/// assert_eq!(throttle.admit(Kind::Read, 4096, now_ns), 0);
/// assert_eq!(throttle.admit(Kind::Read, 4096, now_ns), 0);
/// assert_eq!(throttle.admit(Kind::Read, 4096, now_ns), 8_000_000);
/// # Ok::<(), blockloom_sdk::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Throttle {
    burst_ns: u64,
    /// Bytes that count as one request; 0 if each counts as one.
    iops_size: u64,
    /// Of both directions, of reads, of writes: of requests and of bytes each.
    buckets: [[Bucket; 2]; 3],
}

const BOTH: usize = 0;
const READ: usize = 1;
const WRITE: usize = 2;

impl Throttle {
    /// A throttle that has admitted nothing.
    #[must_use]
    #[inline(never)]
    pub fn new(config: &ThrottleConfig) -> Self {
        let quantities = [config.iops, config.bps];
        let of = |rate: fn(&Limits) -> Option<u64>| {
            quantities.each_ref().map(|limits| Bucket::new(rate(limits).unwrap_or(0)))
        };
        Self {
            burst_ns: config.burst.as_nanos().try_into().unwrap_or(u64::MAX),
            iops_size: config.iops_size.unwrap_or(0),
            buckets: [
                of(|limits| limits.total),
                of(|limits| limits.read),
                of(|limits| limits.write),
            ],
        }
    }

    /// Puts other limits in force. What was admitted under the former ones keeps its time, and
    /// counts on: where a quantity stays limited, the new rate begins when the old has leaked out.
    pub fn reconfigure(&mut self, config: &ThrottleConfig) {
        let former = std::mem::replace(self, Self::new(config));
        let former = former.buckets.as_flattened().iter();
        for (new, old) in self.buckets.as_flattened_mut().iter_mut().zip(former) {
            if new.units_per_second > 0 {
                new.drained_ns = old.drained_ns;
            }
        }
    }

    /// What was admitted counts no more, but as if a burst had been: the next request may start at once, and those
    /// after it at the rate. For whoever gives requests that wait new times.
    pub fn begin_again(&mut self, now_ns: u64) {
        let full_ns = now_ns.saturating_add(self.burst_ns);
        for bucket in self.buckets.as_flattened_mut() {
            (bucket.drained_ns, bucket.remainder) = (full_ns, 0);
        }
    }

    /// What was admitted, for [`Throttle::restore`]: the number of this form, then for each bucket its rate, when
    /// it has leaked out, and what is left over, little-endian.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut state = vec![FORM];
        for bucket in self.buckets.as_flattened() {
            for word in [bucket.units_per_second, bucket.drained_ns, bucket.remainder] {
                state.extend_from_slice(&word.to_le_bytes());
            }
        }
        state
    }

    /// Takes over what another throttle has admitted, as by [`Throttle::reconfigure`] if that had other limits.
    ///
    /// # Errors
    ///
    /// A state of another form.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), &'static str> {
        let wrong = "its form is not known";
        let (FORM, words) = state.split_first().map_or((0, &[][..]), |(form, rest)| (*form, rest))
        else {
            return Err(wrong);
        };
        let (words, []) = words.as_chunks::<8>() else { return Err(wrong) };
        let (saved, []) = words.as_chunks::<3>() else { return Err(wrong) };
        let buckets = self.buckets.as_flattened_mut();
        if saved.len() != buckets.len() {
            return Err(wrong);
        }
        for (bucket, saved) in buckets.iter_mut().zip(saved) {
            let [rate, drained_ns, remainder] = saved.map(u64::from_le_bytes);
            if bucket.units_per_second > 0 {
                bucket.drained_ns = drained_ns;
                let is_same = rate == bucket.units_per_second;
                bucket.remainder = if is_same { remainder.min(rate - 1) } else { 0 };
            }
        }
        Ok(())
    }

    /// Admits a request that arrived at `now_ns`, and returns the time before which it must not
    /// start; 0 if it may at once.
    ///
    /// Zeroing and discarding count as writes, as one request each and as no bytes: their length
    /// is not what they cost, and no data comes from the client. A flush or a resize is never
    /// delayed.
    #[inline]
    pub fn admit(&mut self, kind: Kind, len_bytes: u64, now_ns: u64) -> u64 {
        let (direction, len_bytes) = match kind {
            Kind::Read => (READ, len_bytes),
            Kind::Write => (WRITE, len_bytes),
            Kind::Zero | Kind::Discard => (WRITE, 0),
            Kind::Flush | Kind::Resize => return 0,
        };
        // What limits both directions is charged before what limits one: a write does not wait for
        // reads that only the limit of reads holds back.
        let requests = match self.iops_size {
            0 => 1,
            size => len_bytes.div_ceil(size).max(1),
        };
        let mut start_ns = now_ns;
        for buckets in [BOTH, direction] {
            start_ns = self.admit_to(buckets, (requests, len_bytes), start_ns);
        }
        if start_ns > now_ns { start_ns } else { 0 }
    }

    /// Admits a request to a pair of buckets at the earliest time from `from_ns` on that both allow.
    #[inline]
    fn admit_to(&mut self, pair: usize, cost: (u64, u64), from_ns: u64) -> u64 {
        let [requests, bytes] = &mut self.buckets[pair];
        let earliest_ns = requests.empty_ns().max(bytes.empty_ns()).saturating_sub(self.burst_ns);
        let start_ns = from_ns.max(earliest_ns);
        requests.charge(cost.0, start_ns);
        bytes.charge(cost.1, start_ns);
        start_ns
    }
}
