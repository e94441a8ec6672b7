//! What a configuration file says, described.

use super::{
    DescribedBitmap, DescribedDrive, DescribedEdge, DescribedExport, DescribedNode,
    GraphDescription, Kind, RECORDING, permissions,
};
use crate::config::{
    BackingSpec, BitmapSpec, DriverSpec, EdgeParent, EdgeSpec, ExportSpec, GraphSpec, NodeSpec,
    Persist, Scope, format_size,
};

/// The description of a file's graph.
pub fn of_spec(spec: &GraphSpec) -> GraphDescription {
    let drives = spec.drives.iter().map(|drive| DescribedDrive {
        id: drive.id.value.clone(),
        root: drive.root.as_ref().map(|root| root.value.clone()),
        writable: drive.is_writable(spec),
    });
    GraphDescription {
        drives: drives.collect(),
        exports: spec.exports.iter().map(export).collect(),
        nodes: spec.nodes.iter().map(node).collect(),
        bitmaps: spec.bitmaps.iter().map(bitmap).collect(),
        edges: spec.edges.iter().map(edge).collect(),
    }
}

fn split(scope: &Scope) -> (Kind, String) {
    match scope {
        Scope::Drive(id) => (Kind::Drive, id.value.clone()),
        Scope::Node(name) => (Kind::Node, name.value.clone()),
    }
}

fn export(export: &ExportSpec) -> DescribedExport {
    let (scope, of) = split(&export.scope);
    DescribedExport {
        id: export.id.value.clone(),
        name: export.name.value.clone(),
        scope,
        of,
        listen: export.listen.to_string(),
        writable: export.writable.value,
        bitmaps: export.bitmaps.iter().map(|id| id.value.clone()).collect(),
    }
}

fn bitmap(bitmap: &BitmapSpec) -> DescribedBitmap {
    let (scope, of) = split(&bitmap.scope);
    let kept = match &bitmap.persist.value {
        Persist::None => None,
        Persist::Root => Some("at the root".to_owned()),
        Persist::Node(node) => Some(format!("in {node}")),
        Persist::Meta => Some("in the metadata image".to_owned()),
    };
    DescribedBitmap {
        id: bitmap.id.value.clone(),
        name: bitmap.name.value.clone(),
        scope,
        of,
        granularity: bitmap.granularity_bytes.value.into(),
        kept,
        uuid: bitmap.uuid.as_ref().map(|uuid| uuid.value.to_string()),
        state: if bitmap.enabled.value { RECORDING } else { "disabled" }.to_owned(),
        count: None,
    }
}

fn edge(edge: &EdgeSpec) -> DescribedEdge {
    let (parent_kind, parent) = match &edge.parent {
        EdgeParent::Drive(id) => (Kind::Drive, id),
        EdgeParent::Export(id) => (Kind::Export, id),
        EdgeParent::Node(name) => (Kind::Node, name),
    };
    DescribedEdge {
        parent_kind,
        parent: parent.clone(),
        name: edge.name.clone(),
        child: edge.child.clone(),
        role: edge.role.into(),
        uses: permissions(edge.uses),
        shares: permissions(edge.shares),
    }
}

fn node(node: &NodeSpec) -> DescribedNode {
    let (detail, size) = match &node.driver {
        DriverSpec::File(file) => (format!(" {}", file.path), None),
        DriverSpec::Memory(memory) => sized(memory.size_bytes.value),
        DriverSpec::Null(null) => sized(null.size_bytes.value),
        DriverSpec::Raw(raw) => {
            let offset = raw.offset_bytes.as_ref().map(|it| (" from ", it.value));
            let size = raw.size_bytes.as_ref().map(|it| (" size ", it.value));
            let parts = [offset, size].into_iter().flatten();
            let detail = parts.map(|(what, bytes)| format!("{what}{}", format_size(bytes)));
            (detail.collect(), None)
        }
        DriverSpec::Qcow2(image) => match image.size_bytes() {
            Some(bytes) => sized(bytes),
            None if image.backing.value == BackingSpec::AsImage && image.image.is_none() => {
                (", backing as its image says".to_owned(), None)
            }
            None => (String::new(), None),
        },
        DriverSpec::Plugin(plugin) => (format!(" {}", plugin.plugin.value), None),
        DriverSpec::Filter(_) | DriverSpec::Running(_) => (String::new(), None),
        DriverSpec::View(view) => (format!(" {}", view.view), None),
    };
    DescribedNode {
        name: node.name.value.clone(),
        driver: node.driver.name().to_owned(),
        detail: Some(detail).filter(|detail| !detail.is_empty()),
        instance: node.driver.instance().map(ToString::to_string),
        read_only: node.read_only.value,
        unnamed: node.is_unnamed,
        size,
    }
}

fn sized(bytes: u64) -> (String, Option<u64>) {
    (format!(" {}", format_size(bytes)), Some(bytes))
}
