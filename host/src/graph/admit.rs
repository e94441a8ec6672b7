//! Admission: the one function through which changes (and all other requests) enter the graph.

use super::gate::Pass;
use super::op::Op;
use super::permission::PermissionSet;
use super::snapshot::{Edge, GraphNode};
use crate::error::{Error, ErrorKind, Result};

/// A request that has been admitted; it counts as in flight until this is dropped.
pub(super) struct Admitted<'g> {
    _pass: Pass<'g>,
}

/// Admits `op` at `edge`: range, permission, pause, marks, in this order.
///
/// `is_current` is asked once behind the gate: `false` means that the snapshot is out of date, nothing
/// has been done, and the caller begins again with the next one (`Ok(None)`).
#[inline]
pub(super) async fn admit<'g>(
    edge: &'g Edge,
    child: &GraphNode,
    op: &Op,
    worker: usize,
    is_current: impl Fn() -> bool,
) -> Result<Option<Admitted<'g>>> {
    let Some(entry) = &edge.entry else {
        let message = "changes do not enter here: it is not a drive's or a storage edge";
        return Err(Error::new(ErrorKind::NotPermitted, message).at_node(&child.name));
    };
    op.check_range(child.info.size_bytes).map_err(|error| error.at_node(&child.name))?;
    if op.kind.is_change() {
        check_change(edge, child)?;
    }
    let pass = match entry.gate.try_enter(worker) {
        Some(pass) => pass,
        // Boxed, so that the path through an open gate keeps a small future.
        None => Box::pin(entry.gate.enter(worker)).await,
    };
    if !is_current() {
        return Ok(None);
    }
    if op.kind.is_change() {
        entry.mark(op.offset, op.len);
    }
    Ok(Some(Admitted { _pass: pass }))
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
