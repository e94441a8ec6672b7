//! The bitmaps of an instance: its nodes' own, which outlive a fault, and those that are lent to it.
//!
//! Nobody marks a node's own bitmap but the plugin, and a copy that it asks for clears it.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockloom_abi::NodeIndex;

use super::bindings::exports::blockloom::filter::control;
use crate::bitmap::{Bitmap, BitmapUse, Extension, Granularity, Granules};
use crate::filter::PointInTime;

/// Bitmaps of one node, its own and lent.
const BITMAPS_OF_NODE_MAX: usize = 16;
/// Memory of one bitmap of a node's own, bytes.
const OWN_MAX_BYTES: u64 = 64 << 20;
/// Longest name of one, bytes.
const NAME_MAX_BYTES: usize = 255;

/// What is behind an index.
enum Content {
    Own(Arc<Granules>),
    /// What is lent, once it is there.
    Lent(Option<BitmapUse>),
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
    sizes: Mutex<Vec<(NodeIndex, u64)>>,
}

impl PluginBitmaps {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sizes(&self) -> MutexGuard<'_, Vec<(NodeIndex, u64)>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node that may have bitmaps from now on, and its size.
    pub(super) fn add_node(&self, node: NodeIndex, size_bytes: u64) {
        let mut sizes = self.sizes();
        sizes.retain(|(known, _)| *known != node);
        sizes.push((node, size_bytes));
    }

    /// A bitmap of a node's own; the one that is there if it has one of this name.
    pub(super) fn own(
        &self,
        node: NodeIndex,
        name: &str,
        granularity_bytes: u64,
    ) -> Result<Owned, String> {
        let size = self.sizes().iter().find(|(known, _)| *known == node).map(|(_, size)| *size);
        let size_bytes = size.ok_or_else(|| format!("node {} is not known", node.0))?;
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
        let granules = Granules::new(size_bytes, granularity).map_err(|error| error.to_string())?;
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
        self.sizes().retain(|(known, _)| *known != node);
        let mut gone = Vec::new();
        for entry in self.lock().iter_mut() {
            gone.extend(entry.take_if(|entry| entry.node == node));
        }
        // What is lent is given back without the lock.
        drop(gone);
    }

    /// A node has another size. Its own bitmaps keep what they have; what is gained is clean.
    pub(super) fn resize(&self, node: NodeIndex, size_bytes: u64) {
        self.add_node(node, size_bytes);
        for entry in self.lock().iter_mut().flatten().filter(|entry| entry.node == node) {
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
    pub(super) fn attach(&self, index: u32, bitmap: BitmapUse) {
        if let Some(Some(entry)) = self.lock().get_mut(index as usize) {
            entry.content = Content::Lent(Some(bitmap));
        }
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

    /// The first run of set bytes at or after `from`: where it starts, how long it is.
    pub(super) fn next(&self, index: u32, from: u64) -> Option<(u64, u64)> {
        let run = match &self.lock().get(index as usize)?.as_ref()?.content {
            Content::Own(granules) => granules.next_dirty(from),
            Content::Lent(bitmap) => bitmap.as_ref()?.next_dirty(from),
        };
        run.map(|run| (run.start, run.end - run.start))
    }

    /// How many bytes are set.
    pub(super) fn count(&self, index: u32) -> u64 {
        match self.probe(index) {
            Some(Probe::Own(granules)) => granules.dirty_bytes(),
            Some(Probe::Lent(bitmap)) => bitmap.dirty_bytes(),
            None => 0,
        }
    }

    /// Sets in a node's own bitmap what is set in another one.
    pub(super) fn merge(&self, into: u32, from: u32) -> Result<(), String> {
        let into = self
            .owned(into)
            .ok_or_else(|| format!("there is no bitmap {into} of the node's own"))?;
        let mark = |run: Range<u64>| into.mark(run.start, run.end - run.start);
        match self.probe(from).ok_or_else(|| format!("there is no bitmap {from} to read"))? {
            Probe::Own(other) if Arc::ptr_eq(&into, &other) => {}
            Probe::Own(other) => other.ranges(0..u64::MAX).for_each(mark),
            Probe::Lent(bitmap) => bitmap.ranges(0..u64::MAX).for_each(mark),
        }
        Ok(())
    }

    /// Sets or clears a range of a node's own bitmap.
    pub(super) fn set(&self, index: u32, offset: u64, len: u64, value: bool) -> Result<(), String> {
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

    /// A node's own bitmap of this name, if there is one.
    fn own_named(&self, node: NodeIndex, name: &str) -> Option<Arc<Granules>> {
        let entries = self.lock();
        let mut of_node = entries.iter().flatten().filter(|entry| entry.node == node);
        match &of_node.find(|entry| entry.name == name)?.content {
            Content::Own(granules) => Some(Arc::clone(granules)),
            Content::Lent(_) => None,
        }
    }

    /// What makes the view `snapshot` of a node, once its plugin has all of it.
    pub(super) fn point_in_time(&self, node: NodeIndex) -> Option<PointInTime> {
        let own = |name| self.own_named(node, name);
        let (todo, covered) = (own("todo")?, own("covered")?);
        Some(PointInTime { todo, covered, begun: own("begun")?, broken: own("broken")? })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_own_bitmap_is_found_again() {
        let bitmaps = PluginBitmaps::default();
        let node = NodeIndex(3);
        bitmaps.own(node, "todo", 4096).expect_err("an unknown node");
        bitmaps.add_node(node, 1 << 20);
        let Owned { index, is_new: true } = bitmaps.own(node, "todo", 4096).expect("a bitmap")
        else {
            panic!("it was there")
        };
        bitmaps.set(index, 5000, 1, true).expect("its own");
        assert_eq!(bitmaps.next(index, 0), Some((4096, 4096)));
        assert_eq!(bitmaps.own(node, "todo", 4096), Ok(Owned { index, is_new: false }));
        assert_eq!(bitmaps.next(index, 0), Some((4096, 4096)), "as it was left");
        bitmaps.own(node, "todo", 8192).expect_err("other granules");
        bitmaps.set(index, 4096, 4095, false).expect("its own");
        assert!(bitmaps.probe(index).expect("a probe").any_set(8000, 10), "not covered");
        bitmaps.set(index, 4096, 4096, false).expect("its own");
        assert_eq!(bitmaps.next(index, 0), None);
    }

    #[test]
    fn what_a_guest_asks_for_is_bounded() {
        let bitmaps = PluginBitmaps::default();
        let node = NodeIndex(0);
        bitmaps.add_node(node, 1 << 50);
        for (name, granularity) in [("", 4096), ("b", 4095), ("b", 0), ("b", 512), ("b", 1 << 40)] {
            bitmaps.own(node, name, granularity).expect_err("refused");
        }
        bitmaps.own(node, &"n".repeat(256), 1 << 31).expect_err("a long name");
        for index in 0..16 {
            bitmaps.own(node, &index.to_string(), 1 << 31).expect("a bitmap");
        }
        bitmaps.own(node, "more", 1 << 31).expect_err("too many");
        let lent = bitmaps.lend(NodeIndex(1), "lent").expect("a place");
        assert_eq!(bitmaps.next(lent, 0), None, "not there yet");
        bitmaps.set(lent, 0, 1, true).expect_err("not its own");
        assert!(bitmaps.owned_by(NodeIndex(1), lent).is_none(), "lent");
        assert!(bitmaps.owned_by(node, 0).is_some());
        assert!(bitmaps.owned_by(NodeIndex(1), 0).is_none(), "another node's");
        bitmaps.set(99, 0, 1, true).expect_err("none");
    }
}
