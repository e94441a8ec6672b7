//! What there is to say of images: `image` of nodes, with the members that QEMU has.

use std::path::Path;

use super::nodes::file_name;
use crate::config::has_protocol;
use crate::control::qapi::{qapi_enum, qapi_struct, qapi_union};
use crate::control::registry::Empty;
use crate::graph::{Graph, GraphNode, Role};
use crate::node::{ImageKind, ImageReport, KeptBitmap, Qcow2Report};

/// What sizes are multiples of, as QEMU tells them, bytes.
const SECTOR_BYTES: u64 = 512;

qapi_enum! {
    /// Of compressed clusters.
    pub(crate) enum Qcow2CompressionType {
        Zlib = "zlib",
        Zstd = "zstd",
    }
}

qapi_enum! {
    pub(crate) enum Qcow2BitmapInfoFlags {
        /// It was not stored since it was taken into use.
        InUse = "in-use",
        /// It records as soon as the image is opened for writing.
        Auto = "auto",
    }
}

qapi_struct! {
    /// A bitmap as the image's directory has it.
    pub(crate) struct Qcow2BitmapInfo {
        name: String,
        granularity: u64,
        flags: Vec<Qcow2BitmapInfoFlags>,
    }
}

qapi_struct! {
    pub(crate) struct ImageInfoSpecificQCow2 {
        compat: String,
        data_file: Option<String>,
        data_file_raw: Option<bool>,
        extended_l2: Option<bool>,
        lazy_refcounts: Option<bool>,
        corrupt: Option<bool>,
        refcount_bits: u64,
        bitmaps: Option<Vec<Qcow2BitmapInfo>>,
        compression_type: Qcow2CompressionType,
    }
}

qapi_struct! {
    pub(crate) struct ImageInfoSpecificQCow2Wrapper {
        data: ImageInfoSpecificQCow2,
    }
}

qapi_struct! {
    pub(crate) struct ImageInfoSpecificFileWrapper {
        data: Empty,
    }
}

qapi_union! {
    /// What is so of one kind of image alone.
    pub(crate) union ImageInfoSpecific by "type": ImageInfoSpecificKind {
        base: Empty,
        /// By kind.
        branches: ImageInfoSpecificBranch {
            Qcow2(ImageInfoSpecificQCow2Wrapper) = "qcow2",
            File(ImageInfoSpecificFileWrapper) = "file",
        }
    }
}

qapi_struct! {
    /// What a node shows.
    pub(crate) struct ImageInfo {
        pub(super) filename: String,
        pub(super) format: String,
        dirty_flag: Option<bool>,
        /// Bytes that it takes where it is stored, without what its backing takes.
        actual_size: Option<u64>,
        virtual_size: u64,
        cluster_size: Option<u64>,
        /// As the image names it.
        backing_filename: Option<String>,
        full_backing_filename: Option<String>,
        backing_filename_format: Option<String>,
        /// What it shows where it has no bytes of its own; of a filter, what it filters.
        backing_image: Option<Box<ImageInfo>>,
        format_specific: Option<ImageInfoSpecific>,
    }
}

impl ImageInfo {
    /// How many images there are below it, of those that it tells.
    pub(super) fn depth(&self) -> u64 {
        std::iter::successors(self.below(), |info| info.below()).count() as u64
    }

    fn below(&self) -> Option<&Self> {
        self.backing_image.as_deref()
    }
}

fn child<'g>(
    graph: &'g Graph,
    node: &GraphNode,
    is_it: impl Fn(Role) -> bool,
) -> Option<&'g GraphNode> {
    let edge = node.edges().iter().find(|edge| is_it(edge.role()))?;
    Some(&graph.nodes()[edge.child()])
}

/// The node that a node shows where it has no bytes of its own, if it is one edge away.
pub(super) fn backing_of<'g>(graph: &'g Graph, node: &GraphNode) -> Option<&'g GraphNode> {
    child(graph, node, |role| role == Role::Backing)
}

/// What says of a node how it is stored: its own image, or that of what it shows as it is.
fn stored_as<'g>(graph: &'g Graph, node: &'g GraphNode) -> Option<(&'g GraphNode, ImageReport)> {
    let same = |node: &&'g GraphNode| {
        let is_same = |role: Role| matches!(role, Role::Filtered | Role::Storage);
        child(graph, node, is_same)
    };
    let mut nodes = std::iter::successors(Some(node), same);
    nodes.find_map(|node| node.driver().image().map(|image| (node, image)))
}

/// Whether the bytes of a node by-pass the page cache.
pub(super) fn is_direct(graph: &Graph, node: &GraphNode) -> bool {
    let first = |node: &&GraphNode| Some(&graph.nodes()[node.edges().first()?.child()]);
    // Children come before their parents: this ends.
    let mut path = std::iter::successors(Some(node), |node| first(node));
    path.any(|node| node.driver().image().is_some_and(|image| image.is_direct))
}

/// Bytes that a node takes, with all that its own bytes are kept in.
fn allocated_bytes(graph: &Graph, node: &GraphNode) -> Option<u64> {
    if let Some(bytes) = node.driver().allocated_bytes() {
        return Some(bytes);
    }
    let own =
        node.edges().iter().filter(|edge| !matches!(edge.role(), Role::Backing | Role::Source));
    own.map(|edge| allocated_bytes(graph, &graph.nodes()[edge.child()]))
        .reduce(|sum, bytes| Some(sum?.saturating_add(bytes?)))?
}

/// Where a file is that an image names which is at `image`.
fn beside(image: &str, name: &str) -> String {
    match Path::new(image).parent() {
        Some(dir) if !has_protocol(name) => dir.join(name).to_string_lossy().into_owned(),
        _ => name.to_owned(),
    }
}

/// What a node shows; `is_flat`: not what is below it.
pub(super) fn image_info(graph: &Graph, node: &GraphNode, is_flat: bool) -> ImageInfo {
    let filename = file_name(graph, node);
    let stored = stored_as(graph, node);
    let own = stored.as_ref().filter(|(of, _)| of.generation() == node.generation());
    let own = own.map(|(_, image)| image);
    let backing = own.and_then(|image| image.backing.as_ref());
    let size_bytes = node.info().size_bytes;
    let shown = child(graph, node, |role| matches!(role, Role::Backing | Role::Filtered));
    // A raw image is in its file, and does not stand on it.
    let shown = shown.filter(|_| !is_flat && node.driver().driver() != "raw");
    ImageInfo {
        format: node.driver().driver().to_owned(),
        dirty_flag: stored.as_ref().map(|(_, image)| image.is_dirty),
        actual_size: allocated_bytes(graph, node),
        virtual_size: size_bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(size_bytes),
        cluster_size: stored.as_ref().and_then(|(_, image)| image.cluster_bytes),
        backing_filename: backing.map(|backing| backing.name.clone()),
        full_backing_filename: backing.map(|backing| beside(&filename, &backing.name)),
        backing_filename_format: backing.and_then(|backing| backing.format.clone()),
        backing_image: shown.map(|shown| Box::new(image_info(graph, shown, false))),
        format_specific: own.map(|image| specific(&image.kind)),
        filename,
    }
}

fn specific(kind: &ImageKind) -> ImageInfoSpecific {
    let branch = match kind {
        ImageKind::File => {
            ImageInfoSpecificBranch::File(ImageInfoSpecificFileWrapper { data: Empty {} })
        }
        ImageKind::Qcow2(report) => {
            ImageInfoSpecificBranch::Qcow2(ImageInfoSpecificQCow2Wrapper { data: qcow2(report) })
        }
    };
    ImageInfoSpecific { base: Empty {}, branch }
}

fn qcow2(report: &Qcow2Report) -> ImageInfoSpecificQCow2 {
    let of_v3 = |value: bool| report.is_v3.then_some(value);
    let data_file = report.data_file.as_ref();
    let bitmaps: Vec<_> = report.bitmaps.iter().map(bitmap).collect();
    ImageInfoSpecificQCow2 {
        compat: if report.is_v3 { "1.1" } else { "0.10" }.to_owned(),
        data_file: data_file.and_then(|file| file.name.clone()),
        data_file_raw: data_file.map(|file| file.is_raw),
        extended_l2: of_v3(report.extended_l2),
        lazy_refcounts: of_v3(report.lazy_refcounts),
        corrupt: of_v3(report.corrupt),
        refcount_bits: report.refcount_bits.into(),
        bitmaps: Some(bitmaps).filter(|bitmaps| !bitmaps.is_empty()),
        compression_type: match report.is_zstd {
            true => Qcow2CompressionType::Zstd,
            false => Qcow2CompressionType::Zlib,
        },
    }
}

fn bitmap(bitmap: &KeptBitmap) -> Qcow2BitmapInfo {
    let flags =
        [(bitmap.in_use, Qcow2BitmapInfoFlags::InUse), (bitmap.auto, Qcow2BitmapInfoFlags::Auto)];
    Qcow2BitmapInfo {
        name: bitmap.name.clone(),
        granularity: bitmap.granularity_bytes,
        flags: flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect(),
    }
}
