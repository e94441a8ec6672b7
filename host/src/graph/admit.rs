//! Admission: what every change passes where it enters the graph, and every request of a drive.

use std::rc::Rc;

use super::cell::Snapshot;
use super::mutation::{Mutation, mutated};
use super::op::{Op, OpKind};
use super::origin::Request;
use super::permission::{PermissionSet, Role};
use super::snapshot::{Edge, Graph, GraphNode};
use crate::error::{Error, ErrorKind, Result};

/// Why a request was not admitted. Nothing has been done.
pub(super) enum NotAdmitted {
    /// Its gate is closed. Here is the snapshot, to wait with.
    Closed(Rc<Snapshot>),
    /// A newer snapshot has been published.
    Outdated,
    /// It is refused.
    Refused(Error),
}

impl From<Error> for NotAdmitted {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// Admits `op` at the root of drive number `drive`: range, permission, pause, marks, in this order.
///
/// `is_current` is asked once behind the gate. Not a future: what it makes need not be moved.
#[inline(always)]
pub(super) fn admit(
    graph: Rc<Snapshot>,
    drive: usize,
    op: &Op,
    worker: usize,
    is_current: impl FnOnce(&Graph) -> bool,
) -> Result<Request, NotAdmitted> {
    let edge = graph.drives[drive].medium()?;
    check(&graph, edge, op)?;
    let request = Request::try_begin(graph, drive, worker).map_err(NotAdmitted::Closed)?;
    let graph = request.graph();
    if !is_current(graph) {
        return Err(NotAdmitted::Outdated);
    }
    if !mutated(Mutation::MarksAfterCompletion) {
        mark(graph.drives[drive].medium()?, op);
    }
    Ok(request)
}

/// Range and permission.
#[inline]
pub(super) fn check(graph: &Graph, edge: &Edge, op: &Op) -> Result<()> {
    let child = &graph.nodes[edge.child];
    op.check_range(edge.end_bytes(child)).map_err(|error| error.at_node(&child.name))?;
    if op.kind.is_change() { check_change(graph, edge, child) } else { Ok(()) }
}

/// Marks what a change affects: the last step before it is issued, with nothing to wait for in between.
#[inline]
pub(super) fn mark(edge: &Edge, op: &Op) {
    let is_skipped = mutated(Mutation::MarksNothing)
        || (mutated(Mutation::DiscardsDoNotMark) && op.kind == OpKind::Discard);
    if is_skipped {
        return;
    }
    if op.kind.is_change()
        && let Some(marks) = &edge.entry
    {
        marks.mark(op.offset, op.len);
    }
}

fn check_change(graph: &Graph, edge: &Edge, child: &GraphNode) -> Result<()> {
    if child.info.read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "it is read-only").at_node(&child.name));
    }
    if !edge.uses.contains(PermissionSet::WRITE) {
        let fix = match edge.role {
            Role::Root => "make the drive writable",
            Role::Target => "grant `write` to that edge",
            _ => "give that node a user that may write",
        };
        let user = graph.user_of(edge);
        let message = format!("{user} does not hold `w` (write): {fix}");
        return Err(Error::new(ErrorKind::NotPermitted, message).at_node(&child.name));
    }
    Ok(())
}
