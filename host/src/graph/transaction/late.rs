//! Drivers that have not answered in time what they were asked with nothing in flight.
//!
//! A resize or deallocation cannot be called off: the driver may still do it, and while it does no request
//! may come to the node, nor may a bitmap be cleared that has been marked for it. So the transaction fails
//! for whoever asked, and lets others begin; but it goes on by itself, with the gates of the origins that
//! come to the node closed, or to one whose size is to be put back, until the driver answers. Whoever wants to change something there meanwhile is
//! refused. When the driver has answered, sizes are put back, what it did stays marked, and the gates open.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::drain::Still;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::busy::{Busy, Concern};
use crate::graph::cell::{GraphCell, Writing};
use crate::graph::generation::NodeGeneration;
use crate::graph::origin::Origin;
use crate::graph::snapshot::{Graph, ScopedBitmap};
use crate::graph::transaction::Applied;
use crate::io::current;

/// What a driver has been asked, and has not answered in time.
struct Late {
    node: NodeGeneration,
    /// Who comes to the node, and waits.
    origins: Vec<Arc<Origin>>,
}

/// All of a host. Each has an origin that stands still, or a node that nobody uses: so there are no more
/// than nodes.
#[derive(Default)]
pub(in crate::graph) struct LateWork(Mutex<Vec<Arc<Late>>>);

/// A place among them, until it is dropped. Its origins count as busy for that long: nobody takes them for
/// drained.
pub(super) struct Waiting<'c> {
    cell: &'c GraphCell,
    late: Arc<Late>,
    _busy: Busy,
}

impl<'c> Waiting<'c> {
    /// For a node of `before`, with those who stand still for it.
    pub(super) fn of(cell: &'c GraphCell, before: &Graph, node: usize, still: &Still<'_>) -> Self {
        let worker = current().map_or(0, |worker| worker.index());
        let (origins, name) = (still.origins(before), &before.nodes[node].name);
        let work = format!("what a change asked node `{name}`").into();
        let concern = Rc::new(Concern { origins: origins.clone(), work });
        let late = Arc::new(Late { node: before.nodes[node].generation, origins });
        cell.late.lock().push(Arc::clone(&late));
        Self { cell, _busy: Busy::of(&concern, worker), late }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.cell.late.lock().retain(|other| !Arc::ptr_eq(other, &self.late));
    }
}

impl LateWork {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Late>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a change of what such a driver may be at.
    ///
    /// `touched`: by node of `before`; `origins`: who would have to pause.
    ///
    /// # Errors
    /// `EBUSY`, with the node whose driver is waited for.
    pub(super) fn check(
        &self,
        (before, after): (&Graph, &Graph),
        touched: &[bool],
        origins: &[usize],
    ) -> Result<()> {
        let all = self.lock().clone();
        for late in all {
            if let Some(node) = before.nodes.iter().find(|node| node.generation == late.node)
                && late.is_met(before, after, touched, origins)
            {
                return Err(in_use().at_node(&node.name));
            }
        }
        Ok(())
    }
}

fn in_use() -> Error {
    let message = "its driver has not answered yet what it was asked before: wait until it has";
    Error::new(ErrorKind::InUse, message)
}

impl Late {
    /// Whether a change comes to what the driver may be at, the node and what it keeps its bytes in, or to
    /// what shows that.
    fn is_met(&self, before: &Graph, after: &Graph, touched: &[bool], origins: &[usize]) -> bool {
        let zone = before.reaching(before.written_by(self.node));
        let is_held =
            |origin: &Arc<Origin>| self.origins.iter().any(|held| Arc::ptr_eq(held, origin));
        let comers = |graph: &Graph| -> Vec<Arc<Origin>> {
            let comers = graph.origins_reaching(graph.written_by(self.node));
            comers.into_iter().map(|at| Arc::clone(&graph.origins[at])).collect()
        };
        let known = comers(before);
        let is_known = |origin: &Arc<Origin>| known.iter().any(|other| Arc::ptr_eq(other, origin));
        let sees = after.reaching(after.written_by(self.node));
        let is_altered = |entry: &ScopedBitmap| {
            entry.node.is_some_and(|node| sees[node]) && !is_same_bitmap(before, entry)
        };
        touched.iter().zip(zone).any(|(touched, in_zone)| *touched && in_zone)
            || origins.iter().any(|at| is_held(&before.origins[*at]))
            || comers(after).iter().any(|origin| !is_held(origin) && !is_known(origin))
            || after.bitmaps.iter().any(is_altered)
    }
}

/// Whether a bitmap records in the graph that is what it is to record.
fn is_same_bitmap(before: &Graph, entry: &ScopedBitmap) -> bool {
    let set = |entry: &ScopedBitmap| entry.recording.as_ref().map(Arc::as_ptr);
    before.entry_of(&entry.bitmap).is_some_and(|known| set(known) == set(entry))
}

/// Where a transaction tells its end, which may be before it has ended.
#[derive(Default)]
pub(super) struct Answer(RefCell<Option<Result<Applied>>>);

impl Answer {
    pub(super) fn give(&self, result: Result<Applied>) {
        *self.0.borrow_mut() = Some(result);
    }

    pub(super) fn take(&self) -> Option<Result<Applied>> {
        self.0.borrow_mut().take()
    }
}

/// What a transaction that goes on alone parts with.
pub(super) struct Parting<'a, 's> {
    pub(super) cell: &'a GraphCell,
    pub(super) answer: &'a Answer,
    pub(super) writer: Option<Writing<'a>>,
    pub(super) still: &'s Still<'s>,
}
