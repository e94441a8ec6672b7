//! What an image answers to a request.

use std::ops::Range;

#[cfg(doc)]
use super::Image;
use super::Turn;
use super::allocator::Run;
use super::range_lock::Ticket;
use crate::format::{Cluster, CompressedData, HostOffset};

/// The first part of a guest range that is stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Bytes of the part, from the offset that was asked for.
    pub len: u64,
    /// How it is stored.
    pub kind: MappingKind,
}

/// How a guest range is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// As it is, from this byte on, in the container or the external data file.
    Data(HostOffset),
    /// Zeros; the place is reserved if there is one, its content without meaning.
    Zero(Option<HostOffset>),
    /// Not at all: the backing shows, and zeros past its end or without one.
    Unallocated,
    /// In compressed data, which holds one cluster; the range lies within it.
    Compressed(CompressedData),
}

/// What to do for the first part of a write.
#[derive(Debug)]
pub enum Step<'t> {
    /// Write `len` bytes at `host`; that is all.
    InPlace {
        /// In the container or the external data file.
        host: HostOffset,
        /// Of the request's first part, bytes.
        len: u64,
    },
    /// Write as it says, then [`Image::commit`].
    Allocate(Allocation<'t>),
}

/// A guest range next to the request that has to be written with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Guest offset.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is to be written.
    pub host: HostOffset,
    /// Where its bytes come from.
    pub source: FillSource,
}

/// Where the bytes of a fill come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillSource {
    /// What the backing shows at [`Fill::offset`], zeros past its end.
    Below,
    /// Zeros; not to be written where [`Allocation::reads_zero`].
    Zero,
    /// From this byte of the container on, [`Fill::len`] bytes.
    Host(HostOffset),
    /// The same part of this cluster, decompressed.
    Compressed(CompressedData),
}

/// Room for the first part of a write, held until it is committed.
///
/// Write [`Self::len`] bytes of the request at [`Self::host`], and each of [`Self::fills`] at its place,
/// in any order or in one piece; then [`Image::commit`]. A request commits or releases one allocation
/// before it prepares another; futures of its own for disjoint clusters may each have one.
///
/// Dropped, it counts as still being written: until the turn ends the guest clusters stay locked and the
/// host clusters taken. [`Self::release`] is for a write that was not issued, or has settled.
#[must_use = "what was allocated is given back when this is dropped"]
pub struct Allocation<'t> {
    pub(super) turn: &'t Turn<'t>,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes behind the part, and any fills, that are its own as well.
    pub(super) spare: u64,
    pub(super) host: HostOffset,
    pub(super) fills: Vec<Fill>,
    pub(super) reads_zero: bool,
    pub(super) change: Change,
    /// The new host clusters, once for each reference, to be given back.
    pub(super) reserved: Vec<Run>,
    /// The guest clusters.
    pub(super) ticket: Option<Ticket>,
}

/// What a commit does.
#[derive(Debug)]
pub(super) struct Change {
    /// Guest offset of the first cluster; all of them lie in one slice.
    pub(super) first: u64,
    pub(super) clusters: Vec<Cluster>,
    pub(super) freed: Vec<Run>,
}

impl Allocation<'_> {
    /// Guest offset of the part.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the request that it covers; of compressed clusters, those that they are compressed to.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Guest clusters whose mapping it changes.
    pub fn clusters(&self) -> usize {
        self.change.clusters.len()
    }

    /// Whether it covers nothing: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes at [`Self::offset`] go, in the container or the external data file.
    pub fn host(&self) -> HostOffset {
        self.host
    }

    /// What has to be written besides, ascending; next to the request or apart from it.
    pub fn fills(&self) -> &[Fill] {
        &self.fills
    }

    /// The smallest host range that has the request's part and all fills, and whole blocks if it is compressed. Bytes
    /// of it that belong to neither may be written with anything.
    pub fn span(&self) -> Range<u64> {
        let request = self.host.0..self.host.0 + self.len + self.spare;
        self.fills.iter().fold(request, |span, fill| {
            span.start.min(fill.host.0)..span.end.max(fill.host.0 + fill.len)
        })
    }

    /// Whether the host range reads as zeros as it is, so that fills of zeros need not be written.
    pub fn reads_zero(&self) -> bool {
        self.reads_zero
    }

    /// Gives it back at once: nothing was issued, or all that was has settled.
    pub fn release(mut self) {
        self.give_back(true);
    }

    fn give_back(&mut self, settled: bool) {
        let image = self.turn.image;
        for run in self.reserved.drain(..) {
            // A medium that fails may spoil more than what was written.
            image.allocator().seal(run.first);
            image.frees.retire(&image.turns, run);
        }
        match self.ticket.take() {
            Some(ticket) if settled => image.clusters.release(ticket),
            Some(ticket) => self.turn.keep(ticket),
            None => (),
        }
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        self.give_back(false);
    }
}

impl std::fmt::Debug for Allocation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocation")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .field("host", &self.host)
            .field("fills", &self.fills)
            .field("reads_zero", &self.reads_zero)
            .finish_non_exhaustive()
    }
}
