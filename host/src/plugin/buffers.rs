//! The bytes that a guest has had read, until it lets go of them or what they were read for has ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockloom_abi::Token;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::ProvenBuf;

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
    pub(super) bytes: ProvenBuf,
    _room: Rc<Taken>,
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

/// The buffers of one request, or job, from their READ on.
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

    /// It is filled; one that has been let go of meanwhile is gone.
    pub(super) fn keep(&self, number: Filling, bytes: ProvenBuf, room: Taken) {
        let mut all = self.all.borrow_mut();
        if let Some(buffer) = all.iter_mut().find(|buffer| buffer.number == number) {
            buffer.filled = Some(Filled { bytes, _room: Rc::new(room) });
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
