//! Who applies transactions, as a host does, and remembers the graphs that have been.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use super::shape::Shape;
use crate::error::Result as HostResult;
use crate::graph::{Applied, GraphCell, Transaction};
use crate::host::persist::Persistence;
use crate::job::Changes;

/// See the module.
pub(super) struct Changer {
    cell: Arc<GraphCell>,
    pub(super) persistence: Persistence,
    /// Graphs that have been, the last one last.
    shapes: Mutex<Vec<Shape>>,
}

impl Changer {
    pub(super) fn new(cell: &Arc<GraphCell>) -> Self {
        let shapes = Mutex::new(vec![Shape::of(&cell.load())]);
        Self { cell: Arc::clone(cell), persistence: Persistence::default(), shapes }
    }

    async fn carry_out(&self, transaction: Transaction) -> HostResult<Applied> {
        let (transaction, entered) = self.persistence.prepare(&self.cell.load(), transaction)?;
        let applied = self.cell.transact(transaction).await?;
        self.look();
        self.persistence.follow(&self.cell, entered).await;
        Ok(applied)
    }

    fn look(&self) {
        let shape = Shape::of(&self.cell.load());
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).push(shape);
    }

    /// All of them since the last time.
    pub(super) fn take_shapes(&self) -> Vec<Shape> {
        self.look();
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let last = shapes.last().cloned();
        std::mem::replace(&mut *shapes, last.into_iter().collect())
    }
}

impl Changes for Changer {
    fn transact<'a>(
        &'a self,
        transaction: Transaction,
    ) -> Pin<Box<dyn Future<Output = HostResult<Applied>> + 'a>> {
        Box::pin(self.carry_out(transaction))
    }

    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async {})
    }
}
