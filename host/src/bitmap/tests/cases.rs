//! Single changes, by example.

use std::ops::Range;
use std::sync::Arc;

use super::super::change::{Change, Prepared};
use super::super::{
    Bitmap, BitmapName, BitmapState, Extension, Granularity, Granules, Use, prepare,
};

fn bitmap(size_bytes: u64, granularity_bytes: u64) -> Arc<Bitmap> {
    let granularity = Granularity::from_bytes(granularity_bytes).unwrap();
    let name = BitmapName::new("b").unwrap();
    Arc::new(Bitmap::new(name, size_bytes, granularity, BitmapState::Recording).unwrap())
}

fn make(bitmap: &Arc<Bitmap>, changes: &[Change]) {
    prepare(bitmap, changes).unwrap().commit();
}

/// The life of an incremental copy that fails once and then succeeds.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn a_freeze_ends_by_a_merge_back_or_by_abdication() {
    let bitmap = bitmap(4096, 512);
    let mark = |offset| bitmap.recording().unwrap().mark(offset, 1);
    let shown =
        || bitmap.ranges(0..4096).map(|run| run.start / 512..run.end / 512).collect::<Vec<_>>();
    let check = |expect: &[Range<u64>]| assert_eq!(shown(), expect);
    mark(0);
    make(&bitmap, &[Change::Freeze]);
    mark(1024);
    check(&[0..1, 2..3]);
    let still = bitmap.read().still().unwrap();
    assert_eq!((still.count(), still.state()), (1, BitmapState::Frozen));
    make(&bitmap, &[Change::MergeBack]);
    check(&[0..1, 2..3]);
    mark(2048);
    make(&bitmap, &[Change::Freeze]);
    mark(0);
    make(&bitmap, &[Change::Abdicate]);
    check(&[0..1]);
    assert_eq!(still.count(), 1, "a reader keeps what it was made for");
    assert_eq!(bitmap.state(), BitmapState::Recording);
}

/// What a copy has not come to is dirty again, whatever was before; sets are read when it takes effect.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn a_freeze_can_leave_what_was_not_copied() {
    let check = |state: BitmapState, expect: &[Range<u64>]| {
        let bitmap = bitmap(4096, 512);
        bitmap.recording().unwrap().mark(0, 1024);
        if state == BitmapState::Disabled {
            make(&bitmap, &[Change::Disable]);
        }
        make(&bitmap, &[Change::Freeze]);
        if let Some(successor) = bitmap.recording() {
            successor.mark(3000, 1);
        }
        let left = Arc::new(Granules::new(4096, Granularity::from_bytes(1024).unwrap()).unwrap());
        let prepared = prepare(&bitmap, &[Change::Leave(Arc::clone(&left))]).unwrap();
        left.mark(2048, 1);
        prepared.commit();
        let shown = || bitmap.ranges(0..4096).collect::<Vec<_>>();
        assert_eq!((bitmap.state(), &shown()[..]), (state, expect));
        assert!(prepare(&bitmap, &[Change::Leave(Arc::clone(&left))]).is_err(), "it is not frozen");
        left.mark(0, 1);
        make(&bitmap, &[Change::Add(left)]);
        assert_eq!(shown(), [&[0..1024], expect].concat());
        assert_eq!(bitmap.state(), state);
    };
    check(BitmapState::Recording, &[2048..3072]);
    check(BitmapState::Disabled, &[2048..3072]);
}

/// Of a view that has been resized since: what was added is dirty, what was cut off is not there.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of one run are meant")]
fn what_was_not_copied_may_be_of_a_former_size() {
    for (size_bytes, expect) in
        [(3 << 10, vec![1024..2048]), (8 << 10, vec![1024..2048, 4096..8192])]
    {
        let bitmap = bitmap(4096, 512);
        make(&bitmap, &[Change::Freeze]);
        let left = Granules::new(4096, Granularity::from_bytes(1024).unwrap()).unwrap();
        left.mark(1024, 1);
        left.mark(3072 + 512, if size_bytes < 4096 { 1 } else { 0 });
        make(&bitmap, &[Change::Resize(size_bytes, Extension::Clean)]);
        make(&bitmap, &[Change::Leave(Arc::new(left))]);
        assert_eq!(bitmap.ranges(0..u64::MAX).collect::<Vec<_>>(), expect);
    }
}

#[test]
fn a_resize_goes_both_ways_at_the_finest_and_the_coarsest() {
    const GIB: u64 = 1 << 30;
    let check = |granularity_bytes, sizes: [u64; 3], frozen, extension, expect: [u64; 2]| {
        let bitmap = bitmap(sizes[0], granularity_bytes);
        bitmap.recording().unwrap().mark(0, 1);
        if frozen {
            make(&bitmap, &[Change::Freeze]);
            bitmap.recording().unwrap().mark(sizes[0] - 1, 1);
        }
        make(&bitmap, &[Change::Resize(sizes[1], extension)]);
        let grown_bytes = bitmap.dirty_bytes();
        bitmap.recording().unwrap().mark(sizes[1] - 1, 1);
        make(&bitmap, &[Change::Resize(sizes[2], extension)]);
        assert_eq!([grown_bytes, bitmap.dirty_bytes()], expect, "{granularity_bytes} {sizes:?}");
    };
    use Extension::{Clean, Dirty};
    check(512, [1000, 5000, 700], false, Clean, [512, 512]);
    check(512, [1000, 5000, 700], false, Dirty, [5000, 700]);
    check(512, [1000, 5000, 1024], true, Clean, [1024, 1024]);
    check(512, [1024, 5000, 4097], false, Dirty, [512 + 3976, 512 + 3073]);
    check(2 * GIB, [3 * GIB, 7 * GIB, GIB], false, Clean, [2 * GIB, GIB]);
    check(2 * GIB, [3 * GIB, 7 * GIB, 5 * GIB], false, Dirty, [7 * GIB, 5 * GIB]);
    check(2 * GIB, [3 * GIB, 7 * GIB, 5 * GIB], true, Clean, [4 * GIB, 4 * GIB]);
}

/// What stands still may be cleared granule by granule as it is copied; what records may not.
#[test]
fn granules_are_cleared_one_by_one_only_where_they_stand_still() {
    let bitmap = bitmap(4096, 512);
    bitmap.recording().unwrap().set_all();
    let job = bitmap.use_by("job `j`".into(), Use::Exclusive).unwrap();
    assert!(job.clear_range(0, 512).is_err());
    let mut prepared = Prepared::default();
    prepared.add_by(&job, &Change::Freeze).unwrap();
    prepared.commit();
    bitmap.recording().unwrap().mark(512, 1);
    job.clear_range(0, 2048).unwrap();
    assert_eq!(bitmap.ranges(0..4096).collect::<Vec<_>>(), [512..1024, 2048..4096]);
    drop(job);
    let reader = bitmap.use_by("export `e`".into(), Use::Read).unwrap();
    assert!(reader.clear_range(2048, 512).is_err());
    assert_eq!(reader.count(), 5);
}

#[test]
fn a_mark_by_the_graph_reaches_what_is_merged_from_it_in_one_transaction() {
    let (from, into) = (bitmap(4096, 1024), bitmap(4096, 512));
    let mut prepared = Prepared::default();
    prepared.begin(2);
    prepared.add(&into, &Change::Merge(vec![Arc::clone(&from)])).unwrap();
    assert!(prepared.mark_at(1, &from, 1500..1501));
    assert!(prepared.mark_at(2, &from, 0..1), "too late to be merged");
    assert_eq!((from.count(), into.count()), (0, 0));
    prepared.commit();
    assert_eq!(from.ranges(0..4096).collect::<Vec<_>>(), vec![0..2048]);
    assert_eq!(into.ranges(0..4096).collect::<Vec<_>>(), vec![1024..2048]);
}

/// A mark goes where the bitmap records at its position: before the clear, in what is frozen, in its
/// successor, or nowhere.
#[test]
fn marks_by_the_graph_keep_their_place_among_the_changes() {
    let bitmap = bitmap(4096, 512);
    let mut prepared = Prepared::default();
    let changes = [Change::Clear, Change::Freeze, Change::Abdicate, Change::Disable];
    for (change, position) in changes.iter().zip(1..) {
        prepared.begin(position);
        prepared.add(&bitmap, change).unwrap();
    }
    for (position, expect) in [(4, false), (0, true), (3, true), (2, true), (1, true)] {
        let at = position as u64 * 512;
        assert_eq!(prepared.mark_at(position, &bitmap, at..at + 1), expect, "at {position}");
    }
    prepared.commit();
    assert_eq!(bitmap.ranges(0..4096).collect::<Vec<_>>(), vec![1024..2048]);

    let bitmap = self::bitmap(4096, 512);
    let mut prepared = Prepared::default();
    prepared.begin(1);
    prepared.add(&bitmap, &Change::Checkpoint).unwrap();
    for (position, at) in [(0, 0), (1, 512)] {
        assert!(prepared.mark_at(position, &bitmap, at..at + 1));
    }
    prepared.commit();
    let reader = bitmap.read();
    assert_eq!(reader.still().unwrap().ranges(0..4096).collect::<Vec<_>>(), vec![0..512]);
    assert_eq!(reader.count(), 2);
}

#[test]
fn a_checkpoint_of_what_records_nothing_is_refused() {
    let bitmap = bitmap(4096, 512);
    make(&bitmap, &[Change::Disable]);
    let error = prepare(&bitmap, &[Change::Checkpoint]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("is disabled, so nothing would record what changes next: enable it first")
    );
    make(&bitmap, &[Change::Enable, Change::Checkpoint]);
    assert!(bitmap.read().is_recording());
    let error = prepare(&bitmap, &[Change::Checkpoint]).unwrap_err();
    assert!(error.to_string().contains("is frozen"));
}

#[test]
fn a_set_from_elsewhere_that_cannot_be_had_changes_nothing() {
    let bitmap = bitmap(4096, 512);
    bitmap.recording().unwrap().mark(0, 1);
    let too_large = Change::Resize(u64::MAX, Extension::Clean);
    assert!(prepare(&bitmap, &[Change::Clear, too_large]).is_err());
    assert_eq!((bitmap.count(), bitmap.size_bytes()), (1, 4096));
    assert!(Granules::new(u64::MAX, Granularity::MIN).is_err());
    make(&bitmap, &[Change::Clear]);
    assert_eq!(bitmap.count(), 0);
}
