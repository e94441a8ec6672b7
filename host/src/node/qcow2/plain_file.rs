//! A plain file as the container of an image, without a graph: for work on images offline.

use std::io;
use std::path::Path;
use std::sync::Arc;

use blockloom_qcow2::create::{CreateOptions, Preallocation};
use blockloom_qcow2::{Error, ErrorKind, Result, Storage};

use crate::error::{Error as HostError, ErrorKind as HostErrorKind, Result as HostResult};
use crate::io::{
    AllocateMode, Buf, BufMut, File, FileOp, ImageLock, LockMode, OpenOptions, SeekTarget,
    path_facts,
};
use crate::limits::ZERO_CHUNK_BYTES;

fn of_file(path: &Path, error: &io::Error) -> HostError {
    HostError::os(format_args!("`{}`", path.display()), error)
}

/// What somebody does with a file, and what it lets others do meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads it while nobody writes.
    Read,
    /// Reads it whoever writes: what it finds may contradict itself.
    ReadShared,
    /// Writes it while nobody else has it open.
    Write,
    /// Makes it, and writes it.
    Create,
}

/// An open file with QEMU's image lock, as `qemu-img` takes it.
#[derive(Debug)]
pub(crate) struct FileStorage {
    file: Arc<File>,
    _lock: Option<ImageLock>,
    /// Where guest data is, if not here; flushed with it.
    data: Option<Box<Self>>,
    /// Whether a flush reaches the disk.
    durable: bool,
}

impl FileStorage {
    /// Opens, or makes, and locks a file.
    pub(crate) fn open(path: &Path, access: Access) -> HostResult<Self> {
        if access != Access::Create {
            check_kind(path)?;
        }
        let options = OpenOptions {
            write: matches!(access, Access::Write | Access::Create),
            create_new: access == Access::Create,
            ..OpenOptions::default()
        };
        let file = File::open(path, &options).map_err(|error| of_file(path, &error))?;
        let file = Arc::new(file);
        let lock = match access {
            Access::ReadShared => None,
            Access::Read => lock(&file, LockMode::Read)?,
            Access::Write | Access::Create => lock(&file, LockMode::Write)?,
        };
        Ok(Self { file, _lock: lock, data: None, durable: true })
    }

    /// The same, with guest data in another file.
    pub(crate) fn with_data_file(self, data: Option<Self>) -> Self {
        Self { data: data.map(Box::new), ..self }
    }

    /// Has flushes do nothing: for files that nobody needs after a power loss.
    pub(crate) fn without_sync(self) -> Self {
        Self { durable: false, ..self }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The file that holds guest data.
    pub(crate) fn data(&self) -> &Self {
        self.data.as_deref().unwrap_or(self)
    }

    /// Fills a buffer from `offset`, with zeros past the end.
    pub(crate) async fn read_buf(&self, offset: u64, buf: BufMut) -> Result<BufMut> {
        let (result, mut buf) = self.file.read_at(offset, buf).await;
        let count = result.map_err(|error| self.failed("read", offset, &error))?;
        if let Some(behind) = buf.get_mut(count..) {
            behind.fill(0);
        }
        Ok(buf)
    }

    /// Writes a buffer.
    pub(crate) async fn write_buf(&self, offset: u64, buf: Buf) -> Result<()> {
        let result = self.file.write_at(offset, buf).await;
        result.map_err(|error| self.failed("write", offset, &error))
    }

    /// The length now, bytes.
    pub(crate) fn length(&self) -> HostResult<u64> {
        self.file.len_bytes().map_err(|error| of_file(self.file.path(), &error))
    }

    /// How the first part of a range is stored: its bytes, and whether it is a hole. What lies past the end
    /// counts as a hole.
    pub(crate) async fn extent(&self, offset: u64, len: u64) -> HostResult<(u64, bool)> {
        let end = offset.saturating_add(len).min(self.length()?);
        if offset >= end {
            return Ok((len, true));
        }
        let seek = |target| self.file.run_op(FileOp::Seek { offset, target });
        let data = match seek(SeekTarget::Data).await {
            Ok(data) => data,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok((len, true)),
            // It has no holes, or cannot tell.
            Err(_) => return Ok((end - offset, false)),
        };
        if data > offset {
            return Ok((data.min(end) - offset, true));
        }
        let hole = seek(SeekTarget::Hole).await.unwrap_or(end);
        Ok((hole.clamp(offset + 1, end) - offset, false))
    }

    fn failed(&self, what: &str, offset: u64, error: &io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let path = self.file.path().display();
        Error::new(
            ErrorKind::Storage(errno),
            format!("{what} at offset {offset} of `{path}`: {error}"),
        )
    }

    /// Writes zeros, so that space is really there.
    pub(crate) async fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let result = self.write_zeros_from(offset, len).await;
        result.map_err(|error| self.failed("write", offset, &error))
    }

    /// Makes it the data file of a new image: as long as the view, and preallocated as that is to be.
    pub(crate) async fn fill_as_data_file(&self, options: &CreateOptions) -> Result<()> {
        let size = options.virtual_size;
        self.set_len(size).await?;
        match options.preallocation {
            Preallocation::Falloc if size > 0 => self.zero(0, size).await?,
            Preallocation::Full => self.write_zeros(0, size).await?,
            _ => {}
        }
        self.flush().await
    }

    async fn write_zeros_from(&self, offset: u64, len: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let piece = (end - at).min(ZERO_CHUNK_BYTES as u64);
            self.file.write_at(at, Buf::zeros(piece as usize)).await?;
            at += piece;
        }
        Ok(())
    }
}

/// Refuses what cannot be an image, before opening it may wait for somebody at the other end.
fn check_kind(path: &Path) -> HostResult<()> {
    let facts = path_facts(path).map_err(|error| of_file(path, &error))?;
    let problem = match facts {
        _ if facts.is_directory => "is a directory: name an image in it",
        _ if facts.is_special => "is neither a file nor a block device: name one of those",
        _ => return Ok(()),
    };
    let message = format!("`{}`: {problem}", path.display());
    Err(HostError::new(HostErrorKind::Invalid, message))
}

/// A file system without such locks is used without: so does QEMU, by default.
fn lock(file: &Arc<File>, mode: LockMode) -> HostResult<Option<ImageLock>> {
    match ImageLock::acquire(file, mode) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(of_file(file.path(), &error))
        }
        Err(error) => {
            tracing::warn!("`{}` has no image locks here: {error}", file.path().display());
            Ok(None)
        }
    }
}

impl Storage for FileStorage {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.read_buf(offset, BufMut::new(buf.len())).await?);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_buf(offset, Buf::copy_of(bytes)).await
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let op = FileOp::Allocate { mode: AllocateMode::ZeroAndGrow, offset, len };
        let result = match self.file.run_op(op).await {
            Err(error) if is_unsupported(&error) => self.write_zeros_from(offset, len).await,
            other => other.map(drop),
        };
        result.map_err(|error| self.failed("zero", offset, &error))
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let op = FileOp::Allocate { mode: AllocateMode::PunchHole, offset, len };
        match self.file.run_op(op).await {
            Err(error) if !is_unsupported(&error) => Err(self.failed("discard", offset, &error)),
            _ => Ok(()),
        }
    }

    async fn flush(&self) -> Result<()> {
        for storage in self.data.as_deref().into_iter().chain([self]) {
            if storage.durable {
                let result = storage.file.run_op(FileOp::Sync { data_only: true }).await;
                result.map_err(|error| storage.failed("flush", 0, &error))?;
            }
        }
        Ok(())
    }

    fn end_bytes(&self) -> Option<u64> {
        self.file.len_bytes().ok().filter(|_| self.file.is_block_device())
    }

    async fn len_bytes(&self) -> Result<u64> {
        self.file.len_bytes().map_err(|error| self.failed("length", 0, &error))
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        if self.file.is_block_device() {
            return Ok(());
        }
        let result = self.file.run_op(FileOp::SetLen { len: len_bytes }).await;
        result.map(drop).map_err(|error| self.failed("set the length", len_bytes, &error))
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}
