//! Bitmaps through random changes, several in one transaction, some of them given up.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::change::{Change, Prepared};
use super::super::{Bitmap, BitmapName, BitmapState, Extension, Granularity, MarkList};
use super::Model;

/// What a bitmap is: its sets as plain as they can be, and the rule for each change in a line or two.
#[derive(Debug, Clone)]
struct BitmapModel {
    recording: Option<Model>,
    still: Option<Model>,
    state: BitmapState,
    empty: Model,
}

impl BitmapModel {
    fn new(size_bytes: u64, granularity: Granularity, state: BitmapState) -> Self {
        let empty = Model::new(size_bytes, granularity);
        let mut all = empty.clone();
        all.mark(0..u64::MAX);
        let (recording, still) = match state {
            BitmapState::Recording => (Some(empty.clone()), None),
            BitmapState::Inconsistent => (None, Some(all)),
            _ => (None, Some(empty.clone())),
        };
        Self { recording, still, state, empty }
    }

    fn shown(&self) -> Model {
        let mut shown = self.empty.clone();
        let sets = self.recording.iter().chain(&self.still);
        sets.for_each(|set| shown.dirty.extend(&set.dirty));
        shown
    }

    fn only(&mut self, set: Model) {
        if self.recording.is_some() {
            (self.state, self.recording, self.still) = (BitmapState::Recording, Some(set), None);
        } else {
            (self.state, self.recording, self.still) = (BitmapState::Disabled, None, Some(set));
        }
    }

    fn mark(&mut self, range: std::ops::Range<u64>) {
        if let Some(recording) = &mut self.recording {
            recording.mark(range);
        }
    }

    /// `None`: refused.
    fn change(&mut self, change: &Action, sources: &[Self]) -> Option<()> {
        use BitmapState::{Disabled, Frozen, Inconsistent, Recording};
        let shown = self.shown();
        let sources = |of: &[usize]| -> Option<Vec<Self>> {
            let all: Vec<Self> = of.iter().map(|at| sources[*at].clone()).collect();
            let fit = |it: &Self| {
                it.empty.size_bytes == shown.size_bytes && it.state != BitmapState::Inconsistent
            };
            all.iter().all(fit).then_some(all)
        };
        match (change, self.state) {
            (Action::Resize(size_bytes, extension), state) => {
                let broken = state == Inconsistent;
                let extension = if broken { Extension::Dirty } else { *extension };
                let sets = self.recording.iter_mut().chain(&mut self.still);
                sets.for_each(|set| set.resize(*size_bytes, extension));
                self.empty.resize(*size_bytes, Extension::Clean);
            }
            (Action::MarkRange(offset, len), _) => self.mark(*offset..offset.saturating_add(*len)),
            (Action::MarkWhole, _) => self.mark(0..u64::MAX),
            (Action::MergeBack, Frozen) => self.only(shown),
            (Action::Abdicate, Frozen) => {
                self.only(self.recording.clone().unwrap_or_else(|| self.empty.clone()));
            }
            (Action::MergeBack | Action::Abdicate, _) | (_, Frozen | Inconsistent) => return None,
            (Action::Clear, _) => self.only(self.empty.clone()),
            (Action::Enable, _) => {
                (self.state, self.recording, self.still) = (Recording, Some(shown), None);
            }
            (Action::Disable, _) => {
                (self.state, self.recording, self.still) = (Disabled, None, Some(shown));
            }
            (Action::Freeze, _) => {
                let successor = self.recording.is_some().then(|| self.empty.clone());
                (self.state, self.recording, self.still) = (Frozen, successor, Some(shown));
            }
            (Action::Merge(of), _) => {
                let mut merged = shown.clone();
                sources(of)?.iter().for_each(|source| merged.merge(&source.shown()));
                self.only(merged);
            }
            (Action::CopyOf(of), _) => {
                let mut copy = self.empty.clone();
                sources(&[*of])?.iter().for_each(|source| copy.merge(&source.shown()));
                self.only(copy);
            }
        }
        Some(())
    }
}

/// [`Change`] with bitmaps by number.
#[derive(Debug, Clone)]
enum Action {
    Clear,
    Enable,
    Disable,
    Freeze,
    MergeBack,
    Abdicate,
    Merge(Vec<usize>),
    CopyOf(usize),
    Resize(u64, Extension),
    MarkRange(u64, u64),
    MarkWhole,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Drop,
}

#[derive(Debug, Clone)]
enum Step {
    /// A change of the view that all the bitmaps are of.
    Mark(u64, u64),
    /// A transaction.
    Change(Vec<(usize, Action)>, End),
}

const BITMAPS: usize = 3;
const MAX_SIZE_BYTES: u64 = 100 * 512;

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(70 * 512 + 100), 1 => 0..MAX_SIZE_BYTES]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let len_bytes = prop_oneof![4 => 1_u64..3000, 1 => 0..MAX_SIZE_BYTES, 1 => Just(u64::MAX)];
    (0..MAX_SIZE_BYTES + 1000, len_bytes)
}

fn action() -> impl Strategy<Value = Action> {
    let extension = prop_oneof![Just(Extension::Dirty), Just(Extension::Clean)];
    prop_oneof![
        1 => Just(Action::Clear),
        2 => Just(Action::Enable),
        1 => Just(Action::Disable),
        3 => Just(Action::Freeze),
        3 => Just(Action::MergeBack),
        2 => Just(Action::Abdicate),
        2 => prop::collection::vec(0..BITMAPS, 0..3).prop_map(Action::Merge),
        1 => (0..BITMAPS).prop_map(Action::CopyOf),
        2 => (size(), extension).prop_map(|(size, extension)| Action::Resize(size, extension)),
        2 => range().prop_map(|(offset, len)| Action::MarkRange(offset, len)),
        1 => Just(Action::MarkWhole),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![
        6 => Just(End::Commit),
        2 => Just(End::Drop),
    ];
    prop_oneof![
        range().prop_map(|(offset, len)| Step::Mark(offset, len)),
        (prop::collection::vec((0..BITMAPS, action()), 1..4), end)
            .prop_map(|(actions, end)| Step::Change(actions, end)),
    ]
}

/// A change, or the range of a mark that the graph makes.
fn change(action: &Action, bitmaps: &[Arc<Bitmap>]) -> Result<Change, Range<u64>> {
    Ok(match action {
        Action::Clear => Change::Clear,
        Action::Enable => Change::Enable,
        Action::Disable => Change::Disable,
        Action::Freeze => Change::Freeze,
        Action::MergeBack => Change::MergeBack,
        Action::Abdicate => Change::Abdicate,
        Action::Merge(of) => Change::Merge(of.iter().map(|at| Arc::clone(&bitmaps[*at])).collect()),
        Action::CopyOf(of) => Change::CopyOf(Arc::clone(&bitmaps[*of])),
        Action::Resize(size_bytes, extension) => Change::Resize(*size_bytes, *extension),
        Action::MarkRange(offset, len) => return Err(*offset..offset.saturating_add(*len)),
        Action::MarkWhole => return Err(0..u64::MAX),
    })
}

/// A transaction on both sides; whether it took effect.
fn transact(
    bitmaps: &[Arc<Bitmap>],
    models: &mut Vec<BitmapModel>,
    actions: &[(usize, Action)],
    end: End,
) -> bool {
    let (mut prepared, mut next) = (Prepared::default(), models.clone());
    let mut marks = Vec::new();
    for (position, (at, action)) in actions.iter().enumerate() {
        let sources = next.clone();
        let expect = next[*at].change(action, &sources);
        prepared.begin(position);
        let result = match change(action, bitmaps) {
            Ok(change) => prepared.add(&bitmaps[*at], &change),
            Err(range) => {
                marks.push((position, at, range));
                Ok(())
            }
        };
        assert_eq!(result.is_ok(), expect.is_some(), "{action:?}: {result:?}");
        if result.is_err() {
            return false;
        }
    }
    // They are known last, and come in at their place.
    for (position, at, range) in marks.into_iter().rev() {
        prepared.mark_at(position, &bitmaps[*at], range);
    }
    let recording: Vec<_> = bitmaps.iter().map(|bitmap| prepared.recording_after(bitmap)).collect();
    let same = bitmaps.iter().zip(&recording).all(|(bitmap, after)| {
        bitmap.recording().as_ref().map(Arc::as_ptr) == after.as_ref().map(Arc::as_ptr)
    });
    assert_eq!(prepared.replaces_recording(), !same);
    if end == End::Drop {
        return false;
    }
    prepared.commit();
    for (bitmap, after) in bitmaps.iter().zip(&recording) {
        let now = bitmap.recording();
        assert_eq!(now.as_ref().map(Arc::as_ptr), after.as_ref().map(Arc::as_ptr));
    }
    *models = next;
    true
}

fn compare(bitmap: &Bitmap, model: &BitmapModel) {
    let (reader, shown) = (bitmap.read(), model.shown());
    assert_eq!((reader.state(), reader.size_bytes()), (model.state, shown.size_bytes));
    assert_eq!(reader.is_recording(), model.recording.is_some());
    assert_eq!(reader.count(), shown.dirty.len() as u64);
    let runs = shown.ranges(0..u64::MAX);
    assert_eq!(reader.dirty_bytes(), runs.iter().map(|run| run.end - run.start).sum::<u64>());
    assert_eq!(reader.ranges(0..u64::MAX).collect::<Vec<_>>(), runs);
    assert_eq!(reader.next_dirty(700), shown.ranges(700..u64::MAX).first().cloned());
    for offset in (0..shown.size_bytes).step_by(512) {
        let granule = offset / shown.granularity_bytes;
        assert_eq!(reader.test(offset), shown.dirty.contains(&granule));
    }
    let still = reader.still().map(|still| still.ranges(0..u64::MAX).collect::<Vec<_>>());
    assert_eq!(still, model.still.as_ref().map(|still| still.ranges(0..u64::MAX)));
}

fn snapshot(bitmaps: &[Arc<Bitmap>]) -> MarkList {
    bitmaps.iter().filter_map(|bitmap| bitmap.recording()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 768 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_of_changes_agrees_with_the_model(
        shifts in prop::array::uniform3(9_u32..13),
        broken in any::<bool>(),
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 6 } else { 40 }),
    ) {
        let (mut bitmaps, mut models) = (Vec::new(), Vec::new());
        for (at, shift) in shifts.into_iter().enumerate() {
            let granularity = Granularity::from_bytes(1 << shift).unwrap();
            let state = match at {
                0 => BitmapState::Recording,
                1 => BitmapState::Disabled,
                _ if broken => BitmapState::Inconsistent,
                _ => BitmapState::Frozen,
            };
            let name = BitmapName::new("b").unwrap();
            bitmaps.push(Arc::new(Bitmap::new(name, 36_000, granularity, state).unwrap()));
            models.push(BitmapModel::new(36_000, granularity, state));
        }
        let mut marks = snapshot(&bitmaps);
        for step in steps {
            match step {
                Step::Mark(offset, len) => {
                    marks.mark(offset, len);
                    let range = offset..offset.saturating_add(len);
                    models.iter_mut().for_each(|model| model.mark(range.clone()));
                }
                Step::Change(actions, end) => {
                    if transact(&bitmaps, &mut models, &actions, end) {
                        marks = snapshot(&bitmaps);
                    }
                }
            }
            for (bitmap, model) in bitmaps.iter().zip(&models) {
                compare(bitmap, model);
            }
        }
    }
}
