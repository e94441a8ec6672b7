//! Bitmaps of backups: what is copied by them, and what they say then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::scene::{BLOCK, dirty, disk, of_drive, of_node, put, shown, shown_by, write};
use super::{backup, block, world};
use crate::block_on;
use crate::error::ErrorKind;
use crate::graph::{Action, BitmapAction, BitmapRef, NodeDecl, Transaction};
use crate::job::{BackupSpec, BackupSync as S, BitmapMode as M, JobEnd, JobSpec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Done,
    /// The target cannot keep block 900.
    Worn,
    Cancelled,
}

/// What a bitmap of blocks 20 and 900 says after a backup during which block 30 was written: QEMU's matrix.
#[test]
fn bitmaps_are_left_as_their_mode_says() {
    let check = |sync: S, mode: M, how: How, is_left: &dyn Fn(&[u64]) -> bool| {
        let world = world();
        let mut expect = shown(&world.host, "vda");
        for block in [20, 900] {
            put(&world.host, &mut expect, block, 9);
        }
        if how == How::Worn {
            world.target.bad.store(900 * BLOCK + 7, Ordering::SeqCst);
        }
        let bitmap = Some(BitmapRef::of_drive("vda", "b"));
        let spec =
            BackupSpec { sync, bitmap, bitmap_mode: Some(mode), ..BackupSpec::of("vda", "onto") };
        let job = world.start(spec);
        write(&world.host, "vda", 30, 1);
        assert_eq!(dirty(&world.host, &of_drive()), [20, 30, 900], "it shows both while it runs");
        if how == How::Cancelled {
            job.cancel(false).expect("a job that can be cancelled");
        }
        job.set_speed(0).ok();
        let end = block_on(job.wait());
        let is_expected = match end {
            JobEnd::Completed => how == How::Done,
            JobEnd::Failed(ref error) => how == How::Worn && error.kind() == ErrorKind::Io,
            JobEnd::Cancelled => how == How::Cancelled,
        };
        assert!(is_expected, "{sync:?} {mode:?} {how:?}: {end:?}");
        let left = dirty(&world.host, &of_drive());
        assert!(is_left(&left), "{sync:?} {mode:?} {how:?}: {left:?}");
        if how == How::Done {
            let copy = shown_by(&world.host, "copy");
            match sync {
                S::Full => assert!(copy == expect),
                S::Top => {
                    assert!(block(&copy, 354) == block(&expect, 354));
                    assert!(block(&copy, 330) == [0; BLOCK as usize], "it lies below");
                }
                _ => assert!(block(&copy, 30) == [0; BLOCK as usize], "it is not in it"),
            }
            for at in [20, 900] {
                assert!(block(&copy, at) == block(&expect, at), "block {at}");
            }
        }
        assert_eq!(world.host.bitmap(&of_drive(), "b").expect("a bitmap").users(), [""; 0]);
        world.end();
    };
    let all = |left: &[u64]| left == [20, 30, 900];
    let since = |left: &[u64]| left == [30];
    for mode in [M::OnSuccess, M::Always] {
        for sync in [S::Full, S::Top, S::Bitmap] {
            check(sync, mode, How::Done, &since);
        }
    }
    check(S::Incremental, M::OnSuccess, How::Done, &since);
    check(S::Bitmap, M::Never, How::Done, &all);
    for how in [How::Worn, How::Cancelled] {
        for sync in [S::Full, S::Top, S::Incremental, S::Bitmap] {
            check(sync, M::OnSuccess, how, &all);
        }
        check(S::Bitmap, M::Never, how, &all);
    }
    check(S::Bitmap, M::Always, How::Worn, &|left| left == [30, 900]);
    check(S::Bitmap, M::Always, How::Cancelled, &|left| {
        left.contains(&30) && left.iter().all(|block| [20, 30, 900].contains(block))
    });
    // What has not been copied is dirty then, if it was before or not.
    for sync in [S::Full, S::Top] {
        check(sync, M::Always, How::Worn, &|left| {
            let is_worn = |block: &u64| *block >= 896;
            left.contains(&30)
                && left.contains(&900)
                && left.iter().all(|it| *it == 30 || is_worn(it))
        });
    }
    check(S::Full, M::Always, How::Cancelled, &|left| left.len() > 512);
}

/// The bitmap of a job is its own until it has ended.
#[test]
fn a_bitmap_in_use_is_left_alone() {
    let world = world();
    for block in [20, 900] {
        write(&world.host, "vda", block, 9);
    }
    let bitmap = BitmapRef::of_drive("vda", "b");
    let (sync, of) = (S::Incremental, Some(bitmap.clone()));
    let job = world.start(BackupSpec { sync, bitmap: of, ..BackupSpec::of("vda", "onto") });
    for action in [
        BitmapAction::Clear,
        BitmapAction::Disable,
        BitmapAction::Remove,
        BitmapAction::MergeBack,
        BitmapAction::Abdicate,
    ] {
        let action = Transaction::new().with(action.of(&bitmap));
        let error = block_on(world.host.transact(action)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains("job `b`"), "{error}");
    }
    job.set_speed(0).ok();
    assert!(matches!(block_on(job.wait()), JobEnd::Completed), "{:?}", job.info());
    let remove = Transaction::new().with(BitmapAction::Remove.of(&bitmap));
    block_on(world.host.transact(remove)).expect("it is free");
    world.end();
}

/// What comes with the transaction is the job's like any other: a full one, and a bitmap of what changes since.
#[test]
fn its_bitmap_may_come_with_it() {
    use crate::bitmap::{BitmapName, Granularity};
    use crate::graph::BitmapDecl;
    for sync in [S::Full, S::Bitmap] {
        let world = world();
        let host = &world.host;
        write(host, "vda", 700, 9);
        let expect = shown(host, "vda");
        let granularity = Granularity::from_bytes(BLOCK).expect("a power of two");
        let name = BitmapName::new("new").expect("a name");
        let decl = BitmapDecl { scope: of_drive(), name, granularity, enabled: true };
        let bitmap = BitmapRef::of_drive("vda", "new");
        let merge = BitmapAction::merge([BitmapRef::of_drive("vda", "b")]).of(&bitmap);
        let clear = BitmapAction::Clear.of(BitmapRef::of_drive("vda", "b"));
        let actions = Transaction::new().with(Action::AddBitmap(decl)).with(merge).with(clear);
        let (bitmap, bitmap_mode) = (Some(bitmap), Some(M::OnSuccess));
        let spec = BackupSpec { sync, bitmap, bitmap_mode, ..BackupSpec::of("vda", "onto") };
        let started = block_on(host.start_jobs(vec![backup(spec)], false, actions));
        let (_, jobs) = started.expect("a job");
        write(host, "vda", 30, 1);
        assert!(matches!(block_on(jobs[0].wait()), JobEnd::Completed), "{:?}", jobs[0].info());
        let (new, since) =
            (host.bitmap(&of_drive(), "new").expect("a bitmap"), 30 * BLOCK..31 * BLOCK);
        assert_eq!((new.dirty_bytes(), new.ranges(0..u64::MAX).next()), (BLOCK, Some(since)));
        assert_eq!(dirty(host, &of_drive()), [30]);
        let copy = shown_by(host, "copy");
        assert!(block(&copy, 700) == block(&expect, 700));
        assert!((copy == expect) == (sync == S::Full));
        world.end();
    }
}

/// Drives are copied as of one instant; if one fails, the bitmaps of all are as if none had been.
#[test]
fn a_group_takes_its_bitmaps_or_none() {
    for fails in [false, true] {
        let world = world();
        let host = &world.host;
        write(host, "vda", 20, 9);
        let add = |name: &str| {
            Action::AddNode(NodeDecl {
                name: name.into(),
                driver: Arc::new(disk()),
                children: vec![],
            })
        };
        block_on(host.transact(Transaction::new().with(add("second")))).expect("a node");
        let spec = |id: &str, device: &str, target: &str, bitmap: BitmapRef| {
            let (sync, bitmap) = (S::Incremental, Some(bitmap));
            let spec = BackupSpec { sync, bitmap, ..BackupSpec::of(device, target) };
            JobSpec { id: id.into(), speed: 1, ..backup(spec) }
        };
        let specs = vec![
            spec("b", "vda", "onto", BitmapRef::of_drive("vda", "b")),
            spec("c", "base", "second", BitmapRef::of_node("base", "b")),
        ];
        if fails {
            world.target.bad.store(20 * BLOCK, Ordering::SeqCst);
        }
        let started = block_on(host.start_jobs(specs, true, Transaction::new()));
        let (_, jobs) = started.expect("jobs");
        write(host, "vda", 30, 9);
        let ends: Vec<JobEnd> = jobs
            .iter()
            .map(|job| {
                job.set_speed(0).ok();
                block_on(job.wait())
            })
            .collect();
        match fails {
            true => {
                assert!(matches!(ends[..], [JobEnd::Failed(_), JobEnd::Cancelled]), "{ends:?}");
                assert_eq!(dirty(host, &of_drive()), [20, 30]);
            }
            false => {
                assert!(matches!(ends[..], [JobEnd::Completed, JobEnd::Completed]), "{ends:?}");
                assert_eq!(dirty(host, &of_drive()), [30]);
            }
        }
        for bitmap in [of_drive(), of_node("base")] {
            let state = host.bitmap(&bitmap, "b").expect("a bitmap").state();
            assert_eq!(state, crate::bitmap::BitmapState::Recording);
        }
        world.end();
    }
}
