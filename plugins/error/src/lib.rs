//! Fails requests, so that what stands above can show how it bears that.
//!
//! | key | meaning |
//! |---|---|
//! | `kinds` | of these kinds; reads and all changes if absent |
//! | `errno` | with which error: `"EIO"` if absent |
//! | `offset`, `length` | only what touches this range; without `length` to the end |
//! | `probability` | how likely, from 0 to 1; 1 if absent |
//! | `after` | how many of them pass before the first fails; 0 if absent |
//! | `count` | how many fail; without an end if absent. Then nothing is called any more |
//! | `seed` | of the chance; 0 if absent |
//!
//! A flush or a resize has no range: it fails whatever range is given. Two of these filters over each other
//! fail in two ways.
#![deny(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

use blockloom_sdk::{
    ConfigError, Description, Errno, Filter, Kind, Kinds, Level, Node, NodeId, Random, Request,
    Rule, Table, Time, Verdict, log, set_rules,
};

const WITH_RANGE: Kinds = Kinds::READ.with(Kinds::WRITE).with(Kinds::ZERO).with(Kinds::DISCARD);
const CERTAIN: u64 = 1_000_000_000;

#[derive(Clone, Debug)]
struct Config {
    kinds: Kinds,
    errno: Errno,
    range: Range<u64>,
    billionths: u64,
    after: u64,
    count: u64,
    seed: u64,
}

impl Config {
    fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let kinds = table.kinds("kinds")?.unwrap_or(WITH_RANGE);
        let name = table.string("errno")?;
        let errno = Errno::named(name.as_deref().unwrap_or("EIO"));
        let errno = errno
            .ok_or_else(|| table.error("errno", "is no error such as \"EIO\" or \"ENOSPC\""))?;
        let start = table.size("offset")?.unwrap_or(0);
        let len = table.size("length")?.unwrap_or(u64::MAX);
        let config = Self {
            kinds,
            errno,
            range: start..start.saturating_add(len),
            billionths: table.billionths("probability")?.unwrap_or(CERTAIN),
            after: table.integer("after")?.unwrap_or(0),
            count: table.integer("count")?.unwrap_or(u64::MAX),
            seed: table.integer("seed")?.unwrap_or(0),
        };
        table.finish()?;
        Ok(config)
    }

    fn rules(&self) -> [Rule; 1] {
        [Rule::always(self.kinds)]
    }

    fn touches(&self, request: &Request) -> bool {
        let has_range = !matches!(request.kind, Kind::Flush | Kind::Resize);
        let range = request.range();
        !has_range || (self.range.start < range.end && range.start < self.range.end)
    }
}

/// The filter.
#[derive(Debug)]
pub struct ErrorFilter {
    config: RefCell<Config>,
    random: RefCell<Random>,
    /// That were to fail by all but `after`.
    met: Cell<u64>,
    failed: Cell<u64>,
    nodes: RefCell<BTreeSet<NodeId>>,
}

impl Filter for ErrorFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::ALL;

    fn describe() -> Description {
        Description::new("error", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let config = Config::from_json(config)?;
        Ok(Self {
            random: RefCell::new(Random::new(config.seed)),
            config: RefCell::new(config),
            met: Cell::new(0),
            failed: Cell::new(0),
            nodes: RefCell::default(),
        })
    }

    // Counting begins anew.
    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let config = Config::from_json(config)?;
        let nodes = self.nodes.borrow();
        let set = nodes.iter().try_for_each(|node| set_rules(*node, &config.rules(), 0));
        set.map_err(|error| ConfigError::new("kinds", error))?;
        *self.random.borrow_mut() = Random::new(config.seed);
        *self.config.borrow_mut() = config;
        self.met.set(0);
        self.failed.set(0);
        Ok(())
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        set_rules(node.index, &self.config.borrow().rules(), 0)?;
        self.nodes.borrow_mut().insert(node.index);
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        self.nodes.borrow_mut().remove(&node);
    }

    fn decide(&self, request: &Request, _: Time) -> Option<Verdict> {
        let config = self.config.borrow();
        let is_met = self.failed.get() < config.count
            && config.kinds.contains(request.kind)
            && config.touches(request)
            && self.random.borrow().below(CERTAIN) < config.billionths;
        if !is_met {
            return Some(Verdict::Forward);
        }
        self.met.set(self.met.get().saturating_add(1));
        if self.met.get() <= config.after {
            return Some(Verdict::Forward);
        }
        self.failed.set(self.failed.get() + 1);
        if self.failed.get() == config.count {
            self.stop_asking();
        }
        Some(Verdict::Fail(config.errno))
    }
}

impl ErrorFilter {
    fn stop_asking(&self) {
        for node in &*self.nodes.borrow() {
            if let Err(error) = set_rules(*node, &[], 0) {
                log(Level::Warn, &error);
            }
        }
    }
}

blockloom_sdk::export_filter!(ErrorFilter);
