//! The world in a few lines.

use std::fmt;

use super::graph::Node;
use super::ids::{NodeId, View};
use super::world::World;

/// Drives with what they show through which nodes, other nodes, bitmaps, changes in flight, watches.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (drive, root) in self.graph().drives() {
            let path = root.map(|root| self.graph().path(root)).unwrap_or_default();
            let path: Vec<_> = path.iter().map(ToString::to_string).collect();
            writeln!(f, "{drive} → {}", path.join(" → "))?;
        }
        for (id, node) in self.graph().nodes() {
            writeln!(f, "{id}: {} shows {:?}", Kind(node), self.graph().bytes(id))?;
        }
        for (id, bitmap) in self.bitmaps() {
            let state = if bitmap.enabled { "records" } else { "disabled" };
            let (scope, granularity) = (bitmap.scope, bitmap.granularity);
            let (required, allowed) = (&bitmap.record.required, &bitmap.record.allowed);
            write!(f, "{id} of {scope}, granules of {granularity}, {state}: must {required:?}")?;
            writeln!(f, ", may {:?}", allowed.difference(required).collect::<Vec<_>>())?;
            if let Some(frozen) = &bitmap.frozen {
                writeln!(f, "  frozen: {:?}", frozen.required)?;
            }
        }
        for (id, flight) in self.flights() {
            let issued = if flight.issued { "issued" } else { "admitted" };
            write!(f, "{id}: {} of {}, {issued}", flight.span, flight.entry)?;
            writeln!(
                f,
                "{}",
                flight.exempt.map(|view| format!(", proven for {view}")).unwrap_or_default()
            )?;
        }
        for (id, watch) in self.watches() {
            writeln!(f, "{id}: {} of {}, {:?}", watch.span, watch.node, watch.freshness)?;
        }
        Ok(())
    }
}

struct Kind<'a>(&'a Node);

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Node::Memory(memory) => {
                let map =
                    (0..memory.len()).map(|at| if memory.is_allocated(at) { '#' } else { '.' });
                write!(f, "memory {}", map.collect::<String>())?;
                memory.backing().map_or(Ok(()), |backing: NodeId| write!(f, " on {backing}"))
            }
            Node::Filter { child } => write!(f, "filter of {child}"),
            Node::Opaque { child, window, .. } => {
                write!(f, "opaque, {window} of {}", View::Node(*child))
            }
        }
    }
}
