//! The bitmaps of an instance: its nodes' own, which outlive a fault, and those that are lent to it.
//!
//! Nobody marks a node's own bitmap but the plugin, and a copy that it asks for clears it. Those that make a view
//! (see `wit/filter.wit`) are the host's to rely on from when `begun` is set: then copies alone clear `todo`, and
//! nothing takes back that the view is broken, which the host says itself before anything goes past the plugin
//! ([`PluginBitmaps::lose_view`]).

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockloom_abi::NodeIndex;

use super::bindings::exports::blockloom::filter::control;
use crate::bitmap::{Bitmap, BitmapUse, Extension, Granularity, Granules};
use crate::error::{Error, ErrorKind, Result as HostResult};
use crate::filter::PointInTime;

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

    /// Whether they make the view `snapshot`.
    pub(super) fn makes_views(&self) -> bool {
        self.makes_views
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Known>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node that may have bitmaps from now on, and its size.
    pub(super) fn add_node(&self, node: NodeIndex, size_bytes: u64) {
        let mut nodes = self.nodes();
        match nodes.iter_mut().find(|known| known.node == node) {
            Some(known) => known.size_bytes = size_bytes,
            None => nodes.push(Known { node, size_bytes, is_lost: false }),
        }
    }

    /// What a node's view showed is not kept from now on: to be told before what is not kept changes. Returns
    /// whether somebody may have relied on it until now.
    pub(super) fn lose_view(&self, node: NodeIndex) -> bool {
        let known = |nodes: &mut Vec<Known>| {
            let known = nodes.iter_mut().find(|known| known.node == node)?;
            Some(!std::mem::replace(&mut known.is_lost, true))
        };
        let is_new = known(&mut self.nodes()).unwrap_or(false);
        let broken = self.own_named(node, "broken");
        let was_whole = broken.as_ref().is_none_or(|broken| broken.next_dirty(0).is_none());
        if let Some(broken) = broken {
            broken.set_all();
        }
        // Pairs with the one of whoever reads the view, and looks at it once more.
        fence(Ordering::SeqCst);
        is_new && was_whole
    }

    /// Whether a node's view has been lost.
    fn is_lost(&self, node: NodeIndex) -> bool {
        self.nodes().iter().any(|known| known.node == node && known.is_lost)
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
        let size = known.map(|known| (known.size_bytes, known.is_lost));
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

    /// Sets in a node's own bitmap what is set in another one.
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
            }
            Some(Probe::Lent(bitmap)) => {
                fence(Ordering::Release);
                bitmap.read().merge_into(&into)
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

    /// Whether the guest may set, or clear, bits of a bitmap by itself: those that make a view are the host's to
    /// rely on once it has begun.
    fn check_alterable(&self, index: u32, value: bool) -> Result<(), String> {
        if !self.makes_views {
            return Ok(());
        }
        let entries = self.lock();
        let entry = entries.get(index as usize).and_then(Option::as_ref);
        let Some(Entry { node, name, content: Content::Own(_) }) = entry else {
            return Ok(());
        };
        let is_begun = entries.iter().flatten().any(|entry| {
            let is_it = entry.node == *node && entry.name == "begun";
            is_it && matches!(&entry.content, Content::Own(set) if set.next_dirty(0).is_some())
        });
        match name.as_str() {
            "todo" | "covered" if is_begun => {
                Err(format!("bitmap `{name}` makes a view that has begun: copies alone alter it"))
            }
            "begun" | "broken" if !value => {
                Err(format!("what bitmap `{name}` says of a view is not taken back"))
            }
            _ => Ok(()),
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
    ///
    /// # Errors
    /// `EIO` if it never will.
    pub(super) fn point_in_time(&self, node: NodeIndex) -> HostResult<Option<PointInTime>> {
        let own = |name| self.own_named(node, name);
        let find = || {
            let (todo, covered) = (own("todo")?, own("covered")?);
            // Nobody of the host's own frees what a plugin has kept.
            let given_up = Granules::new(todo.size_bytes(), todo.granularity()).ok()?;
            Some(PointInTime::of([todo, covered, own("begun")?, own("broken")?], given_up))
        };
        match find() {
            None if self.is_lost(node) => {
                let message = "its plugin was lost before the point in time";
                Err(Error::new(ErrorKind::Io, message))
            }
            found => Ok(found),
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
    fn the_memory_of_an_instances_bitmaps_is_bounded() {
        let bitmaps = PluginBitmaps::default();
        for node in 0..9 {
            bitmaps.add_node(NodeIndex(node), 1 << 42);
        }
        let own = |node, name, granularity| {
            bitmaps.own(NodeIndex(node), name, granularity).map(|owned| owned.index)
        };
        let error = own(0, "a", 1 << 15).expect_err("16 MiB");
        assert!(error.contains("choose larger ones"), "{error}");
        let index = own(0, "a", 1 << 16).expect("8 MiB");
        for node in 1..8 {
            own(node, "a", 1 << 16).expect("8 MiB more");
        }
        let error = own(8, "a", 1 << 30).expect_err("64 MiB are there");
        assert!(error.contains("of its instance"), "{error}");
        assert_eq!(own(0, "a", 1 << 16), Ok(index), "what is there is found all the same");
        assert_eq!(bitmaps.words(index), 1 << 20);
    }

    #[test]
    fn bitmaps_of_different_granules_are_merged() {
        let bitmaps = PluginBitmaps::default();
        let node = NodeIndex(0);
        bitmaps.add_node(node, 1 << 30);
        let own = |name, granularity| bitmaps.own(node, name, granularity).expect("a bitmap").index;
        let (fine, middle, coarse) = (own("f", 512), own("m", 4096), own("c", 1 << 20));
        for at in [0, 5000, 70_000, (1 << 20) - 1, (1 << 30) - 1] {
            bitmaps.set(fine, at, 1, true).expect("its own");
        }
        bitmaps.merge(middle, fine).expect("merged");
        bitmaps.merge(coarse, fine).expect("merged");
        assert_eq!(bitmaps.next(middle, 0), Some((0, 8192)));
        assert_eq!(bitmaps.next(middle, 8192), Some((69_632, 4096)));
        assert_eq!((bitmaps.count(middle), bitmaps.count(coarse)), (5 * 4096, 2 << 20));
        bitmaps.merge(fine, coarse).expect("merged");
        assert_eq!(bitmaps.next(fine, 0), Some((0, 1 << 20)));
        assert_eq!(bitmaps.count(fine), 2 << 20);
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

    /// What makes a view of node 0, begun.
    fn begun() -> (PluginBitmaps, [u32; 4]) {
        let bitmaps = PluginBitmaps::with_views(true);
        let node = NodeIndex(0);
        bitmaps.add_node(node, 1 << 20);
        let all = ["todo", "covered", "begun", "broken"]
            .map(|name| bitmaps.own(node, name, 65536).expect("a bitmap").index);
        for index in &all[..3] {
            bitmaps.set(*index, 0, 1 << 20, true).expect("not begun");
        }
        (bitmaps, all)
    }

    #[test]
    fn what_makes_a_view_that_has_begun_is_not_altered() {
        let (bitmaps, [todo, covered, begun, broken]) = begun();
        let other = bitmaps.own(NodeIndex(0), "other", 65536).expect("a bitmap").index;
        for (index, value) in [(todo, false), (todo, true), (covered, true), (covered, false)] {
            let refused = bitmaps.set(index, 0, 65536, value).expect_err("it has begun");
            assert!(refused.contains("copies alone"), "{refused}");
        }
        bitmaps.merge(todo, other).expect_err("it has begun");
        bitmaps.set(begun, 0, 1 << 20, false).expect_err("taken back");
        bitmaps.set(other, 0, 65536, true).expect("another one");
        bitmaps.set(broken, 0, 1, true).expect("broken");
        bitmaps.set(broken, 0, 1 << 20, false).expect_err("taken back");
        let free = PluginBitmaps::default();
        free.add_node(NodeIndex(0), 1 << 20);
        let begun = free.own(NodeIndex(0), "begun", 65536).expect("a bitmap").index;
        for value in [true, false] {
            free.set(begun, 0, 1 << 20, value).expect("it makes no view");
        }
    }

    #[test]
    fn a_view_that_is_lost_stays_lost() {
        let (bitmaps, _) = begun();
        let node = NodeIndex(0);
        let view = bitmaps.point_in_time(node).expect("not lost").expect("all of it");
        assert!(!view.is_broken());
        assert!(bitmaps.lose_view(node), "for the first time");
        assert!(!bitmaps.lose_view(node));
        assert!(view.is_broken());
        let early = PluginBitmaps::with_views(true);
        early.add_node(node, 1 << 20);
        assert!(early.point_in_time(node).expect("it may come").is_none());
        early.lose_view(node);
        let error = early.point_in_time(node).err().expect("it never comes");
        assert_eq!(error.kind(), ErrorKind::Io);
        let broken = early.own(node, "broken", 65536).expect("a bitmap").index;
        assert_eq!(early.count(broken), 1 << 20, "from its beginning");
    }
}
