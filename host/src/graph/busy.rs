//! What a drained section has begun, and has perhaps not ended when it ends itself: whoever comes to the same place does
//! not stand still again before it has.
//!
//! It counts as a request of each origin that comes there, of these and no others: so a change that has nothing to do
//! with the place does not wait for it. That is enough, as what a section does at a node touches no more than a request
//! does that comes to that node.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::generation::NodeGeneration;
use super::origin::Origin;
use super::permission::Role;
use super::snapshot::Graph;

/// A piece of such work, from its beginning to its end: dropped on the worker on which it was made.
pub(super) struct Busy {
    concern: Rc<Concern>,
    worker: usize,
}

/// Whom a piece of work concerns.
pub(super) struct Concern {
    /// Who comes to where it is done.
    pub(super) origins: Vec<Arc<Origin>>,
    /// What messages call it.
    pub(super) work: Arc<str>,
}

impl Busy {
    /// It begins.
    pub(super) fn of(concern: &Rc<Concern>, worker: usize) -> Self {
        for origin in &concern.origins {
            origin.gate.join(worker);
            origin.unended.begin(&concern.work);
        }
        Self { concern: Rc::clone(concern), worker }
    }

    /// A change that it has caused was given up before its driver had answered. Nobody will learn of its end, so it goes
    /// on for as long as the host runs.
    pub(super) fn abandon(&self) {
        for origin in &self.concern.origins {
            if origin.unended.is_endless_from_now(&self.concern.work) {
                origin.gate.join(self.worker);
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for origin in &self.concern.origins {
            origin.unended.end(&self.concern.work);
            origin.gate.leave(self.worker);
        }
    }
}

/// What of an origin's is under way for drained sections: a few pieces, each of one of a graph's nodes.
#[derive(Default)]
pub(super) struct Unended(Mutex<Vec<Work>>);

struct Work {
    what: Arc<str>,
    begun: u64,
    /// Some of it was given up, and counts as one more.
    is_endless: bool,
}

impl Unended {
    fn all(&self) -> MutexGuard<'_, Vec<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, what: &Arc<str>) {
        let mut all = self.all();
        match all.iter_mut().find(|work| work.what == *what) {
            Some(work) => work.begun += 1,
            None => all.push(Work { what: Arc::clone(what), begun: 1, is_endless: false }),
        }
    }

    fn end(&self, what: &Arc<str>) {
        let mut all = self.all();
        if let Some(work) = all.iter_mut().find(|work| work.what == *what) {
            work.begun -= 1;
        }
        all.retain(|work| work.begun > 0 || work.is_endless);
    }

    /// Some of a piece that is under way never ends; whether it is the first.
    fn is_endless_from_now(&self, what: &Arc<str>) -> bool {
        let mut all = self.all();
        let work = all.iter_mut().find(|work| work.what == *what);
        work.is_some_and(|work| !std::mem::replace(&mut work.is_endless, true))
    }

    /// How much of what is behind the gate it is, and what messages call it.
    pub(super) fn told(&self) -> (u64, Vec<Arc<str>>) {
        let all = self.all();
        let count = all.iter().map(|work| work.begun + u64::from(work.is_endless)).sum();
        (count, all.iter().map(|work| Arc::clone(&work.what)).collect())
    }
}

impl Graph {
    /// By node: whether it is this one, or holds what the driver of this one writes.
    pub(super) fn written_by(&self, node: NodeGeneration) -> Vec<bool> {
        let mut places = vec![false; self.nodes.len()];
        // Parents come after their children.
        for (at, other) in self.nodes.iter().enumerate().rev() {
            places[at] |= other.generation == node;
            let is_written = |role| matches!(role, Role::Filtered | Role::Data | Role::Storage);
            if places[at] {
                let children = other.edges.iter().filter(|edge| is_written(edge.role));
                children.for_each(|edge| places[edge.child] = true);
            }
        }
        places
    }
}
