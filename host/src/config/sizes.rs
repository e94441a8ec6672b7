//! Sizes that are known before anything is opened, and the sections that must lie within them.

use super::diagnostic::Diagnostic;
use super::spec::{DriverSpec, FileSpec, GraphSpec, NodeSpec};
use super::units::format_size;

/// The size of `node` in bytes, as far as it is known. `file_bytes` knows the sizes of files.
///
/// The graph must be free of cycles.
fn known_bytes(
    spec: &GraphSpec,
    node: &NodeSpec,
    file_bytes: &dyn Fn(&FileSpec) -> Option<u64>,
) -> Option<u64> {
    let below = || {
        let child = node.children.iter().find(|child| child.name.value == "file")?;
        known_bytes(spec, spec.node(&child.node.value)?, file_bytes)
    };
    match &node.driver {
        DriverSpec::File(file) => file_bytes(file),
        DriverSpec::Memory(memory) => Some(memory.size_bytes.value),
        DriverSpec::Null(null) => Some(null.size_bytes.value),
        DriverSpec::Raw(raw) => match (&raw.size_bytes, &raw.offset_bytes) {
            (Some(size), _) => Some(size.value),
            (None, Some(offset)) => below().map(|bytes| bytes.saturating_sub(offset.value)),
            (None, None) => below(),
        },
        DriverSpec::Plugin(_) | DriverSpec::Filter(_) => below(),
    }
}

/// Reports sections of `raw` nodes that go past the end of their child.
pub(super) fn check_sections(
    spec: &GraphSpec,
    file_bytes: &dyn Fn(&FileSpec) -> Option<u64>,
    mut report: impl FnMut(Diagnostic),
) {
    for node in &spec.nodes {
        let DriverSpec::Raw(raw) = &node.driver else { continue };
        let Some(child) = node.children.first() else { continue };
        let Some(target) = spec.node(&child.node.value) else { continue };
        let Some(there) = known_bytes(spec, target, file_bytes) else { continue };
        let offset = raw.offset_bytes.as_ref().map_or(0, |offset| offset.value);
        let size = raw.size_bytes.as_ref().map_or(0, |size| size.value);
        let Some(key) = raw.size_bytes.as_ref().or(raw.offset_bytes.as_ref()) else { continue };
        let end = offset.saturating_add(size);
        if end <= there {
            continue;
        }
        let message = format!(
            "the section of node `{}` {} at {} of node `{}`, which has {}",
            node.name,
            if size == 0 { "begins" } else { "ends" },
            format_size(end),
            target.name,
            format_size(there)
        );
        report(
            Diagnostic::error(key.span, message)
                .note(child.node.span, "the child")
                .help("make the section smaller, or the child larger"),
        );
    }
}
