//! Random sequences of changes, with a model of what must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use blockloom::export::nbd::RemovalMode;
use blockloom::graph::Which;
use blockloom::host::{FilterPlace, Fragment, NewExport};
use blockloom::{Host, block_on};
use blockloom_tests::nbd::Client;
use blockloom_tests::{Random, Scratch};
use serde_json::json;

use super::{empty, socket, uri};
use crate::{MIB, scratch};

/// Sequences of one run; more by `BLOCKLOOM_RUNNING_CASES`.
const CASES: u64 = 200;
const STEPS: u64 = 24;
const NAMES: u64 = 4;

/// What must be there: nodes with their children, drives with their roots, exports with what they serve.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Option<String>>,
    drives: BTreeMap<String, Option<String>>,
    exports: BTreeMap<String, String>,
}

impl Model {
    fn is_used(&self, node: &str) -> bool {
        let by_node = self.nodes.values().flatten().any(|child| child == node);
        by_node || self.drives.values().flatten().any(|root| root == node)
    }

    fn is_exported(&self, drive: &str) -> bool {
        self.exports.values().any(|of| of == drive)
    }

    /// Its node of memory, through filters.
    fn bottom(&self, node: &str) -> String {
        match self.nodes.get(node) {
            Some(Some(child)) => self.bottom(child),
            _ => node.to_owned(),
        }
    }

    fn check(&self, host: &Host, what: &str) {
        let graph = host.graph();
        let nodes: BTreeSet<&str> = graph.nodes().iter().map(|node| node.name()).collect();
        let expect: BTreeSet<&str> = self.nodes.keys().map(String::as_str).collect();
        assert_eq!(nodes, expect, "{what}");
        for node in graph.nodes() {
            let child = node.edges().first().map(|edge| graph.nodes()[edge.child()].name());
            assert_eq!(child, self.nodes[node.name()].as_deref(), "{what}: {}", node.name());
        }
        let drives = graph.drives().iter().map(|drive| {
            let root = drive.root().map(|root| graph.nodes()[root.child()].name().to_owned());
            (drive.id().to_owned(), root)
        });
        assert_eq!(drives.collect::<BTreeMap<_, _>>(), self.drives, "{what}");
        let exports = host.exports().into_iter().map(|export| (export.id, export.drive));
        assert_eq!(exports.collect::<BTreeMap<_, _>>(), self.exports, "{what}");
    }
}

struct Sequence<'a> {
    host: &'a Host,
    scratch: &'a Scratch,
    model: Model,
    random: Random,
}

impl Sequence<'_> {
    fn pick(&mut self, prefix: &str) -> String {
        format!("{prefix}{}", self.random.below(NAMES))
    }

    fn a_node(&mut self) -> String {
        let prefix = if self.random.below(2) == 0 { "disk" } else { "filter" };
        self.pick(prefix)
    }

    /// Does something, and what the model says must have come of it.
    fn step(&mut self) -> String {
        match self.random.below(11) {
            0 => self.add_disk(),
            1 => self.add_filter(),
            2 => self.insert_filter(),
            3 => self.remove_filter(),
            4 | 5 => self.remove_node(),
            6 => self.add_drive(),
            7 => self.remove_drive(),
            8 => self.change_medium(),
            9 => self.add_export(),
            _ => self.remove_export(),
        }
    }

    fn add_disk(&mut self) -> String {
        let name = self.pick("disk");
        let is_file = self.random.below(2) == 0;
        let options = match is_file {
            false => json!({ "driver": "memory", "node-name": name, "size": MIB }),
            true => {
                let path = self.scratch.image(&name);
                json!({ "driver": "file", "node-name": name, "filename": path, "create": MIB })
            }
        };
        let added = self.host.add(&Fragment::blockdev(options)).is_ok();
        assert_eq!(added, !self.model.nodes.contains_key(&name), "add {name}");
        self.model.nodes.entry(name.clone()).or_insert(None);
        format!("add {name}")
    }

    fn add_filter(&mut self) -> String {
        let (name, child) = (self.pick("filter"), self.a_node());
        let options = json!({ "driver": "pass", "node-name": name, "file": child });
        let is_possible =
            !self.model.nodes.contains_key(&name) && self.model.nodes.contains_key(&child);
        let added = self.host.add(&Fragment::blockdev(options)).is_ok();
        assert_eq!(added, is_possible, "add {name} on {child}");
        if added {
            self.model.nodes.insert(name.clone(), Some(child.clone()));
        }
        format!("add {name} on {child}")
    }

    fn insert_filter(&mut self) -> String {
        let (name, node) = (self.pick("filter"), self.a_node());
        let is_possible =
            !self.model.nodes.contains_key(&name) && self.model.nodes.contains_key(&node);
        let place = FilterPlace::Above { node: node.clone(), users: Which::All };
        let options = json!({ "driver": "pass", "node-name": name });
        let inserted = self.host.insert_filter(&place, &options).is_ok();
        assert_eq!(inserted, is_possible, "insert {name} above {node}");
        if inserted {
            let users = self.model.nodes.values_mut().chain(self.model.drives.values_mut());
            let of_node = users.filter(|child| child.as_ref() == Some(&node));
            of_node.for_each(|child| *child = Some(name.clone()));
            self.model.nodes.insert(name.clone(), Some(node.clone()));
        }
        format!("insert {name} above {node}")
    }

    fn remove_filter(&mut self) -> String {
        let name = self.a_node();
        let child = self.model.nodes.get(&name).cloned().flatten();
        let removed = block_on(self.host.remove_filter(&name)).is_ok();
        assert_eq!(removed, child.is_some(), "take out {name}");
        if removed {
            let users = self.model.nodes.values_mut().chain(self.model.drives.values_mut());
            users.filter(|it| it.as_ref() == Some(&name)).for_each(|it| it.clone_from(&child));
            self.model.nodes.remove(&name);
        }
        format!("take out {name}")
    }

    fn remove_node(&mut self) -> String {
        let name = self.a_node();
        let is_possible = self.model.nodes.contains_key(&name) && !self.model.is_used(&name);
        let removed = block_on(self.host.remove_node(&name)).is_ok();
        assert_eq!(removed, is_possible, "remove {name}");
        if removed {
            self.model.nodes.remove(&name);
        }
        format!("remove {name}")
    }

    /// Whether one more writer of what is below `node` goes: drives mind each other.
    fn has_writer(&self, node: &str) -> bool {
        let bottom = self.model.bottom(node);
        self.model.drives.values().flatten().any(|root| self.model.bottom(root) == bottom)
    }

    fn add_drive(&mut self) -> String {
        let (id, node) = (self.pick("drive"), self.a_node());
        let root = (self.random.below(4) > 0).then_some(node);
        let fits = root
            .as_ref()
            .is_none_or(|root| self.model.nodes.contains_key(root) && !self.has_writer(root));
        let is_possible = fits && !self.model.drives.contains_key(&id);
        let added = block_on(self.host.add_drive(&id, root.as_deref(), true)).is_ok();
        assert_eq!(added, is_possible, "add {id} on {root:?}");
        if added {
            self.model.drives.insert(id.clone(), root.clone());
        }
        format!("add {id} on {root:?}")
    }

    fn remove_drive(&mut self) -> String {
        let id = self.pick("drive");
        let is_possible = self.model.drives.contains_key(&id) && !self.model.is_exported(&id);
        let removed = block_on(self.host.remove_drive(&id)).is_ok();
        assert_eq!(removed, is_possible, "remove {id}");
        if removed {
            self.model.drives.remove(&id);
        }
        format!("remove {id}")
    }

    fn change_medium(&mut self) -> String {
        let (id, node) = (self.pick("drive"), self.a_node());
        let has_medium = self.model.drives.get(&id).is_some_and(Option::is_some);
        if has_medium {
            block_on(self.host.eject_medium(&id)).expect("a medium");
            self.model.drives.insert(id.clone(), None);
            return format!("eject {id}");
        }
        let is_possible = self.model.drives.contains_key(&id)
            && self.model.nodes.contains_key(&node)
            && !self.has_writer(&node);
        let inserted = block_on(self.host.insert_medium(&id, &node)).is_ok();
        assert_eq!(inserted, is_possible, "insert {node} into {id}");
        if inserted {
            self.model.drives.insert(id.clone(), Some(node.clone()));
        }
        format!("insert {node} into {id}")
    }

    fn add_export(&mut self) -> String {
        let (id, drive) = (self.pick("export"), self.pick("drive"));
        let is_possible =
            self.model.drives.contains_key(&drive) && !self.model.exports.contains_key(&id);
        let listen = Some(socket(self.scratch));
        let export = NewExport { listen, writable: true, ..NewExport::of_drive(&id, &drive) };
        let added = block_on(self.host.add_export(export)).is_ok();
        assert_eq!(added, is_possible, "export {drive} as {id}");
        if added {
            self.model.exports.insert(id.clone(), drive.clone());
            if self.model.drives[&drive].is_some() {
                let mut client = Client::open(&uri(self.scratch, &id));
                assert_eq!(client.write(0, 0, id.as_bytes()), 0);
                assert_eq!(client.read(0, id.len() as u32), Ok(id.as_bytes().to_vec()));
                client.disconnect();
            }
        }
        format!("export {drive} as {id}")
    }

    fn remove_export(&mut self) -> String {
        let id = self.pick("export");
        let removed = block_on(self.host.remove_export(&id, RemovalMode::Hard)).is_ok();
        assert_eq!(removed, self.model.exports.remove(&id).is_some(), "end {id}");
        format!("end {id}")
    }
}

/// Files of images and sockets of this test that this process has open.
fn open_files(scratch: &Scratch) -> Vec<String> {
    let own = [scratch.image(""), scratch.path("")].map(|path| path.display().to_string());
    let descriptors = fs::read_dir("/proc/self/fd").expect("descriptors");
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let targets = targets.map(|path| path.display().to_string());
    targets
        .filter(|path| own.iter().any(|own| path.starts_with(own.trim_end_matches('/'))))
        .collect()
}

#[test]
fn any_sequence_leaves_what_the_model_says_and_no_file_open() {
    let cases = std::env::var("BLOCKLOOM_RUNNING_CASES").ok().and_then(|it| it.parse().ok());
    let cases: u64 = cases.unwrap_or(CASES);
    let per_host = 10;
    for first in (0..cases).step_by(per_host) {
        let host = empty();
        for seed in first..(first + per_host as u64).min(cases) {
            run_case(&host, seed);
        }
        host.shutdown().expect("an end in order");
    }
}

fn run_case(host: &Host, seed: u64) {
    let scratch = scratch();
    let (model, random) = (Model::default(), Random::new(seed + 1));
    let mut sequence = Sequence { host, scratch: &scratch, model, random };
    let mut done = Vec::new();
    for _ in 0..STEPS {
        done.push(sequence.step());
        sequence.model.check(host, &format!("seed {seed}: {done:?}"));
    }
    let Model { nodes, drives, exports } = &sequence.model;
    for id in exports.keys() {
        block_on(host.remove_export(id, RemovalMode::Hard)).expect("an end");
    }
    for id in drives.keys() {
        block_on(host.remove_drive(id)).expect("nobody uses it");
    }
    let mut left: BTreeSet<&String> = nodes.keys().collect();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|node| block_on(host.remove_node(node)).is_err());
        assert!(left.len() < before, "seed {seed}: {left:?} cannot be removed");
    }
    Model::default().check(host, &format!("seed {seed}: the end of {done:?}"));
    // Workers let go of a former graph when they come to it.
    blockloom_tests::eventually("all files are closed", || {
        open_files(&scratch).is_empty().then_some(())
    });
}
