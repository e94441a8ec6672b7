//! Measures how long requests take below this node, and logs it.
//!
//! | key | meaning |
//! |---|---|
//! | `kinds` | of these kinds; all if absent |
//! | `every` | time between two reports (`"10s"` if absent); 0 for none but the last |
//!
//! A report has a line for each kind of which there were requests: how many, how many failed, bytes, and the
//! latency that half, 99 in 100 and all of them did not exceed (to within an eighth). Each covers what
//! ended since the one before it, and comes with the first request that ends when its time has passed; what
//! comes when the node is removed covers all.
#![deny(unsafe_code)]

mod histogram;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use blockloom_sdk::{
    ConfigError, Cx, Description, Errno, Filter, Kind, Kinds, Level, Node, NodeId, NodeIndex,
    Request, Rule, Table, Time, Verdict, log, set_rules,
};

pub use histogram::Histogram;

/// Of the state that it hands over.
const FORM: u64 = 1;
const EVERY: Duration = Duration::from_secs(10);
const ALL: [(Kind, &str); 6] = [
    (Kind::Read, "read"),
    (Kind::Write, "write"),
    (Kind::Zero, "zero"),
    (Kind::Discard, "discard"),
    (Kind::Flush, "flush"),
    (Kind::Resize, "resize"),
];

#[derive(Clone, Copy, Debug)]
struct Config {
    kinds: Kinds,
    every: Option<Duration>,
}

impl Config {
    fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let kinds = table.kinds("kinds")?.unwrap_or(Kinds::ALL);
        let every = table.duration("every")?.unwrap_or(EVERY);
        table.finish()?;
        Ok(Self { kinds, every: Some(every).filter(|every| !every.is_zero()) })
    }
}

/// Requests of one kind.
#[derive(Debug, Default)]
struct Count {
    failed: u64,
    bytes: u64,
    latency: Histogram,
}

/// What a node did: since the last report, and at all.
#[derive(Debug, Default)]
struct Counts {
    name: String,
    recent: [Count; ALL.len()],
    whole: [Count; ALL.len()],
    /// When the time of the next report began; none before the first request.
    began: Option<Time>,
}

impl Counts {
    fn save(&self, node: NodeId, state: &mut Vec<u8>) {
        // Never the first nanosecond of the clock.
        let began = self.began.map_or(0, Time::as_nanos);
        for word in [u64::from(node.0), began] {
            state.extend_from_slice(&word.to_le_bytes());
        }
        for count in self.recent.iter().chain(&self.whole) {
            for word in [count.failed, count.bytes] {
                state.extend_from_slice(&word.to_le_bytes());
            }
            count.latency.save(state);
        }
    }

    fn restore(&mut self, words: &mut impl Iterator<Item = u64>) -> Option<()> {
        let began = words.next()?;
        self.began = (began > 0).then_some(Time::from_nanos(began));
        for count in self.recent.iter_mut().chain(&mut self.whole) {
            count.failed = words.next()?;
            count.bytes = words.next()?;
            count.latency.restore(words)?;
        }
        Some(())
    }
}

/// The filter.
#[derive(Debug)]
pub struct StatsFilter {
    config: Cell<Config>,
    nodes: RefCell<BTreeMap<NodeId, Counts>>,
    /// When the request of a slot arrived.
    arrived: RefCell<Vec<Time>>,
}

impl Filter for StatsFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::ALL;
    const NOTIFY: Kinds = Kinds::ALL;

    fn describe() -> Description {
        Description::new("stats", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let config = Cell::new(Config::from_json(config)?);
        Ok(Self { config, nodes: RefCell::default(), arrived: RefCell::default() })
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        self.config.set(Config::from_json(config)?);
        let rules = [Rule::always(self.config.get().kinds)];
        let nodes = self.nodes.borrow();
        let set = nodes.keys().try_for_each(|node| set_rules(*node, &rules, 0));
        set.map_err(|error| ConfigError::new("kinds", error))
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        set_rules(node.index, &[Rule::always(self.config.get().kinds)], 0)?;
        let (recent, whole) = Default::default();
        let counts = Counts { name: node.name, recent, whole, began: None };
        self.nodes.borrow_mut().insert(node.index, counts);
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        if let Some(counts) = self.nodes.borrow_mut().remove(&node) {
            report(&counts.name, &counts.whole);
        }
    }

    fn save(&self) -> Vec<u8> {
        let nodes = self.nodes.borrow();
        let mut state = Vec::new();
        let words = [FORM, nodes.len() as u64];
        words.iter().for_each(|word| state.extend_from_slice(&word.to_le_bytes()));
        for (node, counts) in &*nodes {
            counts.save(*node, &mut state);
        }
        state
    }

    fn restore(&self, state: &[u8]) -> Result<(), String> {
        let (words, rest) = state.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let nodes = &mut *self.nodes.borrow_mut();
        let mut restored = || {
            (words.next()? == FORM).then_some(())?;
            for _ in 0..words.next()? {
                let node = u16::try_from(words.next()?).ok()?;
                let mut unknown = Counts::default();
                // One that has gone is passed over.
                let counts = nodes.get_mut(&NodeIndex(node)).unwrap_or(&mut unknown);
                counts.restore(&mut words)?;
            }
            Some(())
        };
        let is_whole = restored().is_some() && words.next().is_none() && rest.is_empty();
        is_whole.then_some(()).ok_or_else(|| "its form is not known".to_owned())
    }

    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        let slot = usize::from(request.id.slot());
        let mut arrived = self.arrived.borrow_mut();
        if arrived.len() <= slot {
            arrived.resize(slot + 1, Time::default());
        }
        arrived[slot] = now;
        Some(Verdict::Forward)
    }

    async fn done(
        &self,
        request: Request,
        result: Result<(), Errno>,
        cx: &Cx,
    ) -> Result<(), Errno> {
        let arrived = self.arrived.borrow().get(usize::from(request.id.slot())).copied();
        let latency = cx.now() - arrived.unwrap_or_default();
        let mut nodes = self.nodes.borrow_mut();
        if let Some(counts) = nodes.get_mut(&request.node) {
            let began = *counts.began.get_or_insert_with(|| cx.now());
            let kind = request.kind as usize;
            for count in [&mut counts.recent, &mut counts.whole].map(|counts| &mut counts[kind]) {
                count.failed += u64::from(result.is_err());
                let has_range = !matches!(request.kind, Kind::Flush | Kind::Resize);
                count.bytes = count.bytes.saturating_add(if has_range { request.len } else { 0 });
                count.latency.add(latency);
            }
            if self.config.get().every.is_some_and(|every| cx.now() - began >= every) {
                report(&counts.name, &counts.recent);
                counts.recent = Default::default();
                counts.began = Some(cx.now());
            }
        }
        result
    }
}

fn report(node: &str, counts: &[Count]) {
    for ((_, kind), count) in ALL.iter().zip(counts) {
        let Count { failed, bytes, latency } = count;
        let number = latency.count();
        if number > 0 {
            let [half, most, all] = [500, 990, 1000].map(|thousandths| latency.within(thousandths));
            log(
                Level::Info,
                &format!(
                    "{node}: {kind}: {number} requests, {failed} failed, {bytes} bytes; latency: half \
                     {half:?}, 99 % {most:?}, longest {all:?}"
                ),
            );
        }
    }
}

blockloom_sdk::export_filter!(StatsFilter);
