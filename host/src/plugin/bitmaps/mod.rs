//! The bitmaps of an instance: its nodes' own, which outlive a fault, and those that are lent to it.
//!
//! Nobody marks a node's own bitmap but the plugin, and a copy that it asks for clears it. Some make a view
//! (`views.rs`): they are of what the node was when the plugin was told of it, the others have the node's size.

#[cfg(test)]
mod tests;
mod views;

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockloom_abi::NodeIndex;

use super::bindings::exports::blockloom::filter::control;
use crate::bitmap::{Bitmap, BitmapError, BitmapUse, Extension, Granularity, Granules};

/// Bitmaps of one node, its own and lent.
const BITMAPS_OF_NODE_MAX: usize = 16;
/// Memory of one bitmap of a node's own, bytes: all of it is gone through within a millisecond or so.
const OWN_MAX_BYTES: u64 = 8 << 20;
/// Memory of all bitmaps that the nodes of one instance own, bytes.
const OWN_OF_INSTANCE_MAX_BYTES: u64 = 64 << 20;
/// Memory of a bitmap that is lent, bytes: it is gone through in some milliseconds at most.
const LENT_MAX_BYTES: u64 = 32 << 20;
/// Longest name of one, bytes.
const NAME_MAX_BYTES: usize = 255;

/// What is behind an index.
enum Content {
    Own(Arc<Granules>),
    /// What is lent, once it is there.
    Lent(Option<BitmapUse>),
}

impl Content {
    /// Bytes of memory.
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Own(granules) => granules.len_granules().div_ceil(8),
            Self::Lent(Some(bitmap)) => len_bytes(bitmap),
            Self::Lent(None) => 0,
        }
    }
}

fn len_bytes(bitmap: &Bitmap) -> u64 {
    bitmap.size_bytes().div_ceil(bitmap.granularity().bytes()).div_ceil(8)
}

struct Entry {
    node: NodeIndex,
    name: String,
    content: Content,
}

/// What a rule looks at.
#[derive(Clone)]
pub(super) enum Probe {
    Own(Arc<Granules>),
    Lent(Arc<Bitmap>),
}

impl Probe {
    /// Whether a granule of the range is set.
    #[inline]
    pub(super) fn any_set(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        match self {
            Self::Own(granules) => granules.ranges(offset..end).next().is_some(),
            Self::Lent(bitmap) => bitmap.ranges(offset..end).next().is_some(),
        }
    }
}

/// What is known of a node.
struct Known {
    node: NodeIndex,
    size_bytes: u64,
    /// The size that it had when the plugin was told of it: that of its view, whatever becomes of the node's.
    view_bytes: Option<u64>,
    /// What its view showed is not kept any more.
    is_lost: bool,
}

/// A bitmap of a node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) index: u32,
    /// It was not there before.
    pub(super) is_new: bool,
}

/// See the module. Names are bounded, and so is the number of bitmaps of a node.
#[derive(Default)]
pub(super) struct PluginBitmaps {
    /// A place is free again when its node has gone.
    entries: Mutex<Vec<Option<Entry>>>,
    nodes: Mutex<Vec<Known>>,
    /// Bitmaps make the view `snapshot`.
    makes_views: bool,
}

impl PluginBitmaps {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a plugin that offers the view `snapshot`, or none.
    pub(super) fn with_views(makes_views: bool) -> Self {
        Self { makes_views, ..Self::default() }
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Known>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node that may have bitmaps from now on, and its size.
    pub(super) fn add_node(&self, node: NodeIndex, size_bytes: u64) {
        let mut nodes = self.nodes();
        match nodes.iter_mut().find(|known| known.node == node) {
            Some(known) => known.size_bytes = size_bytes,
            None => nodes.push(Known { node, size_bytes, view_bytes: None, is_lost: false }),
        }
    }

    /// A bitmap of a node's own; the one that is there if it has one of this name.
    pub(super) fn own(
        &self,
        node: NodeIndex,
        name: &str,
        granularity_bytes: u64,
    ) -> Result<Owned, String> {
        let nodes = self.nodes();
        let known = nodes.iter().find(|known| known.node == node);
        let size = known.map(|known| {
            let view_bytes = known.view_bytes.filter(|_| self.is_of_view(name));
            (view_bytes.unwrap_or(known.size_bytes), known.is_lost)
        });
        drop(nodes);
        let (size_bytes, is_lost) = size.ok_or_else(|| format!("node {} is not known", node.0))?;
        let granularity =
            Granularity::from_bytes(granularity_bytes).map_err(|error| error.to_string())?;
        if name.is_empty() || name.len() > NAME_MAX_BYTES {
            return Err(format!("the name of a bitmap has 1 to {NAME_MAX_BYTES} bytes"));
        }
        let mut entries = self.lock();
        let mut known = entries.iter().enumerate();
        let known = known.find_map(|(index, entry)| {
            let entry = entry.as_ref().filter(|it| it.node == node && it.name == name)?;
            Some((number(index), &entry.content))
        });
        if let Some((index, content)) = known {
            return match content {
                Content::Own(granules) if granules.granularity() == granularity => {
                    Ok(Owned { index, is_new: false })
                }
                _ => Err(format!("there is a bitmap `{name}` already, with other granules")),
            };
        }
        let bytes = size_bytes.div_ceil(granularity_bytes).div_ceil(8);
        if bytes > OWN_MAX_BYTES {
            return Err(format!(
                "granules of {granularity_bytes} bytes would take {bytes} bytes of memory, more than \
                 {OWN_MAX_BYTES}: choose larger ones"
            ));
        }
        let owned = entries.iter().flatten().filter(|it| matches!(it.content, Content::Own(_)));
        let owned_bytes: u64 = owned.map(|entry| entry.content.len_bytes()).sum();
        if owned_bytes.saturating_add(bytes) > OWN_OF_INSTANCE_MAX_BYTES {
            return Err(format!(
                "the bitmaps of its instance would take more than {OWN_OF_INSTANCE_MAX_BYTES} bytes of \
                 memory: choose larger granules, or fewer nodes for each instance"
            ));
        }
        let granules = Granules::new(size_bytes, granularity).map_err(|error| error.to_string())?;
        if is_lost && name == "broken" {
            granules.set_all();
        }
        let content = Content::Own(Arc::new(granules));
        let index = add(&mut entries, Entry { node, name: name.to_owned(), content })?;
        Ok(Owned { index, is_new: true })
    }

    /// Takes one out.
    pub(super) fn remove(&self, index: u32) {
        if let Some(entry) = self.lock().get_mut(index as usize) {
            *entry = None;
        }
    }

    /// A node has gone, and what it had.
    pub(super) fn end_node(&self, node: NodeIndex) {
        self.nodes().retain(|known| known.node != node);
        let mut gone = Vec::new();
        for entry in self.lock().iter_mut() {
            gone.extend(entry.take_if(|entry| entry.node == node));
        }
        // What is lent is given back without the lock.
        drop(gone);
    }

    /// A node has another size. Its own bitmaps keep what they have; what is gained is clean. Those that make a view
    /// keep their size as well.
    pub(super) fn resize(&self, node: NodeIndex, size_bytes: u64) {
        self.add_node(node, size_bytes);
        let is_resized = |entry: &&mut Entry| entry.node == node && !self.is_of_view(&entry.name);
        for entry in self.lock().iter_mut().flatten().filter(is_resized) {
            if let Content::Own(granules) = &mut entry.content {
                match granules.resized(size_bytes, Extension::Clean) {
                    Ok(resized) => *granules = Arc::new(resized),
                    Err(error) => tracing::error!("bitmap `{}` of a plugin: {error}", entry.name),
                }
            }
        }
    }

    /// A bitmap that is to be lent under this name.
    pub(super) fn lend(&self, node: NodeIndex, name: &str) -> Result<u32, String> {
        let content = Content::Lent(None);
        add(&mut self.lock(), Entry { node, name: name.to_owned(), content })
    }

    /// What is lent is there.
    pub(super) fn attach(&self, index: u32, bitmap: BitmapUse) -> Result<(), String> {
        let bytes = len_bytes(&bitmap);
        if bytes > LENT_MAX_BYTES {
            return Err(format!(
                "it takes {bytes} bytes of memory, and plugins read those of {LENT_MAX_BYTES} at most: \
                 choose larger granules for it"
            ));
        }
        if let Some(Some(entry)) = self.lock().get_mut(index as usize) {
            entry.content = Content::Lent(Some(bitmap));
        }
        Ok(())
    }

    /// Words of a bitmap: what it takes to go through all of it.
    pub(super) fn words(&self, index: u32) -> u64 {
        let entries = self.lock();
        content(&entries, index).map_or(0, |content| content.len_bytes().div_ceil(8))
    }

    /// The bitmaps of a node, for the guest.
    pub(super) fn list(&self, node: NodeIndex) -> Vec<control::Bitmap> {
        let entries = self.lock();
        let of_node = entries.iter().enumerate().filter_map(|(index, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.node == node)?;
            let (granularity_bytes, owned) = match &entry.content {
                Content::Own(granules) => (granules.granularity().bytes(), true),
                Content::Lent(Some(bitmap)) => (bitmap.granularity().bytes(), false),
                Content::Lent(None) => (0, false),
            };
            let (name, index) = (entry.name.clone(), number(index));
            Some(control::Bitmap { name, index, granularity_bytes, owned })
        });
        of_node.collect()
    }

    /// Words of a bitmap for so many bytes of its view.
    pub(super) fn words_of(&self, index: u32, len: u64) -> u64 {
        match content(&self.lock(), index) {
            Some(Content::Own(granules)) => {
                len.min(granules.size_bytes()) / granules.granularity().bytes() / 64
            }
            _ => 0,
        }
    }

    /// The first run of set bytes at or after `from`: where it starts, how long it is.
    #[cfg(test)]
    fn next(&self, index: u32, from: u64) -> Option<(u64, u64)> {
        self.next_and_words(index, from).0
    }

    /// The first run of set bytes at or after `from`: where it starts, how long it is. And how many words were
    /// looked at for that.
    pub(super) fn next_and_words(&self, index: u32, from: u64) -> (Option<(u64, u64)>, u64) {
        let entries = self.lock();
        let (run, end, granularity) = match content(&entries, index) {
            Some(Content::Own(granules)) => {
                (granules.next_dirty(from), granules.size_bytes(), granules.granularity())
            }
            Some(Content::Lent(Some(bitmap))) => {
                (bitmap.next_dirty(from), bitmap.size_bytes(), bitmap.granularity())
            }
            Some(Content::Lent(None)) | None => return (None, 0),
        };
        let seen = run.as_ref().map_or(end, |run| run.end).saturating_sub(from);
        (run.map(|run| (run.start, run.end - run.start)), seen / granularity.bytes() / 64)
    }

    /// How many bytes are set.
    pub(super) fn count(&self, index: u32) -> u64 {
        match self.probe(index) {
            Some(Probe::Own(granules)) => granules.dirty_bytes(),
            Some(Probe::Lent(bitmap)) => bitmap.dirty_bytes(),
            None => 0,
        }
    }

    /// Sets in a node's own bitmap what is set in another one, as far as it goes.
    pub(super) fn merge(&self, into: u32, from: u32) -> Result<(), String> {
        self.check_alterable(into, true)?;
        let into = self
            .owned(into)
            .ok_or_else(|| format!("there is no bitmap {into} of the node's own"))?;
        let merged = match self.probe(from) {
            None => return Err(format!("there is no bitmap {from} to read")),
            Some(Probe::Own(other)) if Arc::ptr_eq(&into, &other) => Ok(()),
            // Whoever sees it sees what was set before.
            Some(Probe::Own(other)) => {
                fence(Ordering::Release);
                into.merge_from(&other)
                    .or_else(|error| mark_within(&into, error, other.ranges(ALL)))
            }
            Some(Probe::Lent(bitmap)) => {
                fence(Ordering::Release);
                let other = bitmap.read();
                let merged = other.merge_into(&into);
                merged.or_else(|error| mark_within(&into, error, other.ranges(ALL)))
            }
        };
        merged.map_err(|error| error.to_string())
    }

    /// Sets or clears a range of a node's own bitmap.
    pub(super) fn set(&self, index: u32, offset: u64, len: u64, value: bool) -> Result<(), String> {
        self.check_alterable(index, value)?;
        let entries = self.lock();
        match entries.get(index as usize).and_then(Option::as_ref) {
            Some(Entry { content: Content::Own(granules), .. }) => {
                if value {
                    // Whoever sees it sees what was set before.
                    fence(Ordering::Release);
                    granules.mark(offset, len);
                } else {
                    granules.clear_range(offset, len);
                }
                Ok(())
            }
            Some(entry) => Err(format!("bitmap `{}` is not the node's own", entry.name)),
            None => Err(format!("there is no bitmap {index}")),
        }
    }

    /// A bitmap of this node's own.
    pub(super) fn owned_by(&self, node: NodeIndex, index: u32) -> Option<Arc<Granules>> {
        match self.lock().get(index as usize)?.as_ref()? {
            Entry { node: of, content: Content::Own(granules), .. } if *of == node => {
                Some(Arc::clone(granules))
            }
            _ => None,
        }
    }

    /// A bitmap of some node's own.
    pub(super) fn owned(&self, index: u32) -> Option<Arc<Granules>> {
        match &self.lock().get(index as usize)?.as_ref()?.content {
            Content::Own(granules) => Some(Arc::clone(granules)),
            Content::Lent(_) => None,
        }
    }

    /// As if a guest had never had them.
    pub(super) fn forget(&self) {
        for entry in self.lock().iter().flatten() {
            if let Content::Own(granules) = &entry.content {
                granules.clear_range(0, u64::MAX);
            }
        }
    }

    /// What a rule may look at.
    pub(super) fn probe(&self, index: u32) -> Option<Probe> {
        match &self.lock().get(index as usize)?.as_ref()?.content {
            Content::Own(granules) => Some(Probe::Own(Arc::clone(granules))),
            Content::Lent(bitmap) => {
                bitmap.as_ref().map(|bitmap| Probe::Lent(Arc::clone(bitmap.bitmap())))
            }
        }
    }
}

const ALL: Range<u64> = 0..u64::MAX;

/// After an `error` in merging, that runs are of a bitmap of another size: marks what lies within `into`.
fn mark_within(
    into: &Granules,
    error: BitmapError,
    runs: impl Iterator<Item = Range<u64>>,
) -> Result<(), BitmapError> {
    match error {
        BitmapError::SizeMismatch { .. } => {
            runs.for_each(|run| into.mark(run.start, run.end - run.start));
            Ok(())
        }
        other => Err(other),
    }
}

fn content(entries: &[Option<Entry>], index: u32) -> Option<&Content> {
    entries.get(index as usize)?.as_ref().map(|entry| &entry.content)
}

fn number(index: usize) -> u32 {
    // Bounded by nodes and bitmaps of a node.
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn add(entries: &mut Vec<Option<Entry>>, entry: Entry) -> Result<u32, String> {
    let of_node = entries.iter().flatten().filter(|known| known.node == entry.node).count();
    if of_node >= BITMAPS_OF_NODE_MAX {
        return Err(format!("a node has at most {BITMAPS_OF_NODE_MAX} bitmaps of its plugin"));
    }
    let free = entries.iter().position(Option::is_none).unwrap_or(entries.len());
    match entries.get_mut(free) {
        Some(place) => *place = Some(entry),
        None => entries.push(Some(entry)),
    }
    Ok(number(free))
}
