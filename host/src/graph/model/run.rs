//! One case: the real core and the model, side by side, and the comparison after each step.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::super::{LocalDrive, LocalGraph, OwnAccord, ProvenBuf};
use super::SECTOR;
use super::disk::{Control, Landed, sectors};
use super::parts::{bitmap_name, job_name, probe_name};
use super::random::Random;
use super::scene::{Drive, Scene};
use super::world::{
    BitmapId, GranuleSet, Node, NodeId, Outcome, Part, Refusal, Span, View, WatchId, World,
};
use crate::bitmap::{Bitmap, BitmapState};
use crate::error::{Error, ErrorKind, Result as HostResult};
use crate::graph::testing::turn;
use crate::io::{BufMut, spawn};

/// What is wrong, in words.
pub(super) type Verdict = Result<(), String>;

/// What a job has read, and may claim later.
pub(super) struct Kept {
    pub(super) bytes: ProvenBuf,
    pub(super) watch: WatchId,
    pub(super) node: NodeId,
}

pub(super) struct Run {
    pub(super) graph: Rc<LocalGraph>,
    pub(super) world: World,
    pub(super) scene: Scene,
    pub(super) control: Arc<Control>,
    pub(super) kept: Vec<Kept>,
    /// What the last step was, for the message.
    pub(super) step: String,
    pub(super) changes: Changes,
    /// So many quarters of what a driver is to do land before it fails.
    pub(super) failing: Option<usize>,
}

/// What graph changes came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// Applied, by kind.
    pub(super) applied: BTreeMap<String, usize>,
    pub(super) refused: usize,
}

impl Changes {
    pub(super) fn add(&mut self, other: Self) {
        for (kind, count) in other.applied {
            *self.applied.entry(kind).or_default() += count;
        }
        self.refused += other.refused;
    }

    /// One more that was done.
    pub(super) fn count(&mut self, kind: &str) {
        *self.applied.entry(kind.to_owned()).or_default() += 1;
    }
}

/// Lets every task run as far as it can.
pub(super) async fn quiet() {
    for _ in 0..48 {
        turn().await;
    }
}

/// A task of its own, and what came of it.
pub(super) struct Started<T>(Rc<Cell<Option<T>>>);

pub(super) fn start<T: 'static>(task: impl Future<Output = T> + 'static) -> Started<T> {
    let slot = Rc::new(Cell::new(None));
    let filled = Rc::clone(&slot);
    spawn(async move { filled.set(Some(task.await)) });
    Started(slot)
}

/// The same for somebody who may go away: the future is dropped then.
pub(super) fn start_for_a_user<T: 'static>(
    task: impl Future<Output = T> + 'static,
) -> (Started<T>, Rc<Cell<bool>>) {
    let slot = Rc::new(Cell::new(None));
    let (filled, user) = (Rc::clone(&slot), Rc::new(Cell::new(true)));
    let is_there = Rc::clone(&user);
    let mut task = Box::pin(task);
    spawn(async move {
        // What is held comes back at each turn.
        let ended = poll_fn(move |cx| match is_there.get() {
            true => task.as_mut().poll(cx).map(Some),
            false => Poll::Ready(None),
        });
        filled.set(ended.await);
    });
    (Started(slot), user)
}

impl<T> Started<T> {
    pub(super) fn take(&self) -> Option<T> {
        self.0.take()
    }

    pub(super) async fn end(&self) -> Result<T, String> {
        for _ in 0..10_000 {
            if let Some(value) = self.0.take() {
                return Ok(value);
            }
            turn().await;
        }
        Err("a request does not end".to_owned())
    }
}

pub(super) fn bytes_of(span: Span) -> std::ops::Range<u64> {
    span.start as u64 * SECTOR..span.end as u64 * SECTOR
}

/// What is said of a result, without its details.
pub(super) fn kind_of<T>(result: &HostResult<T>) -> Option<ErrorKind> {
    result.as_ref().err().map(Error::kind)
}

impl Run {
    pub(super) fn new(scene_seed: u64) -> Self {
        let control = Arc::new(Control::default());
        let mut random = Random::new(scene_seed);
        let (scene, cell, world) = Scene::build(&mut random, &control);
        let graph = Rc::new(LocalGraph::new(Arc::new(cell), 0));
        Self {
            graph,
            world,
            scene,
            control,
            kept: Vec::new(),
            step: String::new(),
            changes: Changes::default(),
            failing: None,
        }
    }

    pub(super) fn drive(&self, id: &str) -> LocalDrive {
        LocalDrive::open(&self.graph, id).expect("a drive of the scene")
    }

    pub(super) fn job(&self, job: usize) -> OwnAccord {
        OwnAccord::open(&self.graph, &job_name(job)).expect("a job of the scene")
    }

    pub(super) fn len(&self, node: NodeId) -> usize {
        self.world.graph().len(node)
    }

    /// Whether reading it may copy.
    pub(super) fn copies_on_read(&self, node: NodeId) -> bool {
        let path = self.world.graph().path(node);
        path.iter().any(|node| self.scene.copiers.contains(node))
    }

    /// Where the bytes of a node are stored: the disk, and at which offset there its own begin.
    pub(super) fn disk_of(&self, node: NodeId) -> (NodeId, usize) {
        match self.world.graph().node(node) {
            Some(Node::Filter { child }) => self.disk_of(*child),
            Some(Node::Opaque { child, window, .. }) => {
                let (disk, start) = self.disk_of(*child);
                (disk, start + window.start)
            }
            _ => (node, 0),
        }
    }

    /// Drives that have a medium.
    pub(super) fn drives(&self) -> Vec<Drive> {
        let root = |drive: &Drive| self.world.graph().top(View::Drive(drive.id));
        let drives = self.scene.drives.iter();
        drives.filter_map(|drive| Some(Drive { root: root(drive)?, ..*drive })).collect()
    }

    /// A part of a view.
    pub(super) fn span(&self, random: &mut Random, len: usize) -> Span {
        // Short ones meet where granules end; some are long.
        let most = if random.one_in(6) { len } else { len.min(5) };
        let count = random.between(1, most);
        Span::at(random.below(len - count + 1), count)
    }

    /// The real bitmap with an id of the model.
    pub(super) fn bitmap(&self, id: BitmapId) -> Arc<Bitmap> {
        let (graph, name) = (self.graph.current(), bitmap_name(id.0));
        let mut all = graph.bitmaps().map(|(_, bitmap)| bitmap);
        let found = all.find(|bitmap| bitmap.name().as_str() == name);
        Arc::clone(found.expect("a bitmap of the scene"))
    }

    /// What the core has dirty.
    fn dirty(&self, id: BitmapId, part: Part) -> GranuleSet {
        let bitmap = self.bitmap(id);
        let bytes = bitmap.granularity().bytes();
        let granules = |range: std::ops::Range<u64>| {
            (range.start / bytes) as usize..range.end.div_ceil(bytes) as usize
        };
        let all = 0..bitmap.size_bytes();
        match (part, bitmap.state() == BitmapState::Frozen) {
            (Part::Recording, false) => bitmap.ranges(all).flat_map(granules).collect(),
            (Part::Recording, true) => match bitmap.recording() {
                Some(set) => set.ranges(all).flat_map(granules).collect(),
                None => BTreeSet::new(),
            },
            (Part::Frozen, _) => match bitmap.read().still() {
                Some(still) => still.ranges(all).flat_map(granules).collect(),
                None => BTreeSet::new(),
            },
        }
    }

    /// Every bitmap, while requests may be in flight.
    pub(super) fn check_bitmaps(&self) -> Verdict {
        self.world.check(|id, part| self.dirty(id, part)).map_err(|wrong| wrong.to_string())
    }

    /// Every bitmap, and every view that can be read without altering what is allocated.
    pub(super) async fn check(&mut self) -> Verdict {
        self.check_bitmaps()?;
        let nodes: Vec<NodeId> = self.world.graph().nodes().map(|(node, _)| node).collect();
        for node in nodes {
            if !self.copies_on_read(node) {
                self.check_view(node).await?;
            }
        }
        Ok(())
    }

    /// Views read through copy-on-read filters, too: the last check of a case.
    pub(super) async fn check_all_views(&mut self) -> Verdict {
        let nodes: Vec<NodeId> = self.world.graph().nodes().map(|(node, _)| node).collect();
        for node in nodes {
            self.check_view(node).await?;
        }
        self.check_bitmaps()
    }

    async fn check_view(&mut self, node: NodeId) -> Verdict {
        let span = Span::whole(self.len(node));
        self.read(View::Node(node), span).await
    }

    /// Reads in both worlds.
    pub(super) async fn read(&mut self, view: View, span: Span) -> Verdict {
        let name = match view {
            View::Node(node) => probe_name(node),
            View::Drive(drive) => drive.to_string(),
        };
        let range = bytes_of(span);
        let buf = BufMut::new((range.end - range.start) as usize);
        let read = self.drive(&name).read(range.start, buf).await;
        let bytes = read.map_err(|error| format!("reading {span} of {view}: {error}"))?;
        let log = self.control.take_log();
        self.follow_copies(&log, usize::MAX)?;
        self.check_bytes(view, span, &bytes)
    }

    pub(super) fn check_bytes(&self, view: View, span: Span, bytes: &[u8]) -> Verdict {
        let got = sectors(bytes).ok_or_else(|| format!("{view}: a sector is torn"))?;
        self.world.check_read(view, span, &got).map_err(|wrong| wrong.to_string())
    }

    /// The model does the copies that copy-on-read filters have done on the way: what was caused by
    /// more guarded operations than what was asked for (`depth`; no write was: `usize::MAX`).
    pub(super) fn follow_copies(&mut self, log: &[Landed], depth: usize) -> Verdict {
        let is_copy = |landed: &&Landed| depth == usize::MAX || landed.depth > depth;
        for landed in log.iter().filter(is_copy) {
            let outcome = match landed.has_failed {
                true => Outcome::torn(&landed.bytes),
                false => Outcome::Done,
            };
            let (disk, span) = (landed.disk, landed.span);
            match self.world.copy(disk, disk, span, &outcome) {
                Ok(_) | Err(Refusal::Io) => {}
                Err(refusal) => return Err(format!("a copy to {span} of {disk}: {refusal}")),
            }
        }
        Ok(())
    }

    /// How a change of `span` of `node` has ended, by what its disk says. What is asked of the
    /// disk at `depth` is the change itself.
    pub(super) fn outcome(
        &self,
        (node, span): (NodeId, Span),
        log: &[Landed],
        depth: usize,
        has_failed: bool,
    ) -> Result<Outcome, String> {
        let (disk, shift) = self.disk_of(node);
        let own: Vec<&Landed> = log.iter().filter(|landed| landed.depth == depth).collect();
        if let Some(stray) = own.iter().find(|landed| landed.disk != disk) {
            return Err(format!("a change of {node} was written to {}", stray.disk));
        }
        let is_discard = own.iter().any(|landed| landed.is_discard);
        if !has_failed && !is_discard && !own.is_empty() {
            return Ok(Outcome::Done);
        }
        let mut bytes = vec![None; span.len()];
        for landed in own {
            for (at, byte) in landed.bytes.iter().enumerate() {
                let is_its_own = match &landed.zeroed {
                    Some(zeroed) => zeroed[at],
                    None => !landed.is_discard || self.is_allocated(disk, landed.span.start + at),
                };
                let place = (landed.span.start + at).checked_sub(shift + span.start);
                if let Some(slot) = place.and_then(|place| bytes.get_mut(place))
                    && is_its_own
                {
                    *slot = Some(*byte);
                }
            }
        }
        Ok(Outcome::Failed(bytes))
    }

    fn is_allocated(&self, disk: NodeId, at: usize) -> bool {
        match self.world.graph().node(disk) {
            Some(Node::Memory(memory)) => memory.is_allocated(at),
            _ => false,
        }
    }
}
