//! Disks that are qcow2 images in simulated files, opened by the real driver.
//!
//! Image `NAME` is in file `NAME.img`, perhaps with its data in `NAME.dat`; nodes have the names of their files.

use std::path::PathBuf;
use std::sync::Arc;

use blockloom_qcow2::Image;
use blockloom_qcow2::create::{self, Backing, CreateOptions, DataFile};
use blockloom_qcow2::format::{ClusterSize, RefcountWidth, Version};
use blockloom_qcow2::image::OpenOptions;
use blockloom_qcow2::testing::{Container, Disk, MemoryStorage, block_on};

use crate::error::Result as HostResult;
use crate::graph::{
    ChildDecl, DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl, Role,
};
use crate::io::sim::{Random, Simulation};
use crate::node::{FileNode, FileOptions, ImageLocking, Node, Qcow2Node, Qcow2Options};

/// Where guest data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Inside,
    Apart,
    /// In a file that is the view, byte by byte.
    Raw,
}

/// What kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) version: Version,
    pub(super) cluster_bits: u32,
    pub(super) refcount_bits: u32,
    pub(super) extended: bool,
    pub(super) data: Data,
    /// Its files are opened past the page cache.
    pub(super) direct: bool,
}

/// Cluster sizes, as logarithms: the smallest ones come often, as most happens at their ends.
const CLUSTER_BITS: [u32; 9] = [9, 9, 9, 10, 11, 12, 14, 14, 16];

impl Geometry {
    pub(super) const PLAIN: Self = Self {
        version: Version::V3,
        cluster_bits: 9,
        refcount_bits: 16,
        extended: false,
        data: Data::Inside,
        direct: false,
    };

    /// Any; `keeps_bitmaps` if it has to be able to.
    pub(super) fn by_chance(random: &mut Random, has_backing: bool, keeps_bitmaps: bool) -> Self {
        // The header is to have room for what tells of the bitmaps.
        let from = if keeps_bitmaps { 3 } else { 0 };
        let at = random.within(from..CLUSTER_BITS.len() as u64);
        let cluster_bits = CLUSTER_BITS[at as usize];
        if !keeps_bitmaps && random.one_in(8) {
            return Self { version: Version::V2, cluster_bits, ..Self::PLAIN };
        }
        let data = match random.below(6) {
            0 => Data::Apart,
            1 if !has_backing => Data::Raw,
            _ => Data::Inside,
        };
        let extended = cluster_bits >= 14 && random.one_in(2);
        let refcount_bits = 1 << random.below(7);
        // A block is to be no more than a cluster: a write that fails spoils whole ones, which `blocks` looks at.
        let direct = cluster_bits >= 12 && random.one_in(3);
        Self { version: Version::V3, cluster_bits, refcount_bits, extended, data, direct }
    }

    fn options(&self, name: &str, size_bytes: u64, backing: Option<&str>) -> CreateOptions {
        let data_file = || DataFile { name: Some(data_name(name)), raw: self.data == Data::Raw };
        CreateOptions {
            version: self.version,
            cluster_size: ClusterSize::from_bits(self.cluster_bits).expect("9 to 21"),
            refcount_width: RefcountWidth::from_bits(self.refcount_bits).expect("a power of two"),
            extended_l2: self.extended,
            data_file: (self.data != Data::Inside).then(data_file),
            backing: backing.map(|name| Backing { name: file_name(name), format: None }),
            ..CreateOptions::new(size_bytes)
        }
    }
}

pub(super) fn file_name(image: &str) -> String {
    format!("{image}.img")
}

pub(super) fn data_name(image: &str) -> String {
    format!("{image}.dat")
}

/// The image that a file, or the node of it, belongs to.
pub(super) fn image_of(file: &str) -> Option<&str> {
    file.strip_suffix(".img").or_else(|| file.strip_suffix(".dat"))
}

/// An empty image over something that is called `backing`, with these bytes of its own: `(offset, bytes)`.
pub(super) fn fresh(
    name: &str,
    geometry: &Geometry,
    size_bytes: u64,
    backing: Option<&str>,
    own: &[(u64, Vec<u8>)],
) -> Container {
    let has_data = geometry.data != Data::Inside;
    let container = Container {
        file: MemoryStorage::default(),
        data: has_data.then(|| MemoryStorage::new(vec![0; size_bytes as usize])),
    };
    let options = geometry.options(name, size_bytes, backing);
    block_on(create::create(&container.file, &options)).expect("options that go together");
    let disk = open_disk(container, None).expect("a new image");
    block_on(async {
        for (offset, bytes) in own {
            disk.write(*offset, bytes).await.expect("room");
        }
        disk.image.close(&disk.container).await.expect("memory");
    });
    disk.container
}

/// An image that is in memory, to be written, over what `backing` holds.
pub(super) fn open_disk(container: Container, backing: Option<Vec<u8>>) -> Result<Disk, String> {
    let options = OpenOptions {
        writable: true,
        l2_cache_bytes: 0,
        has_backing: Some(backing.is_some()),
        ..OpenOptions::default()
    };
    let image = block_on(Image::open(&container, &options)).map_err(|error| error.to_string())?;
    Ok(Disk { image, container, backing })
}

/// Adds the files of an image to the simulation, unless they are there.
pub(super) fn add(simulation: &Simulation, name: &str, make: impl FnOnce() -> Container) {
    if simulation.bytes(&file_name(name)).is_empty() {
        let container = make();
        simulation.add_file(&file_name(name), container.file.content());
        if let Some(data) = container.data {
            simulation.add_file(&data_name(name), data.content());
        }
    }
}

fn file_node(path: &str, direct: bool) -> HostResult<NodeDecl> {
    let options = FileOptions {
        path: PathBuf::from(path),
        direct,
        write: true,
        discard: true,
        locking: ImageLocking::Off,
        ..FileOptions::default()
    };
    let driver: Arc<dyn Node> = Arc::new(FileNode::open(&options)?);
    Ok(NodeDecl { name: path.to_owned(), driver, children: vec![] })
}

/// The nodes of an image whose files are there: those of the files, then the image's.
pub(super) fn nodes(
    simulation: &Simulation,
    name: &str,
    geometry: &Geometry,
    backing: Option<&str>,
) -> HostResult<Vec<NodeDecl>> {
    let mut nodes = vec![file_node(&file_name(name), geometry.direct)?];
    let mut children = vec![ChildDecl::storage(file_name(name))];
    let role = match geometry.data {
        Data::Inside => None,
        Data::Apart => Some(Role::Storage),
        Data::Raw => Some(Role::Data),
    };
    if let Some(role) = role {
        nodes.push(file_node(&data_name(name), geometry.direct)?);
        let edge = ChildDecl::filtered(data_name(name));
        children.push(ChildDecl { name: "data-file".into(), role, ..edge });
    }
    children.extend(backing.map(ChildDecl::backing));
    let options = Qcow2Options {
        write: true,
        data_file: role.map(|_| 1),
        backing: backing.map(|_| children.len() - 1),
        l2_cache_bytes: 0,
        lazy_refcounts: None,
    };
    let storage = MemoryStorage::new(simulation.bytes(&file_name(name)));
    let driver: Arc<dyn Node> = Arc::new(block_on(Qcow2Node::open(&storage, &options))?);
    nodes.push(NodeDecl { name: name.to_owned(), driver, children });
    Ok(nodes)
}

/// A graph of these nodes, and a drive that writes `root`.
pub(super) fn drive(nodes: Vec<NodeDecl>, root: &str) -> (Arc<GraphCell>, LocalDrive) {
    let (id, root) = ("vda".to_owned(), Some(root.to_owned()));
    let drives = vec![DriveDecl { id, root, writable: true, only_shows: false }];
    let graph = GraphDecl { nodes, drives, bitmaps: vec![] }.build().expect("a graph");
    let cell = Arc::new(GraphCell::new(graph));
    let drive = LocalDrive::open(&LocalGraph::of(&cell), "vda").expect("a drive");
    (cell, drive)
}
