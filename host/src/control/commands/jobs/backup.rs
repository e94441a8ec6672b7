//! `blockdev-backup`.

use super::super::nodes::find_node;
use super::{BitmapSyncMode, BlockdevOnError, Common, MirrorSyncMode, bitmap_of, on_error};
use crate::bitmap::Granularity;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{qapi_enum, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::BitmapRef;
use crate::job::{BackupSpec, BackupSync, JobKind, JobSpec, OnCbwError, backup_mode};

qapi_enum! {
    /// What becomes of a write whose old bytes cannot be copied.
    pub(crate) enum OnCbwErrorMode {
        /// It fails, and the backup stays what it is to be.
        BreakGuestWrite = "break-guest-write",
        /// It goes on, and the backup fails.
        BreakSnapshot = "break-snapshot",
    }
}

qapi_struct! {
    /// How a backup copies. A job adapts to its target what it has in flight, up to 64 pieces and 16 MiB.
    pub(crate) struct BackupPerf {
        /// Bytes are copied by the host either way.
        use_copy_range: Option<bool>,
        /// Pieces in flight at most.
        max_workers: Option<i64>,
        /// Bytes of one at most; 0, unless said, for 1 MiB.
        max_chunk: Option<i64>,
        /// Bytes that are copied together at least.
        min_cluster_size: Option<u64>,
    }
}

qapi_struct! {
    /// What a node shows at this instant is to be copied to another one.
    pub(crate) struct BlockdevBackup {
        job_id: Option<String>,
        /// A drive, or a node.
        device: String,
        /// The node to which it is copied.
        target: String,
        sync: MirrorSyncMode,
        /// Bytes a second at most; 0, unless said, for no limit.
        speed: Option<i64>,
        /// A bitmap of the drive or node that `device` names.
        bitmap: Option<String>,
        /// What becomes of it.
        bitmap_mode: Option<BitmapSyncMode>,
        /// Whether what is written is compressed, as far as that makes it smaller: to a qcow2 image, which may be below
        /// filters, and may have data already.
        compress: Option<bool>,
        on_source_error: Option<BlockdevOnError>,
        on_target_error: Option<BlockdevOnError>,
        /// What becomes of a write whose old bytes cannot be copied; it fails, unless said.
        on_cbw_error: Option<OnCbwErrorMode>,
        /// Seconds that a write may wait for that; 0, unless said, for as long as it takes.
        cbw_timeout: Option<u32>,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
        /// The name of the node that stands for the job.
        filter_node_name: Option<String>,
        /// Whether what has been copied is discarded where it was, which nobody may write then: the view of a
        /// point in time gives up what has been kept for it.
        discard_source: Option<bool>,
        x_perf: Option<BackupPerf>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("blockdev-backup", backup);
}

impl MirrorSyncMode {
    fn of_backup(self) -> BackupSync {
        match self {
            Self::Full => BackupSync::Full,
            Self::Top => BackupSync::Top,
            Self::None => BackupSync::None,
            Self::Incremental => BackupSync::Incremental,
            Self::Bitmap => BackupSync::Bitmap,
        }
    }
}

fn backup(plan: &mut Plan<'_>, backup: BlockdevBackup) -> QmpResult<()> {
    let graph = plan.context.host.graph();
    let device = find_node(&graph, Some(&backup.device), Some(&backup.device))?;
    let target = find_node(&graph, Some(&backup.target), Some(&backup.target))?;
    if device.name() == target.name() {
        return Err(QmpError::generic("Source and target cannot be the same"));
    }
    let (bitmap, bitmap_mode) = bitmap(plan, &backup)?;
    let compress = backup.compress == Some(true);
    if compress && target.info().limits.compressed_bytes == 0 {
        let desc = format!("Compression is not supported for this drive {}", target.name());
        return Err(QmpError::generic(desc));
    }
    if target.info().size_bytes > device.info().size_bytes {
        return Err(QmpError::generic("Source and target image have different sizes"));
    }
    let perf = backup.x_perf;
    let granularity = perf.as_ref().map(granularity).transpose()?.flatten();
    let most = |wished: Option<i64>| wished.and_then(|most| u64::try_from(most).ok());
    let workers = perf.as_ref().and_then(|perf| most(perf.max_workers));
    let chunk = perf.as_ref().and_then(|perf| most(perf.max_chunk)).filter(|bytes| *bytes > 0);
    let what = BackupSpec {
        sync: backup.sync.of_backup(),
        bitmap,
        bitmap_mode,
        compress,
        granularity,
        on_cbw_error: match backup.on_cbw_error {
            None | Some(OnCbwErrorMode::BreakGuestWrite) => OnCbwError::BreakGuestWrite,
            Some(OnCbwErrorMode::BreakSnapshot) => OnCbwError::BreakSnapshot,
        },
        cbw_timeout: backup
            .cbw_timeout
            .filter(|seconds| *seconds > 0)
            .map(|seconds| std::time::Duration::from_secs(seconds.into())),
        discards_source: backup.discard_source == Some(true),
        most_pieces: workers.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
        piece_bytes: chunk,
        ..BackupSpec::of(backup.device.as_str(), backup.target.as_str())
    };
    let common = Common {
        job_id: backup.job_id,
        speed: backup.speed,
        filter_node_name: backup.filter_node_name,
        auto_finalize: backup.auto_finalize,
        auto_dismiss: backup.auto_dismiss,
    };
    let job = common.job(plan, &backup.device, JobKind::Backup(what))?;
    plan.start(JobSpec {
        on_error: on_error(backup.on_source_error),
        on_target_error: Some(on_error(backup.on_target_error)),
        ..job
    })
}

type Chosen = (Option<BitmapRef>, Option<crate::job::BitmapMode>);

/// The bitmap, and what becomes of it; what has no sense together is refused in QEMU's words.
fn bitmap(plan: &Plan<'_>, backup: &BlockdevBackup) -> QmpResult<Chosen> {
    let mode = backup.bitmap_mode.map(BitmapSyncMode::mode);
    let chosen = backup_mode(backup.sync.of_backup(), backup.bitmap.is_some(), mode);
    // That it is not there is told before what it is not good for.
    let is_first = backup.sync == MirrorSyncMode::Incremental && chosen.is_err();
    let bitmap = match &backup.bitmap {
        Some(name) if !is_first => Some(bitmap_of(plan, &backup.device, name)?),
        _ => None,
    };
    let mode = chosen.map_err(|error| QmpError::generic(in_qemus_case(&error.to_string())))?;
    Ok((bitmap, mode))
}

fn in_qemus_case(desc: &str) -> String {
    let small = ["must", "sync"].iter().any(|word| desc.starts_with(word));
    match desc.split_at_checked(1) {
        Some((first, rest)) if !small => first.to_uppercase() + rest,
        _ => desc.to_owned(),
    }
}

fn granularity(perf: &BackupPerf) -> QmpResult<Option<Granularity>> {
    if perf.max_workers.is_some_and(|most| !(1..=i64::from(i32::MAX)).contains(&most)) {
        return Err(QmpError::generic(format!("max-workers must be between 1 and {}", i32::MAX)));
    }
    if perf.max_chunk.is_some_and(|most| most < 0) {
        let desc = "max-chunk must be zero (which means no limit) or positive";
        return Err(QmpError::generic(desc));
    }
    let wrong = |_| QmpError::generic("min-cluster-size needs to be a power of 2, 512 or more");
    let bytes = perf.min_cluster_size.filter(|bytes| *bytes > 0);
    bytes.map(|bytes| Granularity::from_bytes(bytes).map_err(wrong)).transpose()
}
