//! What a backup is to do, and what stands against it.

use std::sync::{Arc, Mutex, OnceLock};

use super::super::flow::Bounds;
use super::super::kept::Kept;
use super::super::node::JobNode;
use super::super::spec::{BackupSpec, BackupSync, BitmapMode};
use super::super::work::{
    Place, Planned, backing, below_followers, down, find, grow, name_of, proven,
};
use super::{Backup, Chosen};
use crate::bitmap::{Bitmap, Granularity, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapAction, ChildDecl, Graph, JobStake, PermissionSet, Role};
use crate::limits::COPY_MAX_BYTES;
use crate::node::{Support, WriteFlags};

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

pub(in super::super) fn plan(graph: &Graph, id: &str, spec: &BackupSpec) -> Result<Planned> {
    let size = |node: usize| graph.nodes()[node].info().size_bytes;
    let mode = mode_of(spec.sync, spec.bitmap.is_some(), spec.bitmap_mode)?;
    let source = below_followers(graph, find(graph, &spec.device)?);
    let target = find(graph, &spec.target)?;
    check_target(graph, (source, target), spec)?;
    if spec.discards_source {
        check_discards(graph, source)?;
    }
    let growth = (size(target) < size(source)).then(|| grow(graph, target, size(source)));
    let found = spec.bitmap.as_ref().and_then(|bitmap| bitmap.find(graph));
    if let Some((found, mode)) = found.as_ref().zip(mode) {
        check_size(found, size(source))?;
        // Who stands in the way is named before the job begins.
        drop(found.use_by(format!("job `{id}`"), use_of(mode))?);
    }
    let of_bitmap = found.filter(|_| is_said(spec.sync)).map(|bitmap| bitmap.granularity());
    let (granularity, unit_bytes) = granularity(graph, target, of_bitmap, spec)?;
    let says = spec.bitmap.clone().filter(|_| is_said(spec.sync));
    let says = says.map(|bitmap| (bitmap, unit_bytes));
    let on_error = (spec.on_cbw_error, spec.cbw_timeout);
    let flags = if spec.compress { WriteFlags::COMPRESSED } else { WriteFlags::NONE };
    let kept = Arc::new(Kept::new(size(source), granularity, says, on_error, flags)?);
    let bitmap = spec.bitmap.clone().zip(mode).map(|(bitmap, mode)| {
        let (held, left) = (Mutex::default(), OnceLock::new());
        Chosen { bitmap, mode, held, left }
    });
    let freeze = bitmap.iter().map(|chosen| BitmapAction::Freeze.of(&chosen.bitmap));
    let before = proven(freeze.collect());
    let below = backing(graph, source).map(|(_, below)| below);
    let below = below.filter(|_| spec.sync == BackupSync::Top);
    let work = Arc::new(Backup {
        sync: spec.sync,
        has_below: below.is_some(),
        size_bytes: size(source),
        kept: Arc::clone(&kept),
        bitmap,
        bounds: bounds(spec, granularity)?,
        discards: spec.discards_source,
    });
    let children = children(graph, (source, target, below), spec);
    let node = Arc::new(node(graph, (id, source), spec, &kept));
    let place = Place::Above(name_of(graph, source));
    Ok(Planned { node, children, place, growth, before, work })
}

/// The edges of the job's node.
fn children(
    graph: &Graph,
    (source, target, below): (usize, usize, Option<usize>),
    spec: &BackupSpec,
) -> Vec<ChildDecl> {
    let edge = |edge: &str, node: usize, role, grants| ChildDecl {
        name: edge.to_owned(),
        role,
        grants,
        ..ChildDecl::filtered(graph.nodes()[node].name())
    };
    let grants = match spec.discards_source {
        true => PermissionSet::CONSISTENT_READ.union(PermissionSet::WRITE),
        false => PermissionSet::CONSISTENT_READ,
    };
    let mut children = vec![
        edge("source", source, Role::Filtered, grants),
        edge("target", target, Role::Target, PermissionSet::WRITE),
    ];
    children.extend(below.map(|below| edge("below", below, Role::Source, PermissionSet::NONE)));
    children
}

/// The job's node. Where the source is discarded, nobody may write what would be lost with it; where nobody can write
/// it anyway, all may give up what they like.
fn node(
    graph: &Graph,
    (id, source): (&str, usize),
    spec: &BackupSpec,
    kept: &Arc<Kept>,
) -> JobNode {
    let stake = JobStake {
        id: id.to_owned(),
        stands_on: Vec::new(),
        tracks: None,
        leaves_out: None,
        alters_others: false,
    };
    let shown = graph.unfiltered(&graph.nodes()[source]);
    let is_written = !shown.driver().is_only_given_up();
    let node = JobNode::keeping(stake, kept);
    if spec.discards_source && is_written { node.for_nobody_to_write() } else { node }
}

/// Whether a bitmap says what is copied.
pub(super) fn is_said(sync: BackupSync) -> bool {
    matches!(sync, BackupSync::Incremental | BackupSync::Bitmap)
}

/// What is copied can be discarded where it is. That nobody writes it, the node says that stands for the job.
fn check_discards(graph: &Graph, source: usize) -> Result<()> {
    let node = &graph.nodes()[source];
    let (info, driver) = (node.info(), node.driver().driver());
    let refused =
        |message: String| Err(Error::new(ErrorKind::NotSupported, message).at_node(node.name()));
    match () {
        () if info.caps.discard == Support::None => {
            refused(format!("driver `{driver}` discards nothing: do not discard the source"))
        }
        () if info.read_only => refused(
            "it is read-only, so nothing can be discarded there: open it for writing, or do not discard the \
             source"
                .to_owned(),
        ),
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
fn check_target(graph: &Graph, (source, target): (usize, usize), spec: &BackupSpec) -> Result<()> {
    let name = |node: usize| graph.nodes()[node].name();
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    if graph.nodes()[source].class() == graph.nodes()[target].class() {
        let message = format!(
            "source and target cannot be the same: both show `{}`: give a node beside it",
            name(source)
        );
        return invalid(message);
    }
    if down(graph, source).any(|at| at == target) {
        let message = format!(
            "its target `{}` is a part of what it shows: give a node beside it",
            name(target)
        );
        return invalid(message).map_err(|error| error.at_node(name(source)));
    }
    let (source_bytes, info) =
        (graph.nodes()[source].info().size_bytes, graph.nodes()[target].info());
    if info.size_bytes > source_bytes {
        let message = format!(
            "source and target have different sizes: `{}` has {} bytes, and it has {source_bytes}: resize one of \
             them first",
            name(target),
            info.size_bytes,
        );
        return invalid(message).map_err(|error| error.at_node(name(source)));
    }
    if spec.compress && info.limits.compressed_bytes == 0 {
        let message = "cannot compress to this drive, whose driver writes nothing compressed: leave `compress` \
                       out, or copy to a `qcow2` node that keeps its data itself";
        return Err(Error::new(ErrorKind::NotSupported, message).at_node(name(target)));
    }
    Ok(())
}

pub(super) fn use_of(mode: BitmapMode) -> Use {
    if mode == BitmapMode::Never { Use::Keep } else { Use::Exclusive }
}

pub(super) fn check_size(bitmap: &Bitmap, size_bytes: u64) -> Result<()> {
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
