//! Jobs: QEMU's commands, each of which may also stand in a transaction.
//!
//! A kind of job is a file: its arguments, and what they ask the library for. Here is what kinds have in common.

mod backing;
mod backup;
mod by_file;
mod commit;
mod mirror;
mod populate;
mod queries;
mod stream;
mod verbs;

pub(in crate::control) use verbs::JobType;

use super::nodes::find_node;
use crate::config::is_name;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{QapiEnum, clip, qapi_enum};
use crate::control::registry::Registry;
use crate::graph::{BitmapRef, EXPORT_DRIVE, Graph, GraphNode};
use crate::job::{BitmapMode, JobKind, JobSpec, OnError};
use crate::node::BackingName;

qapi_enum! {
    /// What a job does when a copy fails.
    pub(crate) enum BlockdevOnError {
        /// It fails.
        Report = "report",
        /// It goes on with the rest.
        Ignore = "ignore",
        /// It stands still, until it is resumed, when no space is left; else it fails.
        Enospc = "enospc",
        /// It stands still until it is resumed.
        Stop = "stop",
        /// As `enospc`.
        Auto = "auto",
    }
}

qapi_enum! {
    /// What a job copies.
    pub(crate) enum MirrorSyncMode {
        /// What the topmost image has.
        Top = "top",
        /// Everything.
        Full = "full",
        /// Nothing but what is written from now on.
        None = "none",
        /// What a bitmap says, which is clean then.
        Incremental = "incremental",
        /// What a bitmap says.
        Bitmap = "bitmap",
    }
}

qapi_enum! {
    /// What becomes of a job's bitmap.
    pub(crate) enum BitmapSyncMode {
        /// What was copied is clean, if the job succeeds.
        OnSuccess = "on-success",
        /// It stays what it was.
        Never = "never",
        /// What was copied is clean, whatever becomes of the job.
        Always = "always",
    }
}

pub(super) fn register(to: &mut Registry) {
    stream::register(to);
    backing::register(to);
    commit::register(to);
    mirror::register(to);
    backup::register(to);
    populate::register(to);
    verbs::register(to);
    queries::register(to);
}

/// What a job does on errors; its default, unless said.
fn on_error(said: Option<BlockdevOnError>) -> OnError {
    match said {
        None => OnError::default(),
        Some(BlockdevOnError::Report) => OnError::Report,
        Some(BlockdevOnError::Ignore) => OnError::Ignore,
        Some(BlockdevOnError::Stop) => OnError::Stop,
        Some(BlockdevOnError::Enospc | BlockdevOnError::Auto) => OnError::StopForSpace,
    }
}

impl BitmapSyncMode {
    fn mode(self) -> BitmapMode {
        match self {
            Self::OnSuccess => BitmapMode::OnSuccess,
            Self::Never => BitmapMode::Never,
            Self::Always => BitmapMode::Always,
        }
    }
}

/// What all kinds of jobs are asked.
struct Common {
    job_id: Option<String>,
    speed: Option<i64>,
    filter_node_name: Option<String>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
}

impl Common {
    /// The job, with what says how it is run. Its id is that of the drive that it is about, unless said.
    fn job(self, plan: &Plan<'_>, device: &str, what: JobKind) -> QmpResult<JobSpec> {
        let Self { job_id, speed, filter_node_name, auto_finalize, auto_dismiss } = self;
        let id = job_id.unwrap_or_else(|| drive_of(&plan.context.host.graph(), device));
        if !is_name(&id) {
            return Err(QmpError::generic(format!("Invalid job ID '{}'", clip(&id))));
        }
        let speed = speed_of(speed.unwrap_or(0))?;
        if let Some(node) = &filter_node_name {
            check_new_node(plan, node)?;
        }
        Ok(JobSpec {
            node: filter_node_name,
            speed,
            auto_finalize: auto_finalize.unwrap_or(true),
            auto_dismiss: auto_dismiss.unwrap_or(true),
            ..JobSpec::new(id, what)
        })
    }
}

/// The drive of this name, or that shows the node of this name; empty for none.
fn drive_of(graph: &Graph, device: &str) -> String {
    let Ok(node) = find_node(graph, Some(device), Some(device)) else { return String::new() };
    if graph.find_drive(device).is_some() {
        return device.to_owned();
    }
    let shows = |drive: &&crate::graph::GraphDrive| {
        let is_named = !drive.id().starts_with(EXPORT_DRIVE);
        let root = drive.root().map(|root| graph.nodes()[root.child()].name());
        is_named && root == Some(node.name())
    };
    let found = graph.drives().iter().find(shows);
    found.map(|drive| drive.id().to_owned()).unwrap_or_default()
}

fn speed_of(speed: i64) -> QmpResult<u64> {
    let negative = |_| QmpError::generic("Parameter 'speed' expects a non-negative value");
    u64::try_from(speed).map_err(negative)
}

fn check_new_node(plan: &Plan<'_>, name: &str) -> QmpResult<()> {
    if !is_name(name) {
        return Err(QmpError::generic(format!("Invalid node-name: '{}'", clip(name))));
    }
    if plan.has_node(name) || plan.has_drive(name) {
        return Err(QmpError::generic(format!("Duplicate nodes with node-name='{name}'")));
    }
    Ok(())
}

/// The bitmap by which a job is told what to copy, or which it keeps, as the actions before leave it.
fn bitmap_of(plan: &Plan<'_>, device: &str, name: &str) -> QmpResult<BitmapRef> {
    let missing = || QmpError::generic(format!("Bitmap '{}' could not be found", clip(name)));
    let scope = plan.find_scope(device).ok_or_else(missing)?;
    if plan.untouched().is_some_and(|graph| graph.find_bitmap(&scope, name).is_none()) {
        return Err(missing());
    }
    Ok(BitmapRef::Named { scope, name: name.to_owned() })
}

/// How a job that is told by a bitmap what to copy deals with that.
fn input_mode(
    sync: MirrorSyncMode,
    bitmap: Option<&str>,
    mode: Option<BitmapSyncMode>,
) -> QmpResult<Option<BitmapSyncMode>> {
    let name = match sync {
        MirrorSyncMode::Incremental => "incremental",
        MirrorSyncMode::Bitmap => "bitmap",
        _ => "",
    };
    let is_told = !name.is_empty();
    let desc = match (bitmap, mode) {
        (None, _) if is_told => {
            format!("must provide a valid bitmap name for '{name}' sync mode")
        }
        (_, Some(BitmapSyncMode::Never | BitmapSyncMode::Always))
            if sync == MirrorSyncMode::Incremental =>
        {
            let only = BitmapSyncMode::WORDS[0];
            format!("Bitmap sync mode must be '{only}' when using sync mode '{name}'")
        }
        (None, Some(_)) => "Cannot specify bitmap sync mode without a bitmap".to_owned(),
        (Some(_), None) if sync == MirrorSyncMode::Bitmap => {
            "Bitmap sync mode must be given when providing a bitmap".to_owned()
        }
        _ if sync == MirrorSyncMode::Incremental => return Ok(Some(BitmapSyncMode::OnSuccess)),
        _ => return Ok(mode),
    };
    Err(QmpError::generic(desc))
}

/// The nodes that `node` shows, by view edges, from itself down.
fn chain<'g>(graph: &'g Graph, node: &'g GraphNode) -> impl Iterator<Item = &'g GraphNode> {
    std::iter::successors(Some(node), |at| {
        let below = at.edges().iter().find(|edge| edge.role().is_view())?;
        Some(&graph.nodes()[below.child()])
    })
}

fn is_in_chain(graph: &Graph, top: &GraphNode, node: &GraphNode) -> bool {
    chain(graph, top).any(|at| at.name() == node.name())
}

/// How an image is to name a node as its backing.
fn named(graph: &Graph, node: &GraphNode, file: String) -> BackingName {
    let image = graph.unfiltered(node);
    let format = if image.driver().driver() == "qcow2" { "qcow2" } else { "raw" };
    BackingName { name: file, format: Some(format.to_owned()) }
}
