//! Judging a request: it is offered to the guest, unless rules or the state of the instance decide, and what the
//! guest decided is done.

use std::future::{poll_fn, ready};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use blockloom_abi::{ChildIndex, Errno, Kind, RequestFlags};

use super::super::bytes::Handed;
use super::super::faults::Phase;
use super::super::local::{Arrival, LocalPlugin, Named, Offer, Verdict, Waiting};
use super::super::operation::{Asked, Operations, errno_of};
use super::super::rules::{KeptRules, Ruling};
use super::super::table::Answer;
use super::PluginNode;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, EdgeRef, HasAll};
use crate::io::{Buf, Time, sleep_until, turn_now};
use crate::node::Node;

/// A request as the guest sees it.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) flags: RequestFlags,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What became of a request that was to be offered.
pub(super) enum Offered {
    /// The guest does not judge it.
    Forward,
    /// Nor does it by its rules; or it has already said so.
    Pass(Rc<KeptRules>),
    /// It does if the child has nothing allocated in some part of the range.
    Look(ChildIndex, Rc<KeptRules>),
    Waiting(Waiting),
    /// There is no store to offer it to.
    Down(Arrival),
    Fail(Error),
}

/// What comes of a request that the child has no part in.
#[derive(Clone, Copy)]
pub(super) enum Without<T> {
    /// The guest may not answer it so.
    Nothing,
    /// Success, which the table allows for advisory requests and those whose data the guest makes.
    Success(T),
    /// What a copy has brought that serves it.
    Shown(fn(Buf) -> T),
}

/// Where a request stands that the guest has not forwarded.
pub(super) enum Stand {
    /// It is offered.
    Judged(Waiting, Verdict),
    /// It waits for a new store.
    Down(Arrival),
}

impl PluginNode {
    /// Has the guest judge a request, and runs it on the child if it says so.
    pub(super) async fn judge<T>(
        &self,
        cx: Cx<'_>,
        (shape, bytes): (Shape, Option<&Handed>),
        without: Without<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.offer(&shape, bytes) {
            Offered::Forward => call(cx.child(self.file)?).await,
            Offered::Pass(rules) => self.pass(cx, rules, call).await,
            Offered::Look(child, rules) => {
                let shape = (shape, bytes);
                Box::pin(self.look(cx, shape, (child, rules), without, call)).await
            }
            Offered::Fail(error) => Err(error),
            Offered::Waiting(waiting) => {
                let verdict = waiting.verdict().await;
                let stand = Stand::Judged(waiting, verdict);
                self.obey(cx, (shape, bytes), stand, without, call).await
            }
            Offered::Down(arrival) => {
                let stand = Stand::Down(arrival);
                Box::pin(self.obey(cx, (shape, bytes), stand, without, call)).await
            }
        }
    }

    /// Runs a request on the child, by rules that are in force for it until it has ended.
    pub(super) async fn pass<T>(
        &self,
        cx: Cx<'_>,
        rules: Rc<KeptRules>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        let result = call(cx.child(self.file)?).await;
        drop(rules);
        result
    }

    /// Has the guest judge a request if the child has nothing allocated in some part of its range, or does
    /// not say.
    async fn look<T>(
        &self,
        cx: Cx<'_>,
        (shape, bytes): (Shape, Option<&Handed>),
        (child, rules): (ChildIndex, Rc<KeptRules>),
        without: Without<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        let has_all = match self.looking(cx, &shape, child)? {
            Some(looking) => looking.await,
            None => false,
        };
        match self.looked(&shape, bytes, has_all, rules) {
            Ok(waiting) => {
                let verdict = waiting.verdict().await;
                let stand = Stand::Judged(waiting, verdict);
                self.obey(cx, (shape, bytes), stand, without, call).await
            }
            Err(rules) => self.pass(cx, rules, call).await,
        }
    }

    /// Whether a child has all of a request's range; none if there is no such child.
    #[inline]
    pub(super) fn looking<'a>(
        &self,
        cx: Cx<'a>,
        shape: &Shape,
        child: ChildIndex,
    ) -> Result<Option<HasAll<'a>>> {
        let range = shape.offset..shape.offset.saturating_add(shape.len);
        self.edge_of(child).map(|edge| Ok(cx.child(edge)?.has_all(range))).transpose()
    }

    /// What comes of that: the guest is asked, unless the child has all.
    ///
    /// # Errors
    /// The rules by which it passes, if it may go to the child already.
    #[inline]
    pub(super) fn looked(
        &self,
        shape: &Shape,
        bytes: Option<&Handed>,
        has_all: bool,
        rules: Rc<KeptRules>,
    ) -> Result<Waiting, Rc<KeptRules>> {
        let plugin = LocalPlugin::of(&self.instance);
        if has_all {
            self.counters.passed(plugin.worker());
            return Err(rules);
        }
        drop(rules);
        self.ask(shape, bytes, turn_now(), &plugin)
    }

    /// The number of the edge to a child.
    #[inline]
    fn edge_of(&self, child: ChildIndex) -> Option<usize> {
        let children = self.children.load();
        children.iter().find(|known| known.index == child).map(|known| known.edge)
    }

    #[inline]
    pub(super) fn offer(&self, shape: &Shape, bytes: Option<&Handed>) -> Offered {
        let kind = shape.kind;
        let phase = self.instance.phase();
        if phase != Phase::Running {
            return self.without(kind, phase);
        }
        if !self.instance.wants(kind) {
            return Offered::Forward;
        }
        let plugin = LocalPlugin::of(&self.instance);
        let rules = plugin.rules(&self.rules);
        let range = shape.offset..shape.offset.saturating_add(shape.len);
        match if self.asks_anyway() { Ruling::Ask } else { rules.judge(kind, &range) } {
            Ruling::Pass => {
                self.counters.passed(plugin.worker());
                return Offered::Pass(rules);
            }
            Ruling::AskIfUnallocated(child) => return Offered::Look(child, rules),
            Ruling::Ask => {}
        }
        match self.ask_by(rules, (shape, bytes), turn_now(), &plugin) {
            Ok(waiting) => Offered::Waiting(waiting),
            Err(rules) => Offered::Pass(rules),
        }
    }

    /// What becomes of a request that comes while no guest is there.
    #[cold]
    pub(super) fn without(&self, kind: Kind, phase: Phase) -> Offered {
        match phase {
            Phase::Reloading => Offered::Down(LocalPlugin::of(&self.instance).arrive()),
            // A flush never depends on the plugin.
            _ if kind == Kind::Flush => Offered::Forward,
            Phase::Bypassed => Offered::Forward,
            Phase::Failed => Offered::Fail(self.fault_error()),
            Phase::Running | Phase::Down => Offered::Down(LocalPlugin::of(&self.instance).arrive()),
        }
    }

    /// Offers a request, whatever the rules say.
    ///
    /// # Errors
    /// The rules by which it passes, if it may go to the child already.
    pub(super) fn ask(
        &self,
        shape: &Shape,
        bytes: Option<&Handed>,
        since: Time,
        plugin: &Rc<LocalPlugin>,
    ) -> Result<Waiting, Rc<KeptRules>> {
        self.ask_by(plugin.rules(&self.rules), (shape, bytes), since, plugin)
    }

    #[inline]
    pub(super) fn ask_by(
        &self,
        rules: Rc<KeptRules>,
        (shape, bytes): (&Shape, Option<&Handed>),
        since: Time,
        plugin: &Rc<LocalPlugin>,
    ) -> Result<Waiting, Rc<KeptRules>> {
        let &Shape { kind, flags, offset, len } = shape;
        let node = self.index;
        self.counters.asked(plugin.worker());
        plugin.request(since, rules, |ticket| {
            if let Some(bytes) = bytes {
                bytes.lend(ticket);
            }
            Offer::Request { ticket, node, kind, flags, offset, len }
        })
    }

    /// Does with a request what the guest decided. One that the guest had not forwarded when its store was lost
    /// is offered to the next one.
    pub(super) async fn obey<T>(
        &self,
        cx: Cx<'_>,
        (shape, bytes): (Shape, Option<&Handed>),
        stand: Stand,
        without: Without<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        // A flush never depends on the plugin.
        let is_flush = shape.kind == Kind::Flush;
        let child = cx.child(self.file)?;
        let mut operations = Operations::default();
        let mut stand = stand;
        let (waiting, answer) = loop {
            let (waiting, verdict) = match stand {
                Stand::Judged(waiting, verdict) => (waiting, verdict),
                Stand::Down(arrival) => {
                    let plugin = LocalPlugin::of(&self.instance);
                    let is_asked = match is_flush {
                        true => {
                            plugin.rest(arrival, |it| it == Phase::Reloading).await
                                == Phase::Running
                        }
                        false => self.outlast(cx, &plugin, arrival).await? == Phase::Running,
                    };
                    if !is_asked || !self.instance.wants(shape.kind) {
                        return call(child).await;
                    }
                    let waiting = match self.ask(&shape, bytes, arrival.since, &plugin) {
                        Ok(waiting) => waiting,
                        Err(rules) => return self.pass(cx, rules, call).await,
                    };
                    let verdict = waiting.verdict().await;
                    (waiting, verdict)
                }
            };
            stand = match verdict {
                Verdict::Fault if is_flush => return call(child).await,
                Verdict::Fault => {
                    // What was done for it is over before it begins anew.
                    operations.ended().await;
                    operations = Operations::default();
                    Stand::Down(waiting.arrival())
                }
                Verdict::Answer(answer) => break (waiting, answer),
                Verdict::Operate(asked) => {
                    self.operate(cx, &waiting, &operations, asked).await;
                    let verdict = waiting.verdict().await;
                    Stand::Judged(waiting, verdict)
                }
            };
        };
        // One that was forwarded keeps them until the child has ended it.
        let rules = waiting.take_rules();
        match answer {
            Answer::Complete(Ok(())) => match without {
                Without::Success(result) => Ok(result),
                _ => Err(self.fault_error()),
            },
            Answer::Served => {
                drop(waiting);
                match (operations.take_shown(shape.offset, shape.len), without) {
                    (Some(bytes), Without::Shown(result)) => Ok(result(bytes)),
                    // It is there, too.
                    _ => call(child).await,
                }
            }
            Answer::Complete(Err(errno)) => Err(self.refusal(errno)),
            Answer::Forward { known: None, .. } => {
                drop(waiting);
                call(child).await
            }
            Answer::Forward { not_before_ns, notify, known: Some(id) } => {
                let named = Named::new(&waiting, id, notify);
                if !is_flush {
                    let until = Time::from_nanos(not_before_ns);
                    Box::pin(self.hold(cx, (&waiting, &operations), until)).await;
                }
                if notify {
                    let result = call(child).await;
                    drop(rules);
                    named.end(result.as_ref().map(drop).map_err(errno_of));
                    return Box::pin(self.settle(cx, (&waiting, &operations, bytes), result)).await;
                }
                drop(named);
                drop(waiting);
                call(child).await
            }
        }
    }

    /// What comes of a change that the guest answers: of an opaque node, as it keeps the data itself.
    pub(super) fn unforwarded(&self) -> Without<()> {
        if self.is_opaque() { Without::Success(()) } else { Without::Nothing }
    }

    /// Waits until the guest's place is taken, by a new store or for good by the child; as long as a request may
    /// be held, and not at the end of the host. Whoever drains the node waits for it, too: a store comes back
    /// within seconds, or never. While another plugin is about to take the place, which is soon, the time that a
    /// request may be held does not count.
    pub(super) async fn outlast(
        &self,
        cx: Cx<'_>,
        plugin: &LocalPlugin,
        arrival: Arrival,
    ) -> Result<Phase> {
        let end = arrival.since + self.instance.limits().hold;
        let is_absent = |phase| matches!(phase, Phase::Down | Phase::Reloading);
        let mut rest = pin!(plugin.rest(arrival, is_absent));
        let mut timer = pin!(sleep_until(end));
        let (mut is_over, mut is_replaced) = (false, false);
        let phase = poll_fn(|task| {
            // A store that is there counts before the time that is over.
            if let Poll::Ready(phase) = rest.as_mut().poll(task) {
                return Poll::Ready(Some(phase));
            }
            if cx.poll_ends(task) {
                return Poll::Ready(None);
            }
            is_over = is_over || timer.as_mut().poll(task).is_ready();
            is_replaced |= self.instance.phase() == Phase::Reloading;
            if is_replaced || !is_over { Poll::Pending } else { Poll::Ready(None) }
        })
        .await;
        match phase {
            // One that has been held for that long is not tried again.
            Some(Phase::Running) if is_replaced || turn_now() < end => Ok(Phase::Running),
            Some(Phase::Bypassed) => Ok(Phase::Bypassed),
            _ => Err(self.fault_error()),
        }
    }

    /// Keeps a request until its time, which the guest may change, and no longer than it may be held; lets it go
    /// at once when the node is drained or the store is lost.
    pub(super) async fn hold(
        &self,
        cx: Cx<'_>,
        (waiting, operations): (&Waiting, &Operations),
        until: Time,
    ) {
        let end = turn_now() + self.instance.limits().hold;
        let mut until = until;
        while until > turn_now() {
            let mut timer = pin!(sleep_until(until.min(end)));
            let verdict = poll_fn(|task| {
                if let Poll::Ready(verdict) = waiting.poll(task.waker()) {
                    return Poll::Ready(Some(verdict));
                }
                if cx.poll_drained(task) {
                    return Poll::Ready(None);
                }
                timer.as_mut().poll(task).map(|()| None)
            })
            .await;
            match verdict {
                Some(Verdict::Answer(Answer::Forward { not_before_ns, .. })) => {
                    until = Time::from_nanos(not_before_ns);
                }
                // It lets go of a buffer, not of the request.
                Some(Verdict::Operate(asked)) => {
                    self.operate(cx, waiting, operations, asked).await;
                }
                None if turn_now() >= end && until > end => {
                    return self.instance.tell_let_go();
                }
                _ => return,
            }
        }
    }

    /// Begins what the guest wants done for a request.
    pub(super) async fn operate(
        &self,
        cx: Cx<'_>,
        waiting: &Waiting,
        operations: &Operations,
        asked: Asked,
    ) {
        poll_fn(|task| {
            let ground = ready(Ok(cx.on_behalf()));
            let node = (self.index, self.children.load_full(), self.access);
            operations.start(Some(task), ground, node, waiting.plugin(), asked);
            Poll::Ready(())
        })
        .await;
    }

    /// Waits for the completion of a guest that has been told the child's result. It may turn a success into
    /// an error, never the other way.
    pub(super) async fn settle<T>(
        &self,
        cx: Cx<'_>,
        (waiting, operations, bytes): (&Waiting, &Operations, Option<&Handed>),
        result: Result<T>,
    ) -> Result<T> {
        loop {
            match waiting.verdict().await {
                // Another time for a request that had gone: the guest still owes its completion.
                Verdict::Answer(Answer::Forward { .. } | Answer::Served) => {}
                Verdict::Operate(asked) => self.operate(cx, waiting, operations, asked).await,
                Verdict::Answer(Answer::Complete(Err(errno))) => {
                    return result.and(Err(self.refusal(errno)));
                }
                Verdict::Answer(Answer::Complete(Ok(()))) => return result,
                Verdict::Fault => {
                    if let Some(bytes) = bytes {
                        bytes.lose();
                    }
                    return result;
                }
            }
        }
    }

    pub(super) fn refusal(&self, errno: Errno) -> Error {
        let kind = i32::try_from(errno.number()).map_or(ErrorKind::Io, ErrorKind::from_errno);
        Error::new(
            kind,
            format!("plugin `{}` failed the request ({errno})", self.instance.plugin()),
        )
    }
}
