//! Which node keeps a bitmap.

use super::{Home, Keep};
use crate::bitmap::BitmapName;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapScope, Graph, GraphNode, Role};

/// The nodes from what `scope` shows downwards along view edges.
pub(super) fn view_path<'g>(
    graph: &'g Graph,
    scope: &BitmapScope,
) -> impl Iterator<Item = &'g GraphNode> {
    let top = match scope {
        BitmapScope::Node(name) => graph.find_node(name),
        BitmapScope::Drive(id) => {
            let drive = graph.find_drive(id).map(|at| &graph.drives()[at]);
            drive.and_then(|drive| drive.root()).map(|root| root.child())
        }
    };
    let below = |node: &&'g GraphNode| {
        let view = node.edges().iter().find(|edge| edge.role().is_view())?;
        Some(&graph.nodes()[view.child()])
    };
    std::iter::successors(top.map(|at| &graph.nodes()[at]), below)
}

/// The node that keeps a bitmap of `scope`.
///
/// # Errors
/// Why there is none: it has no place for bitmaps (`ENOTSUP`), is not there (`ENOENT`), is not below what the
/// bitmap records (`EINVAL`), cannot be written (`EROFS`).
pub(super) fn home_for(graph: &Graph, scope: &BitmapScope, keep: &Keep) -> Result<Home> {
    let mut path = view_path(graph, scope);
    let found = match keep {
        Keep::Node(name) => {
            let at = graph.find_node(name).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no node `{name}` to keep it in"))
            })?;
            let node = &graph.nodes()[at];
            if !path.any(|other| other.generation() == node.generation()) {
                let message = format!("it is not below {scope}, whose changes the bitmap records");
                return Err(Error::new(ErrorKind::Invalid, message).at_node(name));
            }
            let home = Home::of(node).ok_or_else(|| {
                let driver = node.driver().driver();
                let message =
                    format!("driver `{driver}` keeps no bitmaps: name a `qcow2` node of version 3");
                Error::new(ErrorKind::NotSupported, message).at_node(name)
            })?;
            return if home.writes() { Ok(home) } else { Err(read_only(&home)) };
        }
        Keep::Root => path.filter_map(Home::of).find(Home::writes),
        Keep::Meta => path
            .filter(|node| node.edges().iter().any(|edge| edge.role() == Role::Data))
            .filter_map(Home::of)
            .find(Home::writes),
    };
    found.ok_or_else(|| {
        let mut stores = view_path(graph, scope).filter_map(Home::of);
        let message = match (stores.next(), keep) {
            (Some(home), Keep::Root) => return read_only(&home),
            (Some(_), _) => format!("{scope} has no image that shows an external data file"),
            (None, _) => format!("{scope} has no image that keeps bitmaps"),
        };
        Error::new(ErrorKind::NotSupported, message)
    })
}

/// Where a bitmap is to be kept that has come to `scope` from elsewhere, and was in the image of `home`: by a drive
/// in its first image, by a node in one of those that show its view.
pub(super) fn keep_at(
    graph: &Graph,
    scope: &BitmapScope,
    keep: &Keep,
    home: Option<&Home>,
) -> Keep {
    let BitmapScope::Node(node) = scope else {
        return if matches!(keep, Keep::Node(_)) { Keep::Root } else { keep.clone() };
    };
    let homes: Vec<Home> = same_view(graph, scope).filter_map(Home::of).collect();
    let is_home = |other: &&Home| home.is_some_and(|home| home.generation == other.generation);
    let found = homes.iter().find(is_home).or_else(|| homes.iter().find(|home| home.writes()));
    let found = found.or_else(|| homes.first()).map_or(node, |home| &home.name);
    Keep::Node(found.to_string())
}

/// The nodes from what `scope` shows downwards that show the same.
fn same_view<'g>(graph: &'g Graph, scope: &BitmapScope) -> impl Iterator<Item = &'g GraphNode> {
    let stands = |node: &GraphNode| node.edges().iter().any(|edge| edge.role() == Role::Backing);
    let mut is_over = false;
    view_path(graph, scope).take_while(move |node| !std::mem::replace(&mut is_over, stands(node)))
}

fn read_only(home: &Home) -> Error {
    let message = "its image is read-only, and can keep no bitmap";
    Error::new(ErrorKind::ReadOnly, message).at_node(&home.name)
}

/// What records a stored bitmap of which only the name is known: the first from the top along the view edges
/// of `scope`.
pub(in crate::host) fn first_stored(
    graph: &Graph,
    scope: &BitmapScope,
    name: &BitmapName,
) -> Option<BitmapScope> {
    let keepers = view_path(graph, scope).filter(|node| node.driver().bitmap_store().is_some());
    let scopes = keepers.map(|node| BitmapScope::Node(node.name().into()));
    scopes.into_iter().find(|scope| graph.find_bitmap(scope, name.as_str()).is_some())
}
