//! What a node's view rests on: the files below it, found along the graph's edges, by whatever names.

use std::future::Future;
use std::pin::Pin;

use super::edge::EdgeRef;
use super::permission::Role;
use super::snapshot::{Cx, Edge, GraphNode};
use crate::error::Result;
use crate::node::{Identity, Upkeep};

/// What a part of a view rests on, with the name of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rests {
    pub(crate) node: String,
    pub(crate) identity: Identity,
}

impl<'g> Cx<'g> {
    /// What the view of child number `position` rests on, after a flush of every node on the way that writes:
    /// leaves, and numbers that decide what is shown of them, from above, in the order of the edges.
    ///
    /// # Errors
    /// The drivers'; `ENOENT` without such a child.
    pub(crate) async fn rests_on(self, position: usize) -> Result<Vec<Rests>> {
        let child = self.child(position)?;
        let (mut found, mut seen) = (Vec::new(), vec![false; self.graph.nodes.len()]);
        self.descend(child.edge, &mut found, &mut seen).await?;
        Ok(found)
    }

    fn descend<'a>(
        self,
        edge: &'g Edge,
        found: &'a mut Vec<Rests>,
        seen: &'a mut Vec<bool>,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>
    where
        'g: 'a,
    {
        Box::pin(async move {
            if std::mem::replace(&mut seen[edge.child], true) {
                return Ok(());
            }
            let node = &self.graph.nodes[edge.child];
            if node.driver.upkeep() == Upkeep::Writes {
                EdgeRef { graph: self.graph, request: self.request, edge }.flush().await?;
            }
            let identity = match has(node, Role::Filtered) {
                true => Identity::OfChildren,
                false => {
                    let identity = node.driver.identity().await;
                    identity.map_err(|error| error.at_node(&node.name))?
                }
            };
            let goes_on = matches!(identity, Identity::OfChildren | Identity::Shaped(_));
            if !matches!(identity, Identity::OfChildren | Identity::Constant) {
                found.push(Rests { node: node.name.to_string(), identity });
            }
            // Who shows a child shows nothing of what it only writes to.
            let is_shown = |edge: &&Edge| !(edge.role == Role::Target && has(node, Role::Filtered));
            for edge in node.edges.iter().filter(|_| goes_on).filter(is_shown) {
                self.descend(edge, found, seen).await?;
            }
            Ok(())
        })
    }
}

fn has(node: &GraphNode, role: Role) -> bool {
    node.edges.iter().any(|edge| edge.role == role)
}
