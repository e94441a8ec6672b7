//! Formats that keep data apart from their entries: in a data file, whose bytes are the view's, or in a
//! second container.

use super::stage::*;
use crate::error::ErrorKind;
use crate::graph::log_format::{CLUSTER, LogFormat};
use crate::graph::{
    Action, ChildDecl, Cx, DriveDecl, GraphNode, LocalGraph, OpKind, PermissionSet, Role,
};
use crate::io::Buf;
use crate::node::{MemoryNode, RawNode, WriteFlags};

/// A format under an overlay; `data` is behind a filter.
fn image(role: Role, data_bytes: u64) -> Scene {
    let file = MemoryNode::new(CLUSTER, 512).expect("a size");
    let data = MemoryNode::new(data_bytes, 512).expect("a size");
    let scene = Scene::default().node("file", file, vec![]).node("data", data, vec![]);
    let second = ChildDecl { name: "data-file".into(), role, ..ChildDecl::filtered("slow") };
    let children = vec![ChildDecl::storage("file"), second];
    let scene =
        scene.pass("slow", "data").node("image", LogFormat::new(SIZE, Some(role)), children);
    scene.overlay("top", "image")
}

fn node<T>(stage: &Stage, name: &str, of: impl Fn(&GraphNode) -> T) -> T {
    let graph = stage.cell.load();
    of(&graph.nodes()[graph.find_node(name).expect("a node")])
}

async fn write_entry(stage: &Stage) {
    let work =
        async |cx: Cx<'_>| cx.child(0)?.write(600, Buf::copy_of(b"note"), WriteFlags::NONE).await;
    LocalGraph::of(&stage.cell).call_node("image", work).await.expect("some work");
}

#[test]
fn a_data_file_is_of_the_view() {
    image(Role::Data, SIZE).drive("vda", "image").run(async |stage| {
        let class = |name: &str| node(&stage, name, GraphNode::class);
        assert_eq!((class("image"), class("image")), (class("slow"), class("data")));
        assert_ne!(class("image"), class("file"));
        stage.write("vda", 3, 7).await;
        let mut expect = dirty(&["data", "image", "slow", "top", "vda"], &[3]);
        expect.extend(dirty(&["file"], &[0]));
        assert_eq!(stage.dirty(), expect);
        let writes = |name: &str, edge: usize| {
            node(&stage, name, |node| {
                node.edges()[edge].counters().snapshot().requests[OpKind::Write.index()]
            })
        };
        assert_eq!((writes("image", 1), writes("slow", 0), writes("image", 0)), (1, 1, 1));
        stage.clear().await;
        write_entry(&stage).await;
        assert_eq!(stage.dirty(), dirty(&["file"], &[0]), "entries are not the view's");
        assert_eq!(stage.byte("vda", 3).await, 7);
    });
}

#[test]
fn a_second_container_is_not_of_the_view() {
    image(Role::Storage, 0).drive("vda", "image").run(async |stage| {
        stage.write("vda", 3, 7).await;
        stage.write("vda", 5, 8).await;
        let mut expect = dirty(&["image", "top", "vda"], &[3, 5]);
        expect.extend(dirty(&["file"], &[0]));
        expect.extend(dirty(&["data", "slow"], &[0, 1]));
        assert_eq!(stage.dirty(), expect);
        assert_eq!(node(&stage, "data", |node| node.driver().len_bytes()), Some(2 * CLUSTER));
        stage.clear().await;
        write_entry(&stage).await;
        assert_eq!(stage.dirty(), dirty(&["file"], &[0]));
        assert_eq!((stage.byte("vda", 3).await, stage.byte("vda", 5).await), (7, 8));
    });
}

/// Nobody else may write either of them; who may write the image may write both.
#[test]
fn what_a_format_keeps_bytes_in_is_its_own() {
    for role in [Role::Data, Role::Storage] {
        image(role, SIZE).drive("vda", "image").run(async move |stage| {
            let uses = |edge: usize| node(&stage, "image", |node| node.edges()[edge].uses());
            let changes = |edge| uses(edge).contains(PermissionSet::READ_WRITE);
            assert!(changes(0) && changes(1), "{role}");
            for node in ["file", "data", "slow"] {
                let (id, root) = ("other".to_owned(), Some(node.to_owned()));
                let drive = DriveDecl { id, root, writable: true, only_shows: false };
                let error = stage.act(Action::AddDrive(drive)).await.map(drop);
                assert_eq!(error.map_err(|error| error.kind()), Err(ErrorKind::InUse), "{node}");
            }
        });
        // Without anybody above who may write, the driver's own work is with its containers alone.
        image(role, SIZE).showing("vda", "image").run(async move |stage| {
            let writes = |edge: usize| {
                let uses = node(&stage, "image", |node| node.edges()[edge].uses());
                uses.contains(PermissionSet::WRITE)
            };
            assert_eq!((writes(0), writes(1)), (true, role == Role::Storage));
        });
    }
}

#[test]
fn a_failure_marks_the_cluster_of_the_view() {
    for role in [Role::Data, Role::Storage] {
        let mut scene = image(role, SIZE);
        // Entries have no room.
        let raw = RawNode::new(0, Some(8));
        scene = scene.node("raw", raw, vec![ChildDecl::storage("file")]);
        let of_image = |decl: &&mut crate::graph::NodeDecl| decl.name == "image";
        let image = scene.0.nodes.iter_mut().find(of_image).expect("a node");
        image.children[0].node = "raw".into();
        scene.0.bitmaps.iter_mut().for_each(|it| it.granularity = crate::bitmap::Granularity::MIN);
        scene.drive("vda", "image").run(async move |stage| {
            let bytes = Buf::copy_of(&[1; 512]);
            let written = stage.drive("vda").write(5 * CLUSTER, bytes, WriteFlags::NONE).await;
            assert_eq!(written.map_err(|error| error.kind()), Err(ErrorKind::NoSpace));
            assert_eq!(stage.dirty()["image"], [5]);
            let dirty = stage.bitmap(&crate::graph::BitmapScope::Drive("vda".into()));
            assert_eq!(dirty.dirty_bytes(), CLUSTER);
        });
    }
}

#[test]
fn a_data_file_goes_with_the_size_of_the_view() {
    image(Role::Data, SIZE).drive("vda", "image").run(async |stage| {
        let sizes = |stage: &Stage| {
            ["image", "slow", "data"].map(|it| node(stage, it, |it| it.info().size_bytes / BLOCK))
        };
        for blocks in [BLOCKS + 2, BLOCKS - 2, BLOCKS + 1] {
            let old = sizes(&stage)[0];
            stage.clear().await;
            let (node, size_bytes) = ("image".into(), blocks * BLOCK);
            stage.act(Action::Resize { node, size_bytes }).await.expect("a resize");
            assert_eq!(sizes(&stage), [blocks; 3]);
            let data = stage.bitmap(&crate::graph::BitmapScope::Node("data".into()));
            assert_eq!(data.size_bytes(), size_bytes);
            let gained = (old < blocks).then_some(old * BLOCK..size_bytes);
            assert_eq!(data.next_dirty(0), gained, "{blocks} blocks");
            stage.clear().await;
            stage.write("vda", blocks - 1, 5).await;
            assert_eq!(stage.bitmap(&crate::graph::BitmapScope::Node("slow".into())).count(), 1);
            assert_eq!(stage.byte("vda", blocks - 1).await, 5);
        }
        // Nothing was left to be found out by the next change.
        let before = sizes(&stage);
        stage.clear().await;
        assert_eq!(sizes(&stage), before);
    });
}
