//! What a `qcow2` node asks of the nodes below it.

use super::diagnostic::{Diagnostic, Problems, Spanned};
use super::spec::{DriverSpec, FileSpec, GraphSpec, NodeSpec};

/// Reports files that are made in a way that leaves no image in them, and images that are to be made and
/// may not be written.
pub(super) fn check(spec: &GraphSpec, problems: &Problems) {
    for node in &spec.nodes {
        let DriverSpec::Qcow2(image) = &node.driver else { continue };
        if let Some(create) = file_of(spec, node, "file").and_then(|it| it.create_bytes.as_ref())
            && create.value > 0
        {
            let message = format!(
                "`create` would make the file of node `{}` with zeros, which are no qcow2 image",
                node.name
            );
            let help = match image.create {
                Some(_) => "remove it: the image makes its file".to_owned(),
                None => {
                    format!("remove it, and add `create = {{ size = … }}` to node `{}`", node.name)
                }
            };
            problems.push(Diagnostic::error(create.span, message).help(help));
        }
        if let Some(create) = image.create.as_ref().filter(|_| node.read_only.value) {
            let message = format!("node `{}` is read-only: no image can be made", node.name);
            problems.push(
                Diagnostic::error(node.read_only.span, message)
                    .note(create.span, "the image to be made")
                    .help("remove one of the two"),
            );
        }
    }
}

/// Has the plain files of images that are to be made be made, too.
pub(super) fn fill_in(spec: &mut GraphSpec) {
    for index in 0..spec.nodes.len() {
        let DriverSpec::Qcow2(image) = &spec.nodes[index].driver else { continue };
        let Some(create) = &image.create else { continue };
        let span = create.span;
        let children = spec.nodes[index].children.iter();
        let children = children.filter(|child| child.name.value != "backing");
        let names: Vec<String> = children.map(|child| child.node.value.clone()).collect();
        for child in spec.nodes.iter_mut().filter(|node| names.contains(&node.name.value)) {
            if let DriverSpec::File(file) = &mut child.driver {
                file.create_bytes.get_or_insert_with(|| Spanned::new(0, span));
            }
        }
    }
}

/// The plain file that is the child called `child` of `node`.
pub(super) fn file_of<'a>(
    spec: &'a GraphSpec,
    node: &NodeSpec,
    child: &str,
) -> Option<&'a FileSpec> {
    let child = node.children.iter().find(|it| it.name.value == child)?;
    match &spec.node(&child.node.value)?.driver {
        DriverSpec::File(file) => Some(file),
        _ => None,
    }
}

/// The image whose file is `node`.
pub(super) fn image_in<'a>(spec: &'a GraphSpec, node: &NodeSpec) -> Option<&'a NodeSpec> {
    spec.nodes.iter().find(|parent| {
        matches!(parent.driver, DriverSpec::Qcow2(_))
            && parent.children.iter().any(|it| it.name.value == "file" && it.node == node.name)
    })
}
