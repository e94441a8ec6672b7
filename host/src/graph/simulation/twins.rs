//! Plugins and the host's own twins of them: of one seed each, the same bytes, bitmaps and outcomes; by their
//! rules, without them, and asked now and then although a rule says that they need not be.
//!
//! A guest does one thing after the other, so that what comes of it depends on no schedule. The model in lock
//! step (`graph/model`) does not do this: it takes the core from one await to the next by hand, and a guest is
//! entered at the end of a worker's turn, which it does not have.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use blockloom_plugin_backup::BackupConfig;
use blockloom_plugin_throttle::ThrottleConfig;

use super::guest::{bytes_of, some_sectors};
use super::oracle::{WriteId, first_word, word};
use super::plugins::{self, Asked, Backup};
use super::scene::{SECTORS, overlay};
use super::world::fill;
use crate::error::Result;
use crate::filter::{BackupNode, CopyOnReadNode, ThrottleGroup, ThrottleNode};
use crate::graph::mutation::{Mutation, set};
use crate::graph::{
    BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl,
};
use crate::io::sim::{Random, SECTOR, Simulation};
use crate::io::{Buf, BufMut, sleep_until, turn_now};
use crate::node::{MemoryNode, Node, WriteFlags};

const SIZE: u64 = SECTORS * SECTOR as u64;

/// Who filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Native,
    Plugin(Asked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    CopyOnRead,
    Throttle,
    Backup,
}

/// What came of a run.
struct Outcome {
    /// Of each request: what it read, or its error.
    answers: Vec<std::result::Result<Vec<u8>, String>>,
    /// Of each drive, in the end.
    bytes: Vec<(&'static str, Vec<u8>)>,
    /// What is dirty.
    bitmaps: Vec<(String, Vec<(u64, u64)>)>,
    /// Calls in which plugins have failed by themselves.
    faults: u64,
}

fn children_of(filter: Filter, below: &str) -> Vec<ChildDecl> {
    match filter {
        Filter::CopyOnRead => vec![CopyOnReadNode::child(below)],
        Filter::Throttle => vec![ChildDecl::filtered(below)],
        Filter::Backup => Backup::children(below, "target"),
    }
}

fn native(filter: Filter, config: &str) -> Result<Arc<dyn Node>> {
    let wrong =
        |error| crate::error::Error::new(crate::error::ErrorKind::Invalid, format!("{error}"));
    Ok(match filter {
        Filter::CopyOnRead => Arc::new(CopyOnReadNode::default()),
        Filter::Throttle => {
            let config = ThrottleConfig::from_json(config).map_err(wrong)?;
            Arc::new(ThrottleNode::new(ThrottleGroup::new(&config)))
        }
        Filter::Backup => {
            Arc::new(BackupNode::new(BackupConfig::from_json(config).map_err(wrong)?, None)?)
        }
    })
}

/// A file, an overlay on it, and filters by chance on that; whether a backup is among them, which is complete in
/// the end.
fn graph(simulation: &Simulation, random: &mut Random, who: Who) -> Result<(GraphCell, bool)> {
    let first = || (0..SECTORS).flat_map(|sector| fill(first_word(0, sector))).collect();
    simulation.file_or("base", first);
    let node = |name: &str, driver, children| NodeDecl { name: name.into(), driver, children };
    let mut nodes = vec![
        node("base", plugins::file("base")?, vec![]),
        node("top", overlay(SIZE)?, vec![ChildDecl::backing("base")]),
        node("target", Arc::new(MemoryNode::new(SIZE, SECTOR as u32)?), vec![]),
    ];
    let mut filters = vec![Filter::CopyOnRead, Filter::Throttle, Filter::Backup];
    while filters.len() > 1 && random.one_in(3) {
        filters.remove(random.below(filters.len() as u64) as usize);
    }
    let (mut root, mut has_backup) = ("top".to_owned(), false);
    while !filters.is_empty() {
        let filter = filters.remove(random.below(filters.len() as u64) as usize);
        let granularity = 512 << random.below(4);
        let sync = if random.one_in(2) { "none" } else { "full" };
        let config = match filter {
            Filter::CopyOnRead => "{}".to_owned(),
            Filter::Throttle => format!("{{ \"iops\": {} }}", 200 + random.below(5000)),
            Filter::Backup => {
                format!("{{ \"min-cluster-size\": {granularity}, \"sync\": \"{sync}\" }}")
            }
        };
        has_backup |= filter == Filter::Backup && sync == "full";
        let driver = match (who, filter) {
            (Who::Native, _) => native(filter, &config)?,
            (Who::Plugin(asked), Filter::CopyOnRead) => plugins::copy_on_read(&root, asked)?.0,
            (Who::Plugin(asked), Filter::Throttle) => plugins::throttle(&config, asked)?,
            (Who::Plugin(asked), Filter::Backup) => plugins::backup(&config, asked)?.driver(),
        };
        let name = format!("{filter:?}");
        nodes.push(node(&name, driver, children_of(filter, &root)));
        root = name;
    }
    let drive = |id: &str, root: &str, writable| {
        let root = Some(root.to_owned());
        DriveDecl { id: id.to_owned(), root, writable, only_shows: !writable }
    };
    let drives = vec![
        drive("d", &root, true),
        drive("own", "top", false),
        drive("below", "base", false),
        drive("copy", "target", false),
    ];
    let scopes = [
        BitmapScope::Drive("d".into()),
        BitmapScope::Node("top".into()),
        BitmapScope::Node("base".into()),
        BitmapScope::Node("target".into()),
    ];
    let bitmaps = scopes.into_iter().map(plugins::bitmap).collect::<Result<_>>()?;
    let graph = GraphDecl { nodes, drives, bitmaps }.build()?;
    graph.start_drivers(None)?;
    Ok((GraphCell::new(graph), has_backup))
}

async fn request(drive: &LocalDrive, random: &mut Random, number: u64) -> Result<Vec<u8>> {
    let sectors = some_sectors(random);
    let (range, kind) = (bytes_of(&sectors), random.below(8));
    let len = range.end - range.start;
    match kind {
        0..=2 => {
            let write = WriteId(100 + number);
            let bytes: Vec<u8> = sectors.flat_map(|at| fill(word(write, at))).collect();
            drive.write(range.start, Buf::copy_of(&bytes), WriteFlags::NONE).await?;
        }
        3 => {
            drive.zero(range.start, len, WriteFlags { no_unmap: true, ..WriteFlags::NONE }).await?;
        }
        4 => drive.flush().await?,
        _ => {
            let read = drive.read(range.start, BufMut::new(len as usize)).await?;
            return Ok(read.to_vec());
        }
    }
    Ok(Vec::new())
}

async fn live(cell: Arc<GraphCell>, has_backup: bool, mut random: Random) -> Outcome {
    let local = Rc::new(LocalGraph::new(Arc::clone(&cell), 0));
    let graph = cell.load();
    for node in graph.nodes() {
        node.driver().run(&local, node.name());
    }
    // A guest may come before a backup has begun: it waits then, and what it writes comes after.
    let drive = LocalDrive::open(&local, "d").expect("a drive");
    let mut answers = Vec::new();
    for number in 0..random.within(10..40) {
        let answer = request(&drive, &mut random, number).await;
        answers.push(answer.map_err(|error| format!("{:?}", error.kind())));
        if random.one_in(3) {
            sleep_until(turn_now() + Duration::from_micros(random.below(3000))).await;
        }
    }
    // The job has all the time that it needs.
    if has_backup {
        sleep_until(turn_now() + Duration::from_secs(60)).await;
    }
    let mut bytes = Vec::new();
    for id in ["d", "own", "below", "copy"] {
        let drive = LocalDrive::open(&local, id).expect("a drive");
        let read = drive.read(0, BufMut::new(SIZE as usize)).await.expect("a read");
        bytes.push((id, read.to_vec()));
    }
    let bitmaps = graph.bitmaps().map(|(scope, bitmap)| {
        let runs = bitmap.ranges(0..u64::MAX).map(|run| (run.start, run.end));
        (scope.to_string(), runs.collect())
    });
    let bitmaps = bitmaps.collect();
    Outcome { answers, bytes, bitmaps, faults: plugins::faults() }
}

fn run(seed: u64, who: Who) -> std::result::Result<Outcome, String> {
    let simulation = Simulation::new(seed);
    let (inner, mut random) = (simulation.clone(), Random::new(seed));
    let ran = simulation.run(async move {
        let (cell, has_backup) =
            graph(&inner, &mut random, who).map_err(|error| error.to_string())?;
        Ok(live(Arc::new(cell), has_backup, random).await)
    });
    ran.unwrap_or_else(|stop| Err(stop.to_string()))
}

/// # Errors
/// How the plugins differ from their twins.
fn compare(seed: u64) -> std::result::Result<(), String> {
    let native = run(seed, Who::Native)?;
    for asked in [Asked::ByRules, Asked::Always, Asked::OneIn(3)] {
        let plugin = run(seed, Who::Plugin(asked))?;
        if plugin.answers != native.answers {
            let at =
                plugin.answers.iter().zip(&native.answers).position(|(one, other)| one != other);
            return Err(format!("{asked:?}: request {at:?} ends differently"));
        }
        let differs = plugin.bytes.iter().zip(&native.bytes).find(|(one, other)| one != other);
        if let Some(((id, _), _)) = differs {
            return Err(format!("{asked:?}: `{id}` shows something else"));
        }
        if plugin.faults > 0 {
            return Err(format!("{asked:?}: a plugin has failed by itself"));
        }
        if plugin.bitmaps != native.bitmaps {
            let (one, other) = (&plugin.bitmaps, &native.bitmaps);
            return Err(format!("{asked:?}: {one:?} are dirty, not {other:?}"));
        }
    }
    Ok(())
}

#[test]
fn plugins_do_what_their_twins_do() {
    for seed in super::seeds(150) {
        if let Err(wrong) = compare(seed) {
            panic!(
                "seed {seed}: {wrong}\nagain: BLOCKLOOM_SIM_SEED={seed} cargo test -p blockloom --lib \
                 plugins_do_what"
            );
        }
    }
}

/// A difference shows in a few seeds.
#[test]
fn rules_that_let_too_much_pass_are_noticed() {
    set(Some(Mutation::RulesLetAllPass));
    let found = (0..60).find_map(|seed| Some((seed, compare(seed).err()?)));
    set(None);
    let (seed, wrong) = found.expect("a difference in sixty seeds");
    println!("seed {seed}: {wrong}");
}
