//! Images in plain files, before the nodes open those: what a configuration file asks for and is not there yet
//! is made, and one that was not closed is repaired: clusters are counted again where the writer counts late,
//! as QEMU does, and leaked ones are freed.
//!
//! That walks through all tables of an image, so it is done only where the image says that its writer was cut
//! short, and before the node opens it. Leaks harm nobody: if they cannot be looked for, the image is used with
//! them.

use std::future::Future;
use std::path::Path;

use blockloom_qcow2::check::{CheckOptions, mend};
use blockloom_qcow2::create::{Backing, CreateOptions, DataFile, Preallocation, create};
use blockloom_qcow2::format::{ClusterSize, CompressionType, RefcountWidth, Version};

use crate::config::{
    Compression, DriverSpec, FileSpec, GraphSpec, ImageSpec, NodeSpec, Preallocation as Wanted,
    Qcow2Compat, Qcow2CreateSpec,
};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{EngineChoice, EngineKind, path_facts, run_on_thread, turn_now};
use crate::node::{Access, FileStorage, FreshFile, Place};

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
            (Some(ImageSpec::There(image)), _)
                if (image.is_dirty || image.is_left_open) && spec.is_written(node) =>
            {
                match mend_image(spec, base, node) {
                    Err(error) if !image.is_dirty => {
                        let name = &node.name;
                        tracing::warn!("what leaked in the image of node `{name}` stays: {error}");
                        Ok(())
                    }
                    mended => mended,
                }
            }
            _ => Ok(()),
        };
        prepared.map_err(|error| NotPrepared { node, error })?;
    }
    Ok(())
}

/// Works on images without a graph.
fn run<T: 'static>(work: impl Future<Output = blockloom_qcow2::Result<T>> + 'static) -> Result<T> {
    let done = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), work);
    let done = done.map_err(|error| Error::os("cannot work on an image", &error))?;
    done.map_err(|error| Error::new(ErrorKind::from_errno(error.errno()), error.to_string()))
}

/// Repairs an image that was not closed.
fn mend_image(spec: &GraphSpec, base: &Path, node: &NodeSpec) -> Result<()> {
    let Some(file) = spec.image_file(node) else { return Ok(()) };
    let path = file.path_in(base);
    let storage = FileStorage::open(&path, Access::Write)?;
    let memory_bytes = CheckOptions::default().memory_bytes;
    let (report, took) = run(async move {
        let begun = turn_now();
        let report = mend(&storage, memory_bytes).await?;
        Ok((report, turn_now() - begun))
    })?;
    let Some(report) = report else { return Ok(()) };
    tracing::warn!(
        "image `{}` was not closed: {} refcounts and {} leaked clusters are put right, in {} ms",
        path.display(),
        report.corruptions_fixed,
        report.leaks_fixed,
        took.as_millis()
    );
    if report.is_damaged() {
        tracing::error!("image `{}` is damaged: `blockloom image check` tells how", path.display());
    }
    Ok(())
}

fn make(spec: &GraphSpec, base: &Path, node: &NodeSpec, wanted: &Qcow2CreateSpec) -> Result<()> {
    let options = options(spec, base, node, wanted)?;
    let no_file = || Error::new(ErrorKind::Invalid, "an image is made in a plain file only");
    let fresh = |file: &FileSpec| FreshFile::make(&file.path_in(base), Place::Direct);
    let (image, storage) = fresh(spec.image_file(node).ok_or_else(no_file)?)?;
    let data = spec.image_data_file(node).filter(|_| options.data_file.is_some());
    let (data, data_storage) = data.map(fresh).transpose()?.unzip();
    run(async move {
        if let Some(data) = &data_storage {
            data.fill_as_data_file(&options).await?;
        }
        create(&storage, &options).await
    })?;
    data.map_or(Ok(()), FreshFile::keep)?;
    image.keep()
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
