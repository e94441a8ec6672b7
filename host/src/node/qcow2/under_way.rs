//! What is under way to a container, so that nothing is overtaken by what was begun before it: a change whose
//! future was dropped lands all the same, perhaps late.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Changes of one container that have not ended.
#[derive(Default)]
pub(super) struct UnderWay(Mutex<Changes>);

#[derive(Default)]
struct Changes {
    begun: u64,
    /// In the order in which they were begun.
    ranges: BTreeMap<u64, Range<u64>>,
    waiting: Vec<Waker>,
}

impl Changes {
    fn touches(&self, range: &Range<u64>, before: u64) -> bool {
        let mut others = self.ranges.range(..before).map(|(_, other)| other);
        others.any(|other| other.start < range.end && range.start < other.end)
    }
}

/// One of them, until it is dropped.
pub(super) struct Change {
    all: Arc<UnderWay>,
    number: u64,
    range: Range<u64>,
}

impl UnderWay {
    /// A change of a range begins: what comes to it later waits for the end.
    pub(super) fn begin(self: &Arc<Self>, range: Range<u64>) -> Change {
        let mut changes = self.changes();
        let number = changes.begun;
        changes.begun += 1;
        changes.ranges.insert(number, range.clone());
        drop(changes);
        Change { all: Arc::clone(self), number, range }
    }

    /// Waits for the changes of a range that have been begun.
    pub(super) async fn landed(&self, range: Range<u64>) {
        let begun = self.changes().begun;
        self.landed_before(&range, begun).await;
    }

    async fn landed_before(&self, range: &Range<u64>, before: u64) {
        poll_fn(|cx| {
            let mut changes = self.changes();
            if !changes.touches(range, before) {
                return Poll::Ready(());
            }
            if !changes.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                changes.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    /// Waits for those of its range that were begun before it.
    pub(super) async fn alone(&self) {
        self.all.landed_before(&self.range, self.number).await;
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut changes = self.all.changes();
        changes.ranges.remove(&self.number);
        let waiting = std::mem::take(&mut changes.waiting);
        drop(changes);
        waiting.into_iter().for_each(Waker::wake);
    }
}
