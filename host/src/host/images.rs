//! Images in plain files, before the nodes open those: what a configuration file asks for and is not there yet
//! is made, and one that was not closed is repaired: clusters are counted again where the writer counts late,
//! as QEMU does, and leaked ones are freed.
//!
//! That walks through all tables of an image, so it is done only where the image says that its writer was cut
//! short, and before the node opens it. Leaks harm nobody: if they cannot be looked for, the image is used with
//! them. What a writer that was cut short has made the file longer ahead of what it wrote is cut off, as far as that
//! is a hole behind all that the image uses.
//!
//! An image of version 2 says nothing of its writer: it has no feature bits, and what else could be written into it
//! other programs keep, whatever they do to the image. So whether a hole at its end is what a killed host has left, or
//! room that somebody else keeps there, is not known, and to find out what is in use would take a walk through its
//! tables at every start. The hole stays. It takes no space, and new clusters come there before the file grows.

use std::future::Future;
use std::path::Path;

use blockloom_qcow2::check::{CheckOptions, CheckReport, mend};
use blockloom_qcow2::create::{Backing, CreateOptions, DataFile, Preallocation, create};
use blockloom_qcow2::format::header::features;
use blockloom_qcow2::format::{ClusterSize, CompressionType, RefcountWidth, Version};
use blockloom_qcow2::{Storage, read_header};

use crate::config::{
    Compression, DriverSpec, FileSpec, GraphSpec, ImageSpec, NodeSpec, Preallocation as Wanted,
    Qcow2Compat, Qcow2CreateSpec,
};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{EngineChoice, EngineKind, path_facts, run_on_thread, turn_now};
use crate::limits::EXTENTS_MAX;
use crate::node::{Access, FileStorage, FreshFile, Place, may_be_ahead};

/// What is left of a file is a multiple of this, bytes: it may be opened past the page cache.
const KEPT_BYTES: u64 = 4096;

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
    match spec.image_file(node) {
        Some(file) => mend_file(&file.path_in(base)),
        None => Ok(()),
    }
}

fn mend_file(path: &Path) -> Result<()> {
    let storage = FileStorage::open(path, Access::Write)?;
    let memory_bytes = CheckOptions::default().memory_bytes;
    let (report, cut_bytes, took) = run(async move {
        let begun = turn_now();
        let was_left_open = read_header(&storage).await?.autoclear & features::OPEN != 0;
        let report = mend(&storage, memory_bytes).await?;
        let cut_bytes = match &report {
            Some(report) if was_left_open && report.is_clean() => {
                // The image is well, however long its file is.
                cut(&storage, report).await.unwrap_or_else(|error| {
                    tracing::warn!("what a file has too much is not cut off: {error}");
                    0
                })
            }
            _ => 0,
        };
        Ok((report, cut_bytes, turn_now() - begun))
    })?;
    let Some(report) = report else { return Ok(()) };
    tracing::warn!(
        "image `{}` was not closed: {} refcounts and {} leaked clusters are put right, {cut_bytes} \
         unused bytes cut off, in {} ms",
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

/// Cuts off a hole at the end of an image's file that its writer can have made ahead of what it wrote; says how many
/// bytes that were. `report` is of the image as it is now: nothing refers to what lies behind its end.
async fn cut(storage: &FileStorage, report: &CheckReport) -> blockloom_qcow2::Result<u64> {
    let len = storage.len_bytes().await?;
    let extent = async |at| storage.extent(at, len - at).await.ok();
    let Some(end) = end_of_use(report.image_end_offset, len, extent).await else { return Ok(0) };
    storage.set_len(end).await?;
    Ok(len - end)
}

/// Where a file is to end of which an image uses nothing from `image_end` on, if what follows can be a hole that was made
/// ahead. `extent` tells how far what is at an offset goes on, and whether it is a hole, as far as that is known.
async fn end_of_use(
    image_end: u64,
    len: u64,
    extent: impl AsyncFn(u64) -> Option<(u64, bool)>,
) -> Option<u64> {
    let (mut at, mut used_bytes) = (image_end, image_end);
    for _ in 0..EXTENTS_MAX {
        if at >= len {
            break;
        }
        let (run, is_hole) = extent(at).await?;
        at = at.saturating_add(run);
        if !is_hole {
            used_bytes = at;
        }
    }
    let end = used_bytes.next_multiple_of(KEPT_BYTES);
    (at >= len && may_be_ahead(end, len)).then_some(end)
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
    // One that is not there yet is made when its node is opened.
    let file_bytes = |file: &FileSpec| match path_facts(&file.path_in(base)).ok()? {
        facts if facts.exists => Some(facts.size_bytes),
        _ => file.create_bytes.as_ref().map(|bytes| bytes.value),
    };
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use blockloom_qcow2::image::{Image, OpenOptions};

    use super::*;
    use crate::limits::FILE_AHEAD_BYTES;

    const UNIT: u64 = 64 << 10;

    /// An image whose writer has made its file longer and was killed; how long the file is then, and how much of it is
    /// used.
    fn killed(path: PathBuf, extra: u64, is_closed: bool) -> (u64, u64) {
        let done = run(async move {
            let storage = FileStorage::open(&path, Access::Create).expect("a file");
            create(&storage, &CreateOptions::new(64 << 20)).await?;
            let used_bytes = storage.len_bytes().await?.next_multiple_of(UNIT);
            let options = OpenOptions { writable: true, ..OpenOptions::default() };
            let image = Image::open(&storage, &options).await?;
            image.begin_modifying(&storage).await?;
            if is_closed {
                image.close(&storage).await?;
            }
            let len = (used_bytes + FILE_AHEAD_BYTES).next_multiple_of(UNIT) + extra;
            storage.set_len(len).await?;
            Ok((used_bytes, len))
        });
        done.expect("an image")
    }

    #[track_caller]
    fn check_cut(
        extra: u64,
        is_closed: bool,
        data_at: Option<u64>,
        expect: impl Fn(u64, u64) -> u64,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk.qcow2");
        let (used_bytes, len) = killed(path.clone(), extra, is_closed);
        let storage = FileStorage::open(&path, Access::Write).expect("the file");
        run(async move {
            match data_at {
                Some(at) => storage.write(used_bytes + at, &[7; 512]).await,
                None => Ok(()),
            }
        })
        .expect("a write");
        // Where a file system knows of no holes, all counts as data, and stays.
        let storage = FileStorage::open(&path, Access::Read).expect("the file");
        let is_hole = run(async move {
            let len = storage.len_bytes().await?;
            Ok(matches!(storage.extent(len - KEPT_BYTES, KEPT_BYTES).await, Ok((_, true))))
        });
        let expect = |used_bytes, len| match is_hole.expect("an extent") {
            true => expect(used_bytes, len),
            false => len,
        };
        mend_file(&path).expect("mends");
        let left = path_facts(&path).expect("a file").size_bytes;
        assert_eq!(left, expect(used_bytes, len));
    }

    /// Of a file of `len` bytes whose extents end at these offsets, every second one a hole.
    #[track_caller]
    fn check_end(image_end: u64, len: u64, ends: &[u64], expect: Option<u64>) {
        let ends = ends.to_vec();
        let found = run(async move {
            let extent = async |at: u64| {
                let index = ends.iter().position(|end| *end > at)?;
                Some((ends[index] - at, index % 2 == 1))
            };
            Ok(end_of_use(image_end, len, extent).await)
        });
        assert_eq!(found.expect("no error"), expect);
    }

    #[test]
    fn a_hole_behind_all_that_is_used_may_be_cut_off() {
        let (used, len) = (3 * UNIT, 3 * UNIT + 2 * FILE_AHEAD_BYTES);
        check_end(used, len, &[used, len], Some(used));
        check_end(used - 100, len, &[used, len], Some(used));
        check_end(used + 100, len, &[used, len], Some(used + KEPT_BYTES));
        let data = used + 2 * UNIT + 512;
        check_end(
            used,
            len,
            &[used, used + UNIT, data, len],
            Some(data.next_multiple_of(KEPT_BYTES)),
        );
        check_end(used, len, &[used, used + UNIT, len], None);
        check_end(used, used, &[used], None);
        check_end(used, len + 512, &[used, len + 512], None);
        check_end(used, len, &[used], None);
        let many: Vec<u64> = (1..2 * EXTENTS_MAX as u64 + 2).chain([len]).collect();
        check_end(0, len, &many, None);
    }

    #[test]
    fn what_a_killed_writer_has_ahead_is_cut_off() {
        check_cut(0, false, None, |used_bytes, _| used_bytes);
        // Whatever they are, bytes stay.
        check_cut(0, false, Some(UNIT), |used_bytes, _| used_bytes + UNIT + KEPT_BYTES);
    }

    #[test]
    fn what_somebody_else_may_have_added_stays() {
        check_cut(0, true, None, |_, len| len);
        check_cut(512, false, None, |_, len| len);
        check_cut(2 * FILE_AHEAD_BYTES, false, None, |_, len| len);
    }
}
