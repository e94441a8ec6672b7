//! `populate`: makes dirty in a bitmap where a node has bytes of its own, or shows others than another node.
//!
//! It adds to what is dirty, at one instant, when it has looked at all: until then, and if it ends otherwise, the
//! bitmap is what it would be without. What is written meanwhile a bitmap that records has by itself.

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::context::{Doing, Failed, JobCx, JobFuture, Step};
use super::copying::{SOURCE, TARGET};
use super::flow::Piece;
use super::looked::Needs;
use super::node::JobNode;
use super::spec::{PopulateFrom, PopulateSpec};
use super::work::{Actions, Ending, Opening, Place, Planned, Work, backing, down, find, proven};
use crate::bitmap::{BitmapUse, Granularity, Granules, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    BitmapAction, ChildDecl, Graph, JobStake, OnBehalf, OwnAccord, PermissionSet, Role, Tracker,
};
use crate::limits::{COPY_MAX_BYTES, EXTENTS_MAX, ZERO_PROVEN_MAX_BYTES};
use crate::node::{Extent, ExtentKind};

/// Number of the edge below which nothing counts as own, if there is one.
const BELOW: usize = 1;
/// Bytes that are compared at once: so much of each of two nodes is in memory then.
const COMPARED_MAX_BYTES: u64 = COPY_MAX_BYTES as u64 / 2;

struct Populate {
    size_bytes: u64,
    granularity: Granularity,
    /// The bitmap, until the job has ended.
    held: Mutex<Option<Arc<BitmapUse>>>,
    look: Look,
}

enum Look {
    /// Where it has bytes of its own, or they are of what lies above the second edge's node.
    Allocation { has_below: bool, found: Arc<Granules> },
    /// Where it does not show what the second edge's node does.
    Difference(OnceLock<Arc<Tracker>>),
}

pub(super) fn plan(graph: &Graph, id: &str, spec: &PopulateSpec) -> Result<Planned> {
    let name = |node: usize| graph.nodes()[node].name();
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let source = find(graph, &spec.device)?;
    let size_bytes = graph.nodes()[source].info().size_bytes;
    let bitmap = spec.bitmap.find(graph).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{} could not be found", spec.bitmap))
    })?;
    if bitmap.size_bytes() != size_bytes {
        let message =
            format!("{} is of {} bytes, not of {size_bytes}", spec.bitmap, bitmap.size_bytes());
        return Err(invalid(message).at_node(name(source)));
    }
    let granularity = bitmap.granularity();
    let edge = |edge: &str, node: usize, grants| ChildDecl {
        name: edge.to_owned(),
        role: Role::Source,
        grants,
        ..ChildDecl::filtered(name(node))
    };
    let mut children = vec![edge("source", source, PermissionSet::CONSISTENT_READ)];
    let (mut stands_on, mut tracks) = (Vec::new(), None);
    let look = match &spec.from {
        PopulateFrom::Allocation { base } => {
            let below = match base {
                None => None,
                Some(base) => {
                    let base = find(graph, base)?;
                    let below = backing(graph, source).map(|(_, below)| below);
                    if !below.is_some_and(|below| down(graph, below).any(|at| at == base)) {
                        let message = format!("the base `{}` is not below it", name(base));
                        return Err(invalid(message).at_node(name(source)));
                    }
                    Some(base)
                }
            };
            children.extend(below.map(|below| edge("below", below, PermissionSet::NONE)));
            stands_on.extend(below.map(|_| (SOURCE, BELOW)));
            let found = Arc::new(Granules::new(size_bytes, granularity)?);
            Look::Allocation { has_below: below.is_some(), found }
        }
        PopulateFrom::Difference { other } => {
            let other = find(graph, other)?;
            let other_bytes = graph.nodes()[other].info().size_bytes;
            if other_bytes != size_bytes {
                let message =
                    format!("`{}` has {other_bytes} bytes, and it has {size_bytes}", name(other));
                return Err(invalid(message).at_node(name(source)));
            }
            children.push(edge("other", other, PermissionSet::CONSISTENT_READ));
            tracks = Some((SOURCE, TARGET));
            Look::Difference(OnceLock::new())
        }
    };
    let held = Arc::new(bitmap.use_by(format!("job `{id}`"), Use::Read)?);
    let (id, leaves_out) = (id.to_owned(), None);
    let stake = JobStake { id, stands_on, tracks, leaves_out, alters_others: false };
    let node = Arc::new(JobNode::new(stake));
    let held = Mutex::new(Some(held));
    let work = Arc::new(Populate { size_bytes, granularity, held, look });
    let (place, before) = (Place::Beside, Actions::new());
    Ok(Planned { node, children, place, growth: None, before, work })
}

impl Populate {
    async fn find_own(&self, cx: &JobCx, has_below: bool, found: &Granules) -> Step<()> {
        let ask = async |ground: OnBehalf, range: Range<u64>| match has_below {
            true => ground.block_status_shown(SOURCE, Some(BELOW), range, EXTENTS_MAX).await,
            false => ground.block_status(SOURCE, None, range, EXTENTS_MAX).await,
        };
        let see = |extent: &Extent| {
            if !matches!(extent.kind, ExtentKind::Unallocated | ExtentKind::Hole) {
                found.mark(extent.offset, extent.len);
            }
            cx.record.add_done(extent.len.min(self.size_bytes.saturating_sub(extent.offset)));
        };
        cx.look_through(self.size_bytes, ask, see).await
    }

    async fn compare(&self, cx: &JobCx) -> Step<()> {
        let needs = Needs::new(None, COMPARED_MAX_BYTES);
        let mut at = 0;
        while at < self.size_bytes {
            cx.point().await?;
            let (part, needs_data) = needs.first(cx, at..self.size_bytes).await?;
            let most = if needs_data { COMPARED_MAX_BYTES } else { ZERO_PROVEN_MAX_BYTES };
            at = part.end;
            cx.launch_all(Piece { range: part, is_zero: !needs_data }, most).await?;
        }
        cx.finish().await
    }
}

async fn check(own: OwnAccord, tracker: Arc<Tracker>, piece: Piece) -> Result<u64> {
    let len = piece.range.end - piece.range.start;
    own.on_behalf().await?.check_tracked(tracker, piece.range, true).await.map(|_| len)
}

impl Work for Populate {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        let doing: Doing = match &self.look {
            Look::Allocation { .. } => Rc::new(|_, _| Box::pin(async { Ok(0) })),
            Look::Difference(tracker) => {
                let edges = (SOURCE, TARGET);
                let begun = Tracker::begin(opening.own, edges, self.granularity, true)?;
                let compared = Arc::clone(tracker.get_or_init(|| begun));
                Rc::new(move |own, piece| Box::pin(check(own, Arc::clone(&compared), piece)))
            }
        };
        Ok(JobCx::new(opening.record, opening.own, doing, Failed::Again))
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            cx.record.set_left(self.size_bytes);
            match &self.look {
                Look::Allocation { has_below, found } => {
                    self.find_own(cx, *has_below, found).await?;
                }
                Look::Difference(_) => self.compare(cx).await?,
            }
            Ok(Ending::Done)
        })
    }

    fn ended(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn end(&self, _graph: &Graph, how: Ending) -> Result<Actions> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(held) = held.filter(|_| how == Ending::Done) else { return Ok(Actions::new()) };
        let found = match &self.look {
            Look::Allocation { found, .. } => Arc::clone(found),
            Look::Difference(tracker) => match tracker.get() {
                Some(tracker) => Arc::new(tracker.differing()?),
                None => return Ok(Actions::new()),
            },
        };
        Ok(proven(vec![BitmapAction::Add(found).of(&held)]))
    }
}
