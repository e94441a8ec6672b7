//! Sizes that are known before anything is opened, and the sections that must lie within them.

use super::diagnostic::{Diagnostic, Problems};
use super::spec::{DriverSpec, FileSpec, GraphSpec, MemorySpec, NodeSpec};
use super::units::format_size;

/// The size of `node` in bytes, as far as it is known. `file_bytes` knows the sizes of files.
///
/// The graph must be free of cycles.
fn known_bytes(
    spec: &GraphSpec,
    node: &NodeSpec,
    file_bytes: &dyn Fn(&FileSpec) -> Option<u64>,
) -> Option<u64> {
    if let Some(size) = spec.live().and_then(|live| live.sizes.get(&node.name.value)) {
        return Some(*size);
    }
    let below = || known_bytes(spec, sized_by(spec, node)?, file_bytes);
    match &node.driver {
        DriverSpec::File(file) => file_bytes(file),
        DriverSpec::Memory(memory) if memory.lacks_size => below(),
        DriverSpec::Memory(memory) => Some(memory.size_bytes.value),
        DriverSpec::Null(null) => Some(null.size_bytes.value),
        DriverSpec::Qcow2(image) => image.size_bytes().or_else(below),
        DriverSpec::Raw(raw) => match (&raw.size_bytes, &raw.offset_bytes) {
            (Some(size), _) => Some(size.value),
            (None, Some(offset)) => below().map(|bytes| bytes.saturating_sub(offset.value)),
            (None, None) => below(),
        },
        DriverSpec::Plugin(_) | DriverSpec::Filter(_) | DriverSpec::View(_) => below(),
        DriverSpec::Running(_) => None,
    }
}

impl GraphSpec {
    /// The size of what `node` shows in bytes, as far as it is known before anything is opened. `file_bytes`
    /// knows the sizes of files. The specification must be free of errors.
    pub fn size_of(
        &self,
        node: &NodeSpec,
        file_bytes: &dyn Fn(&FileSpec) -> Option<u64>,
    ) -> Option<u64> {
        known_bytes(self, node, file_bytes)
    }
}

/// The child from whose size that of `node` follows, of nodes without one of their own.
fn sized_by<'a>(spec: &'a GraphSpec, node: &NodeSpec) -> Option<&'a NodeSpec> {
    let name = match node.driver {
        DriverSpec::Memory(_) | DriverSpec::Qcow2(_) => "backing",
        DriverSpec::View(_) => "source",
        _ => "file",
    };
    let child = node.children.iter().find(|child| child.name.value == name)?;
    spec.node(&child.node.value)
}

/// Whether the size of `node` follows from a file's, or an image's; if not and it is not known, a name below is wrong.
fn is_sized_by_file(spec: &GraphSpec, node: &NodeSpec) -> bool {
    let mut below = sized_by(spec, node);
    while let Some(node) = below {
        if matches!(node.driver, DriverSpec::File(_) | DriverSpec::Qcow2(_)) {
            return true;
        }
        below = sized_by(spec, node);
    }
    false
}

/// Gives `memory` nodes that lack a size that of their backing; reports those whose backing's size shows
/// only when it is opened, or does not fit.
///
/// The graph must be free of cycles.
pub(super) fn fill_in(spec: &mut GraphSpec, problems: &Problems) {
    let (order, _) = spec.parents_first();
    // Children first: an overlay over one that lacks a size, too, finds it filled in.
    for index in order.into_iter().rev() {
        let bytes = match &spec.nodes[index].driver {
            DriverSpec::Memory(memory) if memory.lacks_size => {
                size_of_backing(spec, &spec.nodes[index], memory)
            }
            _ => continue,
        };
        let found = bytes.unwrap_or_else(|problem| {
            problem.into_iter().for_each(|problem| problems.push(problem));
            0
        });
        if let DriverSpec::Memory(memory) = &mut spec.nodes[index].driver {
            memory.size_bytes.value = found;
            memory.lacks_size = false;
        }
    }
}

/// The size of an overlay without one, in bytes; or why it has none, unless that has been reported.
fn size_of_backing(
    spec: &GraphSpec,
    node: &NodeSpec,
    memory: &MemorySpec,
) -> Result<u64, Option<Diagnostic>> {
    // Without a child, its name or what it is was wrong.
    let backing = node.children.first().ok_or(None)?;
    let block_bytes = u64::from(memory.block_size_bytes.value);
    let (why, help) = match known_bytes(spec, node, &|_| None) {
        Some(bytes) if bytes.is_multiple_of(block_bytes) => return Ok(bytes),
        Some(bytes) => (
            format!("{}, is not a multiple of its block size", format_size(bytes)),
            format!("add `size = {}`", bytes.next_multiple_of(block_bytes)),
        ),
        None if !is_sized_by_file(spec, node) => return Err(None),
        None => ("is known only when it is opened".to_owned(), "add `size = \"1GiB\"`".to_owned()),
    };
    let message = format!(
        "node `{}` has no `size`, and that of its backing, node `{}`, {why}",
        node.name, backing.node
    );
    let problem = Diagnostic::error(node.name.span, message);
    Err(Some(problem.note(backing.node.span, "the backing").help(help)))
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
