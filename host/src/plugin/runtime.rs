//! The engine that compiles and runs all plugins of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::{Config, Engine, Strategy};

use crate::error::{Error, ErrorKind, Result};
use crate::io::Ticker;

/// Interval of the clock that bounds calls.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Stack of a guest. Workers have 2 MiB, so a guest overflows its own first.
const GUEST_STACK_BYTES: usize = 256 << 10;

/// Compiles plugins and bounds their calls. One for all plugins of a host.
pub struct PluginRuntime {
    pub(super) engine: Engine,
    pub(super) ticker: Ticker,
    /// How often it has ticked.
    pub(super) ticks: Arc<AtomicU64>,
}

impl PluginRuntime {
    /// Sets up the engine.
    ///
    /// # Errors
    /// When this machine cannot run it.
    pub fn new() -> Result<Self> {
        let mut config = Config::new();
        config
            .strategy(Strategy::Cranelift)
            .concurrency_support(false)
            .epoch_interruption(true)
            .max_wasm_stack(GUEST_STACK_BYTES)
            // Proposals that no plugin needs are attack surface.
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .wasm_tail_call(false);
        let broken = |error: &dyn std::fmt::Display| {
            Error::new(ErrorKind::NotSupported, format!("plugins cannot run here: {error}"))
        };
        let engine = Engine::new(&config).map_err(|error| broken(&error))?;
        let ticks = Arc::new(AtomicU64::new(0));
        let (clock, count) = (engine.clone(), Arc::clone(&ticks));
        let ticker = Ticker::start(TICK, move || {
            count.fetch_add(1, Ordering::Relaxed);
            clock.increment_epoch();
        });
        Ok(Self { engine, ticker: ticker.map_err(|error| broken(&error))?, ticks })
    }
}
