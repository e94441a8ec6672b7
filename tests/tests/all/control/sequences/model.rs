//! What is known of a disk, its bitmaps and checkpoints, whatever commands did.

use std::collections::{BTreeMap, BTreeSet};

/// What a command that succeeds does to the model.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    None,
    AddBitmap(String, bool),
    RemoveBitmap(String),
    Clear(String),
    Record(String, bool),
    Merge(String, String),
    Freeze(Vec<String>),
    Thaw(Vec<String>, bool),
    Checkpoint(String, Vec<String>),
    EndCheckpoint(String, bool),
}

/// A bitmap of the drive, in blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmap {
    pub(super) records: bool,
    pub(super) dirty: BTreeSet<u64>,
    pub(super) frozen: Option<BTreeSet<u64>>,
}

#[derive(Clone)]
pub(super) struct Checkpoint {
    pub(super) bitmaps: Vec<String>,
    /// What the drive showed.
    pub(super) then: Vec<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Model {
    /// By block, the number that was written there.
    pub(super) blocks: Vec<u64>,
    pub(super) bitmaps: BTreeMap<String, Bitmap>,
    pub(super) checkpoints: BTreeMap<String, Checkpoint>,
}

impl Model {
    pub(super) fn write(&mut self, block: u64, number: u64) {
        self.blocks[block as usize] = number;
        for bitmap in self.bitmaps.values_mut().filter(|bitmap| bitmap.records) {
            bitmap.dirty.insert(block);
        }
    }

    pub(super) fn apply(&mut self, effect: Effect) {
        let bitmaps = &mut self.bitmaps;
        let mut with = |name: &str, act: &dyn Fn(&mut Bitmap)| {
            act(bitmaps.get_mut(name).expect("what the host has, the model has"));
        };
        let thaw = |completed: bool| {
            move |bitmap: &mut Bitmap| {
                let frozen = bitmap.frozen.take().expect("it was frozen");
                if !completed {
                    bitmap.dirty.extend(frozen);
                }
            }
        };
        let freeze = |bitmap: &mut Bitmap| bitmap.frozen = Some(std::mem::take(&mut bitmap.dirty));
        match effect {
            Effect::None => {}
            Effect::AddBitmap(name, records) => {
                bitmaps.insert(name, Bitmap { records, ..Bitmap::default() });
            }
            Effect::RemoveBitmap(name) => {
                bitmaps.remove(&name);
                let all = self.checkpoints.values_mut();
                all.for_each(|checkpoint| checkpoint.bitmaps.retain(|other| *other != name));
            }
            Effect::Clear(name) => with(&name, &|bitmap| bitmap.dirty.clear()),
            Effect::Record(name, records) => with(&name, &|bitmap| bitmap.records = records),
            Effect::Merge(from, to) => {
                let from = &bitmaps[&from];
                let shown: BTreeSet<u64> = from.shown();
                bitmaps.get_mut(&to).expect("a bitmap").dirty.extend(shown);
            }
            Effect::Freeze(names) => names.iter().for_each(|name| with(name, &freeze)),
            Effect::Thaw(names, completed) => {
                names.iter().for_each(|name| with(name, &thaw(completed)));
            }
            Effect::Checkpoint(id, names) => {
                names.iter().for_each(|name| with(name, &freeze));
                let then = self.blocks.clone();
                self.checkpoints.insert(id, Checkpoint { bitmaps: names, then });
            }
            Effect::EndCheckpoint(id, completed) => {
                let ended = self.checkpoints.remove(&id).expect("a checkpoint");
                let frozen = |name: &&String| {
                    bitmaps.get(*name).is_some_and(|bitmap| bitmap.frozen.is_some())
                };
                let names: Vec<String> = ended.bitmaps.iter().filter(frozen).cloned().collect();
                self.apply(Effect::Thaw(names, completed));
            }
        }
    }
}

impl Bitmap {
    pub(super) fn shown(&self) -> BTreeSet<u64> {
        self.dirty.iter().chain(self.frozen.iter().flatten()).copied().collect()
    }
}
