//! Another async executor than the library's: threads that share a queue of tasks.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Task = Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>;

/// Puts its task back into the queue; the last reference to the queue's end is in a task.
struct Entry {
    task: Task,
    queue: Sender<Arc<Entry>>,
}

impl Wake for Entry {
    fn wake(self: Arc<Self>) {
        let queue = self.queue.clone();
        // All tasks may have ended.
        let _ = queue.send(self);
    }
}

/// Runs all futures to their ends on two threads, interleaved.
pub(crate) fn run_all<F: Future<Output = ()> + Send + 'static>(futures: Vec<F>) {
    let (queue, ready) = channel::<Arc<Entry>>();
    let (done, ended) = channel();
    let count = futures.len();
    for future in futures {
        let done = done.clone();
        let future = async move {
            future.await;
            done.send(()).expect("somebody waits");
        };
        let task: Task = Mutex::new(Some(Box::pin(future)));
        let entry = Arc::new(Entry { task, queue: queue.clone() });
        queue.send(entry).expect("queue a task");
    }
    drop((queue, done));
    let ready = Mutex::new(ready);
    let run = || {
        loop {
            let entry = ready.lock().expect("queue").recv();
            let Ok(entry) = entry else { return };
            let waker = Waker::from(Arc::clone(&entry));
            let mut task = entry.task.lock().expect("a task");
            let Some(future) = task.as_mut() else { continue };
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                *task = None;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(run);
        scope.spawn(run);
    });
    assert_eq!(ended.iter().count(), count, "every task has ended");
}

/// Polls a future once, and lets nobody know when it could go on.
pub(crate) fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
