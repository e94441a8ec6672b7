//! What a plugin may call on the host outside the data plane.

use blockloom_abi::{BitmapIndex, ChildIndex, Kinds, NodeIndex};

use crate::Time;
#[cfg(target_family = "wasm")]
use crate::bindings::blockloom::filter::host as wit;

/// How much a log message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something may go wrong.
    Warn = 2,
    /// What an operator wants to know.
    Info = 3,
    /// What an author wants to know.
    Debug = 4,
    /// Every step.
    Trace = 5,
}

/// Writes a message to the host's log. The host cuts it, and drops it above its rate.
pub fn log(level: Level, message: &str) {
    #[cfg(target_family = "wasm")]
    wit::log(level as u8, message);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::log(level, message);
}

/// The first run of set bits of a bitmap at or after an offset: where it starts, how long it is.
#[must_use]
pub fn bitmap_next(bitmap: BitmapIndex, from: u64) -> Option<(u64, u64)> {
    #[cfg(target_family = "wasm")]
    return wit::bitmap_next(bitmap.0, from);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bitmap_next(bitmap, from);
}

/// A bitmap of a node's own: made clean, or found as a former instance left it. It has the node's size, whatever that
/// becomes; of a filter that offers a view, those that make it have for ever the size with which the node was added.
///
/// # Errors
///
/// Why the host refuses: no such node, a bad granularity or another than before, too many bitmaps.
pub fn bitmap_own(
    node: NodeIndex,
    name: &str,
    granularity_bytes: u64,
) -> Result<BitmapIndex, String> {
    #[cfg(target_family = "wasm")]
    return wit::bitmap_own(node.0, name, granularity_bytes).map(BitmapIndex);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bitmap_own(node, name, granularity_bytes);
}

/// How many bytes of a bitmap are set.
#[must_use]
pub fn bitmap_count(bitmap: BitmapIndex) -> u64 {
    #[cfg(target_family = "wasm")]
    return wit::bitmap_count(bitmap.0);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bitmap_count(bitmap);
}

/// Sets in one of the node's own bitmaps what is set in another one.
///
/// # Errors
///
/// Why the host refuses.
pub fn bitmap_merge(into: BitmapIndex, from: BitmapIndex) -> Result<(), String> {
    #[cfg(target_family = "wasm")]
    return wit::bitmap_merge(into.0, from.0);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bitmap_merge(into, from);
}

/// Sets or clears a range of one of the node's own bitmaps.
///
/// # Errors
///
/// Why the host refuses.
pub fn bitmap_set(bitmap: BitmapIndex, offset: u64, len: u64, value: bool) -> Result<(), String> {
    #[cfg(target_family = "wasm")]
    return wit::bitmap_set(bitmap.0, offset, len, value);
    #[cfg(not(target_family = "wasm"))]
    return crate::testing::bitmap_set(bitmap, offset, len, value);
}

/// When the host has to ask the plugin about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Kinds of requests.
    pub kinds: Kinds,
    /// Where.
    pub only: Condition,
    /// What may pass unasked all the same.
    pub budget: Option<Budget>,
}

impl Rule {
    /// Ask about these kinds, whatever the range.
    ///
    /// ```
    /// use blockloom_sdk::{Condition, Kinds, Rule};
    ///
    /// assert_eq!(Rule::always(Kinds::READ).only, Condition::Always);
    /// ```
    #[must_use]
    pub const fn always(kinds: Kinds) -> Self {
        Self { kinds, only: Condition::Always, budget: None }
    }

    /// Ask about these kinds where the bitmap has a bit set.
    #[must_use]
    pub const fn any_set(kinds: Kinds, bitmap: BitmapIndex) -> Self {
        Self { kinds, only: Condition::AnySet(bitmap), budget: None }
    }
}

/// Where a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Everywhere.
    Always,
    /// Where this bitmap has a bit set.
    AnySet(BitmapIndex),
    /// Where this child has nothing allocated.
    Unallocated(ChildIndex),
}

/// Requests that pass unasked until one of the limits is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many.
    pub requests: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Until when.
    pub until: Time,
}

/// Replaces a node's rules; a control event `Armed` with the epoch tells when they are in force
/// for every request in flight.
///
/// # Errors
///
/// Why the host refuses.
pub fn set_rules(node: NodeIndex, rules: &[Rule], epoch: u32) -> Result<(), String> {
    #[cfg(target_family = "wasm")]
    {
        let rules: Vec<wit::Rule> = rules.iter().map(lower).collect();
        wit::set_rules(node.0, &rules, epoch)
    }
    #[cfg(not(target_family = "wasm"))]
    crate::testing::set_rules(node, rules, epoch)
}

#[cfg(target_family = "wasm")]
fn lower(rule: &Rule) -> wit::Rule {
    wit::Rule {
        kinds: rule.kinds.bits(),
        only: match rule.only {
            Condition::Always => wit::Condition::Always,
            Condition::AnySet(bitmap) => wit::Condition::AnySet(bitmap.0),
            Condition::Unallocated(child) => wit::Condition::Unallocated(child.0),
        },
        budget: rule.budget.map(|budget| wit::Budget {
            requests: budget.requests,
            bytes: budget.bytes,
            until: budget.until.as_nanos(),
        }),
    }
}
