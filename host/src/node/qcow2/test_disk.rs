//! A disk that is an image in a plain file, as tests of the driver have it.

use std::path::Path;
use std::sync::Arc;

use blockloom_qcow2::create::{CreateOptions, create};
use blockloom_qcow2::format::ClusterSize;
use blockloom_qcow2::image::Image;

use crate::graph::{ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::node::{Access, FileNode, FileOptions, FileStorage, Node, Qcow2Node, Qcow2Options};

/// Node `disk`, on node `file`; drive `vda` shows it.
pub(super) struct Disk {
    pub(super) cell: Arc<GraphCell>,
    pub(super) drive: LocalDrive,
    pub(super) image: Arc<Image>,
    /// The file, for who looks into it.
    pub(super) storage: FileStorage,
}

/// A new disk of eight clusters.
pub(super) async fn disk(folder: &Path, cluster_bytes: u64) -> Disk {
    disk_with(folder, cluster_bytes, vec![]).await
}

/// The same, with other nodes.
pub(super) async fn disk_with(folder: &Path, cluster_bytes: u64, others: Vec<NodeDecl>) -> Disk {
    let path = folder.join("disk.qcow2");
    let storage = FileStorage::open(&path, Access::Create).expect("a file");
    let cluster_size = ClusterSize::from_bytes(cluster_bytes).expect("a size of clusters");
    let options = CreateOptions { cluster_size, ..CreateOptions::new(8 * cluster_bytes) };
    create(&storage, &options).await.expect("an image");
    let options = Qcow2Options { write: true, ..Qcow2Options::default() };
    let disk = Qcow2Node::open(&storage, &options).await.expect("an image");
    let image = Arc::clone(&disk.image);
    drop(storage);
    let storage = FileStorage::open(&path, Access::ReadShared).expect("a file");
    let file = FileNode::open(&FileOptions { path, write: true, ..FileOptions::default() });
    let (file, disk): (Arc<dyn Node>, Arc<dyn Node>) =
        (Arc::new(file.expect("a file")), Arc::new(disk));
    let own = [
        NodeDecl { name: "file".into(), driver: file, children: vec![] },
        NodeDecl { name: "disk".into(), driver: disk, children: vec![ChildDecl::storage("file")] },
    ];
    let nodes = own.into_iter().chain(others).collect();
    let (id, root) = ("vda".to_owned(), Some("disk".into()));
    let drives = vec![DriveDecl { id, root, writable: true, only_shows: false }];
    let graph = GraphDecl { nodes, drives, bitmaps: vec![] }.build().expect("a graph");
    let cell = Arc::new(GraphCell::new(graph));
    let drive = LocalDrive::open(&LocalGraph::of(&cell), "vda").expect("a drive");
    Disk { cell, drive, image, storage }
}
