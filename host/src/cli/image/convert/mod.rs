//! `blockloom image convert`: the disk that a chain of images shows, in one new image.
//!
//! | file | idea |
//! |---|---|
//! | `plan.rs` | which parts of the disk are to be copied, which are zeros, which need nothing |
//! | `copy.rs` | several parts in work at once: read, compressed, written |
//! | `bitmaps.rs` | persistent bitmaps that go with the disk |
//! | `window.rs` | futures side by side, taken in their order or as they end |
//!
//! The new image is made beside its place and takes it when it is complete and durable.

mod bitmaps;
mod copy;
mod options;
mod plan;
mod window;

use std::io::Write;
use std::path::Path;

use blockloom_qcow2::format::header::features;

use super::bitmaps::{Bitmaps, open_image};
use super::create::{NewImage, backing_size, fresh};
use super::disk::Disk;
use super::failure::{Failure, Result};
use super::layer::{Format, Layer, beside, open_behind, open_chain};
use super::options::Wanted;
use super::target::Target;
use crate::cli::stdout::note;
use crate::io::real_path;
use crate::node::{Access, FreshFile, Place};
use bitmaps::{check_bitmaps, check_keeps_bitmaps, copy_bitmaps};
use copy::How;
use options::Cache;
pub(in crate::cli) use options::ConvertOptions;
use plan::Plan;

/// What is to take its place in the end.
#[derive(Debug)]
enum Kept {
    Image(NewImage),
    File(FreshFile),
    /// It was there before.
    There,
}

/// Copies a disk into an image.
pub(super) async fn convert(options: ConvertOptions) -> Result<()> {
    let (wanted, sparse_bytes) = (options.wanted()?, options.sparse_bytes()?);
    let access = super::reading(options.force_share);
    let chain = open_chain(&options.source, options.format, access).await?;
    check_apart(&chain, &options.target)?;
    let disk = Disk::to_read(chain).await?;
    let from = match options.bitmaps {
        true => Some(open_image(&options.source, options.format, access).await?),
        false => None,
    };
    let bitmaps = match &from {
        Some((layer, image)) => Some(Bitmaps::load(&layer.path, &layer.storage, image).await?),
        None => None,
    };
    if let Some(bitmaps) = bitmaps.as_ref().filter(|_| !options.skip_broken_bitmaps) {
        check_bitmaps(bitmaps)?;
    }
    let (target, kept) = open_target(&options, &wanted, &disk).await?;
    if options.bitmaps {
        check_keeps_bitmaps(&target, disk.size_bytes())?;
    }
    let how = How {
        sparse_bytes,
        compress: options.compress,
        in_order: !options.out_of_order,
        pieces: options.parallel.into(),
    };
    let mut progress = Progress::new(options.progress, disk.size_bytes());
    let plan = Plan::new(&disk, &target, &how, options.backing.is_some());
    copy::copy(plan, &disk, &target, &how, |done| progress.tell(done)).await?;
    if let Some(bitmaps) = &bitmaps {
        copy_bitmaps(bitmaps, &target).await?;
    }
    target.finish().await?;
    drop(target);
    match kept {
        Kept::Image(image) => image.keep()?,
        Kept::File(file) => file.keep()?,
        Kept::There => {}
    }
    progress.end();
    Ok(())
}

/// Nothing that is read is written.
fn check_apart(layers: &[Layer], target: &Path) -> Result<()> {
    let Ok(target_path) = real_path(target) else { return Ok(()) };
    let read = layers.iter().flat_map(|layer| [layer.path.clone(), layer.data_path()]);
    if read.into_iter().any(|path| real_path(&path).is_ok_and(|path| path == target_path)) {
        let message = "is one of the images that are read: name another file";
        return Err(Failure::of_file(target, message));
    }
    Ok(())
}

async fn open_target(
    options: &ConvertOptions,
    wanted: &Wanted,
    disk: &Disk,
) -> Result<(Target, Kept)> {
    let (path, size_bytes) = (&options.target, disk.size_bytes());
    let sync = options.cache == Cache::Writeback;
    if options.no_create {
        return Ok((open_existing(options, size_bytes, sync).await?, Kept::There));
    }
    if options.target_format() == Format::Raw {
        let (file, storage) = fresh(path, options.force, Place::Beside)?;
        let options = wanted.options(size_bytes)?;
        let filled = storage.fill_as_data_file(&options).await;
        filled.map_err(|error| Failure::of_file(path, error))?;
        return Ok((Target::raw(path, storage, sync, true), Kept::File(file)));
    }
    let below = match (&wanted.backing, &wanted.backing_format) {
        (Some(name), Some(format)) => {
            // It is there, and what it shows.
            backing_size(path, name, Some(format)).await?;
            let behind = beside(path, name.as_ref());
            let chain = open_chain(&behind, Format::of_name(format), Access::Read).await?;
            Some(Disk::to_read(chain).await?)
        }
        _ => None,
    };
    let new = wanted.options(size_bytes)?;
    let (image, storage) = NewImage::make(path, &new, options.force, Place::Beside).await?;
    Ok((Target::qcow2(path, storage, sync, below, true).await?, Kept::Image(image)))
}

/// An image that is there, and takes what it shows from the source.
async fn open_existing(options: &ConvertOptions, size_bytes: u64, sync: bool) -> Result<Target> {
    let path = &options.target;
    let layer = Layer::open(path, options.output_format, Access::Write).await?;
    if layer.size_bytes < size_bytes {
        let message = format!(
            "its disk has {} bytes, the source's {size_bytes}: `image resize` it first",
            layer.size_bytes
        );
        return Err(Failure::of_file(path, message));
    }
    let Some(header) = layer.header.clone() else {
        let problem = match () {
            () if options.compress => "-c: a raw image is not compressed: leave it out",
            () if options.bitmaps => "--bitmaps: a raw image keeps none: leave it out",
            () => return Ok(Target::raw(path, layer.storage, sync, false)),
        };
        return Err(Failure::usage(problem));
    };
    if options.compress && header.has_external_data() {
        let message = "-c: its data file holds no compressed data: leave it out";
        return Err(Failure::of_file(path, message));
    }
    if header.autoclear & features::BITMAPS != 0 && header.bitmaps().is_some() {
        let message = "it has persistent bitmaps, which would miss what is written: remove them first \
                       (`image bitmap --remove`), or convert into a new image";
        return Err(Failure::of_file(path, message));
    }
    let behind = open_behind(&layer, Access::Read).await?;
    let below = if behind.is_empty() { None } else { Some(Disk::to_read(behind).await?) };
    let layer = layer.with_data_file(Access::Write)?;
    // One that cannot be written says why.
    layer.image(true).await?;
    Target::qcow2(path, layer.storage, sync, below, false).await
}

/// A line that says how far it is, as `qemu-img` prints it.
struct Progress {
    shown: bool,
    all_bytes: u64,
    /// Hundredths of a percent that were shown last.
    last: Option<u64>,
}

impl Progress {
    fn new(shown: bool, all_bytes: u64) -> Self {
        Self { shown, all_bytes, last: None }
    }

    fn tell(&mut self, done_bytes: u64) {
        let part = u128::from(done_bytes) * 10_000 / u128::from(self.all_bytes.max(1));
        let part = part.min(10_000) as u64;
        if self.shown && self.last != Some(part) {
            self.last = Some(part);
            let mut output = std::io::stdout().lock();
            let written = write!(output, "    ({}.{:02}/100%)\r", part / 100, part % 100);
            note(written.and_then(|()| output.flush()));
        }
    }

    fn end(mut self) {
        self.tell(self.all_bytes);
        if self.shown {
            note(writeln!(std::io::stdout().lock()));
        }
    }
}
