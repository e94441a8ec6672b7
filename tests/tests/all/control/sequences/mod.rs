//! Random sequences of commands while a guest writes. A model says what the guest reads, what views of checkpoints
//! show and what bitmaps hold; in the end all is taken away again, and nothing is left.
//!
//! `BLOCKLOOM_CONTROL_SEQUENCES` says how many sequences there are; 1,000 take a minute or two.
//! `BLOCKLOOM_CONTROL_SEED` begins with another one than the first.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Random, eventually};
use serde_json::{Value, json};

use super::Controlled;
use crate::MIB;
use model::{Effect, Model};

const SEQUENCES_DEFAULT: u64 = 40;
const STEPS: u64 = 30;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = MIB / BLOCK;

/// One drive on one disk, exported.
const GRAPH: &str = "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n\
    [drive.vda]\nroot = \"disk\"\nwritable = true\n\
    [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n";

/// A command, and what it does if it succeeds.
type Step = (&'static str, Value, Effect);

struct Scene {
    random: Random,
    model: Model,
    client: Qmp,
    guest: Client,
    dir: PathBuf,
    files: u64,
    written: u64,
    /// By command: how often it was done, and how often refused.
    tally: BTreeMap<String, (u64, u64)>,
}

impl Scene {
    fn pick(&mut self, from: &[&str]) -> String {
        from[self.random.below(from.len() as u64) as usize].to_owned()
    }

    fn chance(&mut self, in_100: u64) -> bool {
        self.random.below(100) < in_100
    }

    fn node(&mut self) -> String {
        self.pick(&["disk", "f0", "f1", "n0", "n1", "n2", "c0.view", "c0.view.filter", "none"])
    }

    fn bitmap(&mut self) -> String {
        self.pick(&["b0", "b1", "b2"])
    }

    fn bitmap_step(&mut self) -> Step {
        let name = self.bitmap();
        let at = json!({"node": "vda", "name": name});
        match self.random.below(7) {
            0 | 1 => {
                let disabled = self.chance(20);
                let mut add = at;
                add["granularity"] = BLOCK.into();
                add["disabled"] = disabled.into();
                ("block-dirty-bitmap-add", add, Effect::AddBitmap(name, !disabled))
            }
            2 => ("block-dirty-bitmap-remove", at, Effect::RemoveBitmap(name)),
            3 => ("block-dirty-bitmap-clear", at, Effect::Clear(name)),
            4 => ("block-dirty-bitmap-enable", at, Effect::Record(name, true)),
            5 => ("block-dirty-bitmap-disable", at, Effect::Record(name, false)),
            _ => {
                let from = self.bitmap();
                let merge = json!({"node": "vda", "target": name, "bitmaps": [from]});
                ("block-dirty-bitmap-merge", merge, Effect::Merge(from, name))
            }
        }
    }

    fn freeze_step(&mut self) -> Step {
        let mut names = vec![self.bitmap()];
        if self.chance(40) {
            let more = self.bitmap();
            names.extend((more != names[0]).then_some(more));
        }
        let at = |name: &String| json!({"node": "vda", "name": name});
        let bitmaps: Vec<Value> = names.iter().map(at).collect();
        let completed = self.chance(50);
        let id = self.pick(&["c0", "c1"]);
        match self.random.below(5) {
            0 => ("checkpoint", json!({"bitmaps": bitmaps}), Effect::Freeze(names)),
            1 => {
                let end = json!({"bitmaps": bitmaps, "completed": completed});
                ("checkpoint-end", end, Effect::Thaw(names, completed))
            }
            2 => {
                let end = json!({"id": id, "completed": completed});
                ("checkpoint-end", end, Effect::EndCheckpoint(id, completed))
            }
            _ => {
                let view = format!("{id}.view");
                let mut view = json!({"node": "vda", "node-name": view,
                    "export": {"id": view, "listen": "unix:views.sock"}});
                let (bitmaps, names) = match self.chance(50) {
                    true => (bitmaps, names),
                    false => (Vec::new(), Vec::new()),
                };
                if self.chance(10) {
                    view["export"]["bitmaps"] = json!(["b0"]);
                }
                let begin = json!({"id": id, "bitmaps": bitmaps, "views": [view]});
                ("checkpoint", begin, Effect::Checkpoint(id, names))
            }
        }
    }

    fn graph_step(&mut self) -> Step {
        let (filter, node, other) = (self.pick(&["f0", "f1"]), self.node(), self.node());
        let new = self.pick(&["n0", "n1", "n2"]);
        let step = match self.random.below(12) {
            0 | 1 => {
                let driver = self.pick(&["pass", "throttle"]);
                let mut filter = json!({"driver": driver, "node-name": filter});
                if driver == "throttle" {
                    filter["config"] = json!({"iops": 1_000_000});
                }
                let above = if self.chance(50) { "vda".to_owned() } else { node };
                ("blockdev-insert-filter", json!({"filter": filter, "above": above}))
            }
            2 => ("blockdev-remove-filter", json!({"node-name": filter})),
            3 => ("blockdev-remove-filter", json!({"node-name": node})),
            4 | 5 => ("blockdev-add", self.new_node(&new, &node)),
            6 => ("blockdev-del", json!({"node-name": node})),
            7 | 8 => {
                self.image(&new);
                ("blockdev-snapshot", json!({"node": "vda", "overlay": new}))
            }
            9 => ("blockdev-snapshot", json!({"node": node, "overlay": other})),
            10 => ("blockdev-replace", json!({"node-name": node, "by": other})),
            _ => {
                let file = self.pick(&["disk", &node]);
                let filter = json!({"driver": "pass", "node-name": filter, "file": file});
                ("blockdev-reopen", json!({"options": [filter]}))
            }
        };
        (step.0, step.1, Effect::None)
    }

    fn new_node(&mut self, name: &str, below: &str) -> Value {
        match self.random.below(5) {
            0 => json!({"driver": "memory", "node-name": name, "size": "1MiB"}),
            1 => json!({"driver": "null-co", "node-name": name, "size": MIB, "read-zeroes": true}),
            2 => json!({"driver": "raw", "node-name": name, "file": below}),
            _ => self.new_image(name),
        }
    }

    fn new_image(&mut self, name: &str) -> Value {
        self.files += 1;
        let file = self.dir.join(format!("{}.qcow2", self.files)).display().to_string();
        json!({"driver": "qcow2", "node-name": name, "create": {"size": "1MiB"},
            "backing": null, "file": {"driver": "file", "filename": file}})
    }

    /// Adds an image of zeros, unless there is a node of that name.
    fn image(&mut self, name: &str) {
        let image = self.new_image(name);
        self.ask("blockdev-add", image);
    }

    /// Jobs go on beside what comes after them, and change what stands below, never what is seen.
    fn job_step(&mut self) -> Step {
        let (node, base) = (self.node(), self.node());
        let target = self.pick(&["n0", "n1", "n2"]);
        let step = match self.random.below(9) {
            0 => ("block-stream", json!({"job-id": "j", "device": "vda"})),
            1 => ("block-stream", json!({"job-id": "j", "device": node, "base-node": base})),
            2 => ("block-commit", json!({"job-id": "j", "device": "vda", "base-node": "disk"})),
            3 => {
                let commit = json!({"job-id": "j", "device": "vda", "top-node": node,
                    "base-node": base});
                ("block-commit", commit)
            }
            4 => {
                self.image(&target);
                let mirror = json!({"job-id": "j", "device": "vda", "target": target,
                    "sync": self.pick(&["full", "top", "none"])});
                ("blockdev-mirror", mirror)
            }
            5 => {
                self.image(&target);
                let backup = json!({"job-id": "j", "device": "vda", "target": target,
                    "sync": self.pick(&["full", "top", "none"])});
                ("blockdev-backup", backup)
            }
            6 | 7 => ("block-job-complete", json!({"device": "j"})),
            _ => ("block-job-cancel", json!({"device": "j"})),
        };
        (step.0, step.1, Effect::None)
    }

    fn export_step(&mut self) -> Step {
        let (id, node) = (self.pick(&["e0", "e1"]), self.node());
        let of = if self.chance(30) { "vda".to_owned() } else { node };
        let step = match self.random.below(6) {
            0 | 1 => {
                let bitmaps: Vec<String> =
                    if self.chance(30) { vec![self.bitmap()] } else { Vec::new() };
                let add = json!({"type": "nbd", "id": id, "node-name": of, "name": id,
                    "listen": "unix:more.sock", "bitmaps": bitmaps});
                ("block-export-add", add)
            }
            2 => ("block-export-del", json!({"id": id})),
            3 => ("block-export-del", json!({"id": id, "mode": "hard"})),
            4 => match self.chance(50) {
                true => {
                    let new = self.pick(&["n0", "n1", "n2"]);
                    self.image(&new);
                    ("drive-add", json!({"id": "vdb", "node-name": new}))
                }
                false => ("drive-del", json!({"id": "vdb"})),
            },
            _ => match self.chance(50) {
                true => ("drive-insert-medium", json!({"id": "vdb", "node-name": of})),
                false => ("drive-eject-medium", json!({"id": "vdb"})),
            },
        };
        (step.0, step.1, Effect::None)
    }

    fn step(&mut self) -> Step {
        match self.random.below(10) {
            0..3 => self.bitmap_step(),
            3..5 => self.freeze_step(),
            5..7 => self.graph_step(),
            7 => self.job_step(),
            _ => self.export_step(),
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> bool {
        let answer = self.client.ask(command, arguments);
        let is_done = answer.get("return").is_some();
        let (done, refused) = self.tally.entry(command.to_owned()).or_default();
        *(if is_done { done } else { refused }) += 1;
        is_done
    }

    /// One command, or a transaction of some.
    fn act(&mut self) -> String {
        if self.chance(75) {
            let (command, arguments, effect) = self.step();
            let shown = format!("{command} {arguments}");
            if self.ask(command, arguments) {
                self.model.apply(effect);
            }
            return shown;
        }
        let steps: Vec<Step> = (0..1 + self.random.below(3)).map(|_| self.step()).collect();
        let act = |(command, data, _): &Step| json!({"type": command, "data": data});
        let mut actions: Vec<Value> = steps.iter().map(act).collect();
        if self.chance(20) {
            actions.push(json!({"type": "abort", "data": {}}));
        }
        let arguments = json!({"actions": actions});
        let shown = format!("transaction {arguments}");
        if self.ask("transaction", arguments) {
            steps.into_iter().for_each(|(_, _, effect)| self.model.apply(effect));
        }
        shown
    }

    fn write(&mut self) {
        for _ in 0..self.random.below(4) {
            let block = self.random.below(BLOCKS);
            self.written += 1;
            let bytes = self.written.to_le_bytes().repeat(BLOCK as usize / 8);
            assert_eq!(self.guest.write(0, block * BLOCK, &bytes), 0);
            self.model.write(block, self.written);
        }
    }

    /// What everybody sees is what the model says.
    fn check(&mut self) {
        let numbers = |nbd: &mut Client, block: u64| {
            let bytes = nbd.read(block * BLOCK, BLOCK as u32).expect("a read");
            bytes.chunks(8).map(|it| u64::from_le_bytes(it.try_into().expect("8"))).collect()
        };
        for _ in 0..4 {
            let block = self.random.below(BLOCKS);
            let read: BTreeSet<u64> = numbers(&mut self.guest, block);
            assert_eq!(read, BTreeSet::from([self.model.blocks[block as usize]]), "block {block}");
        }
        for (id, checkpoint) in self.model.checkpoints.clone() {
            let exports = self.client.run("query-block-exports", json!({}));
            let name = format!("{id}.view");
            if !exports.as_array().expect("a list").iter().any(|it| it["id"] == *name) {
                continue;
            }
            let socket = self.dir.join("views.sock");
            let mut view = Client::open(&format!("nbd+unix:///{name}?socket={}", socket.display()));
            for _ in 0..4 {
                let block = self.random.below(BLOCKS);
                let read: BTreeSet<u64> = numbers(&mut view, block);
                let then = checkpoint.then[block as usize];
                assert_eq!(read, BTreeSet::from([then]), "block {block} of {id}");
            }
            view.disconnect();
        }
        for (name, bitmap) in self.model.bitmaps.clone() {
            for frozen in [false, true] {
                let expect = match (frozen, &bitmap.frozen) {
                    (false, _) => bitmap.shown(),
                    (true, Some(frozen)) => frozen.clone(),
                    (true, None) => continue,
                };
                let query = json!({"node": "vda", "name": name, "frozen": frozen, "limit": 16384});
                let shown = self.client.run("block-dirty-bitmap-query", query);
                let number = |it: &Value, key: &str| it[key].as_u64().expect("a number") / BLOCK;
                let ranges = shown["ranges"].as_array().expect("a list").iter();
                let blocks = ranges.flat_map(|it| {
                    number(it, "offset")..number(it, "offset") + number(it, "length")
                });
                assert_eq!(blocks.collect::<BTreeSet<u64>>(), expect, "{name} {bitmap:?}");
            }
        }
    }

    fn graph(&mut self) -> Value {
        let mut graph = self.client.run("query-graph", json!({}));
        let of = |graph: &Value, part: &str, key: &str| -> Vec<String> {
            let all = graph[part].as_array().expect("a list").iter();
            all.filter_map(|it| it[key].as_str()).map(str::to_owned).collect()
        };
        let nodes: BTreeSet<String> = of(&graph, "nodes", "name").into_iter().collect();
        assert_eq!(nodes.len(), of(&graph, "nodes", "name").len(), "names are unique: {graph}");
        let edges = of(&graph, "edges", "child");
        assert!(edges.iter().all(|child| nodes.contains(child)), "edges lead somewhere: {graph}");
        graph["bitmaps"] = Value::Null;
        graph
    }

    /// Takes away all that has come; leaves the disk with what it holds then.
    fn clear(&mut self, before: &Value) {
        self.ask("block-job-cancel", json!({"device": "j", "force": true}));
        eventually("the job ends", || {
            let jobs = self.client.run("query-jobs", json!({}));
            (jobs == json!([])).then_some(())
        });
        // Parents go before their children.
        for _ in 0..12 {
            let graph = self.graph();
            if graph == *before {
                break;
            }
            for id in ["e0", "e1", "c0.view", "c1.view"] {
                self.ask("block-export-del", json!({"id": id, "mode": "hard"}));
            }
            for filter in ["f0", "f1"] {
                self.ask("blockdev-remove-filter", json!({"node-name": filter}));
            }
            self.ask("drive-del", json!({"id": "vdb"}));
            for id in ["c0", "c1"] {
                self.ask("checkpoint-end", json!({"id": id, "completed": true}));
            }
            let drives = self.client.run("query-drives", json!({}));
            let root = drives[0]["node-name"].clone();
            let disk = json!({"node-name": root, "by": "disk", "on-unproven": "mark-whole"});
            self.ask("blockdev-replace", disk);
            let nodes = graph["nodes"].as_array().expect("a list").clone();
            for node in nodes.iter().filter(|node| node["name"] != "disk") {
                self.ask("blockdev-del", json!({"node-name": node["name"], "bitmaps": "remove"}));
            }
        }
        for name in ["b0", "b1", "b2"] {
            let at = json!({"node": "vda", "name": name});
            self.ask("checkpoint-end", json!({"bitmaps": [at], "completed": true}));
            self.ask("block-dirty-bitmap-remove", at);
        }
        let bitmaps = self.client.run("query-drives", json!({}))[0]["dirty-bitmaps"].clone();
        assert_eq!(bitmaps, json!([]));
        for id in ["c0", "c1"] {
            self.ask("checkpoint-end", json!({"id": id, "completed": true}));
        }
        assert_eq!(self.client.run("query-checkpoints", json!({})), json!([]));
        let graph = self.graph();
        assert_eq!(graph, *before, "nothing is left");
        for block in 0..BLOCKS {
            let bytes = self.guest.read(block * BLOCK, 8).expect("a read");
            self.model.blocks[block as usize] =
                u64::from_le_bytes(bytes[..].try_into().expect("8"));
        }
        let blocks = std::mem::take(&mut self.model.blocks);
        self.model = Model { blocks, ..Model::default() };
    }
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn files_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count()
}

#[test]
fn sequences_of_commands() {
    let host = Controlled::start(GRAPH, &["--workers", "2"]);
    let guest = Client::open(host.daemon.uri("vda"));
    let model = Model { blocks: vec![0; BLOCKS as usize], ..Model::default() };
    let (random, client, dir) = (Random::new(0), host.client(), host.scratch.path(""));
    let (files, written, tally) = (0, 0, BTreeMap::new());
    let mut scene = Scene { random, model, client, guest, dir, files, written, tally };
    let before = scene.graph();
    let first = number_of("BLOCKLOOM_CONTROL_SEED", 1);
    let sequences = number_of("BLOCKLOOM_CONTROL_SEQUENCES", SEQUENCES_DEFAULT);
    let open = files_of(host.daemon.pid());
    for seed in first..first + sequences {
        scene.random = Random::new(seed);
        let mut log = Vec::new();
        let sequence = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                scene.write();
                log.push(scene.act());
                scene.check();
            }
            scene.graph();
            scene.clear(&before);
        }));
        if let Err(panic) = sequence {
            eprintln!("BLOCKLOOM_CONTROL_SEED={seed} BLOCKLOOM_CONTROL_SEQUENCES=1");
            log.iter().for_each(|step| eprintln!("{step}"));
            std::panic::resume_unwind(panic);
        }
        eventually("files are closed", || (files_of(host.daemon.pid()) <= open).then_some(()));
    }
    eprintln!(
        "{sequences} sequences; by command, how often done and how often refused: {:?}",
        scene.tally
    );
    if sequences >= SEQUENCES_DEFAULT {
        // None of them is right only in that nothing is ever done.
        let never = scene.tally.iter().filter(|(_, (done, refused))| *done == 0 || *refused == 0);
        let never: Vec<_> = never.collect();
        assert!(never.is_empty(), "{never:?}");
    }
    scene.guest.disconnect();
    host.finish();
}
