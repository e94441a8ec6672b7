//! What the last word of a command line can be: for shells.

use super::schema::Schema;
use crate::draw::{GraphDescription, Kind};

/// What a member names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Drive,
    Node,
    /// A node that a plugin serves.
    PluginNode,
    Job,
    Export,
    /// What clients call an export.
    ExportName,
    Checkpoint,
    /// A bitmap of what another member names: one of [`SCOPES`].
    Bitmap,
}

/// Members that name what bitmaps are of, the first that is given.
const SCOPES: [&str; 3] = ["node", "device", "node-name"];

/// What there is that can be named.
#[derive(Default)]
pub(super) struct Known {
    pub(super) graph: Option<GraphDescription>,
    pub(super) jobs: Vec<String>,
    pub(super) checkpoints: Vec<String>,
}

/// Completions of the last word, whole.
pub(super) fn candidates(words: &[String], schema: &Schema, known: &Known) -> Vec<String> {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, all)| (last, all));
    let mut found: Vec<String> = match before.split_first() {
        None => schema.commands().chain(["watch"]).map(str::to_owned).collect(),
        Some((command, before)) => of_argument(last, command, before, schema, known),
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
    known: &Known,
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
    for class in named_by(command, key) {
        values.extend(known.all(*class, before));
    }
    values.into_iter().map(|value| format!("{key}={value}")).collect()
}

/// What a member of a command's arguments names, of what is there: nothing where it is a name for something new.
fn named_by(command: &str, key: &str) -> &'static [Class] {
    const DISKS: &[Class] = &[Class::Drive, Class::Node];
    let is_of_bitmaps = command.starts_with("block-dirty-bitmap-");
    let is_of_jobs = command.starts_with("job-") || command.starts_with("block-job-");
    match (command, key) {
        ("blockdev-add", _)
        | ("drive-add" | "block-export-add" | "checkpoint", "id")
        | ("block-dirty-bitmap-add", "name") => &[],
        (_, "id" | "device") if is_of_jobs => &[Class::Job],
        ("block-export-del", "id") => &[Class::Export],
        ("checkpoint-end", "id") => &[Class::Checkpoint],
        (_, "id") if command.starts_with("drive-") => &[Class::Drive],
        ("nbd-server-remove", "name") => &[Class::ExportName],
        (_, "name" | "target") if is_of_bitmaps => &[Class::Bitmap],
        (_, "bitmap") => &[Class::Bitmap],
        ("plugin-reload", "node") => &[Class::PluginNode],
        ("block_resize", "device") => &[Class::Drive],
        ("block-export-add", "node-name") => DISKS,
        ("block-dirty-bitmap-populate", "base" | "other") => DISKS,
        (_, "node" | "device" | "above" | "bitmaps-to" | "to") => DISKS,
        (_, "node-name" | "image-node-name" | "base-node" | "top-node" | "bottom") => {
            &[Class::Node]
        }
        (_, "by" | "below" | "overlay" | "replaces" | "target") => &[Class::Node],
        _ => &[],
    }
}

impl Known {
    /// All of a class; `before` are the words that say of what bitmaps are.
    fn all(&self, class: Class, before: &[String]) -> Vec<String> {
        match class {
            Class::Job => return self.jobs.clone(),
            Class::Checkpoint => return self.checkpoints.clone(),
            _ => {}
        }
        let Some(graph) = &self.graph else { return Vec::new() };
        match class {
            Class::Job | Class::Checkpoint => Vec::new(),
            Class::Drive => graph.drives.iter().map(|drive| drive.id.clone()).collect(),
            Class::Node => graph.nodes.iter().map(|node| node.name.clone()).collect(),
            Class::PluginNode => {
                let served = graph.nodes.iter().filter(|node| node.driver == "plugin");
                served.map(|node| node.name.clone()).collect()
            }
            Class::Export => graph.exports.iter().map(|export| export.id.clone()).collect(),
            Class::ExportName => graph.exports.iter().map(|export| export.name.clone()).collect(),
            Class::Bitmap => {
                let said = |key: &str| {
                    let mut words = before.iter();
                    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
                };
                let of = SCOPES.into_iter().find_map(said);
                of.map_or_else(Vec::new, |of| bitmaps_of(graph, of))
            }
        }
    }
}

fn bitmaps_of(graph: &GraphDescription, name: &str) -> Vec<String> {
    let is_drive = graph.drives.iter().any(|drive| drive.id == name);
    let kind = if is_drive { Kind::Drive } else { Kind::Node };
    let of_it = graph.bitmaps.iter().filter(|it| it.scope == kind && it.of == name);
    of_it.map(|bitmap| bitmap.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::schema::tests::schema;
    use super::*;
    use crate::control::qapi::{Place, QapiType};
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
        let known = Known { graph: Some(graph), ..Known::default() };
        let check = |words: &[&str], expect: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(candidates(&words, &schema(), &known), expect, "{words:?}");
        };
        check(&[], &["paint", "watch"]);
        check(&["pa"], &["paint"]);
        check(&["paint", ""], &["colour=", "inner=", "list=", "name=", "node=", "size=", "wet="]);
        check(&["paint", "node=vda", "n"], &["name="]);
        check(&["paint", "colour="], &["colour=blue", "colour=red"]);
        check(&["paint", "colour=r"], &["colour=red"]);
        check(&["paint", "wet=t"], &["wet=true"]);
        check(&["paint", "node="], &["node=vda"]);
        check(&["paint", "name="], &[]);
        check(&["nosuch", "a"], &[]);
    }

    /// Each member is completed by what it can name.
    #[test]
    fn names_are_of_the_class_that_is_asked_for() {
        let graph = GraphDescription::parse(
            json!({
                "drives": [{"id": "vda", "root": "top", "writable": true}],
                "nodes": [
                    {"name": "top", "driver": "qcow2", "read-only": false, "unnamed": false},
                    {"name": "slow", "driver": "plugin", "read-only": false, "unnamed": false},
                ],
                "exports": [{"id": "e", "name": "disk", "scope": "drive", "of": "vda",
                    "listen": "unix:s", "writable": true, "bitmaps": []}],
                "bitmaps": [
                    {"id": "b", "name": "daily", "scope": "drive", "of": "vda", "granularity": 512,
                        "state": "recording"},
                    {"id": "c", "name": "own", "scope": "node", "of": "top", "granularity": 512,
                        "state": "recording"},
                ],
                "edges": [],
            }),
            &Place::ROOT,
        )
        .ok();
        assert!(graph.is_some());
        let (jobs, checkpoints) = (vec!["j".to_owned()], vec!["c1".to_owned()]);
        let known = Known { graph, jobs, checkpoints };
        let member = |name: &str| json!({"name": name, "type": "str"});
        let command = |name: &str, members: &[&str]| {
            let of = format!("{name}-arg");
            let members: Vec<Value> = members.iter().map(|name| member(name)).collect();
            [
                json!({"name": name, "meta-type": "command", "arg-type": of}),
                json!({"name": of, "meta-type": "object", "members": members}),
            ]
        };
        let check = |command_name: &str, given: &str, key: &str, expect: &[&str]| {
            let schema = Schema::new(Value::Array(command(command_name, &[key]).into()));
            let words = [command_name, given, &format!("{key}=")].map(str::to_owned);
            let found = candidates(&words, &schema, &known);
            let expect: Vec<String> = expect.iter().map(|name| format!("{key}={name}")).collect();
            assert_eq!(found, expect, "{command_name} {given} {key}=");
        };
        check("job-cancel", "", "id", &["j"]);
        check("block-job-set-speed", "", "device", &["j"]);
        check("block-job-dismiss", "", "id", &["j"]);
        check("drive-del", "", "id", &["vda"]);
        check("drive-set-writable", "", "id", &["vda"]);
        check("drive-add", "", "id", &[]);
        check("drive-add", "", "node-name", &["slow", "top"]);
        check("block-export-del", "", "id", &["e"]);
        check("block-export-add", "", "id", &[]);
        check("block-export-add", "", "node-name", &["slow", "top", "vda"]);
        check("nbd-server-remove", "", "name", &["disk"]);
        check("checkpoint-end", "", "id", &["c1"]);
        check("block-stream", "", "device", &["slow", "top", "vda"]);
        check("block-commit", "", "base-node", &["slow", "top"]);
        check("block-commit", "", "base", &[]);
        check("blockdev-mirror", "", "target", &["slow", "top"]);
        check("blockdev-backup", "device=vda", "bitmap", &["daily"]);
        check("block-dirty-bitmap-merge", "node=top", "target", &["own"]);
        check("block-dirty-bitmap-add", "node=top", "name", &[]);
        check("block-dirty-bitmap-remove", "node=vda", "name", &["daily"]);
        check("block-dirty-bitmap-remove", "", "name", &[]);
        check("plugin-reload", "", "node", &["slow"]);
        check("blockdev-snapshot", "", "overlay", &["slow", "top"]);
        check("blockdev-add", "", "node-name", &[]);
    }
}
