//! Graph changes by chance: what is asked of the core, and what it means in the model.

use super::super::{self as host, DriveDecl, User, Which};
use super::parts::{self, JOB_EDGES, Make, bitmap_id, job_name, node_name, probe_name};
use super::random::Random;
use super::run::{Run, bytes_of};
use super::scene::Scene;
use super::world::{
    Action, BitmapAction, BitmapId, DriveId, Graph, Memory, Node, NodeId, Orphans, Span, View,
};

/// Nodes at most: more make a case slow, and show no more.
const NODES_MAX: usize = 14;

/// What is asked of the core.
pub(super) enum Ask {
    Transact(Vec<host::Action>),
    AddBitmap(View),
    RemoveBitmap(BitmapId),
}

/// What it means in the model.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Do(Action),
    /// An edge that leads elsewhere. What shows that it may is found when it is done.
    Move {
        user: View,
        to: Option<NodeId>,
    },
    Resize {
        node: NodeId,
        len: usize,
    },
    Deallocate {
        node: NodeId,
        span: Span,
    },
}

pub(super) struct Plan {
    /// In words; the first one says what kind of change it is.
    pub(super) what: String,
    pub(super) ask: Ask,
    pub(super) steps: Vec<Step>,
    /// The scene as it is afterwards.
    pub(super) scene: Scene,
    /// It makes no sense: the core must refuse it.
    pub(super) is_nonsense: bool,
}

/// What is known of an edge that leads elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SameView {
    /// The host sees that nothing alters.
    Plain,
    /// The host sees no reason why nothing should alter.
    Unknown,
    /// It depends on what block status tells of zeros.
    Perhaps,
}

/// The node, and those below it that show its view for reasons that the host can see.
fn showing(graph: &Graph, top: NodeId) -> Vec<NodeId> {
    let below = |node: &NodeId| match graph.node(*node)? {
        Node::Filter { child } => Some(*child),
        Node::Memory(overlay) if overlay.is_unallocated() => {
            overlay.backing().filter(|backing| graph.len(*backing) == overlay.len())
        }
        _ => None,
    };
    std::iter::successors(Some(top), below).collect()
}

/// Whether an overlay shows the same on a node below its backing: what lies between has nothing there.
fn is_passed(graph: &Graph, overlay: &Memory, base: NodeId) -> bool {
    let (mut between, mut below) = (Vec::new(), overlay.backing());
    while below != Some(base) {
        below = match below.and_then(|node| graph.node(node)) {
            Some(Node::Filter { child }) => Some(*child),
            Some(Node::Memory(memory)) => {
                between.push(memory);
                memory.backing()
            }
            _ => return false,
        };
    }
    let end = graph.len(base);
    let passes = |at: usize| {
        let stop = between.iter().find(|memory| at >= memory.len() || memory.is_allocated(at));
        stop.is_none_or(|memory| at >= memory.len() && at >= end)
    };
    (0..overlay.len()).filter(|at| !overlay.is_allocated(*at)).all(passes)
}

impl Plan {
    /// The words that say what kind of change it is, without names.
    pub(super) fn kind(&self) -> String {
        let is_word = |word: &&str| word.chars().all(|letter| letter.is_ascii_alphabetic());
        let words: Vec<&str> = self.what.split(' ').take(2).take_while(is_word).collect();
        words.join(" ")
    }
}

impl Run {
    /// Whether a user's view stays what it is if it uses `to` from now on.
    pub(super) fn same_view(&self, user: View, to: Option<NodeId>) -> SameView {
        let graph = self.world.graph();
        if let (Some(was), Some(to)) = (graph.used_by(user), to) {
            let was = showing(graph, was);
            if showing(graph, to).iter().any(|node| was.contains(node)) {
                return SameView::Plain;
            }
        }
        let View::Node(node) = user else { return SameView::Unknown };
        let Some(Node::Memory(overlay)) = graph.node(node) else { return SameView::Unknown };
        let mut bare = (0..overlay.len()).filter(|at| !overlay.is_allocated(*at)).peekable();
        if bare.peek().is_none() || to.is_some_and(|to| is_passed(graph, overlay, to)) {
            return SameView::Plain;
        }
        let bytes = graph.bytes(user);
        match to.is_none() && bare.all(|at| bytes[at] == 0) {
            true => SameView::Perhaps,
            false => SameView::Unknown,
        }
    }

    /// A change that may or may not be possible; `None` if chance has found none.
    pub(super) fn plan(&mut self, random: &mut Random) -> Option<Plan> {
        match random.below(20) {
            0 | 1 => self.insert_above(random),
            2 => self.insert_below(random),
            3 | 4 => self.remove_filter(random),
            5 | 6 => self.snapshot(random),
            7 => self.set_root(random),
            8 => self.replace(random),
            9 => self.medium(random),
            10 => self.add_node(random),
            11 | 12 => self.remove_node(random),
            13 => self.add_or_remove_drive(random),
            14 => self.set_backing(random),
            15 | 16 => self.resize(random),
            17 => self.deallocate(random),
            _ => self.add_or_remove_bitmap(random),
        }
    }

    fn planned(&self, what: String, ask: Vec<host::Action>, steps: Vec<Step>) -> Plan {
        let (ask, scene) = (Ask::Transact(ask), self.scene.clone());
        Plan { what, ask, steps, scene, is_nonsense: false }
    }

    fn any(&self, random: &mut Random) -> NodeId {
        let nodes: Vec<NodeId> = self.world.graph().nodes().map(|(node, _)| node).collect();
        random.pick(&nodes).unwrap_or(NodeId(1))
    }

    fn any_of(&self, random: &mut Random, fits: impl Fn(NodeId, &Node) -> bool) -> Option<NodeId> {
        let nodes = self.world.graph().nodes().filter(|(id, node)| fits(*id, node));
        random.pick(&nodes.map(|(id, _)| id).collect::<Vec<_>>())
    }

    fn has_room(&self) -> bool {
        self.world.graph().nodes().count() < NODES_MAX
    }

    fn new_node(&mut self) -> NodeId {
        self.scene.last_node += 1;
        NodeId(self.scene.last_node)
    }

    /// Whether a filter on it can copy on read: what it shows is a disk's.
    fn is_disk(&self, node: NodeId) -> bool {
        let graph = self.world.graph();
        matches!(graph.node(graph.class(node)), Some(Node::Memory(_)))
    }

    fn new_filter(
        &mut self,
        random: &mut Random,
        child: NodeId,
    ) -> (NodeId, host::NodeDecl, Scene) {
        let copies = self.is_disk(child) && random.one_in(4);
        let id = self.new_node();
        let mut scene = self.scene.clone();
        if copies {
            scene.copiers.insert(id);
        }
        (id, parts::filter(id, child, copies, &self.control), scene)
    }

    fn insert_above(&mut self, random: &mut Random) -> Option<Plan> {
        let node = self.any(random);
        if !self.has_room() {
            return None;
        }
        let (id, filter, mut scene) = self.new_filter(random, node);
        let mut users = Vec::new();
        let mut steps = vec![Step::Do(Action::AddNode(id, Node::Filter { child: node }))];
        for user in self.world.graph().users(node) {
            if random.one_in(4) {
                continue;
            }
            users.push(match user {
                View::Drive(drive) => User::Drive(drive.to_string()),
                View::Node(parent) => self.user(parent),
            });
            steps.push(Step::Move { user, to: Some(id) });
        }
        for (at, job) in scene.jobs.iter_mut().enumerate() {
            let edges = [&mut job.from, &mut job.beside, &mut job.to].into_iter().zip(JOB_EDGES);
            for (child, edge) in edges {
                if *child == node && random.one_in(2) {
                    *child = id;
                    users.push(User::Node { node: job_name(at), edge: edge.into() });
                }
            }
        }
        let what = format!("insert above {node}: {id} for {users:?}");
        let users = Which::These(users);
        let mut ask = vec![
            host::Action::InsertAbove { node: node_name(node), filter, users },
            host::Action::AddDrive(parts::probe(id)),
        ];
        let is_nonsense = random.one_in(6);
        if is_nonsense {
            ask.push(host::Action::RemoveNode { node: "nobody".into() });
        }
        Some(Plan { scene, is_nonsense, ..self.planned(what, ask, steps) })
    }

    /// The edge of a parent to what it shows.
    fn user(&self, parent: NodeId) -> User {
        User::Node { node: node_name(parent), edge: self.edge(parent).into() }
    }

    fn edge(&self, parent: NodeId) -> &'static str {
        match self.world.graph().node(parent) {
            Some(Node::Memory(_)) => "backing",
            _ => "file",
        }
    }

    fn insert_below(&mut self, random: &mut Random) -> Option<Plan> {
        let parent = self.any(random);
        let child = self.world.graph().child(parent)?;
        if !self.has_room() {
            return None;
        }
        let (id, filter, scene) = self.new_filter(random, child);
        let steps = vec![
            Step::Do(Action::AddNode(id, Node::Filter { child })),
            Step::Move { user: View::Node(parent), to: Some(id) },
        ];
        let (node, edge) = (node_name(parent), self.edge(parent).into());
        let ask = vec![
            host::Action::InsertBelow { node, edge, filter },
            host::Action::AddDrive(parts::probe(id)),
        ];
        let what = format!("insert below {parent}: {id}");
        Some(Plan { scene, ..self.planned(what, ask, steps) })
    }

    fn remove_filter(&mut self, random: &mut Random) -> Option<Plan> {
        let filter = self.any_of(random, |_, node| matches!(node, Node::Filter { .. }))?;
        let child = self.world.graph().child(filter)?;
        let users = self.world.graph().users(filter);
        let moves = users.into_iter().map(|user| Step::Move { user, to: Some(child) });
        let mut steps: Vec<Step> = moves.collect();
        steps.push(Step::Do(Action::RemoveNode(filter, Orphans::MoveToChild)));
        let ask = vec![
            host::Action::RemoveDrive { drive: probe_name(filter) },
            host::Action::RemoveFilter { node: node_name(filter) },
        ];
        let mut scene = self.scene.clone();
        scene.copiers.remove(&filter);
        scene.move_jobs(filter, child);
        Some(Plan { scene, ..self.planned(format!("remove filter {filter}"), ask, steps) })
    }

    fn new_disk(&mut self, random: &mut Random, usual_len: usize) -> (NodeId, usize, usize) {
        let len = if random.one_in(4) { random.between(1, 12) * 4 } else { usual_len };
        let cluster = match self.scene.is_coarse {
            true => random.pick(&[1, 2, 4]).unwrap_or(1),
            false => 1,
        };
        (self.new_node(), len, cluster)
    }

    fn snapshot(&mut self, random: &mut Random) -> Option<Plan> {
        let drive = random.pick(&self.drives())?;
        if !self.has_room() {
            return None;
        }
        let len = self.len(drive.root);
        let (id, len, cluster) = self.new_disk(random, len.next_multiple_of(4));
        let make = Make { len, cluster, is_overlay: true, is_image: self.scene.has_images };
        let mut nodes = parts::disk(id, make, Some(drive.root), &self.control).ok()?;
        let overlay = nodes.pop()?;
        let memory = Memory::overlay(len, cluster, Some(drive.root));
        let steps = vec![
            Step::Do(Action::AddNode(id, Node::Memory(memory))),
            Step::Move { user: View::Drive(drive.id), to: Some(id) },
        ];
        let mut ask: Vec<host::Action> = nodes.into_iter().map(host::Action::AddNode).collect();
        ask.push(host::Action::Snapshot { drive: drive.id.to_string(), overlay });
        ask.push(host::Action::AddDrive(parts::probe(id)));
        Some(self.planned(format!("snapshot of {}: {id}", drive.id), ask, steps))
    }

    fn set_root(&mut self, random: &mut Random) -> Option<Plan> {
        let (drive, to) = (random.pick(&self.drives())?, self.any(random));
        let steps = vec![Step::Move { user: View::Drive(drive.id), to: Some(to) }];
        let (id, node) = (drive.id.to_string(), node_name(to));
        let ask = vec![host::Action::SetRoot { drive: id, node }];
        let what = format!("set root of {} to {to}", drive.id);
        (drive.root != to).then(|| self.planned(what, ask, steps))
    }

    fn replace(&mut self, random: &mut Random) -> Option<Plan> {
        let (node, by) = (self.any(random), self.any(random));
        // A filter that copies on read is to stand on a disk.
        if node == by || !self.is_disk(by) {
            return None;
        }
        let graph = self.world.graph();
        let below = graph.path(by);
        let is_above = |user: &View| !matches!(user, View::Node(node) if below.contains(node));
        let users = graph.users(node).into_iter().filter(is_above);
        let steps = users.map(|user| Step::Move { user, to: Some(by) }).collect();
        let ask = vec![
            host::Action::Replace { node: node_name(node), by: node_name(by) },
            // The case's own drive stays where it was.
            host::Action::SetRoot { drive: probe_name(node), node: node_name(node) },
        ];
        let mut scene = self.scene.clone();
        scene.move_jobs(node, by);
        Some(Plan { scene, ..self.planned(format!("replace {node} by {by}"), ask, steps) })
    }

    fn medium(&mut self, random: &mut Random) -> Option<Plan> {
        let id = random.pick(&self.scene.drives)?.id;
        let (drive, user) = (id.to_string(), View::Drive(id));
        if self.world.graph().top(user).is_some() {
            let steps = vec![Step::Move { user, to: None }];
            let ask = vec![host::Action::EjectMedium { drive }];
            return Some(self.planned(format!("eject {id}"), ask, steps));
        }
        let to = self.any(random);
        let steps = vec![Step::Move { user, to: Some(to) }];
        let ask = vec![host::Action::InsertMedium { drive, node: node_name(to) }];
        Some(self.planned(format!("insert medium {to} in {id}"), ask, steps))
    }

    fn add_node(&mut self, random: &mut Random) -> Option<Plan> {
        let backing = (!random.one_in(3)).then(|| self.any(random));
        if !self.has_room() {
            return None;
        }
        let usual = backing.map_or(16, |backing| self.len(backing).next_multiple_of(4));
        let (id, len, cluster) = self.new_disk(random, usual);
        let is_overlay = backing.is_some() || random.one_in(2);
        let memory = match is_overlay {
            true => Memory::overlay(len, cluster, backing),
            false => Memory::full(vec![0; len], cluster),
        };
        let make = Make { len, cluster, is_overlay, is_image: self.scene.has_images };
        let nodes = parts::disk(id, make, backing, &self.control).ok()?;
        let mut ask: Vec<host::Action> = nodes.into_iter().map(host::Action::AddNode).collect();
        ask.push(host::Action::AddDrive(parts::probe(id)));
        let steps = vec![Step::Do(Action::AddNode(id, Node::Memory(memory)))];
        Some(self.planned(format!("add node {id}"), ask, steps))
    }

    fn remove_node(&mut self, random: &mut Random) -> Option<Plan> {
        let graph = self.world.graph();
        // One is left, for others to stand on.
        if graph.nodes().count() < 2 {
            return None;
        }
        let node = self.any_of(random, |id, _| graph.users(id).is_empty())?;
        let bitmap = self.world.bitmaps().find(|(_, bitmap)| bitmap.scope == View::Node(node));
        if let Some((id, _)) = bitmap {
            return Some(self.removal_of_bitmap(id));
        }
        let steps = vec![Step::Do(Action::RemoveNode(node, Orphans::Refuse))];
        let ask = vec![
            host::Action::RemoveDrive { drive: probe_name(node) },
            host::Action::RemoveNode { node: node_name(node) },
        ];
        let mut scene = self.scene.clone();
        scene.copiers.remove(&node);
        Some(Plan { scene, ..self.planned(format!("remove node {node}"), ask, steps) })
    }

    fn add_or_remove_drive(&mut self, random: &mut Random) -> Option<Plan> {
        let drives = &self.scene.drives;
        if drives.len() > 2 {
            let id = random.pick(drives)?.id;
            let bitmap = self.world.bitmaps().find(|(_, bitmap)| bitmap.scope == View::Drive(id));
            if let Some((id, _)) = bitmap {
                return Some(self.removal_of_bitmap(id));
            }
            let steps = vec![Step::Do(Action::RemoveDrive(id))];
            let ask = vec![host::Action::RemoveDrive { drive: id.to_string() }];
            let mut scene = self.scene.clone();
            scene.drives.retain(|drive| drive.id != id);
            return Some(Plan { scene, ..self.planned(format!("remove drive {id}"), ask, steps) });
        }
        self.scene.last_drive += 1;
        let (id, root) = (DriveId(self.scene.last_drive), self.any(random));
        let steps = vec![Step::Do(Action::AddDrive(id, Some(root)))];
        let (is_writable, only_shows) =
            if random.one_in(2) { (true, false) } else { (false, true) };
        let (name, node) = (id.to_string(), Some(node_name(root)));
        let drive = DriveDecl { id: name, root: node, writable: is_writable, only_shows };
        let ask = vec![host::Action::AddDrive(drive)];
        let mut scene = self.scene.clone();
        scene.drives.push(super::scene::Drive { id, root, is_writable, only_shows });
        Some(Plan { scene, ..self.planned(format!("add drive {id} on {root}"), ask, steps) })
    }

    /// Another backing, or none.
    fn set_backing(&mut self, random: &mut Random) -> Option<Plan> {
        let is_overlay =
            |_, node: &Node| matches!(node, Node::Memory(memory) if memory.backing().is_some());
        let node = self.any_of(random, is_overlay)?;
        let graph = self.world.graph();
        let is_apart = |id: NodeId, _: &Node| !graph.path(id).contains(&node);
        let to = match random.one_in(3) {
            true => None,
            false => Some(self.any_of(random, is_apart)?),
        };
        if to == graph.child(node) {
            return None;
        }
        let steps = vec![Step::Move { user: View::Node(node), to }];
        let (name, edge, child) = (node_name(node), "backing".into(), to.map(node_name));
        let ask = vec![host::Action::SetChild { node: name, edge, child }];
        Some(self.planned(format!("set backing of {node} to {to:?}"), ask, steps))
    }

    fn resize(&mut self, random: &mut Random) -> Option<Plan> {
        let node = self.any_of(random, |_, node| matches!(node, Node::Memory(_)))?;
        let len = random.between(1, 12) * 4;
        let (name, size_bytes) = (node_name(node), bytes_of(Span::whole(len)).end);
        let ask = vec![host::Action::Resize { node: name, size_bytes }];
        let what = format!("resize {node} from {} to {len}", self.len(node));
        let steps = vec![Step::Resize { node, len }];
        (len != self.len(node)).then(|| self.planned(what, ask, steps))
    }

    fn deallocate(&mut self, random: &mut Random) -> Option<Plan> {
        let is_overlay =
            |_, node: &Node| matches!(node, Node::Memory(memory) if memory.backing().is_some());
        let node = self.any_of(random, is_overlay)?;
        let span = self.span(random, self.len(node)).rounded_out(4);
        let (name, range) = (node_name(node), bytes_of(span));
        let ask = vec![host::Action::Deallocate { node: name, range }];
        let steps = vec![Step::Deallocate { node, span }];
        Some(self.planned(format!("deallocate {span} of {node}"), ask, steps))
    }

    fn removal_of_bitmap(&self, id: BitmapId) -> Plan {
        let steps = vec![Step::Do(Action::Bitmap(BitmapAction::Remove(id)))];
        let what = format!("remove bitmap {id}");
        Plan { ask: Ask::RemoveBitmap(id), ..self.planned(what, Vec::new(), steps) }
    }

    fn add_or_remove_bitmap(&mut self, random: &mut Random) -> Option<Plan> {
        let nodes = self.world.graph().nodes().map(|(node, _)| View::Node(node));
        let drives = self.scene.drives.iter().map(|drive| View::Drive(drive.id));
        // Where one has been already, it may be elsewhere by now: there is none again then.
        let is_free = |view: &View| {
            let id = BitmapId(bitmap_id(*view));
            self.world.bitmap(id).is_none() && self.world.graph().top(*view).is_some()
        };
        let free: Vec<View> = nodes.chain(drives).filter(is_free).collect();
        if let (Some(scope), false) = (random.pick(&free), random.one_in(4)) {
            let (id, granularity) = (BitmapId(bitmap_id(scope)), self.scene.granularity);
            let add = BitmapAction::Add { id, scope, granularity, enabled: true };
            let steps = vec![Step::Do(Action::Bitmap(add))];
            let what = format!("add bitmap {id} to {scope}");
            return Some(Plan {
                ask: Ask::AddBitmap(scope),
                ..self.planned(what, Vec::new(), steps)
            });
        }
        let ids: Vec<BitmapId> = self.world.bitmaps().map(|(id, _)| id).collect();
        random.pick(&ids).map(|id| self.removal_of_bitmap(id))
    }
}

impl Scene {
    /// Jobs that use a node use another one from now on.
    fn move_jobs(&mut self, from: NodeId, to: NodeId) {
        for job in &mut self.jobs {
            for child in [&mut job.from, &mut job.beside, &mut job.to] {
                if *child == from {
                    *child = to;
                }
            }
        }
    }
}
