//! The nodes of an instance as the host knows them: what each has to have, and whether its plugin was told of it.
//!
//! A node's index is its own from when it is made until nobody has it any more and the guest was told that it
//! has gone.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwap;
use blockloom_abi::NodeIndex;

use super::bindings::exports::blockloom::filter::control;
use super::bitmaps::PluginBitmaps;
use super::bytes::ByteAccess;
use super::grants::{FILE, Grants, PluginChild, check_bitmaps, check_bytes, check_view, resolve};
use super::module::PluginModule;
use crate::error::{Error, ErrorKind, Result};
use crate::node::NodeInfo;

/// Nodes that one instance may serve.
const NODES_MAX: usize = 1024;

/// A node's children by the numbers that its plugin has for them.
pub(super) type Children = ArcSwap<Vec<PluginChild>>;

/// What the guest is told of a node.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) name: Arc<str>,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    /// In the order of its edges.
    pub(super) child_bytes: Vec<u64>,
    /// What is granted of the data of its requests.
    pub(super) bytes: ByteAccess,
}

struct Record {
    /// The names of its children, in the order of its edges, and what is granted for each.
    edges: Vec<(String, Grants)>,
    children: Arc<Children>,
    /// The names by which bitmaps are lent to it.
    lent: Vec<String>,
    /// Views of it that somebody shows.
    views: Vec<Weak<str>>,
    /// While the guest knows of it.
    told: Option<Told>,
    departure: Arc<Departure>,
    is_dropped: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Served {
    nodes: Mutex<Vec<Option<Record>>>,
    /// How often one had another size.
    resizes: AtomicU64,
}

/// What another plugin would have for children of each node.
pub(super) type Fit = Vec<(Arc<Children>, Vec<PluginChild>)>;

impl Served {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Record>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a node had another size.
    pub(super) fn resizes(&self) -> u64 {
        self.resizes.load(Ordering::Acquire)
    }

    fn with<T>(&self, node: NodeIndex, act: impl FnOnce(&mut Record) -> T) -> Option<T> {
        self.lock().get_mut(usize::from(node.0))?.as_mut().map(act)
    }

    /// A place for one more node.
    pub(super) fn reserve(
        &self,
        edges: &[(String, Grants)],
        children: &Arc<Children>,
    ) -> Result<(NodeIndex, Arc<Departure>)> {
        let mut nodes = self.lock();
        let free = nodes.iter().position(Option::is_none).unwrap_or(nodes.len());
        let index = u16::try_from(free).ok().filter(|_| free < NODES_MAX).ok_or_else(|| {
            let message = format!("one plugin instance serves at most {NODES_MAX} nodes");
            Error::new(ErrorKind::NoMemory, message)
        })?;
        let departure = Arc::<Departure>::default();
        let record = Record {
            edges: edges.to_vec(),
            children: Arc::clone(children),
            lent: Vec::new(),
            views: Vec::new(),
            told: None,
            departure: Arc::clone(&departure),
            is_dropped: false,
        };
        match nodes.get_mut(free) {
            Some(place) => *place = Some(record),
            None => nodes.push(Some(record)),
        }
        Ok((NodeIndex(index), departure))
    }

    pub(super) fn lend(&self, node: NodeIndex, name: &str) {
        self.with(node, |record| record.lent.push(name.to_owned()));
    }

    /// A view of the node is shown for as long as the name that is returned is kept.
    pub(super) fn show(&self, node: NodeIndex, view: &str) -> Arc<str> {
        let shown: Arc<str> = view.into();
        self.with(node, |record| record.views.push(Arc::downgrade(&shown)));
        shown
    }

    /// The guest is told of a node.
    ///
    /// # Errors
    /// `EINVAL` for one that has gone.
    pub(super) fn tell(&self, node: NodeIndex, told: Told) -> Result<()> {
        let was_here = self.with(node, |record| {
            let is_here = record.departure.is_here();
            record.told = Some(told).filter(|_| is_here);
            is_here
        });
        if was_here == Some(true) {
            return Ok(());
        }
        let message = "its driver was in a graph before: make a new one";
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// It was not.
    pub(super) fn untell(&self, node: NodeIndex) {
        self.with(node, |record| record.told = None);
    }

    /// The nodes that a guest has to know of.
    pub(super) fn present(&self) -> Vec<NodeIndex> {
        let nodes = self.lock();
        let present = (0..).zip(nodes.iter()).filter(|(_, record)| {
            record.as_ref().is_some_and(|it| it.told.is_some() && it.departure.is_here())
        });
        present.map(|(index, _)| NodeIndex(index)).collect()
    }

    /// Their names.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let nodes = self.lock();
        let told = nodes.iter().flatten().filter_map(|record| record.told.as_ref());
        told.map(|told| Arc::clone(&told.name)).collect()
    }

    /// The name of a node that the guest knows of.
    pub(super) fn name(&self, node: NodeIndex) -> Option<Arc<str>> {
        self.with(node, |record| record.told.as_ref().map(|told| Arc::clone(&told.name)))?
    }

    /// A node as the guest is told of it.
    pub(super) fn describe(
        &self,
        node: NodeIndex,
        (module, fit): (&PluginModule, Option<&Fit>),
        bitmaps: &PluginBitmaps,
    ) -> Option<control::Node> {
        let described = module.inspection().children.len().max(1);
        self.with(node, |record| {
            let told = record.told.as_ref()?;
            let present = record.children.load();
            let fits =
                fit.and_then(|fit| fit.iter().find(|(of, _)| Arc::ptr_eq(of, &record.children)));
            let resolved = fits.map_or(&**present, |(_, children)| children);
            let child = |index: usize| {
                let child = resolved.iter().find(|child| usize::from(child.index.0) == index)?;
                let size_bytes = *told.child_bytes.get(child.edge)?;
                Some(control::Child { size_bytes, granted: child.granted.to_wire() })
            };
            Some(control::Node {
                index: node.0,
                name: (*told.name).to_owned(),
                size_bytes: told.size_bytes,
                read_only: told.read_only,
                children: (0..described).map(child).collect(),
                bitmaps: bitmaps.list(node),
                bytes: told.bytes.to_wire(),
            })
        })?
    }

    /// A node is this, and its children have these sizes; returns whether one of the sizes was another.
    pub(super) fn tell_again(&self, node: NodeIndex, info: &NodeInfo, child_bytes: &[u64]) -> bool {
        let changed = self.with(node, |record| {
            let told = record.told.as_mut()?;
            let size_bytes = info.size_bytes;
            let is_new = told.size_bytes != size_bytes || told.child_bytes != child_bytes;
            (told.size_bytes, told.child_bytes) = (size_bytes, child_bytes.to_vec());
            // A guest learns of that when its next store is told of the node.
            told.read_only = info.read_only;
            Some(is_new)
        });
        let has_changed = changed.flatten() == Some(true);
        self.resizes.fetch_add(u64::from(has_changed), Ordering::AcqRel);
        has_changed
    }

    /// The size of a node that the guest knows of.
    pub(super) fn size_bytes(&self, node: NodeIndex) -> Option<u64> {
        self.with(node, |record| record.told.as_ref().map(|told| told.size_bytes))?
    }

    /// What another plugin would have for children of each node.
    ///
    /// # Errors
    /// A node for which it wants more than is granted, or lacks something; that it would filter another child;
    /// a view in use that it does not offer.
    pub(super) fn fit(&self, module: &PluginModule) -> Result<Fit> {
        let nodes = self.lock();
        let mut fit = Vec::new();
        for record in nodes.iter().flatten().filter(|record| record.departure.is_here()) {
            let fits = record.fit(module).map_err(|error| match &record.told {
                Some(told) => error.at_node(&told.name),
                None => error,
            });
            fit.push((Arc::clone(&record.children), fits?));
        }
        Ok(fit)
    }

    /// A node is to go; whether the guest has to be told.
    pub(super) fn leave(&self, node: NodeIndex) -> bool {
        let was_told = self.with(node, |record| {
            let (begins, is_told) = (record.departure.begin(), record.told.is_some());
            if begins && !is_told {
                record.departure.end();
            }
            begins && is_told
        });
        was_told == Some(true)
    }

    /// The guest knows nothing of a node any more.
    pub(super) fn forget(&self, node: NodeIndex) {
        let mut nodes = self.lock();
        let Some(place) = nodes.get_mut(usize::from(node.0)) else { return };
        let Some(record) = place else { return };
        record.told = None;
        let departure = Arc::clone(&record.departure);
        if record.is_dropped {
            *place = None;
        }
        drop(nodes);
        departure.end();
    }

    /// Nobody has a node any more; whether the guest does not know of it either: then its place is free.
    pub(super) fn drop_node(&self, node: NodeIndex) -> bool {
        let mut nodes = self.lock();
        let Some(place) = nodes.get_mut(usize::from(node.0)) else { return false };
        let Some(record) = place else { return false };
        record.is_dropped = true;
        let is_free = record.told.is_none();
        if is_free {
            *place = None;
        }
        is_free
    }
}

impl Record {
    fn fit(&self, module: &PluginModule) -> Result<Vec<PluginChild>> {
        let fits = resolve(module, &self.edges)?;
        let filtered = |children: &[PluginChild]| {
            children.iter().find(|child| child.index == FILE).map(|child| child.edge)
        };
        if filtered(&fits) != filtered(&self.children.load()) {
            let message =
                format!("plugin `{}` filters another child than the one before", module.name());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        check_bitmaps(module, self.lent.iter().map(String::as_str))?;
        if let Some(told) = &self.told {
            check_bytes(module, told.bytes)?;
        }
        let shown = self.views.iter().filter_map(Weak::upgrade);
        shown.into_iter().try_for_each(|view| check_view(module, &view))?;
        Ok(fits)
    }
}

/// How far a node has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Here,
    Leaving,
    Gone,
}

#[derive(Default)]
struct Waiters {
    stage: Stage,
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

/// The going of a node, for those who have to do with it. Bounded by the operations of its job.
#[derive(Default)]
pub(super) struct Departure(Mutex<Waiters>);

/// Someone who waits for it.
struct Place<'a> {
    departure: &'a Departure,
    key: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.departure.lock().wakers.remove(&self.key);
    }
}

impl Departure {
    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_here(&self) -> bool {
        self.lock().stage == Stage::Here
    }

    fn enter(&self, stage: Stage) {
        let mut waiters = self.lock();
        waiters.stage = stage;
        let wakers = std::mem::take(&mut waiters.wakers);
        drop(waiters);
        wakers.into_values().for_each(Waker::wake);
    }

    /// Whether it was here until now.
    fn begin(&self) -> bool {
        let was_here = self.is_here();
        if was_here {
            self.enter(Stage::Leaving);
        }
        was_here
    }

    fn end(&self) {
        self.enter(Stage::Gone);
    }

    /// Waits for `act`, but not once the node is to go.
    pub(super) async fn or_leaves<T>(
        &self,
        mut act: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        let place = self.place();
        poll_fn(|cx| match act(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.waits_for(&place, |stage| stage != Stage::Here, cx) => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Waits until the guest knows nothing of the node any more.
    pub(super) async fn is_over(&self) {
        let place = self.place();
        poll_fn(|cx| match self.waits_for(&place, |stage| stage == Stage::Gone, cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    fn place(&self) -> Place<'_> {
        let mut waiters = self.lock();
        waiters.next += 1;
        Place { departure: self, key: waiters.next }
    }

    fn waits_for(
        &self,
        place: &Place<'_>,
        is_it: impl Fn(Stage) -> bool,
        cx: &Context<'_>,
    ) -> bool {
        let mut waiters = self.lock();
        let is_there = is_it(waiters.stage);
        if !is_there {
            waiters.wakers.insert(place.key, cx.waker().clone());
        }
        is_there
    }
}
