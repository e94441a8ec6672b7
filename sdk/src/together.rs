//! Several things at once, in one body.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, Waker};

/// Something that happens once, for which bodies wait.
///
/// ```
/// use blockloom_sdk::Signal;
///
/// let signal = Signal::default();
/// assert!(!signal.is_set());
/// signal.set();
/// assert!(signal.is_set());
/// // signal.wait().await;
/// ```
#[derive(Debug, Default)]
pub struct Signal {
    is_set: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Whether it has happened.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.is_set.get()
    }

    /// It has happened.
    pub fn set(&self) {
        self.is_set.set(true);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Waits for it.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.is_set.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// The result of the first of two, or none if the second is first. What is left of the other is dropped: an
/// operation of the host goes on then, and its result is lost.
pub async fn either<T>(
    first: impl Future<Output = T>,
    second: impl Future<Output = ()>,
) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        second.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Awaits all futures of an iterator, up to `most` of them at once; the first error ends it.
///
/// # Errors
///
/// The first error. What has begun by then goes on, and its results are lost.
pub async fn each_of<F, E>(most: usize, futures: impl IntoIterator<Item = F>) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut left = futures.into_iter().fuse();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    poll_fn(move |context| {
        loop {
            while running.len() < most.max(1)
                && let Some(next) = left.next()
            {
                running.push(Box::pin(next));
            }
            if running.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let before = running.len();
            let mut at = 0;
            while at < running.len() {
                match running[at].as_mut().poll(context) {
                    Poll::Ready(Ok(())) => drop(running.swap_remove(at)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => at += 1,
                }
            }
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::rc::Rc;
    use std::task::Context;

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn as_many_run_at_once_as_may() {
        let (signal, begun) = (Rc::new(Signal::default()), Rc::new(Cell::new(0)));
        let one = |_| {
            let (signal, begun) = (Rc::clone(&signal), Rc::clone(&begun));
            async move {
                begun.set(begun.get() + 1);
                signal.wait().await;
                Ok::<(), ()>(())
            }
        };
        let mut all = pin!(each_of(3, (0..7).map(one)));
        assert!(poll(all.as_mut()).is_pending());
        assert_eq!(begun.get(), 3);
        signal.set();
        assert_eq!(poll(all.as_mut()), Poll::Ready(Ok(())));
        assert_eq!(begun.get(), 7);
        let mut failing = pin!(each_of(2, [ready(Ok(())), ready(Err(5)), ready(Ok(()))]));
        assert_eq!(poll(failing.as_mut()), Poll::Ready(Err(5)));
    }

    #[test]
    fn the_first_of_two() {
        assert_eq!(poll(pin!(either(ready(1), ready(())))), Poll::Ready(Some(1)));
        assert_eq!(poll(pin!(either(pending::<u8>(), ready(())))), Poll::Ready(None));
        assert!(poll(pin!(either(pending::<u8>(), pending()))).is_pending());
    }
}
