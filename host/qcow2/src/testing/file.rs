//! A plain file as a container, so that foreign tools can look at it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

/// A file, read and written where the caller stands: nothing of it waits.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
}

impl FileStorage {
    /// Makes an empty file, or empties one.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self { file })
    }

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }
}

fn failed(error: io::Error) -> Error {
    /// `EIO`.
    const IO_ERROR: i32 = 5;
    let errno = error.raw_os_error().unwrap_or(IO_ERROR);
    Error::new(ErrorKind::Storage(errno), error.to_string())
}

impl Storage for FileStorage {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64).map_err(failed)? {
                0 => break,
                len => done += len,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(failed)
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        const PIECE_BYTES: u64 = 1 << 20;
        for at in (offset..offset + len).step_by(PIECE_BYTES as usize) {
            let piece = PIECE_BYTES.min(offset + len - at);
            self.write(at, &vec![0; piece as usize]).await?;
        }
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn len_bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(failed)?.len())
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        self.file.set_len(len_bytes).map_err(failed)
    }
}
