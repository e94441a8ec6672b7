//! What is refused, word for word: both ends of the edge, and what to do.

use std::sync::Arc;

use blockloom_plugin_backup::BackupConfig;

use super::filter::TestFilter;
use super::stage::*;
use crate::error::ErrorKind;
use crate::filter::{BackupNode, PassNode};
use crate::graph::{
    Action, ChildDecl, DriveDecl, NodeDecl, OwnAccord, PermissionSet, Transaction, User, Which,
};
use crate::io::Buf;
use crate::node::{MemoryNode, WriteFlags};

fn check(scene: Scene, kind: ErrorKind, expect: &str) {
    let error = scene.refused();
    assert_eq!((error.kind(), &*error.to_string()), (kind, expect));
}

fn chain() -> Scene {
    Scene::default().disk("base").overlay("mid", "base").overlay("top", "mid")
}

#[test]
fn users_who_do_not_share() {
    let two = Scene::default().disk("disk").drive("vda", "disk").drive("vdb", "disk");
    check(
        two,
        ErrorKind::InUse,
        "node `disk`: drive `vda` (edge `root`) uses w, which drive `vdb` (edge `root`) does not \
         share: give one of them a node of its own, or make it read-only",
    );
    let overlay = Scene::default().disk("base").overlay("top", "base").drive("vda", "base");
    check(
        overlay.drive("vdb", "top"),
        ErrorKind::InUse,
        "node `base`: drive `vda` (edge `root`) uses w, which node `top` (edge `backing`) does not \
         share: give one of them a node of its own, or make it read-only",
    );
    check(
        Scene::default().disk("disk").stored("store", "disk").drive("vda", "disk"),
        ErrorKind::InUse,
        "node `disk`: drive `vda` (edge `root`) uses w, which node `store` (edge `file`) does not \
         share: give one of them a node of its own, or make it read-only",
    );
    check(
        Scene::default().disk("one").disk("two").drive("vda", "two").job("backup", "one", "two"),
        ErrorKind::InUse,
        "node `two`: drive `vda` (edge `root`) uses w, which node `backup` (edge `to`) does not \
         share: give one of them a node of its own, or make it read-only",
    );
    check(
        chain().proven_job("commit", "mid", "base").drive("vda", "top").drive("vdb", "base"),
        ErrorKind::InUse,
        "node `base`: drive `vdb` (edge `root`) uses w, which node `mid` (edge `backing`) does not \
         share: give one of them a node of its own, or make it read-only",
    );
}

#[test]
fn writes_that_alter_what_others_show() {
    let scene = chain().overlay("other", "base").drive("vda", "top").drive("vdb", "other");
    check(
        scene.proven_job("commit", "top", "base"),
        ErrorKind::InUse,
        "node `commit`: what it writes by its edge `to` is proven for its edge `from`, and alters \
         what drive `vdb` shows: detach that, or let it share `w`",
    );
    let to = ChildDecl { proven_for: Some("view".into()), ..target("base", PermissionSet::WRITE) };
    check(
        chain().actor("commit", vec![source("top"), to]),
        ErrorKind::NotFound,
        "node `commit`: its edge `to` is to be proven for its edge `view`, which it does not have",
    );
    let iso = TestFilter { is_read_only: true, ..TestFilter::default() };
    check(
        Scene::default()
            .disk("disk")
            .node("iso", iso, vec![ChildDecl::filtered("disk")])
            .drive("cd", "iso"),
        ErrorKind::ReadOnly,
        "node `iso`: it is read-only, and drive `cd` (edge `root`) changes it: make that one \
         read-only too, or let it use a node that can be written",
    );
}

/// A backup of `disk`, which has no user of its own.
fn kept(scene: Scene, disk: &str) -> Scene {
    let backup = BackupNode::new(BackupConfig::from_json("{}").expect("a configuration"), None);
    let children = BackupNode::children(disk, "archive");
    scene.disk("archive").node("backup", backup.expect("a backup"), children)
}

/// What is kept before it is changed is changed through who keeps it, or not at all.
#[test]
fn changes_past_who_keeps_old_bytes() {
    let share = "does not share: give one of them a node of its own, or make it read-only";
    check(
        kept(Scene::default().disk("disk"), "disk").drive("vda", "disk"),
        ErrorKind::InUse,
        &format!(
            "node `disk`: drive `vda` (edge `root`) uses w, which node `backup` (edge `file`) {share}"
        ),
    );
    check(
        kept(chain(), "top").drive("vda", "base"),
        ErrorKind::InUse,
        &format!(
            "node `base`: drive `vda` (edge `root`) uses w, which node `mid` (edge `backing`) {share}"
        ),
    );
    check(
        kept(chain(), "base").proven_job("commit", "mid", "base"),
        ErrorKind::InUse,
        "node `commit`: what it writes by its edge `to` is proven for its edge `from`, and alters what \
         node `backup` (edge `file`) keeps, past that node: let it write through that node, or remove one \
         of them",
    );
    // Through it, with what changes nothing that it shows, or not at all: all of them are in order.
    let through = kept(Scene::default().disk("disk"), "disk").overlay("over", "backup");
    through.proven_job("commit", "over", "backup").stage();
    kept(chain(), "top").proven_job("commit", "top", "base").drive("vda", "backup").stage();
    kept(chain(), "top").stream("stream", "top").drive("vda", "backup").stage();
    kept(Scene::default().disk("disk"), "disk")
        .showing("vda", "disk")
        .drive("vdb", "backup")
        .stage();
}

#[test]
fn graphs_that_make_no_sense() {
    check(
        Scene::default().disk("disk").drive("disk", "disk"),
        ErrorKind::Exists,
        "`disk` names a node and a drive: give one another name",
    );
    check(
        Scene::default().overlay("top", "base"),
        ErrorKind::NotFound,
        "node `top`: its child `backing` is the unknown node `base`",
    );
    check(
        Scene::default().drive("vda", "disk"),
        ErrorKind::NotFound,
        "drive `vda` has the unknown root `disk`",
    );
    check(
        Scene::default().pass("a", "b").pass("b", "c").pass("c", "b"),
        ErrorKind::Invalid,
        "the nodes form a cycle: a → b → c → b",
    );
    let both = vec![ChildDecl::filtered("disk"), ChildDecl::backing("disk")];
    check(
        Scene::default().disk("disk").node("both", PassNode, both),
        ErrorKind::Invalid,
        "node `both`: it has more than one child of which it shows the bytes: it can have one \
         `filtered`, `data` or `backing` edge",
    );
    let mut twice = Scene::default().disk("disk").disk("other");
    twice.0.nodes[1].driver = Arc::clone(&twice.0.nodes[0].driver);
    check(
        twice,
        ErrorKind::Invalid,
        "node `other`: its driver is that of node `disk`, too: make one for each node",
    );
    let mut unknown = Scene::default().disk("disk").disk("other");
    unknown.0.nodes.pop();
    check(unknown, ErrorKind::NotFound, "bitmap `b`: there is no node `other`; there is: `disk`");
}

fn filter(name: &str, on: &str) -> NodeDecl {
    let (driver, children) = (Arc::new(PassNode), vec![ChildDecl::filtered(on)]);
    NodeDecl { name: name.into(), driver, children }
}

fn overlay(name: &str, on: &str) -> NodeDecl {
    let driver = Arc::new(MemoryNode::overlay(SIZE, 512).expect("a disk"));
    NodeDecl { name: name.into(), driver, children: vec![ChildDecl::backing(on)] }
}

/// Drive `vda` on filter `filter` of `top` on `base`; drive `empty`; `store` in `other`.
fn stage() -> Scene {
    let mut scene = Scene::default()
        .disk("base")
        .overlay("top", "base")
        .pass("filter", "top")
        .disk("other")
        .stored("store", "other")
        .drive("vda", "filter");
    let (id, root) = ("empty".into(), None);
    scene.0.drives.push(DriveDecl { id, root, writable: true, only_shows: false });
    scene
}

fn check_actions(refused: Vec<(Action, ErrorKind, &'static str)>) {
    stage().run(|stage| async move {
        let generation = stage.cell.load().generation();
        for (action, kind, expect) in refused {
            let error = stage.act(action).await.expect_err(expect);
            assert_eq!((error.kind(), &*error.to_string()), (kind, expect));
        }
        assert_eq!(stage.cell.load().generation(), generation, "nothing was changed");
    });
}

fn users(node: &str, users: Which) -> Action {
    Action::InsertAbove { node: node.into(), filter: filter("extra", "top"), users }
}

#[test]
fn removals_of_what_is_used() {
    let node = |node: &str| Action::RemoveNode { node: node.into() };
    check_actions(vec![
        (
            node("base"),
            ErrorKind::InUse,
            "remove node `base`: node `base`: it is in use by node `top` (edge `backing`): \
             remove them or point them elsewhere first",
        ),
        (
            node("filter"),
            ErrorKind::InUse,
            "remove node `filter`: node `filter`: it is in use by drive `vda`: remove \
             them or point them elsewhere first",
        ),
        (
            node("none"),
            ErrorKind::NotFound,
            "remove node `none`: there is no node `none`; \
             there is: `base`, `top`, `filter`, `other`, `store`",
        ),
        (
            node("store"),
            ErrorKind::InUse,
            "remove node `store`: node `store` has the bitmaps `b`: remove them first",
        ),
        (
            Action::RemoveDrive { drive: "vda".into() },
            ErrorKind::InUse,
            "remove drive `vda`: drive `vda` has the bitmaps `b`: remove them first",
        ),
        (
            Action::RemoveFilter { node: "top".into() },
            ErrorKind::Invalid,
            "remove filter `top`: node `top`: it has no `filtered` edge, so it is no \
             filter: replace it instead",
        ),
        (
            Action::RemoveFilter { node: "filter".into() },
            ErrorKind::Exists,
            "remove filter `filter`: bitmap `b` of node `filter` would go to node `top`, \
             which has one of that name: remove one of them first",
        ),
    ]);
}

#[test]
fn changes_of_edges_that_make_no_sense() {
    let set_child = |node: &str, edge: &str, child: Option<&str>| Action::SetChild {
        node: node.into(),
        edge: edge.into(),
        child: child.map(Into::into),
    };
    let snapshot = |on| Action::Snapshot { drive: "vda".into(), overlay: overlay("snap", on) };
    let root = |drive: &str, node: &str| Action::SetRoot { drive: drive.into(), node: node.into() };
    let unused = Which::These(vec![User::Drive("vda".into())]);
    check_actions(vec![
        (
            users("base", Which::All),
            ErrorKind::Invalid,
            "insert `extra` above `base`: the filter `extra` needs an edge to `base`, \
             over which it goes",
        ),
        (
            users("top", unused),
            ErrorKind::Invalid,
            "insert `extra` above `top`: drive `vda` does not use node `top`",
        ),
        (
            set_child("top", "file", Some("other")),
            ErrorKind::NotFound,
            "set edge `file` of `top` to `other`: node `top`: it has no edge `file`; it \
             has: `backing`",
        ),
        (
            set_child("filter", "file", None),
            ErrorKind::Invalid,
            "end edge `file` of `filter`: node `filter`: edge `file` cannot end: it is no \
             `backing` edge: the node cannot do without it",
        ),
        (
            Action::Replace { node: "top".into(), by: "top".into() },
            ErrorKind::Invalid,
            "replace `top` by `top`: node `top`: it cannot replace itself",
        ),
        (
            snapshot("top"),
            ErrorKind::Invalid,
            "snapshot of drive `vda` into `snap`: the overlay `snap` needs a `backing` \
             edge to `filter`, which drive `vda` shows",
        ),
        (
            root("empty", "other"),
            ErrorKind::NoMedium,
            "set root of drive `empty` to `other`: drive `empty` has no medium: insert \
             one instead",
        ),
        (
            Action::InsertMedium { drive: "vda".into(), node: "other".into() },
            ErrorKind::Exists,
            "insert `other` into drive `vda`: drive `vda` has the medium `filter`: eject \
             it first, or set the drive's root",
        ),
    ]);
}

#[test]
fn what_nothing_proves() {
    let root = |node: &str| Action::SetRoot { drive: "vda".into(), node: node.into() };
    let backing = Action::SetChild {
        node: "top".into(),
        edge: "backing".into(),
        child: Some("store".into()),
    };
    check_actions(vec![
        (
            root("store"),
            ErrorKind::NotPermitted,
            "set root of drive `vda` to `store`: drive `vda` shows node `store` instead \
             of `filter`, and nothing proves that they show the same: ask for it with \
             `on-unproven` \"mark-whole\" (1 bitmap would be marked whole)",
        ),
        (
            backing,
            ErrorKind::NotPermitted,
            "set edge `backing` of `top` to `store`: node `top` (edge `backing`) shows \
             node `store` instead of `base`, and nothing proves that they show the same: ask for it \
             with `on-unproven` \"mark-whole\" (3 bitmaps would be marked whole)",
        ),
        (
            Action::Deallocate { node: "top".into(), range: 0..1 },
            ErrorKind::Invalid,
            "node `top`: range 0..1 is to lie within 65536 bytes, at multiples of 512",
        ),
        (
            Action::Resize { node: "other".into(), size_bytes: 2 * SIZE },
            ErrorKind::InUse,
            "node `other`: node `store` (edge `file`) does not share `r` (resize): resize that node \
             instead",
        ),
    ]);
}

#[test]
fn changes_that_permissions_forbid() {
    let add = Action::AddDrive(DriveDecl {
        id: "vdb".into(),
        root: Some("filter".into()),
        writable: true,
        only_shows: false,
    });
    check_actions(vec![(
        add,
        ErrorKind::InUse,
        "node `filter`: drive `vda` (edge `root`) uses w, which drive `vdb` (edge `root`) does not \
         share: give one of them a node of its own, or make it read-only",
    )]);
}

#[test]
fn requests_without_permission() {
    let base = ChildDecl { name: "to".into(), ..source("base") };
    let scene = chain().showing("vda", "top").actor("job", vec![source("top"), base]);
    scene.run(|stage| async move {
        let written = stage.drive("vda").write(0, Buf::copy_of(&[1; 512]), WriteFlags::NONE).await;
        let error = written.expect_err("it only shows");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::NotPermitted,
                "node `top`: drive `vda` (edge `root`) does not hold `w` (write): make the drive writable"
            )
        );
        let error = stage.own("job").copy(0, 1, at(0), CHANGED).await.expect_err("it only reads");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::NotPermitted,
                "node `job`: its edge `to` to node `base` lacks the grant `write`: add it to that \
                 edge's grants"
            )
        );
        let graph = crate::graph::LocalGraph::of(&stage.cell);
        let error = OwnAccord::open(&graph, "mid").err().expect("it does not act");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::NotPermitted,
                "node `mid`: it has no grants: it may do nothing of its own accord"
            )
        );
    });
}

/// Drivers that write where they may not: the error names them, though it is the child's.
#[test]
fn writes_by_the_wrong_edge() {
    let check = |child: ChildDecl, expect: &'static str| {
        let scene = Scene::default().disk("disk").node("odd", PassNode, vec![child]);
        scene.drive("vda", "odd").run(move |stage| async move {
            let data = Buf::copy_of(&[1; 512]);
            let written = stage.drive("vda").write(0, data, WriteFlags::NONE).await;
            let error = written.expect_err(expect);
            assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::NotPermitted, expect));
        });
    };
    check(
        ChildDecl::backing("disk"),
        "node `disk`: node `odd` (edge `backing`) only reads it, as its `backing`: changes go by an \
         edge that is `filtered`, `data`, `storage` or `target`",
    );
    check(
        target("disk", PermissionSet::NONE),
        "node `disk`: node `odd` (edge `to`) does not hold `w` (write): grant `write` to that edge",
    );
}

#[test]
fn copies_that_are_not_what_is_proven() {
    chain().proven_job("commit", "top", "base").run(|stage| async move {
        let copied = stage.own("commit").copy(0, 1, at(0), CHANGED).await;
        let error = copied.expect_err("only what is proven");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::NotPermitted,
                "node `commit`: its edge `to` to node `base` may write only what is proven for its \
                 edge `from`"
            )
        );
    });
}

/// What is wrong with all actions together is not put on one of them.
#[test]
fn a_graph_that_several_actions_make() {
    stage().run(|stage| async move {
        let drive = |id: &str, root: &str| {
            let (id, root) = (id.into(), Some(root.into()));
            Action::AddDrive(DriveDecl { id, root, writable: true, only_shows: false })
        };
        let transaction = Transaction::new()
            .with(Action::AddNode(overlay("extra", "top")))
            .with(drive("vdb", "extra"));
        let error = stage.cell.transact(transaction).await.expect_err("vda writes it");
        assert_eq!(
            (error.kind(), &*error.to_string()),
            (
                ErrorKind::InUse,
                "after these 2 actions: node `top`: node `filter` (edge `file`) uses w, which node \
                 `extra` (edge `backing`) does not share: give one of them a node of its own, or \
                 make it read-only"
            )
        );
    });
}

/// A transaction of several actions says which of them is to blame.
#[test]
fn the_action_to_blame_is_named() {
    stage().run(|stage| async move {
        let transaction = Transaction::new()
            .with(Action::EjectMedium { drive: "vda".into() })
            .with(Action::RemoveNode { node: "top".into() });
        let error = stage.cell.transact(transaction).await.expect_err("the filter uses it");
        assert_eq!(
            error.to_string(),
            "action 2 (remove node `top`): node `top`: it is in use by node `filter` (edge `file`): \
             remove them or point them elsewhere first"
        );
    });
}
