//! Containers that grow under a format: what is written behind their end, and what bitmaps of them say.

use std::sync::Arc;
use std::time::Duration;

use super::stage::*;
use crate::bitmap::Granularity;
use crate::error::ErrorKind;
use crate::graph::log_format::{CLUSTER, LogFormat};
use crate::graph::{
    Action, BitmapScope, ChildDecl, Cx, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph,
    NodeDecl,
};
use crate::io::sim::{Faults, Simulation};
use crate::io::{Buf, BufMut};
use crate::node::{FileNode, FileOptions, ImageLocking, MemoryNode, Node, RawNode, WriteFlags};

/// A format on a filter on `file`, which has room for the format's entries alone.
fn container() -> Scene {
    let file = MemoryNode::new(CLUSTER, 512).expect("a size");
    let format = LogFormat::new(SIZE, None);
    let scene = Scene::default().node("file", file, vec![]).pass("filter", "file");
    scene.node("image", format, vec![ChildDecl::storage("filter")]).drive("vda", "image")
}

fn of_node(name: &str) -> BitmapScope {
    BitmapScope::Node(name.into())
}

/// Sizes of a node: in the graph, and of its driver.
fn sizes(stage: &Stage, name: &str) -> (u64, Option<u64>) {
    let graph = stage.cell.load();
    let node = &graph.nodes()[graph.find_node(name).expect("a node")];
    (node.info().size_bytes / BLOCK, node.driver().len_bytes().map(|len| len / BLOCK))
}

async fn check_bytes(stage: &Stage, expected: &[(u64, u8)]) {
    for block in 0..BLOCKS {
        let byte = expected.iter().find(|(at, _)| *at == block).map_or(0, |(_, byte)| *byte);
        assert_eq!(stage.byte("vda", block).await, byte, "block {block}");
    }
}

#[test]
fn bitmaps_of_a_container_know_what_was_added() {
    container().run(|stage| async move {
        stage.write("vda", 5, 1).await;
        stage.write("vda", 2, 2).await;
        let mut expect = dirty(&["image", "vda"], &[2, 5]);
        expect.extend(dirty(&["file", "filter"], &[0, 1, 2]));
        assert_eq!(stage.dirty(), expect);
        assert_eq!(sizes(&stage, "file"), (1, Some(3)));
        let bitmap = stage.bitmap(&of_node("file"));
        assert_eq!((bitmap.size_bytes(), bitmap.read().size_bytes()), (CLUSTER, 3 * CLUSTER));

        // Once they have been decided about, they have granules for all of it.
        stage.clear().await;
        assert_eq!((bitmap.size_bytes(), sizes(&stage, "file").0), (3 * CLUSTER, 1));
        stage.write("vda", 5, 3).await;
        stage.write("vda", 7, 4).await;
        let mut expect = dirty(&["image", "vda"], &[5, 7]);
        expect.extend(dirty(&["file", "filter"], &[0, 1, 3]));
        assert_eq!(stage.dirty(), expect);
        check_bytes(&stage, &[(2, 2), (5, 3), (7, 4)]).await;
    });
}

#[test]
fn a_container_is_cut_and_grows_again() {
    container().run(|stage| async move {
        stage.write("vda", 5, 1).await;
        stage.write("vda", 2, 2).await;
        stage.clear().await;
        stage.drive("vda").discard(2 * BLOCK, BLOCK).await.expect("a discard");
        assert_eq!(sizes(&stage, "file"), (1, Some(2)));
        assert_eq!(stage.dirty()["file"], [0, 2], "its entry, and what was cut off");
        check_bytes(&stage, &[(5, 1)]).await;
        stage.clear().await;
        assert_eq!(stage.bitmap(&of_node("filter")).size_bytes(), 2 * CLUSTER);
        stage.write("vda", 9, 3).await;
        assert_eq!(stage.dirty()["filter"], [0, 2]);
        check_bytes(&stage, &[(5, 1), (9, 3)]).await;
    });
}

#[test]
fn others_see_the_size_that_it_had_until_it_is_no_container() {
    let scene = container().showing("beside", "file");
    scene.run(|stage| async move {
        stage.write("vda", 5, 1).await;
        let beside = stage.drive("beside");
        assert_eq!(beside.info().expect("a medium").size_bytes, CLUSTER);
        let past = beside.read(CLUSTER, BufMut::new(512)).await.map(drop);
        assert_eq!(past.map_err(|error| error.kind()), Err(ErrorKind::Invalid));
        let scope = BitmapScope::Drive("vda".into());
        let bitmaps = [(scope, "vda"), (of_node("image"), "image")];
        for (scope, _) in &bitmaps {
            let gone = [crate::bitmap::Change::Remove];
            stage.cell.change_bitmap(&stage.bitmap(scope), &gone).await.expect("a removal");
        }
        stage.act(Action::RemoveDrive { drive: "vda".into() }).await.expect("a removal");
        stage.act(Action::RemoveNode { node: "image".into() }).await.expect("a removal");
        stage.clear().await;
        assert_eq!(sizes(&stage, "file"), (2, Some(2)));
        let read = beside.read(CLUSTER, BufMut::new(512)).await.expect("a read");
        assert_eq!(read[..], [1; 512]);
    });
}

/// A part of a node without a size grows with it; one with a size does not.
#[test]
fn a_raw_node_grows_with_its_child() {
    let check = |size, expect: Result<u64, ErrorKind>| {
        let file = MemoryNode::new(2 * CLUSTER, 512).expect("a size");
        let (raw, format) = (RawNode::new(CLUSTER, size), LogFormat::new(SIZE, None));
        let scene = Scene::default().node("file", file, vec![]);
        let scene = scene.node("raw", raw, vec![ChildDecl::storage("file")]);
        let scene = scene.node("image", format, vec![ChildDecl::storage("raw")]);
        scene.drive("vda", "image").run(move |stage| async move {
            let write = stage.drive("vda").write(0, Buf::zeros(512), WriteFlags::NONE).await;
            let len = || sizes(&stage, "file").1.expect("a length");
            assert_eq!(write.map(|()| len()).map_err(|error| error.kind()), expect);
            if expect.is_ok() {
                assert_eq!(stage.dirty()["raw"], [0, 1]);
                assert_eq!(stage.dirty()["file"], [1, 2]);
                stage.drive("vda").discard(0, BLOCK).await.expect("a discard");
                assert_eq!(sizes(&stage, "file").1, Some(2));
            }
        });
    };
    check(None, Ok(3));
    check(Some(CLUSTER), Err(ErrorKind::NoSpace));
}

/// In a file, with requests that do not fit its alignment, while operations are short, interrupted and
/// out of order.
#[test]
fn a_file_grows_in_whole_sectors() {
    for seed in 0..20 {
        let simulation = Simulation::new(seed);
        simulation.set_faults(Faults::HARMLESS);
        simulation.add_file("image", vec![0; 512]);
        let inner = simulation.clone();
        let ran = simulation.run(async move {
            let options = FileOptions {
                path: "image".into(),
                direct: true,
                write: true,
                locking: ImageLocking::Off,
                ..FileOptions::default()
            };
            let file = Arc::new(FileNode::open(&options).expect("a file"));
            let node = |name: &str, driver: Arc<dyn Node>, children| NodeDecl {
                name: name.into(),
                driver,
                children,
            };
            let format = Arc::new(LogFormat::new(SIZE, None));
            let nodes = vec![
                node("file", Arc::clone(&file) as Arc<dyn Node>, vec![]),
                node("image", format, vec![ChildDecl::storage("file")]),
            ];
            let (id, root) = ("vda".into(), Some("image".into()));
            let drives = vec![DriveDecl { id, root, writable: true, only_shows: false }];
            let graph = GraphDecl { nodes, drives, bitmaps: vec![] }.build().expect("a graph");
            let cell = Arc::new(GraphCell::new(graph));
            let drive = LocalDrive::open(&LocalGraph::of(&cell), "vda").expect("a drive");
            let mut shown = vec![0; SIZE as usize];
            for (offset, len) in [(5000, 10), (8191, 2), (0, 100), (4096, 4096), (60_001, 5000)] {
                let bytes: Vec<u8> = (0..len).map(|at| (offset + at) as u8 | 1).collect();
                shown[offset..offset + len].copy_from_slice(&bytes);
                let write = drive.write(offset as u64, Buf::copy_of(&bytes), WriteFlags::NONE);
                write.await.expect("a write");
                let read = drive.read(0, BufMut::new(SIZE as usize)).await.expect("a read");
                assert!(read[..] == shown[..], "after {len} bytes at {offset}");
            }
            let ahead = inner.bytes("image").len() as u64;
            assert!(ahead > 6 * CLUSTER, "it is longer ahead, until it is closed");
            cell.close_nodes(Duration::from_secs(1)).await.expect("an end in order");
            file.len_bytes()
        });
        let len = ran.unwrap_or_else(|stop| panic!("seed {seed}: {stop}"));
        // Clusters 1, 2, 0, 14 and 15, behind the entries.
        assert_eq!(len, Some(6 * CLUSTER), "seed {seed}");
        assert_eq!(simulation.bytes("image").len() as u64, 6 * CLUSTER, "seed {seed}");
    }
}

/// What a driver fills in units of its own counts as touched: by who failed to write it, and by who relies on
/// what was read beside it.
#[test]
fn a_cluster_is_filled_whole() {
    let image = |file_bytes| {
        let file = MemoryNode::new(2 * CLUSTER, 512).expect("a size");
        let scene = Scene::default().node("file", file, vec![]);
        let raw = RawNode::new(0, Some(file_bytes));
        let scene = scene.node("raw", raw, vec![ChildDecl::storage("file")]);
        let format = LogFormat::new(SIZE, None);
        let mut scene = scene.node("image", format, vec![ChildDecl::storage("raw")]);
        scene.0.bitmaps.iter_mut().for_each(|bitmap| bitmap.granularity = Granularity::MIN);
        scene.pass("filter", "image").drive("vda", "filter").stream("stream", "image")
    };
    let write = async |stage: &Stage, offset| {
        stage.drive("vda").write(offset, Buf::copy_of(&[7; 512]), WriteFlags::NONE).await
    };
    image(2 * CLUSTER).run(async move |stage| {
        let read = async |at| stage.own("stream").read_proven(0, at..at + 512).await;
        let (near, far) = (read(CLUSTER).await, read(2 * CLUSTER).await);
        write(&stage, 2 * CLUSTER - 512).await.expect("a write");
        assert_eq!(stage.bitmap(&of_node("image")).dirty_bytes(), 512);
        let put = async |bytes| stage.own("stream").write_proven(0, &bytes).await;
        let near = put(near.expect("a read")).await.map_err(|error| error.kind());
        assert_eq!(near, Err(ErrorKind::Stale));
        let far = put(far.expect("a read")).await.map_err(|error| error.kind());
        assert_eq!(far, Err(ErrorKind::NoSpace), "a cluster of its own");
    });
    image(CLUSTER).run(async move |stage| {
        let written = write(&stage, 2 * CLUSTER - 512).await.map_err(|error| error.kind());
        assert_eq!(written, Err(ErrorKind::NoSpace));
        assert_eq!(stage.bitmap(&of_node("image")).next_dirty(0), Some(CLUSTER..2 * CLUSTER));
    });
}

/// How a file is opened, and what zeros leave behind.
type How = (bool, bool, WriteFlags);

/// Each way to zero a file that is opened in each way.
fn each_way(check: impl Fn(How)) {
    let kept = WriteFlags { no_unmap: true, ..WriteFlags::NONE };
    for (discard, direct) in [(false, false), (true, false), (false, true), (true, true)] {
        check((discard, direct, WriteFlags::NONE));
        check((discard, direct, kept));
    }
}

/// Writes zeros behind the end of a file of one cluster.
async fn zero_behind_the_end(file: FileNode, flags: WriteFlags) {
    let scene = Scene::default().node("file", file, vec![]).pass("filter", "file");
    let image = LogFormat::new(SIZE, None);
    let stage = scene.node("image", image, vec![ChildDecl::storage("filter")]).stage();
    let work = async move |cx: Cx<'_>| {
        let file = cx.child(0)?;
        let old = Buf::copy_of(&[9; CLUSTER as usize]);
        file.write(0, old, WriteFlags::NONE).await?;
        file.zero(CLUSTER - 100, 200, flags).await?;
        assert!((CLUSTER + 100..=2 * CLUSTER).contains(&file.len_bytes()));
        file.write(4 * CLUSTER, Buf::copy_of(&[8; 512]), WriteFlags::NONE).await?;
        file.zero(3 * CLUSTER, 2 * CLUSTER + 1, flags).await?;
        file.zero(10 * CLUSTER, CLUSTER, flags).await?;
        assert_eq!(file.len_bytes(), 11 * CLUSTER);
        let extents = file.block_status(0, 20 * CLUSTER).await?;
        assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 20 * CLUSTER);
        file.set_len(12 * CLUSTER).await?;
        let past = file.read(11 * CLUSTER + 5, BufMut::new(2 * CLUSTER as usize)).await?;
        assert!(crate::io::is_zero(&past));
        file.set_len(11 * CLUSTER).await
    };
    LocalGraph::of(&stage.cell).call_node("image", work).await.expect("some work");
}

fn check_zeroed(shown: &[u8], how: How) {
    let mut expect = vec![0; 11 * CLUSTER as usize];
    expect[..CLUSTER as usize - 100].fill(9);
    assert!(*shown == *expect, "discard {}, direct {}, {:?}", how.0, how.1, how.2);
}

/// Zeros behind the end of a file make it longer, and cut nothing off.
#[test]
fn zeros_make_a_file_longer() {
    each_way(|how @ (discard, direct, flags)| {
        let simulation = Simulation::new(1);
        simulation.set_faults(Faults::HARMLESS);
        simulation.add_file("image", vec![0; CLUSTER as usize]);
        let options = FileOptions {
            path: "image".into(),
            direct,
            write: true,
            discard,
            locking: ImageLocking::Off,
            ..FileOptions::default()
        };
        let ran = simulation.run(async move {
            zero_behind_the_end(FileNode::open(&options).expect("a file"), flags).await;
        });
        ran.unwrap_or_else(|stop| panic!("{stop}"));
        check_zeroed(&simulation.bytes("image"), how);
    });
}

/// The same by what the file system of the machine can do; past the page cache where it can that.
#[test]
fn zeros_make_a_file_longer_here() {
    each_way(|how @ (discard, direct, flags)| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let options = FileOptions {
            path: path.clone(),
            create_bytes: Some(CLUSTER),
            direct,
            write: true,
            discard,
            ..FileOptions::default()
        };
        let file = match FileNode::open(&options) {
            Ok(file) => file,
            Err(error) if direct => return eprintln!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        };
        on_a_worker(zero_behind_the_end(file, flags));
        let shown = crate::io::read_file(&path, 1 << 20).expect("a file");
        check_zeroed(&shown, how);
    });
}
