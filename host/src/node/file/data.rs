//! Where data was last found: to find the end of a run of data costs the kernel time in its length, and whoever goes
//! through a file asks again and again within one.
//!
//! To call a hole data is allowed, the other way round is not: what somebody else deallocates is found late.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The run of data that was found last.
#[derive(Debug, Default)]
pub(super) struct DataRun(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    run: Range<u64>,
    /// What has been forgotten so often.
    forgotten: u64,
}

/// See [`DataRun::forgetting`].
pub(super) struct Forgetting<'a> {
    data: &'a DataRun,
    range: Range<u64>,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.data.forget(self.range.clone());
    }
}

/// When it was begun to look for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since(u64);

impl DataRun {
    /// Where the data ends that `offset` is in, as far as that is known; else since when it is looked for.
    pub(super) fn end_of(&self, offset: u64) -> Result<u64, Since> {
        self.with(|state| match state.run.contains(&offset) {
            true => Ok(state.run.end),
            false => Err(Since(state.forgotten)),
        })
    }

    /// A run was found, unless something has been deallocated since it was begun to look for one.
    pub(super) fn found(&self, since: Since, run: Range<u64>) {
        self.with(|state| {
            if state.forgotten != since.0 {
                return;
            }
            let touches = run.start <= state.run.end && state.run.start <= run.end;
            state.run = match touches && !state.run.is_empty() {
                true => run.start.min(state.run.start)..run.end.max(state.run.end),
                false => run,
            };
        });
    }

    /// A range may be deallocated until what is returned is dropped.
    pub(super) fn forgetting(&self, range: Range<u64>) -> Forgetting<'_> {
        self.forget(range.clone());
        Forgetting { data: self, range }
    }

    fn forget(&self, range: Range<u64>) {
        self.with(|state| {
            state.forgotten = state.forgotten.wrapping_add(1);
            if range.start < state.run.end && state.run.start < range.end {
                state.run = Range::default();
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(data: &DataRun, offset: u64) -> Since {
        data.end_of(offset).expect_err("not known")
    }

    #[test]
    fn a_run_grows_and_another_takes_its_place() {
        let data = DataRun::default();
        data.found(looked(&data, 0), 0..10);
        data.found(looked(&data, 10), 10..20);
        assert_eq!(data.end_of(3), Ok(20));
        data.found(looked(&data, 50), 40..60);
        assert_eq!(data.end_of(50), Ok(60));
        looked(&data, 3);
        looked(&data, 60);
    }

    #[test]
    fn what_is_deallocated_is_forgotten() {
        let data = DataRun::default();
        data.found(looked(&data, 0), 0..100);
        data.forget(100..200);
        assert_eq!(data.end_of(99), Ok(100), "beside it");
        data.forget(99..u64::MAX);
        looked(&data, 0);
    }

    #[test]
    fn what_was_found_while_it_was_deallocated_is_not_kept() {
        let data = DataRun::default();
        let since = looked(&data, 0);
        data.forget(50..60);
        data.found(since, 0..100);
        looked(&data, 0);
    }
}
