//! Changes of the graph below a drive in use: by commands of the control socket where jobs make them.

use std::path::Path;
use std::sync::Arc;

use blockloom::graph::{Unproven, Which};
use blockloom::host::FilterPlace;
use blockloom::plugin::bundled;
use blockloom::{Host, block_on};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Random, Scratch};
use serde_json::{Value, json};

use super::SIZE;
use crate::running::add;

/// Images in a chain at most.
const CHAIN_MAX: usize = 4;
/// The filter that comes and goes.
const FILTER: &str = "filter";

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

pub(super) struct Graph<'s> {
    pub(super) host: Arc<Host>,
    pub(super) qmp: Qmp,
    pub(super) scratch: &'s Scratch,
    /// Images and jobs so far.
    pub(super) made: usize,
}

impl Graph<'_> {
    /// Adds an image, of zeros.
    pub(super) fn image(&mut self) -> String {
        self.made += 1;
        let name = format!("n{}", self.made);
        let path = self.scratch.image(&format!("{name}.qcow2"));
        add(&self.host, image(&name, &path));
        name
    }

    /// The node that the drive shows.
    pub(super) fn root(&self) -> String {
        let graph = self.host.graph();
        let drive = &graph.drives()[graph.find_drive("vda").expect("a drive")];
        graph.nodes()[drive.root().expect("a medium").child()].name().to_owned()
    }

    /// The images that the drive shows, from the top.
    pub(super) fn chain(&self) -> Vec<String> {
        let graph = self.host.graph();
        let mut at = graph.find_node(&self.root());
        let mut images = Vec::new();
        while let Some(node) = at.map(|at| &graph.nodes()[at]) {
            if node.driver().driver() == "qcow2" {
                images.push(node.name().to_owned());
            }
            let view = node.edges().iter().find(|edge| edge.role().is_view());
            at = view.map(|edge| edge.child());
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
        let answer = self.qmp.ask("blockdev-snapshot", json!({ "node": top, "overlay": overlay }));
        answer
            .get("error")
            .map_or(Ok(()), |error| Err(format!("blockdev-snapshot: {}", error["desc"])))
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
        let answer = self.qmp.ask(command, job);
        if let Some(error) = answer.get("error") {
            return Err(format!("{command}: {}", error["desc"]));
        }
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

    fn has_filter(&self) -> bool {
        self.host.graph().find_node(FILTER).is_some()
    }

    fn filter(&mut self, top: &str) -> Result<(), String> {
        if self.has_filter() {
            let removed = block_on(self.host.remove_filter(FILTER));
            return removed.map(drop).map_err(|error| error.to_string());
        }
        let place = FilterPlace::Above { node: top.to_owned(), users: Which::All };
        let config = json!({ "iops": 1_000_000 });
        let filter = json!({
            "driver": "plugin",
            "plugin": "throttle",
            "node-name": FILTER,
            "config": config,
        });
        self.host.insert_filter(&place, &filter).map(drop).map_err(|error| error.brief())
    }

    fn reload(&mut self) -> Result<(), String> {
        let binary = bundled("throttle").expect("a bundled plugin").to_vec();
        let reloaded = block_on(self.host.reload_plugin(FILTER, binary.into(), None));
        reloaded.map_err(|error| error.to_string())
    }

    /// The lowest image is opened read-only, or for writing.
    fn reopen(&mut self, base: &str) -> Result<(), String> {
        let read_only = {
            let graph = self.host.graph();
            graph.nodes()[graph.find_node(base).expect("a node")].info().read_only
        };
        let options = json!({
            "driver": "qcow2",
            "node-name": base,
            "file": format!("#{base}.file"),
            "read-only": !read_only,
        });
        let reopened = self.host.reopen_nodes(&[options], Unproven::Refuse);
        reopened.map_err(|error| error.brief())
    }

    /// Removes the images that nobody uses any more.
    fn tidy(&self) {
        loop {
            let graph = self.host.graph();
            let is_used = |at: usize| {
                let roots = graph.drives().iter().filter_map(|drive| drive.root());
                let mut edges = roots.chain(graph.nodes().iter().flat_map(|node| node.edges()));
                edges.any(|edge| edge.child() == at)
            };
            let mut nodes = graph.nodes().iter().enumerate();
            let left = nodes.find(|(at, node)| {
                node.driver().driver() == "qcow2" && node.name().starts_with('n') && !is_used(*at)
            });
            let Some(name) = left.map(|(_, node)| node.name().to_owned()) else { return };
            drop(graph);
            block_on(self.host.remove_node(&name)).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

fn image(name: &str, path: &Path) -> Value {
    json!({
        "driver": "qcow2",
        "node-name": name,
        "file": { "driver": "file", "filename": path },
        "backing": null,
        "create": { "size": SIZE },
    })
}
