//! What can be done to bitmaps. All of it takes effect between changes.

use std::collections::BTreeSet;

use super::bitmap::{Bitmap, Record};
use super::change::Reach;
use super::ids::{BitmapId, FlightId, Span, View};
use super::refusal::Refusal;
use super::world::World;

/// One thing done to a bitmap. A checkpoint is a transaction of several [`Freeze`]s; a clear that
/// may be taken back is a [`Freeze`], then [`MergeBack`] or [`Abdicate`].
///
/// [`Freeze`]: Self::Freeze
/// [`MergeBack`]: Self::MergeBack
/// [`Abdicate`]: Self::Abdicate
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitmapAction {
    /// A new one, all clean.
    Add {
        /// Its id.
        id: BitmapId,
        /// Whose view.
        scope: View,
        /// Bytes a granule, at least 1.
        granularity: usize,
        /// Whether it records.
        enabled: bool,
    },
    /// It goes, unless something reads it.
    Remove(BitmapId),
    /// All is clean.
    Clear(BitmapId),
    /// It records from now on. What happened meanwhile counts as clean.
    Enable(BitmapId),
    /// It records no more.
    Disable(BitmapId),
    /// What the sources have dirty is dirty in the target too.
    Merge {
        /// Into which.
        target: BitmapId,
        /// From which.
        sources: Vec<BitmapId>,
    },
    /// A job takes the set; a successor records, clean at first.
    Freeze(BitmapId),
    /// The job failed: the frozen set and the successor's together record.
    MergeBack(BitmapId),
    /// The job succeeded: the frozen set goes.
    Abdicate(BitmapId),
    /// Somebody reads it, by this name.
    Hold(BitmapId, String),
    /// That reader is gone.
    Release(BitmapId, String),
}

impl World {
    /// What must have settled before an action on a bitmap takes effect: all changes of its view,
    /// also those that evidence exempts, since they may fail.
    pub(super) fn busy_with_bitmap(&self, action: &BitmapAction) -> Vec<FlightId> {
        let bitmap = |id: &BitmapId| self.bitmaps.get(id).map(|bitmap| bitmap.scope);
        let scope = match action {
            BitmapAction::Add { scope, .. } => Some(*scope),
            BitmapAction::Clear(id)
            | BitmapAction::Enable(id)
            | BitmapAction::Disable(id)
            | BitmapAction::Freeze(id)
            | BitmapAction::MergeBack(id)
            | BitmapAction::Abdicate(id) => bitmap(id),
            BitmapAction::Remove(_)
            | BitmapAction::Merge { .. }
            | BitmapAction::Hold(..)
            | BitmapAction::Release(..) => None,
        };
        let Some(top) = scope.and_then(|scope| self.graph.top(scope)) else { return Vec::new() };
        let busy = self.flights.iter();
        busy.filter(|(_, flight)| self.graph.reach(top, &flight.legs, None) != Reach::Not)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn apply_to_bitmap(&mut self, action: &BitmapAction) -> Result<(), Refusal> {
        match action {
            BitmapAction::Add { id, scope, granularity, enabled } => {
                self.add_bitmap(*id, *scope, *granularity, *enabled)?;
            }
            BitmapAction::Remove(id) => {
                let (bitmap, _) = self.bitmap_mut(*id)?;
                let mut users: Vec<_> = bitmap.readers.iter().cloned().collect();
                users.extend(bitmap.frozen.is_some().then(|| "a job".to_owned()));
                if !users.is_empty() {
                    return Err(Refusal::InUse(users));
                }
                self.bitmaps.remove(id);
            }
            BitmapAction::Clear(id) => {
                let (bitmap, bytes) = self.idle_bitmap_mut(*id)?;
                bitmap.record = Record::clean(&bytes);
            }
            BitmapAction::Enable(id) => {
                let (bitmap, bytes) = self.idle_bitmap_mut(*id)?;
                if !bitmap.enabled {
                    bitmap.enabled = true;
                    bitmap.record.baseline = Record::clean(&bytes).baseline;
                }
            }
            BitmapAction::Disable(id) => self.idle_bitmap_mut(*id)?.0.enabled = false,
            BitmapAction::Merge { target, sources } => self.merge_bitmaps(*target, sources)?,
            BitmapAction::Freeze(id) => {
                let (bitmap, bytes) = self.idle_bitmap_mut(*id)?;
                let frozen = std::mem::replace(&mut bitmap.record, Record::clean(&bytes));
                bitmap.frozen = Some(frozen);
            }
            BitmapAction::MergeBack(id) => {
                let (bitmap, frozen) = self.frozen_mut(*id)?;
                bitmap.record.baseline = frozen.baseline;
                bitmap.record.required.extend(frozen.required);
                bitmap.record.allowed.extend(frozen.allowed);
            }
            BitmapAction::Abdicate(id) => {
                self.frozen_mut(*id)?;
            }
            BitmapAction::Hold(id, reader) => {
                self.bitmap_mut(*id)?.0.readers.insert(reader.clone());
            }
            BitmapAction::Release(id, reader) => {
                self.bitmap_mut(*id)?.0.readers.remove(reader);
            }
        }
        self.touch_in_flight();
        Ok(())
    }

    /// A job has copied `span`: the granules wholly in it are clean. To be done under the guard of
    /// the copy, or with nothing in flight there.
    ///
    /// # Errors
    /// No such bitmap; or it is frozen: what is cleared in the successor could not be merged back.
    pub fn clear_range(&mut self, id: BitmapId, span: Span) -> Result<(), Refusal> {
        let (bitmap, bytes) = self.idle_bitmap_mut(id)?;
        bitmap.record.clear(span, bitmap.granularity, &bytes);
        self.touch_in_flight();
        Ok(())
    }

    fn add_bitmap(
        &mut self,
        id: BitmapId,
        scope: View,
        granularity: usize,
        enabled: bool,
    ) -> Result<(), Refusal> {
        if self.bitmaps.contains_key(&id) {
            return Err(Refusal::BitmapExists(id));
        }
        match self.entry(scope) {
            Ok(_) | Err(Refusal::NoMedium(_)) => {}
            Err(refusal) => return Err(refusal),
        }
        let record = Record::clean(&self.graph.bytes(scope));
        let (granularity, readers) = (granularity.max(1), BTreeSet::new());
        let bitmap = Bitmap { scope, granularity, enabled, record, frozen: None, readers };
        self.bitmaps.insert(id, bitmap);
        Ok(())
    }

    fn merge_bitmaps(&mut self, target: BitmapId, sources: &[BitmapId]) -> Result<(), Refusal> {
        let mut merged = self.idle_bitmap_mut(target)?.0.clone();
        for id in sources {
            let source = &*self.idle_bitmap_mut(*id)?.0;
            if source.record.baseline.len() != merged.record.baseline.len() {
                return Err(Refusal::SizeMismatch);
            }
            merged.record.merge(merged.granularity, &source.record, source.granularity);
        }
        self.bitmaps.insert(target, merged);
        Ok(())
    }

    /// A bitmap and what its view shows.
    fn bitmap_mut(&mut self, id: BitmapId) -> Result<(&mut Bitmap, Vec<u8>), Refusal> {
        let bitmap = self.bitmaps.get_mut(&id).ok_or(Refusal::UnknownBitmap(id))?;
        let bytes = self.graph.bytes(bitmap.scope);
        Ok((bitmap, bytes))
    }

    fn idle_bitmap_mut(&mut self, id: BitmapId) -> Result<(&mut Bitmap, Vec<u8>), Refusal> {
        let (bitmap, bytes) = self.bitmap_mut(id)?;
        if bitmap.frozen.is_some() {
            return Err(Refusal::InUse(vec!["a job".to_owned()]));
        }
        Ok((bitmap, bytes))
    }

    fn frozen_mut(&mut self, id: BitmapId) -> Result<(&mut Bitmap, Record), Refusal> {
        let (bitmap, _) = self.bitmap_mut(id)?;
        let frozen = bitmap.frozen.take();
        Ok((bitmap, frozen.ok_or(Refusal::Unsupported("the bitmap is not frozen"))?))
    }
}
