//! How images are to name their backings: as they are told to, or by what they stand on after all actions.

use crate::graph::permission::Role;
use crate::graph::snapshot::Graph;
use crate::node::BackingName;

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
    after: &Graph,
) -> Vec<(String, Option<BackingName>)> {
    let mut all: Vec<(String, Option<BackingName>)> = Vec::new();
    for (node, naming) in named {
        let name = match naming {
            Naming::As(name) => Some(name.clone()),
            Naming::Own(_) if all.iter().any(|(other, _)| other == node) => None,
            Naming::Own(_) => own(named, node, after),
        };
        all.extend(name.map(|name| (node.clone(), name)));
    }
    all
}

/// What a node stands on, if that has a name, or nothing. Otherwise the image goes on to name what shows the same.
fn own(named: &[(String, Naming)], node: &str, after: &Graph) -> Option<Option<BackingName>> {
    let at = &after.nodes[after.find_node(node)?];
    let Some(edge) = at.edges.iter().find(|edge| edge.role == Role::Backing) else {
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
        None => by_file(after, edge.child).map(Some),
    }
}

fn with_format(graph: &Graph, name: BackingName, node: usize) -> BackingName {
    let own = || match graph.unfiltered(&graph.nodes[node]).driver.driver() {
        "qcow2" => "qcow2".to_owned(),
        _ => "raw".to_owned(),
    };
    BackingName { format: Some(name.format.unwrap_or_else(own)), ..name }
}

/// How an image names a node, if that is in a file of this host.
fn by_file(graph: &Graph, node: usize) -> Option<BackingName> {
    let node = graph.unfiltered(&graph.nodes[node]);
    let (format, path) = match node.driver.driver() {
        "file" => ("raw", node.driver.file_path()?),
        "qcow2" => {
            let file = node.edges.iter().find(|edge| &*edge.name == "file")?;
            ("qcow2", graph.unfiltered(&graph.nodes[file.child]).driver.file_path()?)
        }
        _ => return None,
    };
    let name = path.to_str()?.to_owned();
    Some(BackingName { name, format: Some(format.to_owned()) })
}
