//! The table against a naive one, in which whatever a request holds is a mask of cells: one bit for each
//! of four sources and sixteen units of their ranges. Whatever the naive one would grant must have been
//! woken.

use super::*;

const SOURCES: u64 = 4;
const UNITS: u64 = 16;
const WORKERS: usize = 3;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }

    fn index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.below(len as u64) as usize)
    }

    fn range(&mut self) -> Range<u64> {
        let start = self.below(UNITS);
        start..start + 1 + self.below((UNITS - start).min(5))
    }

    fn source(&mut self) -> u32 {
        self.below(SOURCES) as u32
    }

    /// At most one source of each kind, and the cells they are at `range`.
    fn set(&mut self, range: &Range<u64>) -> (SourceSet, u64) {
        let ranged: Vec<u32> = (0..self.below(3)).map(|_| self.source()).collect();
        let whole: Vec<u32> = (0..u64::from(self.below(6) == 0)).map(|_| self.source()).collect();
        let of_range = ranged.iter().map(|&source| cells(source, range));
        let of_whole = whole.iter().map(|&source| cells(source, &(0..UNITS)));
        let mask = of_range.chain(of_whole).fold(0, |mask, cells| mask | cells);
        let [ranged, whole] = [ranged, whole].map(|ids| ids.into_iter().map(SourceId).collect());
        let (ranged, whole): (Vec<_>, Vec<_>) = (ranged, whole);
        (SourceSet::new(&ranged, &whole), mask)
    }
}

fn cells(source: u32, range: &Range<u64>) -> u64 {
    range.clone().fold(0, |mask, unit| mask | 1 << (u64::from(source) * UNITS + unit))
}

#[derive(Clone, Copy, Default)]
struct Cells {
    exclusive: u64,
    shared: u64,
    exempt: u64,
}

impl Cells {
    fn conflict(self, other: Self) -> bool {
        self.exclusive & (other.exclusive | other.shared) | self.shared & other.exclusive != 0
    }
}

struct Lineage {
    holds: bool,
    ops: Vec<OpId>,
}

impl Lineage {
    fn by(&self) -> By<'_> {
        By { holds: self.holds, ops: &self.ops }
    }

    fn is_nested(&self) -> bool {
        self.holds || !self.ops.is_empty()
    }
}

struct NaiveOperation {
    op: OpId,
    cells: Cells,
    issued: bool,
    spoiled: bool,
}

struct NaiveWaiter {
    ticket: Ticket,
    worker: usize,
    lineage: Lineage,
    /// A change has only shared cells.
    cells: Cells,
    is_change: bool,
    woken: Arc<Woken>,
}

struct NaiveWatch {
    key: WatchKey,
    cells: u64,
    stale: bool,
    flag: Arc<AtomicBool>,
}

/// Both tables, step by step.
struct Pair {
    guards: Guards,
    random: Random,
    flights: Vec<(usize, FlightKey, u64)>,
    operations: Vec<NaiveOperation>,
    waiting: Vec<NaiveWaiter>,
    watches: Vec<NaiveWatch>,
}

impl Pair {
    fn may_enter(&self, cells: u64, lineage: &Lineage, before: usize) -> bool {
        let is_held = self.operations.iter().any(|operation| {
            operation.cells.exclusive & cells != 0 && !lineage.ops.contains(&operation.op)
        });
        let ahead = &self.waiting[..before];
        let is_behind = ahead.iter().any(|waiter| waiter.cells.exclusive & cells != 0);
        !is_held && (lineage.is_nested() || !is_behind)
    }

    fn may_acquire(&self, cells: Cells, lineage: &Lineage, before: usize) -> bool {
        let is_held = self.operations.iter().any(|operation| {
            let is_void = operation.issued && operation.spoiled;
            let exempt = if is_void { operation.cells.exempt } else { 0 };
            (cells.conflict(operation.cells) || cells.exclusive & exempt != 0)
                && !lineage.ops.contains(&operation.op)
        });
        let is_in_flight = self.flights.iter().any(|(_, _, flight)| flight & cells.exclusive != 0);
        let is_behind = self.waiting[..before].iter().any(|waiter| waiter.cells.conflict(cells));
        !is_held && !is_in_flight && (lineage.is_nested() || !is_behind)
    }

    fn touch(&mut self, cells: u64, own: Option<OpId>) {
        for operation in self.operations.iter_mut().filter(|operation| Some(operation.op) != own) {
            operation.spoiled |= operation.cells.exclusive & cells != 0;
        }
        for watch in &mut self.watches {
            watch.stale |= watch.cells & cells != 0;
        }
    }

    fn lineage(&mut self) -> Lineage {
        let count = self.random.below(5).saturating_sub(2);
        let mut chosen = |_| {
            let index = self.random.index(self.operations.len())?;
            Some(self.operations[index].op)
        };
        let ops = (0..count).filter_map(&mut chosen).collect();
        Lineage { holds: self.random.below(4) == 0, ops }
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        worker: usize,
        lineage: Lineage,
        cells: Cells,
        is_change: bool,
    ) {
        let woken = Arc::default();
        self.waiting.push(NaiveWaiter { ticket, worker, lineage, cells, is_change, woken });
        self.poll(self.waiting.len() - 1);
    }

    fn poll(&mut self, index: usize) {
        let waiter = &self.waiting[index];
        waiter.woken.take();
        let (waker, by) = (Waker::from(Arc::clone(&waiter.woken)), waiter.lineage.by());
        if waiter.is_change {
            let expect = self.may_enter(waiter.cells.shared, &waiter.lineage, index);
            let key = self.guards.try_grant_entry(&waiter.ticket, by, &waker);
            assert_eq!(key.is_some(), expect);
            let Some(key) = key else { return };
            let waiter = self.waiting.remove(index);
            self.touch(waiter.cells.shared, None);
            self.flights.push((waiter.worker, key, waiter.cells.shared));
        } else {
            let expect = self.may_acquire(waiter.cells, &waiter.lineage, index);
            let op = self.guards.try_grant(&waiter.ticket, by, &waker);
            assert_eq!(op.is_some(), expect);
            let Some(op) = op else { return };
            let cells = self.waiting.remove(index).cells;
            self.operations.push(NaiveOperation { op, cells, issued: false, spoiled: false });
        }
    }

    fn enter(&mut self) {
        let (range, lineage) = (self.random.range(), self.lineage());
        let (sources, cells) = self.random.set(&range);
        let worker = self.random.below(WORKERS as u64) as usize;
        let entered = self.guards.try_enter(worker, &sources, &range, lineage.by());
        assert_eq!(entered.is_some(), self.may_enter(cells, &lineage, self.waiting.len()));
        if let Some(key) = entered {
            self.touch(cells, None);
            self.flights.push((worker, key, cells));
        } else if self.waiting.len() < 12 {
            let ticket = self.guards.park(worker, sources, range);
            let cells = Cells { shared: cells, ..Cells::default() };
            self.wait(ticket, worker, lineage, cells, true);
        }
    }

    fn acquire(&mut self) {
        let (range, lineage) = (self.random.range(), self.lineage());
        let worker = self.random.below(WORKERS as u64) as usize;
        let guarded =
            (self.random.below(8) > 0).then(|| (self.random.source(), self.random.range()));
        let exclusive = guarded.clone().map(|(source, range)| place(source, range));
        let (shared, shared_cells) = self.random.set(&range);
        let (exempt, exempt_cells) = self.random.set(&range);
        let cells = Cells {
            exclusive: guarded.map_or(0, |(source, range)| cells(source, &range)),
            shared: shared_cells,
            exempt: exempt_cells,
        };
        let want = Want { exclusive, shared, exempt, range };
        let expect = self.may_acquire(cells, &lineage, self.waiting.len());
        if self.random.below(3) == 0 {
            return self.issue_at_once(worker, want, &lineage, cells, expect);
        }
        match self.guards.try_acquire(worker, want, lineage.by()).unwrap() {
            Acquire::Granted(op) => {
                assert!(expect);
                self.operations.push(NaiveOperation { op, cells, issued: false, spoiled: false });
            }
            Acquire::Queued(ticket) => {
                assert!(!expect);
                self.wait(ticket, worker, lineage, cells, false);
            }
        }
    }

    fn issue_at_once(
        &mut self,
        worker: usize,
        want: Want,
        lineage: &Lineage,
        cells: Cells,
        expect: bool,
    ) {
        let is_fresh = self.random.below(4) > 0;
        match self.guards.try_issue(worker, &mut want.clone(), lineage.by(), || is_fresh).unwrap() {
            AtOnce::Issued(op) => {
                assert!(expect && is_fresh);
                self.touch(cells.shared, Some(op));
                self.operations.push(NaiveOperation { op, cells, issued: true, spoiled: false });
            }
            AtOnce::Stale => assert!(!is_fresh),
            AtOnce::MustWait => assert!(!expect && is_fresh),
        }
    }

    fn issue_or_settle(&mut self, index: usize) {
        let NaiveOperation { op, cells, issued, spoiled } = self.operations[index];
        if issued {
            let mut ran = false;
            assert_eq!(self.guards.settle(op, || ran = true), !spoiled);
            assert_eq!(ran, !spoiled);
            if !spoiled {
                self.operations.swap_remove(index);
            }
        } else {
            assert_eq!(self.guards.issue(op), !spoiled);
            if !spoiled {
                self.operations[index].issued = true;
                self.touch(cells.shared, Some(op));
            }
        }
    }

    fn watch(&mut self) {
        let (source, range) = (self.random.source(), self.random.range());
        let cells = cells(source, &range);
        let in_flight = self.flights.iter().fold(0, |mask, (_, _, flight)| mask | flight);
        let issued = self.operations.iter().filter(|operation| operation.issued);
        let touched = issued.fold(in_flight, |mask, operation| {
            let exempt = if operation.spoiled { operation.cells.exempt } else { 0 };
            mask | operation.cells.shared | exempt
        });
        let flag = Arc::<AtomicBool>::default();
        let key = self.guards.watch(&place(source, range), Stale::Flag(Arc::clone(&flag))).unwrap();
        let stale = touched & cells != 0;
        self.watches.push(NaiveWatch { key, cells, stale, flag });
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=4 => self.enter(),
            5..=7 if self.operations.len() < 10 && self.waiting.len() < 12 => self.acquire(),
            8..=11 => {
                if let Some(index) = self.random.index(self.flights.len()) {
                    let (worker, key, _) = self.flights.swap_remove(index);
                    self.guards.leave(worker, key);
                }
            }
            12..=13 => {
                if let Some(index) = self.random.index(self.operations.len()) {
                    self.guards.release(self.operations.swap_remove(index).op);
                }
            }
            14 => {
                if let Some(index) = self.random.index(self.operations.len()) {
                    self.issue_or_settle(index);
                }
            }
            15..=16 => {
                if let Some(index) = self.random.index(self.waiting.len()) {
                    self.poll(index);
                }
            }
            17 => {
                if let Some(index) = self.random.index(self.waiting.len()) {
                    self.guards.forget(self.waiting.remove(index).ticket);
                }
            }
            18 if self.watches.len() < 8 => self.watch(),
            18 => self.guards.unwatch(self.watches.swap_remove(0).key),
            _ if self.random.below(8) == 0 => {
                let range = self.random.range();
                let (sources, cells) = self.random.set(&range);
                self.guards.stale(&sources, &range);
                self.touch(cells, None);
            }
            _ => {}
        }
    }

    fn check(&self) {
        for (index, waiter) in self.waiting.iter().enumerate() {
            let may_go = if waiter.is_change {
                self.may_enter(waiter.cells.shared, &waiter.lineage, index)
            } else {
                self.may_acquire(waiter.cells, &waiter.lineage, index)
            };
            assert!(!may_go || waiter.woken.0.load(Ordering::SeqCst), "a wake-up was lost");
        }
        let counted: usize = (0..WORKERS).map(|worker| self.guards.shard(worker).waiting).sum();
        assert_eq!(counted, self.waiting.len());
        for watch in &self.watches {
            assert_eq!(is_set(&watch.flag), watch.stale);
        }
    }
}

#[test]
fn the_table_does_what_a_naive_one_does() {
    for seed in 1..=40 {
        let mut pair = Pair {
            guards: Guards::new(WORKERS),
            random: Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15)),
            flights: Vec::new(),
            operations: Vec::new(),
            waiting: Vec::new(),
            watches: Vec::new(),
        };
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..5_000 {
                pair.step();
                pair.check();
            }
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
