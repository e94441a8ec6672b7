//! What every view may show by now, from what was asked and answered alone.
//!
//! Each written sector is filled with a word that names its write and its place. A write is possible
//! from its beginning, certain from its successful end, and gone once a write that began after that
//! end has itself ended; a failed one may have changed any of its sectors. A change in a node may show
//! in whatever stands on it. Points at which nothing is in flight settle what is known.
//!
//! Ticks count what is noted here; simulated time stands still while tasks run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::shape::{Shape, Shows, View};

pub(super) type Tick = u64;

/// Bits of a word that name the sector.
const PLACE_BITS: u32 = 12;
/// Words up to here are of what was there from the start.
const FIRST_WRITE: u64 = 16;

/// Names a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WriteId(pub(super) u64);

/// The word of a write's sector; 0 is nobody's.
pub(super) fn word(write: WriteId, sector: u64) -> u64 {
    write.0 << PLACE_BITS | sector
}

/// Of what is there from the start.
pub(super) fn first_word(disk: u64, sector: u64) -> u64 {
    word(WriteId(1 + disk % (FIRST_WRITE - 1)), sector)
}

/// The write that a word names, unless it is damage or nobody's.
pub(super) fn write_of(word: u64) -> Option<WriteId> {
    let write = word >> PLACE_BITS;
    (write >= FIRST_WRITE && word >> 48 == 0).then_some(WriteId(write))
}

/// The sector that a write's word names.
pub(super) fn sector_of(word: u64) -> u64 {
    word & ((1 << PLACE_BITS) - 1)
}

pub(super) fn is_damage(word: u64) -> bool {
    word >> 48 == 0xdead
}

/// Who changes something.
#[derive(Clone, Debug)]
pub(super) enum By {
    Drive(String),
    Node(String),
    /// Writes to a node what another one shows: that, and all that stands on it, stays as it is.
    Proven {
        from: String,
        to: String,
    },
}

/// What a change leaves in a sector.
#[derive(Clone, Debug)]
pub(super) enum Leaves {
    Words,
    Zeros,
    /// What another view shows meanwhile.
    CopyOf(View),
    Damage(u64),
}

struct Write {
    sectors: Range<u64>,
    by: By,
    leaves: Leaves,
    /// Of a copy that has ended, by sector.
    copied: Vec<BTreeSet<u64>>,
    start: Tick,
    end: Option<Tick>,
    /// It has changed all of its sectors.
    is_certain: bool,
    /// It was answered that it is on the medium.
    is_durable: bool,
}

#[derive(Clone, Default)]
struct History {
    settled_at: Tick,
    /// By sector; more than one word if the view went elsewhere since.
    settled: Vec<BTreeSet<u64>>,
    /// Writes since.
    writes: BTreeMap<WriteId, Linked>,
}

/// How a write shows in a view, whatever the graph was while it was under way.
#[derive(Clone, Copy)]
struct Linked {
    /// Once it has ended, nothing older does.
    is_strong: bool,
    /// It marks the view's bitmaps.
    is_owed: bool,
}

impl History {
    /// It may be this one or the other.
    fn join(&mut self, other: &Self) {
        for (words, more) in self.settled.iter_mut().zip(&other.settled) {
            words.extend(more);
        }
        let doubtful = Linked { is_strong: false, is_owed: false };
        self.writes.values_mut().for_each(|linked| *linked = doubtful);
        self.writes.extend(other.writes.keys().map(|id| (*id, doubtful)));
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Oracle {
    pub(super) now: Tick,
    next_write: u64,
    writes: BTreeMap<WriteId, Write>,
    histories: BTreeMap<View, History>,
    /// The graph that is; during a change, that which is to be as well.
    shapes: Vec<Shape>,
    /// What counts is what is on the medium.
    pub(super) has_crashed: bool,
    /// The drive that the change lets show something else.
    moving: Option<String>,
}

impl Oracle {
    pub(super) fn new(shape: Shape) -> Self {
        Self { now: 1, next_write: FIRST_WRITE, shapes: vec![shape], ..Self::default() }
    }

    /// A view that shows `words`.
    pub(super) fn add_view(&mut self, view: View, words: Vec<u64>) {
        let settled = words.into_iter().map(|word| BTreeSet::from([word])).collect();
        let history = History { settled_at: self.now, settled, ..History::default() };
        self.histories.insert(view, history);
    }

    pub(super) fn views(&self) -> Vec<View> {
        self.histories.keys().cloned().collect()
    }

    pub(super) fn sectors(&self, view: &View) -> u64 {
        self.histories.get(view).map_or(0, |history| history.settled.len() as u64)
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shapes[0]
    }

    pub(super) fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// How a change shows, in whatever the graph may be: at least, and at most.
    pub(super) fn shows(&self, by: &By, view: &View) -> (Shows, Shows) {
        if let (By::Drive(drive), View::Drive(shown)) = (by, view)
            && drive == shown
        {
            let is_moving = self.moving.as_ref() == Some(drive);
            return (if is_moving { Shows::Not } else { Shows::Fully }, Shows::Fully);
        }
        let all = self.shapes.iter().map(|shape| match by {
            By::Drive(drive) => shape.shows(shape.root(drive), view),
            By::Node(node) => shape.shows(node, view),
            By::Proven { from, .. } if shape.shows(from, view) != Shows::Not => Shows::Not,
            By::Proven { to, .. } => shape.shows(to, view),
        });
        let all: Vec<Shows> = all.collect();
        let least = all.iter().min().copied().unwrap_or(Shows::Not);
        (least, all.iter().max().copied().unwrap_or(Shows::Not))
    }

    /// A change begins.
    pub(super) fn begin(&mut self, by: By, sectors: Range<u64>, leaves: Leaves) -> WriteId {
        let id = WriteId(self.next_write);
        self.next_write += 1;
        let (start, end, is_certain) = (self.tick(), None, false);
        let (copied, is_durable) = (Vec::new(), false);
        let write = Write { sectors, by, leaves, copied, start, end, is_certain, is_durable };
        self.writes.insert(id, write);
        self.link(id);
        id
    }

    /// Notes a write in all views in which it may show.
    fn link(&mut self, id: WriteId) {
        let Some(write) = self.writes.get(&id) else { return };
        let by = write.by.clone();
        for view in self.views() {
            let (least, most) = self.shows(&by, &view);
            if most == Shows::Not {
                continue;
            }
            let Some(history) = self.histories.get_mut(&view) else { continue };
            let is_strong = least == Shows::Fully;
            let is_owed = least != Shows::Not;
            let linked = history.writes.entry(id).or_insert(Linked { is_strong, is_owed });
            linked.is_strong &= is_strong;
            linked.is_owed &= is_owed;
        }
    }

    /// A change has ended.
    pub(super) fn end(&mut self, id: WriteId, is_certain: bool) {
        let end = self.tick();
        let copied = match self.writes.get(&id) {
            Some(Write { leaves: Leaves::CopyOf(view), sectors, start, .. }) => {
                let (view, start) = (view.clone(), *start);
                sectors.clone().map(|sector| self.possible(&view, sector, start)).collect()
            }
            _ => Vec::new(),
        };
        if let Some(write) = self.writes.get_mut(&id) {
            (write.end, write.is_certain, write.copied) = (Some(end), is_certain, copied);
        }
    }

    /// Something is being damaged.
    pub(super) fn damage(&mut self, node: &str, sectors: Range<u64>, word: u64) -> WriteId {
        self.begin(By::Node(node.to_owned()), sectors, Leaves::Damage(word))
    }

    /// A write that has ended is on the medium.
    pub(super) fn set_durable(&mut self, id: WriteId) {
        if let Some(write) = self.writes.get_mut(&id) {
            write.is_durable = true;
        }
    }

    /// Sectors, start, and whether it is under way.
    pub(super) fn write(&self, id: WriteId) -> Option<(Range<u64>, Tick, bool)> {
        let write = self.writes.get(&id)?;
        Some((write.sectors.clone(), write.start, write.end.is_none()))
    }

    /// Whether a write marks the bitmaps of a view.
    pub(super) fn is_owed(&self, id: WriteId, view: &View) -> bool {
        let history = self.histories.get(view);
        history.and_then(|history| history.writes.get(&id)).is_some_and(|linked| linked.is_owed)
    }

    /// What a view may have shown at any moment since `since`.
    pub(super) fn possible(&self, view: &View, sector: u64, since: Tick) -> BTreeSet<u64> {
        self.possible_to(view, sector, since, 8)
    }

    fn possible_to(&self, view: &View, sector: u64, since: Tick, depth: u32) -> BTreeSet<u64> {
        let mut words = BTreeSet::new();
        let Some(history) = self.histories.get(view) else { return words };
        let touching: Vec<(WriteId, &Write, bool)> = history
            .writes
            .iter()
            .filter_map(|(id, linked)| Some((*id, self.writes.get(id)?, linked.is_strong)))
            .filter(|(_, write, _)| write.sectors.contains(&sector))
            .collect();
        let is_gone = |end: Tick| {
            touching.iter().any(|(_, other, strong)| {
                *strong
                    && other.is_certain
                    && other.start > end
                    && other.end.is_some_and(|other_end| {
                        other_end < since || (self.has_crashed && other.is_durable)
                    })
            })
        };
        if !is_gone(history.settled_at) {
            words.extend(history.settled.get(sector as usize).into_iter().flatten());
        }
        for (id, write, _) in &touching {
            if write.end.is_some_and(is_gone) {
                continue;
            }
            match &write.leaves {
                Leaves::Words => drop(words.insert(word(*id, sector))),
                Leaves::Zeros => drop(words.insert(0)),
                Leaves::Damage(word) => drop(words.insert(*word)),
                Leaves::CopyOf(_) if write.end.is_some() => {
                    let at = (sector - write.sectors.start) as usize;
                    words.extend(write.copied.get(at).into_iter().flatten());
                }
                Leaves::CopyOf(from) if depth > 0 => {
                    words.extend(self.possible_to(from, sector, write.start, depth - 1));
                }
                Leaves::CopyOf(_) => {}
            }
        }
        words
    }

    /// # Errors
    /// A view shows, or showed since `since`, what it may not.
    pub(super) fn check(
        &self,
        view: &View,
        first: u64,
        words: &[u64],
        since: Tick,
    ) -> Result<(), String> {
        for (sector, word) in (first..).zip(words) {
            let possible = self.possible(view, sector, since);
            if !possible.contains(word) {
                return Err(format!(
                    "{view:?} shows {word:#x} at sector {sector}, not one of {possible:x?}"
                ));
            }
        }
        Ok(())
    }

    /// Nothing is in flight, and this is what all views show.
    ///
    /// # Errors
    /// A view shows what it may not.
    pub(super) fn settle(&mut self, shown: &BTreeMap<View, Vec<u64>>) -> Result<(), String> {
        let now = self.tick();
        for write in self.writes.values_mut().filter(|write| write.end.is_none()) {
            write.end = Some(now);
        }
        let now = self.tick();
        for (view, words) in shown {
            self.check(view, 0, words, now)?;
        }
        for (view, words) in shown {
            self.add_view(view.clone(), words.clone());
        }
        self.writes.clear();
        Ok(())
    }

    /// A change of the graph begins. The first view of `goes` comes with it, and shows what the second
    /// one shows; or it goes there, from what it shows now.
    pub(super) fn begin_change(&mut self, to: Shape, goes: Option<(View, View)>) {
        self.tick();
        self.shapes = vec![self.shapes.swap_remove(0), to];
        if let Some((View::Drive(drive), _)) = &goes {
            self.moving = Some(drive.clone());
        }
        if let Some((view, from)) = goes
            && let Some(there) = self.histories.get(&from)
        {
            let mut history = there.clone();
            if let Some(before) = self.histories.get(&view) {
                history.join(before);
            }
            self.histories.insert(view, history);
        }
        let under_way = self.writes.iter().filter(|(_, write)| write.end.is_none());
        let under_way: Vec<WriteId> = under_way.map(|(id, _)| *id).collect();
        under_way.into_iter().for_each(|id| self.link(id));
    }

    /// It has ended; a view that was to come with it is gone if it failed.
    pub(super) fn end_change(&mut self, succeeded: bool, new: Option<&View>) {
        self.tick();
        self.moving = None;
        let shape = self.shapes.swap_remove(usize::from(succeeded));
        self.shapes = vec![shape];
        if let (false, Some(view)) = (succeeded, new) {
            self.histories.remove(view);
        }
    }
}
