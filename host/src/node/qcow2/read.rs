//! Reading: each run of a range from where the image says it lies.

use blockloom_qcow2::Storage;
use blockloom_qcow2::format::{CompressedData, HostOffset, compressed};
use blockloom_qcow2::image::{Mapping, MappingKind, Turn};

use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::BufMut;
use crate::node::NodeFuture;

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
                self.read_compressed(container, offset, data, &mut buf).await?;
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

    /// Fills `buf` with a part of a compressed cluster, from guest `offset`, which lies in it.
    pub(super) async fn read_compressed(
        &self,
        container: &Container<'_>,
        offset: u64,
        data: CompressedData,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut packed = vec![0; to_usize(data.len_bytes)];
        container.read(data.host.0, &mut packed).await.map_err(from_engine)?;
        let cluster_bytes = self.info.cluster_bytes;
        let mut cluster = vec![0; to_usize(cluster_bytes)];
        compressed::decompress(self.info.compression, &packed, &mut cluster)
            .map_err(from_engine)?;
        let start = to_usize(offset % cluster_bytes);
        buf.copy_from_slice(&cluster[start..start + buf.len()]);
        Ok(())
    }
}
