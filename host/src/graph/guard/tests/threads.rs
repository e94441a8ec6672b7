//! Real threads on few ranges, with a count of holders for each cell that asserts exclusion.

use std::sync::atomic::AtomicU32;
use std::thread;

use super::*;

const WORKERS: usize = 4;
const ROUNDS: u64 = 4_000;
const UNITS: u64 = 4;

/// Added to a cell by who is there alone.
const ALONE: u32 = 1 << 16;

/// By source and unit: how many are there.
#[derive(Default)]
struct Holders([[AtomicU32; UNITS as usize]; 3]);

impl Holders {
    fn cells(&self, source: u32, range: &Range<u64>) -> &[AtomicU32] {
        &self.0[source as usize][range.start as usize..range.end as usize]
    }

    fn share(&self, source: u32, range: &Range<u64>) {
        for cell in self.cells(source, range) {
            assert!(cell.fetch_add(1, Ordering::Relaxed) < ALONE, "a change beside a guard");
        }
    }

    fn unshare(&self, source: u32, range: &Range<u64>) {
        for cell in self.cells(source, range) {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn own(&self, source: u32, range: &Range<u64>) {
        for cell in self.cells(source, range) {
            assert_eq!(
                cell.fetch_add(ALONE, Ordering::Relaxed),
                0,
                "a guard beside another holder"
            );
        }
    }

    fn disown(&self, source: u32, range: &Range<u64>) {
        for cell in self.cells(source, range) {
            assert_eq!(cell.fetch_sub(ALONE, Ordering::Relaxed), ALONE, "somebody came in");
        }
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

struct Worker<'a> {
    guards: &'a Guards,
    holders: &'a Holders,
    index: usize,
    random: u64,
}

impl Worker<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % bound
    }

    fn range(&mut self) -> Range<u64> {
        let start = self.below(UNITS);
        start..start + 1 + self.below(UNITS - start)
    }

    /// A change of source 0 that causes an operation further down, as a copy-before-write does.
    fn change(&mut self) {
        let (range, inner) = (self.range(), self.range());
        let sources = set(&[0]);
        let key = block_on(self.guards.enter(self.index, &sources, &range, TOP));
        self.holders.share(0, &range);
        if self.below(3) == 0 {
            self.operation(1, &inner, NESTED);
        }
        self.holders.unshare(0, &range);
        self.guards.leave(self.index, key);
    }

    /// Guards `source` and enters the next one, perhaps by a change that its copy causes.
    fn operation(&mut self, source: u32, range: &Range<u64>, by: By<'_>) {
        let wanted = want(source, range.clone(), &[source + 1]);
        let held = block_on(self.guards.acquire(self.index, wanted, by)).unwrap();
        self.holders.own(source, range);
        self.holders.share(source + 1, range);
        let is_spoiled = self.below(4) == 0;
        if is_spoiled {
            let caused = By { holds: true, ops: &[held.op()] };
            let sources = set(&[source]);
            let key = block_on(self.guards.enter(self.index, &sources, range, caused));
            self.guards.leave(self.index, key);
        }
        let is_issued = held.issue();
        assert!(!(is_spoiled && is_issued));
        let give_back = || {
            self.holders.unshare(source + 1, range);
            self.holders.disown(source, range);
        };
        if is_issued {
            assert!(held.settle(true, give_back));
        } else {
            give_back();
        }
        drop(held);
    }

    /// Asks once, and gives up if it would have to wait.
    fn give_up(&mut self) {
        let (range, source) = (self.range(), self.below(2) as u32);
        let sources = set(&[source]);
        let asked = Task::new(self.guards.enter(self.index, &sources, &range, TOP)).poll();
        if let Some(key) = asked {
            self.guards.leave(self.index, key);
        }
        let wanted = want(source, range, &[]);
        drop(Task::new(self.guards.acquire(self.index, wanted, TOP)).poll());
    }
}

#[test]
fn threads_exclude_each_other_and_all_end() {
    let (guards, holders) = (Guards::new(WORKERS), Holders::default());
    thread::scope(|scope| {
        for index in 0..WORKERS {
            let random = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut worker = Worker { guards: &guards, holders: &holders, index, random };
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    match worker.below(8) {
                        0..=3 => worker.change(),
                        4..=6 => {
                            let (source, range) = (worker.below(2) as u32, worker.range());
                            worker.operation(source, &range, TOP);
                        }
                        _ => worker.give_up(),
                    }
                }
            });
        }
    });
    assert!(holders.0.iter().flatten().all(|cell| cell.load(Ordering::Relaxed) == 0));
    let op = guards.granted(0, want(0, 0..UNITS, &[1, 2]), TOP);
    guards.release(op);
}
