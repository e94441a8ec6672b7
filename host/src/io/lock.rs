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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::file::File;
use super::paths::open_to_look;
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

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

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

impl LockMode {
    /// What the opener uses, and what it does not let others use.
    fn permissions(self) -> (Permissions, Permissions) {
        let denies = Permissions(Permissions::WRITE | Permissions::RESIZE);
        let changes = Permissions::WRITE | Permissions::WRITE_UNCHANGED | Permissions::RESIZE;
        match self {
            Self::Read => (Permissions(Permissions::CONSISTENT_READ), denies),
            Self::Write => (Permissions(Permissions::CONSISTENT_READ | changes), denies),
        }
    }
}

/// Who stands against a lock of the file at `path`; `None`: nobody, or that cannot be known. It takes no lock and
/// alters nothing. Control path: may block.
pub fn lock_conflict(path: &Path, mode: LockMode) -> Option<String> {
    let file = open_to_look(path).ok()?;
    let (uses, denies) = mode.permissions();
    conflict(file.as_fd(), uses, denies).err().filter(is_conflict).map(|it| it.to_string())
}

/// A held lock; released when dropped with the file's last descriptor.
#[derive(Debug)]
pub struct ImageLock {
    file: Arc<File>,
    mode: LockMode,
}

impl ImageLock {
    /// Locks an image.
    ///
    /// # Errors
    /// `EAGAIN` with a message that says who stands against it, when another process uses the image
    /// in a way that contradicts `mode`; the operating system's errors otherwise.
    pub fn acquire(file: &Arc<File>, mode: LockMode) -> io::Result<Self> {
        let (uses, denies) = mode.permissions();
        take(file, uses, denies)?;
        conflict(file.fd(), uses, denies)?;
        Ok(Self { file: Arc::clone(file), mode })
    }

    /// A lock in another mode, of the same image by another descriptor: both are held then. It waits for nobody.
    ///
    /// # Errors
    /// As [`Self::acquire`]; this lock is as it was then.
    pub fn also(&self, file: &Arc<File>, mode: LockMode) -> io::Result<Self> {
        let (known, (uses, denies)) = (self.mode.permissions(), mode.permissions());
        // To this descriptor alone its own bytes are not somebody else's.
        let result = take(&self.file, uses, denies).and_then(|()| {
            for (byte, name) in contradicting(uses, denies) {
                if is_held_elsewhere(self.file.fd(), byte)? {
                    return Err(contradiction(&io::Error::from_raw_os_error(libc::EAGAIN), name));
                }
            }
            take(file, uses, denies)
        });
        give(&self.file, uses.without(known.0), denies.without(known.1));
        result.map(|()| Self { file: Arc::clone(file), mode })
    }

    /// Ends it now, whoever has the file open still.
    pub fn release(self) {
        let (uses, denies) = self.mode.permissions();
        give(&self.file, uses, denies);
    }
}

fn take(file: &File, uses: Permissions, denies: Permissions) -> io::Result<()> {
    for (byte, name) in uses.bytes(USES_BASE).chain(denies.bytes(DENIES_BASE)) {
        set(file.fd(), libc::F_RDLCK, byte).map_err(|error| contradiction(&error, name))?;
    }
    Ok(())
}

/// Cannot fail for bytes that are held; one that stays goes with the descriptor.
fn give(file: &File, uses: Permissions, denies: Permissions) {
    for (byte, _) in uses.bytes(USES_BASE).chain(denies.bytes(DENIES_BASE)) {
        let _ = set(file.fd(), libc::F_UNLCK, byte);
    }
}

/// Waits, for a while, until nobody else holds what contradicts.
///
/// # Errors
/// As [`ImageLock::acquire`].
fn conflict(fd: BorrowedFd<'_>, uses: Permissions, denies: Permissions) -> io::Result<()> {
    let deadline = Time::monotonic() + DYING;
    for (byte, name) in contradicting(uses, denies) {
        let mut held = is_held_elsewhere(fd, byte)?;
        while held && Time::monotonic() < deadline {
            std::thread::sleep(DYING / 50);
            held = is_held_elsewhere(fd, byte)?;
        }
        if held {
            return Err(contradiction(&io::Error::from_raw_os_error(libc::EAGAIN), name));
        }
    }
    Ok(())
}

/// The bytes that nobody else may hold.
fn contradicting(
    uses: Permissions,
    denies: Permissions,
) -> impl Iterator<Item = (i64, &'static str)> {
    uses.bytes(DENIES_BASE).chain(denies.bytes(USES_BASE))
}

/// Whether it is that somebody else holds what contradicts.
fn is_conflict(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
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

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, byte: i64) -> io::Result<()> {
    let lock = range(kind, byte);
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

    #[test]
    fn who_looks_takes_nothing() {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        let lock = |write, mode| {
            let options = OpenOptions { write, ..OpenOptions::default() };
            ImageLock::acquire(&Arc::new(File::open(path.path(), &options).expect("open")), mode)
        };
        let looks = || {
            [LockMode::Read, LockMode::Write].map(|mode| lock_conflict(path.path(), mode).is_some())
        };
        assert_eq!(looks(), [false, false]);
        let reader = lock(false, LockMode::Read).expect("a reader");
        assert_eq!(looks(), [false, true]);
        drop(reader);
        let writer = lock(true, LockMode::Write).expect("nothing is left of who has looked");
        assert_eq!(looks(), [true, true]);
        let why = lock_conflict(path.path(), LockMode::Read).expect("a writer is there");
        assert!(why.contains("another process has the image open"), "{why}");
        drop(writer);
        assert_eq!(looks(), [false, false]);
        assert_eq!(lock_conflict(Path::new("/nonexistent/x"), LockMode::Read), None);
    }

    #[test]
    fn a_lock_changes_its_mode_with_its_descriptor() {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        let open = |write| {
            let options = OpenOptions { write, ..OpenOptions::default() };
            Arc::new(File::open(path.path(), &options).expect("open"))
        };
        let reads = || ImageLock::acquire(&open(false), LockMode::Read);
        let reader = reads().expect("a reader");
        let other = reads().expect("another one");
        let refused = reader.also(&open(true), LockMode::Write).expect_err("another one reads");
        assert!(refused.to_string().contains("another process has the image open"), "{refused}");
        // Nothing is left of it: others come as before.
        drop((reads().expect("a third one"), other));
        let writer = reader.also(&open(true), LockMode::Write).expect("alone");
        reader.release();
        reads().expect_err("a reader beside a writer");
        let reader = writer.also(&open(false), LockMode::Read).expect("less than before");
        reads().expect_err("the writer is there still");
        writer.release();
        reads().expect("beside a reader");
        ImageLock::acquire(&open(true), LockMode::Write).expect_err("a reader is there");
        reader.release();
    }
}
