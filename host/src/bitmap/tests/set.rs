//! The set against a model, and under threads.

use std::ops::Range;

use proptest::prelude::*;

use super::super::{Extension, Granularity, Granules};
use super::Model;

#[derive(Debug, Clone)]
enum Step {
    Mark { offset: u64, len_bytes: u64 },
    Clear { offset: u64, len_bytes: u64 },
    SetAll,
    ClearAll,
    Merge { granularity: Granularity, marks: Vec<(u64, u64)>, drained: bool },
    Resize { size_bytes: u64, extension: Extension },
    Copy,
}

/// In units of 512 B and up to about four words of granules at the finest; seldom a multiple of
/// anything.
const MAX_SIZE_BYTES: u64 = if cfg!(miri) { 80 * 512 } else { 260 * 512 };

fn granularity() -> impl Strategy<Value = Granularity> {
    (9_u32..14).prop_map(|shift| Granularity::from_bytes(1 << shift).unwrap())
}

fn extent() -> impl Strategy<Value = (u64, u64)> {
    let offset = prop_oneof![
        8 => 0..MAX_SIZE_BYTES + 600,
        4 => (0..MAX_SIZE_BYTES / 512).prop_map(|unit| unit * 512),
        1 => Just(u64::MAX - 3),
    ];
    let len_bytes = prop_oneof![
        1 => Just(0),
        8 => 1_u64..1500,
        4 => 0..MAX_SIZE_BYTES,
        4 => (0..MAX_SIZE_BYTES / 512).prop_map(|unit| unit * 512),
        1 => Just(u64::MAX),
    ];
    (offset, len_bytes)
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        8 => 0..MAX_SIZE_BYTES,
        4 => (0..MAX_SIZE_BYTES / 512).prop_map(|unit| unit * 512),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let extension = prop_oneof![Just(Extension::Dirty), Just(Extension::Clean)];
    prop_oneof![
        8 => extent().prop_map(|(offset, len_bytes)| Step::Mark { offset, len_bytes }),
        4 => extent().prop_map(|(offset, len_bytes)| Step::Clear { offset, len_bytes }),
        1 => Just(Step::SetAll),
        1 => Just(Step::ClearAll),
        3 => (granularity(), prop::collection::vec(extent(), 0..6), any::<bool>())
            .prop_map(|(granularity, marks, drained)| Step::Merge { granularity, marks, drained }),
        2 => (size(), extension)
            .prop_map(|(size_bytes, extension)| Step::Resize { size_bytes, extension }),
        1 => Just(Step::Copy),
    ]
}

fn bytes(offset: u64, len_bytes: u64) -> Range<u64> {
    offset..offset.saturating_add(len_bytes)
}

/// Does `step` to the set, giving the set that then takes its place, and to the model.
fn apply(step: &Step, granules: Granules, model: &mut Model) -> Granules {
    match *step {
        Step::Mark { offset, len_bytes } => {
            granules.mark(offset, len_bytes);
            model.mark(bytes(offset, len_bytes));
        }
        Step::Clear { offset, len_bytes } => {
            granules.clear_range(offset, len_bytes);
            model.clear(bytes(offset, len_bytes));
        }
        Step::SetAll => {
            granules.set_all();
            model.mark(0..u64::MAX);
        }
        Step::ClearAll => {
            granules.clear_all();
            model.dirty.clear();
        }
        Step::Merge { granularity, ref marks, drained } => {
            let source = Granules::new(model.size_bytes, granularity).unwrap();
            let mut source_model = Model::new(model.size_bytes, granularity);
            for &(offset, len_bytes) in marks {
                source.mark(offset, len_bytes);
                source_model.mark(bytes(offset, len_bytes));
            }
            model.merge(&source_model);
            if drained {
                granules.merge_from_drained(&source).unwrap();
            } else {
                granules.merge_from(&source).unwrap();
            }
        }
        Step::Resize { size_bytes, extension } => {
            model.resize(size_bytes, extension);
            return granules.resized(size_bytes, extension).unwrap();
        }
        Step::Copy => {
            let copy = granules.copy().unwrap();
            granules.set_all();
            return copy;
        }
    }
    granules
}

/// Asserts that every way of reading the set agrees with the model.
fn compare(granules: &Granules, model: &Model, window: Range<u64>) {
    assert_eq!(granules.count(), model.dirty.len() as u64);
    let dirty_bytes: u64 =
        model.dirty.iter().map(|&index| model.bytes_of(index)).map(|b| b.end - b.start).sum();
    assert_eq!(granules.dirty_bytes(), dirty_bytes);
    assert_eq!(granules.ranges(0..u64::MAX).collect::<Vec<_>>(), model.ranges(0..u64::MAX));
    assert_eq!(granules.ranges(window.clone()).collect::<Vec<_>>(), model.ranges(window.clone()));
    assert_eq!(
        granules.next_dirty(window.start),
        model.ranges(window.start..u64::MAX).into_iter().next()
    );
    for index in model.all() {
        let granule = model.bytes_of(index);
        let dirty = model.dirty.contains(&index);
        assert_eq!((granules.test(granule.start), granules.test(granule.end - 1)), (dirty, dirty));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_agrees_with_the_model(
        size_bytes in size(),
        granularity in granularity(),
        steps in prop::collection::vec((step(), extent()), 1..if cfg!(miri) { 6 } else { 30 }),
    ) {
        let mut granules = Granules::new(size_bytes, granularity).unwrap();
        let mut model = Model::new(size_bytes, granularity);
        for (step, (offset, len_bytes)) in steps {
            granules = apply(&step, granules, &mut model);
            compare(&granules, &model, bytes(offset, len_bytes));
        }
    }
}

mod threads {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 2 } else { 2000 };

    /// Runs `left(round)` and `right(round)` at once, both starting each round at the same moment.
    /// They must not panic: the other would wait for ever.
    fn race(left: impl Fn(usize) + Sync, right: impl Fn(usize) + Sync) {
        let arrivals = AtomicUsize::new(0);
        let run = |work: &dyn Fn(usize)| {
            for round in 0..ROUNDS {
                arrivals.fetch_add(1, SeqCst);
                let mut spins = 0;
                while arrivals.load(SeqCst) < 2 * (round + 1) {
                    std::hint::spin_loop();
                    spins += 1;
                    if spins % 1000 == 0 {
                        std::thread::yield_now();
                    }
                }
                work(round);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| run(&left));
            run(&right);
        });
    }

    /// A set of one word.
    fn word() -> Granules {
        Granules::new(64 * 512, Granularity::MIN).unwrap()
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Work {
        Mark,
        MarkRange,
        Clear,
        Merge,
    }

    /// One thread has the first two granules of every four, the other the last two.
    impl Work {
        fn do_to(self, set: &Granules, source: &Granules, side: u64) {
            for first in (side * 2..64).step_by(4) {
                match self {
                    Work::Mark => {
                        set.mark(first * 512, 1);
                        set.mark(first * 512 + 512, 1);
                    }
                    Work::MarkRange => set.mark(first * 512, 1024),
                    Work::Clear => set.clear_range(first * 512, 1024),
                    Work::Merge => return set.merge_from(source).unwrap(),
                }
            }
        }
    }

    fn check(left: Work, right: Work) {
        let (works, sources) = ([left, right], [word(), word()]);
        let rounds: Vec<Granules> = (0..ROUNDS).map(|_| word()).collect();
        for (side, work) in works.into_iter().enumerate() {
            Work::MarkRange.do_to(&sources[side], &sources[side], side as u64);
            if work == Work::Clear {
                rounds.iter().for_each(|set| set.merge_from(&sources[side]).unwrap());
            }
        }
        race(
            |round| left.do_to(&rounds[round], &sources[0], 0),
            |round| right.do_to(&rounds[round], &sources[1], 1),
        );
        for set in &rounds {
            for granule in 0..64 {
                let work = works[granule as usize / 2 % 2];
                assert_eq!(
                    set.test(granule * 512),
                    work != Work::Clear,
                    "granule {granule} after {left:?} against {right:?}"
                );
            }
        }
    }

    #[test]
    fn changes_of_different_bits_of_a_word_lose_nothing() {
        let all = [Work::Mark, Work::MarkRange, Work::Clear, Work::Merge];
        for (index, left) in all.into_iter().enumerate() {
            for right in &all[index..] {
                check(left, *right);
            }
        }
    }

    #[test]
    fn marks_of_the_same_bits_lose_nothing() {
        let rounds: Vec<Granules> = (0..ROUNDS).map(|_| word()).collect();
        race(
            |round| (0..64).for_each(|granule| rounds[round].mark(granule * 512, 1)),
            |round| (0..64).rev().for_each(|granule| rounds[round].mark(granule * 512, 700)),
        );
        assert!(rounds.iter().all(|set| set.count() == 64));
    }

    #[test]
    fn readers_see_ordered_ranges_while_marks_go_on() {
        let granules = Granules::new(400 * 512 - 5, Granularity::MIN).unwrap();
        let sane = AtomicBool::new(true);
        race(
            |round| granules.mark((round as u64 * 37 % 400) * 512, 1 + round as u64 % 3 * 512),
            |round| {
                let mut end_of_last = None;
                for range in granules.ranges(round as u64..u64::MAX) {
                    if end_of_last >= Some(range.start) || range.is_empty() {
                        sane.store(false, SeqCst);
                    }
                    end_of_last = Some(range.end);
                }
                if granules.dirty_bytes() > granules.size_bytes() {
                    sane.store(false, SeqCst);
                }
            },
        );
        assert!(sane.into_inner());
        assert_eq!(granules.count(), if cfg!(miri) { 3 } else { 400 });
    }
}
