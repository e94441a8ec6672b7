//! Scenes by chance: one graph, built for the real core and for the model.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::{ChildDecl, DriveDecl, GraphCell, GraphDecl, NodeDecl, PermissionSet, Role};
use super::SECTOR;
use super::disk::Control;
use super::parts::{self, DRIVE_BITMAPS, JOB_EDGES, Make, job_name, node_name};
use super::random::Random;
use super::world::{
    Action, BitmapAction, BitmapId, DriveId, Memory, Node, NodeId, Span, Unproven, View, World,
};
use crate::error::Result;
use crate::graph::testing::JobNode;
use crate::node::RawNode;

/// Nodes on one path at most.
const DEPTH_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Disk { len: usize, cluster: usize, backing: Option<NodeId>, is_overlay: bool },
    Filter { child: NodeId, copies_on_read: bool },
    Opaque { child: NodeId, window: Span },
}

#[derive(Clone, Copy, Debug)]
struct Place {
    id: NodeId,
    kind: Kind,
    len: usize,
    depth: usize,
    /// What its class stands on is a disk with a backing: a filter can copy into it.
    is_on_overlay: bool,
    /// Reading it may copy.
    copies_on_read: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    pub(super) id: DriveId,
    pub(super) root: NodeId,
    pub(super) is_writable: bool,
    pub(super) only_shows: bool,
}

/// A node that copies from the first to the last of these. What it writes is proven for the first,
/// or may be any change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) from: NodeId,
    pub(super) beside: NodeId,
    pub(super) to: NodeId,
    pub(super) is_proven: bool,
}

/// A graph before it is built, and what the model does not know of it afterwards.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    /// As they are at the beginning.
    nodes: Vec<Place>,
    /// Filters that copy on read.
    pub(super) copiers: BTreeSet<NodeId>,
    /// Numbers given out, which are not given again.
    pub(super) last_node: u32,
    pub(super) last_drive: u32,
    pub(super) drives: Vec<Drive>,
    pub(super) jobs: Vec<Job>,
    pub(super) granularity: usize,
    /// There are clusters to fill.
    pub(super) is_coarse: bool,
    /// Overlays are images.
    pub(super) has_images: bool,
}

impl Scene {
    fn place(&self, node: NodeId) -> Place {
        self.nodes[node.0 as usize - 1]
    }

    /// One whose permissions admit it, in both worlds.
    pub(super) fn build(random: &mut Random, control: &Arc<Control>) -> (Self, GraphCell, World) {
        let mut scene = Self::by_chance(random);
        let mut refused = None;
        for _ in 0..100 {
            match scene.real(control) {
                Ok(cell) => {
                    let world = scene.model();
                    scene.note();
                    return (scene, cell, world);
                }
                Err(error) => refused = Some(error),
            }
            scene.weaken(random);
        }
        panic!("the weakest scene is refused: {refused:?}");
    }

    fn by_chance(random: &mut Random) -> Self {
        let is_coarse = random.one_in(4);
        let granularity = random.pick(&[1, 2, 4]).unwrap_or(2);
        let mut scene = Self { granularity, is_coarse, ..Self::default() };
        let len = random.between(4, 10) * 4;
        for at in 0..random.between(2, 12) {
            scene.add_node(random, (at as u32) + 1, len, is_coarse);
        }
        for at in 0..random.between(1, 3) {
            let id = DriveId(at as u32 + 1);
            // The last nodes are the tops, mostly.
            let root = scene.near_the_top(random);
            scene.drives.push(Drive { id, root, is_writable: true, only_shows: false });
        }
        for _ in 0..random.between(0, 3) {
            let (from, beside) = (scene.near_the_top(random), scene.any_node(random));
            // A job is of use if it writes below what it reads.
            let below = scene.path(from);
            let below = random.pick(&below).unwrap_or(from);
            let to = if random.one_in(6) { scene.any_node(random) } else { below };
            let is_proven = !random.one_in(3);
            scene.jobs.push(Job { from, beside, to, is_proven });
        }
        scene.has_images = random.one_in(3);
        scene
    }

    fn note(&mut self) {
        let copies =
            |place: &&Place| matches!(place.kind, Kind::Filter { copies_on_read: true, .. });
        self.copiers = self.nodes.iter().filter(copies).map(|place| place.id).collect();
        self.last_node = self.nodes.len() as u32;
        self.last_drive = self.drives.len() as u32;
    }

    fn any_node(&self, random: &mut Random) -> NodeId {
        self.nodes[random.below(self.nodes.len())].id
    }

    fn near_the_top(&self, random: &mut Random) -> NodeId {
        let count = self.nodes.len();
        self.nodes[count - 1 - random.below(count.min(4))].id
    }

    fn child(&self, node: NodeId) -> Option<NodeId> {
        match self.place(node).kind {
            Kind::Disk { backing, .. } => backing,
            Kind::Filter { child, .. } | Kind::Opaque { child, .. } => Some(child),
        }
    }

    fn path(&self, top: NodeId) -> Vec<NodeId> {
        std::iter::successors(Some(top), |node| self.child(*node)).collect()
    }

    fn add_node(&mut self, random: &mut Random, id: u32, usual_len: usize, is_coarse: bool) {
        let cluster = |random: &mut Random| match is_coarse {
            true => random.pick(&[1, 2, 4]).unwrap_or(1),
            false => 1,
        };
        let children: Vec<Place> =
            self.nodes.iter().copied().filter(|node| node.depth < DEPTH_MAX).collect();
        // Mostly the last one: chains, not bushes.
        let child = match random.one_in(3) {
            true => random.pick(&children),
            false => children.last().copied(),
        };
        let (id, choice) = (NodeId(id), random.below(12));
        let kind = match (child, choice) {
            (None, _) | (_, 0) => Kind::Disk {
                len: usual_len,
                cluster: cluster(random),
                backing: None,
                is_overlay: random.one_in(4),
            },
            (Some(child), 1..=4) => {
                let copies_on_read = child.is_on_overlay && random.one_in(2);
                Kind::Filter { child: child.id, copies_on_read }
            }
            (Some(child), 5) if child.len > 1 => {
                let start = random.below(child.len / 2 + 1);
                let len = random.between(1, child.len - start);
                Kind::Opaque { child: child.id, window: Span::at(start, len) }
            }
            (Some(child), _) => {
                let len = match random.one_in(4) {
                    true => random.between(1, 12) * 4,
                    false => usual_len,
                };
                let backing = Some(child.id);
                Kind::Disk { len, cluster: cluster(random), backing, is_overlay: true }
            }
        };
        self.nodes.push(self.new_place(id, kind));
    }

    fn new_place(&self, id: NodeId, kind: Kind) -> Place {
        let below = |child: NodeId| self.place(child);
        match kind {
            Kind::Disk { len, backing, .. } => Place {
                id,
                kind,
                len,
                depth: backing.map_or(0, |backing| below(backing).depth) + 1,
                is_on_overlay: backing.is_some(),
                copies_on_read: backing.is_some_and(|backing| below(backing).copies_on_read),
            },
            Kind::Filter { child, copies_on_read } => {
                let child = below(child);
                let copies_on_read = copies_on_read || child.copies_on_read;
                Place { id, kind, depth: child.depth + 1, copies_on_read, ..child }
            }
            Kind::Opaque { child, window } => {
                let child = below(child);
                let (depth, len) = (child.depth + 1, window.len());
                Place { id, kind, len, depth, is_on_overlay: false, ..child }
            }
        }
    }

    /// Takes something away that permissions may stumble over.
    fn weaken(&mut self, random: &mut Random) {
        let strong: Vec<usize> =
            (0..self.drives.len()).filter(|at| !self.drives[*at].only_shows).collect();
        match (random.pick(&strong), self.jobs.is_empty()) {
            (Some(_), false) if random.one_in(2) => {
                self.jobs.pop();
            }
            (Some(at), _) => {
                (self.drives[at].is_writable, self.drives[at].only_shows) = (false, true);
            }
            (None, false) => {
                self.jobs.pop();
            }
            (None, true) => {
                // A copy-on-read filter beside others: it becomes one that does nothing.
                let filters = self.nodes.iter_mut().rev().filter_map(|node| match &mut node.kind {
                    Kind::Filter { copies_on_read, .. } if *copies_on_read => Some(copies_on_read),
                    _ => None,
                });
                if let Some(filter) = filters.take(1).next() {
                    *filter = false;
                }
                let kinds: Vec<_> = self.nodes.iter().map(|node| (node.id, node.kind)).collect();
                self.nodes.clear();
                for (id, kind) in kinds {
                    self.nodes.push(self.new_place(id, kind));
                }
            }
        }
    }

    fn real(&self, control: &Arc<Control>) -> Result<GraphCell> {
        let mut decl = GraphDecl::default();
        for node in &self.nodes {
            decl.nodes.push(match node.kind {
                Kind::Disk { len, cluster, backing, is_overlay } => {
                    let is_image = self.has_images;
                    let make = Make { len, cluster, is_overlay, is_image };
                    decl.nodes.extend(parts::disk(node.id, make, backing, control)?);
                    decl.drives.push(parts::probe(node.id));
                    decl.bitmaps.push(parts::bitmap(View::Node(node.id), self.granularity));
                    continue;
                }
                Kind::Filter { child, copies_on_read } => {
                    parts::filter(node.id, child, copies_on_read, control)
                }
                Kind::Opaque { child, window } => {
                    let size_bytes = Some(window.len() as u64 * SECTOR);
                    let raw = RawNode::new(window.start as u64 * SECTOR, size_bytes);
                    let children = vec![ChildDecl::storage(node_name(child))];
                    NodeDecl { name: node_name(node.id), driver: Arc::new(raw), children }
                }
            });
            decl.drives.push(parts::probe(node.id));
            decl.bitmaps.push(parts::bitmap(View::Node(node.id), self.granularity));
        }
        for (at, job) in self.jobs.iter().enumerate() {
            let edge = |name: &str, node, role, grants, proven_for| {
                let (name, node) = (name.into(), node_name(node));
                ChildDecl { name, node, role, grants, proven_for }
            };
            let read = PermissionSet::CONSISTENT_READ;
            let proven_for = job.is_proven.then(|| "from".into());
            let [from, beside, to] = JOB_EDGES;
            let children = vec![
                edge(from, job.from, Role::Source, read, None),
                edge(beside, job.beside, Role::Source, read, None),
                edge(to, job.to, Role::Target, PermissionSet::WRITE, proven_for),
            ];
            decl.nodes.push(NodeDecl { name: job_name(at), driver: Arc::new(JobNode), children });
        }
        for drive in &self.drives {
            let (id, root) = (drive.id.to_string(), Some(node_name(drive.root)));
            let (writable, only_shows) = (drive.is_writable, drive.only_shows);
            decl.drives.push(DriveDecl { id, root, writable, only_shows });
            decl.bitmaps.push(parts::bitmap(View::Drive(drive.id), self.granularity));
        }
        decl.build().map(GraphCell::new)
    }

    fn model(&self) -> World {
        let mut actions = Vec::new();
        let mut bitmaps = Vec::new();
        let mut bitmap = |id, scope| {
            let (id, granularity, enabled) = (BitmapId(id), self.granularity, true);
            bitmaps.push(Action::Bitmap(BitmapAction::Add { id, scope, granularity, enabled }));
        };
        for node in &self.nodes {
            let made = match node.kind {
                Kind::Disk { len, cluster, is_overlay: false, .. } => {
                    Node::Memory(Memory::full(vec![0; len], cluster))
                }
                Kind::Disk { len, cluster, backing, .. } => {
                    Node::Memory(Memory::overlay(len, cluster, backing))
                }
                Kind::Filter { child, .. } => Node::Filter { child },
                Kind::Opaque { child, window } => Node::Opaque { child, window, key: 0 },
            };
            actions.push(Action::AddNode(node.id, made));
            bitmap(node.id.0, View::Node(node.id));
        }
        for drive in &self.drives {
            actions.push(Action::AddDrive(drive.id, Some(drive.root)));
            bitmap(DRIVE_BITMAPS + drive.id.0, View::Drive(drive.id));
        }
        actions.append(&mut bitmaps);
        let mut world = World::new();
        world.transact(&actions, Unproven::Refuse).expect("a graph that the core has built");
        world
    }
}
