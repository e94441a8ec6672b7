//! What a guest can reach: its own limits, a log, its bitmaps and rules. Nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockloom_abi::NodeIndex;

use wasmtime::{StoreLimits, StoreLimitsBuilder, Trap};

use super::bindings::blockloom::filter::host;
use super::bitmaps::PluginBitmaps;
use super::buffers::BufferRoom;
use super::counters::InstanceCounters;
use super::rules::{Controls, NodeRules};
use super::{Inspection, PluginLimits};
use crate::io::{Time, thread_time, turn_now};

/// Messages kept of one message, bytes.
const MESSAGE_MAX_BYTES: usize = 1024;
/// Tables and core instances of one component: an encoded core module needs three.
const INSTANCES_MAX: usize = 16;
/// Elements of one table.
const TABLE_ELEMENTS_MAX: usize = 10_000;

/// What outlives a store: it belongs to the instance, whatever becomes of the guest.
#[derive(Default)]
pub(super) struct Lasting {
    pub(super) bitmaps: PluginBitmaps,
    pub(super) controls: Arc<Controls>,
    pub(super) counters: InstanceCounters,
    /// For bytes that are read, on all workers.
    pub(super) buffers: Arc<BufferRoom>,
    rules: Mutex<Vec<Arc<NodeRules>>>,
    /// How often rules have changed.
    rules_changes: AtomicU64,
    /// How often they had when all that guests answered before was delivered.
    rules_published: AtomicU64,
}

impl Lasting {
    /// Of an instance of this plugin.
    pub(super) fn of(inspection: &Inspection) -> Self {
        let makes_views = !inspection.views.is_empty();
        Self { bitmaps: PluginBitmaps::with_views(makes_views), ..Self::default() }
    }

    /// The rules of one more node.
    pub(super) fn add_node(&self, node: NodeIndex, size_bytes: u64) -> Arc<NodeRules> {
        self.bitmaps.add_node(node, size_bytes);
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = rules.iter().find(|known| known.node() == node) {
            return Arc::clone(known);
        }
        let new = NodeRules::new(node, Arc::clone(&self.controls));
        rules.push(Arc::clone(&new));
        new
    }

    pub(super) fn rules_of(&self, node: NodeIndex) -> Option<Arc<NodeRules>> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.iter().find(|known| known.node() == node).map(Arc::clone)
    }

    /// How often rules had changed when all that guests answered before was delivered.
    #[inline]
    pub(super) fn rules_published(&self) -> u64 {
        self.rules_published.load(Ordering::Acquire)
    }

    /// What guests answered so far has been delivered; returns whether rules have changed since it was last so.
    /// Only who is inside the instance may say it.
    #[inline]
    pub(super) fn publish_rules(&self) -> bool {
        let changes = self.rules_changes.load(Ordering::Acquire);
        let is_new = self.rules_published.load(Ordering::Relaxed) != changes;
        if is_new {
            self.rules_published.store(changes, Ordering::Release);
        }
        is_new
    }

    /// There are no rules any more, and nothing is to be told of those that were.
    pub(super) fn reset_rules(&self) {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rules.iter().for_each(|rules| rules.reset());
        while self.controls.pop().is_some() {}
        self.rules_changes.fetch_add(1, Ordering::Release);
    }
}

/// The data of one store.
pub(super) struct HostState {
    pub(super) limits: StoreLimits,
    lasting: Arc<Lasting>,
    plugin: String,
    /// Processor time that the thread had had when the first half of the call's limit was over.
    half_over: Option<Duration>,
    window_start: Time,
    messages: u32,
    messages_max: u32,
    dropped: u64,
    /// The last error that the guest logged: after a panic, what it says.
    pub(super) last_error: Option<String>,
}

impl HostState {
    pub(super) fn new(plugin: &str, limits: &PluginLimits, lasting: Arc<Lasting>) -> Self {
        let messages_max = limits.messages;
        let limits = StoreLimitsBuilder::new()
            .memory_size(usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX))
            .table_elements(TABLE_ELEMENTS_MAX)
            .instances(INSTANCES_MAX)
            .tables(INSTANCES_MAX)
            .memories(1)
            .build();
        Self {
            limits,
            lasting,
            plugin: plugin.to_owned(),
            half_over: None,
            window_start: Time::default(),
            messages: 0,
            messages_max,
            dropped: 0,
            last_error: None,
        }
    }

    /// A call begins: what the guest said in an earlier one does not explain a failure of this one.
    #[inline]
    pub(super) fn begin_call(&mut self) {
        self.half_over = None;
        self.last_error = None;
    }

    /// Half of the call's limit is over by the clock, or more. The second half is of processor time: what
    /// the machine gives to other threads is no fault of the guest, and a loop uses up its share anyhow.
    ///
    /// # Errors
    /// The trap, when the guest has used up the second `half` as well.
    pub(super) fn check_time(&mut self, half: Duration) -> wasmtime::Result<()> {
        let used = thread_time();
        let since = *self.half_over.get_or_insert(used);
        if used.saturating_sub(since) < half { Ok(()) } else { Err(Trap::Interrupt.into()) }
    }

    /// Whether one more message fits the rate.
    fn admit_message(&mut self) -> bool {
        let now = turn_now();
        if now.since(self.window_start) >= Duration::from_secs(1) {
            if self.dropped > 0 {
                tracing::warn!("plugin `{}`: {} messages dropped", self.plugin, self.dropped);
            }
            (self.window_start, self.messages, self.dropped) = (now, 0, 0);
        }
        let fits = self.messages < self.messages_max;
        if fits {
            self.messages += 1;
        } else {
            self.dropped += 1;
            self.lasting.counters.dropped_messages.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }
}

/// One line that a terminal can be trusted with.
pub(super) fn printable(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let cut = if end < message.len() { "…" } else { "" };
    let escaped = message[..end].chars().flat_map(|c| {
        let plain = !c.is_control();
        plain
            .then_some(c)
            .into_iter()
            .chain((!plain).then(|| c.escape_default()).into_iter().flatten())
    });
    escaped.chain(cut.chars()).collect()
}

impl host::Host for HostState {
    fn log(&mut self, level: u8, message: String) {
        if level <= 1 {
            self.last_error = Some(printable(&message));
        }
        if !self.admit_message() {
            return;
        }
        let (plugin, message) = (&self.plugin, printable(&message));
        match level {
            0 | 1 => tracing::error!("plugin `{plugin}`: {message}"),
            2 => tracing::warn!("plugin `{plugin}`: {message}"),
            3 => tracing::info!("plugin `{plugin}`: {message}"),
            4 => tracing::debug!("plugin `{plugin}`: {message}"),
            _ => tracing::trace!("plugin `{plugin}`: {message}"),
        }
    }

    fn bitmap_next(&mut self, bitmap: u32, from: u64) -> Option<(u64, u64)> {
        self.lasting.bitmaps.next(bitmap, from)
    }

    fn bitmap_own(
        &mut self,
        node: u16,
        name: String,
        granularity_bytes: u64,
    ) -> Result<u32, String> {
        self.lasting.bitmaps.own(NodeIndex(node), &name, granularity_bytes)
    }

    fn bitmap_count(&mut self, bitmap: u32) -> u64 {
        self.lasting.bitmaps.count(bitmap)
    }

    fn bitmap_merge(&mut self, into: u32, from: u32) -> Result<(), String> {
        self.lasting.bitmaps.merge(into, from)
    }

    fn bitmap_set(
        &mut self,
        bitmap: u32,
        offset: u64,
        len: u64,
        value: bool,
    ) -> Result<(), String> {
        self.lasting.bitmaps.set(bitmap, offset, len, value)
    }

    fn set_rules(&mut self, node: u16, rules: Vec<host::Rule>, epoch: u32) -> Result<(), String> {
        let of_node = self.lasting.rules_of(NodeIndex(node));
        let of_node = of_node.ok_or_else(|| format!("node {node} is not known"))?;
        of_node.set(&rules, epoch, &self.lasting.bitmaps)?;
        self.lasting.rules_changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_and_escaped() {
        assert_eq!(printable("a\x1b[31mb\nc"), "a\\u{1b}[31mb\\nc");
        let long = printable(&"é".repeat(MESSAGE_MAX_BYTES));
        assert_eq!(long.chars().count(), MESSAGE_MAX_BYTES / 2 + 1);
    }

    #[test]
    fn a_flood_is_cut_off() {
        let mut state = HostState::new("flood", &PluginLimits::default(), Arc::default());
        let admitted = (0..1000).filter(|_| state.admit_message()).count();
        assert_eq!(admitted, 100);
        assert_eq!(state.dropped, 900);
        let none = PluginLimits { messages: 0, ..PluginLimits::default() };
        assert!(!HostState::new("flood", &none, Arc::default()).admit_message());
    }
}
