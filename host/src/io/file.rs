//! Files: opening them, and what may be done with an open one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};

use super::ops::FileOp;
use super::time::wall_clock;
use super::{Buf, BufMut, worker};

/// How to open a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// For writing too.
    pub write: bool,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Make it, sparse and this long, if it does not exist.
    pub create_bytes: Option<u64>,
    /// Make it, empty, for writing; `EEXIST` if something is there.
    pub create_new: bool,
}

/// What [`FileOp::Allocate`] does with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Deallocate: the range reads as zeros, its space is free.
    PunchHole,
    /// The range reads as zeros and stays allocated.
    ZeroRange,
    /// The same, and a file that ends before the range's end ends with it.
    ZeroAndGrow,
    /// The file ends no earlier than the range; what is there stays as it is.
    Extend,
}

impl AllocateMode {
    fn fallocate(self) -> FallocateFlags {
        match self {
            Self::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Self::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Self::ZeroAndGrow => FallocateFlags::ZERO_RANGE,
            Self::Extend => FallocateFlags::empty(),
        }
    }

    pub(super) fn flags(self) -> i32 {
        self.fallocate().bits().cast_signed()
    }
}

/// What [`FileOp::Seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTarget {
    /// The next byte that is data (`SEEK_DATA`).
    Data,
    /// The next byte that is a hole (`SEEK_HOLE`); the end of the file counts as one.
    Hole,
}

/// What tells whether a file has been changed, and when that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Its length, bytes.
    pub size_bytes: u64,
    /// When its bytes were changed last, nanoseconds since the Epoch.
    pub modified_ns: u64,
    /// When anything of it was changed last, nanoseconds since the Epoch.
    pub changed_ns: u64,
    /// Its number in its file system.
    pub inode: u64,
    /// How long ago the later of these times is, by the clock of this machine.
    pub age: Duration,
}

/// An open file, shared by all workers. Its operations run on the engine of the worker that asks.
pub struct File {
    handle: Handle,
    path: PathBuf,
    direct: bool,
    block_device: bool,
}

/// What stands for the file.
enum Handle {
    Os(OwnedFd),
    #[cfg(test)]
    Simulated(Arc<super::sim::SimFile>),
}

impl File {
    /// Opens a regular file or a block device. Control path: may block.
    ///
    /// # Errors
    /// The operating system's, with its errno.
    pub fn open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        #[cfg(test)]
        if let Some(file) = super::sim::open(path, options) {
            let (handle, path) = (Handle::Simulated(file?), path.to_owned());
            return Ok(Self { handle, path, direct: options.direct, block_device: false });
        }
        let mut flags = OFlags::CLOEXEC | if options.write { OFlags::RDWR } else { OFlags::RDONLY };
        if options.direct {
            flags |= OFlags::DIRECT;
        }
        if options.create_new {
            flags |= OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        }
        let mode = Mode::from_raw_mode(0o644);
        let fd = match (rustix::fs::open(path, flags, mode), options.create_bytes) {
            (Err(rustix::io::Errno::NOENT), Some(len)) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
                let fd = rustix::fs::open(path, flags, mode)?;
                if let Err(error) = rustix::fs::ftruncate(&fd, len) {
                    // A file of the wrong length must not be taken for the image next time.
                    let _ = rustix::fs::unlink(path);
                    return Err(error.into());
                }
                fd
            }
            (opened, _) => opened?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        let block_device = kind == FileType::BlockDevice;
        if !block_device && kind != FileType::RegularFile {
            let message = "not a regular file or block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (handle, path) = (Handle::Os(fd), path.to_owned());
        Ok(Self { handle, path, direct: options.direct, block_device })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it by-passes the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.handle {
            Handle::Os(fd) => fd.as_fd(),
            #[cfg(test)]
            Handle::Simulated(_) => unreachable!("a simulated file has no descriptor"),
        }
    }

    #[cfg(test)]
    pub(super) fn simulated(&self) -> Option<&Arc<super::sim::SimFile>> {
        match &self.handle {
            Handle::Os(_) => None,
            Handle::Simulated(file) => Some(file),
        }
    }

    /// Its length now, bytes (also of a block device). Control path.
    ///
    /// # Errors
    /// The operating system's.
    pub fn len_bytes(&self) -> io::Result<u64> {
        #[cfg(test)]
        if let Some(file) = self.simulated() {
            return Ok(file.len_bytes());
        }
        Ok(rustix::fs::seek(self.fd(), SeekFrom::End(0))?)
    }

    /// What tells it from all other files: device and number. Control path.
    ///
    /// # Errors
    /// The operating system's.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        #[cfg(test)]
        if let Some(file) = self.simulated() {
            return Ok((0, file.stamp().inode));
        }
        let facts = rustix::fs::fstat(self.fd())?;
        Ok((facts.st_dev, facts.st_ino))
    }

    /// What tells whether it has been changed. The kernel's file times tick, by up to 10 ms: two changes within
    /// a tick have one time. Control path.
    ///
    /// # Errors
    /// The operating system's.
    pub fn stamp(&self) -> io::Result<FileStamp> {
        #[cfg(test)]
        if let Some(file) = self.simulated() {
            return Ok(file.stamp());
        }
        let facts = rustix::fs::fstat(self.fd())?;
        let nanos = |seconds: i64, nanos: u64| {
            seconds.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(nanos)
        };
        let modified_ns = nanos(facts.st_mtime, facts.st_mtime_nsec);
        let changed_ns = nanos(facts.st_ctime, facts.st_ctime_nsec);
        let latest = Duration::from_nanos(modified_ns.max(changed_ns));
        Ok(FileStamp {
            size_bytes: u64::try_from(facts.st_size).unwrap_or(0),
            modified_ns,
            changed_ns,
            inode: facts.st_ino,
            age: wall_clock().saturating_sub(latest),
        })
    }

    /// Bytes that it occupies now. Control path.
    ///
    /// # Errors
    /// The operating system's.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(self.fd())?.st_blocks).unwrap_or(0) * 512)
    }

    /// Runs one operation here and now, on a thread that may block.
    pub(super) fn run(&self, op: &mut FileOp) -> io::Result<u64> {
        loop {
            match self.run_once(op) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    fn run_once(&self, op: &mut FileOp) -> rustix::io::Result<u64> {
        let fd = self.fd();
        Ok(match op {
            FileOp::Read { offset, buf, done } => {
                let at = offset.saturating_add(*done as u64);
                rustix::io::pread(fd, &mut buf[*done..], at)? as u64
            }
            FileOp::Write { offset, buf, done } => {
                let at = offset.saturating_add(*done as u64);
                rustix::io::pwrite(fd, &buf[*done..], at)? as u64
            }
            FileOp::Sync { data_only: true } => rustix::fs::fdatasync(fd).map(|()| 0)?,
            FileOp::Sync { data_only: false } => rustix::fs::fsync(fd).map(|()| 0)?,
            FileOp::Allocate { mode, offset, len } => {
                rustix::fs::fallocate(fd, mode.fallocate(), *offset, *len).map(|()| 0)?
            }
            FileOp::Seek { offset, target } => {
                let from = match target {
                    SeekTarget::Data => SeekFrom::Data(*offset),
                    SeekTarget::Hole => SeekFrom::Hole(*offset),
                };
                rustix::fs::seek(fd, from)?
            }
            FileOp::SetLen { len } => rustix::fs::ftruncate(fd, *len).map(|()| 0)?,
        })
    }

    /// Reads into all of `buf`, or as much as there is before the end of the file; returns the bytes read.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn read_at(
        self: &Arc<Self>,
        offset: u64,
        buf: BufMut,
    ) -> (io::Result<usize>, BufMut) {
        let mut op = FileOp::Read { offset, buf, done: 0 };
        loop {
            let output = worker::start(self, op).await;
            let FileOp::Read { buf, mut done, .. } = output.op else { unreachable_op() };
            let count = match output.result {
                Ok(count) => usize::try_from(count).unwrap_or(usize::MAX),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    op = FileOp::Read { offset, buf, done };
                    continue;
                }
                Err(error) => return (Err(error), buf),
            };
            done += count;
            if count == 0 || done >= buf.len() {
                return (Ok(done), buf);
            }
            op = FileOp::Read { offset, buf, done };
        }
    }

    /// Writes all of `buf`.
    ///
    /// # Errors
    /// The operating system's; some of the bytes may be written then.
    pub async fn write_at(self: &Arc<Self>, offset: u64, buf: Buf) -> io::Result<()> {
        let mut op = FileOp::Write { offset, buf, done: 0 };
        loop {
            let output = worker::start(self, op).await;
            let FileOp::Write { buf, mut done, .. } = output.op else { unreachable_op() };
            match output.result {
                Ok(0) if done < buf.len() => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += usize::try_from(count).unwrap_or(usize::MAX),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if done >= buf.len() {
                return Ok(());
            }
            op = FileOp::Write { offset, buf, done };
        }
    }

    /// Runs an operation without buffers.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn run_op(self: &Arc<Self>, op: FileOp) -> io::Result<u64> {
        let mut op = op;
        loop {
            let output = worker::start(self, op).await;
            match output.result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => op = output.op,
                result => return result,
            }
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.path.display())
    }
}

/// An engine returns the operation that it was given.
fn unreachable_op() -> ! {
    unreachable!("an engine returned another operation than it was given")
}
