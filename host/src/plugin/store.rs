//! What a guest can reach: its own limits, a log, its bitmaps and rules. Nothing else.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockloom_abi::NodeIndex;

use wasmtime::{StoreLimits, StoreLimitsBuilder, Trap};

use super::bindings::blockloom::filter::host;
use super::bitmaps::PluginBitmaps;
use super::buffers::BufferRoom;
use super::bytes::{LentBytes, StoreBytes};
use super::counters::InstanceCounters;
use super::rules::{Controls, NodeRules, RuleSet};
use super::runtime::TICK;
use super::{Inspection, PluginLimits};
use crate::bitmap::Granules;
use crate::io::{Time, thread_time, turn_now};

/// Messages kept of one message, bytes.
const MESSAGE_MAX_BYTES: usize = 1024;
/// Tables and core instances of one component: an encoded core module needs three.
const INSTANCES_MAX: usize = 16;
/// Words that one call may move each way, bytes: 2,048 actions of 32.
pub(super) const CALL_DATA_BYTES: usize = 64 << 10;
/// The state that one guest may hand to the next, bytes.
pub(super) const STATE_MAX_BYTES: usize = 1 << 20;
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
    /// Of requests that are offered.
    pub(super) bytes: LentBytes,
    rules: Mutex<Vec<Arc<NodeRules>>>,
    /// How many nodes there have been.
    births: AtomicU32,
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
        let birth = self.births.fetch_add(1, Ordering::Relaxed);
        let new = NodeRules::new(node, birth, Arc::clone(&self.controls));
        rules.push(Arc::clone(&new));
        new
    }

    /// A node has another size.
    pub(super) fn resize(&self, node: NodeIndex, size_bytes: u64) {
        self.bitmaps.resize(node, size_bytes);
        if let Some(rules) = self.rules_of(node) {
            rules.renew(&self.bitmaps);
            self.rules_changes.fetch_add(1, Ordering::Release);
        }
    }

    /// What there was of a node that has gone.
    pub(super) fn end_node(&self, node: NodeIndex) {
        self.bitmaps.end_node(node);
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = rules.iter().position(|known| known.node() == node).map(|at| rules.remove(at));
        drop(rules);
        if let Some(gone) = gone {
            gone.reset();
            self.rules_changes.fetch_add(1, Ordering::Release);
        }
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

    /// These are the rules from now on.
    fn install(&self, set: Vec<(Arc<NodeRules>, RuleSet)>) {
        set.into_iter().for_each(|(of, rules)| of.install(rules));
        self.rules_changes.fetch_add(1, Ordering::Release);
    }

    /// There are no rules any more, and nothing is to be told of those that were.
    pub(super) fn reset_rules(&self) {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rules.iter().for_each(|rules| rules.reset());
        while self.controls.pop().is_some() {}
        self.rules_changes.fetch_add(1, Ordering::Release);
    }
}

/// What the guest of a store has done that is not in its place yet, and perhaps never will be.
#[derive(Default)]
struct Aside {
    /// The last ones of each node.
    rules: Vec<(Arc<NodeRules>, RuleSet)>,
    /// Bitmaps that it has changed, as they were.
    former: Vec<(Arc<Granules>, Granules)>,
    /// Bitmaps that it has made.
    made: Vec<u32>,
}

impl Aside {
    fn set_rules(&mut self, of: Arc<NodeRules>, rules: RuleSet) {
        self.rules.retain(|(known, _)| !Arc::ptr_eq(known, &of));
        self.rules.push((of, rules));
    }

    /// A bitmap is about to be changed.
    fn keep(&mut self, bitmap: Option<Arc<Granules>>) -> Result<(), String> {
        let Some(bitmap) = bitmap else { return Ok(()) };
        if !self.former.iter().any(|(known, _)| Arc::ptr_eq(known, &bitmap)) {
            let copy = bitmap.copy().map_err(|error| error.to_string())?;
            self.former.push((bitmap, copy));
        }
        Ok(())
    }
}

/// Makes a bitmap what it was; what was and is set stays so meanwhile.
fn take_back(bitmap: &Granules, former: &Granules) {
    former.ranges(0..u64::MAX).for_each(|run| bitmap.mark(run.start, run.end - run.start));
    let mut at = 0;
    for run in former.ranges(0..u64::MAX) {
        bitmap.clear_range(at, run.start - at);
        at = run.end;
    }
    bitmap.clear_range(at, bitmap.size_bytes().saturating_sub(at));
}

/// The data of one store.
pub(super) struct HostState {
    pub(super) limits: StoreLimits,
    pub(super) lasting: Arc<Lasting>,
    /// While it is not in its place.
    aside: Option<Aside>,
    /// The data that the guest may name.
    pub(super) bytes: StoreBytes,
    plugin: String,
    /// What going through bitmaps may take in one call, and what of it is left, in words: one takes a nanosecond
    /// or so.
    words_max: u64,
    words_left: u64,
    /// Once the first half of the call's limit is over.
    second_half: Option<SecondHalf>,
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
        let words_max = u64::try_from(limits.call.as_nanos()).unwrap_or(u64::MAX);
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
            aside: None,
            bytes: StoreBytes::default(),
            plugin: plugin.to_owned(),
            words_max,
            words_left: words_max,
            second_half: None,
            window_start: Time::default(),
            messages: 0,
            messages_max,
            dropped: 0,
            last_error: None,
        }
    }

    /// What the guest does from now on to rules and bitmaps of the instance, it does aside.
    pub(super) fn begin_aside(&mut self, lasting: &Arc<Lasting>) {
        self.lasting = Arc::clone(lasting);
        self.aside = Some(Aside::default());
    }

    /// The store is in its place: what it has done counts.
    pub(super) fn come_forward(&mut self) {
        if let Some(aside) = self.aside.take() {
            self.lasting.install(aside.rules);
        }
    }

    /// The store is given up: what it has done aside has not been done.
    pub(super) fn take_back(&mut self) {
        let Some(aside) = self.aside.take() else { return };
        aside.former.iter().for_each(|(bitmap, former)| take_back(bitmap, former));
        aside.made.into_iter().for_each(|index| self.lasting.bitmaps.remove(index));
    }

    /// A bitmap is about to be changed.
    fn keep_former(&mut self, bitmap: u32) -> Result<(), String> {
        match &mut self.aside {
            Some(aside) => aside.keep(self.lasting.bitmaps.owned(bitmap)),
            None => Ok(()),
        }
    }

    /// A call begins: what the guest said in an earlier one does not explain a failure of this one.
    #[inline]
    pub(super) fn begin_call(&mut self) {
        self.second_half = None;
        self.words_left = self.words_max;
        self.last_error = None;
    }

    /// The guest has the host go through so many words of bitmaps. Nobody looks at the clock meanwhile, so they
    /// are counted.
    ///
    /// # Errors
    /// The trap, when that takes longer than the call may.
    fn charge(&mut self, words: u64) -> wasmtime::Result<()> {
        // One for the way here.
        match self.words_left.checked_sub(words.saturating_add(1)) {
            Some(left) => {
                self.words_left = left;
                Ok(())
            }
            None => Err(Trap::Interrupt.into()),
        }
    }

    /// Half of the call's limit is over by the clock, or more. The second half is of processor time: what
    /// the machine gives to other threads is no fault of the guest, and a loop uses up its share anyhow.
    ///
    /// # Errors
    /// The trap, when the guest has used up the second `half` as well.
    pub(super) fn check_time(&mut self, half: Duration) -> wasmtime::Result<()> {
        let had = thread_time();
        let second = self.second_half.get_or_insert(SecondHalf { had, used: Duration::ZERO });
        if second.uses_up(had, half) { Err(Trap::Interrupt.into()) } else { Ok(()) }
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

/// What a call has used of the second half of its limit.
struct SecondHalf {
    /// Processor time that the thread had had at the last look.
    had: Duration,
    used: Duration,
}

impl SecondHalf {
    /// A look, one after the other at ticks: whether all of it is used up by now. What a hypervisor keeps for others,
    /// and what the kernel does for them in an interrupt, is counted as the thread's processor time, some
    /// milliseconds at once; so no single look uses up more than half of it, unless a tick does.
    fn uses_up(&mut self, had: Duration, half: Duration) -> bool {
        let most = (half / 2).max(TICK);
        self.used += had.saturating_sub(self.had).min(most);
        self.had = had;
        self.used >= half
    }
}

/// One line that a terminal can be trusted with, of a message that is as long as it likes.
pub(super) fn printable(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_MAX_BYTES);
    let cut = if end < message.len() { "…" } else { "" };
    crate::text::printable(&message[..end]) + cut
}

impl host::Host for HostState {
    fn log(&mut self, level: u8, message: String) -> wasmtime::Result<()> {
        if level <= 1 {
            self.last_error = Some(printable(&message));
        }
        if !self.admit_message() {
            return Ok(());
        }
        let (plugin, message) = (&self.plugin, printable(&message));
        match level {
            0 | 1 => tracing::error!("plugin `{plugin}`: {message}"),
            2 => tracing::warn!("plugin `{plugin}`: {message}"),
            3 => tracing::info!("plugin `{plugin}`: {message}"),
            4 => tracing::debug!("plugin `{plugin}`: {message}"),
            _ => tracing::trace!("plugin `{plugin}`: {message}"),
        }
        Ok(())
    }

    fn bitmap_next(&mut self, bitmap: u32, from: u64) -> wasmtime::Result<Option<(u64, u64)>> {
        let (next, words) = self.lasting.bitmaps.next_and_words(bitmap, from);
        self.charge(words)?;
        Ok(next)
    }

    fn bitmap_own(
        &mut self,
        node: u16,
        name: String,
        granularity_bytes: u64,
    ) -> wasmtime::Result<Result<u32, String>> {
        self.charge(0)?;
        let owned = self.lasting.bitmaps.own(NodeIndex(node), &name, granularity_bytes);
        if let (Ok(owned), Some(aside)) = (&owned, &mut self.aside)
            && owned.is_new
        {
            aside.made.push(owned.index);
        }
        Ok(owned.map(|owned| owned.index))
    }

    fn bitmap_count(&mut self, bitmap: u32) -> wasmtime::Result<u64> {
        self.charge(self.lasting.bitmaps.words(bitmap))?;
        Ok(self.lasting.bitmaps.count(bitmap))
    }

    fn bitmap_merge(&mut self, into: u32, from: u32) -> wasmtime::Result<Result<(), String>> {
        let bitmaps = &self.lasting.bitmaps;
        self.charge(bitmaps.words(into).max(bitmaps.words(from)))?;
        let kept = self.keep_former(into);
        Ok(kept.and_then(|()| self.lasting.bitmaps.merge(into, from)))
    }

    fn bitmap_set(
        &mut self,
        bitmap: u32,
        offset: u64,
        len: u64,
        value: bool,
    ) -> wasmtime::Result<Result<(), String>> {
        self.charge(self.lasting.bitmaps.words_of(bitmap, len))?;
        let kept = self.keep_former(bitmap);
        Ok(kept.and_then(|()| self.lasting.bitmaps.set(bitmap, offset, len, value)))
    }

    fn set_rules(
        &mut self,
        node: u16,
        rules: Vec<host::Rule>,
        epoch: u32,
    ) -> wasmtime::Result<Result<(), String>> {
        let Some(of_node) = self.lasting.rules_of(NodeIndex(node)) else {
            return Ok(Err(format!("node {node} is not known")));
        };
        let set = match of_node.prepare(&rules, epoch, &self.lasting.bitmaps) {
            Ok(set) => set,
            Err(reason) => return Ok(Err(reason)),
        };
        match &mut self.aside {
            Some(aside) => aside.set_rules(of_node, set),
            None => self.lasting.install(vec![(of_node, set)]),
        }
        Ok(Ok(()))
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

    /// At which look a call is ended whose thread has had so much more processor time at each.
    fn ended_at(half_us: u64, looks_us: &[u64]) -> Option<usize> {
        let mut second = SecondHalf { had: Duration::from_secs(1), used: Duration::ZERO };
        let mut had = second.had;
        looks_us.iter().position(|us| {
            had += Duration::from_micros(*us);
            second.uses_up(had, Duration::from_micros(half_us))
        })
    }

    #[test]
    fn a_loop_is_ended_by_its_processor_time() {
        assert_eq!(ended_at(2500, &[1000; 9]), Some(2));
        assert_eq!(ended_at(200_000, &[1000; 300]), Some(199));
        assert_eq!(ended_at(500, &[1000; 9]), Some(0), "a limit of a tick");
        assert_eq!(ended_at(2500, &[12_000; 9]), Some(1), "ticks that come late");
    }

    /// The thread is told that it has had the time of somebody else.
    #[test]
    fn one_stall_ends_no_call() {
        assert_eq!(ended_at(2500, &[1_000_000, 10, 0, 0]), None);
        assert_eq!(ended_at(2500, &[10, 2844, 10]), None, "as measured on a busy virtual machine");
        assert_eq!(ended_at(2500, &[1_000_000, 1000, 1000]), Some(2), "a loop besides");
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
