//! Bytes of a node without backing: what was never written is zero.

use super::chunks::{Chunks, new_chunk, to_usize};
use super::extents::Extents;
use crate::node::{Extent, ExtentKind};

/// Chunks of which none, or all, is in memory.
pub(super) struct Plain {
    chunks: Chunks<Option<Box<[u8]>>>,
}

impl Plain {
    pub(super) fn new() -> Self {
        Self { chunks: Chunks::new() }
    }

    /// Fills `buf` from `offset`.
    pub(super) fn copy_out(&self, offset: u64, buf: &mut [u8]) {
        for span in self.chunks.spans(offset, buf.len() as u64) {
            let at = to_usize(span.offset - offset);
            let to = &mut buf[at..at + to_usize(span.len)];
            let Some(part) = span.chunk else {
                to.fill(0);
                continue;
            };
            match part.read().as_deref() {
                Some(data) => to.copy_from_slice(&data[part.start..part.end]),
                None => to.fill(0),
            }
        }
    }

    /// Keeps `buf` at `offset`.
    pub(super) fn copy_in(&self, offset: u64, buf: &[u8]) {
        for (from, part) in self.chunks.spans_made(offset, buf.len() as u64) {
            let at = to_usize(from - offset);
            let mut chunk = part.write();
            let data = chunk.get_or_insert_with(new_chunk);
            data[part.start..part.end].copy_from_slice(&buf[at..at + part.end - part.start]);
        }
    }

    /// Zeros a range and gives back the chunks that lie in it.
    pub(super) fn unmap(&self, offset: u64, len: u64) {
        for part in self.chunks.spans(offset, len).filter_map(|span| span.chunk) {
            let mut chunk = part.write();
            if part.is_whole() {
                *chunk = None;
            } else if let Some(data) = chunk.as_deref_mut() {
                data[part.start..part.end].fill(0);
            }
        }
    }

    /// Zeros a range and takes the memory for it.
    pub(super) fn zero(&self, offset: u64, len: u64) {
        for (_, part) in self.chunks.spans_made(offset, len) {
            match &mut *part.write() {
                Some(data) => data[part.start..part.end].fill(0),
                none => *none = Some(new_chunk()),
            }
        }
    }

    /// `Data` in chunks that are in memory, `Hole` elsewhere.
    pub(super) fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut extents = Extents::default();
        for span in self.chunks.spans(offset, len) {
            let in_memory = span.chunk.is_some_and(|part| part.read().is_some());
            let kind = if in_memory { ExtentKind::Data } else { ExtentKind::Hole };
            if !extents.push(span.offset, span.len, kind) {
                break;
            }
        }
        extents.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks::CHUNK_BYTES;
    use super::*;

    #[test]
    fn bytes_extents_and_holes_across_chunks() {
        let plain = Plain::new();
        let at = CHUNK_BYTES as u64 - 3;
        plain.copy_in(at, b"abcdef");
        let mut got = [9; 8];
        plain.copy_out(at - 1, &mut got);
        assert_eq!(&got, b"\0abcdef\0");
        let extents = plain.extents(0, 1 << 40);
        let summary: Vec<_> = extents.iter().map(|e| (e.offset, e.len, e.kind)).collect();
        let data = 2 * CHUNK_BYTES as u64;
        assert_eq!(
            summary,
            [(0, data, ExtentKind::Data), (data, (1 << 40) - data, ExtentKind::Hole)]
        );
        plain.unmap(at, (1 << 40) - at);
        plain.copy_out(at - 1, &mut got);
        assert_eq!(got, [0; 8]);
        assert_eq!(plain.extents(0, 1 << 40).len(), 2, "the first chunk was cleared in part only");
        plain.unmap(0, CHUNK_BYTES as u64);
        assert_eq!(plain.extents(0, 1 << 40)[0].kind, ExtentKind::Hole);
        plain.zero(1, 1);
        assert_eq!(plain.extents(0, 1 << 40)[0].kind, ExtentKind::Data);
    }
}
