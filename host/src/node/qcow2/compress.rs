//! Writes that are stored compressed.
//!
//! A whole cluster is compressed by itself, on a thread for calculations; one in which the disk ends is padded with
//! zeros. What would not get smaller by that, or is part of a cluster, is written as ever. The image puts the compressed
//! clusters of a write beside each other, in blocks of its own, into host clusters of their own, and maps them once they
//! have been written; they take the place of whatever was there, where QEMU fails with `EIO` if that is allocated already.

use blockloom_qcow2::format::{CompressionType, compressed};
use blockloom_qcow2::image::{Allocation, Turn};

use super::apart::calculate;
use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::{Buf, BufMut};
use crate::node::WriteFlags;

/// What is written to a medium at least, bytes, however few of them are to change: a page of the page cache, a block of
/// most file systems, a sector within most disks. Of a write that is torn, each sector of it is as it was or as it was to
/// be, and others' bytes are the same in both; but one that fails, or meets a disk that rewrites a sector as its power goes,
/// may leave anything in all of them. So nobody else's bytes are there, as they are not where a file takes whole blocks only.
/// Clusters that are smaller share such a block, whatever is in them.
const WRITTEN_BYTES: u64 = 4096;

/// A part of a write.
enum Part {
    /// Written as it is.
    Plain(Buf),
    /// Whole clusters, one after the other.
    Packed(Vec<Packed>),
}

/// A cluster that gets smaller.
struct Packed {
    /// As it is.
    plain: Buf,
    bytes: Vec<u8>,
}

/// What clusters of an image are.
#[derive(Clone, Copy)]
struct Shape {
    cluster_bytes: usize,
    kind: CompressionType,
    /// Of the disk.
    size_bytes: u64,
}

impl Qcow2Node {
    /// Writes all of `buf` at `offset`, compressed where that can be.
    pub(super) async fn write_compressed(&self, cx: Cx<'_>, offset: u64, buf: Buf) -> Result<()> {
        let shape = Shape {
            cluster_bytes: to_usize(self.info.cluster_bytes),
            kind: self.info.compression,
            size_bytes: self.image.size_bytes(),
        };
        let parts = calculate(cx, false, move || pack(offset, &buf, shape)).await?;
        let (turn, container) = (self.image.enter(), self.container(cx)?);
        for (at, part) in parts.map_err(from_engine)? {
            match part {
                Part::Plain(bytes) => {
                    self.write_by_steps(cx, &turn, &container, at, bytes).await?;
                }
                Part::Packed(clusters) => {
                    self.write_packed(cx, (&turn, &container), at, &clusters).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes clusters that have been compressed, from `offset` on; as they are, where that saves nothing, or the format has
    /// no place for them.
    async fn write_packed(
        &self,
        cx: Cx<'_>,
        (turn, container): (&Turn<'_>, &Container<'_>),
        offset: u64,
        clusters: &[Packed],
    ) -> Result<()> {
        let block_bytes = self.data(cx)?.node().info().limits.request_alignment;
        let block_bytes = u64::from(block_bytes).max(WRITTEN_BYTES);
        let lens: Vec<u64> = clusters.iter().map(|packed| packed.bytes.len() as u64).collect();
        let mut done = 0;
        while done < clusters.len() {
            let at = offset + done as u64 * self.info.cluster_bytes;
            let (lens, rest) = (&lens[done..], &clusters[done..]);
            let room = self.image.prepare_compressed_write(turn, container, at, lens, block_bytes);
            done += match room.await.map_err(from_engine)? {
                Some(room) => {
                    let count = room.clusters();
                    let bytes = lay(&room, &rest[..count]);
                    let data = self.data(cx)?;
                    let written = data.write(room.host().0, bytes, WriteFlags::NONE).await;
                    self.map_written(container, room, written).await?;
                    count
                }
                None => {
                    let bytes = rest[0].plain.clone();
                    self.write_by_steps(cx, turn, container, at, bytes).await?;
                    1
                }
            };
        }
        Ok(())
    }
}

/// Clusters as they lie in the room that they have: in whole blocks, so that nothing has to be read for them.
fn lay(room: &Allocation<'_>, clusters: &[Packed]) -> Buf {
    let mut bytes = BufMut::new(to_usize(room.span().end - room.host().0));
    let mut at = 0;
    for packed in clusters {
        let end = at + packed.bytes.len();
        bytes[at..end].copy_from_slice(&packed.bytes);
        at = end;
    }
    bytes[at..].fill(0);
    bytes.freeze()
}

/// What becomes of each part of a write, with its offset: whole clusters that get smaller are compressed. What is next to each
/// other and stored in the same way stays together.
fn pack(offset: u64, buf: &Buf, shape: Shape) -> blockloom_qcow2::Result<Vec<(u64, Part)>> {
    let Shape { cluster_bytes, kind, size_bytes } = shape;
    let mut parts: Vec<(u64, Part)> = Vec::new();
    let (mut plain, mut at) = (0, 0);
    while at < buf.len() {
        let guest = offset + at as u64;
        let within = to_usize(guest % cluster_bytes as u64);
        let end = buf.len().min(at + (cluster_bytes - within));
        let is_to_its_end = end - at == cluster_bytes || offset + end as u64 >= size_bytes;
        let packed = match within == 0 && is_to_its_end {
            true => compressed::compress_padded(kind, &buf[at..end], cluster_bytes)?,
            false => None,
        };
        if let Some(bytes) = packed {
            let packed = Packed { plain: buf.slice(at..end), bytes };
            if plain < at {
                parts.push((offset + plain as u64, Part::Plain(buf.slice(plain..at))));
            }
            match parts.last_mut() {
                Some((_, Part::Packed(clusters))) => clusters.push(packed),
                _ => parts.push((guest, Part::Packed(vec![packed]))),
            }
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
    use std::sync::Arc;

    use blockloom_qcow2::image::MappingKind;

    use super::*;
    use crate::io::{EngineChoice, run_on_thread};
    use crate::node::qcow2::test_disk::{Disk, disk};

    /// Clusters of `bytes` at `offset` of a disk of 20,000 bytes: for each part its offset; its length if it is as it is,
    /// else nothing, once a cluster.
    fn parts(offset: u64, bytes: &[u8]) -> Vec<(u64, Option<usize>)> {
        let shape = Shape { cluster_bytes: 4096, kind: CompressionType::Zstd, size_bytes: 20_000 };
        let parts = pack(offset, &Buf::copy_of(bytes), shape).expect("it compresses");
        let parts = parts.into_iter().flat_map(|(at, part)| match part {
            Part::Plain(bytes) => vec![(at, Some(bytes.len()))],
            Part::Packed(clusters) => {
                (0..clusters.len() as u64).map(|index| (at + index * 4096, None)).collect()
            }
        });
        parts.collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut number = len as u64 + 1;
        let next = |_| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (number >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn whole_clusters_are_compressed_if_they_get_smaller() {
        assert_eq!(parts(0, &[1; 8192]), [(0, None), (4096, None)]);
        assert_eq!(parts(100, &[1; 8192]), [(100, Some(3996)), (4096, None), (8192, Some(100))]);
        assert_eq!(parts(100, &[1; 200]), [(100, Some(200))]);
        assert_eq!(parts(16384, &[1; 3616]), [(16384, None)], "the disk ends there");
        assert_eq!(parts(16384, &[1; 3615]), [(16384, Some(3615))]);
        let mixed = [noise(8192), vec![1; 4096], noise(4096)].concat();
        assert_eq!(parts(0, &mixed), [(0, Some(8192)), (8192, None), (12288, Some(4096))]);
    }

    /// Where the clusters of a disk lie, from the first on: of one that is compressed, with the end of its data.
    async fn places(disk: &Disk, clusters: u64) -> Vec<(u64, Option<u64>)> {
        let (image, mut places) = (Arc::clone(&disk.image), Vec::new());
        let turn = image.enter();
        for index in 0..clusters {
            let mapped = image.map(&turn, &disk.storage, index * image.cluster_bytes(), 512).await;
            places.push(match mapped.expect("a mapping").kind {
                MappingKind::Compressed(data) => (data.host.0, Some(data.host.0 + data.len_bytes)),
                MappingKind::Data(host) => (host.0, None),
                other => panic!("cluster {index}: {other:?}"),
            });
        }
        places
    }

    /// Those of one write have blocks in common, those of two have none, though the page cache takes any bytes.
    #[test]
    fn a_write_has_its_blocks_for_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let done = run_on_thread(EngineChoice::Auto, async move {
            let disk = disk(&path, 64 << 10).await;
            let half = [noise(20_000), vec![1; (64 << 10) - 20_000]].concat();
            let two = Buf::copy_of(&half.repeat(2));
            disk.drive.write(0, two.clone(), WriteFlags::COMPRESSED).await.expect("a write");
            disk.drive.write(128 << 10, two, WriteFlags::COMPRESSED).await.expect("a write");
            let places = places(&disk, 4).await;
            let block = |at: u64| at / WRITTEN_BYTES;
            let ends = |index: usize| places[index].1.expect("it is compressed");
            assert_eq!(block(ends(0) - 1), block(places[1].0), "{places:?}");
            for (first, second) in [(1, 2), (0, 3)] {
                let apart = block(ends(first) - 1) < block(places[second].0);
                assert!(apart || block(ends(second) - 1) < block(places[first].0), "{places:?}");
            }
            // They lie as close as that leaves them: three in a cluster.
            let of = |index: usize| places[index].0 >> 16;
            assert!(of(0) == of(1) && of(1) == of(2) && of(2) != of(3), "{places:?}");
            for index in 0..4 {
                let read = disk.drive.read(index << 16, BufMut::new(64 << 10)).await;
                assert!(read.expect("a read")[..] == half[..], "cluster {index}");
            }
        });
        done.expect("a worker");
    }

    /// Alone it takes as many blocks as it does as it is; beside another one it does not.
    #[test]
    fn what_saves_no_block_is_written_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let done = run_on_thread(EngineChoice::Auto, async move {
            let disk = disk(&path, 4096).await;
            let most = [noise(1800), vec![1; 2296]].concat();
            let alone = Buf::copy_of(&most);
            disk.drive.write(0, alone, WriteFlags::COMPRESSED).await.expect("a write");
            let two = Buf::copy_of(&most.repeat(2));
            disk.drive.write(4096, two, WriteFlags::COMPRESSED).await.expect("a write");
            let places = places(&disk, 3).await;
            let is_packed = places.iter().map(|(_, end)| end.is_some()).collect::<Vec<_>>();
            assert_eq!(is_packed, [false, true, true]);
            assert_eq!(places[1].0 / 4096, places[2].0 / 4096, "{places:?}");
            for index in 0..3 {
                let read = disk.drive.read(index << 12, BufMut::new(4096)).await;
                assert!(read.expect("a read")[..] == most[..], "cluster {index}");
            }
        });
        done.expect("a worker");
    }
}
