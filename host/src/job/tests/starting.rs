//! Jobs that do not come to be.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::scene::{disk, overlay};
use crate::block_on;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Applied, ChildDecl, GraphCell, GraphDecl, NodeDecl, Transaction};
use crate::job::{Changes, JobEnd, JobKind, JobSpec, Jobs, StreamSpec};

/// Changes nothing.
struct Nobody;

impl Changes for Nobody {
    fn transact<'a>(
        &'a self,
        _: Transaction,
    ) -> Pin<Box<dyn Future<Output = Result<Applied>> + 'a>> {
        let refused = Error::new(ErrorKind::NotSupported, "nobody changes anything");
        Box::pin(async { Err(refused) })
    }

    fn give_back<'a>(&'a self) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async {})
    }
}

#[test]
fn who_waits_for_a_job_that_does_not_come_to_be_is_told_so() {
    let children = vec![ChildDecl::backing("base")];
    let nodes = vec![
        NodeDecl { name: "base".into(), driver: Arc::new(disk()), children: vec![] },
        NodeDecl { name: "top".into(), driver: Arc::new(overlay()), children },
    ];
    let decl = GraphDecl { nodes, ..GraphDecl::default() };
    let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
    let (jobs, changes) = (Jobs::new(&cell), Arc::new(Nobody) as Arc<dyn Changes>);
    let specs = [(0, JobSpec::new("s", JobKind::Stream(StreamSpec::of("top"))))];
    let starting = jobs.prepare(&cell.load(), &specs, false, &changes, Transaction::new());
    let starting = starting.expect("a job that could come to be");
    let job = jobs.get("s").expect("a job");
    drop(starting);
    assert!(jobs.all().is_empty());
    assert!(matches!(block_on(job.wait()), JobEnd::Cancelled));
}
