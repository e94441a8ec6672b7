//! Who stands in the way of what.

use std::sync::Arc;

use super::super::change::{Change, Prepared};
use super::super::users::KEPT_MAX;
use super::super::{
    Bitmap, BitmapError, BitmapName, BitmapState, BitmapUse, Extension, Granularity, Granules, Use,
    prepare,
};
use crate::error::{Error, ErrorKind};

fn bitmap() -> Arc<Bitmap> {
    let name = BitmapName::new("daily").unwrap();
    Arc::new(Bitmap::new(name, 4096, Granularity::MIN, BitmapState::Recording).unwrap())
}

fn frozen() -> Arc<Bitmap> {
    let bitmap = bitmap();
    prepare(&bitmap, &[Change::Freeze]).unwrap().commit();
    bitmap
}

#[test]
fn readers_share_and_an_exclusive_user_does_not() {
    let bitmap = bitmap();
    let reader = bitmap.use_by("export `a`".into(), Use::Read).unwrap();
    let other = bitmap.use_by("export `b`".into(), Use::Read).unwrap();
    let again = bitmap.use_by("export `a`".into(), Use::Read).unwrap();
    assert_eq!(bitmap.users(), ["export `a`", "export `b`"]);
    let error = bitmap.use_by("job `j`".into(), Use::Exclusive).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bitmap `daily` is in use by export `a`, export `b`: end that first"
    );
    drop((reader, other));
    assert_eq!(bitmap.users(), ["export `a`"]);
    drop(again);
    let job = bitmap.use_by("job `j`".into(), Use::Exclusive).unwrap();
    for how in [Use::Read, Use::Exclusive] {
        let error = bitmap.use_by("export `a`".into(), how).unwrap_err();
        assert_eq!(error.to_string(), "bitmap `daily` is in use by job `j`: end that first");
    }
    drop(job);
    assert!(bitmap.users().is_empty());
}

/// It may be cleared, taken by a job, and read beside, but neither removed nor renamed.
#[test]
fn who_keeps_a_bitmap_minds_that_it_goes_and_nothing_else() {
    let bitmap = bitmap();
    let keeper = bitmap.use_by("export `a`".into(), Use::Keep).unwrap();
    let check = |change: Change, is_allowed: bool| {
        let prepared = prepare(&bitmap, std::slice::from_ref(&change));
        assert_eq!(prepared.is_ok(), is_allowed, "{change:?}: {prepared:?}");
    };
    check(Change::Clear, true);
    check(Change::Disable, true);
    check(Change::Remove, false);
    check(Change::Rename(BitmapName::new("weekly").unwrap()), false);
    let job = bitmap.use_by("job `j`".into(), Use::Exclusive).unwrap();
    let other = bitmap.use_by("export `b`".into(), Use::Keep).unwrap();
    bitmap.use_by("export `a`".into(), Use::Read).unwrap_err();
    drop((job, other));
    let clearing = prepare(&bitmap, &[Change::Clear]).unwrap();
    bitmap.use_by("export `a`".into(), Use::Read).unwrap_err();
    let other = bitmap.use_by("export `b`".into(), Use::Keep).unwrap();
    drop((clearing, keeper));
    let error = prepare(&bitmap, &[Change::Remove]).unwrap_err();
    assert_eq!(error.to_string(), "bitmap `daily` is in use by export `b`: end that first");
    drop(other);
    check(Change::Remove, true);
}

#[test]
fn a_message_names_a_few_users_and_counts_the_rest() {
    let bitmap = bitmap();
    let uses: Vec<_> =
        (0..6).map(|number| bitmap.use_by(format!("e{number}"), Use::Read).unwrap()).collect();
    let error = prepare(&bitmap, &[Change::Clear]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bitmap `daily` is in use by e0, e1, e2, e3 and 2 more: end that first"
    );
    assert_eq!(Error::from(error).kind(), ErrorKind::InUse);
    drop(uses);
    prepare(&bitmap, &[Change::Clear]).unwrap();
}

/// Each change against nobody, a reader, another's exclusive use, and the asker's own.
#[test]
fn users_stand_in_the_way_of_what_would_disturb_them() {
    let check = |change: Change, make: fn() -> Arc<Bitmap>, beside_a_reader: bool, always: bool| {
        let what = format!("{change:?}");
        let try_change = |bitmap: &Arc<Bitmap>| prepare(bitmap, std::slice::from_ref(&change));
        let bitmap = make();
        assert!(try_change(&bitmap).is_ok(), "{what}");
        let reader = bitmap.use_by("reader".into(), Use::Read).unwrap();
        assert_eq!(try_change(&bitmap).is_ok(), beside_a_reader, "{what} beside a reader");
        let own = Prepared::default().add_by(&reader, &change);
        assert!(own.is_ok(), "{what} by its only reader");
        drop(reader);
        let job = bitmap.use_by("job".into(), Use::Exclusive).unwrap();
        assert_eq!(try_change(&bitmap).is_ok(), always, "{what} beside an exclusive user");
        assert!(Prepared::default().add_by(&job, &change).is_ok(), "{what} by that user");
    };
    let other = bitmap();
    check(Change::Clear, bitmap, false, false);
    check(Change::Remove, bitmap, false, false);
    check(Change::Rename(BitmapName::new("x").unwrap()), bitmap, false, false);
    check(Change::CopyOf(Arc::clone(&other)), bitmap, false, false);
    check(Change::Abdicate, frozen, false, false);
    check(Change::MergeBack, frozen, true, false);
    check(Change::Freeze, bitmap, true, false);
    check(Change::Enable, bitmap, true, false);
    check(Change::Disable, bitmap, true, false);
    check(Change::Merge(vec![other]), bitmap, true, false);
    check(Change::Resize(8192, Extension::Dirty), frozen, true, true);
    check(Change::Checkpoint, bitmap, true, false);
}

/// Who shows it goes on to show what is written; who only keeps it does not mind.
#[test]
fn what_is_shown_goes_on_recording() {
    let bitmap = bitmap();
    let keeps = bitmap.use_by("export `a`".into(), Use::Keep).unwrap();
    let shows = bitmap.use_by("export `a`".into(), Use::Show).unwrap();
    let error = prepare(&bitmap, &[Change::Disable]).expect_err("it is shown");
    assert!(error.to_string().contains("export `a`"), "{error}");
    assert!(prepare(&bitmap, &[Change::Checkpoint]).is_ok());
    drop(shows);
    assert!(prepare(&bitmap, &[Change::Disable]).is_ok());
    drop(keeps);
}

/// Who shows it goes on to show what a freeze leaves behind when it ends, so often.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn what_has_been_shown_is_kept_for_who_shows_it() {
    let bitmap = bitmap();
    let mark = |granule: u64| bitmap.recording().unwrap().mark(granule * 512, 512);
    let change = |change: Change| prepare(&bitmap, &[change]).map(Prepared::commit);
    mark(0);
    let shows = bitmap.use_by("export `a`".into(), Use::Show).unwrap();
    let shown = |user: &BitmapUse| user.ranges_shown(0..4096).collect::<Vec<_>>();
    change(Change::Freeze).unwrap();
    mark(3);
    change(Change::Abdicate).unwrap();
    assert_eq!(bitmap.ranges(0..4096).collect::<Vec<_>>(), [1536..2048]);
    assert_eq!(shown(&shows), [0..512, 1536..2048]);
    // One that comes now has seen nothing else.
    let other = bitmap.use_by("export `b`".into(), Use::Show).unwrap();
    assert_eq!(shown(&other), [1536..2048]);
    change(Change::Freeze).unwrap();
    let left = Granules::new(4096, Granularity::MIN).unwrap();
    change(Change::Leave(Arc::new(left))).unwrap();
    mark(1);
    assert_eq!(
        (shown(&shows), shown(&other)),
        (vec![0..1024, 1536..2048], vec![512..1024, 1536..2048])
    );
    assert_eq!(bitmap.ranges(0..4096).collect::<Vec<_>>(), [512..1024]);
    // What is given up keeps nothing.
    change(Change::Freeze).unwrap();
    drop(prepare(&bitmap, &[Change::Abdicate]).unwrap());
    change(Change::MergeBack).unwrap();
    for _ in 2..KEPT_MAX {
        change(Change::Freeze).unwrap();
        change(Change::Abdicate).unwrap();
    }
    // There has to be room for one more before anything stands still.
    for freezes in [Change::Freeze, Change::Checkpoint] {
        let error = change(freezes).unwrap_err();
        let expect = "bitmap `daily` cannot be frozen: what was frozen before is kept 8 times already for export \
                      `a`: have their clients connect again first";
        assert_eq!(error.to_string(), expect);
        assert_eq!(Error::from(error).kind(), ErrorKind::InUse);
    }
    assert_eq!(shown(&shows), [0..1024, 1536..2048]);
    drop(shows);
    change(Change::Freeze).unwrap();
    change(Change::Abdicate).unwrap();
    change(Change::Clear).unwrap_err();
    bitmap.use_by("job `j`".into(), Use::Exclusive).unwrap_err();
    drop(other);
    change(Change::Clear).unwrap();
}

/// Nobody can begin to read between the check and the change.
#[test]
fn a_prepared_change_keeps_others_out() {
    let bitmap = bitmap();
    let changing = BitmapError::Changing { name: bitmap.name() };
    let harmless = prepare(&bitmap, &[Change::Disable]).unwrap();
    bitmap.use_by("reader".into(), Use::Read).unwrap();
    assert_eq!(bitmap.use_by("job".into(), Use::Exclusive).unwrap_err(), changing);
    assert_eq!(prepare(&bitmap, &[Change::Enable]).unwrap_err(), changing);
    drop(harmless);
    let clear = prepare(&bitmap, &[Change::Disable, Change::Clear]).unwrap();
    assert_eq!(bitmap.use_by("reader".into(), Use::Read).unwrap_err(), changing);
    clear.commit();
    bitmap.use_by("reader".into(), Use::Read).unwrap();
    assert_eq!(Error::from(changing).kind(), ErrorKind::Busy);
}

#[test]
fn errors_say_what_to_do() {
    let check = |bitmap: &Arc<Bitmap>, change: Change, kind: ErrorKind, message: &str| {
        let error = prepare(bitmap, &[change]).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (message, kind));
    };
    let message = "bitmap `daily` is not frozen: there is nothing to merge back or to give up";
    check(&bitmap(), Change::Abdicate, ErrorKind::Invalid, message);
    check(&bitmap(), Change::MergeBack, ErrorKind::Invalid, message);
    let message = "bitmap `daily` is frozen: merge it back or let it abdicate first";
    for change in [Change::Clear, Change::Freeze, Change::Enable, Change::Remove] {
        check(&frozen(), change, ErrorKind::InUse, message);
    }
    let name = BitmapName::new("daily").unwrap();
    let broken = Bitmap::new(name, 4096, Granularity::MIN, BitmapState::Inconsistent).unwrap();
    let broken = Arc::new(broken);
    let message = "bitmap `daily` is inconsistent: remove it, or repair it as all dirty";
    check(&broken, Change::Clear, ErrorKind::Invalid, message);
    check(&bitmap(), Change::Merge(vec![Arc::clone(&broken)]), ErrorKind::Invalid, message);
    prepare(&broken, &[Change::Remove]).unwrap().commit();
    assert_eq!(broken.dirty_bytes(), 4096);
    let message = "bitmap `daily` is not inconsistent: there is nothing to repair";
    check(&bitmap(), Change::Repair, ErrorKind::Invalid, message);
    prepare(&broken, &[Change::Repair]).unwrap().commit();
    assert_eq!((broken.state(), broken.dirty_bytes()), (BitmapState::Recording, 4096));
    prepare(&broken, &[Change::Clear, Change::Distrust]).unwrap().commit();
    assert_eq!((broken.state(), broken.dirty_bytes()), (BitmapState::Inconsistent, 4096));
}

#[test]
fn a_rename_and_a_removal_leave_the_content() {
    let bitmap = bitmap();
    let records = bitmap.recording().unwrap();
    records.mark(0, 1);
    let name = BitmapName::new("weekly").unwrap();
    let rename = prepare(&bitmap, &[Change::Rename(name.clone())]).unwrap();
    assert!(!rename.replaces_recording());
    rename.commit();
    assert_eq!((bitmap.name(), bitmap.count()), (name, 1));
    assert!(Arc::ptr_eq(&records, &bitmap.recording().unwrap()));
    prepare(&bitmap, &[Change::Remove]).unwrap().commit();
    assert!(bitmap.recording().is_none());
    assert_eq!((bitmap.state(), bitmap.count()), (BitmapState::Disabled, 1));
}
