//! Counters and dirty counts as text.

use std::fmt::Write;

use crate::graph::{DriveTitle, Edge, Graph, OpKind};

/// The counters of all edges and plugins, and the dirty counts of all bitmaps of a graph, one line each.
pub fn report(graph: &Graph) -> String {
    let mut lines = Vec::new();
    for drive in graph.drives() {
        if let Some(root) = drive.root() {
            lines.push(edge_line(graph, &DriveTitle(drive.id()).to_string(), root));
        }
    }
    for node in graph.nodes().iter().rev() {
        let parent = format!("node `{}`", node.name());
        lines.extend(node.edges().iter().map(|edge| edge_line(graph, &parent, edge)));
    }
    for node in graph.nodes().iter().rev() {
        lines.extend(node.driver().report().map(|line| format!("node `{}`: {line}", node.name())));
    }
    for (scope, bitmap) in graph.bitmaps() {
        let bitmap = bitmap.read();
        lines.push(format!(
            "bitmap `{}` of {scope}: {} granules of {} dirty ({} bytes), {}",
            bitmap.name(),
            bitmap.count(),
            bitmap.granularity(),
            bitmap.dirty_bytes(),
            bitmap.state()
        ));
    }
    lines.join("\n")
}

fn edge_line(graph: &Graph, parent: &str, edge: &Edge) -> String {
    let counters = edge.counters().snapshot();
    let child = graph.nodes()[edge.child()].name();
    let mut line = format!("{parent} → node `{child}` ({}):", edge.name());
    let mut any = false;
    for kind in OpKind::ALL {
        let (requests, bytes) = (counters.requests[kind.index()], counters.bytes[kind.index()]);
        if requests > 0 {
            let separator = if any { "," } else { "" };
            let _ = write!(line, "{separator} {requests} {} ({bytes} bytes)", kind.name());
            any = true;
        }
    }
    if !any {
        line.push_str(" no requests");
    }
    if counters.errors > 0 {
        let _ = write!(line, ", {} errors", counters.errors);
    }
    line
}
