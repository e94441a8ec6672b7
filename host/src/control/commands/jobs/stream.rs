//! `block-stream`.

use super::super::nodes::find_node;
use super::by_file::find_by_file;
use super::{BlockdevOnError, Common, is_in_chain, named, on_error};
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_struct};
use crate::control::registry::Registry;
use crate::graph::{Graph, GraphNode};
use crate::job::{JobKind, JobSpec, StreamSpec};
use crate::node::BackingName;

qapi_struct! {
    /// An image is to have what it shows of those below it.
    pub(crate) struct BlockStream {
        job_id: Option<String>,
        /// A drive, or a node: the image, or a filter on it.
        device: String,
        /// The file of the image on which it is to stand then; absent: it stands alone.
        base: Option<String>,
        /// The node of that.
        base_node: Option<String>,
        /// How it is to name that; by its file unless said.
        backing_file: Option<String>,
        /// A file is always named as `raw`.
        backing_mask_protocol: Option<bool>,
        /// Instead of `base`: the last node of which it is to have something.
        bottom: Option<String>,
        /// Bytes a second at most; 0, unless said, for no limit.
        speed: Option<i64>,
        on_error: Option<BlockdevOnError>,
        /// The name of the node that stands for the job.
        filter_node_name: Option<String>,
        auto_finalize: Option<bool>,
        auto_dismiss: Option<bool>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.action("block-stream", stream);
}

fn stream(plan: &mut Plan<'_>, stream: BlockStream) -> QmpResult<()> {
    let graph = plan.context.host.graph();
    let ends = [("base", &stream.base), ("base-node", &stream.base_node)];
    check_one(&[ends[0], ends[1]])?;
    check_one(&[ends[0], ("bottom", &stream.bottom)])?;
    check_one(&[("bottom", &stream.bottom), ends[1]])?;
    let top = find_node(&graph, Some(&stream.device), Some(&stream.device))?;
    let base = base_of(&graph, top, &stream)?;
    let bottom = match &stream.bottom {
        None => None,
        Some(bottom) => Some(bottom_of(&graph, top, bottom)?.name().to_owned()),
    };
    let backing_name = match (stream.backing_file, base, &bottom) {
        (Some(_), None, None) => {
            let desc = "backing file specified, but streaming the entire chain";
            return Err(QmpError::generic(desc));
        }
        (Some(file), Some(base), _) => Some(named(&graph, base, file)),
        // The format of what lies below `bottom` the job finds itself.
        (Some(name), None, Some(_)) => Some(BackingName { name, format: None }),
        (None, ..) => None,
    };
    let base = base.map(|base| base.name().to_owned());
    let what = StreamSpec { top: stream.device.clone(), base, bottom, backing_name };
    let common = Common {
        job_id: stream.job_id,
        speed: stream.speed,
        filter_node_name: stream.filter_node_name,
        auto_finalize: stream.auto_finalize,
        auto_dismiss: stream.auto_dismiss,
    };
    let job = common.job(plan, &stream.device, JobKind::Stream(what))?;
    let on_error = on_error(stream.on_error);
    plan.start(JobSpec { on_error, ..job })
}

fn check_one(of: &[(&str, &Option<String>); 2]) -> QmpResult<()> {
    match of {
        [(one, Some(_)), (other, Some(_))] => {
            let desc = format!("'{one}' and '{other}' cannot be specified at the same time");
            Err(QmpError::generic(desc))
        }
        _ => Ok(()),
    }
}

fn base_of<'g>(
    graph: &'g Graph,
    top: &'g GraphNode,
    stream: &BlockStream,
) -> QmpResult<Option<&'g GraphNode>> {
    if let Some(file) = &stream.base {
        let missing = || format!("Can't find '{}' in the backing chain", clip(file));
        let found = find_by_file(graph, top, file);
        return found.map(Some).ok_or_else(|| QmpError::generic(missing()));
    }
    let Some(name) = &stream.base_node else { return Ok(None) };
    let base = find_node(graph, None, Some(name))?;
    if base.name() == top.name() || !is_in_chain(graph, top, base) {
        let desc = format!("Node '{name}' is not a backing image of '{}'", stream.device);
        return Err(QmpError::generic(desc));
    }
    Ok(Some(base))
}

fn bottom_of<'g>(graph: &'g Graph, top: &GraphNode, name: &str) -> QmpResult<&'g GraphNode> {
    let bottom = find_node(graph, None, Some(name))?;
    if is_in_chain(graph, top, bottom) {
        return Ok(bottom);
    }
    let desc = format!("Node '{name}' is not in a chain starting from '{}'", top.name());
    Err(QmpError::generic(desc))
}
