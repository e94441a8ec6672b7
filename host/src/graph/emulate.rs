//! What a driver lacks, done by an edge in another way: durable writes by a flush, zeroing by writes. What it has no way
//! to do at all is refused, or left, here.

use super::align;
use super::edge::EdgeRef;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Buf;
use crate::limits::ZERO_CHUNK_BYTES;
use crate::node::{Support, WriteFlags};

impl EdgeRef<'_> {
    pub(super) async fn flush_child(&self) -> Result<()> {
        match self.node().info.caps.flush {
            Support::None => Ok(()),
            _ => self.node().driver.flush(self.cx()).await,
        }
    }

    pub(super) async fn discard_child(&self, offset: u64, len: u64) -> Result<()> {
        let node = self.node();
        let (offset, len) = align::inner(offset, len, node.info.limits.request_alignment);
        if node.info.caps.discard == Support::None || len == 0 {
            return Ok(());
        }
        node.driver.discard(self.cx(), offset, len).await
    }

    pub(super) async fn write_with_fua(
        &self,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> Result<()> {
        let node = self.node();
        if flags.compressed && node.info.limits.compressed_bytes == 0 {
            let message = format!(
                "driver `{}` writes nothing compressed: write it as it is, or to a `qcow2` node that keeps its \
                 data itself",
                node.driver.driver()
            );
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        let emulate = flags.fua && node.info.caps.fua != Support::Native;
        let flags = WriteFlags { fua: flags.fua && !emulate, ..flags };
        align::write(*self, offset, buf, flags).await?;
        if emulate { self.flush_child().await } else { Ok(()) }
    }

    pub(super) async fn zero_with_fua(
        &self,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let caps = self.node().info.caps;
        let emulate = flags.fua && caps.fua != Support::Native;
        let flags = WriteFlags { fua: flags.fua && !emulate, compressed: false, ..flags };
        let mut result = match caps.zero {
            Support::Native => align::zero(*self, offset, len, flags).await,
            _ => Err(Error::new(ErrorKind::NotSupported, "it cannot zero without writing")),
        };
        let by_writing =
            result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotSupported);
        if by_writing && !flags.fast {
            result = self.write_zeros(offset, len, flags).await;
        }
        result?;
        if emulate { self.flush_child().await } else { Ok(()) }
    }

    /// Zeroing by bounded writes.
    pub(super) async fn write_zeros(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let max = (ZERO_CHUNK_BYTES as u64).min(self.node().info.limits.transfer_max_bytes.into());
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let count = max.min(end - at);
            let zeros = Buf::zeros(usize::try_from(count).unwrap_or(ZERO_CHUNK_BYTES));
            align::write(*self, at, zeros, flags).await?;
            at += count;
        }
        Ok(())
    }
}
