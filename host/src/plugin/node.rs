//! The node of a plugin: every request passes the plugin's judgement, then goes to the child.

use std::any::Any;
use std::future::{Future, poll_fn, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use blockloom_abi::{ChildIndex, Errno, Kind, NodeIndex, RequestFlags};

use super::bytes::{ByteAccess, Handed, TRANSFORM_MAX_BYTES, is_lowered};
use super::counters::{NodeCounters, PluginCounters};
use super::faults::Phase;
use super::grants::{FILE, Grants};
use super::instance::Instance;
use super::local::{Arrival, LocalPlugin, Named, Offer, Verdict, Waiting};
use super::operation::{Asked, Operations, errno_of};
use super::rules::{KeptRules, NodeRules, Ruling};
use super::served::{Children, Departure};
use super::table::Answer;
use super::version::OfferedAs;
use crate::bitmap::Use;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{PointInTime, ViewNode};
use crate::graph::{
    BitmapScope, Cx, EdgeCall, EdgeRef, GraphNode, LocalGraph, OnBehalf, OwnAccord, had_until,
};
use crate::io::{Buf, BufMut, Time, sleep_until, spawn, turn_now, until};
use crate::node::{
    Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, Support, WriteFlags,
};

/// Time that a node's job has to end when the node is removed.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// A filter whose policy is a plugin's.
pub struct PluginNode {
    instance: Arc<Instance>,
    index: NodeIndex,
    /// Another plugin may have other numbers for them.
    children: Arc<Children>,
    departure: Arc<Departure>,
    /// Number of the edge to the filtered child.
    file: usize,
    rules: Arc<NodeRules>,
    /// What is lent, by its index.
    lent: Vec<(u32, BitmapScope, String)>,
    /// What the plugin may do with the data of requests.
    access: ByteAccess,
    /// Its rules do not count.
    asks_always: bool,
    /// They do not count for one in so many requests, by chance; 0: for none.
    #[cfg(test)]
    asks_one_in: u64,
    counters: Arc<NodeCounters>,
    /// What makes its view, if it offers one, once found.
    view: Option<OnceLock<PointInTime>>,
}

/// The own bitmaps of a node, for who shows a view that they make.
pub(crate) struct OwnSets {
    instance: Arc<Instance>,
    index: NodeIndex,
    /// The view, for as long as somebody shows it.
    _shown: Arc<str>,
}

impl OwnSets {
    /// Those of the view `snapshot`, once the plugin has all of them.
    ///
    /// # Errors
    /// `EIO` if it never will have.
    pub(crate) fn point_in_time(&self) -> Result<Option<PointInTime>> {
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
enum Without<T> {
    /// The guest may not answer it so.
    Nothing,
    /// Success, which the table allows for advisory requests and those whose data the guest makes.
    Success(T),
    /// What a copy has brought that serves it.
    Shown(fn(Buf) -> T),
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
        let (index, children, departure) = instance.reserve_node(children)?;
        let known = children.load();
        let file = known.iter().find(|child| child.index == FILE).map_or(0, |child| child.edge);
        drop(known);
        // Its size comes with the graph.
        let rules = instance.lasting().add_node(index, 0);
        let instance = Arc::clone(instance);
        let (lent, access, asks_always) = (Vec::new(), ByteAccess::None, false);
        let counters = instance.lasting().counters.of_node(index);
        let view = instance.lasting().bitmaps.makes_views().then(OnceLock::new);
        Ok(Self {
            instance,
            index,
            children,
            departure,
            file,
            rules,
            lent,
            access,
            asks_always,
            #[cfg(test)]
            asks_one_in: 0,
            counters,
            view,
        })
    }

    /// Lends bitmaps to the plugin, to be read: by the names that it has for them.
    ///
    /// # Errors
    /// `EINVAL` for bitmaps that the plugin does not know, or lacks.
    pub fn with_bitmaps(mut self, bitmaps: &[(String, BitmapScope, String)]) -> Result<Self> {
        let names = bitmaps.iter().map(|(name, ..)| name.as_str());
        let indices = self.instance.lend(self.index, names)?;
        for (index, (_, scope, bitmap)) in indices.into_iter().zip(bitmaps) {
            self.lent.push((index, scope.clone(), bitmap.clone()));
        }
        Ok(self)
    }

    /// Has the plugin asked about every request of a kind that it wants, whatever its rules say: which they
    /// allow. For measurements.
    #[must_use]
    pub fn asking_always(mut self) -> Self {
        self.asks_always = true;
        self
    }

    /// As [`Self::asking_always`], for one in so many requests, by the chance of a simulation.
    #[cfg(test)]
    pub(crate) fn asking_one_in(mut self, requests: u64) -> Self {
        self.asks_one_in = requests;
        self
    }

    /// Whether the plugin is asked whatever its rules say.
    #[inline]
    fn asks_anyway(&self) -> bool {
        #[cfg(test)]
        if self.asks_one_in > 0 && crate::io::sim::chance(self.asks_one_in) == 0 {
            return true;
        }
        self.asks_always
    }

    /// Grants something of the data of requests. A node whose data the plugin transforms shows bytes of its
    /// own: its edge to the filtered child is one of storage.
    ///
    /// # Errors
    /// `EPERM` if the plugin wants more, or may be bypassed when it fails.
    pub fn with_bytes(mut self, access: ByteAccess) -> Result<Self> {
        self.instance.check_bytes(access)?;
        if access != ByteAccess::None {
            self.instance.lasting().bytes.grant();
        }
        self.access = access;
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

    /// The epoch of its rules, if it has any.
    #[cfg(test)]
    pub(crate) fn rules_epoch(&self) -> Option<u32> {
        self.rules.current().1.epoch()
    }

    /// The node's own bitmaps that make a view which the plugin offers.
    ///
    /// # Errors
    /// `ENOENT` if it does not.
    pub(crate) fn own_sets_of_view(&self, view: &str) -> Result<OwnSets> {
        let shown = self.instance.show(self.index, view)?;
        Ok(OwnSets { instance: Arc::clone(&self.instance), index: self.index, _shown: shown })
    }

    /// Whether a node of a graph is one of an instance.
    pub(super) fn is_of(node: &GraphNode, instance: &Arc<Instance>) -> bool {
        Self::behind(node).is_some_and(|node| Arc::ptr_eq(&node.instance, instance))
    }

    /// The driver of a node of a graph, if it is one of a plugin.
    pub fn behind(node: &GraphNode) -> Option<&Self> {
        let driver: &dyn Any = &**node.driver();
        driver.downcast_ref()
    }

    /// What has been counted of it, and of its instance.
    pub fn counters(&self) -> PluginCounters {
        let restarts = self.instance.restarts().into();
        self.instance.lasting().counters.sum(Some(self.index), restarts)
    }

    /// The instance.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Has the guest judge a request, and runs it on the child if it says so.
    async fn judge<T>(
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
        (shape, bytes): (Shape, Option<&Handed>),
        (child, rules): (ChildIndex, Rc<KeptRules>),
        without: Without<T>,
        call: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T>,
    ) -> Result<T> {
        let range = shape.offset..shape.offset.saturating_add(shape.len);
        let is_allocated = match self.edge_of(child) {
            Some(edge) => cx.child(edge)?.has_all(range).await,
            None => false,
        };
        if is_allocated {
            self.counters.passed(LocalPlugin::of(&self.instance).worker());
            return self.pass(cx, rules, call).await;
        }
        drop(rules);
        match self.ask(&shape, bytes, turn_now(), &LocalPlugin::of(&self.instance)) {
            Ok(waiting) => {
                let verdict = waiting.verdict().await;
                let stand = Stand::Judged(waiting, verdict);
                self.obey(cx, (shape, bytes), stand, without, call).await
            }
            Err(rules) => self.pass(cx, rules, call).await,
        }
    }

    /// The number of the edge to a child.
    #[inline]
    fn edge_of(&self, child: ChildIndex) -> Option<usize> {
        let children = self.children.load();
        children.iter().find(|known| known.index == child).map(|known| known.edge)
    }

    #[inline]
    fn offer(&self, shape: &Shape, bytes: Option<&Handed>) -> Offered {
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
    fn without(&self, kind: Kind, phase: Phase) -> Offered {
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
    fn ask(
        &self,
        shape: &Shape,
        bytes: Option<&Handed>,
        since: Time,
        plugin: &Rc<LocalPlugin>,
    ) -> Result<Waiting, Rc<KeptRules>> {
        self.ask_by(plugin.rules(&self.rules), (shape, bytes), since, plugin)
    }

    #[inline]
    fn ask_by(
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
    async fn obey<T>(
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
    fn unforwarded(&self) -> Without<()> {
        if self.is_opaque() { Without::Success(()) } else { Without::Nothing }
    }

    /// Whether the guest is offered requests of a kind with their data.
    #[inline]
    fn shows_data_of(&self, kind: Kind) -> bool {
        self.access != ByteAccess::None && self.instance.wants(kind)
    }

    /// A read of which the guest may see what the child gives, and perhaps answer with other bytes. One whose
    /// answer was lost with the guest is done again.
    async fn read_seen(&self, cx: Cx<'_>, shape: Shape, buf: BufMut) -> Result<BufMut> {
        let (offset, len) = (shape.offset, buf.len());
        let handed = Handed::of_read(self.instance.lasting(), self.access, len);
        let mut buf = Some(buf);
        loop {
            let buf = buf.take().unwrap_or_else(|| BufMut::new(len));
            let call = async |child: EdgeRef<'_>| {
                handed.give(child.read(offset, buf).await?);
                Ok(())
            };
            self.judge(cx, (shape, Some(&handed)), Without::Success(()), call).await?;
            if !handed.is_lost() {
                return Ok(handed.answer());
            }
        }
    }

    /// A write of which the guest may see the data, and perhaps have other bytes written.
    async fn write_seen(
        &self,
        cx: Cx<'_>,
        shape: Shape,
        buf: Buf,
        flags: WriteFlags,
    ) -> Result<()> {
        let handed = Handed::of_write(self.instance.lasting(), self.access, buf);
        let call = async |child: EdgeRef<'_>| {
            self.change_passes(&shape);
            child.write(shape.offset, handed.payload(), flags).await
        };
        let without = self.unforwarded();
        self.judge(cx, (shape, Some(&handed)), without, call).await
    }

    /// Waits until the guest's place is taken, by a new store or for good by the child; as long as a request may
    /// be held, and not at the end of the host. Whoever drains the node waits for it, too: a store comes back
    /// within seconds, or never. While another plugin is about to take the place, which is soon, the time that a
    /// request may be held does not count.
    async fn outlast(&self, cx: Cx<'_>, plugin: &LocalPlugin, arrival: Arrival) -> Result<Phase> {
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
    async fn hold(&self, cx: Cx<'_>, (waiting, operations): (&Waiting, &Operations), until: Time) {
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

    /// The node's job: what the guest does in it, and the next one after a fault, until the node has gone.
    fn job(&self, own: Result<OwnAccord>) -> impl Future<Output = ()> + 'static {
        let (instance, children) = (Arc::clone(&self.instance), Arc::clone(&self.children));
        let (index, access, departure) = (self.index, self.access, Arc::clone(&self.departure));
        async move {
            let plugin = LocalPlugin::of(&instance);
            while departure.is_here() {
                let waiting = plugin.begin_job(index);
                let operations = Operations::default();
                while let Verdict::Operate(asked) = waiting.verdict().await {
                    let ground = job_ground(own.clone(), Arc::clone(&departure));
                    let node = (index, children.load_full(), access);
                    operations.start(None, ground, node, &plugin, asked);
                }
                operations.ended().await;
                let is_absent = |phase| phase != Phase::Running && departure.is_here();
                plugin.rest(waiting.arrival(), is_absent).await;
            }
        }
    }

    /// Begins what the guest wants done for a request.
    async fn operate(&self, cx: Cx<'_>, waiting: &Waiting, operations: &Operations, asked: Asked) {
        poll_fn(|task| {
            let ground = ready(Ok(cx.on_behalf()));
            let node = (self.index, self.children.load_full(), self.access);
            operations.start(Some(task), ground, node, waiting.plugin(), asked);
            Poll::Ready(())
        })
        .await;
    }

    fn fault_error(&self) -> Error {
        self.instance.fault_error()
    }

    /// Waits for the completion of a guest that has been told the child's result. It may turn a success into
    /// an error, never the other way.
    async fn settle<T>(
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

    /// A change goes to the child. If what it changes is still to be kept for the view, whoever let it pass, the
    /// view is no more, before it does. Of what the plugin makes of data nothing is proven.
    #[inline]
    fn change_passes(&self, shape: &Shape) {
        if let Some(view) = &self.view
            && (self.is_opaque() || !shape.flags.contains(RequestFlags::UNCHANGED))
        {
            self.keep_view(view, shape);
        }
    }

    /// As a request of which kind the guest is offered one of a kind; none if it is not to be done at all.
    fn offered_as(&self, kind: Kind) -> Result<Option<Kind>> {
        match self.instance.offers_as(kind) {
            // Whoever sees data is not shown what it takes for some and is none.
            OfferedAs::Kind(other) if other == kind || self.access == ByteAccess::None => {
                Ok(Some(other))
            }
            OfferedAs::Nothing => Ok(None),
            OfferedAs::Kind(_) | OfferedAs::Refused => {
                let message = format!(
                    "plugin `{}` is of a version that knows no such request ({kind:?}): it may not go past \
                     it; rebuild the plugin",
                    self.instance.plugin()
                );
                Err(Error::new(ErrorKind::NotSupported, message))
            }
        }
    }

    fn keep_view(&self, view: &OnceLock<PointInTime>, shape: &Shape) {
        if view.get().is_none()
            && let Ok(Some(found)) = self.instance.lasting().bitmaps.point_in_time(self.index)
        {
            let _ = view.set(found);
        }
        let range = shape.offset..shape.offset.saturating_add(shape.len);
        let is_needed = |it: &PointInTime| {
            it.is_todo(&range) && it.begun.next_dirty(0).is_some() && !it.is_broken()
        };
        if view.get().is_some_and(is_needed) {
            self.instance.lose_view(self.index, "a change passed whose old bytes were not kept");
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

impl Drop for PluginNode {
    fn drop(&mut self) {
        self.instance.drop_node(self.index);
    }
}

/// Where something is done in a node's job: not once the node is to go.
async fn job_ground(own: Result<OwnAccord>, departure: Arc<Departure>) -> Result<OnBehalf> {
    let own = own?;
    let mut begun = pin!(own.on_behalf());
    let begun = departure.or_leaves(|cx| begun.as_mut().poll(cx)).await;
    begun.unwrap_or_else(|| Err(Error::new(ErrorKind::ShuttingDown, "the node is to go")))
}

/// A read or write on its way through the plugin. Nearly all are forwarded as they are: those need no
/// more than this, which is small, as many of them wait in one turn.
struct Passing<'a, T, C> {
    node: &'a PluginNode,
    cx: Cx<'a>,
    shape: Shape,
    /// Runs it on the child; taken when it is.
    call: Option<C>,
    /// What comes of it without the child.
    without: Without<T>,
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
    T: Unpin + 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    fn boxed(
        (node, cx): (&'a PluginNode, Cx<'a>),
        shape: Shape,
        without: Without<T>,
        call: C,
    ) -> NodeFuture<'a, T> {
        let (call, stage) = (Some(call), Stage::New);
        Box::pin(Self { node, cx, shape, call, without, stage, rules: None })
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
        let Some(edge) = self.node.edge_of(child) else { return self.ask() };
        self.rules = Some(rules);
        let (edge, Shape { offset, len, .. }) = (self.cx.child(edge)?, self.shape);
        self.stage = Stage::Looking(edge, offset, edge.hinted_status(offset, len));
        Ok(())
    }

    /// What the child has of the range, from where that is not known.
    #[inline]
    fn looked(&mut self, edge: EdgeRef<'a>, from: u64, found: Result<Vec<Extent>>) -> Result<()> {
        let end = self.shape.offset.saturating_add(self.shape.len);
        let Some(at) = had_until(from, found) else { return self.ask() };
        if at >= end {
            self.node.counters.passed(LocalPlugin::of(&self.node.instance).worker());
            return self.forward();
        }
        self.stage = Stage::Looking(edge, at, edge.hinted_status(at, end - at));
        Ok(())
    }

    /// Has the guest judge it.
    fn ask(&mut self) -> Result<()> {
        self.rules = None;
        match self.node.ask(&self.shape, None, turn_now(), &LocalPlugin::of(&self.node.instance)) {
            Ok(waiting) => {
                self.stage = Stage::Judged(waiting);
                Ok(())
            }
            Err(rules) => {
                self.rules = Some(rules);
                self.forward()
            }
        }
    }

    #[cold]
    fn other(&mut self, verdict: Verdict) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let (Stage::Judged(waiting), Some(call)) = (stage, self.call.take()) else {
            return Err(self.node.fault_error());
        };
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        let without = std::mem::replace(&mut self.without, Without::Nothing);
        self.stage = Stage::Other(Box::pin(async move {
            // The edge is the one that `obey` would lend.
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, (shape, None), Stand::Judged(waiting, verdict), without, call).await
        }));
        Ok(())
    }

    #[cold]
    fn down(&mut self, arrival: Arrival) -> Result<()> {
        let call = self.call.take().ok_or_else(|| self.node.fault_error())?;
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        let without = std::mem::replace(&mut self.without, Without::Nothing);
        self.stage = Stage::Other(Box::pin(async move {
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, (shape, None), Stand::Down(arrival), without, call).await
        }));
        Ok(())
    }
}

impl<'a, T, C> Future for Passing<'a, T, C>
where
    T: Unpin + 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Stage::New = this.stage {
            match this.node.offer(&this.shape, None) {
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
                Verdict::Answer(Answer::Forward { known: None, .. }) => {
                    this.rules = waiting.take_rules();
                    this.forward()?;
                }
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
        Some(self.instance.plugin().to_string())
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let info = NodeInfo::of_filter(children.get(self.file..).unwrap_or_default())?;
        if self.access != ByteAccess::Transform {
            return Ok(info);
        }
        // What it is not offered is made of what it is: zeros of the child are none of the node.
        let support = |kind| match is_lowered(self.access, kind) && !self.instance.wants(kind) {
            true => Support::None,
            false => Support::Native,
        };
        let (zero, discard) = (support(Kind::Zero), support(Kind::Discard));
        let caps = Caps { zero, discard, ..info.caps };
        let limits = Limits { transfer_max_bytes: TRANSFORM_MAX_BYTES, ..info.limits };
        Ok(NodeInfo { caps, limits, growable: false, ..info })
    }

    fn is_transparent(&self) -> bool {
        !self.is_opaque()
    }

    fn is_opaque(&self) -> bool {
        self.access == ByteAccess::Transform
    }

    fn report(&self) -> Option<String> {
        Some(format!("plugin `{}`: {}", self.instance.plugin(), self.counters()))
    }

    fn is_exclusive(&self, edge: usize) -> bool {
        self.children.load().iter().any(|child| child.edge == edge && child.exclusive)
    }

    fn keeps_old_bytes(&self) -> bool {
        let module = self.instance.module();
        let makes_one = module.inspection().views.iter().any(|view| view == ViewNode::SNAPSHOT);
        let sets = || self.instance.lasting().bitmaps.point_in_time(self.index);
        makes_one && sets().is_ok_and(|sets| sets.is_none_or(|sets| sets.is_unfinished()))
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.instance.check_bytes(self.access)?;
        self.instance.add_node(self.index, name, info, (children, self.access))
    }

    fn resized(&self, info: &NodeInfo, children: &[NodeInfo]) {
        self.instance.resize_node(self.index, info, children);
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
            let bitmaps = &self.instance.lasting().bitmaps;
            let too_large = |error| Error::new(ErrorKind::Invalid, error);
            match lent.and_then(|lent| bitmaps.attach(*index, lent).map_err(too_large)) {
                Ok(()) => {}
                Err(error) => tracing::error!("node `{name}`: a bitmap cannot be lent: {error}"),
            }
        }
        // There may be a job only in what replaces the plugin.
        spawn(self.job(OwnAccord::open(graph, name)));
    }

    fn close<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.instance.leave(self.index);
            let plugin = LocalPlugin::of(&self.instance);
            plugin.queue();
            if until(turn_now() + LEAVE_TIME, self.departure.is_over()).await.is_none() {
                self.instance.end_leaving(self.index, &plugin);
            }
            Ok(())
        })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        let (kind, flags, len) = (Kind::Read, RequestFlags::NONE, buf.len() as u64);
        let shape = Shape { kind, flags, offset, len };
        if self.shows_data_of(kind) {
            return Box::pin(self.read_seen(cx, shape, buf));
        }
        let without = Without::Shown(Buf::into_mut);
        Passing::boxed((self, cx), shape, without, move |child| child.read(offset, buf))
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
        if self.shows_data_of(Kind::Write) {
            return Box::pin(self.write_seen(cx, shape, buf, flags));
        }
        Passing::boxed((self, cx), shape, Without::Nothing, move |child| {
            self.change_passes(&shape);
            child.write(offset, buf, flags)
        })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Zero)? else { return Ok(()) };
            let shape = Shape { kind, flags: write_flags(cx, flags), offset, len };
            let call = async move |child: EdgeRef<'_>| {
                self.change_passes(&shape);
                child.zero(offset, len, flags).await
            };
            if self.access == ByteAccess::None {
                return self.judge(cx, (shape, None), Without::Nothing, call).await;
            }
            let handed = Handed::of_none(self.instance.lasting(), self.access);
            let without = self.unforwarded();
            self.judge(cx, (shape, Some(&handed)), without, call).await
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Discard)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset, len };
            let call = async move |child: EdgeRef<'_>| {
                self.change_passes(&shape);
                child.discard(offset, len).await
            };
            self.judge(cx, (shape, None), Without::Success(()), call).await
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Flush)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset: 0, len: 0 };
            let call = async move |child: EdgeRef<'_>| child.flush().await;
            self.judge(cx, (shape, None), Without::Nothing, call).await
        })
    }

    fn set_len<'a>(&'a self, cx: Cx<'a>, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let Some(kind) = self.offered_as(Kind::Resize)? else { return Ok(()) };
            let shape = Shape { kind, flags: RequestFlags::NONE, offset: 0, len };
            let call = async move |child: EdgeRef<'_>| {
                // What is cut off.
                self.change_passes(&Shape { offset: len, len: u64::MAX - len, ..shape });
                child.set_len(len).await
            };
            self.judge(cx, (shape, None), Without::Nothing, call).await
        })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        if self.is_opaque() {
            // Zeros of the child are not zeros here.
            let data = Extent { offset, len, kind: ExtentKind::Data, host_offset: None };
            return Box::pin(async move { Ok(vec![data]) });
        }
        // A transparent filter's block status is its child's.
        Box::pin(async move { cx.child(self.file)?.block_status(offset, len).await })
    }
}
