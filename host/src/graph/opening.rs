//! Nodes whose drivers are opened on a worker, with their children standing: to know what such a node is, its
//! driver reads them first.
//!
//! Meanwhile each child has a drive of its own, that nobody but the opener knows. It is read-only; nobody
//! may begin to write what the driver keeps its bytes in, from before it is read until the node uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::build::{ChildDecl, DriveDecl, NodeDecl};
use super::cell::{GraphCell, LocalGraph};
use super::detach::ToTheEnd;
use super::drive::LocalDrive;
use super::permission::Role;
use super::transaction::{Action, Applied, Transaction};
use crate::error::{Error, ErrorKind, Result};
use crate::io::BufMut;
use crate::limits::TRANSFER_MAX_BYTES;
use crate::node::{Extent, Node, NodeFuture, NodeInfo};

/// Makes a driver of what its children hold. Any function of the kind
/// `async move |children: &Children| -> Result<Arc<dyn Node>>` does.
pub trait OpenDriver: Send + 'static {
    /// Reads what it needs of the children, and writes nothing.
    fn open<'a>(self: Box<Self>, children: &'a Children) -> NodeFuture<'a, Arc<dyn Node>>;
}

impl<F> OpenDriver for F
where
    F: AsyncFnOnce(&Children) -> Result<Arc<dyn Node>> + Send + 'static,
{
    fn open<'a>(self: Box<Self>, children: &'a Children) -> NodeFuture<'a, Arc<dyn Node>> {
        Box::pin(async move { (*self)(children).await })
    }
}

/// A declared node whose driver is still to be opened.
pub struct OpenDecl {
    /// Unique among nodes and drives.
    pub name: String,
    /// Opens its driver.
    pub driver: Box<dyn OpenDriver>,
    /// Its edges, in the driver's order.
    pub children: Vec<ChildDecl>,
}

/// The children of a node that is being opened, in the order of its edges.
pub struct Children(Vec<NodeReader>);

impl Children {
    /// Child number `index`.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn get(&self, index: usize) -> Result<&NodeReader> {
        self.0.get(index).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("it has no child number {index}"))
        })
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, NodeReader> {
        self.0.iter()
    }
}

/// A node that is read by an opener.
pub struct NodeReader {
    edge: String,
    drive: LocalDrive,
}

impl NodeReader {
    /// The name of the edge to it.
    pub fn edge(&self) -> &str {
        &self.edge
    }

    /// What it is.
    ///
    /// # Errors
    /// When the graph has lost it.
    pub fn info(&self) -> Result<NodeInfo> {
        self.drive.info()
    }

    /// Its length, bytes.
    ///
    /// # Errors
    /// As [`NodeReader::info`].
    pub fn len_bytes(&self) -> Result<u64> {
        Ok(self.info()?.size_bytes)
    }

    /// Fills `buf` from `offset`, in pieces of any length.
    ///
    /// # Errors
    /// `EINVAL` past the end; the nodes'.
    pub async fn read(&self, offset: u64, mut buf: BufMut) -> Result<BufMut> {
        let piece = TRANSFER_MAX_BYTES as usize;
        if buf.len() <= piece {
            return self.drive.read(offset, buf).await;
        }
        let mut at = offset;
        for part in buf.chunks_mut(piece) {
            let read = self.drive.read(at, BufMut::new(part.len())).await?;
            part.copy_from_slice(&read);
            at = at.saturating_add(part.len() as u64);
        }
        Ok(buf)
    }

    /// The extents from `offset` on; may end before `offset + len`.
    ///
    /// # Errors
    /// As [`NodeReader::read`].
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.drive.block_status(offset, len).await
    }
}

/// Tells the drives of nodes that are being opened apart.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// The drive by which a child is read meanwhile.
fn drive_of(node: &str, child: &ChildDecl) -> DriveDecl {
    let id = format!("#open.{node}.{}.{}", child.name, OPENED.fetch_add(1, Relaxed));
    let minds = matches!(child.role, Role::Storage | Role::Data);
    DriveDecl { id, root: Some(child.node.clone()), writable: false, only_shows: !minds }
}

impl GraphCell {
    /// Opens a driver and adds its node, on a worker. Once begun it runs to its end, also if its future is
    /// dropped.
    ///
    /// # Errors
    /// The opener's; as [`GraphCell::transact`]. Nothing has been added then.
    pub async fn open_node(self: &Arc<Self>, decl: OpenDecl) -> Result<Applied> {
        let cell = Arc::clone(self);
        ToTheEnd::new(async move { cell.open_and_add(decl).await }).await
    }

    async fn open_and_add(self: &Arc<Self>, decl: OpenDecl) -> Result<Applied> {
        let OpenDecl { name, driver, children } = decl;
        let graph = self.load();
        if let Some(child) = children.iter().find(|child| graph.find_node(&child.node).is_none()) {
            let ChildDecl { name: edge, node, .. } = child;
            let message = format!("its child `{edge}` is the unknown node `{node}`");
            return Err(Error::new(ErrorKind::NotFound, message).at_node(&name));
        }
        drop(graph);
        let drives: Vec<DriveDecl> = children.iter().map(|child| drive_of(&name, child)).collect();
        let ids: Vec<String> = drives.iter().map(|drive| drive.id.clone()).collect();
        let added = drives.into_iter().map(Action::AddDrive);
        let added = self.transact(added.fold(Transaction::new(), Transaction::with)).await;
        added.map_err(|error| error.at_node(&name))?;
        let removal = || {
            let removed = ids.iter().map(|drive| Action::RemoveDrive { drive: drive.clone() });
            removed.fold(Transaction::new(), Transaction::with)
        };
        let result = match self.open_driver(driver, &children, &ids).await {
            Ok(driver) => {
                let node = NodeDecl { name: name.clone(), driver, children };
                self.transact(removal().with(Action::AddNode(node))).await
            }
            Err(error) => Err(error.at_node(&name)),
        };
        if result.is_err()
            && let Err(error) = self.transact(removal()).await
        {
            tracing::error!("node `{name}`, which was not opened: {error}");
        }
        result
    }

    async fn open_driver(
        self: &Arc<Self>,
        driver: Box<dyn OpenDriver>,
        children: &[ChildDecl],
        drives: &[String],
    ) -> Result<Arc<dyn Node>> {
        let graph = LocalGraph::of(self);
        let reader = |(child, id): (&ChildDecl, &String)| {
            Ok(NodeReader { edge: child.name.clone(), drive: LocalDrive::open(&graph, id)? })
        };
        let readers = children.iter().zip(drives).map(reader).collect::<Result<Vec<_>>>()?;
        driver.open(&Children(readers)).await
    }
}
