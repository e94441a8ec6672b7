//! `blockdev-mirror`.

use super::super::nodes::find_node;
use super::verbs::MirrorCopyMode;
use super::{
    BitmapSyncMode, BlockdevOnError, Common, MirrorSyncMode, bitmap_of, chain, input_mode, on_error,
};
use crate::bitmap::Granularity;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{QapiType, clip, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Graph, GraphNode};
use crate::job::{JobKind, JobSpec, MirrorSpec, MirrorSync};

qapi_struct! {
    /// A node is to be copied to another one, which is kept as that is.
    pub(crate) struct BlockdevMirror {
        job_id: Option<String>,
        /// A drive, or a node.
        device: String,
        /// The node to which it is copied.
        target: String,
        /// Whose users go over to the target in the end; those of `device` unless said.
        replaces: Option<String>,
        /// What is copied before it is ready.
        sync: MirrorSyncMode,
        /// The bitmap that says what: of the drive or node that `device` names.
        bitmap: Option<String>,
        /// What becomes of it.
        bitmap_mode: Option<BitmapSyncMode>,
        /// Bytes a second at most; 0, unless said, for no limit.
        speed: Option<i64>,
        /// Bytes in which is tracked what is left: 64 KiB unless said.
        granularity: Option<u32>,
        /// Bytes in flight at most; a job adapts them by itself, up to 16 MiB. 0, unless said, for that.
        buf_size: Option<i64>,
        on_source_error: Option<BlockdevOnError>,
        on_target_error: Option<BlockdevOnError>,
        /// The name of the node that stands for the job.
        filter_node_name: Option<String>,
        /// When what is written meanwhile is copied.
        copy_mode: Option<MirrorCopyMode>,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("blockdev-mirror", mirror);
}

fn mirror(plan: &mut Plan<'_>, mirror: BlockdevMirror) -> QmpResult<()> {
    let graph = plan.context.host.graph();
    let device = find_node(&graph, Some(&mirror.device), Some(&mirror.device))?;
    let device = match graph.find_drive(&mirror.device) {
        Some(_) => below_keepers(&graph, device),
        None => device,
    };
    let target = find_node(&graph, Some(&mirror.target), Some(&mirror.target))?;
    let granularity = mirror.granularity.map(granularity_of).transpose()?;
    if mirror.buf_size.is_some_and(|bytes| bytes < 0) {
        return Err(QmpError::generic("Invalid parameter 'buf-size'"));
    }
    if device.name() == target.name() {
        return Err(QmpError::generic("Can't mirror node into itself"));
    }
    if let Some(replaces) = &mirror.replaces {
        let missing = || format!("Failed to find node with node-name='{}'", clip(replaces));
        graph.find_node(replaces).ok_or_else(|| QmpError::generic(missing()))?;
    }
    let sync = sync_of(plan, &mirror)?;
    let what = MirrorSpec {
        replaces: mirror.replaces,
        sync,
        copy_mode: mirror.copy_mode.unwrap_or(MirrorCopyMode::Background).mode(),
        granularity,
        most_bytes: mirror.buf_size.and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0),
        ..MirrorSpec::of(device.name(), target.name())
    };
    let common = Common {
        job_id: mirror.job_id,
        speed: mirror.speed,
        filter_node_name: mirror.filter_node_name,
        auto_finalize: mirror.auto_finalize,
        auto_dismiss: mirror.auto_dismiss,
    };
    let job = common.job(plan, &mirror.device, JobKind::Mirror(what))?;
    plan.start(JobSpec {
        on_error: on_error(mirror.on_source_error),
        on_target_error: Some(on_error(mirror.on_target_error)),
        ..job
    })
}

/// What a drive shows, below the filters that keep for views what it has shown: these go before a mirror ends.
fn below_keepers<'g>(graph: &'g Graph, root: &'g GraphNode) -> &'g GraphNode {
    let mut chain = chain(graph, root);
    chain.find(|node| !node.driver().keeps_old_bytes()).unwrap_or(root)
}

fn granularity_of(bytes: u32) -> QmpResult<Granularity> {
    const RANGE: std::ops::RangeInclusive<u32> = 512..=64 << 20;
    let desc = match bytes {
        _ if !RANGE.contains(&bytes) => {
            "Parameter 'granularity' expects a value in range [512B, 64MB]"
        }
        _ if !bytes.is_power_of_two() => "Parameter 'granularity' expects a power of 2",
        _ => {
            let granularity = Granularity::from_bytes(bytes.into());
            return granularity.map_err(|error| QmpError::generic(error.to_string()));
        }
    };
    Err(QmpError::generic(desc))
}

fn sync_of(plan: &Plan<'_>, mirror: &BlockdevMirror) -> QmpResult<MirrorSync> {
    let mode = input_mode(mirror.sync, mirror.bitmap.as_deref(), mirror.bitmap_mode)?;
    let plain = match mirror.sync {
        MirrorSyncMode::Full => MirrorSync::Full,
        MirrorSyncMode::Top => MirrorSync::Top,
        MirrorSyncMode::None => MirrorSync::None,
        MirrorSyncMode::Incremental | MirrorSyncMode::Bitmap => {
            let name = mirror.bitmap.as_deref().unwrap_or_default();
            let bitmap = bitmap_of(plan, &mirror.device, name)?;
            let mode = mode.unwrap_or(BitmapSyncMode::OnSuccess).mode();
            return Ok(MirrorSync::Bitmap(bitmap, mode));
        }
    };
    if mirror.bitmap.is_some() {
        let sync = mirror.sync.emit().unwrap_or_default();
        let sync = sync.as_str().unwrap_or_default();
        return Err(QmpError::generic(format!("sync mode '{sync}' is told by no bitmap")));
    }
    Ok(plain)
}
