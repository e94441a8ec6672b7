//! How images are to name their backings: as they are told to, or by what they stand on after all actions.

use std::path::{Path, PathBuf};

use crate::graph::permission::Role;
use crate::graph::snapshot::Graph;
use crate::io::real_path;
use crate::node::{BackingName, chained, name_of, path_of};

/// What an image is to name.
pub(super) enum Naming {
    As(Option<BackingName>),
    /// What it stands on then. A node may be said to have a name of its own; without a format it gets that of the
    /// node.
    Own(Option<(String, BackingName)>),
}

/// By node: the backing that its image is to name, of the graph that is to be.
pub(super) fn resolve(
    named: &[(String, Naming)],
    (before, after): (&Graph, &Graph),
) -> Vec<(String, Option<BackingName>)> {
    let mut all: Vec<(String, Option<BackingName>)> = Vec::new();
    for (node, naming) in named {
        let name = match naming {
            Naming::As(name) => Some(name.clone()),
            Naming::Own(_) if all.iter().any(|(other, _)| other == node) => None,
            Naming::Own(_) => own(named, node, (before, after)),
        };
        all.extend(name.map(|name| (node.clone(), name)));
    }
    all
}

/// What a node stands on, if that has a name, or nothing. Otherwise the image goes on to name what shows the same.
fn own(
    named: &[(String, Naming)],
    node: &str,
    (before, after): (&Graph, &Graph),
) -> Option<Option<BackingName>> {
    let image = after.find_node(node)?;
    let Some(edge) = after.nodes[image].edges.iter().find(|edge| edge.role == Role::Backing) else {
        return Some(None);
    };
    let class = after.nodes[edge.child].class;
    let said = |(of, naming): &(String, Naming)| match naming {
        Naming::Own(Some((backing, name))) => {
            let is_it = after.find_node(backing).is_some_and(|at| after.nodes[at].class == class);
            is_it.then(|| (of != node, name.clone()))
        }
        _ => None,
    };
    // What was said of the node itself comes first.
    let said = named.iter().filter_map(said).min_by_key(|(is_of_another, _)| *is_of_another);
    match said {
        Some((_, name)) => Some(Some(with_format(after, name, edge.child))),
        None => by_file((before, after), image, edge.child).map(Some),
    }
}

fn with_format(graph: &Graph, name: BackingName, node: usize) -> BackingName {
    let own = || match graph.unfiltered(&graph.nodes[node]).driver.driver() {
        "qcow2" => "qcow2".to_owned(),
        _ => "raw".to_owned(),
    };
    BackingName { format: Some(name.format.unwrap_or_else(own)), ..name }
}

/// How an image is to name a node that nobody has said a name of, if that is in a file of this host.
///
/// A folder of images can be moved as long as they name each other relatively. So where the image stood above that
/// node already, and all names on the way down to it are paths, it is named as these lead there: as the image above it
/// named it, if that is in the same folder; by a relative path from the folder of this image, if it is in another one
/// and all of the names are relative; else by an absolute path. Where it comes from elsewhere, it is named by its
/// file's name alone, if the image has named its backing relatively so far and both are in one folder. No such name
/// is taken that does not lead to the file: then, and for names of another kind (`json:…`), it is the absolute path,
/// links resolved.
fn by_file((before, after): (&Graph, &Graph), image: usize, node: usize) -> Option<BackingName> {
    let (format, path) = file_of(after, node)?;
    let real = real_path(&path).ok()?;
    let kept = file_of(after, image)
        .and_then(|(_, own)| kept_name(&names_down_to(before, after, image, node), &own, &real));
    let name = kept.or_else(|| real.to_str().map(str::to_owned))?;
    Some(BackingName { name, format: Some(format.to_owned()) })
}

/// The file of a node, and its format.
fn file_of(graph: &Graph, node: usize) -> Option<(&'static str, PathBuf)> {
    let node = graph.unfiltered(&graph.nodes[node]);
    match node.driver.driver() {
        "file" => Some(("raw", node.driver.file_path()?)),
        "qcow2" => {
            let file = node.edges.iter().find(|edge| &*edge.name == "file")?;
            let file = graph.unfiltered(&graph.nodes[file.child]);
            Some(("qcow2", file.driver.file_path()?))
        }
        _ => None,
    }
}

/// The names that images have for their backings.
struct Names {
    all: Vec<String>,
    /// They lead down to what is to be named.
    is_whole: bool,
}

/// From an image of the graph that is to be down to a node of that, as they were.
fn names_down_to(before: &Graph, after: &Graph, image: usize, node: usize) -> Names {
    let below = after.unfiltered(&after.nodes[node]).generation;
    let from = after.nodes[image].generation;
    let mut names = Names { all: Vec::new(), is_whole: false };
    let mut at = before.nodes.iter().position(|node| node.generation == from);
    while let Some(from) = at.take() {
        let Some(edge) = before.nodes[from].edges.iter().find(|edge| edge.role.is_view()) else {
            break;
        };
        if edge.role == Role::Backing {
            let Some(name) = before.nodes[from].driver.backing_name() else { break };
            names.all.push(name);
        }
        names.is_whole = before.nodes[edge.child].generation == below;
        at = Some(edge.child).filter(|_| !names.is_whole);
    }
    names
}

/// The name by which what is in the file `real` is found by who opens the image in the file `own`, if it can go on to
/// be named in the way of `names`.
fn kept_name(names: &Names, own: &Path, real: &Path) -> Option<String> {
    let is_relative = path_of(names.all.first()?).is_some_and(Path::is_relative);
    let ways = match names.is_whole {
        true => chained(&names.all)?.to_vec(),
        false if is_relative => vec![PathBuf::from(real.file_name()?)],
        false => return None,
    };
    // Some open it by a link, and others follow that first.
    let folders =
        [own.to_owned(), real_path(own).ok()?].map(|path| path.parent().map(Path::to_owned));
    let leads = |way: &&PathBuf| {
        let leads_from =
            |folder: &Path| real_path(&folder.join(way)).is_ok_and(|path| path == *real);
        folders.iter().flatten().all(|folder| leads_from(folder))
    };
    ways.iter().find(leads).and_then(|way| name_of(way))
}
