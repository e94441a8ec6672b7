//! Tasks of one worker in an order by chance: the same seed, the same order.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::io::LocalFuture;
use crate::io::sim::Random;

/// Polls without a task to poll after which all are said to wait for each other. Nothing that the tests
/// wait for comes from outside of the worker.
const IDLE_MAX: usize = 2_000;
/// Polls of all tasks together.
const POLLS_MAX: usize = 500_000;

/// Whether a task has been woken, and who polls it.
#[derive(Default)]
struct Woken {
    is_woken: AtomicBool,
    polled_by: Mutex<Option<Waker>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        let polled_by = self.polled_by.lock().unwrap_or_else(PoisonError::into_inner).take();
        polled_by.iter().for_each(Waker::wake_by_ref);
    }
}

struct Task {
    future: LocalFuture,
    woken: Arc<Woken>,
}

/// Runs all to their end: each time one of those that have been woken, whichever chance wants.
///
/// # Errors
/// How many have not ended, if they wait for each other.
pub(super) async fn shuffled(seed: u64, futures: Vec<LocalFuture>) -> Result<(), usize> {
    let mut random = Random::new(seed);
    let task = |future| {
        let woken = Arc::new(Woken::default());
        woken.is_woken.store(true, Ordering::SeqCst);
        Task { future, woken }
    };
    let mut tasks: Vec<Task> = futures.into_iter().map(task).collect();
    let (mut idle, mut polls) = (0, 0);
    poll_fn(move |cx| {
        if tasks.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let is_woken = |task: &Task| task.woken.is_woken.load(Ordering::SeqCst);
        let ready: Vec<usize> = (0..tasks.len()).filter(|at| is_woken(&tasks[*at])).collect();
        // What they have spawned runs, too.
        cx.waker().wake_by_ref();
        if ready.is_empty() {
            idle += 1;
        } else {
            (idle, polls) = (0, polls + 1);
            let at = ready[random.below(ready.len() as u64) as usize];
            let woken = Arc::clone(&tasks[at].woken);
            woken.is_woken.store(false, Ordering::SeqCst);
            let waker = Waker::from(woken);
            if tasks[at].future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                drop(tasks.swap_remove(at));
            }
        }
        match idle > IDLE_MAX || polls > POLLS_MAX {
            true => Poll::Ready(Err(tasks.len())),
            false => Poll::Pending,
        }
    })
    .await
}

pub(super) fn boxed(
    future: impl Future<Output = ()> + 'static,
) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(future)
}
