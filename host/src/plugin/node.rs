//! The node of a plugin: every request passes the plugin's judgement, then goes to the child.

use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use blockloom_abi::{ChildIndex, Errno, Kind, NodeIndex, RequestFlags, RequestId};

use super::faults::Phase;
use super::grants::{Grants, PluginChild};
use super::instance::Instance;
use super::local::{Arrival, LocalPlugin, Offer, Verdict, Waiting};
use super::operation::{Asked, Operations, errno_of};
use super::rules::{KeptRules, NodeRules, Ruling};
use super::table::Answer;
use crate::bitmap::Use;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PointInTime;
use crate::graph::{BitmapScope, Cx, EdgeCall, EdgeRef, LocalGraph, OwnAccord};
use crate::io::{Buf, BufMut, Time, sleep_until, spawn, turn_now};
use crate::node::{Extent, ExtentKind, Node, NodeFuture, NodeInfo, WriteFlags};

/// The filtered child.
const FILE: ChildIndex = ChildIndex(0);

/// A filter whose policy is a plugin's.
pub struct PluginNode {
    instance: Arc<Instance>,
    index: NodeIndex,
    children: Arc<[PluginChild]>,
    /// Number of the edge to the filtered child.
    file: usize,
    rules: Arc<NodeRules>,
    /// What is lent, by its index.
    lent: Vec<(u32, BitmapScope, String)>,
}

/// The own bitmaps of a node, for who shows a view that they make.
pub(crate) struct OwnSets {
    instance: Arc<Instance>,
    index: NodeIndex,
}

impl OwnSets {
    /// Those of the view `snapshot`, once the plugin has all of them.
    pub(crate) fn point_in_time(&self) -> Option<PointInTime> {
        self.instance.lasting().bitmaps.point_in_time(self.index)
    }
}

/// A request as the guest sees it.
#[derive(Clone, Copy)]
struct Shape {
    kind: Kind,
    flags: RequestFlags,
    offset: u64,
    len: u64,
}

/// What became of a request that was to be offered.
enum Offered {
    /// The guest does not judge it.
    Forward,
    /// Nor does it by its rules.
    Pass(Rc<KeptRules>),
    /// It does if the child has nothing allocated in some part of the range.
    Look(ChildIndex, Rc<KeptRules>),
    Waiting(Waiting),
    /// There is no store to offer it to.
    Down(Arrival),
    Fail(Error),
}

/// Where a request stands that the guest has not forwarded.
enum Stand {
    /// It is offered.
    Judged(Waiting, Verdict),
    /// It waits for a new store.
    Down(Arrival),
}

impl PluginNode {
    /// One more node of `instance`, with its filtered child alone, to which nothing is granted.
    ///
    /// # Errors
    /// As [`PluginNode::with_children`].
    pub fn new(instance: &Arc<Instance>) -> Result<Self> {
        Self::with_children(instance, &[("file".to_owned(), Grants::NONE)])
    }

    /// One more node of `instance`. `children` are those of the node in the order of its edges: what they
    /// are called, and what the plugin may do to them of its own accord, for which the edges must have the
    /// permissions, see [`Grants::permissions`].
    ///
    /// # Errors
    /// `EINVAL` for children that the plugin does not know, or lacks; `EPERM` for grants that it lacks;
    /// `ENOMEM` when the instance serves too many nodes already.
    pub fn with_children(instance: &Arc<Instance>, children: &[(String, Grants)]) -> Result<Self> {
        let children = instance.resolve_children(children)?;
        let file = children.iter().find(|child| child.index == FILE).map_or(0, |child| child.edge);
        let index = instance.reserve_node()?;
        // Its size comes with the graph.
        let rules = instance.lasting().add_node(index, 0);
        let (instance, children) = (Arc::clone(instance), children.into());
        Ok(Self { instance, index, children, file, rules, lent: Vec::new() })
    }

    /// Lends bitmaps to the plugin, to be read: by the names that it has for them.
    ///
    /// # Errors
    /// `EINVAL` for bitmaps that the plugin does not know, or lacks.
    pub fn with_bitmaps(mut self, bitmaps: &[(String, BitmapScope, String)]) -> Result<Self> {
        self.instance.check_bitmaps(bitmaps.iter().map(|(name, ..)| name.as_str()))?;
        for (name, scope, bitmap) in bitmaps {
            let lent = self.instance.lasting().bitmaps.lend(self.index, name);
            let index = lent.map_err(|error| Error::new(ErrorKind::Invalid, error))?;
            self.lent.push((index, scope.clone(), bitmap.clone()));
        }
        Ok(self)
    }

    /// Bytes that are set in a bitmap of the node's own.
    #[cfg(test)]
    pub(crate) fn own_bitmap_bytes(&self, name: &str) -> u64 {
        let bitmaps = &self.instance.lasting().bitmaps;
        let all = bitmaps.list(self.index);
        let own = all.iter().find(|bitmap| bitmap.owned && bitmap.name == name);
        own.map_or(0, |bitmap| bitmaps.count(bitmap.index))
    }

    /// The node's own bitmaps that make a view which the plugin offers.
    ///
    /// # Errors
    /// `ENOENT` if it does not.
    pub(crate) fn own_sets_of_view(&self, view: &str) -> Result<OwnSets> {
        self.instance.check_view(view)?;
        Ok(OwnSets { instance: Arc::clone(&self.instance), index: self.index })
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
        match self.offer(&shape) {
            Offered::Forward => call(cx.child(self.file)?).await,
            Offered::Pass(rules) => self.pass(cx, rules, call).await,
            Offered::Look(child, rules) => {
                Box::pin(self.look(cx, shape, (child, rules), unforwarded, call)).await
            }
            Offered::Fail(error) => Err(error),
            Offered::Waiting(waiting) => {
                let verdict = waiting.verdict().await;
                self.obey(cx, shape, Stand::Judged(waiting, verdict), unforwarded, call).await
            }
            Offered::Down(arrival) => {
                Box::pin(self.obey(cx, shape, Stand::Down(arrival), unforwarded, call)).await
            }
        }
    }

    /// Runs a request on the child, by rules that are in force for it until it has ended.
    async fn pass<T>(
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
        shape: Shape,
        (child, rules): (ChildIndex, Rc<KeptRules>),
        unforwarded: Option<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        let range = shape.offset..shape.offset.saturating_add(shape.len);
        let known = self.children.iter().find(|known| known.index == child);
        let is_allocated = match known {
            Some(known) => {
                let unallocated = cx.child(known.edge)?.first_unallocated(range).await;
                unallocated.is_ok_and(|found| found.is_none())
            }
            None => false,
        };
        if is_allocated {
            return self.pass(cx, rules, call).await;
        }
        drop(rules);
        match self.ask(&shape, turn_now(), &LocalPlugin::of(&self.instance)) {
            Some(waiting) => {
                let verdict = waiting.verdict().await;
                self.obey(cx, shape, Stand::Judged(waiting, verdict), unforwarded, call).await
            }
            None => call(cx.child(self.file)?).await,
        }
    }

    #[inline]
    fn offer(&self, shape: &Shape) -> Offered {
        let kind = shape.kind;
        let phase = self.instance.phase();
        if phase != Phase::Running {
            return self.without(kind, phase);
        }
        if !self.instance.wants(kind) {
            return Offered::Forward;
        }
        let plugin = LocalPlugin::of(&self.instance);
        if let Some(rules) = plugin.rules(&self.rules) {
            match rules.judge(shape.kind, &(shape.offset..shape.offset.saturating_add(shape.len))) {
                Ruling::Ask => {}
                Ruling::Pass => return Offered::Pass(rules),
                Ruling::AskIfUnallocated(child) => return Offered::Look(child, rules),
            }
        }
        match self.ask(shape, turn_now(), &plugin) {
            Some(waiting) => Offered::Waiting(waiting),
            None => Offered::Forward,
        }
    }

    /// What becomes of a request that comes while no guest is there.
    #[cold]
    fn without(&self, kind: Kind, phase: Phase) -> Offered {
        match phase {
            // A flush never depends on the plugin.
            _ if kind == Kind::Flush => Offered::Forward,
            Phase::Bypassed => Offered::Forward,
            Phase::Failed => Offered::Fail(self.fault_error()),
            Phase::Running | Phase::Down => Offered::Down(LocalPlugin::of(&self.instance).arrive()),
        }
    }

    /// `None` if it may go to the child already.
    #[inline]
    fn ask(&self, shape: &Shape, since: Time, plugin: &Rc<LocalPlugin>) -> Option<Waiting> {
        let &Shape { kind, flags, offset, len } = shape;
        let node = self.index;
        plugin.request(since, |ticket| Offer::Request { ticket, node, kind, flags, offset, len })
    }

    /// Does with a request what the guest decided. One that the guest had not forwarded when its store was lost
    /// is offered to the next one.
    async fn obey<T>(
        &self,
        cx: Cx<'_>,
        shape: Shape,
        stand: Stand,
        unforwarded: Option<T>,
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
                    if self.outlast(cx, &plugin, arrival).await? == Phase::Bypassed {
                        return call(child).await;
                    }
                    let Some(waiting) = self.ask(&shape, arrival.since, &plugin) else {
                        return call(child).await;
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
                    self.operate(cx, &waiting, &operations, asked);
                    let verdict = waiting.verdict().await;
                    Stand::Judged(waiting, verdict)
                }
            };
        };
        match answer {
            Answer::Complete(Ok(())) => unforwarded.ok_or_else(|| self.fault_error()),
            Answer::Complete(Err(errno)) => Err(self.refusal(errno)),
            Answer::Forward { known: None, .. } => {
                drop(waiting);
                call(child).await
            }
            Answer::Forward { not_before_ns, notify, known: Some(id) } => {
                if !is_flush {
                    Box::pin(self.hold(cx, &waiting, Time::from_nanos(not_before_ns))).await;
                }
                if notify {
                    let result = call(child).await;
                    return Box::pin(self.settle(cx, (&waiting, &operations), id, result)).await;
                }
                waiting.plugin().offer(Offer::LetGo { id });
                drop(waiting);
                call(child).await
            }
        }
    }

    /// Waits until the guest's place is taken, by a new store or for good by the child; as long as a request may
    /// be held, and not while the node is drained.
    async fn outlast(&self, cx: Cx<'_>, plugin: &LocalPlugin, arrival: Arrival) -> Result<Phase> {
        let end = arrival.since + self.instance.limits().hold;
        let mut rest = pin!(plugin.rest(arrival));
        let mut timer = pin!(sleep_until(end));
        let phase = poll_fn(|task| {
            // A store that is there counts before the time that is over.
            if let Poll::Ready(phase) = rest.as_mut().poll(task) {
                return Poll::Ready(Some(phase));
            }
            if cx.poll_drained(task) {
                return Poll::Ready(None);
            }
            timer.as_mut().poll(task).map(|()| None)
        })
        .await;
        match phase {
            // One that has been held for that long is not tried again.
            Some(Phase::Running) if turn_now() < end => Ok(Phase::Running),
            Some(Phase::Bypassed) => Ok(Phase::Bypassed),
            _ => Err(self.fault_error()),
        }
    }

    /// Keeps a request until its time, which the guest may change; lets it go at once when the node is
    /// drained or the store is lost.
    async fn hold(&self, cx: Cx<'_>, waiting: &Waiting, until: Time) {
        let mut until = until;
        while until > turn_now() {
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

    /// The node's job: what the guest does in it, and the next one after a fault.
    fn job(&self, own: OwnAccord) -> impl Future<Output = ()> + 'static {
        let (instance, children) = (Arc::clone(&self.instance), Arc::clone(&self.children));
        let index = self.index;
        async move {
            let plugin = LocalPlugin::of(&instance);
            loop {
                let waiting = plugin.begin_job(index);
                let operations = Operations::default();
                while let Verdict::Operate(asked) = waiting.verdict().await {
                    let own = own.clone();
                    let ground = async move { own.on_behalf().await };
                    operations.start(ground, (index, &children), &plugin, asked);
                }
                operations.ended().await;
                if plugin.rest(waiting.arrival()).await != Phase::Running {
                    return;
                }
            }
        }
    }

    /// Begins what the guest wants done for a request.
    fn operate(&self, cx: Cx<'_>, waiting: &Waiting, operations: &Operations, asked: Asked) {
        let ground = ready(Ok(cx.on_behalf()));
        operations.start(ground, (self.index, &self.children), waiting.plugin(), asked);
    }

    fn fault_error(&self) -> Error {
        self.instance.fault_error()
    }

    /// Tells the guest the child's result and waits for its completion. It may turn a success into an
    /// error, never the other way.
    async fn settle<T>(
        &self,
        cx: Cx<'_>,
        (waiting, operations): (&Waiting, &Operations),
        id: RequestId,
        result: Result<T>,
    ) -> Result<T> {
        let told = result.as_ref().map(drop).map_err(errno_of);
        waiting.plugin().offer(Offer::Done { id, result: told });
        loop {
            match waiting.verdict().await {
                // Another time for a request that had gone: the guest still owes its completion.
                Verdict::Answer(Answer::Forward { .. }) => {}
                Verdict::Operate(asked) => self.operate(cx, waiting, operations, asked),
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

/// A read or write on its way through the plugin. Nearly all are forwarded as they are: those need no
/// more than this, which is small, as many of them wait in one turn.
struct Passing<'a, T, C> {
    node: &'a PluginNode,
    cx: Cx<'a>,
    shape: Shape,
    /// Runs it on the child; taken when it is.
    call: Option<C>,
    stage: Stage<'a, T>,
    /// By which it passed, until it has ended.
    rules: Option<Rc<KeptRules>>,
}

enum Stage<'a, T> {
    New,
    /// By its rules the guest is asked unless the child has all of the range, which is known up to there.
    Looking(EdgeRef<'a>, u64, NodeFuture<'a, Vec<Extent>>),
    Judged(Waiting),
    Child(EdgeCall<'a, T>),
    Other(NodeFuture<'a, T>),
    Over,
}

impl<'a, T, C> Passing<'a, T, C>
where
    T: 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    fn boxed(node: &'a PluginNode, cx: Cx<'a>, shape: Shape, call: C) -> NodeFuture<'a, T> {
        Box::pin(Self { node, cx, shape, call: Some(call), stage: Stage::New, rules: None })
    }

    /// Begins the next stage; an error ends the request.
    #[inline]
    fn forward(&mut self) -> Result<()> {
        let call = self.call.take().ok_or_else(|| self.node.fault_error())?;
        self.stage = Stage::Child(call(self.cx.child(self.node.file)?));
        Ok(())
    }

    #[inline]
    fn look(&mut self, child: ChildIndex, rules: Rc<KeptRules>) -> Result<()> {
        let known = self.node.children.iter().find(|known| known.index == child);
        let Some(known) = known else { return self.ask() };
        self.rules = Some(rules);
        let (edge, Shape { offset, len, .. }) = (self.cx.child(known.edge)?, self.shape);
        self.stage = Stage::Looking(edge, offset, edge.hinted_status(offset, len));
        Ok(())
    }

    /// What the child has of the range, from where that is not known.
    #[inline]
    fn looked(&mut self, edge: EdgeRef<'a>, from: u64, found: Result<Vec<Extent>>) -> Result<()> {
        let end = self.shape.offset.saturating_add(self.shape.len);
        let mut at = from;
        for extent in found.unwrap_or_default() {
            if extent.offset > at || extent.kind == ExtentKind::Unallocated {
                return self.ask();
            }
            at = at.max(extent.offset.saturating_add(extent.len));
        }
        if at >= end {
            return self.forward();
        }
        if at == from {
            return self.ask();
        }
        self.stage = Stage::Looking(edge, at, edge.hinted_status(at, end - at));
        Ok(())
    }

    /// Has the guest judge it.
    fn ask(&mut self) -> Result<()> {
        self.rules = None;
        match self.node.ask(&self.shape, turn_now(), &LocalPlugin::of(&self.node.instance)) {
            Some(waiting) => self.stage = Stage::Judged(waiting),
            None => self.forward()?,
        }
        Ok(())
    }

    #[cold]
    fn other(&mut self, verdict: Verdict) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let (Stage::Judged(waiting), Some(call)) = (stage, self.call.take()) else {
            return Err(self.node.fault_error());
        };
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        self.stage = Stage::Other(Box::pin(async move {
            // The edge is the one that `obey` would lend.
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, shape, Stand::Judged(waiting, verdict), None, call).await
        }));
        Ok(())
    }

    #[cold]
    fn down(&mut self, arrival: Arrival) -> Result<()> {
        let call = self.call.take().ok_or_else(|| self.node.fault_error())?;
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        self.stage = Stage::Other(Box::pin(async move {
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, shape, Stand::Down(arrival), None, call).await
        }));
        Ok(())
    }
}

impl<'a, T, C> Future for Passing<'a, T, C>
where
    T: 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Stage::New = this.stage {
            match this.node.offer(&this.shape) {
                Offered::Waiting(waiting) => this.stage = Stage::Judged(waiting),
                Offered::Forward => this.forward()?,
                Offered::Pass(rules) => {
                    this.rules = Some(rules);
                    this.forward()?;
                }
                Offered::Look(child, rules) => this.look(child, rules)?,
                Offered::Down(arrival) => this.down(arrival)?,
                Offered::Fail(error) => return Poll::Ready(Err(error)),
            }
        }
        while let Stage::Looking(edge, at, status) = &mut this.stage {
            let (edge, at) = (*edge, *at);
            let found = std::task::ready!(status.as_mut().poll(task));
            this.looked(edge, at, found)?;
        }
        if let Stage::Judged(waiting) = &this.stage {
            match std::task::ready!(waiting.poll(task.waker())) {
                Verdict::Answer(Answer::Forward { known: None, .. }) => this.forward()?,
                verdict => this.other(verdict)?,
            }
        }
        match &mut this.stage {
            Stage::Child(call) => Pin::new(call).poll(task),
            Stage::Other(future) => future.as_mut().poll(task),
            _ => Poll::Ready(Err(this.node.fault_error())),
        }
    }
}

fn write_flags(cx: Cx<'_>, flags: WriteFlags) -> RequestFlags {
    let mut wire = RequestFlags::NONE;
    let parts = [
        (flags.fua, RequestFlags::FUA),
        (flags.no_unmap, RequestFlags::NO_UNMAP),
        (cx.is_unchanged(), RequestFlags::UNCHANGED),
    ];
    for (_, flag) in parts.into_iter().filter(|(is, _)| *is) {
        wire = wire.with(flag);
    }
    wire
}

impl Node for PluginNode {
    fn driver(&self) -> &'static str {
        "plugin"
    }

    fn label(&self) -> Option<String> {
        Some(self.instance.plugin().to_owned())
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        NodeInfo::of_filter(children.get(self.file..).unwrap_or_default())
    }

    fn is_transparent(&self) -> bool {
        true
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.instance.add_node(self.index, name, info, (&self.children, children))
    }

    fn run(&self, graph: &Rc<LocalGraph>, name: &str) {
        let snapshot = graph.current();
        self.instance.watch_by(graph.cell());
        for (index, scope, bitmap) in &self.lent {
            let found = snapshot.find_bitmap(scope, bitmap);
            let missing = || Error::new(ErrorKind::NotFound, format!("there is no `{bitmap}`"));
            let lent = found.ok_or_else(missing).and_then(|found| {
                let user = format!("plugin `{}` of node `{name}`", self.instance.plugin());
                Ok(found.use_by(user, Use::Keep)?)
            });
            match lent {
                Ok(lent) => self.instance.lasting().bitmaps.attach(*index, lent),
                Err(error) => tracing::error!("node `{name}`: a bitmap cannot be lent: {error}"),
            }
        }
        if self.instance.has_job() {
            match OwnAccord::open(graph, name) {
                Ok(own) => spawn(self.job(own)),
                Err(error) => tracing::error!("node `{name}`: its job cannot begin: {error}"),
            }
        }
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        let (kind, flags, len) = (Kind::Read, RequestFlags::NONE, buf.len() as u64);
        let shape = Shape { kind, flags, offset, len };
        Passing::boxed(self, cx, shape, move |child| child.read(offset, buf))
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        let len = buf.len() as u64;
        let shape = Shape { kind: Kind::Write, flags: write_flags(cx, flags), offset, len };
        Passing::boxed(self, cx, shape, move |child| child.write(offset, buf, flags))
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        let shape = Shape { kind: Kind::Zero, flags: write_flags(cx, flags), offset, len };
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
        Box::pin(async move { cx.child(self.file)?.block_status(offset, len).await })
    }
}
