//! Reference counts of host clusters (specification, "Host cluster management").

use super::{ClusterSize, HostOffset};
use crate::error::{Error, ErrorKind, Result};

/// Width of a reference count: 1, 2, 4 … 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// 16 bits: version 2, and the default of version 3.
    pub const SIXTEEN: Self = Self { order: 4 };

    /// Of `1 << order` bits.
    ///
    /// # Errors
    /// `EINVAL` above 6.
    pub fn from_order(order: u32) -> Result<Self> {
        if order <= 6 {
            return Ok(Self { order });
        }
        Err(Error::invalid(format!("refcounts of 2^{order} bits: at most 64 are possible")))
    }

    /// Of so many bits.
    ///
    /// # Errors
    /// `EINVAL` for what is no power of two up to 64.
    pub fn from_bits(bits: u32) -> Result<Self> {
        if bits.is_power_of_two() {
            return Self::from_order(bits.trailing_zeros());
        }
        Err(Error::invalid(format!(
            "refcounts of {bits} bits: 1, 2, 4, 8, 16, 32 or 64 are possible"
        )))
    }

    /// The logarithm, as in the header.
    pub fn order(self) -> u32 {
        self.order
    }

    /// Bits of a count.
    pub fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest count.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Counts in a refcount block.
    pub fn block_entries(self, cluster_size: ClusterSize) -> u64 {
        cluster_size.bytes() * 8 / u64::from(self.bits())
    }

    /// The count at `index` of a block, or of a part of one that starts at a byte.
    ///
    /// # Panics
    /// If the block has no such index.
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        match self.order {
            0..=2 => {
                let (byte, shift) = self.sub_byte(index);
                u64::from(block[byte] >> shift) & self.max()
            }
            3 => u64::from(block[index]),
            4 => u64::from(u16::from_be_bytes(bytes_at(block, index))),
            5 => u64::from(u32::from_be_bytes(bytes_at(block, index))),
            _ => u64::from_be_bytes(bytes_at(block, index)),
        }
    }

    /// Sets the count at `index` of a block.
    ///
    /// # Errors
    /// `ENOSPC` if the count does not fit the width; the block is as before.
    ///
    /// # Panics
    /// If the block has no such index.
    pub fn set(self, block: &mut [u8], index: usize, count: u64) -> Result<()> {
        if count > self.max() {
            let message = format!("a refcount of {count} does not fit {} bits", self.bits());
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        match self.order {
            0..=2 => {
                let (byte, shift) = self.sub_byte(index);
                let mask = (self.max() as u8) << shift;
                block[byte] = block[byte] & !mask | (count as u8) << shift;
            }
            order => {
                let width = 1 << (order - 3);
                let bytes = count.to_be_bytes();
                block[index * width..][..width].copy_from_slice(&bytes[8 - width..]);
            }
        }
        Ok(())
    }

    /// The first index at or after `from` whose count is zero.
    pub fn find_zero(self, block: &[u8], from: usize) -> Option<usize> {
        let entries = self.entries_in(block);
        let mut index = from;
        if self == Self::SIXTEEN {
            // The common width, eight at a time: a block of used clusters is passed at memory speed.
            while index < entries && !index.is_multiple_of(8) {
                if self.get(block, index) == 0 {
                    return Some(index);
                }
                index += 1;
            }
            let full = |chunk: &[u8]| chunk.chunks_exact(2).all(|count| count != [0, 0]);
            while index + 8 <= entries && full(&block[index * 2..index * 2 + 16]) {
                index += 8;
            }
        }
        (index..entries).find(|&index| self.get(block, index) == 0)
    }

    /// How many counts from `from` on are zero, at most `limit`.
    pub fn zeros_from(self, block: &[u8], from: usize, limit: usize) -> usize {
        let end = self.entries_in(block).min(from.saturating_add(limit));
        (from..end).take_while(|&index| self.get(block, index) == 0).count()
    }

    fn entries_in(self, block: &[u8]) -> usize {
        (block.len() * 8) >> self.order
    }

    fn sub_byte(self, index: usize) -> (usize, u32) {
        let bit = index << self.order;
        (bit / 8, (bit % 8) as u32)
    }
}

fn bytes_at<const N: usize>(block: &[u8], index: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[index * N..][..N]);
    bytes
}

/// An entry of the refcount table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// The refcount block; `None` if all its counts are zero.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits, for a block that does not start at a cluster, and past 2^63.
    pub fn block(self, cluster_size: ClusterSize) -> Result<Option<HostOffset>> {
        if !cluster_size.is_aligned(self.0) || self.0 > i64::MAX as u64 {
            let message = format!("refcount block at {:#x}: not the start of a cluster", self.0);
            return Err(Error::corrupt(message));
        }
        Ok((self.0 != 0).then_some(HostOffset(self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(bits: u32) -> RefcountWidth {
        RefcountWidth::from_bits(bits).expect("a width")
    }

    #[test]
    fn counts_are_stored_as_the_specification_says() {
        let check = |bits: u32, counts: &[u64], bytes: &[u8]| {
            let mut block = vec![0; bytes.len()];
            for (index, &count) in counts.iter().enumerate() {
                width(bits).set(&mut block, index, count).expect("fits");
            }
            assert_eq!(block, bytes, "{bits}");
            let read: Vec<_> = (0..counts.len()).map(|i| width(bits).get(bytes, i)).collect();
            assert_eq!(read, counts, "{bits}");
        };
        check(1, &[1, 0, 1, 1, 0, 0, 0, 1, 1], &[0x8d, 1]);
        check(2, &[3, 0, 2, 1], &[0x63]);
        check(4, &[0xf, 1, 2], &[0x1f, 2]);
        check(8, &[0xff, 7], &[0xff, 7]);
        check(16, &[0x102, 3], &[1, 2, 0, 3]);
        check(32, &[0x0102_0304], &[1, 2, 3, 4]);
        check(
            64,
            &[u64::MAX, 1],
            &[255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 1],
        );
    }

    #[test]
    fn setting_one_leaves_the_others() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let width = width(bits);
            let mut block = vec![0xff; 64];
            width.set(&mut block, 5, 0).expect("fits");
            for index in 0..width.entries_in(&block) {
                assert_eq!(width.get(&block, index), if index == 5 { 0 } else { width.max() });
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut block = [0; 8];
        for bits in [1, 2, 4, 8, 16, 32] {
            assert!(width(bits).set(&mut block, 0, width(bits).max() + 1).is_err(), "{bits}");
            assert_eq!(block, [0; 8]);
        }
    }

    #[test]
    fn searches() {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let width = width(bits);
            let mut block = vec![0xff; 512];
            let entries = width.entries_in(&block);
            assert_eq!(width.find_zero(&block, 0), None);
            assert_eq!(width.find_zero(&block, entries), None);
            for index in [0, 3, 7, 8, 21, 22, 23, 63].into_iter().filter(|&i| i < entries) {
                width.set(&mut block, index, 0).expect("fits");
                assert_eq!(width.find_zero(&block, 0), Some(index), "{bits} bits, {index}");
                assert_eq!(width.find_zero(&block, index + 1), None);
                assert_eq!(width.zeros_from(&block, index, 9), 1);
                assert_eq!(width.zeros_from(&block, index + 1, 9), 0);
                width.set(&mut block, index, 1).expect("fits");
            }
            assert_eq!(width.zeros_from(&vec![0; 512], 1, usize::MAX), entries - 1);
        }
    }

    #[test]
    fn table_entries() {
        let check = |word: u64, expect: Option<Option<u64>>| {
            let block = RefcountTableEntry(word).block(ClusterSize::SIXTY_FOUR_KIB).ok();
            assert_eq!(block, expect.map(|offset| offset.map(HostOffset)), "{word:#x}");
        };
        check(0, Some(None));
        check(0x20000, Some(Some(0x20000)));
        check(0x20001, None);
        check(1 << 63, None);
    }
}
