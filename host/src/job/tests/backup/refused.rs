//! What is refused, and in which words.

use std::sync::Arc;

use super::super::scene::{SIZE, overlay};
use super::{backup, world};
use crate::error::ErrorKind;
use crate::graph::{Action, BitmapRef, ChildDecl, NodeDecl, Transaction};
use crate::job::backup::mode_of;
use crate::job::{
    BackupSpec, BackupSync as S, BitmapMode as M, CommitSpec, JobKind, JobSpec, MirrorSpec,
};
use crate::node::{MemoryNode, WriteFlags};
use crate::{Host, block_on};

/// QEMU's words for what has no sense together.
#[test]
fn what_has_no_sense_together_is_refused() {
    let all = [S::Full, S::Top, S::None, S::Incremental, S::Bitmap];
    let modes = [None, Some(M::OnSuccess), Some(M::Never), Some(M::Always)];
    let expect = |sync: S, has_bitmap: bool, mode: Option<M>| -> Result<Option<M>, String> {
        let name = sync.name();
        match (sync, has_bitmap, mode) {
            (S::Incremental | S::Bitmap, false, _) => {
                Err(format!("must provide a valid bitmap name for '{name}' sync mode"))
            }
            (S::Incremental, true, None | Some(M::OnSuccess)) => Ok(Some(M::OnSuccess)),
            (S::Incremental, true, _) => {
                Err("bitmap sync mode must be 'on-success' when using sync mode 'incremental'"
                    .into())
            }
            (_, false, None) => Ok(None),
            (_, false, _) => Err("cannot specify bitmap sync mode without a bitmap".into()),
            (_, true, None) => Err("bitmap sync mode must be given when providing a bitmap".into()),
            (S::None, true, _) => {
                Err("sync mode 'none' does not produce meaningful bitmap outputs".into())
            }
            (S::Full | S::Top, true, Some(M::Never)) => Err(format!(
                "bitmap sync mode 'never' has no meaningful effect when combined with sync mode \
                 '{name}'"
            )),
            (_, true, mode) => Ok(mode),
        }
    };
    for sync in all {
        for has_bitmap in [false, true] {
            for mode in modes {
                let found = mode_of(sync, has_bitmap, mode).map_err(|error| error.to_string());
                assert_eq!(found, expect(sync, has_bitmap, mode), "{sync:?} {mode:?}");
            }
        }
    }
}

/// What does not begin changes nothing: not the size of what it was to copy to either.
#[test]
fn what_is_refused_leaves_its_target_as_long_as_it_is() {
    let short = || MemoryNode::new(SIZE / 2, 512).expect("a size");
    let host = Host::builder()
        .node("base", short(), vec![])
        .node("top", overlay(), vec![ChildDecl::backing("base")])
        .node("other", overlay(), vec![ChildDecl::backing("base")])
        .node("onto", short(), vec![])
        .drive("vda", "top", true)
        .drive("vdb", "onto", true)
        .start()
        .expect("a host");
    let refused = [
        (JobKind::Backup(BackupSpec::of("vda", "onto")), "drive `vdb`"),
        (JobKind::Mirror(MirrorSpec::of("vda", "onto")), "drive `vdb`"),
        (JobKind::Commit(CommitSpec::of("vda", "base")), "node `other`"),
    ];
    for (what, who) in refused {
        let error = block_on(host.start_job(JobSpec::new("j", what.clone()))).err();
        let error = error.expect("somebody is in the way");
        assert_eq!(error.kind(), ErrorKind::InUse, "{what:?}: {error}");
        assert!(error.to_string().contains(who), "{what:?}: {error}");
        assert!(host.jobs().is_empty());
        let graph = host.graph();
        for node in ["base", "onto"] {
            let at = graph.find_node(node).expect("a node");
            assert_eq!(graph.nodes()[at].info().size_bytes, SIZE / 2, "{what:?}: {node}");
        }
    }
    host.shutdown().expect("an end in order");
}

#[test]
fn nobody_who_cannot_is_asked_to_compress() {
    let world = world();
    let drive = world.host.drive("vda").expect("a drive");
    let bytes = crate::io::Buf::copy_of(&[1; 512]);
    let error = block_on(drive.write_buf(0, bytes, WriteFlags::COMPRESSED)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.to_string().contains("`worn` writes nothing compressed"), "{error}");
    // Zeros are stored as such.
    block_on(drive.zero(0, 4096, WriteFlags::COMPRESSED)).expect("zeros");
    world.end();
}

#[test]
fn what_cannot_be_is_refused() {
    let world = world();
    let check = |spec: BackupSpec, expect: &str| {
        let error = block_on(world.host.start_job(backup(spec))).err().expect("refused");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(world.host.jobs().is_empty());
    };
    check(BackupSpec::of("vda", "top"), "source and target cannot be the same");
    check(BackupSpec::of("vda", "base"), "its target `base` is a part of what it shows");
    check(BackupSpec::of("vda", "nowhere"), "no node or drive `nowhere`");
    check(BackupSpec { compress: true, ..BackupSpec::of("vda", "onto") }, "cannot compress");
    let bitmap = Some(BitmapRef::of_drive("vda", "x"));
    let spec = BackupSpec { sync: S::Incremental, bitmap, ..BackupSpec::of("vda", "onto") };
    check(spec, "has no bitmap `x`");
    let add = NodeDecl {
        name: "long".into(),
        driver: Arc::new(crate::node::MemoryNode::new(2 * SIZE, 512).expect("a size")),
        children: vec![],
    };
    block_on(world.host.transact(Transaction::new().with(Action::AddNode(add)))).expect("a node");
    check(BackupSpec::of("vda", "long"), "source and target have different sizes");
    world.end();
}
