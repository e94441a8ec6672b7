//! Facts about paths, for the control path: all of these may block.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, SeekFrom};

/// What `check` and `serve` want to know of a path before it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathFacts {
    /// Something is there.
    pub exists: bool,
    /// Length of the file or device, bytes.
    pub size_bytes: u64,
    /// It is a directory.
    pub is_directory: bool,
    /// It is a block device.
    pub is_block_device: bool,
    /// It is neither a file, nor a directory, nor a block device.
    pub is_special: bool,
    /// This process may write it.
    pub is_writable: bool,
}

/// The facts about `path`.
///
/// # Errors
/// The operating system's, except that a missing file is a fact.
pub fn path_facts(path: &Path) -> io::Result<PathFacts> {
    let metadata = match rustix::fs::stat(path) {
        Ok(metadata) => metadata,
        Err(rustix::io::Errno::NOENT) => return Ok(PathFacts::default()),
        Err(error) => return Err(error.into()),
    };
    let kind = FileType::from_raw_mode(metadata.st_mode);
    let is_block_device = kind == FileType::BlockDevice;
    let size_bytes = if is_block_device {
        let fd = std::fs::File::open(path)?;
        rustix::fs::seek(&fd, SeekFrom::End(0))?
    } else {
        u64::try_from(metadata.st_size).unwrap_or(0)
    };
    Ok(PathFacts {
        exists: true,
        size_bytes,
        is_directory: kind == FileType::Directory,
        is_block_device,
        is_special: !is_block_device
            && kind != FileType::RegularFile
            && kind != FileType::Directory,
        is_writable: rustix::fs::access(path, Access::WRITE_OK).is_ok(),
    })
}

/// `path` without symbolic links, absolute.
///
/// # Errors
/// The operating system's: of a missing file, too.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    #[cfg(test)]
    if super::sim::is_simulated() {
        return Ok(path.to_owned());
    }
    std::fs::canonicalize(path)
}

/// The first bytes of the file or block device at `path`, at most `max_bytes`. Does not wait for a pipe.
///
/// # Errors
/// The operating system's; `InvalidInput` for what is neither a file nor a block device.
pub fn read_head(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    open_to_look(path)?.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file or block device for reading, and waits for no pipe.
///
/// # Errors
/// As [`read_head`].
pub(super) fn open_to_look(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = options.read(true).custom_flags(nonblocking).open(path)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile && kind != FileType::BlockDevice {
        let message = "it is neither a file nor a block device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(file)
}

/// Whether the directory in which `path` would be created is missing.
pub fn create_parent_missing(path: &Path) -> bool {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.is_some_and(|parent| !parent.is_dir())
}

/// Removes a file.
///
/// # Errors
/// The operating system's.
pub fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Puts the file `from` where `to` is, in one step, and makes that durable.
///
/// # Errors
/// The operating system's.
pub fn replace_file(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_directory_of(to)
}

/// Makes durable that `path` is there.
///
/// # Errors
/// The operating system's.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Writes a file, whatever there was.
///
/// # Errors
/// The operating system's.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes)
}

/// A directory for a while: it goes, with all that is in it, when this is dropped. Nobody else may look into it.
#[derive(Debug)]
pub struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    /// Makes one where temporary files are, whose name begins with `prefix`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(prefix: &str) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        const TRIES: usize = 16;
        let mut failed = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..TRIES {
            let random = u128::from_ne_bytes(super::random_bytes());
            let path = std::env::temp_dir().join(format!("{prefix}{random:032x}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("{} is left over: {error}", self.path.display());
        }
    }
}

/// Reads a whole text file of at most `max_bytes`.
///
/// # Errors
/// The operating system's; `InvalidData` when it is longer or not UTF-8.
pub fn read_text_file(path: &Path, max_bytes: u64) -> io::Result<String> {
    let bytes = read_file(path, max_bytes)?;
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Reads a whole file of at most `max_bytes`.
///
/// # Errors
/// The operating system's; `InvalidData` when it is longer.
pub fn read_file(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let message = format!("it is longer than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}
