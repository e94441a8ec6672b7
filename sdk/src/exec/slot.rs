//! A slot runs one body at a time; its memory is used again for the next.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use blockloom_abi::{Errno, NodeIndex, Request};

use crate::filter::body;
use crate::{Cx, Filter, Signal, Verdict};

/// What a body is run for.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Request(Request),
    Done(Request, Result<(), Errno>),
    /// With what tells it to stop.
    Job(NodeIndex, Rc<Signal>),
}

/// What a body came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Verdict(Request, Verdict),
    Complete(Request, Result<(), Errno>),
    JobEnded(NodeIndex),
}

/// A slot, whatever the type of its future.
pub(crate) trait Slot<F> {
    /// Puts a new body into the idle slot.
    fn refill(&mut self, filter: Rc<F>, cx: Cx, task: Task);
    /// Runs the body until it waits or ends; none also if the slot is idle.
    fn poll(&mut self) -> Option<Outcome>;
}

struct SlotOf<Make, Body> {
    make: Make,
    body: Pin<Box<Option<Body>>>,
    waker: Waker,
}

impl<F, Make, Body> Slot<F> for SlotOf<Make, Body>
where
    Make: Fn(Rc<F>, Cx, Task) -> Body,
    Body: Future<Output = Outcome>,
{
    fn refill(&mut self, filter: Rc<F>, cx: Cx, task: Task) {
        self.body.set(Some((self.make)(filter, cx, task)));
    }

    fn poll(&mut self) -> Option<Outcome> {
        let body = self.body.as_mut().as_pin_mut()?;
        match body.poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(outcome) => {
                self.body.set(None);
                Some(outcome)
            }
            Poll::Pending => None,
        }
    }
}

/// An idle slot.
pub(crate) fn slot<F: Filter>(index: u16, woken: &Arc<Woken>) -> Box<dyn Slot<F>> {
    let waker = Waker::from(Arc::new(SlotWaker { index, woken: Arc::clone(woken) }));
    Box::new(SlotOf { make: run::<F>, body: Box::pin(None), waker })
}

async fn run<F: Filter>(filter: Rc<F>, cx: Cx, task: Task) -> Outcome {
    match task {
        Task::Request(request) => Outcome::Verdict(request, body(&*filter, request, &cx).await),
        Task::Done(request, result) => {
            Outcome::Complete(request, filter.done(request, result, &cx).await)
        }
        Task::Job(node, _) => {
            filter.job(node, &cx).await;
            Outcome::JobEnded(node)
        }
    }
}

/// The slots to run again, in the order in which they were woken.
#[derive(Debug, Default)]
pub(crate) struct Woken(Mutex<Vec<u16>>);

impl Woken {
    fn push(&self, index: u16) {
        let mut woken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !woken.contains(&index) {
            woken.push(index);
        }
    }

    /// Exchanges the list for an empty one, so that both keep their memory.
    pub(crate) fn take(&self, into: &mut Vec<u16>) {
        into.clear();
        std::mem::swap(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

struct SlotWaker {
    index: u16,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.push(self.index);
    }
}
