//! The end of a file that grows, ahead of what is written past the page cache: file systems let one write at a time
//! make a file longer, and writes within it go on side by side.
//!
//! Nothing behind what was written is shown, and it takes no space but for its last block. A clean end cuts it off; a
//! host that is killed leaves the file so long.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::limits::FILE_AHEAD_BYTES;

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
        let to = end.checked_next_multiple_of(FILE_AHEAD_BYTES)?.checked_add(FILE_AHEAD_BYTES)?;
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

    /// Whether the file is to be cut to `len_bytes`, which it has.
    pub(super) fn is_to_be_cut(&self, len_bytes: u64) -> bool {
        let end = self.end_bytes.load(Ordering::Relaxed);
        end > len_bytes && end != u64::MAX && !self.is_stamped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_makes_it_longer_for_all() {
        let ahead = Ahead::at(512);
        assert_eq!(ahead.claim(512), None);
        assert!(!ahead.is_to_be_cut(512));
        assert_eq!(ahead.claim(513), Some(2 * FILE_AHEAD_BYTES));
        assert_eq!(ahead.claim(2 * FILE_AHEAD_BYTES), None);
        assert!(ahead.is_to_be_cut(FILE_AHEAD_BYTES));
        ahead.stamped();
        assert!(!ahead.is_to_be_cut(FILE_AHEAD_BYTES));
        assert_eq!(ahead.claim(2 * FILE_AHEAD_BYTES + 1), Some(4 * FILE_AHEAD_BYTES));
        assert!(ahead.is_to_be_cut(FILE_AHEAD_BYTES));
        assert_eq!(ahead.claim(u64::MAX), None);
        ahead.give_up();
        assert_eq!(ahead.claim(u64::MAX - 1), None);
        assert!(!ahead.is_to_be_cut(FILE_AHEAD_BYTES));
    }
}
