//! Backups whose sources go with what has been copied.

use std::sync::Arc;

use blockloom_plugin_backup::BackupConfig;

use super::super::scene::{
    BLOCK, chain, dirty, disk, ends_well, fill_chain, insert_filter, of_node, shown, shown_by,
    wait_for, write,
};
use crate::error::ErrorKind;
use crate::filter::{BackupNode, ViewNode};
use crate::graph::{Action, DriveDecl, NodeDecl, OpKind, Transaction, Unproven, Which};
use crate::job::{BackupSpec, JobKind, JobSpec, JobStatus};
use crate::{Host, block_on};

fn backup(device: &str) -> JobSpec {
    let spec = BackupSpec { discards_source: true, ..BackupSpec::of(device, "copy") };
    JobSpec::new("b", JobKind::Backup(spec))
}

fn host() -> Host {
    let host = chain().node("copy", disk(), vec![]).node("kept", disk(), vec![]);
    let host = host.node("old", disk(), vec![]).start().expect("a host");
    fill_chain(&host);
    host
}

fn apply(host: &Host, action: Action) -> crate::Result<()> {
    let change = Transaction::new().with_unproven(action, Unproven::MarkWhole);
    block_on(host.transact(change)).map(drop)
}

fn drive(root: &str, writable: bool) -> Action {
    let (id, root) = ("vdb".into(), Some(root.into()));
    Action::AddDrive(DriveDecl { id, root, writable, only_shows: false })
}

/// Puts a filter `cbw` above the disk, which keeps in `kept` what is there now, and a view of that: `then`.
fn keep_an_instant(host: &Host, sync: &str) {
    let config = format!("{{\"sync\": \"{sync}\"}}");
    let config = BackupConfig::from_json(&config).expect("a configuration");
    let filter = Arc::new(BackupNode::new(config, None).expect("a backup"));
    let view = Arc::new(ViewNode::of_backup(&filter));
    let children = BackupNode::children("top", "kept");
    let filter = NodeDecl { name: "cbw".into(), driver: filter, children };
    let (node, users) = ("top".into(), Which::All);
    apply(host, Action::InsertAbove { node, filter, users }).expect("a filter");
    let children = ViewNode::children("top", "kept", "cbw");
    let view = NodeDecl { name: "then".into(), driver: view, children };
    apply(host, Action::AddNode(view)).expect("a view");
}

/// Requests of a kind by an edge.
fn requests(host: &Host, node: &str, edge: &str, kind: OpKind) -> u64 {
    let graph = host.graph();
    let node = &graph.nodes()[graph.find_node(node).expect("a node")];
    let edge = node.edges().iter().find(|it| it.name() == edge).expect("an edge");
    edge.counters().snapshot().requests[kind.index()]
}

/// A node that nobody writes: its bytes are in the copy then, and it has none.
#[test]
fn a_source_is_empty_when_it_has_been_copied() {
    let host = host();
    apply(&host, drive("old", true)).expect("a drive");
    for block in [0, 7, 600] {
        write(&host, "vdb", block, 5);
    }
    // As long as somebody may write it, what is there may be newer than the copy.
    let error = block_on(host.start_job(backup("old"))).err().expect("it is written");
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let expected = "node `old`: job `b` discards there what it has copied, and drive `vdb` (edge `root`) changes it: \
                    make that one read-only too, or start the job without that";
    assert!(error.to_string().ends_with(expected), "{error}");
    apply(&host, Action::RemoveDrive { drive: "vdb".into() }).expect("no drive");
    let expect = shown_by(&host, "old");
    let job = JobSpec { auto_finalize: false, ..backup("old") };
    let job = block_on(host.start_job(job)).expect("a job");
    block_on(job.reaches(JobStatus::Pending));
    let error = apply(&host, drive("#job-b", true)).expect_err("nobody writes it meanwhile");
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    job.finalize().expect("a job that waits");
    ends_well(&job);
    assert!(shown_by(&host, "copy") == expect);
    assert!(shown_by(&host, "old").iter().all(|byte| *byte == 0));
    host.shutdown().expect("an end in order");
}

/// Fleecing: what was kept for a point in time is freed as it is backed up, and what has been backed up is not kept any
/// more when the guest writes there.
#[test]
fn a_point_in_time_is_given_up_as_it_is_backed_up() {
    let host = host();
    keep_an_instant(&host, "none");
    let expect = shown_by(&host, "then");
    for block in [3, 300, 900] {
        write(&host, "vda", block, 9);
    }
    assert!(shown_by(&host, "kept").iter().any(|byte| *byte != 0));
    assert!(shown_by(&host, "then") == expect);

    let job = block_on(host.start_job(backup("then"))).expect("a job");
    ends_well(&job);
    assert!(shown_by(&host, "copy") == expect, "it is of the point in time");
    // It is freed aside.
    let is_freed = || shown_by(&host, "kept").iter().all(|byte| *byte == 0);
    assert!(wait_for(is_freed), "nothing is freed");
    let kept = requests(&host, "cbw", "target", OpKind::Write);
    write(&host, "vda", 500, 9);
    assert_eq!(requests(&host, "cbw", "target", OpKind::Write), kept, "nobody needs the old bytes");
    apply(&host, drive("then", true)).expect("it can be given up by whoever may write");
    let given_up = host.drive("vdb").expect("a drive");
    let error = block_on(given_up.read(3 * BLOCK, 512)).expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Io);
    let error = block_on(given_up.write(0, &[1; 512])).expect_err("that is all");
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert_eq!(dirty(&host, &of_node("top")), [3, 300, 500, 900]);
    host.shutdown().expect("an end in order");
}

/// Who may write the view of a point in time can only give it up: so may others while it is backed up.
#[test]
fn a_point_in_time_may_be_given_up_by_others_as_well() {
    let host = host();
    keep_an_instant(&host, "none");
    block_on(host.transact(insert_filter("then", "pass"))).expect("a filter");
    let expect = shown_by(&host, "then");
    apply(&host, drive("pass", true)).expect("somebody who may give it up");

    let job = block_on(host.start_job(JobSpec { speed: 1, ..backup("pass") })).expect("a job");
    let given_up = host.drive("vdb").expect("a drive");
    block_on(given_up.discard(0, expect.len() as u64)).expect("it is copied first");
    let error = block_on(given_up.write(0, &[1; 512])).expect_err("it is not written");
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    let expected = "node `then`: a point in time can be given up, by discards, and not written: write to the disk";
    assert!(error.to_string().contains(expected), "{error}");
    job.set_speed(0).ok();
    ends_well(&job);
    assert!(shown_by(&host, "copy") == expect);
    let error = block_on(given_up.read(0, 512)).expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Io);
    host.shutdown().expect("an end in order");
}

/// A backup that copies all is in its target: nobody gives up a part of that by its view.
#[test]
fn a_backup_of_all_is_given_up_by_nobody() {
    let host = host();
    let expect = shown_by(&host, "top");
    keep_an_instant(&host, "full");
    apply(&host, drive("then", true)).expect("a drive");
    let then = host.drive("vdb").expect("a drive");
    block_on(then.discard(0, expect.len() as u64)).expect("advice");
    assert!(shown(&host, "vdb") == expect);
    apply(&host, Action::RemoveDrive { drive: "vdb".into() }).expect("no drive");
    // The rest follows of its own accord.
    assert!(wait_for(|| shown_by(&host, "kept") == expect), "it is not whole");
    let error = block_on(host.start_job(backup("then"))).err().expect("nothing is discarded there");
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    host.shutdown().expect("an end in order");
}
