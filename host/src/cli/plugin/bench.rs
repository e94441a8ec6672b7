//! `plugin bench`: what a request costs by a plugin, beside no filter and the native pass-through; how long it
//! takes to load a plugin, and to make a new store of it.
//!
//! The contestants take turns in each round, so that what else the machine does hits all of them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::println;
use super::wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PassNode;
use crate::graph::{ChildDecl, LocalDrive};
use crate::host::StartError;
use crate::io::{EngineChoice, EngineKind, run_on_thread};
use crate::node::Node;
use crate::plugin::measure::{Work, over_null, run, timed};
use crate::plugin::{
    Instance, InstanceError, PluginLimits, PluginModule, PluginNode, PluginRuntime,
};

const DEPTHS: [usize; 2] = [1, 32];
/// Processor time of each second: it is counted as in any graph, and no call is put off.
const CPU: Duration = Duration::from_millis(999);
/// Loads and stores that are timed, at most: a load compiles.
const LOADS: u32 = 5;

/// What is asked for on the command line.
pub(super) struct Options {
    pub(super) plugin: String,
    pub(super) config: String,
    pub(super) rounds: u32,
    /// Requests of one sample.
    pub(super) requests: u32,
    pub(super) json: bool,
}

/// Measures and shows.
pub(super) fn bench(options: Options) -> std::result::Result<(), StartError> {
    let as_json = options.json;
    let engine = EngineChoice::Exactly(EngineKind::Threads);
    let measured = run_on_thread(engine, async move { measure(&options).await });
    let figures =
        measured.map_err(|error| Error::os("no worker for the measurement", &error))??;
    if as_json {
        println(format_args!("{:#}", figures.to_json()));
    } else {
        println(format_args!("{figures}"));
    }
    Ok(())
}

/// One way of a request through the graph.
struct Way {
    name: &'static str,
    drive: LocalDrive,
    /// The plugin on this way.
    instance: Option<Arc<Instance>>,
    /// Where its rules do not count.
    is_forced: bool,
}

/// The least and the middle of some samples.
#[derive(Clone, Copy)]
struct Spread {
    best: Duration,
    median: Duration,
}

impl Spread {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |index: usize| samples.get(index).copied().unwrap_or_default();
        Self { best: at(0), median: at(samples.len() / 2) }
    }
}

struct Row {
    work: &'static str,
    depth: usize,
    way: &'static str,
    each: Spread,
    /// Calls of the plugin in a turn, and events in them.
    calls: f64,
    entries: f64,
}

struct Figures {
    name: String,
    core_bytes: usize,
    load: Spread,
    store: Spread,
    rounds: u32,
    rows: Vec<Row>,
}

fn instance(module: &Arc<PluginModule>, config: &str) -> Result<Arc<Instance>> {
    let made = Instance::new(module, config, PluginLimits { cpu: CPU, ..PluginLimits::default() });
    made.map_err(|error| match error {
        InstanceError::Plugin(error) => error,
        InstanceError::Config(error) => Error::new(ErrorKind::Invalid, error.to_string()),
    })
}

/// A drive with the plugin.
fn with_plugin(
    module: &Arc<PluginModule>,
    config: &str,
    is_forced: bool,
) -> Result<(LocalDrive, Arc<Instance>)> {
    let instance = instance(module, config)?;
    let (granted, children) = wanted::children(module, false, |name| format!("null {name}"));
    let node = PluginNode::with_children(&instance, &granted)?;
    let node = node.with_bytes(module.inspection().wants_bytes)?;
    let node = if is_forced { node.asking_always() } else { node };
    Ok((over_null(Some((Arc::new(node), children)))?, instance))
}

/// Loads the plugin, several times; makes stores of it.
fn loaded(options: &Options) -> Result<(Arc<PluginModule>, Spread, Spread)> {
    let runtime = Arc::new(PluginRuntime::new()?);
    let is_file = Path::new(&options.plugin).extension().is_some_and(|it| it == "wasm");
    let load = || match is_file {
        true => PluginModule::load_file(&runtime, Path::new(&options.plugin)),
        false => PluginModule::load_bundled(&runtime, &options.plugin),
    };
    let (mut module, first) = timed(load)?;
    let mut loads = vec![first];
    for _ in 1..options.rounds.min(LOADS) {
        let (next, time) = timed(load)?;
        (module, loads) = (next, [loads, vec![time]].concat());
    }
    let module = Arc::new(module);
    let mut stores = Vec::new();
    for _ in 0..options.rounds {
        stores.push(timed(|| instance(&module, &options.config))?.1);
    }
    Ok((module, Spread::of(loads), Spread::of(stores)))
}

fn ways(module: &Arc<PluginModule>, config: &str) -> Result<Vec<Way>> {
    let native = |name, filter: Option<(Arc<dyn Node>, Vec<ChildDecl>)>| {
        over_null(filter).map(|drive| Way { name, drive, instance: None, is_forced: false })
    };
    let pass: (Arc<dyn Node>, _) = (Arc::new(PassNode), vec![ChildDecl::filtered("null")]);
    let mut ways = vec![native("no filter", None)?, native("pass, native", Some(pass))?];
    for is_forced in [false, true] {
        let (drive, instance) = with_plugin(module, config, is_forced)?;
        ways.push(Way { name: "plugin", drive, instance: Some(instance), is_forced });
    }
    Ok(ways)
}

async fn measure(options: &Options) -> Result<Figures> {
    let (module, load, store) = loaded(options)?;
    let ways = ways(&module, &options.config)?;
    let mut rows = Vec::new();
    for (name, work) in [("read", Work::Read), ("write", Work::Write)] {
        for depth in DEPTHS {
            rows.extend(compare(&ways, (name, work), depth, options).await?);
        }
    }
    let it = module.inspection();
    let name = format!("{} {}", it.name, it.version);
    let core_bytes = it.file_bytes;
    Ok(Figures { name, core_bytes, load, store, rounds: options.rounds, rows })
}

/// All ways for one kind of request at one depth, in turn.
async fn compare(
    ways: &[Way],
    (name, work): (&'static str, Work),
    depth: usize,
    options: &Options,
) -> Result<Vec<Row>> {
    let count = options.requests as usize;
    let turns = (count / depth).max(1) as f64;
    let mut samples = vec![Vec::new(); ways.len()];
    let mut called = vec![(0.0, 0.0); ways.len()];
    // The first round warms up.
    for round in 0..=options.rounds {
        for (at, way) in ways.iter().enumerate() {
            let calls = || way.instance.as_ref().map_or((0, 0), |instance| instance.calls());
            let before = calls();
            let time = run(&way.drive, work, depth, count).await?;
            let after = calls();
            if round > 0 {
                samples[at].push(time);
                let in_turn = |before: u64, after: u64| after.saturating_sub(before) as f64 / turns;
                called[at] = (in_turn(before.0, after.0), in_turn(before.1, after.1));
            }
        }
    }
    let mut rows = Vec::new();
    let is_uncalled = called
        .iter()
        .zip(ways)
        .any(|(called, way)| way.instance.is_some() && !way.is_forced && called.0 == 0.0);
    for ((way, samples), (calls, entries)) in ways.iter().zip(samples).zip(called) {
        let is_called = calls > 0.0;
        // Without rules that let them pass both ways are the same.
        if way.is_forced && !(is_uncalled && is_called) {
            continue;
        }
        let way = match (way.instance.is_some(), is_called) {
            (false, _) => way.name,
            (true, true) => "plugin, called",
            (true, false) => "plugin, not called",
        };
        rows.push(Row { work: name, depth, way, each: Spread::of(samples), calls, entries });
    }
    Ok(rows)
}

impl Figures {
    fn ms_per_kib(&self) -> f64 {
        self.load.best.as_secs_f64() * 1e3 / (self.core_bytes as f64 / 1024.0).max(1.0)
    }

    /// What a row adds to the native pass-through.
    fn added(&self, row: &Row) -> i128 {
        let is_pass =
            |it: &&Row| it.way == "pass, native" && it.work == row.work && it.depth == row.depth;
        let pass = self.rows.iter().find(is_pass).map_or(0, |it| it.each.best.as_nanos());
        row.each.best.as_nanos() as i128 - pass as i128
    }

    fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_to_json(row)).collect();
        json!({
            "plugin": self.name,
            "core-module-bytes": self.core_bytes,
            "load-ms": {
                "best": self.load.best.as_secs_f64() * 1e3,
                "median": self.load.median.as_secs_f64() * 1e3,
                "best-per-kib": self.ms_per_kib(),
            },
            "new-store-us": {
                "best": self.store.best.as_secs_f64() * 1e6,
                "median": self.store.median.as_secs_f64() * 1e6,
            },
            "rounds": self.rounds,
            "requests": rows,
        })
    }

    fn row_to_json(&self, row: &Row) -> Value {
        json!({
            "kind": row.work,
            "depth": row.depth,
            "way": row.way,
            "best-ns": row.each.best.as_nanos() as u64,
            "median-ns": row.each.median.as_nanos() as u64,
            "over-pass-ns": self.added(row) as i64,
            "calls-per-turn": row.calls,
            "events-per-turn": row.entries,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let kib = self.core_bytes as f64 / 1024.0;
        writeln!(f, "plugin     {}, {kib:.1} KiB", self.name)?;
        writeln!(
            f,
            "load       {:.1} ms, median {:.1} ms ({:.2} ms/KiB)",
            ms(self.load.best),
            ms(self.load.median),
            self.ms_per_kib()
        )?;
        writeln!(
            f,
            "new store  {:.0} µs, median {:.0} µs (at a start, and after a fault)",
            ms(self.store.best) * 1e3,
            ms(self.store.median) * 1e3
        )?;
        writeln!(
            f,
            "\n4 KiB requests over `null`, ns each, best and median of {} rounds\n",
            self.rounds
        )?;
        write!(
            f,
            "{:<6}{:>6}  {:<20}{:>8}{:>8}{:>11}{:>13}{:>14}",
            "kind", "depth", "way", "best", "median", "over pass", "calls/turn", "events/turn"
        )?;
        for row in &self.rows {
            let Row { work, depth, way, each, calls, entries } = row;
            let added = self.added(row);
            write!(
                f,
                "\n{work:<6}{depth:>6}  {way:<20}{:>8}{:>8}{added:>+11}{calls:>13.2}{entries:>14.2}",
                each.best.as_nanos(),
                each.median.as_nanos()
            )?;
        }
        Ok(())
    }
}
