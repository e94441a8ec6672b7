//! `mirror`: copies a node to another one, and keeps that as the first one is, until it is asked to complete: then
//! all who use the first use the other, or to be cancelled: then the copy is as the first one was at one moment.
//!
//! That the copy shows the same, the host finds by what it has tracked itself; so bitmaps above stay as they are.
//! Where it was told what need not be copied, that is its user's word: bitmaps are marked whole, unless block status
//! shows that it is so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::busy::check_mirror;
use super::commit::{find_by, naming_overlays};
use super::context::{JobCx, JobFuture, Step};
use super::copying::{Copying, SOURCE, TARGET};
use super::flow::Bounds;
use super::node::JobNode;
use super::spec::{BitmapMode, CopyMode, MirrorSpec, MirrorSync};
use super::work::{
    Actions, Ending, Opening, Place, Planned, Work, backing, down, find, grow, name_of, proven,
    remove_unused,
};
use crate::bitmap::{Bitmap, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, BitmapAction, BitmapRef, ChildDecl, Graph, JobStake, NodeGeneration, PermissionSet,
    Role, Tracker, Unproven,
};
use crate::io::{turn_now, until};
use crate::limits::JOB_SETTLE_TIME;

/// Number of the edge below which nothing is copied, if there is one.
const BELOW: usize = 2;

struct Mirror {
    source: NodeGeneration,
    /// Whose users go over to the target.
    replaced: NodeGeneration,
    target: NodeGeneration,
    size_bytes: u64,
    sync: Chosen,
    copying: Copying,
    /// It has been started as a filter, or become one.
    is_filter: AtomicBool,
    tracker: OnceLock<Arc<Tracker>>,
}

enum Chosen {
    Full,
    /// What lies above the third edge's node, or all if there is none.
    Top {
        has_below: bool,
    },
    None,
    /// It may come with the job: what it is, is known once that is there.
    Bitmap {
        bitmap: BitmapRef,
        mode: BitmapMode,
        found: OnceLock<Arc<Bitmap>>,
        /// What has not been copied, if that is known, and the rest is durable.
        left: OnceLock<Arc<Granules>>,
    },
}

pub(super) fn plan(graph: &Graph, id: &str, spec: &MirrorSpec) -> Result<Planned> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let name = |node: usize| graph.nodes()[node].name();
    let (source, target) = (find(graph, &spec.device)?, find(graph, &spec.target)?);
    let is_below = |upper: usize, lower: usize| down(graph, upper).any(|at| at == lower);
    if is_below(source, target) || is_below(target, source) {
        let message = format!("its target `{}` is not another node beside it", name(target));
        return Err(invalid(message).at_node(name(source)));
    }
    let replaced = spec.replaces.as_ref().map_or(Ok(source), |node| find(graph, node))?;
    if graph.nodes()[replaced].class() != graph.nodes()[source].class() {
        let message = format!("`{}` cannot be replaced: it shows something else", name(replaced));
        return Err(invalid(message).at_node(name(source)));
    }
    check_mirror(graph, source)?;
    let size = |node: usize| graph.nodes()[node].info().size_bytes;
    let mut before = Actions::new();
    if size(target) > size(source) {
        let message = format!(
            "its target `{}` has {} bytes, and it has {}: resize one of them first",
            name(target),
            size(target),
            size(source)
        );
        return Err(invalid(message).at_node(name(source)));
    }
    let growth = (size(target) < size(source)).then(|| grow(graph, target, size(source)));
    let below = backing(graph, source).map(|(_, below)| below);
    let sync = match &spec.sync {
        MirrorSync::Full => Chosen::Full,
        MirrorSync::Top => Chosen::Top { has_below: below.is_some() },
        MirrorSync::None => Chosen::None,
        MirrorSync::Bitmap(bitmap, mode) => {
            before.extend(proven(vec![BitmapAction::Freeze.of(bitmap)]));
            let (bitmap, found, left) = (bitmap.clone(), OnceLock::new(), OnceLock::new());
            Chosen::Bitmap { bitmap, mode: *mode, found, left }
        }
    };
    let copies_writes = spec.copy_mode == CopyMode::WriteBlocking;
    let edge = |edge: &str, node: usize, role, grants| ChildDecl {
        name: edge.to_owned(),
        role,
        grants,
        ..ChildDecl::filtered(name(node))
    };
    let role = if copies_writes { Role::Filtered } else { Role::Source };
    let mut children = vec![
        edge("source", source, role, PermissionSet::CONSISTENT_READ),
        edge("target", target, Role::Target, PermissionSet::WRITE),
    ];
    if let (Chosen::Top { .. }, Some(below)) = (&sync, below) {
        children.push(edge("below", below, Role::Source, PermissionSet::NONE));
    }
    let place = match copies_writes {
        true => Place::Above(name_of(graph, source)),
        false => Place::Beside,
    };
    let stake = JobStake {
        id: id.to_owned(),
        stands_on: Vec::new(),
        tracks: Some((SOURCE, TARGET)),
        leaves_out: None,
        alters_others: false,
    };
    let node = Arc::new(JobNode::new(stake));
    let granularity = spec.granularity.unwrap_or(Granularity::DEFAULT);
    let bytes = spec.most_bytes.map(|bytes| bytes.max(granularity.bytes()));
    let bounds = Bounds {
        bytes,
        piece_bytes: bytes.map(|it| it / granularity.bytes() * granularity.bytes()),
        pieces: None,
    };
    let copying = Copying {
        node: Arc::clone(&node),
        copies_all: matches!(sync, Chosen::Full),
        granularity,
        bounds,
        completes: false,
        is_silent: false,
        is_above_target: false,
    };
    let generation = |node: usize| graph.nodes()[node].generation();
    let work = Arc::new(Mirror {
        source: generation(source),
        replaced: generation(replaced),
        target: generation(target),
        size_bytes: size(source),
        sync,
        copying,
        is_filter: AtomicBool::new(copies_writes),
        tracker: OnceLock::new(),
    });
    Ok(Planned { node, children, place, growth, before, work })
}

impl Mirror {
    /// Says what is to be copied, if it is not all.
    async fn choose(&self, cx: &JobCx, tracker: &Arc<Tracker>) -> Step<()> {
        match &self.sync {
            Chosen::Full | Chosen::None => Ok(()),
            Chosen::Bitmap { found, .. } => {
                if let Some(still) = found.get().and_then(|bitmap| bitmap.read().still()) {
                    still.ranges(0..u64::MAX).for_each(|run| tracker.want(&run));
                }
                Ok(())
            }
            Chosen::Top { has_below } => {
                let above = has_below.then_some(BELOW);
                cx.look_for_own(self.size_bytes, above, |own| tracker.want(&own)).await
            }
        }
    }

    /// The job ends, and may not have copied all. What it has copied is the same in both since then, but for what has
    /// been written since the job began: that the bitmap's successor has recorded.
    async fn give_up(&self, cx: &JobCx, tracker: &Arc<Tracker>) {
        let Chosen::Bitmap { mode: BitmapMode::Always, found, left, .. } = &self.sync else {
            return;
        };
        // Nothing is frozen: so nothing was chosen that could have been copied.
        if found.get().is_none_or(|bitmap| bitmap.read().still().is_none()) {
            return;
        }
        let settled = until(turn_now() + JOB_SETTLE_TIME, async {
            cx.idle().await;
            let left = tracker.left()?;
            cx.on_behalf().await?.flush(TARGET).await?;
            Ok::<_, Error>(left)
        });
        // What is not durable is not there.
        if let Some(Ok(settled)) = settled.await {
            left.get_or_init(|| Arc::new(settled));
        }
    }
}

impl Work for Mirror {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        let (cx, tracker) = self.copying.open(&opening)?;
        self.tracker.get_or_init(|| tracker);
        if let Chosen::Bitmap { bitmap, found, .. } = &self.sync {
            let there = bitmap.find(&opening.record.graph()).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no {bitmap} any more"))
            })?;
            found.get_or_init(|| there);
        }
        self.copying.node.set_copies_writes(self.is_filter.load(Ordering::Acquire));
        Ok(cx)
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            let Some(tracker) = self.tracker.get() else { return Ok(Ending::Stopped) };
            self.choose(cx, tracker).await?;
            let worked = self.copying.run(cx, tracker).await;
            if worked.is_err() {
                self.give_up(cx, tracker).await;
            }
            worked
        })
    }

    fn keep_up<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<()>> {
        Box::pin(async move {
            let Some(tracker) = self.tracker.get() else { return std::future::pending().await };
            self.copying.keep_up(cx, tracker).await
        })
    }

    fn tracks(&self) -> bool {
        true
    }

    fn left_bytes(&self) -> Option<u64> {
        self.tracker.get().map(|tracker| tracker.left_bytes())
    }

    fn ended(&self) {
        // Whatever keeps its node in the graph, the copy is its user's from now on.
        self.copying.node.set_copies_writes(false);
    }

    fn is_in_step(&self) -> Option<bool> {
        let left = self.tracker.get().map(|tracker| tracker.left_bytes());
        Some(self.copying.node.copies_writes() && left == Some(0))
    }

    fn change(&self, copy_mode: CopyMode, node: &str) -> Result<Actions> {
        let copies_writes = copy_mode == CopyMode::WriteBlocking;
        self.copying.node.set_copies_writes(copies_writes);
        // It stays where it has been put: what comes through it is passed on then.
        if !copies_writes || self.is_filter.swap(true, Ordering::AcqRel) {
            return Ok(Actions::new());
        }
        let (node, edge) = (node.to_owned(), "source".to_owned());
        Ok(proven(vec![Action::Interpose { node, edge }]))
    }

    // What it replaces stays as it is: so does what stands on that, to who opens it by its name.
    fn leaves_names(&self) -> bool {
        true
    }

    fn end(&self, graph: &Graph, how: Ending) -> Result<Actions> {
        let mut actions = Actions::new();
        if let Chosen::Bitmap { bitmap, mode, found, left } = &self.sync {
            let end = match (mode, how) {
                (BitmapMode::Never, _) => BitmapAction::MergeBack,
                (_, Ending::Done | Ending::Stopped) => BitmapAction::Abdicate,
                (BitmapMode::Always, Ending::Broken) => match left.get() {
                    Some(left) => BitmapAction::Leave(Arc::clone(left)),
                    None => BitmapAction::MergeBack,
                },
                (BitmapMode::OnSuccess, Ending::Broken) => BitmapAction::MergeBack,
            };
            let bitmap = found.get().map_or_else(|| bitmap.clone(), BitmapRef::from);
            actions.extend(proven(vec![end.of(bitmap)]));
        }
        if how != Ending::Done {
            return Ok(actions);
        }
        let (source, target) = (find_by(graph, self.source)?, find_by(graph, self.target)?);
        let replaced = find_by(graph, self.replaced)?;
        let (node, by) = (name_of(graph, replaced), name_of(graph, target));
        let unproven = match self.sync {
            Chosen::Full => Unproven::Refuse,
            _ => Unproven::MarkWhole,
        };
        actions.push((Action::Replace { node, by }, unproven));
        let naming = |node| Action::NameOwnBacking { node, said: None };
        let named = naming_overlays(graph, replaced).into_iter().map(naming);
        actions.extend(proven(named.collect()));
        let left = remove_unused(graph, &[replaced, source]);
        actions.extend(proven(left.into_iter().collect()));
        Ok(actions)
    }
}
