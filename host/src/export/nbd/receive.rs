//! Receiving: a buffer for what has arrived, and payloads that go straight into their final buffer.

use std::io;

use crate::io::{BufMut, Stream};
use crate::limits::{NBD_DIRECT_RECEIVE_BYTES, NBD_RECEIVE_BYTES};

/// Received bytes that have not been consumed.
pub(super) struct Receiver {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; NBD_RECEIVE_BYTES], start: 0, end: 0 }
    }

    /// What is there.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives more; `false` at the end of the stream.
    pub(super) async fn fill(&mut self, stream: &Stream) -> io::Result<bool> {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = stream.recv(&mut self.bytes[self.end..]).await?;
        self.end += count;
        Ok(count > 0)
    }

    /// The next `len` bytes in a buffer of their own; `None` when the stream ends before.
    pub(super) async fn payload(
        &mut self,
        stream: &Stream,
        len: usize,
    ) -> io::Result<Option<BufMut>> {
        let mut payload = BufMut::new(len);
        let mut filled = self.unread().len().min(len);
        payload[..filled].copy_from_slice(&self.unread()[..filled]);
        self.consume(filled);
        while filled < len {
            if len - filled >= NBD_DIRECT_RECEIVE_BYTES {
                let count = stream.recv(&mut payload[filled..]).await?;
                if count == 0 {
                    return Ok(None);
                }
                filled += count;
                continue;
            }
            if !self.fill(stream).await? {
                return Ok(None);
            }
            let count = self.unread().len().min(len - filled);
            payload[filled..filled + count].copy_from_slice(&self.unread()[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(Some(payload))
    }

    /// Receives and drops `len` bytes; `false` when the stream ends before.
    pub(super) async fn discard(&mut self, stream: &Stream, mut len: usize) -> io::Result<bool> {
        loop {
            let count = self.unread().len().min(len);
            self.consume(count);
            len -= count;
            if len == 0 {
                return Ok(true);
            }
            if !self.fill(stream).await? {
                return Ok(false);
            }
        }
    }
}
