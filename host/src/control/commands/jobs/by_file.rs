//! Images that a client names by their files, as QEMU finds them (`bdrv_find_backing_image`): by the name under which
//! one is open, by that which the image above it has for it, and by any path that leads to it from the folder of the
//! image above.

use std::path::Path;

use super::super::nodes::{file_name, file_path};
use super::chain;
use crate::config::path_named;
use crate::graph::{Graph, GraphNode, Role};
use crate::io::real_path;
use crate::node::path_of;

/// The first node below `top` whose image is in this file.
pub(super) fn find_by_file<'g>(
    graph: &'g Graph,
    top: &'g GraphNode,
    file: &str,
) -> Option<&'g GraphNode> {
    let mut above = top;
    for node in chain(graph, top).skip(1) {
        let over = std::mem::replace(&mut above, node);
        let is_below = over.edges().iter().any(|edge| edge.role() == Role::Backing);
        let is_it =
            || file_name(graph, node) == file || is_below && is_named_by(graph, over, node, file);
        if node.class() != top.class() && is_it() {
            return Some(node);
        }
    }
    None
}

/// Whether `node` is in this file.
pub(super) fn is_in_file(graph: &Graph, node: &GraphNode, file: &str) -> bool {
    file_name(graph, node) == file
        || path_of(file).is_some_and(|path| leads_to(graph, (node, path), node))
}

/// Whether the image of `above` could call `node` so.
fn is_named_by(graph: &Graph, above: &GraphNode, node: &GraphNode, file: &str) -> bool {
    let is_own_name = above.driver().backing_name().as_deref() == Some(file);
    let path = match is_own_name {
        true => path_named(file),
        false => path_of(file).map(Path::to_owned),
    };
    path.is_some_and(|path| leads_to(graph, (above, &path), node))
}

/// Whether a path leads to the file of `node`, from the folder of the image of `from`.
fn leads_to(graph: &Graph, (from, path): (&GraphNode, &Path), node: &GraphNode) -> bool {
    let real = file_path(graph, node).and_then(|path| real_path(&path).ok());
    let from = file_path(graph, from);
    let folder = from.as_deref().and_then(Path::parent).unwrap_or_else(|| Path::new(""));
    real.is_some() && real_path(&folder.join(path)).ok() == real
}
