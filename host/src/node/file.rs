//! `file`: a regular file or block device.
//!
//! Holes are found by `SEEK_DATA`/`SEEK_HOLE`, discards punch holes, zeroing deallocates or zeroes in
//! place where the file system can. With `direct` the page cache is by-passed; the edge then sees to
//! alignment.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{
    AllocateMode, Buf, BufMut, File, FileOp, ImageLock, LockMode, OpenOptions, SeekTarget,
};
use crate::limits::EXTENTS_MAX;

/// Alignment of direct I/O, bytes: what every disk and file system takes.
const DIRECT_ALIGNMENT: u32 = 4096;
/// Alignment of direct I/O where the file's length is no multiple of 4096.
const SECTOR_BYTES: u32 = 512;
/// `ENXIO` of `SEEK_DATA`: no data from here to the end.
const ENXIO: i32 = 6;

/// Whether image locks are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageLocking {
    /// Where the file system has them.
    #[default]
    Auto,
    /// Always; an error where the file system has none.
    On,
    /// Never: somebody else keeps writers apart.
    Off,
}

/// How to open a [`FileNode`].
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Make it, sparse and this long, if it does not exist.
    pub create_bytes: Option<u64>,
    /// By-pass the page cache.
    pub direct: bool,
    /// For writing too.
    pub write: bool,
    /// Discards punch holes.
    pub discard: bool,
    /// Image locks.
    pub locking: ImageLocking,
}

/// The `file` driver.
#[derive(Debug)]
pub struct FileNode {
    file: Arc<File>,
    size_bytes: u64,
    limits: Limits,
    write: bool,
    discard: bool,
    /// The page cache failed to write something: it may have forgotten that, and a later sync that
    /// succeeds does not say otherwise.
    sync_failed: AtomicBool,
    _lock: Option<ImageLock>,
}

impl FileNode {
    /// Opens and locks the file. Control path: may block.
    ///
    /// # Errors
    /// Those of opening; `EAGAIN` when another process uses the image in a way that contradicts ours.
    pub fn open(options: &FileOptions) -> Result<Self> {
        let path = options.path.display();
        let open = OpenOptions {
            write: options.write,
            direct: options.direct,
            create_bytes: options.create_bytes,
        };
        let file = File::open(&options.path, &open)
            .map_err(|error| Error::os(format!("cannot open `{path}`"), &error))?;
        let file = Arc::new(file);
        let lock = lock(&file, options)?;
        let size_bytes = file
            .len_bytes()
            .map_err(|error| Error::os(format!("cannot find the length of `{path}`"), &error))?;
        let limits = limits(options.direct, size_bytes).ok_or_else(|| {
            let message = format!(
                "`{path}` has {size_bytes} bytes, no multiple of 512: direct = true needs that"
            );
            Error::new(ErrorKind::Invalid, message)
        })?;
        let (write, discard) = (options.write, options.discard);
        let sync_failed = AtomicBool::new(false);
        Ok(Self { file, size_bytes, limits, write, discard, sync_failed, _lock: lock })
    }

    fn failed(&self, what: &str, offset: u64, error: &std::io::Error) -> Error {
        Error::os(format!("{what} at offset {offset} of `{}`", self.file.path().display()), error)
    }

    async fn allocate(&self, mode: AllocateMode, offset: u64, len: u64) -> std::io::Result<()> {
        self.file.run_op(FileOp::Allocate { mode, offset, len }).await.map(drop)
    }

    async fn sync(&self) -> Result<()> {
        self.check_syncs()?;
        let result = self.file.run_op(FileOp::Sync { data_only: true }).await;
        if result.is_err() && !self.file.is_direct() {
            self.sync_failed.store(true, Ordering::Relaxed);
        }
        result.map_err(|error| self.failed("flush", 0, &error))?;
        // One that failed meanwhile was told of what this one was to write, too.
        self.check_syncs()
    }

    fn check_syncs(&self) -> Result<()> {
        if !self.sync_failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let path = self.file.path().display();
        let message = format!(
            "flush of `{path}`: an earlier one has failed, and bytes written before that may be \
             lost: open it anew and write them again"
        );
        Err(Error::new(ErrorKind::Io, message))
    }

    /// Where the next data (or hole) begins; the end of the view when there is none.
    async fn seek(&self, offset: u64, target: SeekTarget) -> std::io::Result<u64> {
        match self.file.run_op(FileOp::Seek { offset, target }).await {
            Ok(found) => Ok(found.min(self.size_bytes)),
            Err(error) if error.raw_os_error() == Some(ENXIO) => Ok(self.size_bytes),
            Err(error) => Err(error),
        }
    }

    async fn extents(&self, offset: u64, len: u64) -> std::io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end && extents.len() + 2 <= EXTENTS_MAX {
            let data = self.seek(at, SeekTarget::Data).await?.min(end);
            if data > at {
                let kind = ExtentKind::Hole;
                extents.push(Extent { offset: at, len: data - at, kind, host_offset: None });
            }
            if data == end {
                break;
            }
            // A file that changes meanwhile may answer the same offset: treat one byte as data then.
            let hole = self.seek(data, SeekTarget::Hole).await?.clamp(data + 1, end);
            let kind = ExtentKind::Data;
            extents.push(Extent { offset: data, len: hole - data, kind, host_offset: Some(data) });
            at = hole;
        }
        Ok(extents)
    }
}

fn limits(direct: bool, size_bytes: u64) -> Option<Limits> {
    if !direct {
        return Some(Limits::NONE);
    }
    let alignment = [DIRECT_ALIGNMENT, SECTOR_BYTES];
    let fits =
        alignment.into_iter().find(|alignment| size_bytes.is_multiple_of(u64::from(*alignment)))?;
    Some(Limits { request_alignment: fits, memory_alignment: DIRECT_ALIGNMENT, ..Limits::NONE })
}

fn lock(file: &Arc<File>, options: &FileOptions) -> Result<Option<ImageLock>> {
    if options.locking == ImageLocking::Off {
        return Ok(None);
    }
    let mode = if options.write { LockMode::Write } else { LockMode::Read };
    match ImageLock::acquire(file, mode) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Error::new(ErrorKind::InUse, format!("`{}`: {error}", file.path().display())))
        }
        Err(error) if options.locking == ImageLocking::Auto => {
            tracing::warn!("`{}` has no image locks here: {error}", file.path().display());
            Ok(None)
        }
        Err(error) => Err(Error::os(format!("cannot lock `{}`", file.path().display()), &error)),
    }
}

impl Node for FileNode {
    fn driver(&self) -> &'static str {
        "file"
    }

    fn info(&self, _children: &[NodeInfo]) -> Result<NodeInfo> {
        let caps = Caps {
            zero: Support::Native,
            discard: if self.discard { Support::Native } else { Support::None },
            fua: Support::Emulated,
            flush: Support::Native,
        };
        Ok(NodeInfo {
            size_bytes: self.size_bytes,
            limits: self.limits,
            caps,
            read_only: !self.write,
        })
    }

    fn read<'a>(&'a self, _cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let (result, buf) = self.file.read_at(offset, buf).await;
            let count = result.map_err(|error| self.failed("read", offset, &error))?;
            if count < buf.len() {
                let message = format!(
                    "`{}` ends at {}: it has become shorter than the {} bytes it had",
                    self.file.path().display(),
                    offset + count as u64,
                    self.size_bytes
                );
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let result = self.file.write_at(offset, buf).await;
            result.map_err(|error| self.failed("write", offset, &error))
        })
    }

    fn zero<'a>(
        &'a self,
        _: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let punch = self.discard && !flags.no_unmap;
            let modes = [AllocateMode::PunchHole, AllocateMode::ZeroRange];
            for mode in &modes[usize::from(!punch)..] {
                match self.allocate(*mode, offset, len).await {
                    Ok(()) => return Ok(()),
                    Err(error) if is_unsupported(&error) => {}
                    Err(error) => return Err(self.failed("zero", offset, &error)),
                }
            }
            Err(Error::new(ErrorKind::NotSupported, "the file system cannot zero a range"))
        })
    }

    fn discard<'a>(&'a self, _cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            match self.allocate(AllocateMode::PunchHole, offset, len).await {
                Err(error) if !is_unsupported(&error) => {
                    Err(self.failed("discard", offset, &error))
                }
                _ => Ok(()),
            }
        })
    }

    fn flush<'a>(&'a self, _cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(self.sync())
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move {
            if self.file.is_block_device() {
                let kind = ExtentKind::Data;
                return Ok(vec![Extent { offset, len, kind, host_offset: Some(offset) }]);
            }
            let extents = self.extents(offset, len).await;
            extents.map_err(|error| self.failed("block status", offset, &error))
        })
    }
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::Unsupported | std::io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(ErrorKind::NotSupported.errno())
}
