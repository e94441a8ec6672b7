//! Zeroing, discarding, another size.
//!
//! Whole clusters (or subclusters) are the metadata's business. What is left at either end of a range, and what they
//! cannot say, is written, unless it shows zeros already.

use std::ops::Range;

use blockloom_qcow2::image::{MappingKind, Turn};

use super::storage::{Container, from_engine};
use super::{Qcow2Node, to_usize};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::Buf;
use crate::limits::ZERO_CHUNK_BYTES;
use crate::node::WriteFlags;

/// What a disk's size is a multiple of.
const SECTOR_BYTES: u64 = 512;

impl Qcow2Node {
    pub(super) async fn zero_range(
        &self,
        cx: Cx<'_>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let container = self.container(cx)?;
        let turn = self.image.enter();
        self.zero_raw_data(cx, &container, offset, len, flags).await?;
        let whole = self.image.whole_units(offset, len);
        let left = match whole.is_empty() {
            true => Vec::new(),
            false => {
                let len = whole.end - whole.start;
                let zeroed = self.image.zero(&container, whole.start, len, flags.no_unmap).await;
                zeroed.map_err(from_engine)?
            }
        };
        let ends = [offset..whole.start, whole.end..offset + len];
        for range in ends.into_iter().chain(left) {
            self.write_zeros(cx, &turn, &container, range, flags).await?;
        }
        Ok(())
    }

    /// A data file that is an image by itself holds the zeros, too.
    async fn zero_raw_data(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        if !self.info.raw_external_data {
            return Ok(());
        }
        self.image.begin_modifying(container).await.map_err(from_engine)?;
        self.data(cx)?.zero(offset, len, WriteFlags { fua: false, ..flags }).await
    }

    /// Writes zeros where the range shows anything else.
    async fn write_zeros(
        &self,
        cx: Cx<'_>,
        turn: &Turn<'_>,
        container: &Container<'_>,
        range: Range<u64>,
        flags: WriteFlags,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let left = (range.end - at).min(ZERO_CHUNK_BYTES as u64);
            let run = self.image.map(turn, container, at, left).await.map_err(from_engine)?;
            let len = run.len.min(left);
            let shows_zeros = match run.kind {
                MappingKind::Zero(_) => true,
                // Past the end of a backing, too: it may get longer, and these stay zeros.
                MappingKind::Unallocated => !self.image.has_backing(),
                MappingKind::Data(_) | MappingKind::Compressed(_) => false,
            };
            if !shows_zeros {
                if flags.fast {
                    let message = "it cannot zero a part of a cluster without writing";
                    return Err(Error::new(ErrorKind::NotSupported, message));
                }
                let zeros = Buf::zeros(to_usize(len));
                self.write_by_steps(cx, turn, container, at, zeros).await?;
            }
            at += len;
        }
        Ok(())
    }

    pub(super) async fn discard_range(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<()> {
        let whole = self.image.whole_units(offset, len);
        if whole.is_empty() {
            return Ok(());
        }
        let (_turn, container) = (self.image.enter(), self.container(cx)?);
        let len = whole.end - whole.start;
        self.zero_raw_data(cx, &container, whole.start, len, WriteFlags::NONE).await?;
        let discarded = self.image.discard(&container, whole.start, len).await;
        discarded.map_err(from_engine)
    }

    /// Gives up the clusters that lie wholly in a range.
    pub(super) async fn give_up(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<()> {
        let whole = self.image.whole_clusters(offset, len);
        if whole.is_empty() {
            return Ok(());
        }
        let (container, len) = (self.container(cx)?, whole.end - whole.start);
        self.image.deallocate(&container, whole.start, len).await.map_err(from_engine)
    }

    /// Another size. What is added shows zeros, whatever a backing has there, or the last cluster had.
    pub(super) async fn set_size(&self, cx: Cx<'_>, size_bytes: u64) -> Result<()> {
        // Others count such disks in sectors, and do not show what is less than one.
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let message = format!("its new size must be a multiple of {SECTOR_BYTES}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let container = self.container(cx)?;
        let before = self.image.size_bytes();
        if self.info.raw_external_data && size_bytes > before {
            let data = self.data(cx)?;
            // What a shrink that was cut short left behind the end is not to come back.
            if data.len_bytes() > before {
                data.set_len(before).await?;
            }
            data.set_len(size_bytes).await?;
        }
        let cluster_end = before.next_multiple_of(self.info.cluster_bytes);
        let end = self.shown_bytes(cx)?.max(cluster_end).min(size_bytes);
        if end > before
            && let Err(error) = self.add_zeros(cx, &container, before..end, size_bytes).await
        {
            if let Err(error) = self.image.resize(&container, before).await {
                tracing::error!("an image that could not grow keeps what was added: {error}");
            }
            return Err(error);
        }
        self.image.resize(&container, size_bytes).await.map_err(from_engine)?;
        // Not before the image tells of it: until then these bytes are the disk's.
        if self.info.raw_external_data && size_bytes < before {
            self.data(cx)?.set_len(size_bytes).await?;
        }
        Ok(())
    }

    /// Makes a range behind the end zeros, durably, before the image tells of it.
    async fn add_zeros(
        &self,
        cx: Cx<'_>,
        container: &Container<'_>,
        added: Range<u64>,
        size_bytes: u64,
    ) -> Result<()> {
        self.image.extend(container, size_bytes).await.map_err(from_engine)?;
        self.zero_range(cx, added.start, added.end - added.start, WriteFlags::NONE).await?;
        self.image.flush(container).await.map_err(from_engine)
    }
}
