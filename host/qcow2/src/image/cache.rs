//! The cache of L2 slices: bounded, looked up without a lock.
//!
//! A slice is a part of an L2 table, at most 4 KiB. Slices are numbered through the virtual disk and
//! live in sets of [`WAYS`] places; a slice's number says its set, so that neighbours never displace
//! each other. A reader checks the place's version before and after (a sequence lock); writers of a set
//! exclude each other by its mutex. What is dirty stays until it has been written.

use std::collections::BTreeSet;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Places of a set; their tags fill a cache line.
const WAYS: usize = 8;
/// Most bytes of a slice.
const SLICE_BYTES_MAX: u64 = 4096;
/// How often a reader that met a writer tries again before it takes the mutex.
const TRIES: u32 = 64;

/// All sets.
pub(super) struct Cache {
    sets: Box<[Set]>,
    slice_words: usize,
    /// Numbers of dirty slices, in order.
    dirty: Mutex<BTreeSet<u64>>,
}

#[repr(align(64))]
#[derive(Default)]
struct Set {
    /// Slice number + 1 of each place; 0 if it is empty.
    tags: [AtomicU64; WAYS],
    ways: [Way; WAYS],
    /// Held by whoever changes the set.
    change: Mutex<()>,
}

#[derive(Default)]
struct Way {
    /// Odd while words or tag change.
    version: AtomicU64,
    words: OnceLock<Box<[AtomicU64]>>,
    /// Read since the clock's hand passed.
    used: AtomicBool,
    /// Has an entry that is not valid.
    suspect: AtomicBool,
    /// 0 if the container has these words, else the generation of the last change.
    dirty: AtomicU64,
}

/// A slice as it was at one time, to be written.
pub(super) struct DirtySlice {
    pub(super) number: u64,
    pub(super) generation: u64,
    pub(super) words: Vec<u64>,
}

/// What [`Cache::insert`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    Done,
    /// All places of the set are dirty.
    AllDirty,
}

impl Cache {
    /// Of at most so many bytes, at least one set, for tables of this size.
    pub(super) fn new(cache_bytes: u64, table_bytes: u64) -> Self {
        let slice_bytes = table_bytes.min(SLICE_BYTES_MAX);
        let sets = (cache_bytes / slice_bytes / WAYS as u64).max(1);
        let sets = 1 << sets.ilog2();
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            slice_words: (slice_bytes / 8) as usize,
            dirty: Mutex::default(),
        }
    }

    /// 64-bit words of a slice.
    pub(super) fn slice_words(&self) -> usize {
        self.slice_words
    }

    /// Reads words of a slice; `None` if it is not there. `f` may see words that change under it; what
    /// it returns then is dropped and it runs again. It gets whether some entry is not valid.
    pub(super) fn read<R>(
        &self,
        number: u64,
        mut f: impl FnMut(&[AtomicU64], bool) -> R,
    ) -> Option<R> {
        let set = self.set(number);
        for _ in 0..TRIES {
            let place = set.place(number)?;
            let way = &set.ways[place];
            let before = way.version.load(Ordering::Acquire);
            if before.is_multiple_of(2) && set.holds(place, number) {
                let Some(words) = way.words.get() else { continue };
                let result = f(words, way.suspect.load(Ordering::Relaxed));
                fence(Ordering::Acquire);
                if way.version.load(Ordering::Relaxed) == before {
                    if !way.used.load(Ordering::Relaxed) {
                        way.used.store(true, Ordering::Relaxed);
                    }
                    return Some(result);
                }
            }
            spin_loop();
        }
        let _change = set.lock();
        let way = set.find(number)?;
        way.words.get().map(|words| f(words, way.suspect.load(Ordering::Relaxed)))
    }

    /// Whether the slice is there.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.set(number).find(number).is_some()
    }

    /// Changes words of a slice, in `generation`; `None` if it is not there.
    pub(super) fn change<R>(
        &self,
        number: u64,
        generation: u64,
        f: impl FnOnce(&[AtomicU64]) -> R,
    ) -> Option<R> {
        let set = self.set(number);
        let _change = set.lock();
        let way = set.find(number)?;
        let words = way.words.get()?;
        let result = way.write(|| f(words));
        if way.dirty.swap(generation, Ordering::Relaxed) == 0 {
            self.dirty().insert(number);
        }
        Some(result)
    }

    /// Adds a slice that is not there, in the place of one that is clean.
    pub(super) fn insert(&self, number: u64, content: &[u64], suspect: bool) -> Inserted {
        let set = self.set(number);
        let _change = set.lock();
        let Some((place, way)) = set.victim() else { return Inserted::AllDirty };
        let words =
            way.words.get_or_init(|| (0..self.slice_words).map(|_| AtomicU64::new(0)).collect());
        way.write(|| {
            for (word, &value) in words.iter().zip(content) {
                word.store(value, Ordering::Relaxed);
            }
            way.suspect.store(suspect, Ordering::Relaxed);
            set.tags[place].store(number + 1, Ordering::Relaxed);
        });
        way.used.store(true, Ordering::Relaxed);
        Inserted::Done
    }

    /// Numbers of the dirty slices, in order.
    pub(super) fn dirty_numbers(&self) -> Vec<u64> {
        self.dirty().iter().copied().collect()
    }

    /// Whether any slice is dirty.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty().is_empty()
    }

    /// A dirty slice as it is now; `None` if it is not dirty any more.
    pub(super) fn copy_dirty(&self, number: u64) -> Option<DirtySlice> {
        let set = self.set(number);
        let _change = set.lock();
        let way = set.find(number)?;
        let generation = way.dirty.load(Ordering::Relaxed);
        if generation == 0 {
            return None;
        }
        let words = way.words.get()?.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        Some(DirtySlice { number, generation, words })
    }

    /// The slice as it was in `generation` is durable: it is clean unless it has changed since.
    pub(super) fn written(&self, number: u64, generation: u64) {
        let set = self.set(number);
        let _change = set.lock();
        let Some(way) = set.find(number) else { return };
        if way.dirty.load(Ordering::Relaxed) == generation {
            way.dirty.store(0, Ordering::Relaxed);
            self.dirty().remove(&number);
        }
    }

    fn set(&self, number: u64) -> &Set {
        &self.sets[(number as usize) & (self.sets.len() - 1)]
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn find(&self, number: u64) -> Option<&Way> {
        self.place(number).map(|place| &self.ways[place])
    }

    #[inline]
    fn place(&self, number: u64) -> Option<usize> {
        (0..WAYS).find(|&place| self.holds(place, number))
    }

    #[inline]
    fn holds(&self, place: usize, number: u64) -> bool {
        self.tags[place].load(Ordering::Relaxed) == number + 1
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty place, else a clean one that was not read since the last look, else a clean one.
    fn victim(&self) -> Option<(usize, &Way)> {
        let empty = self.tags.iter().position(|tag| tag.load(Ordering::Relaxed) == 0);
        let clean = |&place: &usize| self.ways[place].dirty.load(Ordering::Relaxed) == 0;
        let unread = |&place: &usize| !self.ways[place].used.swap(false, Ordering::Relaxed);
        let place = empty
            .or_else(|| (0..WAYS).filter(clean).find(unread))
            .or_else(|| (0..WAYS).find(clean))?;
        Some((place, &self.ways[place]))
    }
}

impl Way {
    /// Runs a change of words or tag; the caller holds the set's mutex.
    fn write<R>(&self, change: impl FnOnce() -> R) -> R {
        let before = self.version.load(Ordering::Relaxed);
        self.version.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let result = change();
        self.version.store(before + 2, Ordering::Release);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(cache: &Cache, number: u64, index: usize) -> Option<u64> {
        cache.read(number, |words, _| words[index].load(Ordering::Relaxed))
    }

    #[test]
    fn a_full_set_displaces_what_is_clean_only() {
        let cache = Cache::new(0, 512);
        for number in 0..8 {
            assert_eq!(cache.insert(number, &[number; 64], false), Inserted::Done);
            cache.change(number, 1, |words| words[0].store(9, Ordering::Relaxed)).expect("there");
        }
        assert_eq!(cache.insert(8, &[8; 64], false), Inserted::AllDirty);
        let copy = cache.copy_dirty(3).expect("dirty");
        assert_eq!((copy.words[0], copy.words[1]), (9, 3));
        cache.change(3, 2, |_| ()).expect("there");
        cache.written(3, copy.generation);
        assert_eq!(cache.insert(8, &[8; 64], false), Inserted::AllDirty, "changed since");
        cache.written(3, 2);
        assert_eq!(cache.insert(8, &[8; 64], false), Inserted::Done);
        assert_eq!(word(&cache, 8, 5), Some(8));
        assert_eq!(word(&cache, 3, 5), None);
        assert_eq!(cache.dirty_numbers(), [0, 1, 2, 4, 5, 6, 7]);
    }

    #[test]
    fn the_bound_holds() {
        let cache = Cache::new(1 << 20, 65536);
        assert_eq!(cache.sets.len() * WAYS * cache.slice_words() * 8, 1 << 20);
        assert_eq!(Cache::new(1, 1 << 21).sets.len(), 1);
    }

    #[test]
    fn readers_see_both_words_of_an_entry_or_neither() {
        let cache = Cache::new(0, 512);
        cache.insert(0, &[0; 64], false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for value in 1..50_000 {
                    let store = |words: &[AtomicU64]| {
                        words[0].store(value, Ordering::Relaxed);
                        words[1].store(value, Ordering::Relaxed);
                    };
                    cache.change(0, 1, store).expect("there");
                }
            });
            while !writer.is_finished() {
                let pair = cache.read(0, |words, _| {
                    (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed))
                });
                let (first, second) = pair.expect("there");
                assert_eq!(first, second);
            }
        });
    }
}
