//! Opening a node in another way while it runs.
//!
//! A driver is what it is for as long as it lives; so another one is made beside it, and takes its place by a
//! transaction, with nothing in flight: the former one *hands over* what the next one relies on, which then *takes
//! over*. If anything fails, both ways back are the same two calls.

use std::sync::Arc;

use super::{Node, NodeFuture};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, GraphNode};

/// How a node is to be opened; what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reopen {
    /// Whether it may be changed.
    pub write: Option<bool>,
    /// Past the page cache.
    pub direct: Option<bool>,
    /// Whether discards free space.
    pub discard: Option<bool>,
    /// Whether it is open for writing only while somebody writes it.
    pub auto: Option<bool>,
    /// It is written for as long as somebody does so, and then as it was before.
    pub for_job: bool,
}

/// How a node is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// It may be changed.
    pub write: bool,
    /// It is opened for writing by the transaction with which a writer comes, and read-only again by the one with
    /// which the last goes.
    pub auto: bool,
    /// It is opened read-only again when nobody writes it any more.
    pub for_job: bool,
}

/// A driver that can be opened in another way: see the module. It has no [`Node::start`].
pub trait Reopening: Send + Sync {
    /// How it is open.
    fn mode(&self) -> OpenMode;

    /// What could take its place. They share what lasts; nobody uses the other one before it has taken over.
    /// Control path: may block.
    ///
    /// # Errors
    /// What it cannot be; as for opening it.
    fn reopened(&self, how: &Reopen) -> Result<Arc<dyn Node>>;

    /// Another one takes its place, or is to have its place back: what it has written is durable afterwards, and
    /// if that one does not write, stored as when it closes. No request is in flight.
    fn hand_over<'a>(&'a self, cx: Cx<'a>, to: OpenMode) -> NodeFuture<'a, ()>;

    /// It takes the place of one that has handed over. No request is in flight.
    fn take_over<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()>;

    /// It has lost its place for good: nobody is kept from what it held any more.
    fn leave(&self) {}
}

/// A driver that is to take the place of a node's own.
#[derive(Clone)]
pub struct Reopened {
    from: Arc<dyn Node>,
    to: Arc<dyn Node>,
}

impl Reopened {
    /// Opens a node in another way, beside the way in which it is open. Control path: may block.
    ///
    /// # Errors
    /// `ENOTSUP` for a driver that cannot; as [`Reopening::reopened`].
    pub fn of(node: &GraphNode, how: &Reopen) -> Result<Self> {
        let from = node.driver();
        let reopening = from.reopening().ok_or_else(|| {
            let message =
                format!("driver `{}` cannot be opened in another way while it runs", from.driver());
            Error::new(ErrorKind::NotSupported, message).at_node(node.name())
        })?;
        let to = reopening.reopened(how).map_err(|error| error.at_node(node.name()))?;
        Ok(Self { from: Arc::clone(from), to })
    }

    /// How it is to be open.
    pub(crate) fn mode(&self) -> OpenMode {
        self.to.reopening().map(Reopening::mode).unwrap_or_default()
    }

    /// What is to take the place of `driver`, if it was made for that.
    pub(crate) fn in_place_of(&self, driver: &Arc<dyn Node>) -> Option<&Arc<dyn Node>> {
        Arc::ptr_eq(&self.from, driver).then_some(&self.to)
    }
}

impl std::fmt::Debug for Reopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reopened").field("mode", &self.mode()).finish_non_exhaustive()
    }
}
