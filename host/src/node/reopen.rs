//! Opening a node in another way while it runs.
//!
//! A driver is what it is for as long as it lives; so another one is made beside it, and takes its place by a
//! transaction, with nothing in flight: the former one *hands over* what the next one relies on, which then *takes
//! over*. If anything fails, both ways back are the same two calls.
//!
//! A driver that holds nothing open has no such ways: the graph itself refuses changes of its node, or not.

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

impl OpenMode {
    /// Whoever may use it may change it.
    pub const WRITABLE: Self = Self { write: true, auto: false, for_job: false };
    /// Nobody may.
    pub const READ_ONLY: Self = Self { write: false, auto: false, for_job: false };
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

/// How a node is to be open from now on.
#[derive(Clone)]
pub struct Reopened(Way);

#[derive(Clone)]
enum Way {
    /// Another driver takes the place of its own.
    Driver { from: Arc<dyn Node>, to: Arc<dyn Node> },
    /// Its driver holds nothing open, and stays.
    Mode(OpenMode),
}

impl Reopened {
    /// A node whose driver holds nothing open ([`Node::reopening`] has none) refuses changes.
    pub const READ_ONLY: Self = Self(Way::Mode(OpenMode::READ_ONLY));
    /// Such a node can be changed by whoever may use it.
    pub const WRITABLE: Self = Self(Way::Mode(OpenMode::WRITABLE));

    /// Opens a node in another way, beside the way in which it is open. Of one whose driver holds nothing open,
    /// only [`Reopen::write`] changes anything. Control path: may block.
    ///
    /// # Errors
    /// `ENOTSUP` for what the driver cannot be; as [`Reopening::reopened`].
    pub fn of(node: &GraphNode, how: &Reopen) -> Result<Self> {
        let from = node.driver();
        let Some(reopening) = from.reopening() else {
            if how.direct.is_some() || how.discard.is_some() {
                let message = format!("driver `{}` holds no file open", from.driver());
                return Err(Error::new(ErrorKind::NotSupported, message).at_node(node.name()));
            }
            let write = how.write.unwrap_or_else(|| node.mode().write);
            return Ok(Self(Way::Mode(OpenMode { write, auto: false, for_job: how.for_job })));
        };
        let to = reopening.reopened(how).map_err(|error| error.at_node(node.name()))?;
        Ok(Self(Way::Driver { from: Arc::clone(from), to }))
    }

    /// How it is to be open.
    pub(crate) fn mode(&self) -> OpenMode {
        match &self.0 {
            Way::Driver { to, .. } => to.reopening().map(Reopening::mode).unwrap_or_default(),
            Way::Mode(mode) => *mode,
        }
    }

    /// Whether the driver is to stay.
    pub(crate) fn keeps_driver(&self) -> bool {
        matches!(self.0, Way::Mode(_))
    }

    /// What is to take the place of `driver`, if it was made for that.
    pub(crate) fn in_place_of(&self, driver: &Arc<dyn Node>) -> Option<&Arc<dyn Node>> {
        match &self.0 {
            Way::Driver { from, to } => Arc::ptr_eq(from, driver).then_some(to),
            Way::Mode(_) => None,
        }
    }
}

impl std::fmt::Debug for Reopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reopened").field("mode", &self.mode()).finish_non_exhaustive()
    }
}
