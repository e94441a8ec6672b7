//! Replies on their way: gathered while a turn's requests complete, sent with one call.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Poll, Waker};

use crate::io::{Buf, Stream};

/// Parts handed to the kernel in one call; it takes at most 1024.
const PARTS_MAX: usize = 512;

/// Gathered replies that hold this many bytes go out before more requests are run.
const SEND_EARLY_BYTES: usize = 512 << 10;

enum Piece {
    /// A range of the batch's heads.
    Head(Range<usize>),
    Data(Buf),
}

/// Replies that go out together.
#[derive(Default)]
struct Batch {
    heads: Vec<u8>,
    pieces: Vec<Piece>,
    /// Requests answered by it, and the bytes they hold: released once it has been sent.
    requests: usize,
    bytes: usize,
}

impl Batch {
    fn clear(&mut self) {
        self.heads.clear();
        self.pieces.clear();
        (self.requests, self.bytes) = (0, 0);
    }

    fn slice<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Head(range) => &self.heads[range.clone()],
            Piece::Data(buf) => buf,
        }
    }
}

/// The replies of one connection, and what its requests hold.
#[derive(Default)]
pub(super) struct Replies {
    gathering: RefCell<Batch>,
    /// The former batch's memory.
    spare: RefCell<Batch>,
    sender: Cell<Option<Waker>>,
    receiver: Cell<Option<Waker>>,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// No more requests come.
    ended: Cell<bool>,
    /// The socket is broken: replies are dropped.
    broken: Cell<bool>,
    /// The last reply has gone.
    drained: Cell<bool>,
}

/// A reply being written into the current batch.
pub(super) struct ReplyWriter<'a> {
    batch: std::cell::RefMut<'a, Batch>,
}

impl ReplyWriter<'_> {
    /// Appends what `write` pushes.
    pub(super) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.batch.heads.len();
        write(&mut self.batch.heads);
        let end = self.batch.heads.len();
        match self.batch.pieces.last_mut() {
            Some(Piece::Head(range)) if range.end == start => range.end = end,
            _ => self.batch.pieces.push(Piece::Head(start..end)),
        }
    }

    /// Appends data, sent from where it lies.
    pub(super) fn data(&mut self, buf: Buf) {
        self.batch.pieces.push(Piece::Data(buf));
    }
}

impl Replies {
    /// Counts a request that holds `bytes`.
    pub(super) fn begin(&self, bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Ends a request that held `bytes`: `write` makes its reply.
    pub(super) fn end(&self, bytes: usize, write: impl FnOnce(&mut ReplyWriter<'_>)) {
        if self.broken.get() {
            self.release(1, bytes);
            return;
        }
        let mut writer = ReplyWriter { batch: self.gathering.borrow_mut() };
        write(&mut writer);
        writer.batch.requests += 1;
        writer.batch.bytes += bytes;
        drop(writer);
        wake(&self.sender);
    }

    /// Lets the sender go first when much has been gathered: what it sends is still in the cache, and its
    /// buffers serve the next requests.
    pub(super) async fn yield_to_sender(&self) {
        let mut yielded = self.gathering.borrow().bytes < SEND_EARLY_BYTES;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Waits until one more request with `bytes` stays within the limits. One request always does.
    pub(super) async fn room(&self, bytes: usize, requests_max: usize, bytes_max: usize) {
        poll_fn(|cx| {
            let fits = self.requests.get() < requests_max && self.bytes.get() + bytes <= bytes_max;
            if fits || self.requests.get() == 0 {
                return Poll::Ready(());
            }
            self.receiver.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Says that no more requests come.
    pub(super) fn finish(&self) {
        self.ended.set(true);
        wake(&self.sender);
    }

    /// Waits until the last reply has gone. After [`Replies::finish`].
    pub(super) async fn drained(&self) {
        poll_fn(|cx| {
            if self.drained.get() {
                return Poll::Ready(());
            }
            self.receiver.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Whether the client has gone, or may be sent no more.
    pub(super) fn is_over(&self) -> bool {
        self.broken.get() || self.ended.get()
    }

    /// Whether the socket is broken.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    fn release(&self, requests: usize, bytes: usize) {
        self.requests.set(self.requests.get() - requests);
        self.bytes.set(self.bytes.get() - bytes);
        wake(&self.receiver);
        if self.ended.get() {
            wake(&self.sender);
        }
    }

    /// Sends replies until the last request has been answered and no more come.
    pub(super) async fn run(&self, stream: &Stream) {
        while let Some(mut batch) = self.next_batch().await {
            if !self.broken.get() && send(stream, &batch).await.is_err() {
                self.broken.set(true);
                stream.shutdown();
            }
            let (requests, bytes) = (batch.requests, batch.bytes);
            batch.clear();
            *self.spare.borrow_mut() = batch;
            self.release(requests, bytes);
        }
        self.drained.set(true);
        wake(&self.receiver);
    }

    async fn next_batch(&self) -> Option<Batch> {
        poll_fn(|cx| {
            if !self.gathering.borrow().pieces.is_empty() {
                let spare = std::mem::take(&mut *self.spare.borrow_mut());
                return Poll::Ready(Some(self.gathering.replace(spare)));
            }
            if self.ended.get() && self.requests.get() == 0 {
                return Poll::Ready(None);
            }
            self.sender.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

async fn send(stream: &Stream, batch: &Batch) -> io::Result<()> {
    let mut pieces = batch.pieces.iter().map(|piece| batch.slice(piece)).peekable();
    let mut parts: Vec<&[u8]> = Vec::with_capacity(PARTS_MAX.min(batch.pieces.len()));
    loop {
        while parts.len() < PARTS_MAX
            && let Some(piece) = pieces.next()
        {
            parts.push(piece);
        }
        if parts.is_empty() {
            return Ok(());
        }
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut count = stream.send(&slices).await?;
        let mut sent = 0;
        for part in &mut parts {
            if count < part.len() {
                *part = &part[count..];
                break;
            }
            count -= part.len();
            sent += 1;
        }
        parts.drain(..sent);
    }
}
