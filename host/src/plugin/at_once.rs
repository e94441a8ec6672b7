//! What is done for a request at once, before others have their turn.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::{Grants, Instance, PluginNode, PluginRuntime};
use crate::filter::CopyOnReadNode;
use crate::graph::{ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::io::{BufMut, EngineChoice, EngineKind, next_turn, plug, run_on_thread};
use crate::node::{ExtentKind, MemoryNode, Node};

const DISK_BYTES: u64 = 9 << 20;

/// A drive over `copy-on-read` over an overlay with nothing in it, in memory.
fn over_overlay() -> LocalDrive {
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let instance = Instance::bundled(&runtime, "copy-on-read", "{}").expect("a plugin");
    let children = [("file".to_owned(), Grants::READ.union(Grants::WRITE_UNCHANGED))];
    let filter = PluginNode::with_children(&instance, &children).expect("a node");
    let overlay = MemoryNode::overlay(DISK_BYTES, 512).expect("an overlay");
    let base = MemoryNode::new(DISK_BYTES, 512).expect("a disk");
    let node = |name: &str, driver: Arc<dyn Node>, children| NodeDecl {
        name: name.into(),
        driver,
        children,
    };
    let nodes = vec![
        node("base", Arc::new(base), vec![]),
        node("overlay", Arc::new(overlay), vec![ChildDecl::backing("base")]),
        node("filter", Arc::new(filter), vec![CopyOnReadNode::child("overlay")]),
    ];
    let root = Some("filter".to_owned());
    let drives = vec![DriveDecl { id: "d".into(), root, writable: true, only_shows: false }];
    let graph = GraphDecl { nodes, drives, bitmaps: vec![] }.build().expect("a graph");
    graph.start_drivers(None).expect("drivers that start");
    let graph = LocalGraph::of(&Arc::new(GraphCell::new(graph)));
    LocalDrive::open(&graph, "d").expect("a drive")
}

/// Reads as the only one of a turn, or while more requests are to come; whether it has ended at once.
async fn is_read_at_once(drive: &LocalDrive, offset: u64, len: usize, is_alone: bool) -> bool {
    let mut read = pin!(drive.read(offset, BufMut::new(len)));
    let polled = poll_fn(|cx| {
        let _more = (!is_alone).then(plug);
        Poll::Ready(read.as_mut().poll(cx))
    });
    match polled.await {
        Poll::Ready(read) => {
            read.expect("a read");
            true
        }
        Poll::Pending => {
            read.await.expect("a read");
            false
        }
    }
}

/// One that nothing of the turn joins need not wait for its end; others go together. Who asks for much more than
/// one thing has others come between.
#[test]
fn a_request_alone_is_done_at_once_if_it_needs_no_waiting() {
    let ended = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
        let drive = over_overlay();
        // It begins a task of the plugin's, for which the turn goes on.
        drive.read(8 << 20, BufMut::new(4096)).await.expect("a read");
        next_turn().await;
        assert!(is_read_at_once(&drive, 0, 64 << 10, true).await);
        assert!(!is_read_at_once(&drive, 1 << 20, 64 << 10, false).await);
        assert!(!is_read_at_once(&drive, 2 << 20, 6 << 20, true).await, "six copies");
        let status = drive.block_status(0, DISK_BYTES).await.expect("a status");
        let own = status.iter().filter(|extent| extent.kind != ExtentKind::Unallocated);
        assert_eq!(own.map(|extent| extent.len).sum::<u64>(), 4096 + (128 << 10) + (6 << 20));
    });
    ended.expect("a worker");
}
