//! Changes of a running host that are more than one action.

use super::spec::Registry;
use super::{Host, Result, StartError};
use crate::error::{Error, ErrorKind};
use crate::graph::{Action, DriveDecl, Graph, Role, Transaction, Unproven};

impl Host {
    /// Removes a node that nobody uses, and those that came with it: children that were described within
    /// it, or another one, which nobody else uses. Returns their names, in the order in which they went.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` with who uses it, or its bitmaps.
    pub async fn remove_node(&self, node: &str) -> Result<Vec<String>> {
        let _turn = self.inner.registry.turn.lock().await;
        let graph = self.graph();
        let removed = with_own((&graph, &self.inner.registry), node, None);
        drop(graph);
        self.remove_all(removed, |node| Action::RemoveNode { node }).await
    }

    /// Takes a filter out: its users go to its child, and with it go children, but that one, that came with it.
    /// Returns the names of all that went.
    ///
    /// # Errors
    /// `ENOENT`; as [`Host::transact`].
    pub async fn remove_filter(&self, node: &str) -> Result<Vec<String>> {
        let _turn = self.inner.registry.turn.lock().await;
        let graph = self.graph();
        let removed = filter_with_own((&graph, &self.inner.registry), node);
        drop(graph);
        self.remove_all(removed, |node| Action::RemoveFilter { node }).await
    }

    /// The first one as `first` says, the others because they came with it.
    async fn remove_all(
        &self,
        nodes: Vec<String>,
        first: impl FnOnce(String) -> Action,
    ) -> Result<Vec<String>> {
        let mut names = nodes.iter().cloned();
        let transaction = names.next().map(|node| Transaction::new().with(first(node)));
        let remove = |node| Action::RemoveNode { node };
        let transaction =
            names.map(remove).fold(transaction.unwrap_or_default(), Transaction::with);
        self.transact(transaction).await?;
        Ok(nodes)
    }

    /// Lets all users of a node use another one.
    ///
    /// # Errors
    /// As [`Host::transact`]: `EPERM` when it is not known to show the same, unless that is to be marked.
    pub async fn replace_node(&self, node: &str, by: &str, unproven: Unproven) -> Result<()> {
        let replace = Action::Replace { node: node.to_owned(), by: by.to_owned() };
        self.transact(Transaction::new().with_unproven(replace, unproven)).await.map(drop)
    }

    /// Adds a drive, with or without a medium.
    ///
    /// # Errors
    /// As [`Host::transact`].
    pub async fn add_drive(&self, id: &str, root: Option<&str>, writable: bool) -> Result<()> {
        let (id, root) = (id.to_owned(), root.map(str::to_owned));
        let decl = DriveDecl { id, root, writable, only_shows: false };
        self.transact(Transaction::new().with(Action::AddDrive(decl))).await.map(drop)
    }

    /// Removes a drive that is not exported and has no bitmaps.
    ///
    /// # Errors
    /// As [`Host::transact`].
    pub async fn remove_drive(&self, id: &str) -> Result<()> {
        let remove = Action::RemoveDrive { drive: id.to_owned() };
        self.transact(Transaction::new().with(remove)).await.map(drop)
    }

    /// Gives a drive without a medium one. Clients that are connected keep the size that they have seen.
    ///
    /// # Errors
    /// `EEXIST` if it has one; as [`Host::transact`].
    pub async fn insert_medium(&self, drive: &str, node: &str) -> Result<()> {
        let insert = Action::InsertMedium { drive: drive.to_owned(), node: node.to_owned() };
        self.transact(Transaction::new().with(insert)).await.map(drop)
    }

    /// Takes a drive's medium out. Requests fail meanwhile (`ENOMEDIUM`; over NBD `EIO`); its bitmaps stay.
    ///
    /// # Errors
    /// `ENOMEDIUM`; as [`Host::transact`].
    pub async fn eject_medium(&self, drive: &str) -> Result<()> {
        let eject = Action::EjectMedium { drive: drive.to_owned() };
        self.transact(Transaction::new().with(eject)).await.map(drop)
    }

    /// Lets users of a drive change what it shows, or no more.
    ///
    /// # Errors
    /// `EBUSY` while it has a writable export; as [`Host::transact`].
    pub async fn set_writable(&self, drive: &str, writable: bool) -> Result<()> {
        let set = Action::SetWritable { drive: drive.to_owned(), writable };
        self.transact(Transaction::new().with(set)).await.map(drop)
    }

    /// Changes the size of a node, or of what a drive shows: of the node below it that has a size of its own.
    /// Clients that are connected keep the size that they have seen: what they ask for behind a new end fails
    /// (writes with `ENOSPC`, reads with `EIO`). What is added is dirty in the bitmaps of all that shows it.
    ///
    /// # Errors
    /// `ENOENT`; `EBUSY` for a node that somebody keeps its bytes in; the driver's.
    pub async fn resize(&self, of: &str, size_bytes: u64) -> Result<()> {
        let node = self.sized_below(of)?;
        self.transact(Transaction::new().with(Action::Resize { node, size_bytes })).await.map(drop)
    }

    /// The node whose size what is called `of` has.
    pub(super) fn sized_below(&self, of: &str) -> Result<String> {
        let graph = self.graph();
        let drive = graph.find_drive(of).map(|at| &graph.drives()[at]);
        let top = match drive {
            Some(drive) => Some(drive.medium()?.child()),
            None => graph.find_node(of),
        };
        let none = || Error::new(ErrorKind::NotFound, format!("there is no node or drive `{of}`"));
        let mut at = top.ok_or_else(none)?;
        let filtered = |at: usize| {
            let mut edges = graph.nodes()[at].edges().iter();
            edges.find(|edge| edge.role() == Role::Filtered).map(|edge| edge.child())
        };
        while let Some(below) = filtered(at) {
            at = below;
        }
        Ok(graph.nodes()[at].name().to_owned())
    }
}

/// A filter, and those that came with it, but the child that it filters.
pub(super) fn filter_with_own(of: (&Graph, &Registry), node: &str) -> Vec<String> {
    let graph = of.0;
    let filtered = graph.find_node(node).and_then(|at| {
        let mut edges = graph.nodes()[at].edges().iter();
        let edge = edges.find(|edge| edge.role() == Role::Filtered)?;
        Some(graph.nodes()[edge.child()].name().to_owned())
    });
    with_own(of, node, filtered.as_deref())
}

/// A node, and those that came with it and that nobody else uses, parents first. Not `kept`.
pub(super) fn with_own(
    (graph, registry): (&Graph, &Registry),
    node: &str,
    kept: Option<&str>,
) -> Vec<String> {
    let mut gone = vec![node.to_owned()];
    let mut next = 0;
    while let Some(parent) = gone.get(next).cloned() {
        next += 1;
        let Some(at) = graph.find_node(&parent) else { continue };
        let prefixes = [format!("#{parent}."), format!("{parent}/")];
        for edge in graph.nodes()[at].edges() {
            let node = &graph.nodes()[edge.child()];
            let child = node.name();
            let is_unnamed = child.starts_with('#')
                && prefixes.iter().any(|prefix| child.starts_with(prefix.as_str()));
            let came_with_it = is_unnamed || registry.is_within(node);
            if came_with_it
                && kept != Some(child)
                && !gone.iter().any(|it| it == child)
                && !is_used_beside(graph, edge.child(), &gone)
            {
                gone.push(child.to_owned());
            }
        }
    }
    gone
}

/// Whether somebody uses a node who does not go.
fn is_used_beside(graph: &Graph, node: usize, gone: &[String]) -> bool {
    let by_drive =
        graph.drives().iter().any(|drive| drive.root().is_some_and(|root| root.child() == node));
    let stays = |name: &str| !gone.iter().any(|it| it == name);
    by_drive
        || graph.nodes().iter().any(|parent| {
            stays(parent.name()) && parent.edges().iter().any(|edge| edge.child() == node)
        })
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::File(error) | StartError::Failed(error) => error,
            StartError::Config(found) => Self::new(ErrorKind::Invalid, found.brief()),
        }
    }
}
