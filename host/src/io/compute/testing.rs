//! Pools of tests' own: nothing that goes on beside a test is in their threads.

use std::cell::Cell;

use super::pool::Pool;
use super::{Computed, Urgency, compute};

thread_local! {
    static OWN: Cell<Option<&'static Pool>> = const { Cell::new(None) };
}

/// That of the current thread.
pub(super) fn own_pool() -> Option<&'static Pool> {
    OWN.get()
}

/// From now on the current thread has a pool of its own, with so many threads for jobs and one more.
pub(crate) fn use_own_pool(patient_max: usize) {
    OWN.set(Some(Box::leak(Box::new(Pool::new(patient_max)))));
}

/// Takes a thread until the sender is dropped.
pub(crate) fn take_thread(urgency: Urgency) -> (crossbeam::channel::Sender<()>, Computed<()>) {
    let (begins, begun) = crossbeam::channel::bounded(1);
    let (go_on, wait) = crossbeam::channel::bounded::<()>(1);
    let computed = compute(urgency, move || {
        let _ = begins.send(());
        let _ = wait.recv();
    });
    begun.recv().expect("it has begun");
    (go_on, computed)
}
