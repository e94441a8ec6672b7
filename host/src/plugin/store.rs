//! What a guest can reach: its own limits, and a log. Nothing else.

use std::time::Duration;

use wasmtime::{StoreLimits, StoreLimitsBuilder, Trap};

use super::PluginLimits;
use super::bindings::blockloom::filter::host;
use crate::io::{Time, thread_time, turn_now};

/// Messages kept of one message, bytes.
const MESSAGE_MAX_BYTES: usize = 1024;
/// Messages of one instance in one second; more are counted and dropped.
const MESSAGES_PER_SECOND: u32 = 100;
/// Tables and core instances of one component: an encoded core module needs three.
const INSTANCES_MAX: usize = 16;
/// Elements of one table.
const TABLE_ELEMENTS_MAX: usize = 10_000;

/// The data of one store.
pub(super) struct HostState {
    pub(super) limits: StoreLimits,
    plugin: String,
    /// Processor time that the thread had had when the first half of the call's limit was over.
    half_over: Option<Duration>,
    window_start: Time,
    messages: u32,
    dropped: u64,
    /// The last error that the guest logged: after a panic, what it says.
    pub(super) last_error: Option<String>,
}

impl HostState {
    pub(super) fn new(plugin: &str, limits: &PluginLimits) -> Self {
        let limits = StoreLimitsBuilder::new()
            .memory_size(usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX))
            .table_elements(TABLE_ELEMENTS_MAX)
            .instances(INSTANCES_MAX)
            .tables(INSTANCES_MAX)
            .memories(1)
            .build();
        Self {
            limits,
            plugin: plugin.to_owned(),
            half_over: None,
            window_start: Time::default(),
            messages: 0,
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
        self.messages += 1;
        let fits = self.messages <= MESSAGES_PER_SECOND;
        self.dropped += u64::from(!fits);
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

    fn bitmap_next(&mut self, _bitmap: u32, _from: u64) -> Option<(u64, u64)> {
        None
    }

    fn bitmap_set(&mut self, _: u32, _: u64, _: u64, _: bool) -> Result<(), String> {
        Err("this host does not lend bitmaps to plugins".into())
    }

    fn set_rules(&mut self, _: u16, _: Vec<host::Rule>, _: u32) -> Result<(), String> {
        Err("this host has no offload rules: it offers every request".into())
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
        let mut state = HostState::new("flood", &PluginLimits::default());
        let admitted = (0..1000).filter(|_| state.admit_message()).count();
        assert_eq!(admitted, MESSAGES_PER_SECOND as usize);
        assert_eq!(state.dropped, 900);
    }
}
