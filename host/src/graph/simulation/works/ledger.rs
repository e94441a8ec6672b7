//! What a drive may show, by what its guests asked for and were answered.

use std::collections::BTreeSet;
use std::ops::Range;

use super::super::oracle::{WriteId, is_damage, word};

struct Written {
    id: WriteId,
    sectors: Range<u64>,
    is_zero: bool,
    start: u64,
    /// Once it has succeeded.
    end: Option<u64>,
    /// It was answered that it is on the medium.
    is_durable: bool,
    has_failed: bool,
}

impl Written {
    fn word(&self, sector: u64) -> u64 {
        if self.is_zero { 0 } else { word(self.id, sector) }
    }
}

/// See the module. Ticks say what came before what.
pub(super) struct Ledger {
    /// What it showed when nothing was in flight the last time, durably.
    first: Vec<u64>,
    writes: Vec<Written>,
    /// Those that had failed by then: what they wrote may be on the medium, although it was not seen.
    ghosts: Vec<Written>,
    /// When the last flush began that has succeeded.
    flushed: u64,
    /// Somebody was told that he may alter what it shows.
    is_open: bool,
}

impl Ledger {
    pub(super) fn new(first: Vec<u64>) -> Self {
        let (writes, ghosts) = (Vec::new(), Vec::new());
        Self { first, writes, ghosts, flushed: 0, is_open: false }
    }

    pub(super) fn begin(&mut self, id: WriteId, sectors: Range<u64>, is_zero: bool, start: u64) {
        let (end, is_durable, has_failed) = (None, false, false);
        self.writes.push(Written { id, sectors, is_zero, start, end, is_durable, has_failed });
    }

    /// A write has succeeded.
    pub(super) fn end(&mut self, id: WriteId, end: u64, is_durable: bool) {
        if let Some(write) = self.writes.iter_mut().find(|write| write.id == id) {
            (write.end, write.is_durable) = (Some(end), is_durable);
        }
    }

    /// A write has failed.
    pub(super) fn fail(&mut self, id: WriteId) {
        self.writes.iter_mut().filter(|write| write.id == id).for_each(|it| it.has_failed = true);
    }

    /// A flush that began then has succeeded.
    pub(super) fn flush_succeeded(&mut self, began: u64) {
        self.flushed = self.flushed.max(began);
    }

    /// What it shows may be altered beside its guests, until it is settled.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// It shows this, durably, and nothing is in flight. If something `fails`, those whose ends nobody has seen may
    /// have, too.
    pub(super) fn settle(&mut self, shown: Vec<u64>, now: u64, fails: bool) {
        let mut ghosts = std::mem::take(&mut self.ghosts);
        let is_ghost = |it: &Written| it.has_failed || (fails && it.end.is_none());
        ghosts.extend(self.writes.drain(..).filter(is_ghost));
        *self = Self { flushed: now, ghosts, ..Self::new(shown) };
    }

    /// A host has found it so. What it shows is on the medium.
    pub(super) fn begin_anew(&mut self, shown: Vec<u64>, now: u64) {
        *self = Self { flushed: now, ..Self::new(shown) };
    }

    fn touching(&self, sector: u64) -> impl Iterator<Item = &Written> {
        self.writes.iter().filter(move |write| write.sectors.contains(&sector))
    }

    /// What a sector may show at some moment of `at`; `lasts` says of which writes nothing older is left.
    fn possible(
        &self,
        sector: u64,
        at: Range<u64>,
        lasts: impl Fn(&Written) -> bool,
    ) -> BTreeSet<u64> {
        let is_gone = |end: u64| self.touching(sector).any(|it| it.start > end && lasts(it));
        let mut possible = BTreeSet::new();
        if !is_gone(0) {
            possible.extend(self.first.get(sector as usize));
        }
        for write in self.touching(sector).filter(|write| write.start < at.end) {
            if !write.end.is_some_and(is_gone) {
                possible.insert(write.word(sector));
            }
        }
        possible
    }

    /// Checks what it showed at some moment of `at`: sectors from `first` on. Where something has failed they may be
    /// damaged.
    ///
    /// # Errors
    /// A sector that nobody wrote so.
    pub(super) fn check(
        &self,
        (first, words): (u64, &[u64]),
        at: &Range<u64>,
        may_be_damaged: bool,
    ) -> Result<(), String> {
        let lasts = |write: &Written| write.end.is_some_and(|end| end < at.start);
        let may_be = |_, word| may_be_damaged && is_damage(word);
        self.check_all((first, words), at, lasts, may_be)
    }

    /// Checks what is left of it after a crash, or after an end in order, which loses nothing.
    ///
    /// # Errors
    /// A sector that shows what nobody wrote, or not what was flushed.
    pub(super) fn check_left(&self, words: &[u64]) -> Result<(), String> {
        let lasts =
            |write: &Written| write.is_durable || write.end.is_some_and(|end| end < self.flushed);
        let is_ghost = |sector: u64, word: u64| {
            let mut ghosts = self.ghosts.iter().filter(|it| it.sectors.contains(&sector));
            ghosts.any(|ghost| ghost.word(sector) == word)
        };
        self.check_all((0, words), &(self.flushed..u64::MAX), lasts, is_ghost)
    }

    fn check_all(
        &self,
        (first, words): (u64, &[u64]),
        at: &Range<u64>,
        lasts: impl Fn(&Written) -> bool + Copy,
        may_be: impl Fn(u64, u64) -> bool,
    ) -> Result<(), String> {
        if self.is_open {
            return Ok(());
        }
        for (sector, word) in (first..).zip(words) {
            let possible = self.possible(sector, at.clone(), lasts);
            if !possible.contains(word) && !may_be(sector, *word) {
                return Err(format!("sector {sector} is {word:#x}, not one of {possible:x?}"));
            }
        }
        Ok(())
    }

    /// Whether a write of a sector has succeeded that began at `since` or later.
    pub(super) fn is_written_since(&self, sector: u64, since: u64) -> bool {
        self.touching(sector).any(|write| write.start >= since && write.end.is_some())
    }

    /// The sectors of which a write may have changed something at `since` or later.
    pub(super) fn touched_since(&self, since: u64) -> impl Iterator<Item = u64> {
        let is_late = move |write: &&Written| write.end.is_none_or(|end| end >= since);
        self.writes.iter().filter(is_late).flat_map(|write| write.sectors.clone())
    }
}
