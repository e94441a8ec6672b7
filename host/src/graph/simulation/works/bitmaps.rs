//! What is owed to bitmaps: a clean sector shows what it showed when the bitmap began, and no guest has written it
//! since; where nothing failed, a dirty one has been touched by somebody whose writes its view shows.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::ledger::Ledger;
use super::shape::{Shape, is_store};
use super::world::{World, of_drive, of_node};
use crate::bitmap::{Bitmap, BitmapState};
use crate::graph::{BitmapRef, BitmapScope};
use crate::io::sim::SECTOR;

/// A bitmap of which all this is known.
pub(super) struct Tracked {
    pub(super) scope: BitmapScope,
    pub(super) bitmap: Arc<Bitmap>,
    /// Words that clean sectors may show, any of these; empty if nobody knows.
    pub(super) references: Vec<Vec<u64>>,
    /// When it was clean, at some moment of this.
    pub(super) since: Range<u64>,
    /// Sectors that may be dirty beside those that have been touched since.
    may_be_dirty: BTreeSet<u64>,
    /// Any may.
    may_all_be_dirty: bool,
}

/// What jobs of a round may have written, beside the views that they leave as they are.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) store: String,
    /// What shows this sees nothing of it.
    pub(super) exempt: Option<String>,
}

/// What has happened in a round.
pub(super) struct Happened {
    pub(super) shapes: Vec<Shape>,
    pub(super) targets: Vec<Target>,
    /// Something has failed, or was somebody's word: anything may be dirty.
    pub(super) anything: bool,
}

impl Tracked {
    /// One that is clean, of a view that shows these words.
    pub(super) fn new(scope: BitmapScope, bitmap: Arc<Bitmap>, words: Vec<u64>, now: u64) -> Self {
        Self {
            scope,
            bitmap,
            references: vec![words],
            since: now..now,
            may_be_dirty: BTreeSet::new(),
            may_all_be_dirty: false,
        }
    }

    pub(super) fn reference(&self) -> BitmapRef {
        let name = self.bitmap.name();
        match &self.scope {
            BitmapScope::Drive(drive) => BitmapRef::of_drive(drive, name.as_str()),
            BitmapScope::Node(node) => BitmapRef::of_node(node, name.as_str()),
        }
    }

    /// It is clean now; its view shows these words.
    pub(super) fn begin(&mut self, words: Vec<u64>, now: u64) {
        *self = Self::new(self.scope.clone(), Arc::clone(&self.bitmap), words, now);
    }

    /// It is dirty where its view has been changed since some moment of `since`, when it showed one of these.
    pub(super) fn go_on_from(&mut self, references: Vec<Vec<u64>>, since: Range<u64>) {
        (self.references, self.since) = (references, since);
    }

    /// Anything may be dirty.
    pub(super) fn expect_all(&mut self) {
        self.may_all_be_dirty = true;
    }

    /// These may be dirty.
    pub(super) fn expect(&mut self, sectors: &[u64]) {
        self.may_be_dirty.extend(sectors);
    }

    /// Its view shows the writes of this drive.
    fn is_of(&self, drive: &str, happened: &Happened) -> bool {
        match &self.scope {
            BitmapScope::Drive(id) => **id == *drive,
            BitmapScope::Node(node) => happened.shapes.iter().any(|shape| shape.sees(node, drive)),
        }
    }

    /// Takes note of what has happened since the last time.
    pub(super) fn note(&mut self, happened: &Happened, ledgers: &[(&str, &Ledger)]) {
        self.may_all_be_dirty |= happened.anything;
        if let BitmapScope::Node(node) = &self.scope {
            let is_seen = |target: &Target| {
                happened.shapes.iter().any(|shape| {
                    let exempt = target.exempt.as_ref();
                    shape.shows(node, &target.store)
                        && !exempt.is_some_and(|exempt| shape.shows(node, exempt))
                })
            };
            self.may_all_be_dirty |= happened.targets.iter().any(is_seen);
        }
        // What a view gains counts as changed.
        let sectors = self.bitmap.size_bytes() / SECTOR as u64;
        let before = self.references.iter().map(Vec::len).min().map_or(sectors, |len| len as u64);
        self.may_be_dirty.extend(before..sectors);
        for (drive, ledger) in ledgers {
            if self.is_of(drive, happened) {
                self.may_be_dirty.extend(ledger.touched_since(self.since.start));
            }
        }
    }

    /// # Errors
    /// A sector that is clean and has changed, or was dirtied by nobody.
    pub(super) fn check(&self, shown: &[u64], ledger: Option<&Ledger>) -> Result<(), String> {
        if self.bitmap.state() != BitmapState::Recording {
            return Err(format!("{} is {}", self.reference(), self.bitmap.state()));
        }
        let sector_bytes = SECTOR as u64;
        let granule = self.bitmap.granularity().bytes() / sector_bytes;
        for (sector, word) in (0..).zip(shown) {
            let told = |what: &str| Err(format!("sector {sector} of {} {what}", self.reference()));
            let is_same = |words: &Vec<u64>| words.get(sector as usize) == Some(word);
            if self.bitmap.test(sector * sector_bytes) {
                let first = sector / granule * granule;
                let mut near = self.may_be_dirty.range(first..first + granule);
                if !self.may_all_be_dirty && near.next().is_none() {
                    return told("is dirty, and nobody has touched it");
                }
            } else if !self.references.is_empty() && !self.references.iter().any(is_same) {
                return told(&format!("is clean, and shows {word:#x}: it has changed"));
            } else if ledger.is_some_and(|it| it.is_written_since(sector, self.since.end)) {
                return told("is clean, and was written");
            }
        }
        Ok(())
    }
}

impl World {
    /// What is known of a bitmap.
    pub(super) fn tracked<T>(
        &self,
        scope: &BitmapScope,
        name: &str,
        look: impl FnOnce(&mut Tracked) -> T,
    ) -> Option<T> {
        let mut all = self.tracked.borrow_mut();
        let is_it = |it: &&mut Tracked| it.scope == *scope && it.bitmap.name().as_str() == name;
        all.iter_mut().find(is_it).map(look)
    }

    /// Words that clean sectors of a drive's bitmap may show.
    pub(super) fn references(&self, id: &str, name: &str) -> Vec<Vec<u64>> {
        self.tracked(&of_drive(id), name, |it| it.references.clone()).unwrap_or_default()
    }

    /// When bitmap `j` of a drive was clean.
    pub(super) fn since(&self, id: &str) -> Range<u64> {
        self.tracked(&of_drive(id), "j", |it| it.since.clone()).unwrap_or_default()
    }

    /// Bitmap `j` of a drive counts from another moment on.
    pub(super) fn go_on_from(&self, id: &str, references: Vec<Vec<u64>>, since: Range<u64>) {
        self.tracked(&of_drive(id), "j", |it| it.go_on_from(references, since));
    }

    /// Anything may be dirty in bitmap `j` of a drive.
    pub(super) fn expect_all_of(&self, id: &str) {
        self.tracked(&of_drive(id), "j", Tracked::expect_all);
    }

    /// What has happened in this round, which ends.
    pub(super) fn take_happened(&self, has_failed: bool) -> Happened {
        Happened {
            shapes: self.changer.take_shapes(),
            targets: self.targets.take(),
            anything: has_failed || self.trusts.take(),
        }
    }

    /// Stores of the graph that have no bitmap yet.
    pub(super) fn without_bitmap(&self) -> Vec<String> {
        let graph = self.cell.load();
        let stores = graph.nodes().iter().map(|node| node.name()).filter(|node| is_store(node));
        let has_bitmap = |store: &str| graph.find_bitmap(&of_node(store), "n").is_some();
        stores.filter(|store| !has_bitmap(store)).map(str::to_owned).collect()
    }
}
