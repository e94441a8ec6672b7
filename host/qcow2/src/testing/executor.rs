//! A single-threaded executor whose schedule is a seed.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A small generator: the same seed, the same numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.number() >> 16) % end
    }

    /// True once in `n`, on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs a future that needs nobody else to go on.
///
/// # Panics
/// If it waits and has not been woken: that is a lost wake-up or a deadlock.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        assert!(flag.0.swap(false, Ordering::SeqCst), "waits for nobody");
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// Runs futures in an order that the generator says, of those that have been woken; with `drop_one_in`
/// one of so many steps drops a future instead. Returns outputs by position, `None` if dropped.
///
/// # Panics
/// If all that are left wait and none has been woken.
pub fn run_all<'f, T>(
    random: &mut Random,
    drop_one_in: Option<u64>,
    futures: Vec<Pin<Box<dyn Future<Output = T> + 'f>>>,
) -> Vec<Option<T>> {
    let mut outputs: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut running: Vec<_> = futures
        .into_iter()
        .enumerate()
        .map(|(index, future)| (index, future, Arc::new(Flag(AtomicBool::new(true)))))
        .collect();
    while !running.is_empty() {
        let woken: Vec<usize> =
            (0..running.len()).filter(|&i| running[i].2.0.load(Ordering::SeqCst)).collect();
        assert!(!woken.is_empty(), "{} futures wait and none was woken", running.len());
        let chosen = woken[random.below(woken.len() as u64) as usize];
        if drop_one_in.is_some_and(|n| random.one_in(n)) {
            drop(running.swap_remove(chosen));
            continue;
        }
        let (index, future, flag) = &mut running[chosen];
        flag.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(flag.clone());
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            outputs[*index] = Some(output);
            drop(running.swap_remove(chosen));
        }
    }
    outputs
}
