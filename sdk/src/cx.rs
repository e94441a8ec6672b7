//! What a body can do besides deciding: time, operations on children.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use blockloom_abi::{
    Action, BitmapIndex, ChildIndex, CopyRange, Errno, Extent, Kind, NodeIndex, Operation, Parent,
    Token, Write,
};

use crate::bytes::{Bytes, Holder};
use crate::exec::{Ended, Shared, Task, Unwanted};
use crate::{Signal, Time};

/// A body's way to the host.
///
/// Operations are done for the request (or job) whose body it is, to the children of its node.
/// One whose future is dropped before it ended goes on, and its result is lost; a wait ends. Ranges are byte
/// offsets; a copy, read or write moves at most 1 MiB ([`MAX_COPY_BYTES`](crate::MAX_COPY_BYTES)).
#[derive(Debug)]
pub struct Cx {
    shared: Rc<Shared>,
    slot: u16,
    parent: Parent,
    node: NodeIndex,
    /// Of the data of the request.
    len: u64,
    stop: Option<Rc<Signal>>,
}

impl Cx {
    pub(crate) fn new(shared: Rc<Shared>, slot: u16, task: Task) -> Self {
        let (parent, node, len, stop) = match task {
            Task::Request(request) | Task::Done(request, _) => {
                let has_data = matches!(request.kind, Kind::Read | Kind::Write);
                let len = if has_data { request.len } else { 0 };
                (Parent::Request(request.id), request.node, len, None)
            }
            Task::Job(node, stop) => (Parent::Job(node), node, 0, Some(stop)),
        };
        Self { shared, slot, parent, node, len, stop }
    }

    /// The time of the present call.
    #[must_use]
    pub fn now(&self) -> Time {
        self.shared.now()
    }

    /// The node that the body serves.
    #[must_use]
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// Whether the host wants this job to end.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.is_set())
    }

    /// Waits until the host wants this job to end; for ever in what is no job.
    pub async fn stopped(&self) {
        match &self.stop {
            Some(stop) => stop.wait().await,
            None => std::future::pending().await,
        }
    }

    /// The data of the request, for a filter to which it is granted ([`Description::bytes`]).
    ///
    /// In the body of a write it is what the guest writes; bytes that are put there are forwarded in its
    /// place. In [`done`](crate::Filter::done) of a read it is what the child gave, and bytes that are put
    /// there answer the read. A body of a read may put bytes, too, and say [`Served`](crate::Verdict::Served).
    ///
    /// [`Description::bytes`]: crate::Description::bytes
    #[must_use]
    pub fn bytes(&self) -> Bytes<'_> {
        let Parent::Request(id) = self.parent else { return Bytes::none() };
        Bytes::of(Holder::Request(id.bits()), self.len)
    }

    /// A buffer of zeros in the host, for bytes of the filter's own: at most 1 MiB.
    ///
    /// # Errors
    ///
    /// The host's; [`Errno::ENOMEM`] while there are too many.
    pub async fn make(&self, len: u64) -> Result<Buffer, Errno> {
        let action = Action::Make { token: NO_TOKEN, parent: self.parent, len };
        self.fill(action, len).await
    }

    /// Waits until a time; not at all for one that has passed.
    pub async fn sleep_until(&self, time: Time) {
        if time > self.now() {
            self.operation(Action::Timer { token: NO_TOKEN, at_ns: time.as_nanos() }).await;
        }
    }

    /// The block status of a child's range: its first extents, 64 at most. Where they end before the range does,
    /// ask again from there.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn status(&self, child: ChildIndex, range: Range<u64>) -> Result<Vec<Extent>, Errno> {
        self.status_above(child, None, range).await
    }

    /// The same, where only what lies above another child counts as allocated.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn status_above(
        &self,
        child: ChildIndex,
        above: Option<ChildIndex>,
        range: Range<u64>,
    ) -> Result<Vec<Extent>, Errno> {
        let operation = self.on(child, range);
        let ended = self.operation(Action::Status { operation, above }).await;
        ended.result.map(|()| ended.extents)
    }

    /// Copies a range from child to child, under a guard: await what it returns.
    pub fn copy(&self, from: ChildIndex, to: ChildIndex, range: Range<u64>) -> Copy<'_> {
        let Operation { token, parent, offset, len, .. } = self.on(from, range);
        let copy = CopyRange {
            token,
            parent,
            from,
            to,
            offset,
            len,
            claim: false,
            serve: false,
            clear: None,
        };
        Copy { cx: self, copy, running: None }
    }

    /// Reads a range into a buffer of the host.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn read(&self, child: ChildIndex, range: Range<u64>) -> Result<Buffer, Errno> {
        let operation = self.on(child, range);
        self.fill(Action::Read(operation), operation.len).await
    }

    async fn fill(&self, action: Action, len: u64) -> Result<Buffer, Errno> {
        let mut running = self.operation(action);
        let ended = (&mut running).await;
        let token = running.token.unwrap_or(NO_TOKEN);
        ended.result.map(|()| Buffer { shared: Rc::clone(&self.shared), token, len })
    }

    /// Writes a buffer of the host to a child, from an offset on.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn write(
        &self,
        child: ChildIndex,
        range: Range<u64>,
        source: &Buffer,
    ) -> Result<(), Errno> {
        let operation = self.on(child, range);
        let write = Write { operation, source: source.token, claim: false };
        self.operation(Action::Write(write)).await.result
    }

    /// The same, with the claim that the child's view already shows these bytes.
    ///
    /// # Errors
    ///
    /// The host's; [`Errno::ESTALE`] or [`Errno::EPERM`] if the claim is refused: nothing is
    /// written then.
    pub async fn write_unchanged(
        &self,
        child: ChildIndex,
        range: Range<u64>,
        source: &Buffer,
    ) -> Result<(), Errno> {
        let operation = self.on(child, range);
        let write = Write { operation, source: source.token, claim: true };
        self.operation(Action::Write(write)).await.result
    }

    /// Makes a range of a child read as zero.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn zero(&self, child: ChildIndex, range: Range<u64>) -> Result<(), Errno> {
        self.operation(Action::Zero(self.on(child, range))).await.result
    }

    /// Gives a range of a child back.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn discard(&self, child: ChildIndex, range: Range<u64>) -> Result<(), Errno> {
        self.operation(Action::Discard(self.on(child, range))).await.result
    }

    /// Makes a child's completed writes durable.
    ///
    /// # Errors
    ///
    /// The host's.
    pub async fn flush(&self, child: ChildIndex) -> Result<(), Errno> {
        self.operation(Action::Flush(self.on(child, 0..0))).await.result
    }

    fn on(&self, child: ChildIndex, range: Range<u64>) -> Operation {
        let len = range.end.saturating_sub(range.start);
        Operation { token: NO_TOKEN, parent: self.parent, child, offset: range.start, len }
    }

    fn operation(&self, action: Action) -> Running<'_> {
        Running { cx: self, action, token: None, ended: false }
    }
}

/// Stands for the token that an action gets when it is sent.
const NO_TOKEN: Token = Token(0);

/// An operation from its start to its end.
#[derive(Debug)]
struct Running<'a> {
    cx: &'a Cx,
    action: Action,
    token: Option<Token>,
    ended: bool,
}

impl Future for Running<'_> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let Some(token) = self.token else {
            // What the layout does not allow would end the instance.
            if Action::decode(self.action.encode()).is_err() {
                self.ended = true;
                return Poll::Ready(Ended { result: Err(Errno::EINVAL), extents: Vec::new() });
            }
            let waker = context.waker().clone();
            self.token = Some(self.cx.shared.start(self.cx.slot, waker, self.action));
            return Poll::Pending;
        };
        let ended = self.cx.shared.poll(token, context.waker());
        self.ended = ended.is_ready();
        ended
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token
            && !self.ended
        {
            let unwanted = match self.action {
                Action::Read(_) | Action::Make { .. } => Unwanted::Buffer,
                Action::Timer { .. } => Unwanted::Timer,
                _ => Unwanted::GoesOn,
            };
            self.cx.shared.abandon(token, unwanted);
        }
    }
}

/// A copy to be awaited.
#[derive(Debug)]
#[must_use = "a copy starts when it is awaited"]
pub struct Copy<'a> {
    cx: &'a Cx,
    copy: CopyRange,
    running: Option<Running<'a>>,
}

impl Copy<'_> {
    /// Claim that the view already shows these bytes; a refusal is [`Errno::ESTALE`] or
    /// [`Errno::EPERM`], and nothing is written.
    pub fn claim(mut self) -> Self {
        self.copy.claim = true;
        self
    }

    /// Let its bytes answer the request, which is then to be [`Served`](crate::Verdict::Served).
    pub fn serve(mut self) -> Self {
        self.copy.serve = true;
        self
    }

    /// Clear the covered bits of a bitmap once it has settled.
    pub fn clear(mut self, bitmap: BitmapIndex) -> Self {
        self.copy.clear = Some(bitmap);
        self
    }
}

impl Future for Copy<'_> {
    type Output = Result<(), Errno>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let (cx, copy) = (self.cx, self.copy);
        let running = self.running.get_or_insert_with(|| cx.operation(Action::Copy(copy)));
        Pin::new(running).poll(context).map(|ended| ended.result)
    }
}

/// Bytes in a buffer of the host, such as a child held; dropping it gives the buffer back.
#[derive(Debug)]
pub struct Buffer {
    shared: Rc<Shared>,
    token: Token,
    len: u64,
}

impl Buffer {
    /// Its bytes, for a filter to which they are granted. A buffer to which some are put proves nothing any
    /// more: a claim for it is refused.
    #[must_use]
    pub fn bytes(&self) -> Bytes<'_> {
        Bytes::of(Holder::Buffer(self.token.0), self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.shared.push(Action::Drop { token: self.token }.encode());
    }
}
