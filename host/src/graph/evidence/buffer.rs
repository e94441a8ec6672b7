//! Bytes with their origin.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::guard::{Guards, SourceId, SourceRange, Stale, WatchKey};
use super::super::mutation::{Mutation, mutated};
use super::super::origin::Origin;
use crate::io::Buf;
use crate::limits::WATCHES_OF_NODE_MAX;

/// Whether anything that affects a view has touched a range since the watch began.
pub(super) struct Watch {
    guards: Arc<Guards>,
    key: WatchKey,
    is_stale: Arc<AtomicBool>,
    _counted: Counted,
}

/// A watch among those of the node that keeps it.
struct Counted(Arc<Origin>);

impl Counted {
    /// `None` when the node keeps too many.
    fn one_of(owner: &Arc<Origin>) -> Option<Self> {
        let next = |kept: usize| (kept < WATCHES_OF_NODE_MAX).then_some(kept + 1);
        owner.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Self(Arc::clone(owner)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    /// Begins to watch for `owner`. To be called before the read is issued. `None` when too many are kept,
    /// by it or by all: what is read then proves nothing.
    pub(super) fn begin(
        guards: &Arc<Guards>,
        place: &SourceRange,
        owner: &Arc<Origin>,
    ) -> Option<Self> {
        let counted = Counted::one_of(owner)?;
        let is_stale = Arc::new(AtomicBool::new(false));
        let key = guards.watch(place, Stale::Flag(Arc::clone(&is_stale))).ok()?;
        Some(Self { guards: Arc::clone(guards), key, is_stale, _counted: counted })
    }

    /// Nothing has touched the range so far. Stays true only under a guard of the range.
    pub(super) fn is_fresh(&self) -> bool {
        mutated(Mutation::WatchesNothing) || !self.is_stale.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.guards.unwatch(self.key);
    }
}

/// What a view showed at a range when the host read it. Read-only, and bound to the worker that read it.
#[derive(Clone)]
pub struct ProvenBuf {
    buf: Buf,
    read: Provenance,
}

/// Where bytes were read, and the watch since.
#[derive(Clone)]
pub(super) struct Provenance {
    range: Range<u64>,
    source: SourceId,
    watch: Option<Rc<Watch>>,
}

impl ProvenBuf {
    pub(super) fn new(buf: Buf, offset: u64, source: SourceId, watch: Option<Watch>) -> Self {
        let range = offset..offset + buf.len() as u64;
        Self { buf, read: Provenance { range, source, watch: watch.map(Rc::new) } }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Where they were read, byte offsets in the view.
    pub fn range(&self) -> Range<u64> {
        self.read.range()
    }

    /// A part of it; `range` counts from its first byte. `None` outside it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.buf.len() {
            return None;
        }
        let start = self.read.range.start;
        let read = start + range.start as u64..start + range.end as u64;
        Some(Self {
            buf: self.buf.slice(range),
            read: Provenance { range: read, ..self.read.clone() },
        })
    }

    /// The bytes, without their origin.
    pub fn into_plain(self) -> Buf {
        self.buf
    }

    /// Whether it was watched at all.
    #[cfg(test)]
    pub(super) fn is_watched(&self) -> bool {
        self.read.is_watched()
    }

    /// The bytes go where they were read: both are one claim's, and nobody else's.
    pub(super) fn apart(self) -> (Provenance, Buf) {
        (self.read, self.buf)
    }
}

impl Provenance {
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    pub(super) fn source(&self) -> SourceId {
        self.source
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_fresh())
    }

    /// Whether it was watched at all.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }
}
