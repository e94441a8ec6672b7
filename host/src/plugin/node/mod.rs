//! The node of a plugin: every request passes the plugin's judgement, then goes to the child.
//!
//! | file | idea |
//! |---|---|
//! | `driver.rs` | the node as a driver |
//! | `judging.rs` | offering a request to the guest, and doing what it decided |
//! | `passing.rs` | reads and writes that are forwarded as they are: nearly all |

mod driver;
mod judging;
mod passing;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blockloom_abi::{NodeIndex, RequestFlags};

use super::bytes::ByteAccess;
use super::counters::{NodeCounters, PluginCounters};
use super::faults::Phase;
use super::grants::{FILE, Grants};
use super::instance::Instance;
use super::local::{LocalPlugin, Verdict};
use super::operation::Operations;
use super::rules::NodeRules;
use super::served::{Children, Departure};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::PointInTime;
use crate::graph::{BitmapScope, GraphNode, OnBehalf, OwnAccord};
use crate::node::Node;
use judging::Shape;

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

    /// The size of the view, bytes; `None` until the plugin has been told of the node.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.instance.lasting().bitmaps.view_bytes(self.index)
    }
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

    /// The node's job: what the guest does in it, and the next one after a fault, until the node has gone.
    fn job(&self, own: Result<OwnAccord>) -> impl Future<Output = ()> + 'static {
        let (instance, children) = (Arc::clone(&self.instance), Arc::clone(&self.children));
        let (index, access, departure) = (self.index, self.access, Arc::clone(&self.departure));
        async move {
            let plugin = LocalPlugin::of(&instance);
            while departure.is_here() {
                let waiting = plugin.begin_job(index);
                let (operations, asker) = (Operations::default(), Rc::<Asker>::default());
                loop {
                    let asked = match waiting.verdict().await {
                        Verdict::Operate(asked) => asked,
                        Verdict::Answer(_) => break,
                        Verdict::Fault => {
                            asker.go();
                            break;
                        }
                    };
                    let ground = job_ground(own.clone(), Arc::clone(&departure), Rc::clone(&asker));
                    let node = (index, children.load_full(), access);
                    operations.start(None, ground, node, &plugin, asked);
                }
                operations.ended().await;
                let is_absent = |phase| phase != Phase::Running && departure.is_here();
                plugin.rest(waiting.arrival(), is_absent).await;
            }
        }
    }

    fn fault_error(&self) -> Error {
        self.instance.fault_error()
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
}

impl Drop for PluginNode {
    fn drop(&mut self) {
        self.instance.drop_node(self.index);
    }
}

/// Who has asked for what a job does, and may have failed since: what has not begun by then never does. The next job
/// waits for the end of what has been asked before it, and requests may wait for the next job: so neither waits for
/// a change of the graph, which waits for requests.
#[derive(Default)]
struct Asker {
    has_gone: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Asker {
    fn go(&self) {
        self.has_gone.set(true);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Whether it has gone; else who waits `still` learns of that.
    fn poll_gone(&self, still: bool, cx: &mut Context<'_>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|known| !known.will_wake(cx.waker()));
        if still && !self.has_gone.get() {
            waiting.push(cx.waker().clone());
        }
        self.has_gone.get()
    }
}

/// Where something is done in a node's job: not once the node is to go, or who has asked for it has gone.
async fn job_ground(
    own: Result<OwnAccord>,
    departure: Arc<Departure>,
    asker: Rc<Asker>,
) -> Result<OnBehalf> {
    let own = own?;
    let mut begun = pin!(own.on_behalf());
    let gone = || Error::new(ErrorKind::Stale, "the plugin that has asked for it has failed");
    let begun = departure
        .or_leaves(|cx| {
            let polled = begun.as_mut().poll(cx);
            let has_gone = asker.poll_gone(polled.is_pending(), cx);
            if has_gone && polled.is_pending() { Poll::Ready(Err(gone())) } else { polled }
        })
        .await;
    begun.unwrap_or_else(|| Err(Error::new(ErrorKind::ShuttingDown, "the node is to go")))
}
