//! A running host, as far as it is simulated: a graph, its jobs, bitmaps and guests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::super::lag::{self, Lag};
use super::super::world::words;
use super::bitmaps::{Target, Tracked};
use super::changer::Changer;
use super::ledger::Ledger;
use super::past::Past;
use super::shape;
use crate::bitmap::{BitmapName, Granularity};
use crate::error::{Error, ErrorKind, Result as HostResult};
use crate::graph::{
    Action, BitmapDecl, BitmapRef, BitmapScope, ChildDecl, DriveDecl, GraphCell, GraphDecl,
    LocalDrive, LocalGraph, NodeDecl, Transaction,
};
use crate::io::BufMut;
use crate::io::sim::{Random, SECTOR};
use crate::job::{Changes, Jobs};

/// A drive that only shows what is left.
pub(super) const LOOK: &str = "look";
/// Workers that mix their tasks.
const WORKERS: u64 = 3;

/// A drive, also of hosts that have ended.
pub(super) struct Disk {
    pub(super) id: String,
    /// What it showed first when the last host ended.
    pub(super) root: RefCell<String>,
    pub(super) ledger: RefCell<Ledger>,
    /// That have not ended.
    pub(super) guests: Cell<usize>,
}

impl Disk {
    pub(super) fn new(id: &str, root: String, first: Vec<u64>) -> Rc<Self> {
        let (root, ledger) = (RefCell::new(root), RefCell::new(Ledger::new(first)));
        Rc::new(Self { id: id.to_owned(), root, ledger, guests: Cell::new(0) })
    }
}

/// See the module.
pub(super) struct World {
    pub(super) past: Rc<Past>,
    pub(super) disks: Vec<Rc<Disk>>,
    pub(super) cell: Arc<GraphCell>,
    pub(super) workers: Vec<Rc<LocalGraph>>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) changer: Arc<Changer>,
    pub(super) tracked: RefCell<Vec<Tracked>>,
    pub(super) targets: RefCell<Vec<Target>>,
    /// Something may fail, or may have failed, in this round.
    pub(super) fails: Cell<bool>,
    /// Views may have gone by somebody's word in this round.
    pub(super) trusts: Cell<bool>,
    wrong: RefCell<Option<String>>,
}

pub(super) fn told(error: Error) -> String {
    error.to_string()
}

pub(super) fn lag_name(store: &str) -> String {
    format!("{store}-lag")
}

/// A filter that takes its time, over a store.
pub(super) fn lag_over(store: &str) -> NodeDecl {
    let children = vec![ChildDecl::filtered(store)];
    NodeDecl { name: lag_name(store), driver: Arc::new(Lag), children }
}

pub(super) fn of_drive(id: &str) -> BitmapScope {
    BitmapScope::Drive(id.into())
}

pub(super) fn of_node(name: &str) -> BitmapScope {
    BitmapScope::Node(name.into())
}

fn bitmap(scope: BitmapScope, name: &str, granularity: u64) -> HostResult<BitmapDecl> {
    let (name, granularity) = (BitmapName::new(name)?, Granularity::from_bytes(granularity)?);
    Ok(BitmapDecl { scope, name, granularity, enabled: true })
}

impl World {
    /// With all drives on what they showed last, bitmaps `b` and `j` of each, and `k` of the node that is to keep one.
    ///
    /// # Errors
    /// Something cannot be opened.
    pub(super) fn open(
        past: &Rc<Past>,
        disks: &[Rc<Disk>],
        random: &mut Random,
    ) -> Result<Rc<Self>, String> {
        lag::begin();
        let mut decl = GraphDecl::default();
        for disk in disks {
            let chain = past.chain(&disk.root.borrow())?;
            for (at, store) in chain.iter().enumerate().rev() {
                if decl.nodes.iter().any(|node| node.name == *store) {
                    continue;
                }
                let below = chain.get(at + 1).map(|below| lag_name(below));
                decl.nodes.extend(past.nodes(store, below.as_deref()).map_err(told)?);
                decl.nodes.push(lag_over(store));
            }
            let root = chain.first().map(|store| lag_name(store));
            let (id, coarse) = (disk.id.clone(), SECTOR as u64 * (1 << random.below(4)));
            for (name, granularity) in [("b", SECTOR as u64), ("j", coarse)] {
                decl.bitmaps.push(bitmap(of_drive(&id), name, granularity).map_err(told)?);
            }
            decl.drives.push(DriveDecl { id, root, writable: true, only_shows: false });
        }
        let first = disks.first().filter(|disk| disk.id != LOOK).map(|disk| disk.root.borrow());
        let chain = first.map_or(Ok(Vec::new()), |root| past.chain(&root))?;
        if let Some(image) = past.keeping(&chain) {
            decl.bitmaps.push(bitmap(of_node(&image), "k", SECTOR as u64).map_err(told)?);
        }
        let graph = decl.build().map_err(told)?;
        graph.start_drivers(None).map_err(told)?;
        let cell = Arc::new(GraphCell::with_workers(graph, WORKERS as usize));
        let worker = |number| Rc::new(LocalGraph::new(Arc::clone(&cell), number));
        Ok(Rc::new(Self {
            past: Rc::clone(past),
            disks: disks.to_vec(),
            workers: (0..WORKERS as usize).map(worker).collect(),
            jobs: Jobs::new(&cell),
            changer: Arc::new(Changer::new(&cell)),
            cell,
            tracked: RefCell::default(),
            targets: RefCell::default(),
            fails: Cell::new(false),
            trusts: Cell::new(false),
            wrong: RefCell::default(),
        }))
    }

    pub(super) fn worker(&self, random: &mut Random) -> &Rc<LocalGraph> {
        &self.workers[random.below(WORKERS) as usize]
    }

    pub(super) async fn transact(&self, transaction: Transaction) -> HostResult<()> {
        self.changer.transact(transaction).await.map(drop)
    }

    /// Keeps the first thing that is wrong.
    pub(super) fn judge(&self, verdict: Result<(), String>) {
        if let Err(wrong) = verdict {
            self.wrong.borrow_mut().get_or_insert(wrong);
        }
    }

    /// # Errors
    /// The first thing that was wrong.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.wrong.borrow().clone().map_or(Ok(()), Err)
    }

    /// Judges why something failed: where nothing does, by one of `also`.
    pub(super) fn expect(&self, what: &str, error: &Error, also: &[ErrorKind]) {
        let of_faults = [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::TimedOut];
        let is_fault = self.fails.get() && of_faults.contains(&error.kind());
        if !is_fault && !also.contains(&error.kind()) {
            self.judge(Err(format!("{what} ended with: {error} ({:?})", error.kind())));
        }
    }

    /// The stores that a drive shows, from its root down.
    pub(super) fn chain(&self, disk: &Disk) -> Vec<String> {
        shape::chain(&self.cell.load(), &disk.id)
    }

    /// The node that a drive shows.
    pub(super) fn root(&self, disk: &Disk) -> Option<String> {
        let graph = self.cell.load();
        let drive = &graph.drives()[graph.find_drive(&disk.id)?];
        Some(graph.nodes()[drive.root()?.child()].name().to_owned())
    }

    pub(super) async fn read(&self, drive: &str) -> Result<Vec<u64>, String> {
        let graph = self.cell.load();
        let root = graph.find_drive(drive).and_then(|at| graph.drives()[at].root());
        let size_bytes = root.map_or(0, |root| graph.nodes()[root.child()].info().size_bytes);
        let drive = LocalDrive::open(&self.workers[0], drive).map_err(told)?;
        let bytes = drive.read(0, BufMut::new(size_bytes as usize)).await;
        words(&bytes.map_err(told)?)
    }

    /// What nodes show, each by a drive for the moment.
    ///
    /// # Errors
    /// One cannot be read.
    pub(super) async fn look(&self, nodes: &[String]) -> Result<Vec<Vec<u64>>, String> {
        let id = |node: &String| format!("look-{node}");
        let add = |to: Transaction, node: &String| {
            let root = Some(node.clone());
            let look = DriveDecl { id: id(node), root, writable: false, only_shows: true };
            to.with(Action::AddDrive(look))
        };
        let remove = |to: Transaction, node| to.with(Action::RemoveDrive { drive: id(node) });
        self.transact(nodes.iter().fold(Transaction::new(), add)).await.map_err(told)?;
        let mut shown = Vec::new();
        for node in nodes {
            shown.push(self.read(&id(node)).await);
        }
        self.transact(nodes.iter().fold(Transaction::new(), remove)).await.map_err(told)?;
        shown.into_iter().collect()
    }

    /// Adds a store that nobody uses yet: itself, and a filter over it. Its name.
    ///
    /// # Errors
    /// Those of its driver, or of the transaction.
    pub(super) async fn add(&self, store: String, backing: Option<&str>) -> HostResult<String> {
        let mut nodes = self.past.nodes(&store, backing)?;
        nodes.push(lag_over(&store));
        let add = nodes.into_iter().map(Action::AddNode);
        self.transact(add.fold(Transaction::new(), Transaction::with)).await?;
        Ok(store)
    }

    /// Takes out what nobody uses, with its bitmaps.
    ///
    /// # Errors
    /// Something stands against it.
    pub(super) async fn tidy(&self) -> Result<(), String> {
        let (graph, mut gone) = (self.cell.load(), BTreeSet::new());
        let mut transaction = Transaction::new();
        // Parents come after their children.
        for (at, node) in graph.nodes().iter().enumerate().rev() {
            let is_used = graph.nodes().iter().any(|parent| {
                let mut edges = parent.edges().iter();
                !gone.contains(parent.name()) && edges.any(|edge| edge.child() == at)
            });
            let roots = graph.drives().iter().filter_map(|drive| drive.root());
            if is_used || roots.into_iter().any(|root| root.child() == at) {
                continue;
            }
            gone.insert(node.name().to_owned());
            let scope = of_node(node.name());
            for (_, bitmap) in graph.bitmaps().filter(|(other, _)| **other == scope) {
                let bitmap = BitmapRef::of_node(node.name(), bitmap.name().as_str());
                transaction = transaction.with(crate::graph::BitmapAction::Remove.of(bitmap));
            }
            transaction = transaction.with(Action::RemoveNode { node: node.name().to_owned() });
        }
        let is_gone = |it: &Tracked| match &it.scope {
            BitmapScope::Node(node) => gone.contains(&**node),
            BitmapScope::Drive(_) => false,
        };
        self.tracked.borrow_mut().retain(|tracked| !is_gone(tracked));
        self.transact(transaction).await.map_err(told)
    }
}
