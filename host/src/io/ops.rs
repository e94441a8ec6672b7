//! File operations in flight: who owns their buffers, and how a future learns the end.
//!
//! An operation is a slot of its worker's [`OpTable`] from start to completion. The slot (or the
//! blocking thread that runs it) owns the buffers and keeps the file open. A dropped [`OpFuture`]
//! detaches its slot: the operation goes on, and its end frees the slot.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crossbeam::queue::SegQueue;
use slab::Slab;

use super::file::{AllocateMode, File, SeekTarget};
use super::reactor;
use super::{Buf, BufMut};

/// One operation on a file. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum FileOp {
    /// Reads into `buf[done..]` from `offset + done`; may read less.
    Read {
        /// Where the buffer's first byte lies in the file.
        offset: u64,
        /// The destination.
        buf: BufMut,
        /// Bytes that are there already.
        done: usize,
    },
    /// Writes `buf[done..]` at `offset + done`; may write less.
    Write {
        /// Where the buffer's first byte goes.
        offset: u64,
        /// The source.
        buf: Buf,
        /// Bytes that are written already.
        done: usize,
    },
    /// Makes completed writes durable.
    Sync {
        /// Data and what is needed to read it (`fdatasync`), or all metadata too.
        data_only: bool,
    },
    /// Deallocates or zeroes a range, or has the file reach to its end.
    Allocate {
        /// Which of them.
        mode: AllocateMode,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Finds the next data or hole at or after `offset`; the result is its offset.
    Seek {
        /// From where.
        offset: u64,
        /// For what.
        target: SeekTarget,
    },
    /// Sets the file's length.
    SetLen {
        /// The new length.
        len: u64,
    },
}

/// How an operation ended: the number of bytes (or the offset found), and the operation with its buffers.
#[derive(Debug)]
pub struct OpOutput {
    /// Bytes transferred, offset found, or 0.
    pub result: io::Result<u64>,
    /// The operation, with its buffers.
    pub op: FileOp,
}

enum Slot {
    /// Running; the operation is here (ring) or with a blocking thread (`None`).
    Running { op: Option<FileOp>, file: Arc<File>, waker: Option<Waker>, detached: bool },
    /// Finished, and not yet asked for.
    Finished(OpOutput),
}

/// The operations of one worker. Bounded by the requests that its exports admit.
#[derive(Default)]
pub(super) struct OpTable {
    slots: RefCell<Slab<Slot>>,
}

impl OpTable {
    /// Registers an operation that the engine runs in place.
    pub(super) fn insert(
        self: &Rc<Self>,
        file: &Arc<File>,
        op: Option<FileOp>,
    ) -> (usize, OpFuture) {
        let file = Arc::clone(file);
        let slot = Slot::Running { op, file, waker: None, detached: false };
        let key = self.slots.borrow_mut().insert(slot);
        (key, OpFuture { table: Some(Rc::clone(self)), key })
    }

    /// Looks at a running operation and its file.
    pub(super) fn with<R>(&self, key: usize, f: impl FnOnce(&mut FileOp, &File) -> R) -> Option<R> {
        match self.slots.borrow_mut().get_mut(key) {
            Some(Slot::Running { op: Some(op), file, .. }) => Some(f(op, file)),
            _ => None,
        }
    }

    /// Ends an operation; `op` is the operation when a blocking thread held it.
    pub(super) fn finish(&self, key: usize, result: io::Result<u64>, returned: Option<FileOp>) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else { return };
        let Slot::Running { op, waker, detached, .. } = slot else { return };
        let (op, waker, detached) = (op.take().or(returned), waker.take(), *detached);
        match op {
            Some(op) if !detached => *slot = Slot::Finished(OpOutput { result, op }),
            _ => drop(slots.remove(key)),
        }
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Waits for one operation.
pub struct OpFuture {
    table: Option<Rc<OpTable>>,
    key: usize,
}

impl Future for OpFuture {
    type Output = OpOutput;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OpOutput> {
        let Some(table) = self.table.clone() else { return Poll::Pending };
        let mut slots = table.slots.borrow_mut();
        match slots.get_mut(self.key) {
            Some(Slot::Running { waker, .. }) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Slot::Finished(_)) => {}
            None => return Poll::Pending,
        }
        let Slot::Finished(output) = slots.remove(self.key) else { return Poll::Pending };
        self.table = None;
        Poll::Ready(output)
    }
}

impl Drop for OpFuture {
    fn drop(&mut self) {
        let Some(table) = self.table.take() else { return };
        let mut slots = table.slots.borrow_mut();
        let finished = match slots.get_mut(self.key) {
            Some(Slot::Running { detached, waker, .. }) => {
                *detached = true;
                *waker = None;
                false
            }
            Some(Slot::Finished(_)) => true,
            None => false,
        };
        let removed = finished.then(|| slots.remove(self.key));
        drop(slots);
        drop(removed);
    }
}

/// Where blocking threads leave what they have finished for one worker.
pub(super) struct Completions {
    queue: SegQueue<(usize, OpOutput)>,
    waker: Arc<reactor::Waker>,
}

impl Completions {
    pub(super) fn new(waker: &Arc<reactor::Waker>) -> Arc<Self> {
        Arc::new(Self { queue: SegQueue::new(), waker: Arc::clone(waker) })
    }

    /// Called by a blocking thread.
    pub(super) fn push(&self, key: usize, output: OpOutput) {
        self.queue.push((key, output));
        self.waker.wake();
    }

    /// Ends everything that has come; returns how many.
    pub(super) fn drain(&self, table: &OpTable) -> usize {
        let mut count = 0;
        while let Some((key, output)) = self.queue.pop() {
            table.finish(key, output.result, Some(output.op));
            count += 1;
        }
        count
    }
}
