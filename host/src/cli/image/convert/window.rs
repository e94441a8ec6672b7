//! Futures side by side on one task: the results are taken in the order of the futures, or as they come.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

type Work<'f, T> = Pin<Box<dyn Future<Output = T> + 'f>>;

enum Slot<'f, T> {
    Running(Work<'f, T>),
    Done(T),
}

/// Futures that have begun; their number is its user's to bound.
pub(super) struct Window<'f, T> {
    slots: VecDeque<Slot<'f, T>>,
    in_order: bool,
}

impl<'f, T> Window<'f, T> {
    pub(super) fn new(in_order: bool) -> Self {
        Self { slots: VecDeque::new(), in_order }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn push(&mut self, work: impl Future<Output = T> + 'f) {
        self.slots.push_back(Slot::Running(Box::pin(work)));
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) {
        for slot in &mut self.slots {
            if let Slot::Running(work) = slot
                && let Poll::Ready(value) = work.as_mut().poll(cx)
            {
                *slot = Slot::Done(value);
            }
        }
    }

    /// The next result; `None` if nothing is left.
    pub(super) async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| {
            self.poll_all(cx);
            let is_done = |slot: &Slot<'_, T>| matches!(slot, Slot::Done(_));
            let found = match self.in_order {
                true => self.slots.front().is_some_and(is_done).then_some(0),
                false => self.slots.iter().position(is_done),
            };
            match found.and_then(|at| self.slots.remove(at)) {
                Some(Slot::Done(value)) => Poll::Ready(Some(value)),
                _ if self.slots.is_empty() => Poll::Ready(None),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Runs another future to its end while these go on.
    pub(super) async fn beside<R>(&mut self, other: impl Future<Output = R>) -> R {
        let mut other = pin!(other);
        poll_fn(|cx| match other.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(value),
            Poll::Pending => {
                self.poll_all(cx);
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{EngineChoice, Urgency, compute, run_on_thread};

    #[test]
    fn results_come_in_order_or_as_they_end() {
        let check = |in_order: bool, expect: &'static [u32]| {
            let run = async move {
                let mut window = Window::new(in_order);
                // The first ends after the second.
                let (sender, receiver) = std::sync::mpsc::channel();
                window.push(async move {
                    let late = compute(Urgency::Now, move || receiver.recv().is_ok());
                    assert!(late.await.expect("computed"));
                    1
                });
                window.push(async move {
                    sender.send(()).expect("the first one waits");
                    2
                });
                assert_eq!((window.len(), window.beside(async { 3 }).await), (2, 3));
                let mut results = Vec::new();
                while let Some(result) = window.next().await {
                    results.push(result);
                }
                results
            };
            assert_eq!(run_on_thread(EngineChoice::Auto, run).expect("a worker"), expect);
        };
        check(true, &[1, 2]);
        check(false, &[2, 1]);
    }
}
