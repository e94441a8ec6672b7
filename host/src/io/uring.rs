//! The io_uring engine: file operations on a ring of this worker, submitted once per turn.
//!
//! The ring's descriptor is itself watched by the reactor, so files and sockets are waited for in one
//! place. Operations without an opcode (seeking data, setting a length) run on blocking threads.
//!
//! All `unsafe` of the ring is here and in `registered`: building entries that point into buffers. Those buffers are owned
//! by the operation's slot until its completion has been taken from the ring, and the ring is emptied
//! of running operations before it is dropped.
#![allow(unsafe_code, reason = "ring entries point into buffers that their slot owns")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::blocking;
use super::buf::Memory;
use super::engine::EngineKind;
use super::file::File;
use super::ops::{Completions, FileOp, OpFuture, OpTable};
use super::reactor::Reactor;
use super::registered::Registered;
use super::time::Time;
use super::{Drained, Interest, Io, SourceKey, Wait};
use crate::limits::RING_ENTRIES;

/// Pause before entries are submitted again that the kernel could not take.
const RETRY_SUBMIT: Duration = Duration::from_millis(1);

/// Reads of so many bytes and more copy from the page cache on a thread of the kernel's, beside the one that writes: else
/// nothing else would go on meanwhile, and a job would read and write in turn.
const READ_ASIDE_BYTES: usize = 256 << 10;

/// The engine of one worker.
pub(super) struct RingEngine {
    reactor: Rc<Reactor>,
    table: Rc<OpTable>,
    completions: Arc<Completions>,
    ring: RefCell<IoUring>,
    registered: Registered,
    /// Started in this turn, or waiting for room in the ring.
    backlog: RefCell<VecDeque<usize>>,
    /// Operations that the kernel has: never more than the completion queue holds.
    in_ring: Cell<u32>,
}

impl RingEngine {
    /// Sets up a ring for the current thread.
    ///
    /// # Errors
    /// When io_uring is blocked or too old here.
    pub(super) fn new(reactor: Rc<Reactor>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_cqsize(RING_ENTRIES * 2)
            .build(RING_ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed =
            [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the ring lacks file operations",
            ));
        }
        // SAFETY: the ring owns its descriptor and outlives this borrow.
        reactor.watch_completions(unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) })?;
        let completions = Completions::new(reactor.waker());
        Ok(Self {
            reactor,
            table: Rc::default(),
            completions,
            registered: Registered::new(&ring),
            ring: RefCell::new(ring),
            backlog: RefCell::default(),
            in_ring: Cell::new(0),
        })
    }

    /// Moves started operations into the ring and tells the kernel, once for all of them.
    fn submit(&self) -> io::Result<()> {
        let mut backlog = self.backlog.borrow_mut();
        let mut ring = self.ring.borrow_mut();
        if backlog.is_empty() && ring.submission().is_empty() {
            return Ok(());
        }
        while self.in_ring.get() < RING_ENTRIES * 2 {
            let Some(key) = backlog.front().copied() else { break };
            let number =
                |memory: &Memory, used: usize| self.registered.number_of(&ring, memory, used);
            let entry = self.table.with(key, |op, file| entry(op, file, number)).flatten();
            let Some(entry) = entry else {
                backlog.pop_front();
                continue;
            };
            // SAFETY: the entry's buffer belongs to slot `key`, which keeps it until completion.
            let pushed = unsafe { ring.submission().push(&entry.user_data(key as u64)) };
            if pushed.is_err() {
                submit_all(&ring)?;
                if ring.submission().is_full() {
                    // The kernel took nothing: what is left goes in a later turn.
                    return Ok(());
                }
                continue;
            }
            backlog.pop_front();
            self.in_ring.set(self.in_ring.get() + 1);
        }
        submit_all(&ring)
    }

    fn reap(&self) -> usize {
        let mut count = 0;
        loop {
            let completion = self.ring.borrow_mut().completion().next();
            let Some(completion) = completion else { return count };
            self.in_ring.set(self.in_ring.get() - 1);
            count += 1;
            let result = u64::try_from(completion.result())
                .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            let key = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            self.table.finish(key, result, None);
        }
    }
}

fn submit_all(ring: &IoUring) -> io::Result<()> {
    loop {
        match ring.submit() {
            Ok(_) => return Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The kernel is short of memory or completions: what is queued goes next turn.
                Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
}

/// The ring entry of an operation; `None` for one without an opcode. `number` is that of memory that the ring knows.
fn entry(
    op: &mut FileOp,
    file: &File,
    number: impl Fn(&Memory, usize) -> Option<u16>,
) -> Option<squeue::Entry> {
    let number_of = |memory: Option<&Memory>, used: usize| {
        // The page cache copies; and single pages are found soon.
        let memory = memory.filter(|memory| file.is_direct() && memory.is_placed());
        memory.and_then(|memory| number(memory, used))
    };
    let fd = types::Fd(file.fd().as_raw_fd());
    let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    Some(match op {
        FileOp::Read { offset, buf, done } => {
            let at = offset.saturating_add(*done as u64);
            let number = number_of(buf.memory(), buf.len());
            let rest = &mut buf[*done..];
            let len = rest.len();
            if let Some(number) = number {
                let entry = opcode::ReadFixed::new(fd, rest.as_mut_ptr(), length(len), number);
                return Some(entry.offset(at).build());
            }
            let entry = opcode::Read::new(fd, rest.as_mut_ptr(), length(len)).offset(at).build();
            match !file.is_direct() && len >= READ_ASIDE_BYTES {
                true => entry.flags(squeue::Flags::ASYNC),
                false => entry,
            }
        }
        FileOp::Write { offset, buf, done } => {
            let at = offset.saturating_add(*done as u64);
            let rest = &buf[*done..];
            let (start, len) = (rest.as_ptr(), length(rest.len()));
            match number_of(buf.memory(), buf.len()) {
                Some(number) => opcode::WriteFixed::new(fd, start, len, number).offset(at).build(),
                None => opcode::Write::new(fd, start, len).offset(at).build(),
            }
        }
        FileOp::Sync { data_only } => {
            let flags =
                if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
            opcode::Fsync::new(fd).flags(flags).build()
        }
        FileOp::Allocate { mode, offset, len } => {
            opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode.flags()).build()
        }
        FileOp::Seek { .. } | FileOp::SetLen { .. } => return None,
    })
}

impl Io for RingEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::IoUring
    }

    fn now(&self) -> Time {
        Time::monotonic()
    }

    fn start(&self, file: &Arc<File>, op: FileOp) -> OpFuture {
        if matches!(op, FileOp::Seek { .. } | FileOp::SetLen { .. }) {
            let (key, future) = self.table.insert(file, None);
            blocking::start(file, op, key, &self.completions);
            return future;
        }
        let (key, future) = self.table.insert(file, Some(op));
        self.backlog.borrow_mut().push_back(key);
        future
    }

    fn turn(&self, wait: Wait) -> io::Result<usize> {
        self.registered.begin_turn(&self.ring);
        self.submit()?;
        let done = self.reap() + self.completions.drain(&self.table);
        let wait = match wait {
            _ if done > 0 => Wait::No,
            // The kernel was short of memory and has not taken everything: try again soon.
            Wait::Forever | Wait::Until(_) if !self.ring.borrow_mut().submission().is_empty() => {
                Wait::Until(self.now() + RETRY_SUBMIT)
            }
            wait => wait,
        };
        // Completions of running operations are posted when the thread enters the kernel.
        if wait == Wait::No && !self.reactor.has_sources() && self.in_ring.get() == 0 {
            return Ok(done);
        }
        let events = self.reactor.wait(wait, self.now())?;
        Ok(done + events + self.reap() + self.completions.drain(&self.table))
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

impl Drop for RingEngine {
    /// The kernel may still write into buffers of running operations: wait for all of them.
    fn drop(&mut self) {
        self.backlog.borrow_mut().clear();
        while self.in_ring.get() > 0 {
            if self
                .ring
                .borrow()
                .submit_and_wait(1)
                .is_err_and(|error| error.raw_os_error() != Some(libc::EINTR))
            {
                // Their memory must not be freed under the kernel: leak it rather than that.
                std::mem::forget(Rc::clone(&self.table));
                return;
            }
            self.reap();
        }
    }
}
