//! A container in memory.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

/// Longest container, bytes: a write past it finds no room.
const LEN_MAX_BYTES: u64 = 1 << 30;

/// Bytes that are there at once; nothing waits.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: Mutex<Vec<u8>>,
}

impl MemoryStorage {
    /// A container that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: Mutex::new(bytes) }
    }

    /// What it holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.with(|bytes| bytes.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn room(end: Option<u64>) -> Result<usize> {
    match end {
        Some(end) if end <= LEN_MAX_BYTES => Ok(end as usize),
        _ => Err(Error::new(ErrorKind::NoSpace, "the memory is full")),
    }
}

impl Storage for MemoryStorage {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.with(|bytes| {
            let start = offset.min(bytes.len() as u64) as usize;
            let len = buf.len().min(bytes.len() - start);
            buf[..len].copy_from_slice(&bytes[start..start + len]);
            buf[len..].fill(0);
        });
        Ok(())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let end = room(offset.checked_add(data.len() as u64))?;
        self.with(|bytes| {
            bytes.resize(end.max(bytes.len()), 0);
            bytes[end - data.len()..end].copy_from_slice(data);
        });
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let end = room(offset.checked_add(len))?;
        self.with(|bytes| {
            bytes.resize(end.max(bytes.len()), 0);
            bytes[offset as usize..end].fill(0);
        });
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn len_bytes(&self) -> Result<u64> {
        Ok(self.with(|bytes| bytes.len() as u64))
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        let len = room(Some(len_bytes))?;
        self.with(|bytes| bytes.resize(len, 0));
        Ok(())
    }
}
