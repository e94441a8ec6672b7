//! Refuses changes to some ranges of a disk with `EPERM`.
//!
//! | key | meaning |
//! |---|---|
//! | `ranges` | a list of `{ offset, length }`; without `offset` from the start, without `length` to the end that the disk has at the start |
//!
//! A change of which a part lies in such a range is refused whole, and so is a resize that would cut one
//! short. What lies elsewhere passes without a call: the ranges are in a bitmap at which the host looks.
#![deny(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use blockloom_sdk::{
    BitmapIndex, ConfigError, Control, ControlKind, Description, Errno, Filter, Kind, Kinds, Level,
    Node, NodeId, Request, Rule, Table, Time, Verdict, bitmap_own, bitmap_set, log, set_rules,
};

const CHANGES: Kinds = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);
/// Granules of the bitmap, at most: 16 KiB of memory.
const GRANULES: u64 = 1 << 17;

/// A node's bitmap, and the size for which it was made.
#[derive(Clone, Copy, Debug)]
struct Hint {
    bitmap: BitmapIndex,
    size_bytes: u64,
}

/// The filter.
#[derive(Debug)]
pub struct ProtectFilter {
    ranges: RefCell<Vec<Range<u64>>>,
    nodes: RefCell<BTreeMap<NodeId, Hint>>,
}

fn read_ranges(json: &str) -> Result<Vec<Range<u64>>, ConfigError> {
    let mut table = Table::parse(json)?;
    let mut ranges = Vec::new();
    for mut range in table.tables("ranges")?.unwrap_or_default() {
        let start = range.size("offset")?.unwrap_or(0);
        let end = match range.size("length")? {
            None => u64::MAX,
            Some(0) => return Err(range.error("length", "must not be 0")),
            Some(len) => start
                .checked_add(len)
                .ok_or_else(|| range.error("length", "ends past the largest offset"))?,
        };
        range.finish()?;
        ranges.push(start..end);
    }
    table.finish()?;
    Ok(ranges)
}

impl Filter for ProtectFilter {
    const KINDS: Kinds = Kinds::NONE;
    const DECIDE: Kinds = CHANGES.with(Kinds::RESIZE);

    fn describe() -> Description {
        Description::new("protect", env!("CARGO_PKG_VERSION"))
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Ok(Self { ranges: RefCell::new(read_ranges(config)?), nodes: RefCell::default() })
    }

    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let ranges = read_ranges(config)?;
        *self.ranges.borrow_mut() = ranges;
        let nodes = self.nodes.borrow();
        let shown = nodes.values().try_for_each(|hint| self.show(*hint));
        shown.map_err(|error| ConfigError::new("ranges", error))
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        let granularity = (node.size_bytes / GRANULES).next_power_of_two().max(512);
        let bitmap = bitmap_own(node.index, "protected", granularity)?;
        let hint = Hint { bitmap, size_bytes: node.size_bytes };
        self.show(hint)?;
        let rules = [Rule::any_set(CHANGES, bitmap), Rule::always(Kinds::RESIZE)];
        set_rules(node.index, &rules, 0)?;
        self.nodes.borrow_mut().insert(node.index, hint);
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        self.nodes.borrow_mut().remove(&node);
    }

    fn control(&self, control: Control) {
        if control.kind == ControlKind::Reconfigured
            && let Some(hint) = self.nodes.borrow_mut().get_mut(&control.node)
        {
            hint.size_bytes = control.first;
            if let Err(error) = self.show(*hint) {
                log(Level::Error, &error);
            }
        }
    }

    fn decide(&self, request: &Request, _: Time) -> Option<Verdict> {
        let range = match request.kind {
            // What is cut off.
            Kind::Resize => request.len..self.nodes.borrow().get(&request.node)?.size_bytes,
            _ => request.range(),
        };
        let ranges = self.ranges.borrow();
        let hit = !range.is_empty()
            && ranges.iter().any(|it| it.start < range.end && range.start < it.end);
        Some(if hit { Verdict::Fail(Errno::EPERM) } else { Verdict::Forward })
    }
}

impl ProtectFilter {
    /// Sets the bitmap to the ranges: first what is to be protected, so that nothing passes in between.
    fn show(&self, hint: Hint) -> Result<(), String> {
        let ranges = self.ranges.borrow();
        let mut sorted: Vec<Range<u64>> = ranges
            .iter()
            .map(|range| range.start.min(hint.size_bytes)..range.end.min(hint.size_bytes))
            .collect();
        sorted.sort_by_key(|range| range.start);
        for range in &sorted {
            bitmap_set(hint.bitmap, range.start, range.end - range.start, true)?;
        }
        // Only granules that a gap covers are cleared.
        let mut at = 0;
        for range in sorted.iter().chain([&(hint.size_bytes..hint.size_bytes)]) {
            if at < range.start {
                bitmap_set(hint.bitmap, at, range.start - at, false)?;
            }
            at = at.max(range.end);
        }
        Ok(())
    }
}

blockloom_sdk::export_filter!(ProtectFilter);
