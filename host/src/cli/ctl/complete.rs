//! What the last word of a command line can be: for shells.

use super::schema::Schema;
use crate::draw::{GraphDescription, Kind};

/// Members that name drives or nodes.
const NAMES: [&str; 10] = [
    "node",
    "node-name",
    "device",
    "id",
    "by",
    "bottom",
    "above",
    "below",
    "overlay",
    "bitmaps-to",
];
/// The member that can name an export, too.
const ID: &str = "id";
/// Members that name bitmaps of what `node` names.
const BITMAPS: [&str; 3] = ["name", "target", "bitmap"];

/// Completions of the last word, whole.
pub(super) fn candidates(
    words: &[String],
    schema: &Schema,
    graph: Option<&GraphDescription>,
) -> Vec<String> {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, all)| (last, all));
    let mut found: Vec<String> = match before.split_first() {
        None => schema.commands().chain(["watch"]).map(str::to_owned).collect(),
        Some((command, before)) => of_argument(last, command, before, schema, graph),
    };
    found.retain(|candidate| candidate.starts_with(last));
    found.sort_unstable();
    found.dedup();
    found
}

fn of_argument(
    last: &str,
    command: &str,
    before: &[String],
    schema: &Schema,
    graph: Option<&GraphDescription>,
) -> Vec<String> {
    let Some(of) = schema.arguments_of(command) else { return Vec::new() };
    let Some((key, _)) = last.split_once('=') else {
        let given = |name: &str| before.iter().any(|word| word.starts_with(&format!("{name}=")));
        let members = schema.members_of(of).filter(|(name, _)| !given(name));
        return members.map(|(name, _)| format!("{name}=")).collect();
    };
    let wanted = schema.type_at(of, key).unwrap_or_default();
    let mut values: Vec<String> = schema.words_of(wanted).map(str::to_owned).collect();
    if wanted == "bool" {
        values.extend(["true".to_owned(), "false".to_owned()]);
    }
    if let Some(graph) = graph {
        let node = before.iter().find_map(|word| word.strip_prefix("node="));
        match node.filter(|_| BITMAPS.contains(&key)) {
            Some(node) => values.extend(bitmaps_of(graph, node)),
            None if NAMES.contains(&key) => {
                values.extend(graph.drives.iter().map(|drive| drive.id.clone()));
                values.extend(graph.nodes.iter().map(|node| node.name.clone()));
                let exports = graph.exports.iter().filter(|_| key == ID);
                values.extend(exports.map(|export| export.id.clone()));
            }
            None => {}
        }
    }
    values.into_iter().map(|value| format!("{key}={value}")).collect()
}

fn bitmaps_of<'a>(graph: &'a GraphDescription, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let is_drive = graph.drives.iter().any(|drive| drive.id == name);
    let kind = if is_drive { Kind::Drive } else { Kind::Node };
    let of_it = graph.bitmaps.iter().filter(move |it| it.scope == kind && it.of == name);
    of_it.map(|bitmap| bitmap.name.clone())
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::schema;
    use super::*;
    use crate::draw::{DescribedBitmap, DescribedDrive};

    #[test]
    fn commands_members_and_names() {
        let graph = GraphDescription {
            drives: vec![DescribedDrive { id: "vda".into(), root: None, writable: true }],
            exports: vec![],
            nodes: vec![],
            bitmaps: vec![DescribedBitmap {
                id: "daily".into(),
                name: "daily".into(),
                scope: Kind::Drive,
                of: "vda".into(),
                granularity: 512,
                kept: None,
                uuid: None,
                state: "recording".into(),
                count: Some(0),
            }],
            edges: vec![],
        };
        let check = |words: &[&str], expect: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(candidates(&words, &schema(), Some(&graph)), expect, "{words:?}");
        };
        check(&[], &["paint", "watch"]);
        check(&["pa"], &["paint"]);
        check(&["paint", ""], &["colour=", "inner=", "list=", "name=", "node=", "size=", "wet="]);
        check(&["paint", "node=vda", "n"], &["name="]);
        check(&["paint", "colour="], &["colour=blue", "colour=red"]);
        check(&["paint", "colour=r"], &["colour=red"]);
        check(&["paint", "wet=t"], &["wet=true"]);
        check(&["paint", "node="], &["node=vda"]);
        check(&["paint", "node=vda", "name="], &["name=daily"]);
        check(&["paint", "name="], &[]);
        check(&["nosuch", "a"], &[]);
    }
}
