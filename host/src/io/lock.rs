//! Image locks that QEMU understands: byte-range locks on an image file that say what its opener does
//! and what it lets others do.
//!
//! QEMU (`docs/system/qemu-block-drivers.rst.inc`, "Disk image file locking") takes shared
//! open-file-description locks on single bytes: byte 100 + n when it uses permission n, byte 200 + n
//! when it does not let others use permission n. An opener first takes its bytes and then looks for
//! others' bytes that contradict them. Blockloom does the same, so neither a second server nor
//! qemu-img nor qemu-storage-daemon opens an image that is being written.
#![allow(unsafe_code, reason = "open-file-description byte-range locks have no safe binding")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::file::File;
use super::time::Time;

/// A server that was killed holds its locks until the kernel has ended its ring: some milliseconds.
const DYING: Duration = Duration::from_millis(500);

const USES_BASE: i64 = 100;
const DENIES_BASE: i64 = 200;

/// Bit n is QEMU's permission n.
#[derive(Clone, Copy)]
struct Permissions(u8);

impl Permissions {
    const CONSISTENT_READ: u8 = 1 << 0;
    const WRITE: u8 = 1 << 1;
    const WRITE_UNCHANGED: u8 = 1 << 2;
    const RESIZE: u8 = 1 << 3;

    fn bytes(self, base: i64) -> impl Iterator<Item = (i64, &'static str)> {
        let names = ["consistent read", "write", "write unchanged", "resize"];
        (0..4_i64)
            .zip(names)
            .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
            .map(move |(bit, name)| (base + bit, name))
    }
}

/// What the opener does with the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Reads it and relies on it not being changed.
    Read,
    /// Writes it; nobody else may write or resize it.
    Write,
}

/// A held lock; released when dropped with the file's last descriptor.
#[derive(Debug)]
pub struct ImageLock {
    _file: Arc<File>,
}

impl ImageLock {
    /// Locks an image.
    ///
    /// # Errors
    /// `EAGAIN` with a message that says who stands against it, when another process uses the image
    /// in a way that contradicts `mode`; the operating system's errors otherwise.
    pub fn acquire(file: &Arc<File>, mode: LockMode) -> io::Result<Self> {
        let (uses, denies) = match mode {
            LockMode::Read => {
                (Permissions::CONSISTENT_READ, Permissions::WRITE | Permissions::RESIZE)
            }
            LockMode::Write => (
                Permissions::CONSISTENT_READ
                    | Permissions::WRITE
                    | Permissions::WRITE_UNCHANGED
                    | Permissions::RESIZE,
                Permissions::WRITE | Permissions::RESIZE,
            ),
        };
        let (uses, denies) = (Permissions(uses), Permissions(denies));
        for (byte, name) in uses.bytes(USES_BASE).chain(denies.bytes(DENIES_BASE)) {
            set_shared(file.fd(), byte).map_err(|error| contradiction(&error, name))?;
        }
        let deadline = Time::monotonic() + DYING;
        for (byte, name) in uses.bytes(DENIES_BASE).chain(denies.bytes(USES_BASE)) {
            let mut held = is_held_elsewhere(file.fd(), byte)?;
            while held && Time::monotonic() < deadline {
                std::thread::sleep(DYING / 50);
                held = is_held_elsewhere(file.fd(), byte)?;
            }
            if held {
                return Err(contradiction(&io::Error::from_raw_os_error(libc::EAGAIN), name));
            }
        }
        Ok(Self { _file: Arc::clone(file) })
    }
}

fn contradiction(error: &io::Error, permission: &str) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => io::Error::new(
            io::ErrorKind::WouldBlock,
            format!(
                "another process has the image open and stands against `{permission}` \
                 (another server or a QEMU tool): stop it, or serve a copy"
            ),
        ),
        _ => io::Error::new(error.kind(), format!("cannot lock the image: {error}")),
    }
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain data for which all-zero bytes are a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn set_shared(fd: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    let lock = range(libc::F_RDLCK, byte);
    // SAFETY: `fd` is open for the call, and `lock` is a valid `flock` that the kernel only reads.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn is_held_elsewhere(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, byte);
    // SAFETY: `fd` is open for the call, and `lock` is a valid `flock` that the kernel may write.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::OpenOptions;

    #[test]
    fn a_writer_excludes_writers_and_readers_and_readers_share() {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        let open = |write| {
            let options = OpenOptions { write, ..OpenOptions::default() };
            Arc::new(File::open(path.path(), &options).expect("open"))
        };
        let first = ImageLock::acquire(&open(false), LockMode::Read).expect("first reader");
        let second = ImageLock::acquire(&open(false), LockMode::Read).expect("second reader");
        let refused = ImageLock::acquire(&open(true), LockMode::Write).expect_err("writer");
        assert!(refused.to_string().contains("another process has the image open"), "{refused}");
        drop((first, second));
        let writer = ImageLock::acquire(&open(true), LockMode::Write).expect("alone");
        ImageLock::acquire(&open(true), LockMode::Write).expect_err("second writer");
        ImageLock::acquire(&open(false), LockMode::Read).expect_err("reader beside a writer");
        drop(writer);
        ImageLock::acquire(&open(false), LockMode::Read).expect("after the writer");
    }
}
