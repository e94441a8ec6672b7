//! The order of sources on graphs by chance: against a naive walk of every way that a request can take,
//! and against what really ends.

use std::collections::BTreeSet;

use super::filter::{BeforeWrite, TestFilter};
use super::order::AnyOrder;
use super::schedule::{boxed, shuffled};
use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::class::Cut;
use crate::graph::snapshot::Graph;
use crate::graph::{ChildDecl, PermissionSet, Role};
use crate::io::sim::Random;
use crate::io::{Buf, BufMut, LocalFuture};
use crate::node::WriteFlags;

/// What a test graph is made of: how a node stands on those before it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Disk,
    Pass,
    CopyOnRead,
    BeforeWrite,
    Overlay,
    Stored,
    Job { is_proven: bool },
}

const KINDS: [Kind; 8] = [
    Kind::Disk,
    Kind::Pass,
    Kind::CopyOnRead,
    Kind::BeforeWrite,
    Kind::Overlay,
    Kind::Stored,
    Kind::Job { is_proven: true },
    Kind::Job { is_proven: false },
];

/// A graph by chance; permissions may refuse it.
fn scene_of(seed: u64) -> Scene {
    let mut random = Random::new(seed);
    let mut scene = Scene::default();
    let mut shown: Vec<String> = Vec::new();
    for at in 0..4 + random.below(6) {
        let name = format!("n{at}");
        let kind = KINDS[random.below(KINDS.len() as u64) as usize];
        let kind = if at < 2 { Kind::Disk } else { kind };
        let mut pick = || match shown.len() {
            0 => String::new(),
            count => shown[random.below(count as u64) as usize].clone(),
        };
        let (child, other) = (pick(), pick());
        scene = match kind {
            Kind::Disk => scene.disk(&name),
            Kind::Pass => {
                scene.node(&name, TestFilter::pausing(4, seed), vec![ChildDecl::filtered(child)])
            }
            Kind::CopyOnRead => scene.copy_on_read(&name, &child),
            Kind::BeforeWrite => {
                let children = vec![readable(&child), target(&other, PermissionSet::WRITE)];
                let filter = TestFilter::pausing(4, seed + 1).copying_before_writes();
                filter.before_write.iter().for_each(BeforeWrite::arm);
                scene.node(&name, filter, children)
            }
            Kind::Overlay => scene.overlay(&name, &child),
            Kind::Stored => {
                scene.node(&name, TestFilter::pausing(4, seed + 2), vec![ChildDecl::storage(child)])
            }
            Kind::Job { is_proven: true } => scene.proven_job(&name, &child, &other),
            Kind::Job { is_proven: false } => scene.job(&name, &child, &other),
        };
        if !matches!(kind, Kind::Job { .. }) {
            shown.push(name);
        }
    }
    let top = shown[shown.len() - 1].clone();
    scene.drive_that("vda", &top, random.below(2) == 0, true)
}

/// The relation by walking every way that a request can take, from its beginning on.
struct Naive<'g> {
    graph: &'g Graph,
    /// Nodes that a source's view depends on, by node.
    below: Vec<BTreeSet<usize>>,
    sources: BTreeSet<usize>,
    /// (held, needed), by node.
    pairs: BTreeSet<(usize, usize)>,
}

#[derive(Clone)]
struct Way {
    node: usize,
    is_change: bool,
    held: BTreeSet<usize>,
    /// Held before an opaque node was passed.
    elsewhere: BTreeSet<usize>,
    /// Of a proven write, as long as it passes filters: sources that it leaves alone.
    left_alone: Option<BTreeSet<usize>>,
}

impl<'g> Naive<'g> {
    fn of(graph: &'g Graph) -> Self {
        let mut below: Vec<BTreeSet<usize>> = Vec::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            let mut here = BTreeSet::from([at]);
            for edge in &node.edges {
                if !matches!(edge.role, Role::Source | Role::Target) {
                    here.extend(&below[edge.child]);
                }
            }
            below.push(here);
        }
        let reads =
            |edge: &&crate::graph::Edge| edge.grants.contains(PermissionSet::CONSISTENT_READ);
        let edges = graph.nodes.iter().flat_map(|node| &*node.edges);
        let sources = edges.filter(reads).map(|edge| edge.child).collect();
        let mut naive = Self { graph, below, sources, pairs: BTreeSet::new() };
        naive.walk_all();
        naive
    }

    /// Every driver may be called, for something that holds nothing yet.
    fn walk_all(&mut self) {
        for node in 0..self.graph.nodes.len() {
            let (held, elsewhere) = (BTreeSet::new(), BTreeSet::new());
            self.walk(&Way { node, is_change: false, held, elsewhere, left_alone: None });
        }
        let graph = self.graph;
        for root in graph.drives.iter().filter_map(|drive| drive.root.as_ref()) {
            if root.uses.contains(PermissionSet::WRITE) {
                let (node, held) = (root.child, self.entered(root.child, None));
                let elsewhere = BTreeSet::new();
                self.walk(&Way { node, is_change: true, held, elsewhere, left_alone: None });
            }
        }
    }

    /// Sources that a change enters at a node, coming from another one.
    fn entered(&self, child: usize, parent: Option<usize>) -> BTreeSet<usize> {
        let is_new = |source: &&usize| {
            self.below[**source].contains(&child)
                && parent.is_none_or(|parent| !self.below[**source].contains(&parent))
        };
        self.sources.iter().filter(is_new).copied().collect()
    }

    fn need(&mut self, way: &Way, needed: &BTreeSet<usize>) {
        for held in &way.held {
            let others = needed.iter().filter(|it| *it != held || way.elsewhere.contains(held));
            self.pairs.extend(others.map(|needed| (*held, *needed)));
        }
    }

    fn walk(&mut self, way: &Way) {
        let graph = self.graph;
        for edge in &graph.nodes[way.node].edges {
            let mut next =
                Way { node: edge.child, is_change: false, left_alone: None, ..way.clone() };
            if edge.role == Role::Storage {
                next.elsewhere.clone_from(&next.held);
            }
            self.walk(&next);
            let goes_on = match edge.role {
                Role::Filtered | Role::Data => way.is_change,
                Role::Storage | Role::Target => true,
                Role::Root | Role::Backing | Role::Source => false,
            };
            if edge.role.forwards_changes() {
                next.left_alone.clone_from(&way.left_alone);
            }
            let needed = match next.left_alone {
                Some(_) => PermissionSet::CHANGES,
                None => PermissionSet::WRITE,
            };
            if goes_on && !edge.uses.intersection(needed).is_empty() {
                let mut entered = self.entered(edge.child, Some(way.node));
                entered.retain(|it| next.left_alone.as_ref().is_none_or(|left| !left.contains(it)));
                self.need(&next, &entered);
                next.held.extend(entered);
                next.is_change = true;
                self.walk(&next);
            }
        }
        self.act(way);
    }

    fn act(&mut self, way: &Way) {
        let graph = self.graph;
        let node = &graph.nodes[way.node];
        for (from, read) in node.edges.iter().enumerate() {
            for write in &node.edges {
                let may_read = read.grants.contains(PermissionSet::CONSISTENT_READ);
                let may_change =
                    write.grants.contains(PermissionSet::WRITE) && write.proven_for.is_none();
                let (view, target) =
                    (graph.nodes[read.child].class(), graph.nodes[write.child].class());
                let may_prove = !write.grants.intersection(PermissionSet::CHANGES).is_empty()
                    && write.proven_for.is_none_or(|it| it == from)
                    && graph.views.is_at_or_above(view, target);
                if may_read && may_change {
                    self.operate(way, read.child, write.child, None);
                }
                if may_read && may_prove {
                    self.operate(way, read.child, write.child, Some(read.child));
                }
            }
        }
    }

    fn operate(&mut self, way: &Way, from: usize, to: usize, proven: Option<usize>) {
        let graph = self.graph;
        let class = proven.map(|view| graph.nodes[view].class());
        let reached = graph.views.reached(graph.nodes[to].class(), Cut { class, edge: None });
        let is_altered = |source: &usize| {
            let class = graph.nodes[*source].class();
            reached.ranged.contains(&class) || reached.whole.contains(&class)
        };
        let altered: BTreeSet<usize> =
            self.entered(to, None).into_iter().filter(is_altered).collect();
        // What filters below pass the write on to is written, too.
        let mut written = vec![to];
        while let Some(edge) = graph.nodes[written[written.len() - 1]]
            .edges
            .iter()
            .find(|edge| edge.role.forwards_changes())
        {
            written.push(edge.child);
        }
        let left_alone = proven.map(|_| {
            let shows = |source: &&usize| {
                written.iter().any(|node| self.below[**source].contains(node))
                    && !is_altered(source)
            };
            self.sources.iter().filter(shows).copied().collect::<BTreeSet<usize>>()
        });
        let mut needed = altered;
        needed.insert(from);
        self.need(way, &needed);
        let mut next = Way { left_alone: None, ..way.clone() };
        next.held.extend(needed);
        next.held.extend(left_alone.iter().flatten());
        for node in [from, to] {
            self.walk(&Way { node, is_change: false, ..next.clone() });
        }
        self.walk(&Way { node: to, is_change: true, left_alone, ..next });
    }

    fn has_cycle(&self) -> bool {
        let mut pairs = self.pairs.clone();
        loop {
            let longer: BTreeSet<(usize, usize)> = pairs
                .iter()
                .flat_map(|(a, b)| {
                    pairs.iter().filter(move |(c, _)| c == b).map(move |(_, d)| (*a, *d))
                })
                .collect();
            let count = pairs.len();
            pairs.extend(longer);
            if pairs.len() == count {
                return pairs.iter().any(|(a, b)| a == b);
            }
        }
    }
}

#[test]
fn exactly_the_graphs_with_a_ring_of_needs_are_refused() {
    let (mut refused, mut allowed) = (0, 0);
    for seed in 0..30_000 {
        let built = {
            let _any = AnyOrder::allowed();
            scene_of(seed).0.build()
        };
        let Ok(built) = built else { continue };
        let error = scene_of(seed).0.build().err();
        let expected = Naive::of(&built).has_cycle();
        assert_eq!(error.is_some(), expected, "seed {seed}: {error:?}");
        match error {
            Some(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            }
            None => allowed += 1,
        }
    }
    assert!(refused > 100 && allowed > 1000, "{refused} refused, {allowed} allowed");
}

/// Reads and writes of the drive, and copies of every node that acts, all in one place.
fn traffic(stage: &Stage, random: &mut Random) -> Vec<LocalFuture> {
    let graph = stage.cell.load();
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (stage, block, byte) = (stage.clone(), random.below(2), random.below(200) as u8);
        tasks.push(boxed(async move {
            let drive = stage.drive("vda");
            let _ = drive.read(block * BLOCK, BufMut::new(BLOCK as usize)).await;
            let data = Buf::copy_of(&[byte; BLOCK as usize]);
            let _ = drive.write(block * BLOCK, data, WriteFlags::NONE).await;
        }));
    }
    for node in graph.nodes.iter().filter(|node| node.origin.is_some()) {
        for _ in 0..3 {
            let mut pick = || random.below(node.edges.len() as u64) as usize;
            let ((from, to), name) = ((pick(), pick()), node.name().to_owned());
            let how = [CHANGED, UNCHANGED, UP][random.below(3) as usize];
            let (stage, block) = (stage.clone(), random.below(2));
            tasks.push(boxed(async move {
                // Most of what is picked is not permitted.
                let _ = stage.own(&name).copy(from, to, at(block), how).await;
            }));
        }
    }
    tasks
}

/// Whatever is let through ends, and not all that is refused would.
#[test]
fn what_is_not_refused_ends() {
    let (mut stuck, mut ended) = (0, 0);
    for seed in 0..8_000 {
        let is_allowed = scene_of(seed).0.build().is_ok();
        let _any = AnyOrder::allowed();
        if scene_of(seed).0.build().is_err() {
            continue;
        }
        for order in 0..if is_allowed { 2 } else { 20 } {
            let stage = Stage::of(scene_of(seed).0.build().expect("the same graph"));
            let mut random = Random::new(seed * 100 + order);
            let done = on_a_worker(async move {
                let tasks = traffic(&stage, &mut random);
                shuffled(order, tasks).await
            });
            match done {
                Ok(()) => ended += 1,
                Err(left) => {
                    stuck += 1;
                    assert!(!is_allowed, "seed {seed}, order {order}: {left} tasks are stuck");
                }
            }
        }
    }
    assert!(stuck > 0 && ended > 1000, "{stuck} stuck, {ended} ended");
}
