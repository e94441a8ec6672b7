//! Opening a file, with its image locks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use super::ahead::Ahead;
use super::data::DataRun;
use super::discards::Discards;
use super::{FileNode, Known};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{File, ImageLock, LockMode, OpenOptions};
use crate::node::{Limits, OpenMode};

/// Alignment of direct I/O, bytes: what every disk and file system takes.
pub(super) const DIRECT_ALIGNMENT: u32 = 4096;
/// Alignment of direct I/O where the file's length is no multiple of 4096.
const SECTOR_BYTES: u32 = 512;

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
    /// Open for writing only while somebody writes it: then if it is not now.
    pub auto_read_only: bool,
    /// Discards punch holes.
    pub discard: bool,
    /// Image locks.
    pub locking: ImageLocking,
}

impl FileNode {
    /// Opens and locks the file. Control path: may block. With `direct`, one that ends within a sector of 512 bytes shows
    /// zeros up to the end of that, and grows so far when they are written: as an image does that `qemu-img` has made.
    ///
    /// # Errors
    /// Those of opening; `EAGAIN` when another process uses the image in a way that contradicts ours.
    pub fn open(options: &FileOptions) -> Result<Self> {
        let path = options.path.display();
        let open = OpenOptions {
            write: options.write,
            direct: options.direct,
            create_bytes: options.create_bytes,
            ..OpenOptions::default()
        };
        let file = File::open(&options.path, &open)
            .map_err(|error| Error::os(format!("cannot open `{path}`"), &error))?;
        let file = Arc::new(file);
        let lock = lock(&file, options)?;
        let size_bytes = file
            .len_bytes()
            .map_err(|error| Error::os(format!("cannot find the length of `{path}`"), &error))?;
        let whole_bytes = size_bytes.checked_next_multiple_of(SECTOR_BYTES.into());
        let shown_bytes = whole_bytes.filter(|_| file.is_direct()).unwrap_or(size_bytes);
        let known = Known {
            len_bytes: AtomicU64::new(shown_bytes),
            kept_bytes: AtomicU64::new(size_bytes),
            sync_failed: AtomicBool::new(false),
            data: DataRun::default(),
            ahead: Ahead::at(shown_bytes),
            discards: Discards::default(),
        };
        check_length(&file, shown_bytes)?;
        Ok(Self {
            file,
            known: Arc::new(known),
            mode: OpenMode { write: options.write, auto: options.auto_read_only, for_job: false },
            discard: options.discard,
            lock: Mutex::new(lock),
        })
    }
}

/// # Errors
/// `EINVAL` for a length with which a file cannot be direct.
pub(super) fn check_length(file: &File, size_bytes: u64) -> Result<()> {
    if size_bytes.is_multiple_of(limits(file.is_direct(), size_bytes).request_alignment.into()) {
        return Ok(());
    }
    let message = format!(
        "`{}` has {size_bytes} bytes, no multiple of 512: direct = true needs that",
        file.path().display()
    );
    Err(Error::new(ErrorKind::Invalid, message))
}

pub(super) fn mode_of(write: bool) -> LockMode {
    if write { LockMode::Write } else { LockMode::Read }
}

/// Why an image could not be locked.
pub(super) fn not_locked(file: &File, error: &std::io::Error) -> Error {
    let path = file.path().display();
    match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            Error::new(ErrorKind::InUse, format!("`{path}`: {error}"))
        }
        _ => Error::os(format!("cannot lock `{path}`"), error),
    }
}

/// What requests a file of this length takes: direct ones of sectors, if it does not end with a block.
pub(super) fn limits(direct: bool, size_bytes: u64) -> Limits {
    if !direct {
        return Limits::NONE;
    }
    let request_alignment = match size_bytes.is_multiple_of(DIRECT_ALIGNMENT.into()) {
        true => DIRECT_ALIGNMENT,
        false => SECTOR_BYTES,
    };
    Limits { request_alignment, memory_alignment: DIRECT_ALIGNMENT, ..Limits::NONE }
}

fn lock(file: &Arc<File>, options: &FileOptions) -> Result<Option<ImageLock>> {
    if options.locking == ImageLocking::Off {
        return Ok(None);
    }
    match ImageLock::acquire(file, mode_of(options.write)) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(not_locked(file, &error))
        }
        Err(error) if options.locking == ImageLocking::Auto => {
            tracing::warn!("`{}` has no image locks here: {error}", file.path().display());
            Ok(None)
        }
        Err(error) => Err(not_locked(file, &error)),
    }
}
