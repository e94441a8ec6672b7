//! Parts of the request path for benchmarks to time alone. Not an interface for anybody else.

use std::ops::Range;

use super::gate;
use super::guard::{self, Acquire, AtOnce, By, SourceId, SourceRange, SourceSet, Want};

/// An open gate.
pub struct Gate(gate::Gate);

/// An open gate that nothing else passes.
pub fn gate() -> Gate {
    Gate(gate::Gate::new())
}

impl Gate {
    /// What a request pays: in and out.
    #[inline]
    pub fn pass(&self, worker: usize) {
        if self.0.try_enter(worker) {
            self.0.leave(worker);
        }
    }
}

const TOP: By<'static> = By { holds: false, ops: &[] };

/// An empty table of guards.
pub struct Guards {
    table: guard::Guards,
    sources: SourceSet,
}

impl Guards {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        let sources = SourceSet::new(&[SourceId(1)], &[]);
        Self { table: guard::Guards::new(workers), sources }
    }

    /// What a change pays where it enters a source.
    #[inline]
    pub fn enter_and_leave(&self, worker: usize, range: Range<u64>) {
        if let Some(key) = self.table.try_enter(worker, &self.sources, &range, TOP) {
            self.table.leave(worker, key);
        }
    }

    /// What a copy pays for its guard.
    pub fn operate(&self, worker: usize, range: Range<u64>) {
        let want = self.want(range.clone());
        let Ok(Acquire::Granted(op)) = self.table.try_acquire(worker, want, TOP) else { return };
        if !(self.table.issue_part(op, &range) && self.table.settle(op, || ())) {
            self.table.release(op);
        }
    }

    /// What a claimed write pays for its guard.
    pub fn claim(&self, worker: usize, range: Range<u64>) {
        let mut want = self.want(range);
        let Ok(AtOnce::Issued(op)) = self.table.try_issue(worker, &mut want, TOP, || true) else {
            return;
        };
        if !self.table.settle(op, || ()) {
            self.table.release(op);
        }
    }

    fn want(&self, range: Range<u64>) -> Want {
        let exclusive = Some(SourceRange { source: SourceId(1), range: range.clone() });
        let (shared, exempt) = (SourceSet::default(), self.sources.clone());
        Want { exclusive, shared, exempt, range }
    }
}
