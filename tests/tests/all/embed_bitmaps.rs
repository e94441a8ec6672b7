//! Dirty bitmaps of the library while others write: no change is missed, whatever is decided when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use blockloom::bitmap::{BitmapName, BitmapState, Granularity};
use blockloom::error::ErrorKind;
use blockloom::filter::PassNode;
use blockloom::graph::{BitmapDecl, BitmapScope, ChildDecl};
use blockloom::io::{EngineChoice, EngineKind, WorkerOptions};
use blockloom::node::{MemoryNode, WriteFlags};
use blockloom::{DirtyBitmap, Host, block_on};
use blockloom_tests::{Random, eventually};

use crate::MIB;
use crate::own_node::{OwnNode, Valve};

const SIZE: u64 = 64 * MIB;

/// A bitmap that records from the start.
pub(crate) fn decl(scope: &BitmapScope, name: &str, granularity: u64) -> BitmapDecl {
    BitmapDecl {
        scope: scope.clone(),
        name: BitmapName::new(name).expect("a name"),
        granularity: Granularity::from_bytes(granularity).expect("a granularity"),
        enabled: true,
    }
}

fn drive() -> BitmapScope {
    BitmapScope::Drive("vda".into())
}

fn host(kind: EngineKind) -> Host {
    let engine = EngineChoice::Exactly(kind);
    Host::builder()
        .workers(WorkerOptions { engine, workers: 3, ..WorkerOptions::default() })
        .node("disk", MemoryNode::new(SIZE, 1).expect("a node"), vec![])
        .node("top", PassNode, vec![ChildDecl::filtered("disk")])
        .drive("vda", "top", true)
        .start()
        .expect("start")
}

fn add(host: &Host, scope: &BitmapScope, name: &str, granularity: u64) -> DirtyBitmap {
    block_on(host.add_bitmap(decl(scope, name, granularity))).expect("add a bitmap")
}

fn is_dirty(bitmap: &DirtyBitmap, offset: u64, len: u64) -> bool {
    bitmap.ranges(offset..offset + len).next() == Some(offset..offset + len)
}

/// A change that has completed, with the epochs before it began and after it ended.
type Change = (u64, u64, u64, u64);

/// What writers on threads of their own have done: they change random ranges until told to stop.
#[derive(Default)]
struct Load {
    epoch: AtomicU64,
    stop: AtomicBool,
    changes: Mutex<Vec<Change>>,
}

impl Load {
    fn write(&self, host: &Host, seed: u64) {
        let drive = host.drive("vda").expect("a drive");
        let mut random = Random::new(seed);
        while !self.stop.load(Ordering::SeqCst) {
            let len = 1 + random.below(9000);
            let offset = random.below(SIZE - len);
            let begun = self.epoch.load(Ordering::SeqCst);
            let result = match random.below(4) {
                0 => block_on(drive.zero(offset, len, WriteFlags::NONE)),
                1 => block_on(drive.discard(offset, len)),
                _ => block_on(drive.write(offset, &vec![1; len as usize])),
            };
            result.expect("a change");
            let ended = self.epoch.load(Ordering::SeqCst);
            self.changes.lock().expect("changes").push((begun, ended, offset, len));
        }
    }

    /// Runs `f` while four writers work.
    fn during(host: &Host, f: impl FnOnce(&Self)) {
        let load = Self::default();
        std::thread::scope(|scope| {
            let load = &load;
            for seed in 0..4 {
                scope.spawn(move || load.write(host, seed));
            }
            // Writers must end also when `f` fails.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(load)));
            load.stop.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Waits for `count` changes that began in `epoch`, and takes all that have ended.
    fn take(&self, epoch: u64, count: usize) -> Vec<Change> {
        eventually("the writers write", || {
            let mut changes = self.changes.lock().expect("changes");
            let begun = changes.iter().filter(|(begun, ..)| *begun == epoch).count();
            (begun >= count).then(|| std::mem::take(&mut *changes))
        })
    }
}

/// What begins after `clear` has returned is dirty: a backup that starts there misses nothing.
#[test]
fn clear_loses_no_later_change() {
    for kind in [EngineKind::IoUring, EngineKind::Threads] {
        let host = host(kind);
        let bitmaps = [
            add(&host, &drive(), "fine", 512),
            add(&host, &BitmapScope::Node("disk".into()), "coarse", 1 << 20),
        ];
        Load::during(&host, |load| {
            for round in 0..60 {
                for bitmap in &bitmaps {
                    block_on(bitmap.clear()).expect("clear");
                }
                let epoch = load.next_epoch();
                for (begun, _, offset, len) in load.take(epoch, 20) {
                    for bitmap in bitmaps.iter().filter(|_| begun == epoch) {
                        let place = format!("{len} bytes at {offset} in round {round}");
                        assert!(is_dirty(bitmap, offset, len), "{}: {place}", bitmap.name());
                    }
                }
            }
        });
        host.shutdown().expect("a clean end");
    }
}

/// Nothing is recorded but what happens between `enable` and `disable`, and all of that is.
#[test]
fn enable_and_disable_are_exact() {
    let host = host(EngineKind::Threads);
    let bitmap = add(&host, &drive(), "b", 4096);
    Load::during(&host, |load| {
        for _ in 0..30 {
            block_on(bitmap.disable()).expect("disable");
            assert_eq!(bitmap.state(), BitmapState::Disabled);
            let count = bitmap.count();
            load.take(load.next_epoch(), 10);
            assert_eq!(bitmap.count(), count, "a disabled bitmap records");
            block_on(bitmap.enable()).expect("enable");
            let epoch = load.next_epoch();
            for (_, _, offset, len) in load.take(epoch, 10).iter().filter(|it| it.0 == epoch) {
                assert!(is_dirty(&bitmap, *offset, *len), "{len} bytes at {offset}");
            }
            block_on(bitmap.clear()).expect("clear");
        }
    });
    host.shutdown().expect("a clean end");
}

/// What had ended before `merge` is in its target, across granularities both ways.
#[test]
fn merge_takes_all_that_had_ended() {
    let host = host(EngineKind::IoUring);
    let [fine, coarse] = [("fine", 512), ("coarse", 256 << 10)]
        .map(|(name, granularity)| add(&host, &drive(), name, granularity));
    Load::during(&host, |load| {
        for round in 0..20 {
            let targets = [4096, 1 << 20].map(|granularity| {
                let name = format!("target-{granularity}-{round}");
                let target = add(&host, &drive(), &name, granularity);
                block_on(target.disable()).expect("disable");
                block_on(target.clear()).expect("clear");
                target
            });
            let changes = load.take(load.next_epoch(), 10);
            for target in &targets {
                block_on(target.merge(&[&fine, &coarse])).expect("merge");
                for (_, _, offset, len) in &changes {
                    assert!(is_dirty(target, *offset, *len), "{}: {offset}", target.name());
                }
                block_on(target.remove()).expect("remove");
            }
        }
    });
    host.shutdown().expect("a clean end");
}

/// Bitmaps come and go while others write; a new one sees everything after its beginning, and one
/// that was removed can be read for as long as it is held.
#[test]
fn bitmaps_come_and_go_under_load() {
    let host = host(EngineKind::IoUring);
    Load::during(&host, |load| {
        for _ in 0..30 {
            let bitmap = add(&host, &drive(), "b", 512);
            let epoch = load.next_epoch();
            let error = block_on(host.add_bitmap(decl(&drive(), "b", 4096))).err().expect("twice");
            assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
            for (_, _, offset, len) in load.take(epoch, 10).iter().filter(|it| it.0 == epoch) {
                assert!(is_dirty(&bitmap, *offset, *len), "{len} bytes at {offset}");
            }
            block_on(bitmap.remove()).expect("remove");
            let count = bitmap.count();
            assert!(count > 0);
            load.take(load.next_epoch(), 10);
            assert_eq!(bitmap.count(), count, "a removed bitmap records");
            for result in [block_on(bitmap.remove()), block_on(bitmap.clear())] {
                let error = result.expect_err("it is gone");
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            }
            assert!(host.bitmap(&drive(), "b").is_err());
        }
    });
    host.shutdown().expect("a clean end");
}

/// A decision waits for the changes that are under way: `clear` returns once none can still land.
#[test]
fn clear_waits_for_changes_under_way() {
    let valve = Arc::new(Valve::default());
    let builder = Host::builder().node("mine", OwnNode::with_valve(1 << 20, &valve), vec![]);
    let host = builder.drive("vda", "mine", true).start().expect("start");
    let bitmap = add(&host, &drive(), "b", 512);
    let vda = host.drive("vda").expect("a drive");
    valve.close();
    let opened = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| block_on(vda.write(512, &[1; 512])));
        eventually("the write is under way", || {
            (valve.arrived.load(Ordering::SeqCst) == 1).then_some(())
        });
        assert_eq!(bitmap.count(), 1, "it is marked before it is written");
        let clear = scope.spawn(|| {
            block_on(bitmap.clear()).expect("clear");
            assert!(opened.load(Ordering::SeqCst), "clear returned while a write was under way");
        });
        // A write that comes while the gate is closed waits for the decision.
        let later = host.drive("vda").expect("a drive");
        let later = scope.spawn(move || block_on(later.write(4096, &[2; 512])));
        opened.store(true, Ordering::SeqCst);
        valve.open();
        write.join().expect("a thread").expect("the write");
        clear.join().expect("clear");
        later.join().expect("a thread").expect("the later write");
    });
    assert!(!is_dirty(&bitmap, 512, 512), "what changed before the decision is clean");
    host.shutdown().expect("a clean end");
}

/// Merges that cannot be are refused whole.
#[test]
fn bitmaps_of_other_sizes_are_not_merged() {
    let builder = Host::builder()
        .node("a", MemoryNode::new(MIB, 1).expect("a node"), vec![])
        .node("b", MemoryNode::new(2 * MIB, 1).expect("a node"), vec![])
        .drive("vda", "a", true)
        .drive("vdb", "b", true);
    let host = builder.start().expect("start");
    let target = add(&host, &drive(), "x", 512);
    let same = add(&host, &BitmapScope::Node("a".into()), "x", 4096);
    let other = add(&host, &BitmapScope::Drive("vdb".into()), "x", 512);
    for name in ["vda", "vdb"] {
        block_on(host.drive(name).expect("a drive").write(0, b"x")).expect("write");
    }
    block_on(target.clear()).expect("clear");
    let error = block_on(target.merge(&[&same, &other])).expect_err("sizes differ");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(target.count(), 0, "nothing was merged");
    block_on(target.merge(&[&same])).expect("merge");
    assert_eq!(target.ranges(0..MIB).collect::<Vec<_>>(), vec![0..4096]);
    host.shutdown().expect("a clean end");
}
