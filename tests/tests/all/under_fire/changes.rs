//! Changes of the graph below a drive in use, by commands.

use std::fs;

use blockloom::plugin::bundled;
use blockloom_tests::Random;
use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use super::SIZE;
use crate::control::Controlled;

/// Images in a chain at most.
const CHAIN_MAX: usize = 4;
/// The filter that comes and goes.
const FILTER: &str = "filter";
/// Its plugin.
const PLUGIN: &str = "slow.wasm";

/// What is done to the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Snapshot,
    Stream,
    Commit,
    Mirror,
    Filter,
    Reload,
    Reopen,
}

pub(super) const CHANGES: [Change; 7] = [
    Change::Snapshot,
    Change::Stream,
    Change::Commit,
    Change::Mirror,
    Change::Filter,
    Change::Reload,
    Change::Reopen,
];

/// An order in which each can be made.
pub(super) const ORDER: [Change; 8] = [
    Change::Filter,
    Change::Snapshot,
    Change::Reopen,
    Change::Stream,
    Change::Reload,
    Change::Snapshot,
    Change::Commit,
    Change::Mirror,
];

pub(super) struct Graph<'h> {
    host: &'h Controlled,
    qmp: Qmp,
    /// Images and jobs so far.
    made: usize,
}

/// A list of what `query-graph` says.
fn all<'a>(graph: &'a Value, part: &str) -> &'a [Value] {
    graph[part].as_array().expect("a list")
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().expect("a name")
}

fn find<'a>(graph: &'a Value, node: &str) -> Option<&'a Value> {
    all(graph, "nodes").iter().find(|it| it["name"] == node)
}

impl<'h> Graph<'h> {
    pub(super) fn new(host: &'h Controlled) -> Self {
        Self { host, qmp: host.client(), made: 0 }
    }

    fn query(&mut self) -> Value {
        self.qmp.run("query-graph", json!({}))
    }

    /// Runs a command that may be refused.
    fn ask(&mut self, command: &str, arguments: Value) -> Result<(), String> {
        let answer = self.qmp.ask(command, arguments);
        answer.get("error").map_or(Ok(()), |error| Err(format!("{command}: {}", error["desc"])))
    }

    /// Adds an image, of zeros.
    fn image(&mut self) -> String {
        self.made += 1;
        let name = format!("n{}", self.made);
        let path = self.host.scratch.image(&format!("{name}.qcow2"));
        let file = json!({"driver": "file", "filename": path});
        let image = json!({"driver": "qcow2", "node-name": name, "file": file, "backing": null,
            "create": {"size": SIZE}});
        self.qmp.run("blockdev-add", image);
        name
    }

    /// The images that the drive shows, from the top.
    fn chain(&mut self) -> Vec<String> {
        let graph = self.query();
        let is_view = |edge: &&Value| matches!(text(edge, "role"), "root" | "filtered" | "backing");
        let below = |kind: &str, parent: &str| {
            let mut edges = all(&graph, "edges").iter().filter(is_view);
            edges.find(|it| it["parent-kind"] == kind && it["parent"] == parent)
        };
        let mut images = Vec::new();
        let mut edge = below("drive", "vda");
        while let Some(node) = edge.and_then(|edge| find(&graph, text(edge, "child"))) {
            if node["driver"] == "qcow2" {
                images.push(text(node, "name").to_owned());
            }
            edge = below("node", text(node, "name"));
        }
        images
    }

    /// Makes a change, or one that has to come before it.
    ///
    /// # Errors
    /// Why the host refuses it.
    pub(super) fn make(&mut self, change: Change, random: &mut Random) -> Result<Change, String> {
        let chain = self.chain();
        let made = match change {
            Change::Snapshot if chain.len() < CHAIN_MAX => change,
            Change::Stream | Change::Commit if chain.len() == 1 => Change::Snapshot,
            Change::Reopen if chain.len() == 1 => Change::Snapshot,
            Change::Snapshot => Change::Commit,
            Change::Reload if !self.has_filter() => Change::Filter,
            other => other,
        };
        let result = match made {
            Change::Snapshot => self.snapshot(&chain[0]),
            Change::Stream => self.stream(&chain, random),
            Change::Commit => self.commit(&chain, random),
            Change::Mirror => self.mirror(&chain[0]),
            Change::Filter => self.filter(&chain[0]),
            Change::Reload => self.reload(),
            Change::Reopen => self.reopen(&chain[chain.len() - 1]),
        };
        self.tidy();
        result.map(|()| made)
    }

    fn snapshot(&mut self, top: &str) -> Result<(), String> {
        let overlay = self.image();
        self.ask("blockdev-snapshot", json!({"node": top, "overlay": overlay}))
    }

    fn stream(&mut self, chain: &[String], random: &mut Random) -> Result<(), String> {
        let mut stream = json!({ "device": chain[0] });
        if chain.len() > 2 && random.below(2) == 0 {
            stream["base-node"] = json!(chain[chain.len() - 1]);
        }
        self.job("block-stream", stream, false)
    }

    fn commit(&mut self, chain: &[String], random: &mut Random) -> Result<(), String> {
        let base = &chain[chain.len() - 1];
        let mut commit = json!({ "device": chain[0], "base-node": base });
        let is_active = chain.len() == 2 || random.below(2) == 0;
        if !is_active {
            commit["top-node"] = json!(chain[1]);
        }
        self.job("block-commit", commit, is_active)
    }

    fn mirror(&mut self, top: &str) -> Result<(), String> {
        let target = self.image();
        let mirror = json!({ "device": top, "target": target, "sync": "full" });
        self.job("blockdev-mirror", mirror, true)
    }

    /// Runs a job to its end.
    fn job(&mut self, command: &str, mut job: Value, completes: bool) -> Result<(), String> {
        self.made += 1;
        let id = format!("j{}", self.made);
        job["job-id"] = json!(id);
        self.ask(command, job)?;
        loop {
            let event = self.qmp.any_event();
            if event["data"]["device"] != *id {
                continue;
            }
            match event["event"].as_str() {
                Some("BLOCK_JOB_READY") if completes => {
                    self.qmp.run("block-job-complete", json!({ "device": id }));
                }
                Some("BLOCK_JOB_COMPLETED") => {
                    let error = event["data"].get("error");
                    return error.map_or(Ok(()), |error| Err(format!("{command}: {error}")));
                }
                Some("BLOCK_JOB_CANCELLED") => return Err(format!("{command}: cancelled")),
                _ => {}
            }
        }
    }

    fn has_filter(&mut self) -> bool {
        find(&self.query(), FILTER).is_some()
    }

    fn filter(&mut self, top: &str) -> Result<(), String> {
        if self.has_filter() {
            return self.ask("blockdev-remove-filter", json!({"node-name": FILTER}));
        }
        self.write_plugin();
        let filter = json!({"driver": "plugin", "plugin": PLUGIN, "node-name": FILTER,
            "config": {"iops": 1_000_000}});
        self.ask("blockdev-insert-filter", json!({"filter": filter, "above": top}))
    }

    /// Another binary, of the same plugin.
    fn write_plugin(&mut self) {
        self.made += 1;
        let module = bundled("throttle").expect("a bundled plugin");
        // A custom section, called `x`.
        let section = [0, 3, 1, b'x', self.made as u8];
        let binary: Vec<u8> = module.iter().copied().chain(section).collect();
        fs::write(self.host.scratch.path(PLUGIN), binary).expect("a file");
    }

    fn reload(&mut self) -> Result<(), String> {
        self.write_plugin();
        self.ask("plugin-reload", json!({"node": FILTER}))
    }

    /// The lowest image is opened read-only, or for writing.
    fn reopen(&mut self, base: &str) -> Result<(), String> {
        let graph = self.query();
        let is_read_only = find(&graph, base).expect("a node")["read-only"] == true;
        let options = json!({"driver": "qcow2", "node-name": base, "file": format!("#{base}.file"),
            "read-only": !is_read_only});
        self.ask("blockdev-reopen", json!({"options": [options]}))
    }

    /// Removes the images that nobody uses any more.
    fn tidy(&mut self) {
        loop {
            let graph = self.query();
            let is_used = |name: &Value| all(&graph, "edges").iter().any(|it| it["child"] == *name);
            let mut nodes = all(&graph, "nodes").iter();
            let left = nodes.find(|node| {
                let is_image = node["driver"] == "qcow2" && text(node, "name").starts_with('n');
                is_image && !is_used(&node["name"])
            });
            let Some(node) = left else { return };
            self.qmp.run("blockdev-del", json!({"node-name": node["name"]}));
        }
    }
}
