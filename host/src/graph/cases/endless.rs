//! What must never wait for ever. Each case runs in many orders by chance on one worker, and on two at
//! once; beside it bitmaps are cleared, for which requests are drained, and the graph is changed.
//!
//! After each run no write of a guest's may have been overtaken by a copy, and nothing may be dirty that
//! no guest has written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel;

use super::filter::{BeforeWrite, TestFilter};
use super::schedule::{boxed, shuffled};
use super::stage::*;
use crate::filter::CopyOnReadNode;
use crate::graph::mutation::{Mutation, set};
use crate::graph::{Action, ChildDecl, CopyHow, NodeDecl, PermissionSet, Which};
use crate::io::sim::Random;
use crate::io::{LocalFuture, WorkerOptions, Workers, spawn};

/// Orders on one worker.
const SEEDS: u64 = 150;
/// Runs on two workers.
const RUNS: u64 = 60;
/// Blocks that requests are for: few, so that they meet.
const USED: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Write {
        block: u64,
        byte: u8,
    },
    Read {
        block: u64,
    },
    /// By a node of its own accord, within its first child.
    Copy {
        node: &'static str,
        block: u64,
        how: CopyHow,
    },
    /// All bitmaps, one by one.
    Clear,
    /// Puts a filter above a node and takes it out again.
    Filter {
        above: &'static str,
    },
}

/// A case: its graph, who copies of its own accord, and what changes.
struct Case {
    scene: fn(u64) -> Scene,
    copies: &'static [(&'static str, CopyHow)],
    filtered: &'static [&'static str],
    /// The filter that copies before writes to what drive `kept` shows.
    copying: Option<fn(u64) -> Arc<TestFilter>>,
}

/// One run of a case.
#[derive(Clone)]
struct Run {
    stage: Stage,
    copying: Option<Arc<TestFilter>>,
    scripts: Arc<Vec<Vec<Step>>>,
}

impl Case {
    fn begin(&self, seed: u64) -> Run {
        let mut scene = (self.scene)(seed);
        let copying = self.copying.map(|filter| filter(seed));
        if let Some(filter) = &copying {
            let children = vec![readable("disk"), target("target", PermissionSet::WRITE)];
            scene = scene.shared_node("copying", Arc::clone(filter) as _, children);
        }
        let scripts = Arc::new(self.scripts(&mut Random::new(seed)));
        Run { stage: scene.stage(), copying, scripts }
    }

    /// What each task does.
    fn scripts(&self, random: &mut Random) -> Vec<Vec<Step>> {
        let mut scripts = Vec::new();
        let mut byte = 0;
        // Two blocks have a guest of their own, who knows what it wrote last; one guest writes anywhere.
        for own in [Some(0), Some(1), None] {
            let mut writes = |_| {
                byte += 1;
                Step::Write { block: own.unwrap_or_else(|| random.below(USED)), byte }
            };
            scripts.push((0..4).map(&mut writes).collect());
        }
        for _ in 0..2 {
            let read = |_| Step::Read { block: random.below(USED) };
            scripts.push((0..5).map(read).collect());
        }
        for (node, how) in self.copies {
            let copy = |_| Step::Copy { node, block: random.below(USED), how: *how };
            scripts.push((0..8).map(copy).collect());
        }
        scripts.push(vec![Step::Clear, Step::Clear]);
        let filters = (0..2).map(|_| {
            let above = self.filtered[random.below(self.filtered.len() as u64) as usize];
            Step::Filter { above }
        });
        scripts.push(filters.collect());
        scripts
    }

    /// # Errors
    /// What went wrong, and with which seed.
    fn in_many_orders(&'static self) -> Result<(), String> {
        (0..SEEDS).try_for_each(|seed| {
            let ended = on_a_worker(async move {
                let run = self.begin(seed);
                run.prepare().await;
                let tasks = (0..run.scripts.len()).map(|task| run.task(task)).collect();
                match shuffled(seed, tasks).await {
                    Ok(()) => run.check().await,
                    Err(left) => Err(format!("{left} tasks wait for each other")),
                }
            });
            ended.map_err(|wrong| format!("seed {seed}: {wrong}"))
        })
    }

    fn on_one_worker(&'static self) {
        self.in_many_orders().unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    fn on_two_workers(&'static self) {
        let workers =
            Workers::start(&WorkerOptions { workers: 2, ..WorkerOptions::default() }).expect("two");
        let (sender, ended) = channel::unbounded();
        for seed in 0..RUNS {
            let run = self.begin(seed);
            let post = |worker: usize, task: Box<dyn FnOnce() -> LocalFuture + Send>| {
                workers.handles()[worker].post(move || spawn(task())).expect("a worker");
            };
            let wait = |what: &str| {
                let in_time = ended.recv_timeout(Duration::from_secs(60));
                let ended = in_time.unwrap_or_else(|_| Err(format!("{what} has not ended")));
                ended.unwrap_or_else(|wrong: String| panic!("run {seed}: {wrong}"));
            };
            let (begun, prepared) = (run.clone(), sender.clone());
            let prepare = move || {
                boxed(async move {
                    begun.prepare().await;
                    prepared.send(Ok(())).expect("the test waits");
                })
            };
            post(0, Box::new(prepare));
            wait("the preparation");
            let count = run.scripts.len();
            let left = Arc::new(AtomicUsize::new(count));
            for task in 0..count {
                let (run, left, sender) = (run.clone(), Arc::clone(&left), sender.clone());
                let play = move || {
                    let played = run.task(task);
                    boxed(async move {
                        played.await;
                        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                            sender.send(Ok(())).expect("the test waits");
                        }
                    })
                };
                post(task % 2, Box::new(play));
            }
            wait("a task");
            let sender = sender.clone();
            let check = move || {
                boxed(async move {
                    sender.send(run.check().await).expect("the test waits");
                })
            };
            post(0, Box::new(check));
            wait("the check");
        }
        workers.stop();
    }
}

/// What a block shows before the case begins.
fn initial(block: u64) -> u8 {
    100 + block as u8
}

impl Run {
    fn before_write(&self) -> Option<&BeforeWrite> {
        self.copying.as_ref()?.before_write.as_ref()
    }

    /// What stands on a base begins with nothing of its own.
    async fn prepare(&self) {
        if let Some(before_write) = self.before_write() {
            for block in 0..USED {
                self.stage.write("vda", block, initial(block)).await;
            }
            self.stage.clear().await;
            before_write.arm();
        }
    }

    fn task(&self, task: usize) -> LocalFuture {
        let run = self.clone();
        boxed(async move {
            for step in &run.scripts[task] {
                run.step(step).await;
            }
        })
    }

    async fn step(&self, step: &Step) {
        match *step {
            Step::Write { block, byte } => self.stage.write("vda", block, byte).await,
            Step::Read { block } => drop(self.stage.byte("vda", block).await),
            Step::Copy { node, block, how } => {
                self.stage.own(node).copy(0, 0, at(block), how).await.expect("a copy");
            }
            Step::Clear => self.stage.clear().await,
            Step::Filter { above } => {
                let filter = NodeDecl {
                    name: "extra".into(),
                    driver: Arc::new(crate::filter::PassNode),
                    children: vec![ChildDecl::filtered(above)],
                };
                let (node, users) = (above.into(), Which::All);
                let insert = Action::InsertAbove { node, filter, users };
                self.stage.act(insert).await.expect("a filter put in");
                let remove = Action::RemoveFilter { node: "extra".into() };
                self.stage.act(remove).await.expect("a filter taken out");
            }
        }
    }

    /// The bytes that each script has written last, by block.
    fn last_writes(&self) -> BTreeMap<u64, BTreeSet<u8>> {
        let mut last: BTreeMap<u64, BTreeSet<u8>> = BTreeMap::new();
        for script in self.scripts.iter() {
            let mut own = BTreeMap::new();
            for step in script {
                if let Step::Write { block, byte } = step {
                    own.insert(*block, *byte);
                }
            }
            own.into_iter().for_each(|(block, byte)| {
                last.entry(block).or_default().insert(byte);
            });
        }
        last
    }

    /// # Errors
    /// A write that was overtaken, or something that is dirty without reason.
    async fn check(&self) -> Result<(), String> {
        let last = self.last_writes();
        let is_kept = self.before_write().is_some();
        for block in 0..USED {
            let shown = self.stage.byte("vda", block).await;
            let none = BTreeSet::from([if is_kept { initial(block) } else { 0 }]);
            let expected = last.get(&block).unwrap_or(&none);
            if !expected.contains(&shown) {
                return Err(format!("block {block} shows {shown}, not {expected:?}"));
            }
            if is_kept && last.contains_key(&block) {
                let kept = self.stage.byte("kept", block).await;
                if kept != initial(block) {
                    return Err(format!("block {block}: {kept} was kept"));
                }
            }
        }
        for (name, blocks) in self.stage.dirty() {
            if !blocks.iter().all(|block| last.contains_key(block)) {
                return Err(format!("`{name}` is dirty at {blocks:?}, written {last:?}"));
            }
        }
        Ok(())
    }
}

fn slow(seed: u64) -> TestFilter {
    TestFilter::pausing(6, seed)
}

fn filtered(node: &str) -> Vec<ChildDecl> {
    vec![ChildDecl::filtered(node)]
}

/// (a) A guest's write comes to a filter that holds it, copies what it replaces, and lets it go.
static COPY_BEFORE_WRITE: Case = Case {
    scene: |seed| {
        Scene::default()
            .disk("memory")
            .node("disk", slow(seed), filtered("memory"))
            .disk("copies")
            .node("target", slow(seed + 1), filtered("copies"))
            .drive("vda", "copying")
            .showing("kept", "target")
    },
    copies: &[],
    filtered: &["disk", "target", "memory", "copying"],
    copying: Some(|seed| Arc::new(slow(seed + 2).copying_before_writes())),
};

/// (b) Copy-on-read over copy-on-read.
static COPY_OVER_COPY: Case = Case {
    scene: |seed| {
        Scene::default()
            .disk("base")
            .overlay("mid", "base")
            .node("slow-mid", slow(seed), filtered("mid"))
            .copy_on_read("lower", "slow-mid")
            .overlay("top", "lower")
            .node("slow-top", slow(seed + 1), filtered("top"))
            .copy_on_read("upper", "slow-top")
            .drive("vda", "upper")
    },
    copies: &[("upper", UP), ("lower", UP), ("upper", UNCHANGED)],
    filtered: &["mid", "lower", "top", "slow-top", "upper"],
    copying: None,
};

/// (c) A background copy by a filter that keeps guests' writes to the same range.
static COPY_BESIDE_PARKED: Case = Case {
    scene: |seed| {
        let child = ChildDecl { grants: PermissionSet::HARMLESS, ..ChildDecl::filtered("slow") };
        Scene::default()
            .disk("base")
            .overlay("top", "base")
            .node("slow", slow(seed + 1), filtered("top"))
            .node("filter", slow(seed), vec![child])
            .drive("vda", "filter")
    },
    copies: &[("filter", UNCHANGED), ("filter", UP)],
    filtered: &["base", "top", "slow", "filter"],
    copying: None,
};

/// (d) Filters that let few requests through at once, above and below the one that copies.
static FULL_FILTERS: Case = Case {
    scene: |seed| {
        Scene::default()
            .disk("base")
            .overlay("top", "base")
            .node("inner", slow(seed).limited(1), filtered("top"))
            .node("copying", CopyOnReadNode::default(), vec![CopyOnReadNode::child("inner")])
            .node("outer", slow(seed + 1).limited(2), filtered("copying"))
            .drive("vda", "outer")
    },
    copies: &[("copying", UP), ("copying", UNCHANGED)],
    filtered: &["base", "top", "inner", "copying", "outer"],
    copying: None,
};

#[test]
fn a_copy_before_each_write_ends_in_any_order() {
    COPY_BEFORE_WRITE.on_one_worker();
}

#[test]
fn a_copy_before_each_write_ends_on_two_workers() {
    COPY_BEFORE_WRITE.on_two_workers();
}

#[test]
fn copy_on_read_over_copy_on_read_ends_in_any_order() {
    COPY_OVER_COPY.on_one_worker();
}

#[test]
fn copy_on_read_over_copy_on_read_ends_on_two_workers() {
    COPY_OVER_COPY.on_two_workers();
}

#[test]
fn a_copy_beside_parked_writes_ends_in_any_order() {
    COPY_BESIDE_PARKED.on_one_worker();
}

#[test]
fn a_copy_beside_parked_writes_ends_on_two_workers() {
    COPY_BESIDE_PARKED.on_two_workers();
}

#[test]
fn copies_through_full_filters_end_in_any_order() {
    FULL_FILTERS.on_one_worker();
}

#[test]
fn copies_through_full_filters_end_on_two_workers() {
    FULL_FILTERS.on_two_workers();
}

/// The cases are such that guards are needed: without them copies overtake writes.
#[test]
fn without_guards_copies_overtake_writes() {
    let cases = [("b", &COPY_OVER_COPY), ("c", &COPY_BESIDE_PARKED), ("d", &FULL_FILTERS)];
    for (name, case) in cases {
        set(Some(Mutation::TakesNoGuards));
        let ended = case.in_many_orders();
        set(None);
        let wrong = ended.err().unwrap_or_else(|| panic!("({name}): nothing was overtaken"));
        assert!(wrong.contains("shows"), "({name}): {wrong}");
    }
}
