//! The end of a file that grows, ahead of what is written past the page cache: file systems let one write at a time
//! make a file longer, and writes within it go on side by side.
//!
//! Nothing behind what was written is shown, and it takes no space but for its last block. What closes the file for
//! good as its writer cuts it off; a host that is killed leaves it so long. Of an image that is found so who mends it
//! knows what is in use, and cuts off the rest ([`may_be_ahead`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::limits::FILE_AHEAD_BYTES;

/// What the end is a multiple of, bytes: a block of every file system.
const BLOCK_BYTES: u64 = 64 << 10;

/// Whether a file that holds nothing behind `used_bytes` may be so long because it was made longer ahead, and nobody has
/// cut it: writes that were under way may have been to end far behind what came to be used.
pub(crate) fn may_be_ahead(used_bytes: u64, len_bytes: u64) -> bool {
    let rest = len_bytes.saturating_sub(used_bytes);
    len_bytes.is_multiple_of(BLOCK_BYTES) && rest > 0 && rest <= 2 * FILE_AHEAD_BYTES
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The file ends there, or somebody is making it so long; `u64::MAX` where that does not work.
    end_bytes: AtomicU64,
    /// Somebody goes by what tells whether the file has been changed, since it became so long.
    is_stamped: AtomicBool,
}

impl Ahead {
    /// Of a file that ends there.
    pub(super) fn at(end_bytes: u64) -> Self {
        Self { end_bytes: AtomicU64::new(end_bytes), is_stamped: AtomicBool::new(false) }
    }

    /// Where the caller is to make the file end, which is about to write up to `end`; nothing, if it need not.
    pub(super) fn claim(&self, end: u64) -> Option<u64> {
        let before = self.end_bytes.load(Ordering::Relaxed);
        if end <= before {
            return None;
        }
        let to = end.checked_add(FILE_AHEAD_BYTES)?.checked_next_multiple_of(BLOCK_BYTES)?;
        // Whoever comes in between does not wait for it: what is written behind the end makes the file longer, too.
        let claimed =
            self.end_bytes.compare_exchange(before, to, Ordering::Relaxed, Ordering::Relaxed);
        claimed.is_ok().then(|| {
            self.is_stamped.store(false, Ordering::Relaxed);
            to
        })
    }

    /// It does not work here.
    pub(super) fn give_up(&self) {
        self.end_bytes.store(u64::MAX, Ordering::Relaxed);
    }

    /// The file has got this length.
    pub(super) fn set(&self, end_bytes: u64) {
        self.end_bytes.store(end_bytes, Ordering::Relaxed);
    }

    /// From now on its length is part of what tells whether the file has been changed.
    pub(super) fn stamped(&self) {
        self.is_stamped.store(true, Ordering::Relaxed);
    }

    /// Whether a file that ends at `end_bytes` is to be cut to `len_bytes`.
    pub(super) fn is_to_be_cut(&self, len_bytes: u64, end_bytes: u64) -> bool {
        let is_own = end_bytes == self.end_bytes.load(Ordering::Relaxed);
        is_own && end_bytes > len_bytes && !self.is_stamped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_makes_it_longer_for_all() {
        let ahead = Ahead::at(512);
        assert_eq!(ahead.claim(512), None);
        assert!(!ahead.is_to_be_cut(512, 512));
        let first = FILE_AHEAD_BYTES + BLOCK_BYTES;
        assert_eq!(ahead.claim(513), Some(first));
        assert_eq!(ahead.claim(first), None);
        assert!(ahead.is_to_be_cut(1024, first));
        assert!(!ahead.is_to_be_cut(1024, first + 1), "somebody else has made it longer");
        ahead.stamped();
        assert!(!ahead.is_to_be_cut(1024, first));
        let second = first + FILE_AHEAD_BYTES + BLOCK_BYTES;
        assert_eq!(ahead.claim(first + 1), Some(second));
        assert!(ahead.is_to_be_cut(first + 1, second));
        assert_eq!(ahead.claim(u64::MAX), None);
        ahead.give_up();
        assert_eq!(ahead.claim(u64::MAX - 1), None);
        assert!(!ahead.is_to_be_cut(first + 1, second));
    }
}
