//! A value that can be waited for: under one short lock; each change wakes who waits.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// See the module. Who waits has one waker here: there are as many as tasks that look.
pub(super) struct Watched<T>(Mutex<(T, Vec<Waker>)>);

impl<T> Watched<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new((value, Vec::new())))
    }

    fn lock(&self) -> MutexGuard<'_, (T, Vec<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks.
    pub(super) fn see<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock().0)
    }

    /// Changes it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.lock();
        let changed = change(&mut value.0);
        let wakers = std::mem::take(&mut value.1);
        drop(value);
        wakers.into_iter().for_each(Waker::wake);
        changed
    }

    /// Waits until `look` gives something.
    pub(super) async fn when<R>(&self, mut look: impl FnMut(&T) -> Option<R>) -> R {
        poll_fn(|cx| {
            let mut value = self.lock();
            if let Some(found) = look(&value.0) {
                return Poll::Ready(found);
            }
            if !value.1.iter().any(|waker| waker.will_wake(cx.waker())) {
                value.1.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// What the first of two gives that gives something; the other is dropped.
pub(super) async fn either<R>(one: impl Future<Output = R>, other: impl Future<Output = R>) -> R {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(found) => Poll::Ready(found),
        Poll::Pending => other.as_mut().poll(cx),
    })
    .await
}
