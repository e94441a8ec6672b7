//! Ends of jobs while others change the graph.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use super::scene::{disk, overlay};
use crate::error::{ErrorKind, Result};
use crate::graph::{
    Action, Applied, ChildDecl, Cx, DriveDecl, GraphCell, GraphDecl, LocalGraph, NodeDecl,
    Transaction,
};
use crate::io::{Buf, BufMut, EngineChoice, EngineKind, run_on_thread, spawn_boxed};
use crate::job::{Changes, CommitSpec, JobEnd, JobKind, JobSpec, Jobs};
use crate::limits::JOB_END_TRIES;
use crate::node::{BackingName, Extent, MemoryNode, Node, NodeFuture, NodeInfo, WriteFlags};

/// An overlay whose image names its backing; with what it was told.
struct Image(MemoryNode, Arc<Mutex<Vec<Option<BackingName>>>>);

impl Node for Image {
    fn driver(&self) -> &'static str {
        "image"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        self.0.info(children)
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, buf: BufMut) -> NodeFuture<'a, BufMut> {
        self.0.read(cx, offset, buf)
    }

    fn write<'a>(&'a self, cx: Cx<'a>, at: u64, buf: Buf, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.0.write(cx, at, buf, flags)
    }

    fn zero<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64, flags: WriteFlags) -> NodeFuture<'a, ()> {
        self.0.zero(cx, at, len, flags)
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, ()> {
        self.0.discard(cx, at, len)
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        self.0.flush(cx)
    }

    fn block_status<'a>(&'a self, cx: Cx<'a>, at: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        self.0.block_status(cx, at, len)
    }

    fn names_backing(&self) -> bool {
        true
    }

    fn name_backing<'a>(&'a self, _: Cx<'a>, name: Option<BackingName>) -> NodeFuture<'a, ()> {
        self.1.lock().expect("a lock").push(name);
        Box::pin(async { Ok(()) })
    }
}

/// Images by name, with what each was told.
type Told = Mutex<Vec<(String, Arc<Mutex<Vec<Option<BackingName>>>>)>>;

/// Applies what it is given, but each time so often somebody is quicker and puts an image on `mid`.
struct Overtaken {
    cell: Arc<GraphCell>,
    images: Told,
    results: Mutex<Vec<Option<ErrorKind>>>,
}

/// More often than what may pass by itself is tried again.
const OVERTAKEN: usize = JOB_END_TRIES + 1;

impl Overtaken {
    fn image(&self, name: &str, on: &str) -> NodeDecl {
        let told = Arc::<Mutex<_>>::default();
        self.images.lock().expect("a lock").push((name.to_owned(), Arc::clone(&told)));
        let (driver, children) = (Arc::new(Image(overlay(), told)), vec![ChildDecl::backing(on)]);
        NodeDecl { name: name.to_owned(), driver, children }
    }

    async fn apply(&self, transaction: Transaction) -> Result<Applied> {
        let round = self.results.lock().expect("a lock").len();
        if round < OVERTAKEN {
            let add = Action::AddNode(self.image(&format!("image{round}"), "mid"));
            self.cell.transact(Transaction::new().with(add)).await.expect("an image");
        }
        let applied = self.cell.transact(transaction).await;
        let kind = applied.as_ref().err().map(crate::Error::kind);
        self.results.lock().expect("a lock").push(kind);
        applied
    }
}

impl Changes for Overtaken {
    fn transact<'a>(
        &'a self,
        transaction: Transaction,
    ) -> Pin<Box<dyn Future<Output = Result<Applied>> + 'a>> {
        Box::pin(self.apply(transaction))
    }

    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async {})
    }
}

/// What was seen to be done before an image has come is not done after it: that image would go on to name what it does
/// not stand on any more.
#[test]
fn an_end_never_changes_a_graph_that_it_has_not_seen() {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
        let decl = |name: &str, driver, children| NodeDecl { name: name.into(), driver, children };
        let nodes = vec![
            decl("base", Arc::new(disk()), vec![]),
            decl("mid", Arc::new(overlay()), vec![ChildDecl::backing("base")]),
        ];
        let decl = GraphDecl { nodes, ..GraphDecl::default() };
        let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
        let changes = Arc::new(Overtaken {
            cell: Arc::clone(&cell),
            images: Mutex::default(),
            results: Mutex::default(),
        });
        let drive = DriveDecl {
            id: "vda".into(),
            root: Some("top".into()),
            writable: true,
            only_shows: false,
        };
        let start = Transaction::new()
            .with(Action::AddNode(changes.image("top", "mid")))
            .with(Action::AddDrive(drive));
        cell.transact(start).await.expect("a drive");

        let said = BackingName { name: "said".into(), format: Some("raw".into()) };
        let commit = CommitSpec {
            top: Some("mid".into()),
            backing_name: Some(said.clone()),
            ..CommitSpec::of("vda", "base")
        };
        let specs = [(0, JobSpec::new("c", JobKind::Commit(commit)))];
        let jobs = Jobs::new(&cell);
        let by = Arc::clone(&changes) as Arc<dyn Changes>;
        let started = jobs.prepare(&cell.load(), &specs, false, &by, Transaction::new());
        let (starting, transaction) = started.expect("a job");
        cell.transact(transaction).await.expect("a job");
        starting.iter().for_each(|group| group.are_created());
        let graph = LocalGraph::of(&cell);
        let mut handles = Vec::new();
        for group in starting {
            handles.extend(group.begin(|job| spawn_boxed(job(Rc::clone(&graph)))));
        }
        assert!(matches!(handles.remove(0).wait().await, JobEnd::Completed));

        let mut results = vec![Some(ErrorKind::Stale); OVERTAKEN];
        results.push(None);
        assert_eq!(*changes.results.lock().expect("a lock"), results);
        let graph = cell.load();
        for (image, told) in &*changes.images.lock().expect("a lock") {
            let node = &graph.nodes()[graph.find_node(image).expect("a node")];
            assert_eq!(graph.nodes()[node.edges()[0].child()].name(), "base", "{image}");
            assert_eq!(*told.lock().expect("a lock"), [Some(said.clone()); 1], "{image}");
        }
        assert_eq!(changes.images.lock().expect("a lock").len(), OVERTAKEN + 1);
    });
    ended.expect("a worker");
}
