//! Admission: what every change passes where it enters the graph, and every request of a drive.

use std::rc::Rc;

use super::cell::Snapshot;
use super::mutation::{Mutation, mutated};
use super::op::{Op, OpKind};
use super::origin::Request;
use super::permission::PermissionSet;
use super::snapshot::{Edge, GraphNode};
use crate::error::{Error, ErrorKind, Result};

/// Admits `op` at the root of drive number `drive`: range, permission, pause, marks, in this order.
///
/// `is_current` is asked once behind the gate: `false` means that the snapshot is out of date, nothing
/// has been done, and the caller begins again with the next one (`Ok(None)`).
#[inline]
pub(super) async fn admit(
    graph: &Rc<Snapshot>,
    drive: usize,
    op: &Op,
    worker: usize,
    is_current: impl Fn() -> bool,
) -> Result<Option<Request>> {
    let edge = graph.drives[drive].medium()?;
    check(edge, &graph.nodes[edge.child], op)?;
    let request = Request::begin(Rc::clone(graph), drive, worker).await;
    if !is_current() {
        return Ok(None);
    }
    if !mutated(Mutation::MarksAfterCompletion) {
        mark(edge, op);
    }
    Ok(Some(request))
}

/// Range and permission.
#[inline]
pub(super) fn check(edge: &Edge, child: &GraphNode, op: &Op) -> Result<()> {
    op.check_range(child.info.size_bytes).map_err(|error| error.at_node(&child.name))?;
    if op.kind.is_change() { check_change(edge, child) } else { Ok(()) }
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

fn check_change(edge: &Edge, child: &GraphNode) -> Result<()> {
    if child.info.read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "it is read-only").at_node(&child.name));
    }
    if !edge.uses.contains(PermissionSet::WRITE) {
        let message = format!("its user's edge `{}` does not hold `w` (write)", edge.name);
        return Err(Error::new(ErrorKind::NotPermitted, message).at_node(&child.name));
    }
    Ok(())
}
