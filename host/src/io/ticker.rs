//! A thread that ticks while something is going on, and rests when nothing is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// Ticks without a touch after which the thread rests.
const REST_AFTER_TICKS: u32 = 100;

struct Shared {
    touched: AtomicBool,
    resting: AtomicBool,
    ended: AtomicBool,
}

/// Calls a function at a fixed interval for as long as it is touched now and then.
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
            touched: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let state = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("ticker".into())
            .spawn(move || run(&state, interval, tick))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Keeps it ticking. Costs two loads when it was touched within the interval already.
    #[inline]
    pub fn touch(&self) {
        if !self.shared.touched.load(Ordering::Relaxed) {
            self.shared.touched.store(true, Ordering::SeqCst);
        }
        // SeqCst pairs with `run`: either this sees it resting, or it sees the touch.
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
    let mut idle = 0;
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.touched.swap(false, Ordering::SeqCst) {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle < REST_AFTER_TICKS {
            thread::sleep(interval);
            tick();
            continue;
        }
        shared.resting.store(true, Ordering::SeqCst);
        while !shared.touched.load(Ordering::SeqCst) && !shared.ended.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.resting.store(false, Ordering::SeqCst);
    }
}
