//! What bitmaps owe: soundness, from the moment at which each was last clean.
//!
//! - A clean granule shows what it showed then.
//! - A granule that a change touched since is dirty, and it is so before the change comes to a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::oracle::{Oracle, Tick, WriteId};
use super::shape::View;
use crate::bitmap::{Bitmap, BitmapState, Change, Granules};
use crate::io::sim::SECTOR;

/// A moment at which a bitmap was clean, or as good as that: it lies between two ticks.
#[derive(Clone, Debug)]
struct Clean {
    until: Tick,
    /// By sector, what its view may have shown.
    words: Vec<BTreeSet<u64>>,
    /// Granules that have changed for certain.
    owed: BTreeMap<u64, WriteId>,
}

/// A bitmap with what it owes.
pub(super) struct Tracked {
    pub(super) view: View,
    pub(super) bitmap: Arc<Bitmap>,
    /// Of what it records; `None` while it does not.
    clean: Option<Clean>,
    /// Of what is frozen.
    frozen: Option<Clean>,
    /// A change of it is under way.
    pub(super) is_changing: bool,
}

impl Tracked {
    pub(super) fn new(oracle: &Oracle, view: View, bitmap: Arc<Bitmap>) -> Self {
        let clean = Some(Clean::since(oracle, &view, oracle.now));
        Self { view, bitmap, clean, frozen: None, is_changing: false }
    }

    fn granule(&self, sector: u64) -> u64 {
        sector * SECTOR as u64 / self.bitmap.granularity().bytes()
    }

    /// A change that it can take now, and a name for the trace.
    pub(super) fn any_change(&self, choice: u64) -> (Change, &'static str) {
        match (self.bitmap.state(), choice % 8) {
            (BitmapState::Frozen, 0..=4) => (Change::MergeBack, "bitmap merges back"),
            (BitmapState::Frozen, _) => (Change::Abdicate, "bitmap abdicates"),
            (BitmapState::Disabled, _) => (Change::Enable, "bitmap is enabled"),
            (_, 0..=2) => (Change::Clear, "bitmap is cleared"),
            (_, 3..=6) => (Change::Freeze, "bitmap is frozen"),
            _ => (Change::Disable, "bitmap is disabled"),
        }
    }

    /// A change that began at `began` has been made.
    pub(super) fn changed(&mut self, oracle: &Oracle, change: &Change, began: Tick) {
        let clean = || Some(Clean::since(oracle, &self.view, began));
        match change {
            Change::Clear | Change::Enable => self.clean = clean(),
            Change::Disable => self.clean = None,
            Change::Freeze => {
                if self.clean.is_some() {
                    self.frozen = std::mem::replace(&mut self.clean, clean());
                }
            }
            Change::MergeBack => {
                let owed = self.clean.take().map(|clean| clean.owed).unwrap_or_default();
                self.clean = self.frozen.take();
                if let Some(clean) = &mut self.clean {
                    clean.owed.extend(owed);
                }
            }
            Change::Abdicate => self.frozen = None,
            _ => {}
        }
    }

    /// A write has ended, and has changed all its sectors.
    pub(super) fn write_ended(&mut self, oracle: &Oracle, id: WriteId) {
        let Some((sectors, start, _)) = oracle.write(id) else { return };
        let granules: Vec<u64> = sectors.map(|sector| self.granule(sector)).collect();
        let shows = oracle.is_owed(id, &self.view);
        if let Some(clean) = self.clean.as_mut().filter(|clean| shows && clean.until < start) {
            clean.owed.extend(granules.into_iter().map(|granule| (granule, id)));
        }
    }

    fn recording(&self) -> Option<Arc<Granules>> {
        self.bitmap.recording()
    }

    /// A sector of a write has come to a disk.
    ///
    /// # Errors
    /// It is not marked.
    pub(super) fn landed(&self, oracle: &Oracle, id: WriteId, sector: u64) -> Result<(), String> {
        let Some((sectors, start, is_under_way)) = oracle.write(id) else { return Ok(()) };
        let Some(clean) = &self.clean else { return Ok(()) };
        let is_owed = is_under_way
            && !self.is_changing
            && clean.until < start
            && sectors.contains(&sector)
            && oracle.is_owed(id, &self.view);
        let offset = sector * SECTOR as u64;
        if is_owed && self.recording().is_some_and(|set| !set.test(offset)) {
            return Err(format!(
                "sector {sector} of {id:?} has come to a disk, and is clean in the bitmap of {:?}",
                self.view
            ));
        }
        Ok(())
    }

    /// Nothing is in flight, and its view shows `words`.
    ///
    /// # Errors
    /// It is not sound.
    pub(super) fn check(&self, words: &[u64]) -> Result<(), String> {
        let (Some(clean), Some(recording)) = (&self.clean, self.recording()) else {
            return Ok(());
        };
        if recording.size_bytes() != self.bitmap.size_bytes() {
            return Err(format!("the bitmap of {:?} records another size than its own", self.view));
        }
        let granularity = self.bitmap.granularity().bytes();
        let is_dirty = |granule: u64| recording.test(granule * granularity);
        if let Some((granule, id)) = clean.owed.iter().find(|(granule, _)| !is_dirty(**granule)) {
            return Err(format!(
                "{id:?} has changed granule {granule} of {:?}, which is clean in its bitmap ({}, \
                 clean before tick {})",
                self.view,
                self.bitmap.state(),
                clean.until,
            ));
        }
        for (sector, (word, then)) in words.iter().zip(&clean.words).enumerate() {
            if !then.contains(word) && !is_dirty(self.granule(sector as u64)) {
                return Err(format!(
                    "sector {sector} of {:?} is clean and shows {word:#x}; when it was clean, it \
                     showed one of {then:x?}",
                    self.view
                ));
            }
        }
        Ok(())
    }
}

impl Clean {
    fn since(oracle: &Oracle, view: &View, began: Tick) -> Self {
        let words = (0..oracle.sectors(view)).map(|at| oracle.possible(view, at, began)).collect();
        Self { until: oracle.now, words, owed: BTreeMap::new() }
    }
}
