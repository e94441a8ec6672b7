//! Images in plain files, before the nodes open those: what a configuration file asks for and is not there yet
//! is made, and clusters are counted again in one whose writer counts late and was not closed, as QEMU does.

use std::future::Future;
use std::path::{Path, PathBuf};

use blockloom_qcow2::check::{CheckOptions, Repair, check};
use blockloom_qcow2::create::{Backing, CreateOptions, DataFile, Preallocation, create};
use blockloom_qcow2::format::{ClusterSize, CompressionType, RefcountWidth, Version};

use crate::config::{
    Compression, DriverSpec, FileSpec, GraphSpec, ImageSpec, NodeSpec, Preallocation as Wanted,
    Qcow2Compat, Qcow2CreateSpec,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::PermissionSet;
use crate::io::{EngineChoice, EngineKind, path_facts, remove_file, run_on_thread};
use crate::node::{Access, FileStorage};

/// The first image that could not be prepared, and why.
pub(super) struct NotPrepared<'s> {
    pub(super) node: &'s NodeSpec,
    pub(super) error: Error,
}

/// Makes the images that are to be made, and mends those that are to be written and need it.
pub(super) fn prepare_all<'s>(spec: &'s GraphSpec, base: &Path) -> Result<(), NotPrepared<'s>> {
    // Children first: an overlay names a backing that is there.
    for node in spec.build_order() {
        let DriverSpec::Qcow2(image) = &node.driver else { continue };
        let prepared = match (&image.image, &image.create) {
            (Some(ImageSpec::New), Some(wanted)) => make(spec, base, node, wanted),
            (Some(ImageSpec::There(image)), _) if image.is_dirty && is_written(spec, node) => {
                mend(spec, base, node)
            }
            _ => Ok(()),
        };
        prepared.map_err(|error| NotPrepared { node, error })?;
    }
    Ok(())
}

/// Whether a user of a node may change it.
pub(super) fn is_written(spec: &GraphSpec, node: &NodeSpec) -> bool {
    let mut users = spec.edges_to(&node.name.value);
    users.any(|edge| !edge.uses.intersection(PermissionSet::CHANGES).is_empty())
}

/// Works on images without a graph.
fn run<T: 'static>(work: impl Future<Output = blockloom_qcow2::Result<T>> + 'static) -> Result<T> {
    let done = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), work);
    let done = done.map_err(|error| Error::os("cannot work on an image", &error))?;
    done.map_err(|error| Error::new(ErrorKind::from_errno(error.errno()), error.to_string()))
}

/// Counts the clusters of an image again that was left with late refcounts.
fn mend(spec: &GraphSpec, base: &Path, node: &NodeSpec) -> Result<()> {
    let Some(file) = spec.image_file(node) else { return Ok(()) };
    let path = file.path_in(base);
    let storage = FileStorage::open(&path, Access::Write)?;
    let options = CheckOptions { repair: Repair::All, ..CheckOptions::default() };
    let report = run(async move { check(&storage, &options).await })?;
    tracing::warn!(
        "image `{}` was not closed: {} refcounts and {} leaked clusters are put right",
        path.display(),
        report.corruptions_fixed,
        report.leaks_fixed
    );
    Ok(())
}

/// A file for a new image. What was made and not kept is removed.
struct Fresh {
    storage: FileStorage,
    made: Option<PathBuf>,
}

impl Fresh {
    fn open(file: &FileSpec, base: &Path) -> Result<Self> {
        let path = file.path_in(base);
        let exists = path_facts(&path).is_ok_and(|facts| facts.exists);
        let access = if exists { Access::Write } else { Access::Create };
        let storage = FileStorage::open(&path, access)?;
        Ok(Self { storage, made: (!exists).then_some(path) })
    }

    fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(path) = &self.made
            && let Err(error) = remove_file(path)
        {
            tracing::warn!("`{}`, which is no image yet, stays: {error}", path.display());
        }
    }
}

fn make(spec: &GraphSpec, base: &Path, node: &NodeSpec, wanted: &Qcow2CreateSpec) -> Result<()> {
    let options = options(spec, base, node, wanted)?;
    let no_file = || Error::new(ErrorKind::Invalid, "an image is made in a plain file only");
    let image = Fresh::open(spec.image_file(node).ok_or_else(no_file)?, base)?;
    let data = spec.image_data_file(node).filter(|_| options.data_file.is_some());
    let data = data.map(|file| Fresh::open(file, base)).transpose()?;
    run(async move {
        if let Some(data) = &data {
            data.storage.fill_as_data_file(&options).await?;
        }
        create(&image.storage, &options).await?;
        image.keep();
        if let Some(data) = data {
            data.keep();
        }
        Ok(())
    })
}

fn options(
    spec: &GraphSpec,
    base: &Path,
    node: &NodeSpec,
    wanted: &Qcow2CreateSpec,
) -> Result<CreateOptions> {
    let file_bytes = |file: &FileSpec| Some(path_facts(&file.path_in(base)).ok()?.size_bytes);
    let size = wanted.size_bytes.as_ref().map(|size| size.value);
    let size = size.or_else(|| spec.size_of(node, &file_bytes)).ok_or_else(|| {
        let message =
            "the size of its backing is not known before it is opened: write `create.size`";
        Error::new(ErrorKind::Invalid, message)
    })?;
    let format = |error: blockloom_qcow2::Error| Error::new(ErrorKind::Invalid, error.to_string());
    let backing = spec.backing_reference(node, base);
    let has_data_file = node.children.iter().any(|child| child.name.value == "data-file");
    // Bytes of another node than a plain file are to be had from this configuration alone.
    let data_file = has_data_file.then(|| DataFile {
        name: spec.data_file_name(node, base),
        raw: wanted.data_file_raw.value,
    });
    Ok(CreateOptions {
        version: match wanted.compat.value {
            Qcow2Compat::V0_10 => Version::V2,
            Qcow2Compat::V1_1 => Version::V3,
        },
        cluster_size: ClusterSize::from_bytes(wanted.cluster_size_bytes.value.into())
            .map_err(format)?,
        refcount_width: RefcountWidth::from_bits(wanted.refcount_bits.value).map_err(format)?,
        backing: backing.map(|backing| Backing { name: backing.name, format: backing.format }),
        extended_l2: wanted.extended_l2.value,
        data_file,
        lazy_refcounts: wanted.lazy_refcounts.value,
        preallocation: match wanted.preallocation.value {
            Wanted::Off => Preallocation::Off,
            Wanted::Metadata => Preallocation::Metadata,
            Wanted::Falloc => Preallocation::Falloc,
            Wanted::Full => Preallocation::Full,
        },
        compression: match wanted.compression_type.value {
            Compression::Zlib => CompressionType::Deflate,
            Compression::Zstd => CompressionType::Zstd,
        },
        ..CreateOptions::new(size.next_multiple_of(512))
    })
}
