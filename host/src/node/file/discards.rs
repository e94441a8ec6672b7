//! How many discards a file was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::node::DiscardCounts;

/// See the module. For reports: the three are not read at one instant.
#[derive(Debug, Default)]
pub(super) struct Discards {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl Discards {
    /// One more, of so many bytes, has ended.
    pub(super) fn count(&self, len: u64, is_done: bool) {
        if !is_done {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len, Ordering::Relaxed);
    }

    /// So far.
    pub(super) fn counts(&self) -> DiscardCounts {
        let [done, failed, bytes] =
            [&self.done, &self.failed, &self.bytes].map(|it| it.load(Ordering::Relaxed));
        DiscardCounts { done, failed, bytes }
    }
}
