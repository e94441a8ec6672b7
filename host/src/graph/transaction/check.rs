//! Checks of a whole graph: a driver for each node, permissions that pass down its edges, and whether users
//! can live together.

use std::collections::HashMap;
use std::sync::Arc;

use super::draft::{DraftNode, invalid};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::class::{Class, Cut, Reached};
use crate::graph::permission::{PermissionSet, Role, Users};
use crate::graph::snapshot::{Edge, Graph, GraphNode};
use crate::graph::stake::JobStake;
use crate::graph::user::DriveTitle;
use crate::node::Upkeep;

/// Refuses a driver that is two nodes: they would share bytes that the graph takes for two views, and a
/// change of one would mark nothing of the other.
///
/// # Errors
/// `EINVAL`, with both nodes.
pub(super) fn check_drivers(nodes: &[DraftNode]) -> Result<()> {
    let mut known: HashMap<*const (), &str> = HashMap::with_capacity(nodes.len());
    for node in nodes {
        let Some(other) = known.insert(Arc::as_ptr(&node.driver).cast(), &node.name) else {
            continue;
        };
        let message = format!("its driver is that of node `{other}`, too: make one for each node");
        return Err(invalid(message).at_node(&node.name));
    }
    Ok(())
}

/// Passes what drives use and share down the edges.
pub(super) fn resolve_permissions(graph: &mut Graph) {
    let mut users = vec![Users::NONE; graph.nodes.len()];
    for root in graph.drives.iter().filter_map(|drive| drive.root.as_ref()) {
        let Edge { uses, shares, .. } = *root;
        let user = Users { uses, shares, shares_below: shares };
        users[root.child] = users[root.child].with(user);
    }
    for at in (0..graph.nodes.len()).rev() {
        let driver = Arc::clone(&graph.nodes[at].driver);
        let upkeep = driver.upkeep();
        for (place, edge) in graph.nodes[at].edges.iter_mut().enumerate() {
            let passed = match (edge.role.pass(users[at]), driver.is_exclusive(place)) {
                (passed, false) => passed,
                (passed, true) => passed.exclusive(),
            };
            let own = match (edge.role, upkeep) {
                (Role::Storage, Upkeep::Reads) => PermissionSet::CONSISTENT_READ,
                (Role::Storage, Upkeep::Writes) => PermissionSet::READ_WRITE,
                _ => PermissionSet::NONE,
            };
            let user = Users { uses: edge.grants.union(passed.uses).union(own), ..passed };
            (edge.uses, edge.shares) = (user.uses, user.shares);
            users[edge.child] = users[edge.child].with(user);
        }
    }
}

fn users(graph: &Graph) -> Vec<Vec<(String, &Edge)>> {
    let mut users: Vec<Vec<(String, &Edge)>> = graph.nodes.iter().map(|_| Vec::new()).collect();
    for drive in &graph.drives {
        if let Some(root) = &drive.root {
            users[root.child].push((DriveTitle(&drive.id).to_string(), root));
        }
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for edge in &node.edges {
            users[edge.child].push((graph.title(at), edge));
        }
    }
    users
}

/// Refuses edges that use what another edge to the same node does not share.
///
/// # Errors
/// `EBUSY`, with both edges; `EROFS`.
pub(super) fn check_permissions(graph: &Graph) -> Result<()> {
    let users = users(graph);
    // Parents come after their children: who begins is named, not who passes it on.
    for (node, users) in
        graph.nodes.iter().zip(&users).rev().filter(|(node, _)| node.info.read_only)
    {
        let changes = |(_, edge): &&(String, &Edge)| {
            !edge.uses.intersection(PermissionSet::CHANGES).is_empty()
        };
        if let Some((name, edge)) = users.iter().find(changes) {
            return Err(read_only(graph, node, name, edge));
        }
    }
    for (node, users) in graph.nodes.iter().zip(&users) {
        for (at, (name, edge)) in users.iter().enumerate() {
            let others = users.iter().enumerate().filter(|(other, _)| *other != at);
            for (_, (other_name, other)) in others {
                let missing = edge.uses_of_all().without(other.shares);
                if !missing.is_empty() {
                    let message = format!(
                        "{name} (edge `{}`) uses {missing}, which {other_name} (edge `{}`) does not \
                         share: give one of them a node of its own, or make it read-only",
                        edge.name, other.name
                    );
                    return Err(Error::new(ErrorKind::InUse, message).at_node(&node.name));
                }
            }
        }
    }
    Ok(())
}

/// Somebody changes what is read-only.
fn read_only(graph: &Graph, node: &GraphNode, user: &str, edge: &Edge) -> Error {
    let filtered = node.edges.iter().find(|edge| edge.role == Role::Filtered);
    let of_job = node.driver.job().zip(filtered.map(|edge| &graph.nodes[edge.child]));
    if let Some((job, shown)) = of_job.filter(|(_, shown)| !shown.info.read_only) {
        let message = format!(
            "job `{}` discards there what it has copied, and {user} (edge `{}`) changes it: make that one \
             read-only too, or start the job without that",
            job.id, edge.name
        );
        return Error::new(ErrorKind::ReadOnly, message).at_node(&shown.name);
    }
    let refuser = refuser(graph, node);
    let what = match refuser.generation == node.generation {
        true => "it".to_owned(),
        false => format!("node `{}`, which stands on it", node.name),
    };
    let reopen = match refuser.mode().write {
        true => "",
        false => ", or reopen it with `read-only` false",
    };
    let message = format!(
        "it is read-only, and {user} (edge `{}`) changes {what}: make that one read-only too, or let it use a \
         node that can be written{reopen}",
        edge.name
    );
    Error::new(ErrorKind::ReadOnly, message).at_node(&refuser.name)
}

/// The node because of which one is read-only: itself, or one that it shows.
fn refuser<'g>(graph: &'g Graph, node: &'g GraphNode) -> &'g GraphNode {
    let mut at = node;
    while at.mode().write {
        let mut below = at
            .edges
            .iter()
            .filter(|edge| edge.role.forwards_changes() || edge.role == Role::Storage);
        let Some(edge) = below.find(|edge| graph.nodes[edge.child].info.read_only) else { break };
        at = &graph.nodes[edge.child];
    }
    at
}

/// Writes that are proven for a view conflict with the drives of the views that they alter, and with nodes that
/// keep what is altered behind their backs; those of a job, which are many, with all that stands beside that view.
///
/// # Errors
/// `EBUSY`, with edge and drive, or both edges, or job and node.
pub(super) fn check_proven(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        let job = node.driver.job();
        for edge in node.edges.iter().filter(|edge| edge.grants.contains(PermissionSet::WRITE)) {
            let Some(view) = edge.proven_for.map(|from| &node.edges[from]) else { continue };
            let class = Some(graph.nodes[view.child].class);
            let target = graph.nodes[edge.child].class;
            let Reached { ranged, whole } = graph.views.reached(target, Cut { class, edge: None });
            for (keeper, kept) in exclusive_edges(graph) {
                let shown = graph.nodes[kept.child].class;
                let is_altered = ranged.contains(&shown) || whole.contains(&shown);
                if is_altered && !passes(graph, edge.child, keeper) {
                    let message = format!(
                        "what it writes by its edge `{}` is proven for its edge `{}`, and alters what node \
                         `{}` (edge `{}`) keeps, past that node: let it write through that node, or remove \
                         one of them",
                        edge.name, view.name, graph.nodes[keeper].name, kept.name
                    );
                    return Err(Error::new(ErrorKind::InUse, message).at_node(&node.name));
                }
            }
            if let Some(job) = job {
                check_others_target(graph, (job, node), graph.nodes[edge.child].class)?;
                if job.alters_others {
                    continue;
                }
                let view = graph.nodes[view.child].class;
                let is_beside = |other: &&GraphNode| {
                    let is_reached = ranged.contains(&other.class) || whole.contains(&other.class);
                    is_reached && !graph.views.is_at_or_above(view, other.class)
                };
                if let Some(other) = graph.nodes.iter().find(is_beside) {
                    let message = format!(
                        "what job `{}` writes to it alters what node `{}` shows, which stands on it, \
                         too: remove that, or force the job, which marks it",
                        job.id, other.name
                    );
                    let target = &graph.nodes[edge.child].name;
                    return Err(Error::new(ErrorKind::InUse, message).at_node(target));
                }
            }
            for drive in &graph.drives {
                let Some(root) = &drive.root else { continue };
                let shown = graph.nodes[root.child].class;
                let is_altered = ranged.contains(&shown) || whole.contains(&shown);
                if is_altered && !root.shares.contains(PermissionSet::WRITE) {
                    let message = format!(
                        "what it writes by its edge `{}` is proven for its edge `{}`, and alters what \
                         {} shows: detach that, or let it share `w`",
                        edge.name,
                        view.name,
                        DriveTitle(&drive.id)
                    );
                    return Err(Error::new(ErrorKind::InUse, message).at_node(&node.name));
                }
            }
        }
    }
    Ok(())
}

/// Two jobs that are to have one node show what two others do would undo each other's work for ever.
///
/// # Errors
/// `EBUSY`, with both.
fn check_others_target(
    graph: &Graph,
    (job, node): (&JobStake, &GraphNode),
    target: Class,
) -> Result<()> {
    for other in graph.nodes.iter().filter(|other| other.generation != node.generation) {
        let Some(stake) = other.driver.job() else { continue };
        let to = stake.tracks.and_then(|(_, to)| other.edges.get(to));
        if let Some(to) = to.filter(|to| graph.nodes[to.child].class == target) {
            let (first, second) = (job.id.as_str().min(&stake.id), job.id.as_str().max(&stake.id));
            let message = format!(
                "jobs `{first}` and `{second}` would copy to it at once: wait for the end of one of them, or \
                 cancel it"
            );
            return Err(Error::new(ErrorKind::InUse, message).at_node(&graph.nodes[to.child].name));
        }
    }
    Ok(())
}

/// The edges to what nobody may change past their nodes, with those nodes.
fn exclusive_edges(graph: &Graph) -> impl Iterator<Item = (usize, &Edge)> {
    graph.nodes.iter().enumerate().flat_map(|(at, node)| {
        let edges = node.edges.iter().enumerate();
        edges.filter_map(move |(place, edge)| node.driver.is_exclusive(place).then_some((at, edge)))
    })
}

/// Whether changes that enter at a node are passed on by another one.
fn passes(graph: &Graph, from: usize, by: usize) -> bool {
    let mut at = from;
    loop {
        if at == by {
            return true;
        }
        match graph.nodes[at].edges.iter().find(|edge| edge.role.forwards_changes()) {
            Some(edge) => at = edge.child,
            None => return false,
        }
    }
}
