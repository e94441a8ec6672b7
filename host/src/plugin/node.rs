//! The node of a plugin: every request passes the plugin's judgement, then goes to the child.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use blockloom_abi::{Errno, Kind, NodeIndex, RequestFlags, RequestId};

use super::instance::Instance;
use super::local::{LocalPlugin, Offer, Verdict, Waiting};
use super::table::Answer;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, EdgeRef};
use crate::io::{Buf, BufMut, Time, sleep_until, turn_now};
use crate::node::{Extent, Node, NodeFuture, NodeInfo, WriteFlags};

/// A filter whose policy is a plugin's.
pub struct PluginNode {
    instance: Arc<Instance>,
    index: NodeIndex,
}

/// A request as the guest sees it.
#[derive(Clone, Copy)]
struct Shape {
    kind: Kind,
    flags: RequestFlags,
    offset: u64,
    len: u64,
}

/// What the guest's judgement comes to.
enum Step {
    Forward,
    /// Forward, and tell the guest how it ended.
    ForwardNotify(Waiting, RequestId),
    /// A success without the child.
    Succeed,
    Fail(Error),
}

impl PluginNode {
    /// One more node of `instance`.
    ///
    /// # Errors
    /// When the instance serves too many already.
    pub fn new(instance: &Arc<Instance>) -> Result<Self> {
        Ok(Self { instance: Arc::clone(instance), index: instance.reserve_node()? })
    }

    /// The instance.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Has the guest judge a request, and runs it on the child if it says so. `unforwarded` is the result
    /// of a success without the child, which the table allows for advisory requests alone.
    async fn judge<T>(
        &self,
        cx: Cx<'_>,
        shape: Shape,
        unforwarded: Option<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        let child = cx.child(0)?;
        let notified = match self.step(cx, shape).await {
            Step::Forward => None,
            Step::ForwardNotify(waiting, id) => Some((waiting, id)),
            Step::Succeed => return unforwarded.ok_or_else(|| self.fault_error()),
            Step::Fail(error) => return Err(error),
        };
        let result = call(child).await;
        match notified {
            None => result,
            Some((waiting, id)) => Box::pin(self.settle(&waiting, id, result)).await,
        }
    }

    /// What is to be done with a request: returns when it may go to the child.
    async fn step(&self, cx: Cx<'_>, shape: Shape) -> Step {
        let is_flush = shape.kind == Kind::Flush;
        if self.instance.is_failed() {
            // A flush never depends on the plugin.
            return if is_flush { Step::Forward } else { Step::Fail(self.fault_error()) };
        }
        if !self.instance.wants(shape.kind) {
            return Step::Forward;
        }
        let (Shape { kind, flags, offset, len }, node) = (shape, self.index);
        let request = |ticket| Offer::Request { ticket, node, kind, flags, offset, len };
        let waiting = LocalPlugin::of(&self.instance).request(request);
        let answer = match waiting.verdict().await {
            Verdict::Fault if is_flush => return Step::Forward,
            Verdict::Fault => return Step::Fail(self.fault_error()),
            Verdict::Answer(answer) => answer,
        };
        match answer {
            Answer::Complete(Ok(())) => Step::Succeed,
            Answer::Complete(Err(errno)) => Step::Fail(self.refusal(errno)),
            Answer::Forward { known: None, .. } => Step::Forward,
            Answer::Forward { not_before_ns, notify, known: Some(id) } => {
                // A flush never depends on the plugin.
                if !is_flush {
                    Box::pin(self.hold(cx, &waiting, Time::from_nanos(not_before_ns))).await;
                }
                if notify {
                    return Step::ForwardNotify(waiting, id);
                }
                waiting.plugin().offer(Offer::LetGo { id });
                Step::Forward
            }
        }
    }

    /// Keeps a request until its time, which the guest may change; lets it go at once when the node is
    /// drained or the plugin fails.
    async fn hold(&self, cx: Cx<'_>, waiting: &Waiting, until: Time) {
        let mut until = until;
        // A verdict that the failure found unread stands, and is the last one: nobody would end the wait.
        while until > turn_now() && !self.instance.is_failed() {
            let mut timer = pin!(sleep_until(until));
            let retimed = poll_fn(|task| {
                if let Poll::Ready(verdict) = waiting.poll(task.waker()) {
                    return Poll::Ready(match verdict {
                        Verdict::Answer(Answer::Forward { not_before_ns, .. }) => {
                            Some(Time::from_nanos(not_before_ns))
                        }
                        _ => None,
                    });
                }
                if cx.poll_drained(task) {
                    return Poll::Ready(None);
                }
                timer.as_mut().poll(task).map(|()| None)
            })
            .await;
            let Some(time) = retimed else { return };
            until = time;
        }
    }

    fn fault_error(&self) -> Error {
        self.instance.fault_error()
    }

    /// Tells the guest the child's result and waits for its completion. It may turn a success into an
    /// error, never the other way.
    async fn settle<T>(&self, waiting: &Waiting, id: RequestId, result: Result<T>) -> Result<T> {
        let errno = |error: &Error| Errno::new(error.errno().unsigned_abs()).unwrap_or(Errno::EIO);
        let told = result.as_ref().map(drop).map_err(errno);
        waiting.plugin().offer(Offer::Done { ticket: waiting.ticket(), id, result: told });
        loop {
            match waiting.verdict().await {
                // Another time for a request that had gone: the guest still owes its completion.
                Verdict::Answer(Answer::Forward { .. }) if self.instance.is_failed() => {
                    return result;
                }
                Verdict::Answer(Answer::Forward { .. }) => {}
                Verdict::Answer(Answer::Complete(Err(errno))) => {
                    return result.and(Err(self.refusal(errno)));
                }
                Verdict::Answer(Answer::Complete(Ok(()))) | Verdict::Fault => return result,
            }
        }
    }

    fn refusal(&self, errno: Errno) -> Error {
        let kind = i32::try_from(errno.number()).map_or(ErrorKind::Io, ErrorKind::from_errno);
        Error::new(
            kind,
            format!("plugin `{}` failed the request ({errno})", self.instance.plugin()),
        )
    }
}

fn write_flags(flags: WriteFlags) -> RequestFlags {
    let fua = if flags.fua { RequestFlags::FUA } else { RequestFlags::NONE };
    if flags.no_unmap { fua.with(RequestFlags::NO_UNMAP) } else { fua }
}

impl Node for PluginNode {
    fn driver(&self) -> &'static str {
        "plugin"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children)
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.instance.add_node(self.index, name, info, children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        let (kind, flags, len) = (Kind::Read, RequestFlags::NONE, buf.len() as u64);
        let shape = Shape { kind, flags, offset, len };
        Box::pin(self.judge(cx, shape, None, async move |child| child.read(offset, buf).await))
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        let len = buf.len() as u64;
        let shape = Shape { kind: Kind::Write, flags: write_flags(flags), offset, len };
        Box::pin(
            self.judge(cx, shape, None, async move |child| child.write(offset, buf, flags).await),
        )
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        let shape = Shape { kind: Kind::Zero, flags: write_flags(flags), offset, len };
        Box::pin(
            self.judge(cx, shape, None, async move |child| child.zero(offset, len, flags).await),
        )
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        let shape = Shape { kind: Kind::Discard, flags: RequestFlags::NONE, offset, len };
        Box::pin(
            self.judge(cx, shape, Some(()), async move |child| child.discard(offset, len).await),
        )
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        let shape = Shape { kind: Kind::Flush, flags: RequestFlags::NONE, offset: 0, len: 0 };
        Box::pin(self.judge(cx, shape, None, async move |child| child.flush().await))
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        // A transparent filter's block status is its child's.
        Box::pin(async move { cx.child(0)?.block_status(offset, len).await })
    }
}
