//! Population count with the processor's own instruction where it has one.
//!
//! The baseline x86-64 target has no `popcnt`; the portable form takes several times as long.

#![allow(
    unsafe_code,
    reason = "calling a target-feature function after detecting the feature is the only way to it"
)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of bits set in `words` or, at the same place, in `also`, which is empty or as long.
pub(super) fn count_ones(words: &[AtomicU64], also: &[AtomicU64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("popcnt") {
        // SAFETY: the processor has `popcnt`, as just detected; the function asks for nothing else.
        return unsafe { count_ones_popcnt(words, also) };
    }
    count_ones_portable(words, also)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "popcnt")]
fn count_ones_popcnt(words: &[AtomicU64], also: &[AtomicU64]) -> u64 {
    count_ones_portable(words, also)
}

/// Compiles to what the caller's target features allow, hence always inlined. Four sums run side by
/// side.
#[inline(always)]
fn count_ones_portable(words: &[AtomicU64], also: &[AtomicU64]) -> u64 {
    let ones = |word: u64| u64::from(word.count_ones());
    if !also.is_empty() {
        let both = words.iter().zip(also);
        return both.map(|(word, also)| ones(word.load(Relaxed) | also.load(Relaxed))).sum();
    }
    let (fours, rest) = words.as_chunks::<4>();
    let mut sums = [0_u64; 4];
    for four in fours {
        for (sum, word) in sums.iter_mut().zip(four) {
            *sum += ones(word.load(Relaxed));
        }
    }
    sums.iter().sum::<u64>() + rest.iter().map(|word| ones(word.load(Relaxed))).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_count_every_length() {
        let words: Vec<_> =
            (0..23_u64).map(|i| AtomicU64::new(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        for len in 0..=words.len() {
            let expect: u64 =
                words[..len].iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum();
            assert_eq!(count_ones(&words[..len], &[]), expect);
            assert_eq!(count_ones_portable(&words[..len], &[]), expect);
            let also: Vec<_> = (0..len as u64).map(|i| AtomicU64::new(i << 60 | 1)).collect();
            let expect = words.iter().zip(&also);
            let expect: u64 = expect
                .map(|(word, also)| {
                    u64::from((word.load(Relaxed) | also.load(Relaxed)).count_ones())
                })
                .sum();
            assert_eq!(count_ones(&words[..len], &also), expect);
            assert_eq!(count_ones_portable(&words[..len], &also), expect);
        }
    }
}
