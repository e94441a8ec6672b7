//! Calculations for requests, on threads of their own.

use std::future::poll_fn;
use std::pin::Pin;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::Cx;
use crate::io::{Urgency, compute};

/// Runs `f` on a thread for calculations. For what a node does of its own accord, as a job, that is done after what others
/// have to do, until somebody comes to wait for that very request; at once, if it holds what others may need, as guest
/// clusters of the image.
pub(super) async fn calculate<T: Send + 'static>(
    cx: Cx<'_>,
    holds_others: bool,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let may_wait = cx.is_of_own_accord() && !holds_others;
    let mut computed = compute(if may_wait { Urgency::Later } else { Urgency::Now }, f);
    let mut awaited = may_wait.then(|| cx.awaited());
    let computed = poll_fn(|task| {
        let computed_now = Pin::new(&mut computed).poll(task);
        if computed_now.is_pending() && awaited.take_if(|awaited| awaited.poll(task)).is_some() {
            computed.hurry();
        }
        computed_now
    });
    computed.await.map_err(|error| Error::new(ErrorKind::Io, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::test_disk::{Disk, disk_with};
    use crate::graph::{
        Action, ChildDecl, CopyHow, JobStake, LocalGraph, NodeDecl, OwnAccord, PermissionSet, Role,
        Transaction,
    };
    use crate::io::compute_testing::{take_thread, use_own_pool};
    use crate::io::{
        Buf, BufMut, EngineChoice, Urgency, next_turn, run_on_thread, spawn, turn_now, until,
    };
    use crate::job::JobNode;
    use crate::node::{MemoryNode, WriteFlags};

    const CLUSTER: u64 = 1 << 20;

    /// A disk of compressed clusters, and a job that copies from it.
    async fn scene(folder: &std::path::Path) -> (Disk, OwnAccord) {
        let target = MemoryNode::new(8 * CLUSTER, 512).expect("a size");
        let edge = |name: &str, node: &str, role, grants| ChildDecl {
            name: name.into(),
            role,
            grants,
            ..ChildDecl::filtered(node)
        };
        let stake = JobStake {
            id: "j".into(),
            stands_on: Vec::new(),
            tracks: None,
            leaves_out: None,
            alters_others: false,
        };
        let children = vec![
            edge("source", "disk", Role::Source, PermissionSet::CONSISTENT_READ),
            edge("target", "target", Role::Target, PermissionSet::WRITE),
        ];
        let driver = Arc::new(JobNode::new(stake));
        let nodes = vec![
            NodeDecl { name: "target".into(), driver: Arc::new(target), children: vec![] },
            NodeDecl { name: "job".into(), driver, children },
        ];
        let disk = disk_with(folder, CLUSTER, nodes).await;
        for index in 0..4 {
            let bytes = Buf::copy_of(&vec![index as u8 + 1; CLUSTER as usize]);
            disk.drive
                .write(index * CLUSTER, bytes, WriteFlags::COMPRESSED)
                .await
                .expect("a write");
        }
        let own = OwnAccord::open(&LocalGraph::of(&disk.cell), "job").expect("a job");
        (disk, own)
    }

    /// Copies a cluster, for which there is no thread.
    fn copy(own: &OwnAccord, index: u64, left: &Rc<Cell<u32>>) {
        let (own, left) = (own.clone(), Rc::clone(left));
        left.set(left.get() + 1);
        spawn(async move {
            let range = index * CLUSTER..(index + 1) * CLUSTER;
            let how = CopyHow { unchanged: false, only_unallocated: false };
            own.copy(0, 1, range, how).await.expect("a copy");
            left.set(left.get() - 1);
        });
    }

    async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
        let ended = until(turn_now() + Duration::from_secs(20), future).await;
        ended.unwrap_or_else(|| panic!("{what} waits for jobs"))
    }

    /// A guest's write waits for the copy of what is there. It does not wait for what jobs do before that.
    #[test]
    fn what_a_guest_comes_to_wait_for_is_hurried() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let done = run_on_thread(EngineChoice::Auto, async move {
            use_own_pool(1);
            let (disk, own) = scene(&path).await;
            let (go_on, busy) = take_thread(Urgency::Later);
            let left = Rc::default();
            (0..4).for_each(|index| copy(&own, index, &left));
            for _ in 0..100 {
                next_turn().await;
            }
            let bytes = Buf::copy_of(&[9; 512]);
            let write = disk.drive.write(2 * CLUSTER, bytes, WriteFlags::NONE);
            soon("a write", write).await.expect("a write");
            let read = disk.drive.read(2 * CLUSTER, BufMut::new(1024)).await.expect("a read");
            assert!(read[..512] == [9; 512] && read[512..] == [3; 512]);
            // Nor does who needs the job to stand still.
            let remove = Transaction::new().with(Action::RemoveNode { node: "job".into() });
            let remove = remove.ending_job("j");
            soon("a change", disk.cell.transact(remove)).await.expect("a change");
            soon("a copy", async {
                while left.get() > 0 {
                    next_turn().await;
                }
            })
            .await;
            drop(go_on);
            busy.await.expect("it ends");
        });
        done.expect("a worker");
    }
}
