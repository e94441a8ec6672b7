//! A thread that ticks while something is going on, and rests when nothing is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// Ticks beyond those asked for after which the thread rests.
const REST_AFTER_TICKS: u32 = 100;

struct Shared {
    /// Ticks asked for since the last one; 0 when nobody asked.
    wanted: AtomicU32,
    resting: AtomicBool,
    ended: AtomicBool,
}

/// Calls a function at a fixed interval for as long as somebody wants that.
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    /// Starts the thread, at rest.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(interval: Duration, tick: impl Fn() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: AtomicU32::new(0),
            resting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("ticker".into())
            .spawn(move || run(&state, interval, tick))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Keeps it going for at least `ticks` ticks. Costs two loads when somebody else wanted that within
    /// the interval already.
    #[inline]
    pub fn want(&self, ticks: u32) {
        if self.shared.wanted.load(Ordering::Relaxed) < ticks {
            self.shared.wanted.fetch_max(ticks, Ordering::SeqCst);
        }
        // SeqCst pairs with `run`: either this sees it resting, or it sees what is wanted.
        if self.shared.resting.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

fn run(shared: &Shared, interval: Duration, tick: impl Fn()) {
    let mut left = 0_u32;
    while !shared.ended.load(Ordering::SeqCst) {
        let wanted = shared.wanted.swap(0, Ordering::SeqCst);
        left = left.saturating_sub(1);
        if wanted > 0 {
            left = left.max(wanted.saturating_add(REST_AFTER_TICKS));
        }
        if left > 0 {
            thread::sleep(interval);
            tick();
            continue;
        }
        shared.resting.store(true, Ordering::SeqCst);
        while shared.wanted.load(Ordering::SeqCst) == 0 && !shared.ended.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.resting.store(false, Ordering::SeqCst);
    }
}
