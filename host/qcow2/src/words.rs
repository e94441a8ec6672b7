//! Tables of 64-bit entries, read a piece at a time.

use crate::error::Result;
use crate::format::HostOffset;
use crate::storage::Storage;

/// Entries of a piece: 64 KiB.
const PIECE_ENTRIES: u64 = 8192;

/// A table in the container that is read from its start to its end.
#[derive(Debug)]
pub(crate) struct Words<'s, S> {
    storage: &'s S,
    offset: u64,
    entries: u64,
    next: u64,
    piece: Vec<u8>,
}

impl<'s, S: Storage> Words<'s, S> {
    /// A table whose end is below 2^64.
    pub(crate) fn new(storage: &'s S, table: HostOffset, entries: u64) -> Self {
        Self { storage, offset: table.0, entries, next: 0, piece: Vec::new() }
    }

    /// The next entry: its index and native value.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, u64)>> {
        if self.next >= self.entries {
            return Ok(None);
        }
        let in_piece = self.next % PIECE_ENTRIES;
        if in_piece == 0 {
            let entries = PIECE_ENTRIES.min(self.entries - self.next);
            self.piece.resize(entries as usize * 8, 0);
            self.storage.read(self.offset + self.next * 8, &mut self.piece).await?;
        }
        let (index, word) = (self.next, word_at(&self.piece, in_piece as usize));
        self.next += 1;
        Ok(Some((index, word)))
    }

    /// The next entry that is not zero.
    pub(crate) async fn next_used(&mut self) -> Result<Option<(u64, u64)>> {
        while let Some((index, word)) = self.next().await? {
            if word != 0 {
                return Ok(Some((index, word)));
            }
        }
        Ok(None)
    }
}

/// The native value of the 64-bit entry at `index` of a table.
///
/// # Panics
/// If the table has no such entry.
pub(crate) fn word_at(table: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&table[index * 8..][..8]);
    u64::from_be_bytes(bytes)
}
