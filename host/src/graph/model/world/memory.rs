//! The only kind of node that stores bytes: sparse memory, alone or as an overlay.

use super::ids::{NodeId, Span};

/// Bytes in memory with an allocation map. What is not allocated shows the backing, and zero where
/// there is none or it has ended.
///
/// **Invariant**: `bytes` and `allocated` are as long as the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    bytes: Vec<u8>,
    allocated: Vec<bool>,
    cluster_bytes: usize,
    pub(super) backing: Option<NodeId>,
}

impl Memory {
    /// A node that stores `bytes`, all allocated, in clusters of `cluster_bytes` (at least 1).
    pub fn full(bytes: Vec<u8>, cluster_bytes: usize) -> Self {
        let (allocated, cluster_bytes) = (vec![true; bytes.len()], cluster_bytes.max(1));
        Self { allocated, bytes, cluster_bytes, backing: None }
    }

    /// An empty overlay of `len` bytes that allocates in clusters of `cluster_bytes` (at least 1).
    pub fn overlay(len: usize, cluster_bytes: usize, backing: Option<NodeId>) -> Self {
        Self {
            bytes: vec![0; len],
            allocated: vec![false; len],
            cluster_bytes: cluster_bytes.max(1),
            backing,
        }
    }

    /// Size of the view.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the view has no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is shown where nothing is allocated.
    pub fn backing(&self) -> Option<NodeId> {
        self.backing
    }

    /// Unit of allocation.
    pub fn cluster_bytes(&self) -> usize {
        self.cluster_bytes
    }

    /// Whether the byte at `offset` is its own.
    pub fn is_allocated(&self, offset: usize) -> bool {
        self.allocated.get(offset).copied().unwrap_or(false)
    }

    /// Whether nothing at all is its own.
    pub fn is_unallocated(&self) -> bool {
        !self.allocated.contains(&true)
    }

    /// What a write to `span` touches: whole clusters, which it may have to fill.
    pub fn announced(&self, span: Span) -> Span {
        span.rounded_out(self.cluster_bytes).clipped(self.len())
    }

    /// The view, on top of a backing that shows `below`.
    pub(super) fn show(&self, below: &[u8]) -> Vec<u8> {
        let own = self.bytes.iter().zip(&self.allocated).enumerate();
        own.map(
            |(offset, (byte, allocated))| {
                if *allocated { *byte } else { below.get(offset).copied().unwrap_or(0) }
            },
        )
        .collect()
    }

    /// Stores `bytes` from `offset` on, leaving holes (`None`) alone. The rest of each cluster that
    /// becomes allocated is filled from `fill`, the backing's view when the write was issued.
    pub(super) fn put(&mut self, offset: usize, bytes: &[Option<u8>], fill: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            let at = offset + at;
            let Some(byte) = byte else { continue };
            if at >= self.len() {
                break;
            }
            if !self.allocated[at] {
                self.allocate(self.announced(Span::at(at, 1)), fill);
            }
            self.bytes[at] = *byte;
        }
    }

    fn allocate(&mut self, span: Span, fill: &[u8]) {
        for at in span.offsets() {
            if !self.allocated[at] {
                self.allocated[at] = true;
                self.bytes[at] = fill.get(at).copied().unwrap_or(0);
            }
        }
    }

    /// Gives the clusters up that lie wholly in `span`.
    pub(super) fn deallocate(&mut self, span: Span) {
        for at in span.rounded_in(self.cluster_bytes, self.len()).offsets() {
            self.allocated[at] = false;
            self.bytes[at] = 0;
        }
    }

    /// Cuts the end off, or grows by `gained` bytes (zero past its end). On growth, zeros cover a
    /// backing that is longer than the old view, so that its bytes don't come to light.
    pub(super) fn resize(&mut self, len: usize, gained: &[u8], below_len: usize) {
        let old_len = self.len();
        self.bytes.resize(len, 0);
        self.allocated.resize(len, false);
        for at in old_len..len {
            self.bytes[at] = gained.get(at - old_len).copied().unwrap_or(0);
            self.allocated[at] = at < below_len || self.bytes[at] != 0;
        }
    }
}
