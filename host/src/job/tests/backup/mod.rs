//! `backup`.

mod bitmaps;
mod chains;
mod copied;
mod discards;
mod failures;
mod instant;
mod refused;

use std::sync::Arc;

use super::scene::{BLOCK, Worn, chain, disk, fill_chain};
use crate::graph::{Action, ChildDecl, NodeDecl, Transaction};
use crate::job::{BackupSpec, JobHandle, JobKind, JobSpec};
use crate::{Host, block_on};

fn backup(spec: BackupSpec) -> JobSpec {
    JobSpec::new("b", JobKind::Backup(spec))
}

/// The chain of the scene over a source that counts reads, and a target that can be worn.
struct World {
    host: Host,
    source: Worn,
    target: Worn,
}

fn world() -> World {
    let (source, target) = (Worn::default(), Worn::default());
    let host = chain()
        .node("copy", disk(), vec![])
        .node("onto", target.clone(), vec![ChildDecl::filtered("copy")])
        .start()
        .expect("a host");
    fill_chain(&host);
    let filter = NodeDecl {
        name: "meter".into(),
        driver: Arc::new(source.clone()),
        children: vec![ChildDecl::filtered("top")],
    };
    let (node, users) = ("top".into(), crate::graph::Which::All);
    let insert = Transaction::new().with(Action::InsertAbove { node, filter, users });
    block_on(host.transact(insert)).expect("a filter");
    World { host, source, target }
}

impl World {
    /// Starts a job that stands still after its first pieces.
    fn start(&self, spec: BackupSpec) -> JobHandle {
        let spec = JobSpec { speed: 1, ..backup(spec) };
        block_on(self.host.start_job(spec)).expect("a job")
    }

    fn end(self) {
        assert!(self.host.jobs().is_empty());
        assert_eq!(self.host.graph().find_node("#job-b"), None);
        self.host.shutdown().expect("an end in order");
    }
}

fn block(of: &[u8], block: u64) -> &[u8] {
    &of[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize]
}
