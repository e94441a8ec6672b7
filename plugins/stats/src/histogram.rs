//! Durations by size, in a fixed amount of memory.

use std::time::Duration;

/// Buckets of each power of two.
const PARTS: u32 = 8;
const PARTS_LOG2: u32 = PARTS.ilog2();
const BUCKETS: usize = ((u64::BITS - PARTS_LOG2 + 1) * PARTS) as usize;

/// How many durations were how long. Each is counted with those that are less than an eighth longer.
///
/// ```
/// use blockloom_plugin_stats::Histogram;
/// use std::time::Duration;
///
/// let mut histogram = Histogram::default();
/// (1..=100).for_each(|micros| histogram.add(Duration::from_micros(micros)));
/// assert_eq!(histogram.count(), 100);
/// let half = histogram.within(500);
/// assert!(half >= Duration::from_micros(50) && half < Duration::from_micros(57));
/// assert_eq!(histogram.within(1000), Duration::from_micros(100));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// As many as the longest needs.
    buckets: Vec<u64>,
    count: u64,
    longest_ns: u64,
}

impl Histogram {
    /// Counts one more.
    pub fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket_of(nanos).min(BUCKETS - 1);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.longest_ns = self.longest_ns.max(nanos);
    }

    /// Its numbers, for [`Histogram::restore`]: the longest, how many buckets are used, and each with what it
    /// counts; little-endian words.
    pub fn save(&self, state: &mut Vec<u8>) {
        let used = || (0_u64..).zip(&self.buckets).filter(|(_, count)| **count > 0);
        let mut put = |word: u64| state.extend_from_slice(&word.to_le_bytes());
        put(self.longest_ns);
        put(used().count() as u64);
        used().for_each(|(bucket, count)| {
            put(bucket);
            put(*count);
        });
    }

    /// Adds what another one has counted, from the words that it saved; none if they are not such.
    pub fn restore(&mut self, words: &mut impl Iterator<Item = u64>) -> Option<()> {
        self.longest_ns = self.longest_ns.max(words.next()?);
        for _ in 0..words.next()? {
            let bucket = usize::try_from(words.next()?).ok().filter(|bucket| *bucket < BUCKETS)?;
            let count = words.next()?;
            if self.buckets.len() <= bucket {
                self.buckets.resize(bucket + 1, 0);
            }
            self.buckets[bucket] = self.buckets[bucket].checked_add(count)?;
            self.count = self.count.checked_add(count)?;
        }
        Some(())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A duration that so many thousandths of them do not exceed, at most an eighth too long.
    #[must_use]
    pub fn within(&self, thousandths: u64) -> Duration {
        let wanted = u128::from(self.count) * u128::from(thousandths.min(1000));
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count) * 1000;
            if seen >= wanted {
                return Duration::from_nanos(last_of(bucket).min(self.longest_ns));
            }
        }
        Duration::from_nanos(self.longest_ns)
    }
}

/// The bucket of a number: of its highest bit and the three below it.
fn bucket_of(nanos: u64) -> usize {
    let log2 = nanos.checked_ilog2().unwrap_or(0);
    match log2.checked_sub(PARTS_LOG2) {
        None => nanos as usize,
        Some(shift) => {
            ((shift + 1) * PARTS) as usize + ((nanos >> shift) as usize & (PARTS as usize - 1))
        }
    }
}

/// The largest number of a bucket.
fn last_of(bucket: usize) -> u64 {
    let (shift, part) = (bucket / PARTS as usize, (bucket % PARTS as usize) as u64);
    match shift.checked_sub(1) {
        None => part,
        Some(shift) => (u128::from(u64::from(PARTS) + part + 1) << shift)
            .saturating_sub(1)
            .try_into()
            .unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for bucket in 0..BUCKETS {
            let last = last_of(bucket);
            assert_eq!(bucket_of(last), bucket);
            if last < u64::MAX {
                assert_eq!(bucket_of(last + 1), bucket + 1);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_was_counted() {
        assert_eq!(Histogram::default().within(990), Duration::ZERO);
    }
}
