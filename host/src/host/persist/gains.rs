//! What bitmaps gain by a transaction with which their images are closed, or opened read-only.

use std::sync::Arc;

use super::place::{home_for, keep_at};
use super::{Entry, Home, Persistence, scope_of};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Action, BitmapAction, Graph, Rider, Transaction};
use crate::node::Upkeep;

/// Bitmaps that gain something, as they are kept now. An image stores its bitmaps for the last time before a change takes
/// effect: what they gain by that would not be in it. Which images those are is seen by the graph that is to be.
struct Gains(Vec<Entry>);

impl Rider for Gains {
    fn prepare(&mut self, after: &Graph) -> Result<()> {
        let lost = self.0.iter().find(|entry| is_lost(entry, after));
        let Some((bitmap, home)) = lost.and_then(|it| Some((&it.bitmap, it.home.as_ref()?))) else {
            return Ok(());
        };
        let message = format!(
            "its image stores bitmap `{}` for the last time in this transaction, without what that gains in it: do \
             so in two transactions",
            bitmap.name()
        );
        Err(Error::new(ErrorKind::Invalid, message).at_node(&home.name))
    }

    fn publish(self: Box<Self>, _: &Arc<Graph>) {}

    fn ends_export(&self, _: &str) -> bool {
        false
    }
}

/// Whether a bitmap is stored for the last time, and is kept by no other image from then on.
fn is_lost(entry: &Entry, after: &Graph) -> bool {
    let Some(home) = &entry.home else { return false };
    if is_written(home, after) {
        return false;
    }
    let other = scope_of(after, &entry.bitmap).map(|scope| {
        let keep = match entry.scope == scope {
            true => entry.keep.clone(),
            false => keep_at(after, &scope, &entry.keep, Some(home)),
        };
        home_for(after, &scope, &keep)
    });
    !matches!(other, Some(Ok(_)))
}

fn is_written(home: &Home, after: &Graph) -> bool {
    let mut nodes = after.nodes().iter();
    let node = nodes.find(|node| node.generation() == home.generation);
    node.is_some_and(|node| node.driver().upkeep() == Upkeep::Writes)
}

impl Persistence {
    /// Has a transaction fail that would lose what kept bitmaps gain by it.
    pub(super) fn mind_gains(&self, graph: &Graph, transaction: Transaction) -> Transaction {
        let gaining = transaction.actions().filter_map(|action| match action {
            Action::Bitmap { bitmap, action: BitmapAction::Merge(_) | BitmapAction::Add(_) } => {
                bitmap.find(graph)
            }
            _ => None,
        });
        let gaining: Vec<_> = gaining.collect();
        let is_gaining = |entry: &&Entry| {
            let writes = entry.home.as_ref().is_some_and(|home| is_written(home, graph));
            writes && gaining.iter().any(|bitmap| Arc::ptr_eq(bitmap, &entry.bitmap))
        };
        let gains: Vec<Entry> = self.entries().iter().filter(is_gaining).cloned().collect();
        match gains.is_empty() {
            true => transaction,
            false => transaction.with_rider(Box::new(Gains(gains))),
        }
    }
}
