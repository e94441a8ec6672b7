//! Writes that are stored compressed.
//!
//! A whole cluster is compressed by itself, on a thread for calculations; one in which the disk ends is padded with
//! zeros. What would not get smaller by that, or is part of a cluster, is written as ever. The image puts compressed
//! clusters beside each other, each in blocks of its own, into host clusters of their own, and maps each once it has been written;
//! it takes the place of whatever was there, where QEMU fails with `EIO` if that is allocated already.

use blockloom_qcow2::format::{CompressionType, compressed};
use blockloom_qcow2::image::Turn;

use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Buf, BufMut, Urgency, compute};
use crate::node::WriteFlags;

/// What a medium writes whole or not at all, bytes.
const SECTOR_BYTES: usize = 512;

/// A part of a write.
enum Part {
    /// Written as it is.
    Plain(Buf),
    /// A whole cluster, as it is and compressed.
    Packed(Buf, Vec<u8>),
}

/// What clusters of an image are.
#[derive(Clone, Copy)]
struct Shape {
    cluster_bytes: usize,
    /// What holds it is written in such blocks.
    block_bytes: usize,
    kind: CompressionType,
    /// Of the disk.
    size_bytes: u64,
}

impl Qcow2Node {
    /// Writes all of `buf` at `offset`, compressed where that can be.
    pub(super) async fn write_compressed(&self, cx: Cx<'_>, offset: u64, buf: Buf) -> Result<()> {
        let block_bytes = self.data(cx)?.node().info().limits.request_alignment;
        let shape = Shape {
            cluster_bytes: to_usize(self.info.cluster_bytes),
            block_bytes: to_usize(block_bytes.into()).max(SECTOR_BYTES),
            kind: self.info.compression,
            size_bytes: self.image.size_bytes(),
        };
        let parts = compute(urgency(cx), move || pack(offset, &buf, shape)).await;
        let parts = parts.map_err(not_computed)?.map_err(from_engine)?;
        let (turn, container) = (self.image.enter(), self.container(cx)?);
        for (at, part) in parts {
            match part {
                Part::Plain(bytes) => {
                    self.write_by_steps(cx, &turn, &container, at, bytes).await?;
                }
                Part::Packed(bytes, packed) => {
                    let room = (at, shape.block_bytes as u64);
                    if !self.write_packed(cx, (&turn, &container), room, &packed).await? {
                        self.write_by_steps(cx, &turn, &container, at, bytes).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes a cluster that has been compressed; not, if the format has no place for it.
    async fn write_packed(
        &self,
        cx: Cx<'_>,
        (turn, container): (&Turn<'_>, &Container<'_>),
        (offset, block_bytes): (u64, u64),
        packed: &[u8],
    ) -> Result<bool> {
        let len = packed.len() as u64;
        let room = self.image.prepare_compressed_write(turn, container, offset, len, block_bytes);
        let Some(room) = room.await.map_err(from_engine)? else { return Ok(false) };
        // Whole blocks, so that nothing has to be read for it.
        let mut bytes = BufMut::new(to_usize(room.span().end - room.host().0));
        bytes[..packed.len()].copy_from_slice(packed);
        bytes[packed.len()..].fill(0);
        let written = self.data(cx)?.write(room.host().0, bytes.freeze(), WriteFlags::NONE).await;
        self.map_written(container, room, written).await?;
        Ok(true)
    }
}

/// How long a calculation for a request may wait.
pub(super) fn urgency(cx: Cx<'_>) -> Urgency {
    if cx.is_of_own_accord() { Urgency::Later } else { Urgency::Now }
}

pub(super) fn not_computed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, error.to_string())
}

/// What becomes of each part of a write, with its offset: what saves a block by that is compressed. What is next to each other and not compressed stays together.
fn pack(offset: u64, buf: &Buf, shape: Shape) -> blockloom_qcow2::Result<Vec<(u64, Part)>> {
    let Shape { cluster_bytes, block_bytes, kind, size_bytes } = shape;
    let mut parts = Vec::new();
    let (mut plain, mut at) = (0, 0);
    while at < buf.len() {
        let guest = offset + at as u64;
        let within = to_usize(guest % cluster_bytes as u64);
        let end = buf.len().min(at + (cluster_bytes - within));
        let is_to_its_end = end - at == cluster_bytes || offset + end as u64 >= size_bytes;
        let packed = match within == 0 && is_to_its_end && block_bytes < cluster_bytes {
            true => compressed::compress_padded(kind, &buf[at..end], cluster_bytes)?,
            false => None,
        };
        let is_smaller =
            |packed: &Vec<u8>| packed.len().next_multiple_of(block_bytes) < cluster_bytes;
        if let Some(packed) = packed.filter(is_smaller) {
            if plain < at {
                parts.push((offset + plain as u64, Part::Plain(buf.slice(plain..at))));
            }
            parts.push((guest, Part::Packed(buf.slice(at..end), packed)));
            plain = end;
        }
        at = end;
    }
    if plain < buf.len() {
        parts.push((offset + plain as u64, Part::Plain(buf.slice(plain..buf.len()))));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(offset: u64, bytes: &[u8]) -> Vec<(u64, Option<usize>)> {
        parts_in(512, offset, bytes)
    }

    /// Clusters of `bytes` at `offset` of a disk of 20,000 bytes: for each part its offset, its length if it is as it is.
    fn parts_in(block_bytes: usize, offset: u64, bytes: &[u8]) -> Vec<(u64, Option<usize>)> {
        let (cluster_bytes, kind) = (4096, CompressionType::Zstd);
        let shape = Shape { cluster_bytes, block_bytes, kind, size_bytes: 20_000 };
        let parts = pack(offset, &Buf::copy_of(bytes), shape).expect("it compresses");
        let parts = parts.into_iter().map(|(at, part)| match part {
            Part::Plain(bytes) => (at, Some(bytes.len())),
            Part::Packed(..) => (at, None),
        });
        parts.collect()
    }

    #[test]
    fn whole_clusters_are_compressed_if_they_get_smaller() {
        let mut number = 1_u64;
        let mut noise = |len: usize| -> Vec<u8> {
            let next = |_| {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (number >> 56) as u8
            };
            (0..len).map(next).collect()
        };
        assert_eq!(parts(0, &[1; 8192]), [(0, None), (4096, None)]);
        assert_eq!(parts(100, &[1; 8192]), [(100, Some(3996)), (4096, None), (8192, Some(100))]);
        assert_eq!(parts(100, &[1; 200]), [(100, Some(200))]);
        assert_eq!(parts(16384, &[1; 3616]), [(16384, None)], "the disk ends there");
        assert_eq!(parts(16384, &[1; 3615]), [(16384, Some(3615))]);
        let half = [noise(2000), vec![1; 2096]].concat();
        assert_eq!(parts_in(1024, 0, &half), [(0, None)]);
        assert_eq!(parts_in(2048, 0, &half), [(0, None)]);
        assert_eq!(parts_in(4096, 0, &half), [(0, Some(4096))], "it saves no block");
        let most = [noise(3000), vec![1; 1096]].concat();
        assert_eq!(parts_in(1024, 0, &most), [(0, None)]);
        assert_eq!(parts_in(2048, 0, &most), [(0, Some(4096))], "it saves no block");
        let mixed = [noise(8192), vec![1; 4096], noise(4096)].concat();
        assert_eq!(parts(0, &mixed), [(0, Some(8192)), (8192, None), (12288, Some(4096))]);
    }
}
