//! The thread engine: file operations on blocking threads. For machines on which io_uring is blocked.
//!
//! Reads that the page cache can answer run in place (`RWF_NOWAIT`): a hop to a thread costs more
//! than such a read.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::{ReadWriteFlags, preadv2};

use super::blocking;
use super::engine::EngineKind;
use super::file::File;
use super::ops::{Completions, FileOp, OpFuture, OpTable};
use super::reactor::Reactor;
use super::time::Time;
use super::{Drained, Interest, Io, SourceKey, Wait};

/// The engine of one worker.
pub(super) struct ThreadEngine {
    reactor: Rc<Reactor>,
    table: Rc<OpTable>,
    completions: Arc<Completions>,
}

impl ThreadEngine {
    pub(super) fn new(reactor: Rc<Reactor>) -> Self {
        let completions = Completions::new(reactor.waker());
        Self { reactor, table: Rc::default(), completions }
    }
}

/// Reads from the page cache without waiting; `None` when that is not possible.
fn read_cached(file: &File, op: &mut FileOp) -> Option<u64> {
    let FileOp::Read { offset, buf, done } = op else { return None };
    let at = offset.checked_add(*done as u64)?;
    let slices = &mut [IoSliceMut::new(&mut buf[*done..])];
    let count = preadv2(file.fd(), slices, at, ReadWriteFlags::NOWAIT).ok()?;
    (count > 0).then_some(count as u64)
}

impl Io for ThreadEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Threads
    }

    fn now(&self) -> Time {
        Time::monotonic()
    }

    fn start(&self, file: &Arc<File>, mut op: FileOp) -> OpFuture {
        if !file.is_direct()
            && let Some(count) = read_cached(file, &mut op)
        {
            let (key, future) = self.table.insert(file, Some(op));
            self.table.finish(key, Ok(count), None);
            return future;
        }
        let (key, future) = self.table.insert(file, None);
        blocking::start(file, op, key, &self.completions);
        future
    }

    fn turn(&self, wait: Wait) -> io::Result<usize> {
        let drained = self.completions.drain(&self.table);
        let wait = if drained > 0 { Wait::No } else { wait };
        let skip = wait == Wait::No && !self.reactor.has_sources();
        let events = if skip { 0 } else { self.reactor.wait(wait, self.now())? };
        Ok(drained + events + self.completions.drain(&self.table))
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<SourceKey> {
        self.reactor.watch(fd)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>, key: SourceKey) {
        self.reactor.unwatch(fd, key);
    }

    fn poll_ready(&self, key: SourceKey, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
        self.reactor.poll_ready(key, interest, cx)
    }

    fn clear_ready(&self, key: SourceKey, interest: Interest, drained: Drained) {
        self.reactor.clear_ready(key, interest, drained);
    }
}
