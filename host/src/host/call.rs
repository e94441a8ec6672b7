//! Calls from any thread to a worker, and waiting for them without an executor.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{WorkerHandle, spawn};

struct Slot<T> {
    value: Option<Result<T>>,
    waker: Option<Waker>,
}

type Shared<T> = Arc<Mutex<Slot<T>>>;

fn put<T>(shared: &Shared<T>, value: Result<T>) {
    let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
    slot.value.get_or_insert(value);
    let waker = slot.waker.take();
    drop(slot);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Answers for a call that is dropped unanswered: its worker has ended.
struct Answer<T>(Shared<T>);

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        put(&self.0, Err(Error::new(ErrorKind::ShuttingDown, "the host has ended")));
    }
}

/// The result of a call.
pub(super) struct Call<T>(Shared<T>);

impl<T> Future for Call<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = slot.value.take() {
            return Poll::Ready(value);
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Runs `f`'s future on a worker. It runs to its end also when the call is dropped.
pub(super) fn on_worker<T, F, Fut>(worker: &WorkerHandle, f: F) -> Call<T>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T>> + 'static,
{
    let shared = Arc::new(Mutex::new(Slot { value: None, waker: None }));
    let answer = Answer(Arc::clone(&shared));
    let posted = worker.post(move || {
        spawn(async move {
            let value = f().await;
            put(&answer.0, value);
        });
    });
    if let Err(error) = posted {
        // The dropped message has answered already; the reason is more exact.
        let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
        slot.value = Some(Err(error));
    }
    Call(shared)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future, blocking the current thread, which must not be a worker.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
