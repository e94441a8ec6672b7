//! The bytes that a guest has had read, until it lets go of them or what they were read for has ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockloom_abi::Token;

use super::bytes::BufferBytes;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::ProvenBuf;
use crate::io::Buf;

/// Bytes that one instance may have in buffers, on all workers: 64 of the largest.
const BUFFER_BYTES_MAX: u64 = 64 << 20;

/// How many bytes an instance has in buffers.
#[derive(Default)]
pub(super) struct BufferRoom(AtomicU64);

/// A part of the room, until it is dropped.
pub(super) struct Taken {
    room: Arc<BufferRoom>,
    bytes: u64,
}

impl BufferRoom {
    /// # Errors
    /// `ENOMEM` when there is not so much left.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Taken> {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= BUFFER_BYTES_MAX);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Taken { room: Arc::clone(self), bytes }),
            Err(_) => {
                let message = format!(
                    "its buffers would hold more than {BUFFER_BYTES_MAX} bytes: it has to drop some"
                );
                Err(Error::new(ErrorKind::NoMemory, message))
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What is in a buffer, with its room.
#[derive(Clone)]
pub(super) struct Filled {
    /// As it was read; `None` of one that the guest has made.
    read: Option<ProvenBuf>,
    /// As the guest sees it, if it does.
    seen: Option<Arc<BufferBytes>>,
    _room: Rc<Taken>,
}

impl Filled {
    pub(super) fn len_bytes(&self) -> u64 {
        let read = self.read.as_ref().map(|read| read.bytes().len());
        read.or_else(|| self.seen.as_ref().map(|seen| seen.len())).unwrap_or(0) as u64
    }

    /// The guest's own bytes, if it has made them or altered what was read: nothing is proven of them.
    pub(super) fn own(&self) -> Option<Buf> {
        self.seen.as_ref()?.own()
    }

    /// As it was read.
    pub(super) fn into_read(self) -> Option<ProvenBuf> {
        self.read
    }
}

/// A buffer that is being filled, among those of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filling(u64);

struct Buffer {
    number: Filling,
    token: Token,
    /// `None` until it is.
    filled: Option<Filled>,
}

/// The buffers of one request, or job, from their READ or MAKE on.
#[derive(Default)]
pub(super) struct Buffers {
    begun: Cell<u64>,
    all: RefCell<Vec<Buffer>>,
}

impl Buffers {
    pub(super) fn begin(&self, token: Token) -> Filling {
        let number = Filling(self.begun.get());
        self.begun.set(number.0 + 1);
        self.all.borrow_mut().push(Buffer { number, token, filled: None });
        number
    }

    /// What was read; what of it the guest sees. One that has been let go of meanwhile is gone.
    pub(super) fn keep(
        &self,
        number: Filling,
        read: ProvenBuf,
        (seen, room): (Option<Arc<BufferBytes>>, Taken),
    ) {
        self.fill(number, Filled { read: Some(read), seen, _room: Rc::new(room) });
    }

    /// One for the guest's own bytes.
    pub(super) fn keep_made(&self, number: Filling, made: Arc<BufferBytes>, room: Taken) {
        self.fill(number, Filled { read: None, seen: Some(made), _room: Rc::new(room) });
    }

    fn fill(&self, number: Filling, filled: Filled) {
        let mut all = self.all.borrow_mut();
        if let Some(buffer) = all.iter_mut().find(|buffer| buffer.number == number) {
            buffer.filled = Some(filled);
        }
    }

    /// It is not going to be filled.
    pub(super) fn give_up(&self, number: Filling) {
        self.all.borrow_mut().retain(|buffer| buffer.number != number);
    }

    pub(super) fn get(&self, token: Token) -> Option<Filled> {
        let all = self.all.borrow();
        all.iter().find(|buffer| buffer.token == token)?.filled.clone()
    }

    pub(super) fn forget(&self, token: Token) {
        self.all.borrow_mut().retain(|buffer| buffer.token != token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back() {
        let room = Arc::<BufferRoom>::default();
        let taken: Vec<_> = (0..64).map(|_| room.take(1 << 20).expect("room")).collect();
        assert_eq!(room.take(1).err().expect("none is left").kind(), ErrorKind::NoMemory);
        assert!(room.take(u64::MAX).is_err());
        drop(taken);
        drop(room.take(BUFFER_BYTES_MAX).expect("all of it"));
    }
}
