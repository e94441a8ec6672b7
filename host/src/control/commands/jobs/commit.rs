//! `block-commit`.

use super::super::nodes::find_node;
use super::by_file::{find_by_file, is_in_file};
use super::{BlockdevOnError, Common, chain, is_in_chain, named, on_error};
use crate::control::error::{ErrorClass, QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Graph, GraphNode};
use crate::job::{CommitSpec, JobKind, JobSpec};

qapi_struct! {
    /// What an image has, and those between, is to go to one below it.
    pub(crate) struct BlockCommit {
        job_id: Option<String>,
        /// A drive, or a node.
        device: String,
        /// The node to which it goes. It must be said, by this or by `base`.
        base_node: Option<String>,
        /// The file of that.
        base: Option<String>,
        /// The node that goes away: the topmost image unless said.
        top_node: Option<String>,
        /// The file of that.
        top: Option<String>,
        /// How images that stand on it are to name the base; by its file unless said.
        backing_file: Option<String>,
        /// A file is always named as `raw`.
        backing_mask_protocol: Option<bool>,
        /// Bytes a second at most; 0, unless said, for no limit.
        speed: Option<i64>,
        on_error: Option<BlockdevOnError>,
        /// The name of the node that stands for the job.
        filter_node_name: Option<String>,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
        /// Also when others stand on the base, or between, and see what is written: their bitmaps say so.
        force: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("block-commit", commit);
}

fn commit(plan: &mut Plan<'_>, commit: BlockCommit) -> QmpResult<()> {
    let graph = plan.context.host.graph();
    let device =
        find_node(&graph, Some(&commit.device), Some(&commit.device)).map_err(|error| {
            // By its class clients find out what the command can do: it is looked for before all else.
            match graph.find_drive(&commit.device) {
                Some(_) => error,
                None => {
                    let desc = format!("Device '{}' not found", clip(&commit.device));
                    QmpError::new(ErrorClass::DeviceNotFound, desc)
                }
            }
        })?;
    let top = top_of(&graph, device, &commit)?;
    let base = base_of(&graph, top, &commit)?;
    if base.name() == top.name() {
        return Err(QmpError::generic("cannot commit an image into itself"));
    }
    let is_active = top.class() == device.class();
    let backing_name = match commit.backing_file {
        Some(_) if is_active => {
            let desc = "'backing-file' specified, but 'top' is the active layer";
            return Err(QmpError::generic(desc));
        }
        Some(file) => Some(named(&graph, base, file)),
        None => None,
    };
    let what = CommitSpec {
        top: Some(top.name().to_owned()),
        is_forced: commit.force.unwrap_or(false),
        backing_name,
        ..CommitSpec::of(device.name(), base.name())
    };
    let common = Common {
        job_id: commit.job_id,
        speed: commit.speed,
        filter_node_name: commit.filter_node_name,
        auto_finalize: commit.auto_finalize,
        auto_dismiss: commit.auto_dismiss,
    };
    let job = common.job(plan, &commit.device, JobKind::Commit(what))?;
    let on_error = on_error(commit.on_error);
    plan.start(JobSpec { on_error, ..job })
}

fn check_exclusive(one: (&str, &Option<String>), other: (&str, &Option<String>)) -> QmpResult<()> {
    match (one, other) {
        ((one, Some(_)), (other, Some(_))) => {
            Err(QmpError::generic(format!("'{one}' and '{other}' are mutually exclusive")))
        }
        _ => Ok(()),
    }
}

fn top_of<'g>(
    graph: &'g Graph,
    device: &'g GraphNode,
    commit: &BlockCommit,
) -> QmpResult<&'g GraphNode> {
    check_exclusive(("top-node", &commit.top_node), ("top", &commit.top))?;
    if let Some(name) = &commit.top_node {
        let top = find_node(graph, None, Some(name))?;
        return check_in_chain(graph, device, top);
    }
    let Some(file) = &commit.top else { return Ok(device) };
    if is_in_file(graph, device, file) {
        return Ok(device);
    }
    let missing = || QmpError::generic(format!("Top image file {} not found", clip(file)));
    find_by_file(graph, device, file).ok_or_else(missing)
}

fn base_of<'g>(
    graph: &'g Graph,
    top: &'g GraphNode,
    commit: &BlockCommit,
) -> QmpResult<&'g GraphNode> {
    check_exclusive(("base-node", &commit.base_node), ("base", &commit.base))?;
    if let Some(name) = &commit.base_node {
        let base = find_node(graph, None, Some(name))?;
        return check_in_chain(graph, top, base);
    }
    if let Some(file) = &commit.base {
        let missing = || format!("Can't find '{}' in the backing chain", clip(file));
        let found = find_by_file(graph, top, file);
        return found.ok_or_else(|| QmpError::generic(missing()));
    }
    // The lowest one, as QEMU would have it, is seldom what was meant.
    let below = chain(graph, top).skip_while(|at| at.class() == top.class());
    let candidates: Vec<String> = below.map(|node| format!("'{}'", node.name())).collect();
    Err(QmpError::generic(match candidates.is_empty() {
        true => format!("Node '{}' has no backing image to commit to", top.name()),
        false => format!("Parameter 'base-node' is missing: one of {}", candidates.join(", ")),
    }))
}

fn check_in_chain<'g>(
    graph: &Graph,
    top: &GraphNode,
    node: &'g GraphNode,
) -> QmpResult<&'g GraphNode> {
    if is_in_chain(graph, top, node) {
        return Ok(node);
    }
    let desc = format!("'{}' is not in this backing file chain", node.name());
    Err(QmpError::generic(desc))
}
