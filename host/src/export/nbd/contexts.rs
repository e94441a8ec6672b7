//! Metadata contexts: what a connection is told of allocation and bitmaps.

use std::cell::Cell;
use std::ops::Range;

use super::directory::Directory;
use super::served::{Served, ShownSet};
use crate::bitmap::{BitmapReader, BitmapUse, Use};
use crate::graph::LocalDrive;

/// A metadata context of an export.
pub(super) enum Context {
    Allocation,
    /// In which layer of images bytes lie.
    Depth,
    /// As long as a client may ask for it, nobody may take or clear it.
    Dirty(Shown),
    /// What was frozen of a bitmap when the export began: it never changes. Without it all is dirty.
    Frozen(Option<BitmapReader>),
}

/// A bitmap as a connection shows it: for as long as it is about what the export's drive shows.
pub(super) struct Shown {
    bitmap: BitmapUse,
    /// When the client came: the first snapshot since which the drive had shown what it records.
    since: Option<u64>,
    has_left: Cell<bool>,
}

impl Shown {
    /// Dirty ranges in `within`, ascending.
    ///
    /// A graph change can leave a node's bitmap behind with its node, while the drive goes on elsewhere.
    /// The bitmap knows nothing of what is written there: all is dirty then, and stays so for this
    /// client, whatever the drive comes to show later. It is never clean on trust. So is what is behind the end
    /// of the bitmap.
    pub(super) fn dirty(
        &self,
        drive: &LocalDrive,
        within: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> {
        // Asked first: who has an answer from before a pivot asked before it. A drive that went and came
        // back since has broken off.
        let since = drive.shown_since(&self.bitmap);
        if !self.has_left.get() && (since.is_none() || since != self.since) {
            self.has_left.set(true);
        }
        // A client keeps the size that it has seen. What is behind the end of what there is now was cut off.
        let end = match self.has_left.get() {
            true => within.start,
            false => self.bitmap.read().size_bytes().clamp(within.start, within.end),
        };
        known_then_dirty(self.bitmap.ranges_shown(within.start..end), end..within.end)
    }
}

/// Name of the context for allocation.
const ALLOCATION: &str = "base:allocation";
/// Name of the context for layers.
const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// Prefix of the contexts for bitmaps.
const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

impl Directory {
    /// The contexts of an export, with their full names; a bitmap that cannot be read now, as a job has
    /// taken it, is left out.
    pub(super) fn contexts(&self, served: &Served) -> Vec<(String, Context)> {
        let graph = self.cell.load();
        let drive = graph.find_drive(served.drive()).map(|at| &graph.drives()[at]);
        let mut contexts = vec![(ALLOCATION.to_owned(), Context::Allocation)];
        if served.export.allocation_depth {
            contexts.push((ALLOCATION_DEPTH.to_owned(), Context::Depth));
        }
        for (name, shown) in served.shown() {
            let bitmap = match shown {
                ShownSet::Live(bitmap) => bitmap,
                ShownSet::Frozen(still) => {
                    contexts.push((format!("{DIRTY_BITMAP}{name}"), Context::Frozen(still)));
                    continue;
                }
            };
            match bitmap.use_by(served.user(), Use::Show) {
                Ok(bitmap) => {
                    let since = drive.and_then(|drive| graph.shown_since(drive, &bitmap));
                    let shown = Shown { bitmap, since, has_left: Cell::new(false) };
                    contexts.push((format!("{DIRTY_BITMAP}{name}"), Context::Dirty(shown)));
                }
                Err(error) => tracing::info!("{} shows less: {error}", served.user()),
            }
        }
        contexts
    }
}

/// Dirty ranges of what was frozen; what it says nothing about is dirty.
pub(super) fn frozen(
    still: Option<&BitmapReader>,
    within: Range<u64>,
) -> impl Iterator<Item = Range<u64>> {
    let size_bytes = still.map_or(0, BitmapReader::size_bytes);
    let end = size_bytes.clamp(within.start, within.end);
    let known = still.map(|still| still.ranges(within.start..end)).into_iter().flatten();
    known_then_dirty(known, end..within.end)
}

fn known_then_dirty(
    known: impl Iterator<Item = Range<u64>>,
    unknown: Range<u64>,
) -> impl Iterator<Item = Range<u64>> {
    known.chain((!unknown.is_empty()).then_some(unknown))
}

#[cfg(test)]
mod tests;
