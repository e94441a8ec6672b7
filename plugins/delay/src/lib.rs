//! Makes requests take longer: each is held for a time before it is passed on.
//!
//! | key | meaning |
//! |---|---|
//! | `read`, `write`, `zero`, `discard`, `flush` | how long requests of that kind are held (`"5ms"`); none if absent |
//! | `jitter` | added to each: a random time from nothing to this |
//! | `seed` | of the random times; 0 if absent |
//!
//! `zero` and `discard` are as `write` if absent. A kind without a delay passes without a call.
#![deny(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use blockloom_sdk::{
    ConfigError, Description, Filter, Kind, Kinds, Node, NodeId, Random, Request, Rule, Table,
    Time, Verdict, set_rules,
};

/// The longest delay: longer than a host holds a request for a plugin, unless it is told to.
pub const MAX_DELAY: Duration = Duration::from_secs(3600);

const DELAYED: Kinds =
    Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::DISCARD).with(Kinds::FLUSH);

#[derive(Clone, Copy, Debug)]
struct Config {
    /// Of each kind, in the order of their numbers.
    delays: [Duration; 5],
    jitter: Duration,
    seed: u64,
}

impl Config {
    fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let read = delay(&mut table, "read")?.unwrap_or_default();
        let write = delay(&mut table, "write")?.unwrap_or_default();
        let zero = delay(&mut table, "zero")?.unwrap_or(write);
        let discard = delay(&mut table, "discard")?.unwrap_or(write);
        let flush = delay(&mut table, "flush")?.unwrap_or_default();
        let jitter = delay(&mut table, "jitter")?.unwrap_or_default();
        let seed = table.integer("seed")?.unwrap_or(0);
        table.finish()?;
        Ok(Self { delays: [read, write, zero, discard, flush], jitter, seed })
    }

    /// How long a kind is held, without the jitter; none for one that is not.
    fn delay(&self, kind: Kind) -> Option<Duration> {
        self.delays.get(kind as usize).copied().filter(|delay| !delay.is_zero())
    }

    fn rules(&self) -> [Rule; 1] {
        let all = [Kind::Read, Kind::Write, Kind::Zero, Kind::Discard, Kind::Flush];
        let delayed = all.into_iter().filter(|kind| self.delay(*kind).is_some());
        [Rule::always(delayed.fold(Kinds::NONE, |kinds, kind| kinds.with(Kinds::of(kind))))]
    }
}

fn delay(table: &mut Table<'_>, key: &'static str) -> Result<Option<Duration>, ConfigError> {
    match table.duration(key)? {
        Some(delay) if delay > MAX_DELAY => Err(table.error(key, "must be at most 1h")),
        delay => Ok(delay),
    }
}

/// The filter.
#[derive(Debug)]
pub struct DelayFilter {
    config: Cell<Config>,
    random: RefCell<Random>,
    nodes: RefCell<BTreeSet<NodeId>>,
}

impl Filter for DelayFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = DELAYED;

    fn describe() -> Description {
        Description::new("delay", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let config = Config::from_json(config)?;
        let random = RefCell::new(Random::new(config.seed));
        Ok(Self { config: Cell::new(config), random, nodes: RefCell::default() })
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let config = Config::from_json(config)?;
        self.config.set(config);
        *self.random.borrow_mut() = Random::new(config.seed);
        let nodes = self.nodes.borrow();
        let set = nodes.iter().try_for_each(|node| set_rules(*node, &config.rules(), 0));
        set.map_err(|error| ConfigError::new("", error))
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        set_rules(node.index, &self.config.get().rules(), 0)?;
        self.nodes.borrow_mut().insert(node.index);
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        self.nodes.borrow_mut().remove(&node);
    }

    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        let config = self.config.get();
        let delay = config.delay(request.kind)?;
        let jitter_ns = config.jitter.as_nanos().try_into().unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.borrow().below(jitter_ns));
        Some(Verdict::ForwardAt(now + delay + jitter))
    }
}

blockloom_sdk::export_filter!(DelayFilter);
