//! Changes of bitmaps as values: prepared and committed – or dropped, and nothing has happened.
//!
//! The graph's writer
//! 1. *prepares* while requests go on: users and states are checked, memory is had;
//! 2. *commits* with no change in flight on the classes whose changes mark the bitmaps. That fills the
//!    new sets, cannot fail, and is followed, still in that section, by a snapshot whose
//!    [`MarkList`](super::MarkList)s hold the sets that record now.
//!
//! All of it under the writer's lock: between preparation and commit no other change of the same
//! bitmaps, nor of those merged from, takes effect.
//!
//! Each change has a *position* in its transaction. What the graph alters itself is marked
//! ([`Prepared::mark_at`]) at the position of the action that alters it, in the set that records then,
//! although that is known last: a clear that was asked for after it wins, one before it does not.
//!
//! No set in use is altered, but that marks add bits at commit. So giving up needs no way back: the old
//! sets have gone on recording. A job that fails later asks for [`Change::MergeBack`]: what it had
//! frozen, and what was recorded since. Nothing clears on the way back.

use std::ops::Range;
use std::sync::Arc;

use super::content::Content;
use super::users::{Changing, Gone};
use super::{Bitmap, BitmapError, BitmapName, BitmapState, BitmapUse, Extension, Granules};
use crate::graph::{Mutation, mutated};

/// What is to become of a bitmap.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// All clean. Hides what was dirty from readers.
    Clear,
    /// Records from now on.
    Enable,
    /// Records no more and keeps what is dirty.
    Disable,
    /// What is dirty stands still for the caller; a fresh set records, unless it was disabled.
    Freeze,
    /// The same for one that records: what changes from now on must not be lost.
    Checkpoint,
    /// Ends a freeze: dirty is what was frozen and what was recorded since.
    MergeBack,
    /// Ends a freeze: dirty is what was recorded since, alone. Hides the rest from readers.
    Abdicate,
    /// Ends a freeze: dirty is what this set holds at commit, and what was recorded since. Hides the rest.
    Leave(Arc<Granules>),
    /// Dirty becomes what this set holds at commit, too.
    Add(Arc<Granules>),
    /// Dirty becomes what one of these shows, too; across granularities. A change in flight on a
    /// source's view may or may not be among it.
    Merge(Vec<Arc<Bitmap>>),
    /// Dirty becomes what this one shows, and nothing else; name, granularity and state stay. Hides
    /// what was dirty from readers.
    CopyOf(Arc<Bitmap>),
    /// Its view has this many bytes from now on; grown bytes are dirty or clean.
    Resize(u64, Extension),
    /// Another name; that it is free is the graph's to see to.
    Rename(BitmapName),
    /// What it holds means nothing: inconsistent.
    Distrust,
    /// Ends that: all of it is dirty, and it records.
    Repair,
    /// It leaves the graph: records no more and can be read for as long as it is held.
    Remove,
}

impl Change {
    /// What is gone afterwards of what its users rely on.
    fn gone(&self) -> Gone {
        match self {
            Self::Rename(_) | Self::Remove => Gone::Bitmap,
            Self::Abdicate | Self::Leave(_) => Gone::Frozen,
            Self::Clear | Self::CopyOf(_) => Gone::Content,
            _ => Gone::Nothing,
        }
    }

    /// Whether its own users and state can stand in the way: not if the graph changes underneath.
    fn can_be_refused(&self) -> bool {
        !matches!(self, Self::Resize(..))
    }
}

/// Changes that have been found possible and have their memory; dropping it gives them up. They
/// apply in the order in which they were added: each as if those before it had taken effect.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    targets: Vec<Target>,
    /// In the order of their positions.
    steps: Vec<(usize, Step)>,
    /// Of what is added now.
    position: usize,
}

/// A bitmap that changes.
#[derive(Debug)]
struct Target {
    bitmap: Arc<Bitmap>,
    before: Arc<Content>,
    next: Content,
    /// What records from which position on; before the first, what records now.
    history: Vec<(usize, Option<Arc<Granules>>)>,
    /// What stands still before a change that ends that.
    let_go: Vec<Arc<Granules>>,
    changing: Changing,
}

/// What is done to a set at commit. But for marks, `to` is nobody else's yet.
#[derive(Debug)]
enum Step {
    Resize { from: Arc<Granules>, to: Arc<Granules>, extension: Extension },
    Merge { from: Arc<Granules>, to: Arc<Granules> },
    Mark { to: Arc<Granules>, range: Range<u64> },
}

/// Finds out whether `changes` can be made to `bitmap`, one after the other, and gets their memory.
///
/// # Errors
/// As [`Prepared::add`].
#[cfg(test)]
pub(crate) fn prepare(bitmap: &Arc<Bitmap>, changes: &[Change]) -> Result<Prepared, BitmapError> {
    let mut prepared = Prepared::default();
    changes.iter().try_for_each(|change| prepared.add(bitmap, change))?;
    Ok(prepared)
}

impl Prepared {
    /// What is added from now on has this position, which never goes down.
    pub(crate) fn begin(&mut self, position: usize) {
        self.position = self.position.max(position);
    }

    /// Adds a change. After an error the rest can be dropped only.
    ///
    /// # Errors
    /// [`BitmapError::InUse`] by somebody whom it would disturb, [`BitmapError::Changing`],
    /// [`BitmapError::Frozen`], [`BitmapError::NotFrozen`], [`BitmapError::Inconsistent`],
    /// [`BitmapError::SizeMismatch`], [`BitmapError::KeptTooOften`]; as [`Granules::new`].
    pub(crate) fn add(&mut self, bitmap: &Arc<Bitmap>, change: &Change) -> Result<(), BitmapError> {
        self.add_of(bitmap, None, change)
    }

    /// Adds a change that a user asks for: its own use does not stand in the way.
    ///
    /// # Errors
    /// As [`Prepared::add`].
    pub(crate) fn add_by(&mut self, user: &BitmapUse, change: &Change) -> Result<(), BitmapError> {
        self.add_of(user.bitmap(), Some(user), change)
    }

    fn add_of(
        &mut self,
        bitmap: &Arc<Bitmap>,
        own: Option<&BitmapUse>,
        change: &Change,
    ) -> Result<(), BitmapError> {
        let at = self.target(bitmap)?;
        let old = self.targets[at].next.clone();
        if change.can_be_refused() {
            self.targets[at].changing.admit(own, change.gone())?;
            check_state(change, &old)?;
        }
        if matches!(change, Change::Freeze | Change::Checkpoint) {
            let target = &self.targets[at];
            target.changing.check_place(own, target.let_go.len())?;
        }
        if change.gone() == Gone::Frozen {
            self.targets[at].let_go.extend(old.still.clone());
        }
        let next = self.next(at, old, change)?;
        let (position, target) = (self.position, &mut self.targets[at]);
        target.history.push((position, next.recording.clone()));
        target.next = next;
        Ok(())
    }

    /// Index of the target for `bitmap`.
    fn target(&mut self, bitmap: &Arc<Bitmap>) -> Result<usize, BitmapError> {
        let known = self.targets.iter().position(|target| Arc::ptr_eq(&target.bitmap, bitmap));
        if let Some(at) = known {
            return Ok(at);
        }
        let changing = Changing::begin(bitmap)?;
        let before = bitmap.content();
        let (bitmap, next) = (Arc::clone(bitmap), Content::clone(&before));
        self.targets.push(Target {
            bitmap,
            before,
            next,
            history: Vec::new(),
            let_go: Vec::new(),
            changing,
        });
        Ok(self.targets.len() - 1)
    }

    /// What becomes of the content `old` of target `at` by a change that its state allows.
    fn next(&mut self, at: usize, old: Content, change: &Change) -> Result<Content, BitmapError> {
        let granularity = self.targets[at].bitmap.granularity();
        let size_bytes = old.size_bytes;
        let clean = || Granules::new(size_bytes, granularity).map(Arc::new);
        Ok(match change {
            Change::Clear => old.holding(clean()?),
            Change::Enable => old.moved(BitmapState::Recording),
            Change::Disable => old.moved(BitmapState::Disabled),
            // A set of its own: other changes may have been told the one that recorded.
            Change::Distrust => Content::of(old.name, clean()?, BitmapState::Inconsistent),
            Change::Repair => old.moved(BitmapState::Recording),
            Change::Remove if old.state == BitmapState::Inconsistent => old,
            Change::Remove => old.moved(BitmapState::Disabled),
            Change::Freeze | Change::Checkpoint => {
                let successor = old.recording.is_some().then(clean).transpose()?;
                old.frozen(successor)
            }
            Change::MergeBack if old.recording.is_none() => old.moved(BitmapState::Disabled),
            Change::MergeBack => {
                let mut own = old.clone();
                if mutated(Mutation::RollsBackByReplacement) {
                    own.recording = None;
                }
                old.holding(self.union(at, &[own])?)
            }
            Change::Abdicate => match old.recording.clone() {
                Some(successor) => old.holding(successor),
                None => old.holding(clean()?),
            },
            Change::Leave(set) => {
                let left = Content { still: Some(Arc::clone(set)), ..old.clone() };
                old.holding(self.union(at, &[left])?)
            }
            Change::Add(set) => {
                let added = Content { still: Some(Arc::clone(set)), ..old.clone() };
                let set = self.union(at, &[old.clone(), added])?;
                old.holding(set)
            }
            Change::Merge(sources) => {
                let mut all = vec![old.clone()];
                for source in sources {
                    all.push(self.source(source)?);
                }
                old.holding(self.union(at, &all)?)
            }
            Change::CopyOf(source) => {
                let source = self.source(source)?;
                old.holding(self.union(at, &[source])?)
            }
            Change::Resize(size_bytes, extension) => self.resized(old, *size_bytes, *extension)?,
            Change::Rename(name) => Content { name: name.clone(), ..old },
        })
    }

    /// A bitmap that is merged or copied, as it stands after the changes added so far.
    ///
    /// # Errors
    /// [`BitmapError::Inconsistent`].
    fn source(&self, bitmap: &Arc<Bitmap>) -> Result<Content, BitmapError> {
        let content = match self.known(bitmap) {
            Some(target) => target.next.clone(),
            None => Content::clone(&bitmap.content()),
        };
        if content.state == BitmapState::Inconsistent {
            return Err(BitmapError::Inconsistent { name: content.name });
        }
        Ok(content)
    }

    fn known(&self, bitmap: &Arc<Bitmap>) -> Option<&Target> {
        self.targets.iter().find(|target| Arc::ptr_eq(&target.bitmap, bitmap))
    }

    fn step(&mut self, step: Step) {
        self.steps.push((self.position, step));
    }

    /// A new set for target `at`, to be filled with all that `sources` show.
    ///
    /// # Errors
    /// [`BitmapError::SizeMismatch`]; as [`Granules::new`].
    fn union(&mut self, at: usize, sources: &[Content]) -> Result<Arc<Granules>, BitmapError> {
        let target = &self.targets[at];
        let target_size_bytes = target.next.size_bytes;
        for source in sources {
            let source_size_bytes = source.size_bytes;
            if source_size_bytes != target_size_bytes {
                return Err(BitmapError::SizeMismatch { target_size_bytes, source_size_bytes });
            }
        }
        let to = Arc::new(Granules::new(target_size_bytes, target.bitmap.granularity())?);
        for from in sources.iter().flat_map(Content::sets) {
            self.step(Step::Merge { from: Arc::clone(from), to: Arc::clone(&to) });
        }
        Ok(to)
    }

    fn resized(
        &mut self,
        old: Content,
        size_bytes: u64,
        extension: Extension,
    ) -> Result<Content, BitmapError> {
        // What cannot be trusted stays all dirty.
        let inconsistent = old.state == BitmapState::Inconsistent;
        let extension = if inconsistent { Extension::Dirty } else { extension };
        let mut resize = |from: &Arc<Granules>| -> Result<Arc<Granules>, BitmapError> {
            let to = Arc::new(Granules::new(size_bytes, from.granularity())?);
            let (from, filled) = (Arc::clone(from), Arc::clone(&to));
            self.step(Step::Resize { from, to: filled, extension });
            Ok(to)
        };
        let recording = old.recording.as_ref().map(&mut resize).transpose()?;
        let still = old.still.as_ref().map(&mut resize).transpose()?;
        Ok(Content { size_bytes, recording, still, ..old })
    }

    /// Makes a range of a bitmap dirty, as it stands after everything with this position or a smaller
    /// one; returns whether it records then. For what the graph itself alters, of which nobody has to be
    /// asked.
    pub(crate) fn mark_at(
        &mut self,
        position: usize,
        bitmap: &Arc<Bitmap>,
        range: Range<u64>,
    ) -> bool {
        let recording = match self.known(bitmap) {
            None => bitmap.recording(),
            Some(target) => {
                let mut history = target.history.iter().rev();
                match history.find(|(from, _)| *from <= position) {
                    Some((_, recording)) => recording.clone(),
                    None => target.before.recording.clone(),
                }
            }
        };
        let Some(to) = recording else { return false };
        // What comes later copies it on.
        let at = self.steps.partition_point(|(other, _)| *other <= position);
        self.steps.insert(at, (position, Step::Mark { to, range }));
        true
    }

    /// Whether another set records afterwards, or none, or one for the first time: only then is
    /// there a drained section and a snapshot to be had.
    #[cfg(test)]
    pub(crate) fn replaces_recording(&self) -> bool {
        let address = |set: &Option<Arc<Granules>>| set.as_ref().map(Arc::as_ptr);
        let mut targets = self.targets.iter();
        targets.any(|target| address(&target.before.recording) != address(&target.next.recording))
    }

    /// What `bitmap` records in after the commit, for the next snapshot's mark lists.
    pub(crate) fn recording_after(&self, bitmap: &Arc<Bitmap>) -> Option<Arc<Granules>> {
        match self.known(bitmap) {
            Some(target) => target.next.recording.clone(),
            None => bitmap.recording(),
        }
    }

    /// Fills the new sets, and takes effect. To be called with no change in flight on the classes whose
    /// changes mark the bitmaps, in the section that then publishes the snapshot which marks the new
    /// sets.
    pub(crate) fn commit(self) {
        for (_, step) in &self.steps {
            match step {
                Step::Resize { from, to, extension } => to.fill_resized(from, *extension),
                Step::Mark { to, range } => {
                    to.mark(range.start, range.end.saturating_sub(range.start));
                }
                Step::Merge { from, to } => {
                    // Sizes have been compared, but for that of a set which is left: its view may have been
                    // resized since. Of what it knows nothing all is dirty, never too little.
                    let is_merged = to.merge_from_drained(from).is_ok() || {
                        let fits = from.resized(to.size_bytes(), Extension::Dirty);
                        fits.is_ok_and(|fits| to.merge_from_drained(&fits).is_ok())
                    };
                    if !is_merged {
                        to.set_all();
                    }
                }
            }
        }
        for Target { bitmap, next, let_go, changing, .. } in self.targets {
            bitmap.users.keep(&let_go);
            bitmap.replace_content(next);
            drop(changing);
        }
    }
}

/// # Errors
/// If the state does not allow the change.
fn check_state(change: &Change, content: &Content) -> Result<(), BitmapError> {
    let name = || content.name.clone();
    match (change, content.state) {
        (Change::Rename(_), BitmapState::Frozen) => Ok(()),
        (Change::Remove | Change::Repair | Change::Distrust, BitmapState::Inconsistent) => Ok(()),
        (_, BitmapState::Inconsistent) => Err(BitmapError::Inconsistent { name: name() }),
        (Change::Repair, _) => Err(BitmapError::NotInconsistent { name: name() }),
        (Change::MergeBack | Change::Abdicate | Change::Leave(_), BitmapState::Frozen) => Ok(()),
        (Change::MergeBack | Change::Abdicate | Change::Leave(_), _) => {
            Err(BitmapError::NotFrozen { name: name() })
        }
        (_, BitmapState::Frozen) => Err(BitmapError::Frozen { name: name() }),
        (Change::Checkpoint, BitmapState::Disabled) => Err(BitmapError::Disabled { name: name() }),
        _ => Ok(()),
    }
}

impl Content {
    /// The same bitmap with this set alone, which records if it recorded before. Ends a freeze.
    fn holding(self, set: Arc<Granules>) -> Self {
        let records = self.recording.is_some();
        let state = if records { BitmapState::Recording } else { BitmapState::Disabled };
        Self::of(self.name, set, state)
    }

    /// The same content in another state, of a bitmap with one set.
    fn moved(self, state: BitmapState) -> Self {
        match self.still.clone().or_else(|| self.recording.clone()) {
            Some(set) => Self::of(self.name, set, state),
            None => self,
        }
    }

    /// Frozen, with what records from now on.
    fn frozen(self, successor: Option<Arc<Granules>>) -> Self {
        let still = self.recording.or(self.still);
        Self { state: BitmapState::Frozen, still, recording: successor, ..self }
    }
}
