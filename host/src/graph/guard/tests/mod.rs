//! Tests of the table. `conflicts` and `waiting` state the rules one by one, `model` compares it with a
//! naive one, `threads` and `explored` look at real and at all schedules, `speed` measures.

mod conflicts;
mod explored;
mod model;
mod speed;
mod threads;
mod waiting;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::*;

/// Caused by nothing.
const TOP: By<'_> = By { holds: false, ops: &[] };

/// A change that has crossed an edge.
const NESTED: By<'_> = By { holds: true, ops: &[] };

fn place(source: u32, range: Range<u64>) -> SourceRange {
    SourceRange { source: SourceId(source), range }
}

fn set(ranged: &[u32]) -> SourceSet {
    SourceSet::new(&ranged.iter().map(|&id| SourceId(id)).collect::<Vec<_>>(), &[])
}

fn whole(source: u32) -> SourceSet {
    SourceSet::new(&[], &[SourceId(source)])
}

/// A guard of `source` at `range`; the write enters `shared`.
fn want(source: u32, range: Range<u64>, shared: &[u32]) -> Want {
    Want {
        exclusive: Some(place(source, range.clone())),
        shared: set(shared),
        exempt: SourceSet::default(),
        range,
    }
}

impl Guards {
    fn granted(&self, worker: usize, want: Want, by: By<'_>) -> OpId {
        match self.try_acquire(worker, want, by) {
            Ok(Acquire::Granted(op)) => op,
            other => panic!("not granted: {other:?}"),
        }
    }

    fn queued(&self, worker: usize, want: Want, by: By<'_>) -> Ticket {
        match self.try_acquire(worker, want, by) {
            Ok(Acquire::Queued(ticket)) => ticket,
            other => panic!("not queued: {other:?}"),
        }
    }

    fn entered(&self, worker: usize, source: u32, range: Range<u64>) -> FlightKey {
        self.try_enter(worker, &set(&[source]), &range, TOP).expect("nothing is in its way")
    }

    fn flag(&self, place: &SourceRange) -> Arc<AtomicBool> {
        let flag = Arc::default();
        let _key = self.watch(place, Stale::Flag(Arc::clone(&flag))).expect("within the bound");
        flag
    }
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Whether a task was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// A future and whether it wants to be polled.
struct Task<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    woken: Arc<Woken>,
}

impl<'a, T> Task<'a, T> {
    fn new(future: impl Future<Output = T> + 'a) -> Self {
        Self { future: Box::pin(future), woken: Arc::default() }
    }

    fn poll(&mut self) -> Option<T> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.take()
    }
}
