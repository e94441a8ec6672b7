//! What of a bitmap comes from outside or is shown there: its granularity, its name, its state.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::BitmapError;

/// Bytes that one bit stands for: a power of two from 512 B to 2 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granularity {
    /// Base-two logarithm of the bytes.
    shift: u8,
}

impl Granularity {
    /// 512 B.
    pub const MIN: Self = Self { shift: 9 };
    /// 64 KiB, what a bitmap has unless told otherwise.
    pub const DEFAULT: Self = Self { shift: 16 };
    /// 2 GiB.
    pub const MAX: Self = Self { shift: 31 };

    /// Takes a number of bytes.
    ///
    /// # Errors
    /// [`BitmapError::Granularity`] unless it is a power of two from [`Self::MIN`] to
    /// [`Self::MAX`].
    pub const fn from_bytes(bytes: u64) -> Result<Self, BitmapError> {
        if !bytes.is_power_of_two() || bytes < Self::MIN.bytes() || bytes > Self::MAX.bytes() {
            return Err(BitmapError::Granularity { bytes });
        }
        Ok(Self { shift: bytes.trailing_zeros() as u8 })
    }

    /// The granularity in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Base-two logarithm of [`Self::bytes`].
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }
}

impl Default for Granularity {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for Granularity {
    type Error = BitmapError;

    fn try_from(bytes: u64) -> Result<Self, BitmapError> {
        Self::from_bytes(bytes)
    }
}

/// Prints the number of bytes.
impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

/// A bitmap's name, unique within its node or drive: 1 to 1023 bytes of UTF-8 without NUL, as QEMU
/// allows. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitmapName(Arc<str>);

impl BitmapName {
    /// The longest name (QEMU's `BDRV_BITMAP_MAX_NAME_SIZE`).
    pub const MAX_LEN_BYTES: usize = 1023;

    /// Checks a name.
    ///
    /// # Errors
    /// [`BitmapError::NameEmpty`], [`BitmapError::NameTooLong`] or [`BitmapError::NameNul`].
    pub fn new(name: &str) -> Result<Self, BitmapError> {
        if name.is_empty() {
            return Err(BitmapError::NameEmpty);
        }
        if name.len() > Self::MAX_LEN_BYTES {
            return Err(BitmapError::NameTooLong { len_bytes: name.len() });
        }
        if let Some(index) = name.bytes().position(|byte| byte == 0) {
            return Err(BitmapError::NameNul { index });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BitmapName {
    type Err = BitmapError;

    fn from_str(name: &str) -> Result<Self, BitmapError> {
        Self::new(name)
    }
}

impl AsRef<str> for BitmapName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Lets maps that are keyed by names be asked with a `&str`.
impl Borrow<str> for BitmapName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BitmapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a bitmap does with changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BitmapState {
    /// Changes are recorded.
    Recording,
    /// Changes pass unrecorded; the content stays until it is cleared, merged into or enabled
    /// again.
    Disabled,
    /// What had been recorded stands still for whoever froze it, while a successor records (unless
    /// the bitmap was disabled). It ends by a merge back or by abdication.
    Frozen,
    /// It was not stored after its last use, or a foreign tool broke it: everything counts as dirty,
    /// nothing is recorded, and all that can be done is to remove it, or to repair it as all dirty.
    Inconsistent,
}

/// `recording`, `disabled`, `frozen` or `inconsistent`.
impl fmt::Display for BitmapState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Recording => "recording",
            Self::Disabled => "disabled",
            Self::Frozen => "frozen",
            Self::Inconsistent => "inconsistent",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granularity_is_a_power_of_two_in_range() {
        for shift in 0..64 {
            let bytes = 1_u64 << shift;
            let granularity = Granularity::from_bytes(bytes);
            if (9..=31).contains(&shift) {
                assert_eq!(granularity.map(Granularity::bytes), Ok(bytes));
            } else {
                assert_eq!(granularity, Err(BitmapError::Granularity { bytes }));
            }
        }
        for bytes in [0, 511, 513, 65535, 65537, (1 << 31) + 512, u64::MAX] {
            assert_eq!(Granularity::from_bytes(bytes), Err(BitmapError::Granularity { bytes }));
        }
        assert_eq!(Granularity::DEFAULT.to_string(), "65536");
    }

    #[test]
    fn names_are_as_qemu_allows() {
        let check = |name: &str, expect: Result<(), BitmapError>| {
            assert_eq!(
                BitmapName::new(name).map(|parsed| assert_eq!(parsed.as_str(), name)),
                expect
            );
        };
        check("b", Ok(()));
        check("täglich/0 🙂", Ok(()));
        check(&"x".repeat(1023), Ok(()));
        check("", Err(BitmapError::NameEmpty));
        check(&"x".repeat(1024), Err(BitmapError::NameTooLong { len_bytes: 1024 }));
        check(&"é".repeat(512), Err(BitmapError::NameTooLong { len_bytes: 1024 }));
        check("a\0b", Err(BitmapError::NameNul { index: 1 }));
    }
}
