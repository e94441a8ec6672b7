//! Writing: prepared by the image, done once from the caller's buffer, committed by the image.
//!
//! What a new cluster has around the bytes that are written is filled from what showed there before, in
//! the same write. The image maps a cluster only after its data are in the file, and writes that mapping
//! out only after they are durable.

use blockloom_qcow2::format::HostOffset;
use blockloom_qcow2::image::{Allocation, Fill, FillSource, Step, Turn};

use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::{Buf, BufMut};
use crate::limits::ZERO_CHUNK_BYTES;
use crate::node::{NodeFuture, WriteFlags};

impl Qcow2Node {
    /// Writes all of `buf` at `offset`. Where the image has the range already, in one place, it costs one
    /// look and the child's write.
    pub(super) fn write_runs<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
    ) -> NodeFuture<'a, ()> {
        let turn = self.image.enter();
        let len = buf.len() as u64;
        if let Some((HostOffset(host), run)) = self.image.prepare_write_cached(&turn, offset, len)
            && run == len
        {
            return Box::pin(async move {
                let written = self.data(cx)?.write(host, buf, WriteFlags::NONE).await;
                drop(turn);
                written
            });
        }
        Box::pin(async move {
            let container = self.container(cx)?;
            self.write_by_steps(cx, &turn, &container, offset, buf).await
        })
    }

    pub(super) async fn write_by_steps(
        &self,
        cx: Cx<'_>,
        turn: &Turn<'_>,
        container: &Container<'_>,
        offset: u64,
        buf: Buf,
    ) -> Result<()> {
        let mut at = 0;
        while at < buf.len() {
            let (from, left) = (offset + at as u64, (buf.len() - at) as u64);
            let step = self.image.prepare_write(turn, container, from, left).await;
            match step.map_err(from_engine)? {
                Step::InPlace { host, len } => {
                    let part = at..at + to_usize(len).min(buf.len() - at);
                    let bytes = buf.slice(part.clone());
                    self.data(cx)?.write(host.0, bytes, WriteFlags::NONE).await?;
                    at = part.end;
                }
                Step::Allocate(allocation) => {
                    let part = at..at + to_usize(allocation.len()).min(buf.len() - at);
                    let bytes = buf.slice(part.clone());
                    self.write_new(cx, container, bytes, allocation).await?;
                    at = part.end;
                }
            }
        }
        Ok(())
    }

    /// Writes bytes to new clusters, with what surrounds them there, and has the image map those.
    async fn write_new(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        bytes: Buf,
        allocation: Allocation<'_>,
    ) -> Result<()> {
        let result = self.write_with_fills(cx, container, bytes, &allocation).await;
        self.map_written(container, allocation, result).await
    }

    /// Has the image map an allocation that has been written; gives it back, if that has failed.
    pub(super) async fn map_written(
        &self,
        container: &Container<'_>,
        allocation: Allocation<'_>,
        written: Result<()>,
    ) -> Result<()> {
        match written {
            Ok(()) => self.image.commit(container, allocation).await.map_err(from_engine),
            Err(error) => {
                allocation.release();
                Err(error)
            }
        }
    }

    async fn write_with_fills(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        bytes: Buf,
        allocation: &Allocation<'_>,
    ) -> Result<()> {
        let is_needed =
            |fill: &&Fill| !(fill.source == FillSource::Zero && allocation.reads_zero());
        let fills: Vec<Fill> = allocation.fills().iter().filter(is_needed).copied().collect();
        let host = allocation.host().0;
        if fills.is_empty() {
            return self.data(cx)?.write(host, bytes, WriteFlags::NONE).await;
        }
        let end = host + bytes.len() as u64;
        let start = fills.iter().map(|fill| fill.host.0).fold(host, u64::min);
        let stop = fills.iter().map(|fill| fill.host.0 + fill.len).fold(end, u64::max);
        let all_bytes: u64 = fills.iter().map(|fill| fill.len).sum::<u64>() + bytes.len() as u64;
        if all_bytes == stop - start && stop - start <= MERGED_MAX_BYTES {
            let mut whole = BufMut::new(to_usize(stop - start));
            for fill in &fills {
                let at = to_usize(fill.host.0 - start);
                let to = &mut whole[at..at + to_usize(fill.len)];
                self.fill(cx, container, fill, to).await?;
            }
            let at = to_usize(host - start);
            whole[at..at + bytes.len()].copy_from_slice(&bytes);
            return self.data(cx)?.write(start, whole.freeze(), WriteFlags::NONE).await;
        }
        for fill in &fills {
            let mut buf = BufMut::new(to_usize(fill.len));
            self.fill(cx, container, fill, &mut buf).await?;
            self.data(cx)?.write(fill.host.0, buf.freeze(), WriteFlags::NONE).await?;
        }
        self.data(cx)?.write(host, bytes, WriteFlags::NONE).await
    }

    /// What a part of a new cluster is to hold.
    async fn fill(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        fill: &Fill,
        to: &mut [u8],
    ) -> Result<()> {
        match fill.source {
            FillSource::Zero => to.fill(0),
            FillSource::Below => {
                let below = self.read_below(cx, fill.offset, BufMut::new(to.len())).await?;
                to.copy_from_slice(&below);
            }
            FillSource::Host(HostOffset(host)) => {
                let old = self.data(cx)?.read(host, BufMut::new(to.len())).await?;
                to.copy_from_slice(&old);
            }
            FillSource::Compressed(data) => {
                self.read_compressed((cx, true), container, fill.offset, data, to).await?;
            }
        }
        Ok(())
    }
}

/// What is written and its fills go as one write up to this length, bytes.
const MERGED_MAX_BYTES: u64 = 4 * ZERO_CHUNK_BYTES as u64;
