//! A graph that can be changed: by name, seen by nobody but its writer.
//!
//! A draft begins empty or as a copy of a snapshot, takes changes (`structure`), and becomes a snapshot
//! (`assemble`). One that fails is dropped: there is nothing to roll back. It notes which edges were
//! altered by which action, so that what cannot be proven about them is settled as that action asked.

use std::sync::Arc;

use super::action::{Unproven, User};
use super::bitmap_steps::{BitmapStep, position};
use super::naming::Naming;
use super::reopen::Opened;
use super::work::Work;
use crate::bitmap::{Bitmap, BitmapName};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::align::Serializer;
use crate::graph::build::{ChildDecl, DriveDecl, NodeDecl};
use crate::graph::counters::Counters;
use crate::graph::evidence::Tracker;
use crate::graph::generation::{DriveGeneration, Generations, NodeGeneration};
use crate::graph::guard::Guards;
use crate::graph::origin::Origin;
use crate::graph::permission::{PermissionSet, Role};
use crate::graph::snapshot::{BitmapScope, Edge, Graph};
use crate::graph::user::DriveTitle;
use crate::node::{Node, OpenMode};

/// See the module.
#[derive(Default)]
pub(in crate::graph) struct Draft {
    pub(super) nodes: Vec<DraftNode>,
    pub(super) drives: Vec<DraftDrive>,
    pub(super) bitmaps: Vec<DraftBitmap>,
    /// Bitmaps that actions have taken out.
    pub(super) removed: Vec<DraftBitmap>,
    /// Those of them that went with their nodes, without an action of their own.
    pub(super) gone_with_nodes: Vec<(BitmapScope, BitmapName)>,
    /// What is done to the contents of all of these, in the order of the actions.
    pub(super) bitmap_steps: Vec<BitmapStep>,
    /// What drivers are to do with nothing in flight, in the order of the actions.
    pub(super) works: Vec<Work>,
    /// The nodes that go, with what they stand on, if nobody uses them after all actions.
    pub(super) unused: Vec<String>,
    /// The jobs whose nodes may go.
    pub(super) ended_jobs: Vec<String>,
    /// Whose targets are to show what their sources do.
    pub(super) catching_up: Vec<(Arc<Tracker>, By)>,
    /// Which backings images are to name.
    pub(super) backing_names: Vec<(String, Naming)>,
    /// Drivers that have been opened in another way.
    pub(super) opened: Opened,
    pub(super) altered: Vec<Altered>,
    /// Of the last action that has altered an edge or a size, among the changes of bitmaps.
    pub(super) last_shape: usize,
    /// Of the graph from which it began.
    pub(super) generation: u64,
    pub(super) generations: Generations,
    /// Of the host, once there is a graph.
    pub(super) guards: Option<Arc<Guards>>,
    /// The actions in words, for messages.
    pub(super) actions: Vec<String>,
    /// The action that is being applied.
    pub(super) by: By,
}

/// Who altered something, and what becomes of it if nothing can be proven.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    /// Number of the action, from 0.
    pub(super) action: usize,
    pub(super) unproven: Unproven,
}

impl Default for By {
    fn default() -> Self {
        Self { action: 0, unproven: Unproven::MarkWhole }
    }
}

pub(super) struct DraftNode {
    pub(super) generation: NodeGeneration,
    pub(super) is_new: bool,
    pub(super) name: Arc<str>,
    pub(super) driver: Arc<dyn Node>,
    pub(super) edges: Vec<DraftEdge>,
    pub(super) serializer: Option<Arc<Serializer>>,
    /// The size that it is to have once its driver has done so.
    pub(super) resized: Option<u64>,
    /// The size that it has had since it became a container.
    pub(super) kept: Option<u64>,
    /// Its driver makes it longer when whoever uses it does so.
    pub(super) is_growable: bool,
    /// Its driver takes the place of the one that it has in the graph that is.
    pub(super) is_reopened: bool,
    /// Whether it may be changed, of a driver that holds nothing open.
    pub(super) mode: OpenMode,
    /// It goes as soon as nobody uses it.
    pub(super) is_left: bool,
}

#[derive(Clone)]
pub(super) struct DraftEdge {
    pub(super) name: Arc<str>,
    pub(super) child: Arc<str>,
    pub(super) role: Role,
    pub(super) grants: PermissionSet,
    /// The node's edge for whose view its own writes are proven.
    pub(super) proven_for: Option<Arc<str>>,
    pub(super) counters: Arc<Counters>,
}

pub(super) struct DraftDrive {
    pub(super) generation: DriveGeneration,
    pub(super) id: Arc<str>,
    pub(super) root: Option<DraftEdge>,
    pub(super) writable: bool,
    pub(super) only_shows: bool,
    pub(super) origin: Arc<Origin>,
}

pub(super) struct DraftBitmap {
    pub(super) scope: BitmapScope,
    /// After the actions so far.
    pub(super) name: BitmapName,
    pub(super) bitmap: Arc<Bitmap>,
    pub(super) is_new: bool,
    /// Set when it goes to another node.
    pub(super) moved: Option<(BitmapScope, By)>,
    /// It was taken out, and then what it is of: another may have that name by now.
    pub(super) view_is_gone: bool,
}

/// An edge, by its place in the draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Root(usize),
    Child(usize, usize),
}

/// An edge, by who its parent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Root(DriveGeneration),
    Child(NodeGeneration, Arc<str>),
}

pub(super) struct Altered {
    pub(super) place: Place,
    pub(super) by: By,
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

pub(super) fn not_found(message: String) -> Error {
    Error::new(ErrorKind::NotFound, message)
}

pub(super) fn in_use(message: String) -> Error {
    Error::new(ErrorKind::InUse, message)
}

impl DraftBitmap {
    /// The node whose view it records.
    pub(super) fn node(&self, graph: &Graph) -> Option<usize> {
        if self.view_is_gone { None } else { graph.scope_node(&self.scope) }
    }
}

/// Some of the names that there are, for messages.
fn known<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let shown: Vec<String> = names.by_ref().take(5).map(|name| format!("`{name}`")).collect();
    match (shown.is_empty(), names.len()) {
        (true, _) => "there is none at all".to_owned(),
        (false, 0) => format!("there is: {}", shown.join(", ")),
        (false, more) => format!("there is: {} and {more} more", shown.join(", ")),
    }
}

impl DraftEdge {
    fn of(decl: ChildDecl) -> Self {
        let ChildDecl { name, node, role, grants, proven_for } = decl;
        let edge = Self::new(name.into(), node.into(), role, grants);
        Self { proven_for: proven_for.map(Into::into), ..edge }
    }

    pub(super) fn new(name: Arc<str>, child: Arc<str>, role: Role, grants: PermissionSet) -> Self {
        Self { name, child, role, grants, proven_for: None, counters: Arc::new(Counters::new()) }
    }

    /// `edges` are those of its node.
    fn copy(edge: &Edge, edges: &[Edge], graph: &Graph) -> Self {
        Self {
            name: Arc::clone(&edge.name),
            child: Arc::clone(&graph.nodes[edge.child].name),
            role: edge.role,
            grants: edge.grants,
            proven_for: edge.proven_for.map(|view| Arc::clone(&edges[view].name)),
            counters: Arc::clone(&edge.counters),
        }
    }
}

impl Draft {
    /// A copy of a snapshot.
    pub(in crate::graph) fn of(graph: &Graph) -> Self {
        let nodes = graph.nodes.iter().map(|node| DraftNode {
            generation: node.generation,
            is_new: false,
            name: Arc::clone(&node.name),
            driver: Arc::clone(&node.driver),
            edges: node
                .edges
                .iter()
                .map(|edge| DraftEdge::copy(edge, &node.edges, graph))
                .collect(),
            serializer: node.serializer.clone(),
            resized: None,
            // What it stands on itself may be another node by now; then its driver knows.
            kept: (node.is_container && node.info.growable && node.edges.is_empty())
                .then_some(node.info.size_bytes),
            is_growable: node.info.growable,
            is_reopened: false,
            mode: node.mode,
            is_left: node.is_left,
        });
        let drives = graph.drives.iter().zip(&graph.origins).map(|(drive, origin)| DraftDrive {
            generation: drive.generation,
            id: Arc::clone(&drive.id),
            root: drive.root.as_ref().map(|root| DraftEdge::copy(root, &[], graph)),
            writable: drive.writable,
            only_shows: drive.only_shows,
            origin: Arc::clone(origin),
        });
        let bitmaps = graph.bitmaps.iter().map(|entry| DraftBitmap {
            scope: entry.scope.clone(),
            name: entry.bitmap.name(),
            bitmap: Arc::clone(&entry.bitmap),
            is_new: false,
            moved: None,
            view_is_gone: false,
        });
        Self {
            nodes: nodes.collect(),
            drives: drives.collect(),
            bitmaps: bitmaps.collect(),
            generation: graph.generation,
            generations: graph.generations.clone(),
            guards: Some(Arc::clone(&graph.guards)),
            ..Self::default()
        }
    }

    /// Adds a node. Its children may come later.
    ///
    /// # Errors
    /// `EEXIST`.
    pub(in crate::graph) fn add_node(&mut self, decl: NodeDecl) -> Result<()> {
        self.check_free(&decl.name, "node")?;
        let NodeDecl { name, driver, children } = decl;
        self.nodes.push(DraftNode {
            generation: self.generations.node(),
            is_new: true,
            name: name.into(),
            driver,
            edges: children.into_iter().map(DraftEdge::of).collect(),
            serializer: None,
            resized: None,
            kept: None,
            is_growable: false,
            is_reopened: false,
            mode: OpenMode::WRITABLE,
            is_left: false,
        });
        Ok(())
    }

    /// Adds a drive. Its root may come later.
    ///
    /// # Errors
    /// `EEXIST`.
    pub(in crate::graph) fn add_drive(&mut self, decl: DriveDecl) -> Result<()> {
        self.check_free(&decl.id, "drive")?;
        let DriveDecl { id, root, writable, only_shows } = decl;
        let id: Arc<str> = id.into();
        self.drives.push(DraftDrive {
            generation: self.generations.drive(),
            id: Arc::clone(&id),
            root: root.map(|root| Self::root_edge(root.into())),
            writable,
            only_shows,
            origin: Arc::new(Origin::new(id)),
        });
        Ok(())
    }

    pub(super) fn root_edge(node: Arc<str>) -> DraftEdge {
        DraftEdge::new("root".into(), node, Role::Root, PermissionSet::NONE)
    }

    fn check_free(&self, name: &str, kind: &str) -> Result<()> {
        let other = if self.nodes.iter().any(|node| *node.name == *name) {
            "node"
        } else if self.drives.iter().any(|drive| *drive.id == *name) {
            "drive"
        } else {
            return Ok(());
        };
        let message = format!("`{name}` names a {other} and a {kind}: give one another name");
        Err(Error::new(ErrorKind::Exists, message))
    }

    pub(super) fn expect_node(&self, name: &str) -> Result<usize> {
        let found = self.nodes.iter().position(|node| *node.name == *name);
        found.ok_or_else(|| {
            let known = known(self.nodes.iter().map(|node| &*node.name));
            not_found(format!("there is no node `{name}`; {known}"))
        })
    }

    pub(super) fn expect_drive(&self, id: &str) -> Result<usize> {
        let found = self.drives.iter().position(|drive| *drive.id == *id);
        found.ok_or_else(|| {
            let known = known(self.drives.iter().map(|drive| &*drive.id));
            not_found(format!("there is no drive `{id}`; {known}"))
        })
    }

    pub(super) fn expect_edge(&self, node: usize, name: &str) -> Result<usize> {
        let node = &self.nodes[node];
        node.edges.iter().position(|edge| *edge.name == *name).ok_or_else(|| {
            let known: Vec<_> = node.edges.iter().map(|edge| format!("`{}`", edge.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            let message = format!("it has no edge `{name}`; it has: {known}");
            not_found(message).at_node(&node.name)
        })
    }

    /// A node, and those of which it is a filter, through others. A graph that is circular is refused later.
    pub(super) fn filtered(&self, node: usize) -> impl Iterator<Item = usize> {
        let below = |at: &usize| {
            let edge = self.nodes[*at].edges.iter().find(|edge| edge.role == Role::Filtered)?;
            self.nodes.iter().position(|node| node.name == edge.child)
        };
        std::iter::successors(Some(node), below).take(self.nodes.len())
    }

    /// The edges to a node.
    pub(super) fn users(&self, node: &str) -> Vec<Link> {
        let drives = self.drives.iter().enumerate();
        let roots = drives
            .filter(|(_, drive)| drive.root.as_ref().is_some_and(|root| *root.child == *node));
        let mut links: Vec<Link> = roots.map(|(drive, _)| Link::Root(drive)).collect();
        for (parent, parent_node) in self.nodes.iter().enumerate() {
            let edges =
                parent_node.edges.iter().enumerate().filter(|(_, edge)| *edge.child == *node);
            links.extend(edges.map(|(edge, _)| Link::Child(parent, edge)));
        }
        links
    }

    /// What a job stands on is the job's own.
    ///
    /// # Errors
    /// `EBUSY` for a node that stands for a job which does not end.
    pub(super) fn check_no_job(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        match node.driver.job() {
            Some(job) if !self.ended_jobs.contains(&job.id) => {
                let message =
                    format!("it stands for job `{}`: wait for its end, or cancel it", job.id);
                Err(in_use(message).at_node(&node.name))
            }
            _ => Ok(()),
        }
    }

    /// The edges to a node of those who follow what takes its place: a job goes on with the node that it has
    /// been told, but for what another one is to have below it.
    pub(super) fn followers(&self, node: &str) -> Vec<Link> {
        let is_follower = |link: &Link| match *link {
            Link::Root(_) => true,
            Link::Child(parent, edge) if self.nodes[parent].driver.needs_itself(edge) => false,
            Link::Child(parent, edge) => {
                let DraftNode { driver, edges, .. } = &self.nodes[parent];
                let is_filter = edges.get(edge).is_some_and(|edge| edge.role == Role::Filtered);
                driver.job().is_none_or(|job| {
                    let is_ground = job.stands_on.iter().any(|(_, lower)| *lower == edge);
                    job.tracks.is_none() && (is_filter || is_ground)
                })
            }
        };
        self.users(node).into_iter().filter(is_follower).collect()
    }

    /// # Errors
    /// `EBUSY` if the user of a node needs that node itself.
    pub(super) fn check_movable(&self, link: Link) -> Result<()> {
        match link {
            Link::Child(node, edge) if self.nodes[node].driver.needs_itself(edge) => {
                let node = &self.nodes[node];
                let of = node.edges.get(edge).map_or("", |edge| &*edge.child);
                let message = format!("it needs node `{of}` itself: remove it first");
                Err(in_use(message).at_node(&node.name))
            }
            _ => Ok(()),
        }
    }

    /// The edge of a user that must use `node`.
    pub(super) fn user(&self, user: &User, node: &str) -> Result<Link> {
        let link = match user {
            User::Drive(id) => Link::Root(self.expect_drive(id)?),
            User::Node { node, edge } => {
                let parent = self.expect_node(node)?;
                Link::Child(parent, self.expect_edge(parent, edge)?)
            }
        };
        if self.edge(link).is_none_or(|edge| *edge.child != *node) {
            let message = format!("{} does not use node `{node}`", self.describe(link));
            return Err(invalid(message));
        }
        self.check_movable(link)?;
        Ok(link)
    }

    pub(super) fn edge(&self, link: Link) -> Option<&DraftEdge> {
        match link {
            Link::Root(drive) => self.drives[drive].root.as_ref(),
            Link::Child(node, edge) => self.nodes[node].edges.get(edge),
        }
    }

    /// "drive `vda`", "node `top` (edge `file`)".
    pub(super) fn describe(&self, link: Link) -> String {
        match link {
            Link::Root(drive) => DriveTitle(&self.drives[drive].id).to_string(),
            Link::Child(node, edge) => {
                let node = &self.nodes[node];
                match node.driver.job() {
                    Some(job) => format!("job `{}`", job.id),
                    None => format!("node `{}` (edge `{}`)", node.name, node.edges[edge].name),
                }
            }
        }
    }

    /// Notes that the current action has altered an edge.
    pub(super) fn note(&mut self, link: Link) {
        let place = match link {
            Link::Root(drive) => Place::Root(self.drives[drive].generation),
            Link::Child(node, edge) => {
                let node = &self.nodes[node];
                Place::Child(node.generation, Arc::clone(&node.edges[edge].name))
            }
        };
        self.altered.push(Altered { place, by: self.by });
        self.note_shape();
    }

    /// Notes that the current action has altered what nodes show.
    pub(super) fn note_shape(&mut self) {
        self.last_shape = position(self.by.action);
    }

    /// Points an edge to another node.
    pub(super) fn retarget(&mut self, link: Link, to: &str) {
        self.note(link);
        let edge = match link {
            Link::Root(drive) => self.drives[drive].root.as_mut(),
            Link::Child(node, edge) => self.nodes[node].edges.get_mut(edge),
        };
        if let Some(edge) = edge {
            edge.child = to.into();
        }
    }

    /// Whether sizes are going to change.
    pub(super) fn resizes(&self) -> bool {
        self.works.iter().any(|work| matches!(work, Work::Resize { .. }))
    }

    /// Who altered an edge: the action that refuses rather than marks, if there is one.
    pub(super) fn altered_by(&self, place: &Place) -> By {
        let mut all = self.altered.iter().filter(|altered| altered.place == *place);
        let refusing = all.clone().find(|altered| altered.by.unproven == Unproven::Refuse);
        refusing.or_else(|| all.next_back()).map_or_else(By::default, |altered| altered.by)
    }

    /// The place of an edge's last alteration among the changes of bitmaps; after all of them if no action
    /// owns up to it.
    pub(super) fn altered_at(&self, place: &Place) -> usize {
        let mut all = self.altered.iter().filter(|altered| altered.place == *place);
        all.next_back().map_or(usize::MAX, |altered| position(altered.by.action))
    }
}
