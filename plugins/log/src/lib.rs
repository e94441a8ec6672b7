//! Writes a line to the host's log for each request.
//!
//! | key | meaning |
//! |---|---|
//! | `kinds` | of these kinds only, such as `["write", "flush"]`; all if absent |
//! | `level` | `"error"`, `"warn"`, `"info"` (if absent), `"debug"` or `"trace"` |
//! | `rate` | lines a second, at most; 50 if absent. A line says how many were left out |
#![deny(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use blockloom_sdk::{
    ConfigError, Description, Filter, Kind, Kinds, Level, Node, NodeId, Request, RequestFlags,
    Rule, Table, Time, Verdict, log, set_rules,
};

/// Lines a second, if the configuration does not say.
const RATE: u64 = 50;

#[derive(Clone, Copy, Debug)]
struct Config {
    kinds: Kinds,
    level: Level,
    rate: u64,
}

impl Config {
    fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut table = Table::parse(json)?;
        let kinds = table.kinds("kinds")?.unwrap_or(Kinds::ALL);
        let level = match table.string("level")?.as_deref() {
            Some("error") => Level::Error,
            Some("warn") => Level::Warn,
            None | Some("info") => Level::Info,
            Some("debug") => Level::Debug,
            Some("trace") => Level::Trace,
            Some(_) => {
                return Err(table.error("level", "is `error`, `warn`, `info`, `debug` or `trace`"));
            }
        };
        let rate = table.integer("rate")?.unwrap_or(RATE);
        table.finish()?;
        Ok(Self { kinds, level, rate })
    }
}

/// The filter.
#[derive(Debug)]
pub struct LogFilter {
    config: Cell<Config>,
    nodes: RefCell<BTreeMap<NodeId, String>>,
    /// When the second began of which lines are counted.
    second: Cell<Time>,
    lines: Cell<u64>,
}

impl Filter for LogFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = Kinds::ALL;

    fn describe() -> Description {
        Description::new("log", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            config: Cell::new(Config::from_json(config)?),
            nodes: RefCell::default(),
            second: Cell::default(),
            lines: Cell::default(),
        })
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
        self.nodes.borrow_mut().insert(node.index, node.name);
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        self.nodes.borrow_mut().remove(&node);
    }

    fn decide(&self, request: &Request, now: Time) -> Option<Verdict> {
        let config = self.config.get();
        // The host may ask more than the rules say.
        if config.kinds.contains(request.kind) && self.admits_line(config, now) {
            let nodes = self.nodes.borrow();
            let node = nodes.get(&request.node).map_or("", String::as_str);
            log(config.level, &line(node, request));
        }
        Some(Verdict::Forward)
    }
}

impl LogFilter {
    fn admits_line(&self, config: Config, now: Time) -> bool {
        if now - self.second.get() >= Duration::from_secs(1) {
            let left_out = self.lines.get().saturating_sub(config.rate);
            if left_out > 0 {
                log(config.level, &format!("{left_out} requests were left out"));
            }
            self.second.set(now);
            self.lines.set(0);
        }
        self.lines.set(self.lines.get() + 1);
        self.lines.get() <= config.rate
    }
}

fn line(node: &str, request: &Request) -> String {
    let Request { offset, len, flags, .. } = *request;
    let mut line = match request.kind {
        Kind::Read => format!("{node}: read {len} bytes at {offset}"),
        Kind::Write => format!("{node}: write {len} bytes at {offset}"),
        Kind::Zero => format!("{node}: zero {len} bytes at {offset}"),
        Kind::Discard => format!("{node}: discard {len} bytes at {offset}"),
        Kind::Flush => format!("{node}: flush"),
        Kind::Resize => format!("{node}: resize to {len} bytes"),
    };
    for (flag, name) in [
        (RequestFlags::FUA, ", durable"),
        (RequestFlags::UNCHANGED, ", unchanged"),
        (RequestFlags::NO_UNMAP, ", not to be deallocated"),
    ] {
        if flags.contains(flag) {
            line.push_str(name);
        }
    }
    line
}

blockloom_sdk::export_filter!(LogFilter);
