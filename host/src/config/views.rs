//! Views of points in time: whose they are, and the nodes from which they are read.

use super::diagnostic::{Diagnostic, Problems, Spanned};
use super::references::unknown;
use super::render::clip;
use super::spec::{ChildSpec, Declared, DriverSpec, FilterKind, GraphSpec, NodeSpec, ViewSpec};
use super::table::Table;

/// The one view that the host's own backup has.
const SNAPSHOT: &str = "snapshot";

pub(super) fn read_view(table: &mut Table<'_>) -> DriverSpec {
    for key in ["child", "file", "source", "target"] {
        let help = "write `of = \"NODE\"`: that node's children are read";
        table.refuse(key, "is not how driver `plugin-view` is told what it shows", help);
    }
    let of = table.need::<String>("of", "\"NODE\"");
    let view = table.need::<String>("view", "\"snapshot\"");
    DriverSpec::View(ViewSpec {
        of: of.unwrap_or_else(|| table.default(String::new())),
        view: view.unwrap_or_else(|| table.default(SNAPSHOT.to_owned())),
        discard: table.take("discard"),
    })
}

/// Gives each view its children: what the node copies, what it copies to, and the node.
pub(super) fn fill_in(spec: &mut GraphSpec, declared: &Declared, problems: &Problems) {
    for index in 0..spec.nodes.len() {
        let DriverSpec::View(view) = &spec.nodes[index].driver else { continue };
        if view.of.value.is_empty() {
            // It is missing, which has been reported.
            continue;
        }
        match children(spec, declared, &spec.nodes[index], view) {
            Ok(children) => spec.nodes[index].children = children,
            Err(problem) => problems.push(problem),
        }
    }
}

fn children(
    spec: &GraphSpec,
    declared: &Declared,
    node: &NodeSpec,
    view: &ViewSpec,
) -> Result<Vec<ChildSpec>, Diagnostic> {
    let ViewSpec { of, view, .. } = view;
    let user = format!("`of` of node `{}`", clip(&node.name.value));
    if let Some(problem) = unknown("node", of, &user, &declared.nodes) {
        return Err(problem);
    }
    // A node that is too wrong to be there has been reported.
    let Some(shown) = spec.node(&of.value) else { return Ok(Vec::new()) };
    let problem = |message: String, help: &str| {
        let problem = Diagnostic::error(of.span, message);
        problem.note(shown.name.span, "that node").help(help)
    };
    match &shown.driver {
        DriverSpec::Plugin(_) => {}
        DriverSpec::Filter(filter) if filter.kind == FilterKind::Backup => {
            if view.value != SNAPSHOT {
                let message = format!("driver `backup` has no view `{}`", clip(&view.value));
                let problem = Diagnostic::error(view.span, message);
                return Err(problem.help("write `view = \"snapshot\"`"));
            }
        }
        other => {
            let message = format!(
                "node `{}` has no views: its driver is `{}`",
                clip(&of.value),
                other.name()
            );
            return Err(problem(message, "name a node whose driver is `backup` or `plugin`"));
        }
    }
    let child = |name: &str| shown.children.iter().find(|child| child.name.value == name);
    let (Some(source), Some(target)) = (child("file"), child("target")) else {
        let message = format!("node `{}` has no child `target`: it has no view", clip(&of.value));
        return Err(problem(
            message,
            "give that node what it copies to: `child.target = \"NODE\"`",
        ));
    };
    let nodes = [("source", &source.node.value), ("target", &target.node.value), ("of", &of.value)];
    let child = |(name, node): (&str, &String)| ChildSpec {
        name: Spanned::new(name.to_owned(), of.span),
        node: Spanned::new(node.clone(), of.span),
    };
    Ok(nodes.map(child).into())
}
