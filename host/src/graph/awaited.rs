//! Who waits for a request that a node has begun of its own accord, as a job's piece: then that is not done when there is
//! nothing else to do.

use std::task::Context;

use super::guard::{Guards, OpId};
use super::origin::Request;
use super::snapshot::Cx;

/// See [`Cx::awaited`].
pub(crate) struct Awaited<'g> {
    request: &'g Request,
    guards: &'g Guards,
    operations: Vec<OpId>,
}

impl<'g> Cx<'g> {
    /// Whether anybody waits for this request to end: for what it guards, or for the node to be drained.
    pub(crate) fn awaited(&self) -> Awaited<'g> {
        let operations = self.request.operations();
        Awaited { request: self.request, guards: &self.graph.guards, operations }
    }
}

impl Awaited<'_> {
    /// Whether anybody does; if not, the task is woken when somebody begins to.
    pub(crate) fn poll(&self, task: &Context<'_>) -> bool {
        self.request.poll_drained(task) || self.guards.poll_awaited(&self.operations, task.waker())
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.guards.ignore_awaited(&self.operations);
    }
}
