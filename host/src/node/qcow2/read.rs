//! Reading: each run of a range from where the image says it lies.

use blockloom_qcow2::Storage;
use blockloom_qcow2::format::{CompressedData, HostOffset, compressed};
use blockloom_qcow2::image::{Mapping, MappingKind, Turn};

use super::apart::calculate;
use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::BufMut;
use crate::node::NodeFuture;

/// Clusters shorter than this are decompressed by the worker itself, bytes. One of 64 KiB takes it 55 (zstd) to 70 µs
/// (deflate), which is what another thread takes to wake up and be heard of; one of 2 MiB takes 1.5 to 2.6 ms.
const UNPACKED_APART_MIN_BYTES: u64 = 128 << 10;

impl Qcow2Node {
    /// Fills `buf` from `offset`. A range that lies in one place costs one look and the child's read.
    pub(super) fn read_runs<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: BufMut,
    ) -> NodeFuture<'a, BufMut> {
        let turn = self.image.enter();
        if let Some(Mapping { len, kind: MappingKind::Data(host) }) =
            self.image.map_cached(&turn, offset, buf.len() as u64)
            && len == buf.len() as u64
        {
            return Box::pin(async move {
                let buf = self.data(cx)?.read(host.0, buf).await;
                drop(turn);
                buf
            });
        }
        Box::pin(async move { self.read_by_runs(cx, &turn, offset, buf).await })
    }

    async fn read_by_runs(
        &self,
        cx: Cx<'_>,
        turn: &Turn<'_>,
        offset: u64,
        mut buf: BufMut,
    ) -> Result<BufMut> {
        let container = self.container(cx)?;
        let mut at = 0;
        while at < buf.len() {
            let (from, left) = (offset + at as u64, (buf.len() - at) as u64);
            let run = self.image.map(turn, &container, from, left).await.map_err(from_engine)?;
            let len = to_usize(run.len).min(buf.len() - at);
            if at == 0 && len == buf.len() {
                return self.read_run(cx, &container, offset, run.kind, buf).await;
            }
            let part = BufMut::new(len);
            let part = self.read_run(cx, &container, from, run.kind, part).await?;
            buf[at..at + len].copy_from_slice(&part);
            at += len;
        }
        Ok(buf)
    }

    /// Fills `buf` with bytes that are stored in one way, from `offset`.
    async fn read_run(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        offset: u64,
        kind: MappingKind,
        mut buf: BufMut,
    ) -> Result<BufMut> {
        match kind {
            MappingKind::Data(HostOffset(host)) => self.data(cx)?.read(host, buf).await,
            MappingKind::Zero(_) => {
                buf.fill(0);
                Ok(buf)
            }
            MappingKind::Unallocated => self.read_below(cx, offset, buf).await,
            MappingKind::Compressed(data) => {
                self.read_compressed((cx, false), container, offset, data, &mut buf).await?;
                Ok(buf)
            }
        }
    }

    /// What shows where the image has no bytes of its own: the backing, and zeros behind its end.
    pub(super) async fn read_below(
        &self,
        cx: Cx<'_>,
        offset: u64,
        mut buf: BufMut,
    ) -> Result<BufMut> {
        let shown = to_usize(self.shown_bytes(cx)?.saturating_sub(offset)).min(buf.len());
        match self.backing(cx) {
            Some(backing) if shown == buf.len() => cx.child(backing)?.read(offset, buf).await,
            Some(backing) if shown > 0 => {
                let part = cx.child(backing)?.read(offset, BufMut::new(shown)).await?;
                buf[..shown].copy_from_slice(&part);
                buf[shown..].fill(0);
                Ok(buf)
            }
            _ => {
                buf.fill(0);
                Ok(buf)
            }
        }
    }

    /// Fills `buf` with a part of a compressed cluster, from guest `offset`, which lies in it. Others may wait for who holds
    /// guest clusters meanwhile.
    pub(super) async fn read_compressed(
        &self,
        (cx, holds_others): (Cx<'_>, bool),
        container: &Container<'_>,
        offset: u64,
        data: CompressedData,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut packed = vec![0; to_usize(data.len_bytes)];
        container.read(data.host.0, &mut packed).await.map_err(from_engine)?;
        let (cluster_bytes, kind) = (self.info.cluster_bytes, self.info.compression);
        let unpack = move || {
            let mut cluster = vec![0; to_usize(cluster_bytes)];
            compressed::decompress(kind, &packed, &mut cluster).map(|()| cluster)
        };
        let cluster = match cluster_bytes >= UNPACKED_APART_MIN_BYTES {
            true => calculate(cx, holds_others, unpack).await?,
            false => unpack(),
        };
        let cluster = cluster.map_err(from_engine)?;
        let start = to_usize(offset % cluster_bytes);
        buf.copy_from_slice(&cluster[start..start + buf.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::super::test_disk::disk;
    use crate::io::compute_testing::{take_thread, use_own_pool};
    use crate::io::{Buf, BufMut, EngineChoice, Urgency, run_on_thread};
    use crate::node::WriteFlags;

    const CLUSTER: u64 = 1 << 21;

    /// While all threads for calculations are taken, a large cluster is not decompressed, and others are read.
    #[test]
    fn large_clusters_are_decompressed_by_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let done = run_on_thread(EngineChoice::Auto, async move {
            use_own_pool(1);
            let drive = disk(&path, CLUSTER).await.drive;
            let bytes = || Buf::copy_of(&vec![7; 1 << 21]);
            drive.write(0, bytes(), WriteFlags::COMPRESSED).await.expect("a write");
            drive.write(CLUSTER, bytes(), WriteFlags::NONE).await.expect("a write");
            let all = [Urgency::Later, Urgency::Now].map(take_thread);
            let mut packed = pin!(drive.read(4096, BufMut::new(4096)));
            for _ in 0..100 {
                let is_pending = poll_fn(|cx| Poll::Ready(packed.as_mut().poll(cx).is_pending()));
                assert!(is_pending.await, "the worker has decompressed it");
                let plain = drive.read(CLUSTER, BufMut::new(4096)).await.expect("a read");
                assert!(plain.iter().all(|byte| *byte == 7));
            }
            let (go_on, busy): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            drop(go_on);
            let packed = packed.await.expect("a read");
            assert!(packed.len() == 4096 && packed.iter().all(|byte| *byte == 7));
            for thread in busy {
                thread.await.expect("computed");
            }
        });
        done.expect("a worker");
    }
}
