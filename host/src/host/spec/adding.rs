//! Adding to a host that runs: all of a fragment, or nothing.
//!
//! Nodes that need no opening, drives and bitmaps come by one transaction. If there are images to be opened, what
//! they stand on is added before, and taken back if anything fails; drives, bitmaps and what stands on the
//! images come last, in one transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::super::call::{block_on, on_worker};
use super::super::persist::Wanted;
use super::super::start::{Driver, Failed, Plan, PlannedNode};
use super::super::surroundings::Machine;
use super::super::{Host, check_running, images};
use super::builder::Builder;
use super::exports::{StartedExport, serve};
use super::fragment::Fragment;
use super::stages::{adding, children_first, in_stages};
use super::undo::Done;
use super::{StartError, check_on, not_started};
use crate::config::{GraphSpec, Live};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, BitmapDecl, ChildDecl, DriveDecl, Graph, NodeDecl, OpenDecl, Transaction, Which,
};

/// A fragment that has been read, and is right as far as can be said by now.
pub(super) struct Readied {
    pub(super) spec: GraphSpec,
    pub(super) base: PathBuf,
    pub(super) machine: Machine,
    /// The node that it is about, if it is about one.
    pub(super) root: Option<String>,
}

/// What was added.
#[derive(Clone, Debug, Default)]
pub struct Added {
    /// The node that a fragment of one node is about.
    pub root: Option<String>,
    /// All nodes, those without names of their own, too.
    pub nodes: Vec<String>,
    /// The ids of the drives.
    pub drives: Vec<String>,
    /// All exports.
    pub exports: Vec<StartedExport>,
}

/// Where a filter goes.
#[derive(Clone, Debug)]
pub enum FilterPlace {
    /// Over a node: its users go to the filter.
    Above {
        /// The node.
        node: String,
        /// Who goes to the filter.
        users: Which,
    },
    /// Between a node and one of its children.
    Below {
        /// The parent.
        node: String,
        /// Its edge to the child.
        edge: String,
    },
}

impl Host {
    /// Adds nodes, drives, bitmaps and exports to the host while it runs, checked as at the start, against what
    /// is there: all of it, or nothing. What a node that stands on another one does not say of its use is
    /// decided by that one; a node that nobody of the fragment uses may be written by whoever comes later,
    /// unless it says `read-only`.
    ///
    /// It opens files, and may block for as long as that takes. Not to be called on a worker.
    ///
    /// ```
    /// use blockloom::host::Fragment;
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let host = Host::builder().node("base", MemoryNode::new(1 << 20, 1)?, vec![]).start()?;
    /// host.add(&Fragment::toml(
    ///     "top.toml",
    ///     r#"
    ///     [node.top]
    ///     driver = "memory"
    ///     child.backing = "base"
    ///
    ///     [drive.vda]
    ///     root = "top"
    ///     writable = true
    ///     "#,
    /// ))?;
    /// block_on(host.drive("vda")?.write(0, b"hello"))?;
    ///
    /// let options = serde_json::json!({ "driver": "null-co", "node-name": "sink", "size": 4096 });
    /// assert_eq!(host.add(&Fragment::blockdev(options))?.root.as_deref(), Some("sink"));
    /// # Ok(host.shutdown()?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with the fragment, or what failed.
    pub fn add(&self, fragment: &Fragment) -> Result<Added, StartError> {
        self.add_placed(fragment, None)
    }

    /// Adds a filter, described as a node without its child `file`, where it says.
    ///
    /// # Errors
    /// As [`Host::add`] and [`Host::transact`].
    pub fn insert_filter(&self, place: &FilterPlace, options: &Value) -> Result<Added, StartError> {
        let child = child_at(&self.graph(), place)?;
        self.add_placed(&filter_fragment(options, child)?, Some(place))
    }

    fn add_placed(
        &self,
        fragment: &Fragment,
        place: Option<&FilterPlace>,
    ) -> Result<Added, StartError> {
        check_running(&self.inner.ended)?;
        let registry = &self.inner.registry;
        let _turn = block_on(registry.turn.lock());
        let live = registry.live(&self.graph(), &self.inner.server);
        let readied = self.ready(fragment, live)?;
        let placed = place.zip(readied.root.as_deref());
        let mut done = Done::of(&readied);
        let added = self.add_spec(&readied, placed, &mut done);
        let Readied { spec, root, .. } = readied;
        match added {
            Ok(exports) => Ok(Added { exports, ..Added::of(&spec, root) }),
            Err(error) => {
                self.take_back(&spec, &done);
                Err(error)
            }
        }
    }

    /// Reads a fragment beside what is there.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn ready(&self, fragment: &Fragment, live: Live) -> Result<Readied, StartError> {
        let registry = &self.inner.registry;
        let graph = self.graph();
        let (mut spec, found, root) = fragment.read(|| registry.make_up_name(&graph), live);
        drop(graph);
        let base = fragment.base().map_or_else(|| registry.base(), Path::to_owned);
        let machine = registry.machine();
        check_on(&mut spec, found, &base, &machine)?;
        Ok(Readied { spec, base, machine, root })
    }

    /// Adds all of it; `done` says what has been, if something fails.
    pub(super) fn add_spec(
        &self,
        readied: &Readied,
        placed: Option<(&FilterPlace, &str)>,
        done: &mut Done,
    ) -> Result<Vec<StartedExport>, StartError> {
        let Readied { spec, base, machine, .. } = readied;
        images::prepare_all(spec, base).map_err(|failed| {
            let node = Some(failed.node.name.value.clone());
            not_started(spec, Failed { node, kept: None, error: failed.error })
        })?;
        let registry = &self.inner.registry;
        let mut builder = Builder::new(spec, base, machine, registry.living(&self.graph()));
        let plan = builder.plan()?;
        let made = builder.made;
        self.add_plan(plan, placed, done).map_err(|failed| not_started(spec, failed))?;
        registry.take(&self.graph(), spec, base, made);
        serve(self, spec, base)
    }

    /// Adds all of a plan.
    fn add_plan(
        &self,
        plan: Plan,
        placed: Option<(&FilterPlace, &str)>,
        done: &mut Done,
    ) -> Result<(), Failed> {
        let Plan { nodes, drives, bitmaps, kept } = plan;
        let (before, openings, last) = in_stages(nodes);
        if !openings.is_empty() {
            self.add_nodes(before, done)?;
            self.open_in_turn(openings, done)?;
            return self.add_last(last, drives, bitmaps, kept, placed, done);
        }
        let all = before.into_iter().chain(last).collect();
        self.add_last(all, drives, bitmaps, kept, placed, done)
    }

    pub(super) fn add_nodes(&self, nodes: Vec<PlannedNode>, done: &mut Done) -> Result<(), Failed> {
        if nodes.is_empty() {
            return Ok(());
        }
        let nodes = children_first(nodes);
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let actions = adding(nodes, Action::AddNode);
        let transaction = actions.fold(Transaction::new(), Transaction::with);
        block_on(self.transact_unfollowed(transaction))?;
        done.nodes.extend(names);
        Ok(())
    }

    /// Opens nodes, and adds what they stand on, each as soon as its children are there.
    pub(super) fn open_in_turn(
        &self,
        mut nodes: Vec<PlannedNode>,
        done: &mut Done,
    ) -> Result<(), Failed> {
        loop {
            let graph = self.graph();
            let is_there = |child: &ChildDecl| graph.find_node(&child.node).is_some();
            let next = nodes.iter().position(|node| node.children.iter().all(is_there));
            drop(graph);
            let Some(next) = next else { break };
            let node = nodes.remove(next);
            let closing = node.closing();
            let PlannedNode { name, driver, children, .. } = node;
            let added = match driver {
                Driver::Ready(driver) => {
                    let decl = NodeDecl { name: name.clone(), driver, children };
                    let add = Transaction::new().with(Action::AddNode(decl));
                    let add = closing.into_iter().fold(add, Transaction::with);
                    block_on(self.transact_unfollowed(add))
                }
                Driver::Open(driver) => {
                    let decl = OpenDecl { name: name.clone(), driver, children };
                    let (cell, ended) =
                        (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.ended));
                    block_on(on_worker(self.inner.first(), move || async move {
                        check_running(&ended)?;
                        cell.open_node(decl).await.map(drop)
                    }))
                }
            };
            added.map_err(|error| Failed { node: Some(name.clone()), kept: None, error })?;
            done.nodes.push(name);
        }
        let Some(node) = nodes.first() else { return Ok(()) };
        let message = "a child of it is not there any more";
        let error = Error::new(ErrorKind::NotFound, message).at_node(&node.name);
        Err(Failed { node: Some(node.name.clone()), kept: None, error })
    }

    fn add_last(
        &self,
        nodes: Vec<PlannedNode>,
        drives: Vec<DriveDecl>,
        bitmaps: Vec<BitmapDecl>,
        kept: Vec<Wanted>,
        placed: Option<(&FilterPlace, &str)>,
        done: &mut Done,
    ) -> Result<(), Failed> {
        let nodes = children_first(nodes);
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let actions = adding(nodes, |decl| match placed {
            Some((place, root)) if decl.name == root => insert(place, decl),
            _ => Action::AddNode(decl),
        });
        let actions = actions
            .chain(drives.into_iter().map(Action::AddDrive))
            .chain(bitmaps.into_iter().map(Action::AddBitmap));
        let transaction = actions.fold(Transaction::new(), Transaction::with);
        block_on(self.transact_unfollowed(transaction))?;
        done.nodes.extend(names);
        done.is_all = true;
        self.follow(kept)?;
        Ok(())
    }

    /// A transaction after which bitmaps that images hold are left where they are.
    async fn transact_unfollowed(&self, transaction: Transaction) -> Result<()> {
        let (cell, ended) = (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.ended));
        on_worker(self.inner.first(), move || async move {
            check_running(&ended)?;
            cell.transact(transaction).await.map(drop)
        })
        .await
    }

    /// Loads what the images that were added hold, and keeps there what is to be kept.
    pub(super) fn follow(&self, kept: Vec<Wanted>) -> Result<(), Failed> {
        let (cell, persistence) =
            (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.persistence));
        let begun = self.inner.begun_once_loaded();
        let load = move || async move {
            let loaded = persistence.load(&cell, &kept).await;
            if loaded.is_ok() {
                begun.iter().for_each(|begun| begun.begin_new(&cell));
            }
            Ok(loaded)
        };
        block_on(on_worker(self.inner.first(), load))??;
        self.inner.refresh_workers();
        Ok(())
    }
}

impl Added {
    pub(super) fn of(spec: &GraphSpec, root: Option<String>) -> Self {
        Self {
            root,
            nodes: spec.nodes.iter().map(|node| node.name.value.clone()).collect(),
            drives: spec.drives.iter().map(|drive| drive.id.value.clone()).collect(),
            exports: Vec::new(),
        }
    }
}

/// A filter's description, with the child over which it goes.
///
/// # Errors
/// `EINVAL` if that is said there.
pub(super) fn filter_fragment(options: &Value, child: String) -> Result<Fragment> {
    let Value::Object(keys) = options else {
        return Err(Error::new(ErrorKind::Invalid, "the options of a filter must be an object"));
    };
    let in_child = keys.get("child").and_then(|child| child.get("file")).is_some();
    if keys.contains_key("file") || in_child {
        let message = "`file` is given by where the filter goes: leave it out";
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let mut keys = keys.clone();
    keys.insert("file".to_owned(), Value::String(child));
    Ok(Fragment::blockdev(Value::Object(keys)).named("blockdev-insert-filter"))
}

/// The node over which a filter goes.
///
/// # Errors
/// `ENOENT`.
pub(super) fn child_at(graph: &Graph, place: &FilterPlace) -> Result<String> {
    let find = |name: &str| {
        let none = || Error::new(ErrorKind::NotFound, format!("there is no node `{name}`"));
        graph.find_node(name).map(|at| &graph.nodes()[at]).ok_or_else(none)
    };
    match place {
        FilterPlace::Above { node, .. } => find(node).map(|node| node.name().to_owned()),
        FilterPlace::Below { node, edge } => {
            let parent = find(node)?;
            let found = parent.edges().iter().find(|it| it.name() == edge);
            let found = found.ok_or_else(|| {
                let edges: Vec<_> =
                    parent.edges().iter().map(|it| format!("`{}`", it.name())).collect();
                let message = format!("it has no edge `{edge}`; it has: {}", edges.join(", "));
                Error::new(ErrorKind::NotFound, message).at_node(node)
            })?;
            Ok(graph.nodes()[found.child()].name().to_owned())
        }
    }
}

pub(super) fn insert(place: &FilterPlace, filter: NodeDecl) -> Action {
    match place.clone() {
        FilterPlace::Above { node, users } => Action::InsertAbove { node, filter, users },
        FilterPlace::Below { node, edge } => Action::InsertBelow { node, edge, filter },
    }
}
