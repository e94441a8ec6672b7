//! What requests cost on one worker, by any filter: for the command line and the benchmarks.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::io::{Buf, BufMut, spawn};
use crate::node::{Node, NullNode, WriteFlags};

/// Of each node, bytes.
const SIZE_BYTES: u64 = 1 << 30;
/// Of each request, bytes.
const REQUEST_BYTES: usize = 4096;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// A drive of this thread, which is a worker: over a `null` node, or over a filter whose children, as they are
/// called, are such nodes.
///
/// # Errors
/// What is wrong with the graph, or keeps the filter from starting.
pub fn over_null(filter: Option<(Arc<dyn Node>, Vec<ChildDecl>)>) -> Result<LocalDrive> {
    let mut decl = GraphDecl::default();
    let children = filter.as_ref().map_or(&[][..], |(_, children)| children);
    let mut names: Vec<&str> = children.iter().map(|child| child.node.as_str()).collect();
    if names.is_empty() {
        names.push("null");
    }
    for name in &names {
        let driver = Arc::new(NullNode::new(SIZE_BYTES, false, Duration::ZERO));
        decl.nodes.push(NodeDecl { name: (*name).into(), driver, children: vec![] });
    }
    let mut root = names[0].to_owned();
    if let Some((driver, children)) = filter {
        decl.nodes.push(NodeDecl { name: "filter".into(), driver, children });
        root = "filter".into();
    }
    decl.drives.push(DriveDecl {
        id: "d".into(),
        root: Some(root),
        writable: true,
        only_shows: false,
    });
    let graph = decl.build()?;
    graph.start_drivers(None)?;
    LocalDrive::open(&Rc::new(LocalGraph::new(Arc::new(GraphCell::new(graph)), 0)), "d")
}

/// Does `count` requests of 4 KiB, `depth` in each turn, and returns the time of one.
///
/// # Errors
/// The first request's that fails.
pub async fn run(drive: &LocalDrive, work: Work, depth: usize, count: usize) -> Result<Duration> {
    let rounds = (count / depth).max(1);
    let data = Buf::copy_of(&[7; REQUEST_BYTES]);
    let failed: Rc<Cell<Option<Error>>> = Rc::default();
    let start = Instant::now();
    for round in 0..rounds {
        let done = Rc::new(Cell::new(0));
        let waker: Rc<Cell<Option<Waker>>> = Rc::default();
        for slot in 0..depth {
            let (drive, done, waker) = (drive.clone(), Rc::clone(&done), Rc::clone(&waker));
            let (data, failed) = (data.clone(), Rc::clone(&failed));
            let offset = ((round * depth + slot) * REQUEST_BYTES) as u64 % SIZE_BYTES;
            spawn(async move {
                let result = match work {
                    Work::Read => {
                        let read = drive.read(offset, BufMut::new(REQUEST_BYTES)).await;
                        read.map(|buf| drop(black_box(buf)))
                    }
                    Work::Write => drive.write(offset, data, WriteFlags::NONE).await,
                };
                if let Err(error) = result {
                    failed.set(Some(error));
                }
                done.set(done.get() + 1);
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            });
        }
        std::future::poll_fn(|cx| {
            if done.get() == depth {
                return Poll::Ready(());
            }
            waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
    let time = start.elapsed();
    if let Some(error) = failed.take() {
        return Err(error);
    }
    let requests = u32::try_from(rounds * depth)
        .map_err(|_| Error::new(ErrorKind::Invalid, "too many requests for one sample"))?;
    Ok(time / requests)
}

/// How long something takes.
///
/// # Errors
/// Its own.
pub fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let done = act()?;
    Ok((done, start.elapsed()))
}
