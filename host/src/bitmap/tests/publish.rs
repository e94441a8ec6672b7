//! Marks on other threads against changes that are published while nothing is in flight.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};

use super::super::{
    Bitmap, BitmapName, BitmapState, Change, Granularity, Granules, MarkList, prepare,
};

const GRANULES: u64 = 4096;
const MARKERS: u64 = 2;
/// Changes between two decisions.
const PENDING_MAX: usize = if cfg!(miri) { 16 } else { 256 };
const ROUNDS: u64 = if cfg!(miri) { 3 } else { 300 };

/// What a snapshot is to a change: the lists that it marks, and the number of the decision before it.
struct Snapshot {
    epoch: u64,
    marks: MarkList,
}

/// A graph of one class: who changes the view holds it for reading, and who publishes for writing.
struct Class {
    snapshot: RwLock<Snapshot>,
    /// Granule by granule, with the epoch in which they were changed.
    changes: Mutex<Vec<(u64, u64)>>,
    over: AtomicBool,
}

impl Class {
    fn change(&self, granule: u64) {
        let in_flight = self.snapshot.read().unwrap();
        in_flight.marks.mark(granule * 512 + granule % 512, 1);
        // The change itself: it is known only after its mark, as in the request path.
        self.changes.lock().unwrap().push((in_flight.epoch, granule));
    }

    fn pending(&self) -> usize {
        self.changes.lock().unwrap().len()
    }

    /// Marks at random until the end, no faster than the decisions are made.
    fn run(&self, seed: u64) {
        let mut random = seed;
        while !self.over.load(SeqCst) {
            if self.pending() >= PENDING_MAX {
                std::thread::yield_now();
                continue;
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            self.change(random % GRANULES);
        }
    }

    /// Makes a change of the bitmap as the graph's writer does; returns what was changed until then.
    fn publish(&self, bitmap: &Arc<Bitmap>, change: Change) -> Vec<(u64, u64)> {
        let prepared = prepare(bitmap, &[change]).unwrap();
        let mut drained = self.snapshot.write().unwrap();
        prepared.commit();
        let marks = bitmap.recording().into_iter().collect();
        *drained = Snapshot { epoch: drained.epoch + 1, marks };
        std::mem::take(&mut *self.changes.lock().unwrap())
    }

    /// Lets some changes happen.
    fn wait(&self) {
        while self.pending() < PENDING_MAX / 8 {
            std::thread::yield_now();
        }
    }
}

fn dirty(granules: impl Iterator<Item = std::ops::Range<u64>>) -> BTreeSet<u64> {
    granules.flat_map(|run| run.start / 512..run.end.div_ceil(512)).collect()
}

/// What a bitmap has to show, kept by who was told of every change.
#[derive(Default)]
struct Oracle {
    recorded: BTreeSet<u64>,
    put_aside: Option<BTreeSet<u64>>,
}

impl Oracle {
    /// Takes in the changes up to a decision, all of which began in `epoch`.
    fn tell(&mut self, changes: Vec<(u64, u64)>, epoch: u64, recording: bool) {
        for (begun, granule) in changes {
            assert_eq!(begun, epoch, "a change that began earlier was in flight at a decision");
            if recording {
                self.recorded.insert(granule);
            }
        }
    }

    /// Exactly what was changed is dirty: before the freeze in what stands still, since then in both.
    fn check(&self, bitmap: &Bitmap) {
        let reader = bitmap.read();
        if let Some(put_aside) = &self.put_aside {
            let still = reader.still().expect("it is frozen");
            assert_eq!(&dirty(still.ranges(0..u64::MAX)), put_aside);
        }
        let mut all = self.recorded.clone();
        all.extend(self.put_aside.iter().flatten());
        let shown = dirty(reader.ranges(0..u64::MAX));
        let lost: Vec<_> = all.difference(&shown).collect();
        assert!(lost.is_empty(), "changed and clean: {lost:?}");
    }
}

#[test]
fn no_change_is_lost_to_a_decision_beside_it() {
    let name = BitmapName::new("b").unwrap();
    let granules = Granules::new(GRANULES * 512, Granularity::MIN).unwrap();
    let bitmap = Arc::new(Bitmap::from_granules(name, granules, BitmapState::Recording));
    let first = Snapshot { epoch: 0, marks: bitmap.recording().into_iter().collect() };
    let class = Class {
        snapshot: RwLock::new(first),
        changes: Mutex::default(),
        over: AtomicBool::new(false),
    };
    let decide = || {
        let (mut oracle, mut epoch) = (Oracle::default(), 0);
        let mut make = |oracle: &mut Oracle, change: Change| {
            class.wait();
            let recording = bitmap.recording().is_some();
            oracle.tell(class.publish(&bitmap, change), epoch, recording);
            epoch += 1;
        };
        for round in 0..ROUNDS {
            make(&mut oracle, Change::Freeze);
            oracle.put_aside = Some(std::mem::take(&mut oracle.recorded));
            class.wait();
            oracle.check(&bitmap);
            if round % 3 == 0 {
                make(&mut oracle, Change::Abdicate);
                oracle.put_aside = None;
            } else {
                make(&mut oracle, Change::MergeBack);
                oracle.recorded.extend(oracle.put_aside.take().into_iter().flatten());
            }
            oracle.check(&bitmap);
            if round % 5 == 0 {
                make(&mut oracle, Change::Disable);
                make(&mut oracle, Change::Enable);
            }
            if round % 7 == 0 {
                make(&mut oracle, Change::Clear);
                oracle.recorded.clear();
            }
            oracle.check(&bitmap);
        }
        make(&mut oracle, Change::Disable);
        assert_eq!(dirty(bitmap.ranges(0..u64::MAX)), oracle.recorded, "neither more nor less");
    };
    std::thread::scope(|scope| {
        for marker in 0..MARKERS {
            let class = &class;
            scope.spawn(move || class.run(0x9e37_79b9 + 2 * marker));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(decide));
        class.over.store(true, SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
