//! A graph that lives, described.

use super::{
    DescribedBitmap, DescribedDrive, DescribedEdge, DescribedExport, DescribedNode,
    GraphDescription, Kind, permissions,
};
use crate::config::format_size;
use crate::export::nbd::ExportStatus;
use crate::graph::EXPORT_DRIVE;
use crate::graph::{BitmapScope, Edge, Graph, GraphNode};
use crate::host::Host;

/// The description of a host's graph as it is now.
pub(crate) fn of_host(host: &Host) -> GraphDescription {
    let graph = host.graph();
    let all = graph.drives().iter();
    let drives = all.clone().filter(|drive| !drive.id().starts_with(EXPORT_DRIVE));
    let drives = drives.map(|drive| DescribedDrive {
        id: drive.id().to_owned(),
        root: drive.root().map(|root| graph.nodes()[root.child()].name().to_owned()),
        writable: drive.is_writable(),
    });
    let roots = all.filter_map(|drive| {
        let (kind, name) = owner(drive.id());
        Some(edge(&graph, (kind, &name), drive.root()?))
    });
    let mut edges: Vec<DescribedEdge> = roots.collect();
    for parent in graph.nodes().iter().rev() {
        let below = parent.edges().iter();
        edges.extend(below.map(|it| edge(&graph, (Kind::Node, parent.name()), it)));
    }
    GraphDescription {
        drives: drives.collect(),
        exports: exports(host, &graph),
        nodes: graph.nodes().iter().rev().map(node).collect(),
        bitmaps: bitmaps(host, &graph),
        edges,
    }
}

/// Who has a drive's edge: an export of a node has a drive of its own.
fn owner(drive: &str) -> (Kind, String) {
    match drive.strip_prefix(EXPORT_DRIVE) {
        Some(export) => (Kind::Export, export.to_owned()),
        None => (Kind::Drive, drive.to_owned()),
    }
}

fn edge(graph: &Graph, (parent_kind, parent): (Kind, &str), edge: &Edge) -> DescribedEdge {
    DescribedEdge {
        parent_kind,
        parent: parent.to_owned(),
        name: match parent_kind {
            Kind::Export => "node".to_owned(),
            Kind::Drive | Kind::Node => edge.name().to_owned(),
        },
        child: graph.nodes()[edge.child()].name().to_owned(),
        role: edge.role().into(),
        uses: permissions(edge.uses()),
        shares: permissions(edge.shares()),
    }
}

fn node(node: &GraphNode) -> DescribedNode {
    let size = node.info().size_bytes;
    let label = node.driver().label();
    let detail = label.unwrap_or_else(|| format_size(size));
    DescribedNode {
        name: node.name().to_owned(),
        driver: node.driver().driver().to_owned(),
        detail: Some(format!(" {detail}")),
        instance: None,
        read_only: node.info().read_only,
        unnamed: node.name().starts_with('#'),
        size: Some(size),
    }
}

fn bitmaps(host: &Host, graph: &Graph) -> Vec<DescribedBitmap> {
    let describe = |(scope, bitmap): (&BitmapScope, &std::sync::Arc<crate::bitmap::Bitmap>)| {
        let (kind, of) = match scope {
            BitmapScope::Drive(id) => (Kind::Drive, id.to_string()),
            BitmapScope::Node(name) => (Kind::Node, name.to_string()),
        };
        let reader = bitmap.read();
        let kept = host.bitmap(scope, reader.name()).ok().and_then(|bitmap| bitmap.kept_in());
        DescribedBitmap {
            id: reader.name().to_owned(),
            name: reader.name().to_owned(),
            scope: kind,
            of,
            granularity: reader.granularity().bytes(),
            uuid: kept.is_some().then(|| bitmap.identity().uuid.to_string()),
            kept: kept.map(|node| format!("in {node}")),
            state: reader.state().to_string(),
            count: Some(reader.dirty_bytes()),
        }
    };
    graph.bitmaps().map(describe).collect()
}

fn exports(host: &Host, graph: &Graph) -> Vec<DescribedExport> {
    let describe = |export: ExportStatus| {
        let is_of_node = export.drive.starts_with(EXPORT_DRIVE);
        let root = graph.find_drive(&export.drive).and_then(|at| graph.drives()[at].root());
        let node = root.map(|root| graph.nodes()[root.child()].name().to_owned());
        DescribedExport {
            id: export.id,
            name: export.name,
            scope: if is_of_node { Kind::Node } else { Kind::Drive },
            of: if is_of_node { node.unwrap_or_default() } else { export.drive },
            listen: export.address.to_string(),
            writable: export.writable,
            bitmaps: export.bitmaps,
        }
    };
    host.exports().into_iter().map(describe).collect()
}
