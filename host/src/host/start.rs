//! Starting a host: nodes whose drivers are there make the first graph; those that have to be opened, and what
//! stands on them, are added in turn, as any node is later. Drives and bitmaps come last.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use super::call::{block_on, on_worker};
use super::checkpoints::Checkpoints;
use super::persist::{NotKept, Wanted};
use super::spec::Registry;
use super::{Host, Inner};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::NbdServer;
use crate::graph::{
    Action, BitmapDecl, ChildDecl, DriveDecl, GraphCell, GraphDecl, NodeDecl, OpenDecl, OpenDriver,
    Transaction,
};
use crate::io::{WorkerOptions, Workers};
use crate::job::Jobs;
use crate::node::{Node, Reopened};

/// A driver, or what opens it.
pub(super) enum Driver {
    Ready(Arc<dyn Node>),
    Open(Box<dyn OpenDriver>),
}

/// A node as it is declared at start.
pub(super) struct PlannedNode {
    pub(super) name: String,
    pub(super) driver: Driver,
    pub(super) children: Vec<ChildDecl>,
    /// It refuses changes though its driver holds nothing open.
    pub(super) is_closed: bool,
}

/// Everything that makes a host's graph.
#[derive(Default)]
pub(super) struct Plan {
    /// In any order.
    pub(super) nodes: Vec<PlannedNode>,
    /// In the order of their index.
    pub(super) drives: Vec<DriveDecl>,
    /// In any order.
    pub(super) bitmaps: Vec<BitmapDecl>,
    /// Those of them that images keep.
    pub(super) kept: Vec<Wanted>,
}

/// What the first graph is made of.
#[derive(Default)]
struct First {
    decl: GraphDecl,
    /// The nodes that are closed.
    closed: Vec<String>,
}

/// Why a host did not start.
pub(super) struct Failed {
    /// The node that could not be opened.
    pub(super) node: Option<String>,
    /// The number of the bitmap that cannot be kept.
    pub(super) kept: Option<usize>,
    pub(super) error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { node: None, kept: None, error }
    }
}

impl From<NotKept> for Failed {
    fn from(NotKept { wanted, error }: NotKept) -> Self {
        Self { node: None, kept: wanted, error }
    }
}

impl PlannedNode {
    /// What is done to it as soon as it is there.
    pub(super) fn closing(&self) -> Option<Action> {
        let to = Reopened::READ_ONLY;
        self.is_closed.then(|| Action::Reopen { node: self.name.clone(), to })
    }

    fn stands_on(&self, known: &BTreeSet<String>) -> bool {
        self.children.iter().all(|child| known.contains(&child.node))
    }
}

impl Plan {
    /// The first graph, and the nodes that are to be added to it. All of it, if there is nothing to open.
    fn split(self) -> (First, Vec<PlannedNode>, Transaction) {
        let Self { nodes, drives, bitmaps, kept: _ } = self;
        let later = later(&nodes);
        let last = Transaction::new();
        let mut first = First::default();
        let mut rest = Vec::new();
        for node in nodes {
            match node.driver {
                Driver::Ready(driver) if !later.contains(&node.name) => {
                    let PlannedNode { name, children, is_closed, .. } = node;
                    first.closed.extend(is_closed.then(|| name.clone()));
                    first.decl.nodes.push(NodeDecl { name, driver, children });
                }
                _ => rest.push(node),
            }
        }
        if rest.is_empty() {
            (first.decl.drives, first.decl.bitmaps) = (drives, bitmaps);
            return (first, rest, last);
        }
        let drives = drives.into_iter().map(Action::AddDrive);
        let last = drives.chain(bitmaps.into_iter().map(Action::AddBitmap));
        (first, rest, last.fold(Transaction::new(), Transaction::with))
    }
}

/// The names of nodes that are to be opened, and of those that stand on them.
fn later(nodes: &[PlannedNode]) -> BTreeSet<String> {
    let mut later = BTreeSet::new();
    loop {
        let is_later = |node: &&PlannedNode| {
            let opens = matches!(node.driver, Driver::Open(_));
            !later.contains(&node.name)
                && (opens || node.children.iter().any(|child| later.contains(&child.node)))
        };
        let found: Vec<String> = nodes.iter().filter(is_later).map(|it| it.name.clone()).collect();
        if found.is_empty() {
            return later;
        }
        later.extend(found);
    }
}

impl Host {
    /// Starts workers and graph.
    ///
    /// # Errors
    /// Whatever stands against it; nothing runs then.
    pub(super) fn start(options: &WorkerOptions, mut plan: Plan) -> Result<Self, Failed> {
        let kept = std::mem::take(&mut plan.kept);
        let (first, rest, last) = plan.split();
        let graph = first.decl.build_with(&first.closed)?;
        graph.start_drivers(None)?;
        let workers = Workers::start(options)
            .map_err(|error| Error::new(ErrorKind::NotSupported, format!("workers: {error}")))?;
        let cell = Arc::new(GraphCell::with_workers(graph, workers.handles().len()));
        let server = NbdServer::new(Arc::clone(&cell), workers.handles().to_vec());
        let next_worker = AtomicUsize::new(0);
        let (ended, persistence, begun) = (Arc::default(), Arc::default(), Arc::default());
        let jobs = Jobs::new(&cell);
        let (registry, nbd_server) = (Arc::<Registry>::default(), Mutex::default());
        let openings = Arc::default();
        let inner = Inner {
            checkpoints: Checkpoints::default(),
            ended,
            workers,
            cell,
            server,
            persistence,
            begun,
            jobs,
            registry,
            openings,
            nbd_server,
            next_worker,
        };
        let host = Self { inner: Arc::new(inner) };
        // If something fails, the host is dropped, and all that runs ends.
        let is_whole = rest.is_empty();
        host.add_in_turn(rest)?;
        // Each transaction opens files as they are used in the end.
        if !is_whole || host.graph().has_auto() {
            block_on(host.transact(last))?;
        }
        host.load_bitmaps(kept)?;
        Ok(host)
    }

    /// Loads what images hold, before anybody can change them.
    fn load_bitmaps(&self, kept: Vec<Wanted>) -> Result<(), NotKept> {
        let (cell, persistence) =
            (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.persistence));
        let begun = Arc::clone(&self.inner.begun);
        let load = move || async move {
            let loaded = persistence.load(&cell, &kept).await;
            if loaded.is_ok() {
                begun.begin_new(&cell);
            }
            Ok(loaded)
        };
        block_on(on_worker(self.inner.first(), load))?
    }

    /// Adds nodes, each as soon as its children are there.
    fn add_in_turn(&self, mut nodes: Vec<PlannedNode>) -> Result<(), Failed> {
        let graph = self.graph();
        let mut known: BTreeSet<String> =
            graph.nodes().iter().map(|node| node.name().to_owned()).collect();
        drop(graph);
        while let Some(at) = nodes.iter().position(|node| node.stands_on(&known)) {
            let node = nodes.remove(at);
            let closing = node.closing();
            let PlannedNode { name, driver, children, .. } = node;
            let added = match driver {
                Driver::Ready(driver) => {
                    let node = NodeDecl { name: name.clone(), driver, children };
                    let add = Transaction::new().with(Action::AddNode(node));
                    block_on(self.transact(closing.into_iter().fold(add, Transaction::with)))
                        .map(drop)
                }
                Driver::Open(driver) => {
                    block_on(self.open_node(OpenDecl { name: name.clone(), driver, children }))
                }
            };
            added.map_err(|error| Failed { node: Some(name.clone()), kept: None, error })?;
            known.insert(name);
        }
        nodes.first().map_or(Ok(()), |node| Err(without_child(node, &known)))
    }

    /// Adds a node, which nobody uses yet.
    ///
    /// # Errors
    /// As [`Host::transact`].
    pub async fn add_node(&self, node: NodeDecl) -> Result<()> {
        let add = Transaction::new().with(Action::AddNode(node));
        self.transact(add).await.map(drop)
    }

    /// Opens a driver through the nodes below it, which are there, and adds its node, which nobody uses yet.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use blockloom::graph::{ChildDecl, Children, OpenDecl};
    /// use blockloom::io::BufMut;
    /// use blockloom::node::{MemoryNode, Node, RawNode};
    /// use blockloom::{Host, Result, block_on};
    ///
    /// /// A view whose size is in the first byte of its file, in sectors.
    /// async fn open(children: &Children) -> Result<Arc<dyn Node>> {
    ///     let sectors = children.get(0)?.read(0, BufMut::new(1)).await?[0];
    ///     Ok(Arc::new(RawNode::new(512, Some(u64::from(sectors) * 512))))
    /// }
    ///
    /// # fn main() -> Result<()> {
    /// let host = Host::builder()
    ///     .node("disk", MemoryNode::new(1 << 20, 1)?, vec![])
    ///     .drive("vda", "disk", true)
    ///     .start()?;
    /// block_on(host.drive("vda")?.write(0, &[16]))?;
    /// # use blockloom::graph::{Action, Transaction};
    /// block_on(host.transact(Transaction::new().with(Action::RemoveDrive { drive: "vda".into() })))?;
    ///
    /// let (name, children) = ("part".into(), vec![ChildDecl::storage("disk")]);
    /// block_on(host.open_node(OpenDecl { name, driver: Box::new(open), children }))?;
    /// assert_eq!(host.graph().nodes()[1].info().size_bytes, 16 * 512);
    /// # host.shutdown()
    /// # }
    /// ```
    ///
    /// # Errors
    /// The opener's, and as [`Host::transact`]; `EBUSY` while somebody may write what it is to keep its bytes
    /// in.
    pub async fn open_node(&self, node: OpenDecl) -> Result<()> {
        let (cell, ended) = (Arc::clone(&self.inner.cell), Arc::clone(&self.inner.ended));
        let persistence = Arc::clone(&self.inner.persistence);
        let begun = self.inner.begun_once_loaded();
        let opened = on_worker(self.inner.first(), move || async move {
            super::check_running(&ended)?;
            cell.open_node(node).await?;
            persistence.follow(&cell, Vec::new()).await;
            begun.iter().for_each(|begun| begun.begin_new(&cell));
            Ok(())
        });
        opened.await?;
        self.inner.refresh_workers();
        Ok(())
    }
}

/// A node that never can be added: a child is unknown, or stands on it.
fn without_child(node: &PlannedNode, known: &BTreeSet<String>) -> Failed {
    let missing = node.children.iter().find(|child| !known.contains(&child.node));
    let missing = missing.map_or("", |child| &child.node);
    let message = format!("its child `{missing}` is unknown, or stands on it");
    let error = Error::new(ErrorKind::NotFound, message).at_node(&node.name);
    Failed { node: Some(node.name.clone()), kept: None, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::{BitmapName, Granularity};
    use crate::filter::PassNode;
    use crate::graph::{BitmapScope, Children};
    use crate::io::BufMut;
    use crate::node::{MemoryNode, RawNode};

    const SIZE: u64 = 1 << 20;

    /// A part of its child, behind the first sector: as long as the child says.
    async fn open(children: &Children) -> Result<Arc<dyn Node>> {
        let file = children.get(0)?;
        let first = file.read(0, BufMut::new(512)).await?;
        if first[0] == 0xff {
            return Err(Error::new(ErrorKind::Invalid, "it is no image"));
        }
        Ok(Arc::new(RawNode::new(512, Some(file.len_bytes()? / 2))))
    }

    fn memory() -> MemoryNode {
        MemoryNode::new(SIZE, 512).expect("a size")
    }

    fn pass(name: &str, on: &str) -> NodeDecl {
        let (name, driver) = (name.into(), Arc::new(PassNode));
        NodeDecl { name, driver, children: vec![ChildDecl::filtered(on)] }
    }

    #[test]
    fn nodes_are_opened_in_the_order_in_which_they_stand() {
        let scope = BitmapScope::Node("filter".into());
        let name = BitmapName::new("b").expect("a name");
        let host = Host::builder()
            .drive("vda", "top", true)
            .bitmap(scope.clone(), name, Granularity::MIN)
            .node("top", PassNode, vec![ChildDecl::filtered("inner")])
            .open_node("inner", open, vec![ChildDecl::storage("filter")])
            .node("filter", PassNode, vec![ChildDecl::filtered("outer")])
            .open_node("outer", open, vec![ChildDecl::storage("file")])
            .node("beside", memory(), vec![])
            .node("file", memory(), vec![])
            .start()
            .expect("a host");
        let drive = host.drive("vda").expect("a drive");
        assert_eq!(drive.info().expect("a medium").size_bytes, SIZE / 4);
        block_on(drive.write(1024, &[7; 512])).expect("a write");
        assert_eq!(block_on(drive.read(1024, 1)).expect("a read")[0], 7);
        let bitmap = host.bitmap(&scope, "b").expect("a bitmap");
        let mut ranges = bitmap.ranges(0..SIZE);
        assert_eq!((ranges.next(), ranges.next()), (Some(1536..2048), None));
        let graph = host.graph();
        let drives: Vec<&str> = graph.drives().iter().map(|drive| drive.id()).collect();
        assert_eq!(drives, ["vda"]);
        host.shutdown().expect("an end in order");
    }

    #[test]
    fn a_start_that_fails_leaves_nothing() {
        let fails = async move |_: &Children| -> Result<Arc<dyn Node>> {
            Err(Error::new(ErrorKind::Invalid, "it is no image"))
        };
        let check = |child: &str, expect: &str| {
            let file: Arc<dyn Node> = Arc::new(memory());
            let driver = Driver::Ready(Arc::clone(&file));
            let mut host = Host::builder();
            host.plan.nodes.push(PlannedNode {
                name: "file".into(),
                driver,
                children: vec![],
                is_closed: false,
            });
            let host = host
                .open_node("good", open, vec![ChildDecl::storage("file")])
                .open_node("bad", fails, vec![ChildDecl::storage(child)])
                .node("filter", PassNode, vec![ChildDecl::filtered("bad")])
                .drive("vda", "bad", false);
            let error = host.start().err().expect("a start that fails").to_string();
            assert!(error.contains(expect), "{error}");
            assert_eq!(Arc::strong_count(&file), 1, "a driver is still there");
        };
        check("good", "node `bad`: it is no image");
        check("filter", "node `bad`: its child `filter` is unknown, or stands on it");
        check("none", "node `bad`: its child `none` is unknown, or stands on it");
        let opened = Host::builder().open_node("image", open, vec![ChildDecl::storage("file")]);
        let host = opened.node("file", memory(), vec![]).drive("vda", "none", true);
        let error = host.start().err().expect("a start that fails").to_string();
        assert!(error.contains("unknown root `none`"), "{error}");
    }

    #[test]
    fn nodes_are_opened_while_the_host_runs() {
        let host = Host::builder().node("file", memory(), vec![]).drive("vda", "file", true);
        let host = host.start().expect("a host");
        let decl = |name: &str, child: &str| OpenDecl {
            name: name.into(),
            driver: Box::new(open),
            children: vec![ChildDecl::storage(child)],
        };
        let kind = |decl| block_on(host.open_node(decl)).map_err(|error| error.kind());
        let drives = || host.graph().drives().len();
        assert_eq!(kind(decl("image", "file")), Err(ErrorKind::InUse), "somebody writes it");
        let vda = host.drive("vda").expect("a drive");
        block_on(vda.write(0, &[0xff; 512])).expect("a write");
        let remove = Action::RemoveDrive { drive: "vda".into() };
        block_on(host.transact(Transaction::new().with(remove))).expect("a removal");
        assert_eq!(kind(decl("image", "file")), Err(ErrorKind::Invalid), "it is no image");
        assert_eq!(kind(decl("image", "none")), Err(ErrorKind::NotFound));
        assert_eq!((drives(), host.graph().nodes().len()), (0, 1));

        block_on(host.add_node(NodeDecl {
            name: "empty".into(),
            driver: Arc::new(memory()),
            children: vec![],
        }))
        .expect("a node");
        assert_eq!(kind(decl("image", "empty")), Ok(()));
        assert_eq!(kind(decl("image", "empty")), Err(ErrorKind::Exists));
        block_on(host.add_node(pass("filter", "image"))).expect("a node");
        assert_eq!(drives(), 0);
        host.shutdown().expect("an end in order");
    }
}
