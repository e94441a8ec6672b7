//! Requests in flight, counted so that what they may have looked up is not given to somebody else.
//!
//! Two counts of requests, used in turn: a request counts in the epoch in which it began, and an epoch
//! ends when the one before has no request left. What was retired in epoch `e` may be used again in
//! epoch `e + 2`: every request that began up to `e` has ended then, and every later one has looked up
//! what is there now (it read the epoch after the lookup tables had changed).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SHARDS: usize = 16;

/// A count to itself on its cache lines: workers do not share them.
#[repr(align(128))]
#[derive(Default)]
struct Shard {
    in_flight: [AtomicU64; 2],
}

/// Of an image.
#[derive(Default)]
pub(super) struct Turns {
    epoch: AtomicU64,
    shards: [Shard; SHARDS],
}

impl Turns {
    /// Counts a request; says where, for [`Self::leave`].
    pub(super) fn enter(&self) -> (usize, usize) {
        let shard = thread_shard();
        let counts = &self.shards[shard].in_flight;
        loop {
            // Counted first, read again afterwards: whoever ends the epoch in between either sees the
            // count or is seen here. That takes one order of all four accesses.
            let epoch = self.epoch.load(Ordering::SeqCst);
            let parity = (epoch & 1) as usize;
            counts[parity].fetch_add(1, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return (shard, parity);
            }
            counts[parity].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Ends a request.
    pub(super) fn leave(&self, (shard, parity): (usize, usize)) {
        self.shards[shard].in_flight[parity].fetch_sub(1, Ordering::SeqCst);
    }

    /// The epoch now.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Ends the epoch, and the next one, if no request hinders it. One caller at a time.
    pub(super) fn advance(&self) -> u64 {
        for _ in 0..2 {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let before = ((epoch + 1) & 1) as usize;
            let in_flight = |shard: &Shard| shard.in_flight[before].load(Ordering::SeqCst) > 0;
            if self.shards.iter().any(in_flight) {
                break;
            }
            self.epoch.store(epoch + 1, Ordering::SeqCst);
        }
        self.epoch()
    }
}

/// The counts that this thread uses.
fn thread_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_back_the_epoch_after_the_next() {
        let turns = Turns::default();
        let retired_at = turns.epoch();
        let request = turns.enter();
        assert!(turns.advance() < retired_at + 2);
        let later = turns.enter();
        turns.leave(request);
        assert!(turns.advance() >= retired_at + 2, "a later request does not matter");
        let epoch = turns.epoch();
        assert!(turns.advance() < epoch + 2);
        turns.leave(later);
        assert_eq!(turns.advance(), turns.epoch());
        assert!(turns.advance() >= epoch + 2);
    }
}
