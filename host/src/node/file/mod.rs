//! `file`: a regular file or block device.
//!
//! Holes are found by `SEEK_DATA`/`SEEK_HOLE`, discards punch holes, zeroing deallocates or zeroes in
//! place where the file system can. With `direct` the page cache is by-passed; the edge then sees to
//! alignment.
//!
//! | file | idea |
//! |---|---|
//! | `ahead.rs` | its end, ahead of what is written |
//! | `data.rs` | where data was last found |
//! | `discards.rs` | how many discards there were |
//! | `open.rs` | opening and locking it |
//! | `reopen.rs` | opening it in another way while it runs |

mod ahead;
mod data;
mod discards;
mod open;
mod reopen;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use ahead::may_be_ahead;
pub use open::{FileOptions, ImageLocking};

use self::ahead::Ahead;
use self::data::DataRun;
use self::discards::Discards;
use self::open::DIRECT_ALIGNMENT;
use super::{
    Caps, DiscardCounts, Extent, ExtentKind, Identity, ImageKind, ImageReport, Limits, Node,
    NodeFuture, NodeInfo, OpenMode, Reopening, Support, WriteFlags,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{
    AllocateMode, Buf, BufMut, File, FileOp, ImageLock, SeekTarget, sleep_until, turn_now,
};
use crate::limits::{EXTENTS_MAX, FILE_TIME_TICK};

/// `ENXIO` of `SEEK_DATA`: no data from here to the end.
const ENXIO: i32 = 6;

/// The `file` driver.
#[derive(Debug)]
pub struct FileNode {
    file: Arc<File>,
    known: Arc<Known>,
    mode: OpenMode,
    discard: bool,
    lock: Mutex<Option<ImageLock>>,
}

/// What is known of a file, however it is open.
#[derive(Debug)]
struct Known {
    /// Its length when it was opened, with all that was to be written since. A length set by anybody else
    /// is not seen.
    len_bytes: AtomicU64,
    /// What it is not to end before: what was there when it was opened.
    kept_bytes: AtomicU64,
    /// The page cache failed to write something: it may have forgotten that, and a later sync that
    /// succeeds does not say otherwise.
    sync_failed: AtomicBool,
    data: DataRun,
    ahead: Ahead,
    discards: Discards,
}

impl FileNode {
    fn len(&self) -> u64 {
        // Bytes are ordered by the requests that write them; this is only how many there are.
        self.known.len_bytes.load(Ordering::Relaxed)
    }

    fn limits(&self, size_bytes: u64) -> Limits {
        open::limits(self.file.is_direct(), size_bytes)
    }

    fn is_growable(&self) -> bool {
        self.mode.write && !self.file.is_block_device()
    }

    /// A change up to `end` begins: whatever becomes of it, the file may be so long from now on.
    fn grow_to(&self, end: u64) {
        if end > self.len() {
            self.known.len_bytes.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// A change up to `end` is about to make the file longer: it is made longer than that, for those to come.
    async fn reach(&self, end: u64) {
        if !self.file.is_direct() || !self.is_growable() {
            return;
        }
        let Some(to) = self.known.ahead.claim(end) else { return };
        let len = u64::from(DIRECT_ALIGNMENT);
        let op = FileOp::Allocate { mode: AllocateMode::Extend, offset: to - len, len };
        if let Err(error) = self.file.run_op(op).await {
            tracing::debug!("`{}` grows write by write: {error}", self.file.path().display());
            match is_unsupported(&error) {
                true => self.known.ahead.give_up(),
                false => self.known.ahead.set(end),
            }
        }
    }

    /// Cuts off what the file has ahead. No request is in flight, and none comes any more: a cut for which nobody waits
    /// may come late.
    async fn cut(&self) {
        let len = self.len();
        let end = self.file.len_bytes().unwrap_or(len);
        // Another length is somebody else's.
        if !self.is_growable() || !self.known.ahead.is_to_be_cut(len, end) {
            return;
        }
        match self.file.run_op(FileOp::SetLen { len }).await {
            Ok(_) => self.known.ahead.set(len),
            Err(error) => {
                tracing::warn!("`{}` stays longer than it is: {error}", self.file.path().display());
            }
        }
    }

    async fn truncate(&self, len: u64) -> Result<()> {
        if !self.is_growable() {
            let message = "only a regular file that is open for writing can have another length";
            return Err(Error::new(ErrorKind::NotSupported, message));
        }
        let before = self.known.len_bytes.swap(len, Ordering::Relaxed);
        self.known.kept_bytes.fetch_min(len, Ordering::Relaxed);
        let done = self.deallocate(FileOp::SetLen { len }, len..u64::MAX).await;
        done.map(|_| self.known.ahead.set(len)).map_err(|error| {
            self.grow_to(before);
            self.failed("set length", len, &error)
        })
    }

    async fn read_all(&self, offset: u64, buf: BufMut) -> Result<BufMut> {
        let (result, mut buf) = self.file.read_at(offset, buf).await;
        let count = result.map_err(|error| self.failed("read", offset, &error))?;
        let end = offset.saturating_add(count as u64);
        let kept = self.known.kept_bytes.load(Ordering::Relaxed);
        if count < buf.len() && end < kept {
            let path = self.file.path().display();
            let message = format!(
                "`{path}` ends at {end}: it has become shorter than the {kept} bytes it had"
            );
            return Err(Error::new(ErrorKind::Io, message));
        }
        buf[count..].fill(0);
        Ok(buf)
    }

    /// Zeroes a range that ends behind the end of the file.
    async fn zero_and_grow(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        let end = offset.saturating_add(len);
        let inside = self.len().saturating_sub(offset);
        self.grow_to(end);
        if flags.no_unmap || !self.discard {
            return self.zero_by(&[AllocateMode::ZeroAndGrow], offset, len).await;
        }
        if inside > 0 {
            self.zero_by(&[AllocateMode::PunchHole, AllocateMode::ZeroRange], offset, inside)
                .await?;
        }
        // Another change may make the file longer meanwhile: to set its length could cut that off.
        let last = u64::from(self.limits(end).request_alignment).min(len);
        let zeros = Buf::zeros(usize::try_from(last).unwrap_or_default());
        let written = self.file.write_at(end - last, zeros).await;
        written.map_err(|error| self.failed("zero", offset, &error))
    }

    /// Zeroes a range in the first of these ways that the file system has.
    async fn zero_by(&self, modes: &[AllocateMode], offset: u64, len: u64) -> Result<()> {
        for mode in modes {
            match self.allocate(*mode, offset, len).await {
                Ok(()) => return Ok(()),
                Err(error) if is_unsupported(&error) => {}
                Err(error) => return Err(self.failed("zero", offset, &error)),
            }
        }
        Err(Error::new(ErrorKind::NotSupported, "the file system cannot zero a range"))
    }

    fn failed(&self, what: &str, offset: u64, error: &std::io::Error) -> Error {
        Error::os(format!("{what} at offset {offset} of `{}`", self.file.path().display()), error)
    }

    async fn allocate(&self, mode: AllocateMode, offset: u64, len: u64) -> std::io::Result<()> {
        let range = offset..offset.saturating_add(len);
        self.deallocate(FileOp::Allocate { mode, offset, len }, range).await.map(drop)
    }

    /// Does what may leave holes in a range.
    async fn deallocate(&self, op: FileOp, range: Range<u64>) -> std::io::Result<u64> {
        let _forgets = self.known.data.forgetting(range);
        self.file.run_op(op).await
    }

    async fn sync(&self) -> Result<()> {
        self.check_syncs()?;
        let result = self.file.run_op(FileOp::Sync { data_only: true }).await;
        if result.is_err() && !self.file.is_direct() {
            self.known.sync_failed.store(true, Ordering::Relaxed);
        }
        result.map_err(|error| self.failed("flush", 0, &error))?;
        // One that failed meanwhile was told of what this one was to write, too.
        self.check_syncs()
    }

    fn check_syncs(&self) -> Result<()> {
        if !self.known.sync_failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let path = self.file.path().display();
        let message = format!(
            "flush of `{path}`: an earlier one has failed, and bytes written before that may be \
             lost: open it anew and write them again"
        );
        Err(Error::new(ErrorKind::Io, message))
    }

    /// What tells whether the file has been changed, once its times have gone by: a change that comes later has
    /// a later time. They are durable, as far as this host has changed them.
    async fn stamped(&self) -> Result<Identity> {
        if self.file.is_block_device() {
            return Ok(Identity::Unknown);
        }
        let failed = |error: std::io::Error| self.failed("file times", 0, &error);
        if self.mode.write {
            self.known.ahead.stamped();
            self.file.run_op(FileOp::Sync { data_only: false }).await.map_err(failed)?;
        }
        let mut stamp = self.file.stamp().map_err(failed)?;
        if stamp.age < FILE_TIME_TICK {
            sleep_until(turn_now() + (FILE_TIME_TICK - stamp.age)).await;
            stamp = self.file.stamp().map_err(failed)?;
        }
        Ok(Identity::File { path: self.file.path().display().to_string(), stamp })
    }

    /// Where the next data (or hole) begins; `u64::MAX` when there is none.
    async fn seek(&self, offset: u64, target: SeekTarget) -> std::io::Result<u64> {
        match self.file.run_op(FileOp::Seek { offset, target }).await {
            Err(error) if error.raw_os_error() == Some(ENXIO) => Ok(u64::MAX),
            found => found,
        }
    }

    /// The first data at or behind `offset`, from there on; empty, at the end of all, when there is none.
    async fn next_data(&self, offset: u64) -> std::io::Result<Range<u64>> {
        let since = match self.known.data.end_of(offset) {
            Ok(end) => return Ok(offset..end),
            Err(since) => since,
        };
        let start = self.seek(offset, SeekTarget::Data).await?;
        if start == u64::MAX {
            return Ok(start..start);
        }
        // A file that changes meanwhile may answer the same offset: treat one byte as data then.
        let end = self.seek(start, SeekTarget::Hole).await?.max(start.saturating_add(1));
        // Without an end the file has become shorter meanwhile.
        if end != u64::MAX {
            self.known.data.found(since, start..end);
        }
        Ok(start..end)
    }

    async fn extents(&self, offset: u64, len: u64) -> std::io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end && extents.len() + 2 <= EXTENTS_MAX {
            let data = self.next_data(at).await?;
            let (from, to) = (data.start.min(end), data.end.min(end));
            if from > at {
                let kind = ExtentKind::Hole;
                extents.push(Extent { offset: at, len: from - at, kind, host_offset: None });
            }
            if to > from {
                let kind = ExtentKind::Data;
                extents.push(Extent {
                    offset: from,
                    len: to - from,
                    kind,
                    host_offset: Some(from),
                });
            }
            at = to;
        }
        Ok(extents)
    }
}

impl Node for FileNode {
    fn driver(&self) -> &'static str {
        "file"
    }

    fn label(&self) -> Option<String> {
        Some(self.file.path().display().to_string())
    }

    fn info(&self, _children: &[NodeInfo]) -> Result<NodeInfo> {
        let caps = Caps {
            zero: Support::Native,
            discard: if self.discard { Support::Native } else { Support::None },
            fua: Support::Emulated,
            flush: Support::Native,
        };
        Ok(NodeInfo {
            size_bytes: self.len(),
            limits: self.limits(self.len()),
            caps,
            read_only: !self.mode.write && !self.mode.auto,
            // An image may end within its last cluster, also one that cannot be written now.
            growable: !self.file.is_block_device(),
        })
    }

    fn limits_at(&self, size_bytes: u64) -> Option<Limits> {
        Some(self.limits(size_bytes))
    }

    fn read<'a>(&'a self, _cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(self.read_all(offset, buf))
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let end = offset.saturating_add(buf.len() as u64);
            if end > self.len() {
                self.grow_to(end);
                // Apart: most writes have no need of it.
                Box::pin(self.reach(end)).await;
            }
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
            if offset.saturating_add(len) > self.len() {
                return self.zero_and_grow(offset, len, flags).await;
            }
            let punch = self.discard && !flags.no_unmap;
            let modes = [AllocateMode::PunchHole, AllocateMode::ZeroRange];
            self.zero_by(&modes[usize::from(!punch)..], offset, len).await
        })
    }

    fn discard<'a>(&'a self, _cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let done = self.allocate(AllocateMode::PunchHole, offset, len).await;
            self.known.discards.count(len, done.is_ok());
            match done {
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

    fn image(&self) -> Option<ImageReport> {
        Some(ImageReport {
            cluster_bytes: None,
            is_dirty: false,
            is_direct: self.file.is_direct(),
            backing: None,
            kind: ImageKind::File,
        })
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.file.allocated_bytes().ok()
    }

    fn discards(&self) -> Option<DiscardCounts> {
        Some(self.known.discards.counts())
    }

    fn file_path(&self) -> Option<PathBuf> {
        Some(self.file.path().to_owned())
    }

    fn reopening(&self) -> Option<&dyn Reopening> {
        Some(self)
    }

    fn identity(&self) -> NodeFuture<'_, Identity> {
        Box::pin(self.stamped())
    }

    fn len_bytes(&self) -> Option<u64> {
        Some(self.len())
    }

    fn set_len<'a>(&'a self, _: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(self.truncate(len))
    }

    fn resize<'a>(&'a self, _: Cx<'a>, size_bytes: u64) -> NodeFuture<'a, ()> {
        Box::pin(self.truncate(size_bytes))
    }

    /// Others may have the image from now on, whoever holds a graph in which it was.
    fn close<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.cut().await;
            Reopening::leave(self);
            Ok(())
        })
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
