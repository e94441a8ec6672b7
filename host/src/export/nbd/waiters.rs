//! Waiting, on any thread, for what others bring about.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Those who wait. Whoever makes so what they wait for wakes them after that.
#[derive(Default)]
pub(super) struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    /// Has the current task woken by the next [`Waiters::wake_all`].
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
    }

    pub(super) fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until `is_so`.
    pub(super) async fn until(&self, is_so: impl Fn() -> bool) {
        poll_fn(|cx| {
            // Before it is asked: it may become so right after.
            self.register(cx);
            if is_so() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
