//! `backup`: copies to another node what a node shows at the instant at which the job comes into the graph.
//!
//! What is written meanwhile is copied before that (`kept.rs`), the rest by the job. A bitmap can say what is
//! copied, or be told: it stands still from that same instant on, while another set records, and what becomes of
//! both at the end is decided by its *mode* and by whether the job has ended well. Nothing that has not been
//! copied, durably, is ever called clean.

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::context::{Breaks, Doing, Failed, JobCx, JobFuture, Step};
use super::copying::{SOURCE, TARGET, rest};
use super::flow::{Bounds, Piece};
use super::kept::Kept;
use super::looked::Needs;
use super::node::JobNode;
use super::spec::{BackupSpec, BackupSync, BitmapMode};
use super::work::{
    Actions, Ending, Opening, Place, Planned, Work, backing, below_followers, down, find, grow,
    name_of, proven,
};
use crate::bitmap::{Bitmap, BitmapState, BitmapUse, Granularity, Granules, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    BitmapAction, BitmapRef, ChildDecl, Graph, JobStake, Mutation, OwnAccord, PermissionSet, Role,
    mutated,
};
use crate::io::{turn_now, until};
use crate::limits::{COPY_MAX_BYTES, EXTENTS_MAX, JOB_SETTLE_TIME, ZERO_PROVEN_MAX_BYTES};
use crate::node::{ExtentKind, Support, WriteFlags};

/// Number of the edge below which nothing is copied, if there is one.
const BELOW: usize = 2;

struct Backup {
    sync: BackupSync,
    /// With [`BackupSync::Top`]: there is something below.
    has_below: bool,
    size_bytes: u64,
    kept: Arc<Kept>,
    bitmap: Option<Chosen>,
    bounds: Bounds,
    discards: bool,
}

/// A bitmap, and what becomes of it.
struct Chosen {
    /// It may come with the job: what it is, is known once that is there.
    bitmap: BitmapRef,
    mode: BitmapMode,
    /// From then on, until the job has ended.
    held: Mutex<Option<Arc<BitmapUse>>>,
    /// What counts as not copied, if the job has not ended well.
    left: OnceLock<Arc<Granules>>,
}

/// What becomes of the bitmap of a backup, if there is one.
///
/// # Errors
/// `EINVAL` for what has no sense together: in QEMU's words.
pub(crate) fn mode_of(
    sync: BackupSync,
    has_bitmap: bool,
    mode: Option<BitmapMode>,
) -> Result<Option<BitmapMode>> {
    use BackupSync as S;
    use BitmapMode as M;
    let name = sync.name();
    let refused = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    match (sync, has_bitmap, mode) {
        (S::Bitmap | S::Incremental, false, _) => {
            refused(format!("must provide a valid bitmap name for '{name}' sync mode"))
        }
        (S::Incremental, true, Some(M::Never | M::Always)) => {
            refused(format!("bitmap sync mode must be 'on-success' when using sync mode '{name}'"))
        }
        (S::Incremental, true, _) => Ok(Some(M::OnSuccess)),
        (_, false, Some(_)) => refused("cannot specify bitmap sync mode without a bitmap".into()),
        (_, false, None) => Ok(None),
        (_, true, None) => refused("bitmap sync mode must be given when providing a bitmap".into()),
        (S::None, true, Some(_)) => {
            refused(format!("sync mode '{name}' does not produce meaningful bitmap outputs"))
        }
        (S::Full | S::Top, true, Some(M::Never)) => refused(format!(
            "bitmap sync mode 'never' has no meaningful effect when combined with sync mode \
             '{name}'"
        )),
        (_, true, Some(mode)) => Ok(Some(mode)),
    }
}

pub(super) fn plan(graph: &Graph, id: &str, spec: &BackupSpec) -> Result<Planned> {
    let name = |node: usize| graph.nodes()[node].name();
    let mode = mode_of(spec.sync, spec.bitmap.is_some(), spec.bitmap_mode)?;
    let source = below_followers(graph, find(graph, &spec.device)?);
    let target = find(graph, &spec.target)?;
    check_target(graph, source, target)?;
    let compressed_bytes = graph.nodes()[target].info().limits.compressed_bytes;
    if spec.compress && compressed_bytes == 0 {
        let message = "cannot compress to this drive, whose driver writes nothing compressed: leave `compress` \
                       out, or copy to a `qcow2` node that keeps its data itself";
        return Err(Error::new(ErrorKind::NotSupported, message).at_node(name(target)));
    }
    let flags = if spec.compress { WriteFlags::COMPRESSED } else { WriteFlags::NONE };
    if spec.discards_source {
        check_discards(graph, source)?;
    }
    let size = |node: usize| graph.nodes()[node].info().size_bytes;
    if size(target) > size(source) {
        let message = format!(
            "source and target have different sizes: `{}` has {} bytes, and it has {}: resize one of \
             them first",
            name(target),
            size(target),
            size(source)
        );
        return Err(Error::new(ErrorKind::Invalid, message).at_node(name(source)));
    }
    let growth = (size(target) < size(source)).then(|| grow(graph, target, size(source)));
    let found = spec.bitmap.as_ref().and_then(|bitmap| bitmap.find(graph));
    if let Some((found, mode)) = found.as_ref().zip(mode) {
        check_size(found, size(source))?;
        // Who stands in the way is named before the job begins.
        drop(found.use_by(format!("job `{id}`"), use_of(mode))?);
    }
    let says = found.filter(|_| is_said(spec.sync));
    let (granularity, unit_bytes) =
        granularity(graph, target, says.map(|bitmap| bitmap.granularity()), spec)?;
    let bounds = bounds(spec, granularity)?;
    let bitmap = spec.bitmap.clone().zip(mode).map(|(bitmap, mode)| {
        let (held, left) = (Mutex::default(), OnceLock::new());
        Chosen { bitmap, mode, held, left }
    });
    let freeze = bitmap.iter().map(|chosen| BitmapAction::Freeze.of(&chosen.bitmap));
    let before = proven(freeze.collect());
    let says = spec.bitmap.clone().filter(|_| is_said(spec.sync));
    let says = says.map(|bitmap| (bitmap, unit_bytes));
    let on_error = (spec.on_cbw_error, spec.cbw_timeout);
    let kept = Arc::new(Kept::new(size(source), granularity, says, on_error, flags)?);
    let edge = |edge: &str, node: usize, role, grants| ChildDecl {
        name: edge.to_owned(),
        role,
        grants,
        ..ChildDecl::filtered(name(node))
    };
    let grants = match spec.discards_source {
        true => PermissionSet::CONSISTENT_READ.union(PermissionSet::WRITE),
        false => PermissionSet::CONSISTENT_READ,
    };
    let mut children = vec![
        edge("source", source, Role::Filtered, grants),
        edge("target", target, Role::Target, PermissionSet::WRITE),
    ];
    let below = backing(graph, source).map(|(_, below)| below);
    let below = below.filter(|_| spec.sync == BackupSync::Top);
    children.extend(below.map(|below| edge("below", below, Role::Source, PermissionSet::NONE)));
    let stake = JobStake {
        id: id.to_owned(),
        stands_on: Vec::new(),
        tracks: None,
        leaves_out: None,
        alters_others: false,
    };
    let discards = spec.discards_source;
    let node = JobNode::keeping(stake, &kept);
    let node = Arc::new(if discards { node.for_nobody_to_write() } else { node });
    let (sync, has_below, size_bytes) = (spec.sync, below.is_some(), size(source));
    let work = Arc::new(Backup { sync, has_below, size_bytes, kept, bitmap, bounds, discards });
    let place = Place::Above(name_of(graph, source));
    Ok(Planned { node, children, place, growth, before, work })
}

/// Whether a bitmap says what is copied.
fn is_said(sync: BackupSync) -> bool {
    matches!(sync, BackupSync::Incremental | BackupSync::Bitmap)
}

/// What is copied can be discarded where it is. That nobody writes it, the node says that stands for the job.
fn check_discards(graph: &Graph, source: usize) -> Result<()> {
    let node = &graph.nodes()[source];
    let (info, driver) = (node.info(), node.driver().driver());
    let refused = |message: String| Err(Error::new(ErrorKind::NotSupported, message));
    match () {
        () if info.caps.discard == Support::None => {
            refused(format!("driver `{driver}` discards nothing"))
                .map_err(|it| it.at_node(node.name()))
        }
        () if info.read_only => refused("it is read-only: nothing can be discarded there".into())
            .map_err(|it| it.at_node(node.name())),
        () => Ok(()),
    }
}

/// What it has in flight at most.
fn bounds(spec: &BackupSpec, granularity: Granularity) -> Result<Bounds> {
    let granule = granularity.bytes();
    if let Some(bytes) = spec.piece_bytes.filter(|bytes| *bytes < granule) {
        let message =
            format!("required max-chunk ({bytes}) is less than backup cluster size ({granule})");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let piece_bytes = spec.piece_bytes.map(|bytes| bytes / granule * granule);
    Ok(Bounds { pieces: spec.most_pieces, bytes: None, piece_bytes })
}

/// A target may be an overlay of what is copied, and nothing that this shows.
fn check_target(graph: &Graph, source: usize, target: usize) -> Result<()> {
    let name = |node: usize| graph.nodes()[node].name();
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    if graph.nodes()[source].class() == graph.nodes()[target].class() {
        let message = format!("source and target cannot be the same: both show `{}`", name(source));
        return invalid(message);
    }
    if down(graph, source).any(|at| at == target) {
        let message = format!("its target `{}` is a part of what it shows", name(target));
        return invalid(message).map_err(|error| error.at_node(name(source)));
    }
    Ok(())
}

fn use_of(mode: BitmapMode) -> Use {
    if mode == BitmapMode::Never { Use::Keep } else { Use::Exclusive }
}

fn check_size(bitmap: &Bitmap, size_bytes: u64) -> Result<()> {
    if bitmap.size_bytes() == size_bytes {
        return Ok(());
    }
    let message = format!(
        "bitmap `{}` is of {} bytes, and what is copied has {size_bytes}: give one of what is copied",
        bitmap.name(),
        bitmap.size_bytes()
    );
    Err(Error::new(ErrorKind::Invalid, message))
}

/// In which granules is copied; and what is copied at once at least: a target without backing would show zeros
/// beside what it gets, where it is to show nothing; and what is compressed is whole units.
fn granularity(
    graph: &Graph,
    target: usize,
    of_bitmap: Option<Granularity>,
    spec: &BackupSpec,
) -> Result<(Granularity, u64)> {
    let default = of_bitmap.map_or(Granularity::DEFAULT, |of_bitmap| {
        if of_bitmap.bytes() < Granularity::DEFAULT.bytes() {
            of_bitmap
        } else {
            Granularity::DEFAULT
        }
    });
    let wished = spec.granularity.unwrap_or(default).bytes();
    let filled = down(graph, target).map(|at| graph.nodes()[at].info().limits);
    let filled = filled.map(|limits| limits.fill_bytes.max(limits.request_alignment));
    let filled = match backing(graph, target) {
        Some(_) => 1,
        None => u64::from(filled.max().unwrap_or(1)),
    };
    let compressed = match spec.compress {
        true => u64::from(graph.nodes()[target].info().limits.compressed_bytes),
        false => 0,
    };
    let unit_bytes = wished.max(filled).max(compressed);
    let most = compressed.max(COPY_MAX_BYTES as u64);
    let granularity = Granularity::from_bytes(unit_bytes.min(most))?;
    Ok((granularity, unit_bytes.max(granularity.bytes())))
}

impl Chosen {
    /// The bitmap is the job's from now on: it has been frozen when that came into the graph.
    fn hold(&self, opening: &Opening<'_>, size_bytes: u64) -> Result<()> {
        let found = self.bitmap.find(&opening.record.graph()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no {} any more", self.bitmap))
        })?;
        check_size(&found, size_bytes)?;
        let user = format!("job `{}`", opening.record.id);
        let held = Arc::new(found.use_by(user, use_of(self.mode))?);
        if held.state() != BitmapState::Frozen {
            let message = format!("{} does not stand still any more", self.bitmap);
            return Err(Error::new(ErrorKind::InUse, message));
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    fn held(&self) -> Option<Arc<BitmapUse>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Backup {
    /// Leaves out what only lies below the topmost overlay.
    async fn leave_out_below(&self, cx: &JobCx) -> Step<()> {
        let above = self.has_below.then_some(BELOW);
        let mut at = 0;
        while at < self.size_bytes {
            cx.point().await?;
            self.kept.check()?;
            let rest = at..self.size_bytes;
            let found = cx
                .ask(async |ground| {
                    ground.block_status_shown(SOURCE, above, rest.clone(), EXTENTS_MAX).await
                })
                .await?;
            let Some(last) = found.last() else { break };
            at = last.offset.saturating_add(last.len);
            let own = found.iter().filter(|extent| extent.kind != ExtentKind::Unallocated);
            own.for_each(|extent| self.kept.covered().mark(extent.offset, extent.len));
        }
        self.kept.leave_out_all_but_covered();
        Ok(())
    }

    async fn work(&self, cx: &JobCx) -> Step<Ending> {
        if self.sync == BackupSync::Top {
            self.leave_out_below(cx).await?;
        }
        self.kept.begin();
        let _ = self.kept.take_uncounted();
        cx.record.set_left(self.kept.todo().dirty_bytes());
        if self.sync == BackupSync::None {
            return self.keep(cx).await;
        }
        while self.kept.todo().next_dirty(0).is_some() {
            self.pass(cx).await?;
            cx.finish().await?;
            self.kept.check()?;
        }
        cx.record.add_done(self.kept.take_uncounted());
        cx.ask(async |ground| ground.flush(TARGET).await.map_err(Error::of_write)).await?;
        self.kept.check()?;
        Ok(Ending::Done)
    }

    /// Waits until it is cancelled, or what it keeps is worth nothing.
    async fn keep(&self, cx: &JobCx) -> Step<Ending> {
        loop {
            self.kept.check()?;
            cx.record.add_done(self.kept.take_uncounted());
            rest(cx).await;
            cx.point().await?;
        }
    }

    /// Goes once over all that is left.
    async fn pass(&self, cx: &JobCx) -> Step<()> {
        let needs = Needs::new(None, self.kept.granule());
        let mut at = 0;
        loop {
            cx.point().await?;
            self.kept.check()?;
            let Some(run) = self.kept.todo().ranges(at..u64::MAX).next() else { return Ok(()) };
            let (part, needs_data) = needs.first(cx, run).await?;
            at = part.end;
            let granule = self.kept.granule();
            let most =
                if needs_data { granule.max(COPY_MAX_BYTES as u64) } else { ZERO_PROVEN_MAX_BYTES };
            cx.launch_all(Piece { range: part, is_zero: !needs_data }, most).await?;
        }
    }

    /// The job ends, and has not copied all.
    async fn give_up(&self, cx: &JobCx) {
        if let Some(bitmap) = self.bitmap.as_ref().filter(|it| it.mode == BitmapMode::Always)
            && self.kept.has_begun()
        {
            let settled = until(turn_now() + JOB_SETTLE_TIME, async {
                cx.idle().await;
                let left = self.kept.todo().copy()?;
                cx.on_behalf().await?.flush(TARGET).await?;
                Ok::<_, Error>(left)
            });
            let left = match settled.await {
                Some(Ok(left)) => Arc::new(left),
                // What is not durable is not there.
                Some(Err(_)) | None => self.all(),
            };
            bitmap.left.get_or_init(|| left);
        }
        let message = "the backup has ended before it was complete";
        self.kept.break_off(Error::new(ErrorKind::Io, message));
    }

    /// All that was to be copied.
    fn all(&self) -> Arc<Granules> {
        let all = Arc::clone(self.kept.covered());
        if !is_said(self.sync) && self.sync != BackupSync::Top {
            all.set_all();
        }
        all
    }
}

async fn copy(own: OwnAccord, kept: Arc<Kept>, range: Range<u64>, discards: bool) -> Result<u64> {
    // That it is broken the job sees by itself.
    if kept.check().is_ok() {
        kept.copy(own.on_behalf().await?, range.clone()).await?;
        if discards {
            // Nobody else writes there: what is gone is what was copied. It is advice, and the copy is there.
            let discarded = own.on_behalf().await?.discard_changed(SOURCE, range).await;
            if let Err(error) = discarded {
                tracing::warn!("what has been backed up is not discarded where it was: {error}");
            }
        }
    }
    Ok(kept.take_uncounted())
}

impl Work for Backup {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        if let Some(bitmap) = &self.bitmap {
            bitmap.hold(&opening, self.size_bytes)?;
        }
        let held = self.bitmap.as_ref().and_then(Chosen::held);
        self.kept.narrow(|_| held.map(|held| Arc::clone(held.bitmap())));
        let (kept, discards) = (Arc::clone(&self.kept), self.discards);
        let doing: Doing = Rc::new(move |own: OwnAccord, piece: Piece| {
            Box::pin(copy(own, Arc::clone(&kept), piece.range, discards))
        });
        let cx = JobCx::new(opening.record, opening.own, doing, Failed::Known);
        let kept = Arc::clone(&self.kept);
        let breaks: Breaks = Box::new(move || {
            let kept = Arc::clone(&kept);
            Box::pin(async move { kept.breaks().await })
        });
        Ok(cx.within(&self.bounds).breaking(breaks))
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            let worked = self.work(cx).await;
            if worked.is_err() {
                self.give_up(cx).await;
            }
            worked
        })
    }

    fn held(&self) -> Option<Arc<BitmapUse>> {
        self.bitmap.as_ref().and_then(Chosen::held)
    }

    fn ended(&self) {
        if let Some(bitmap) = &self.bitmap {
            bitmap.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    fn end(&self, _graph: &Graph, how: Ending) -> Result<Actions> {
        let Some(bitmap) = &self.bitmap else { return Ok(Actions::new()) };
        let end = match (bitmap.mode, how) {
            (BitmapMode::Never, _) => BitmapAction::MergeBack,
            (_, Ending::Done) => BitmapAction::Abdicate,
            _ if mutated(Mutation::FailedBackupsCountAsDone) => BitmapAction::Abdicate,
            (BitmapMode::Always, _) if self.kept.has_begun() => {
                let left = bitmap.left.get().unwrap_or_else(|| self.kept.todo());
                BitmapAction::Leave(Arc::clone(left))
            }
            (BitmapMode::OnSuccess | BitmapMode::Always, _) => BitmapAction::MergeBack,
        };
        let of = bitmap.held().map_or_else(|| bitmap.bitmap.clone(), |held| (&held).into());
        Ok(proven(vec![end.of(of)]))
    }
}
