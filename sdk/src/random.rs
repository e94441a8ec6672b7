//! Numbers that look random, the same for the same seed.

use std::cell::Cell;

/// Numbers from a seed: for filters that inject faults or jitter, so that a run can be repeated.
///
/// ```
/// use blockloom_sdk::Random;
///
/// let (one, other) = (Random::new(7), Random::new(7));
/// assert_eq!(one.below(100), other.below(100));
/// assert!(one.below(100) < 100);
/// ```
#[derive(Clone, Debug)]
pub struct Random(Cell<u64>);

impl Random {
    /// Numbers of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// The next number (SplitMix64).
    pub fn next_u64(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_evenly_and_differ_by_seed() {
        let random = Random::new(1);
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            counts[random.below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
        assert_ne!(Random::new(1).next_u64(), Random::new(2).next_u64());
        assert_eq!(random.below(0), 0);
    }
}
