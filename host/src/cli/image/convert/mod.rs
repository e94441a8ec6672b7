//! `blockloom image convert`: the disk that a chain of images shows, in one new image.
//!
//! | file | idea |
//! |---|---|
//! | `plan.rs` | which parts of the disk are to be copied, which are zeros, which need nothing |
//! | `copy.rs` | several parts in work at once: read, compressed, written |
//! | `window.rs` | futures side by side, taken in their order or as they end |
//!
//! The new image is made beside its place and takes it when it is complete and durable.

mod copy;
mod plan;
mod window;

use std::io::Write;
use std::path::{Path, PathBuf};

use blockloom_qcow2::bitmaps::Trust;
use blockloom_qcow2::format::Version;
use blockloom_qcow2::format::header::features;
use clap::{Args, ValueEnum};

use super::bitmaps::{Bitmaps, Change, open_image};
use super::create::{NewImage, backing_size, fresh};
use super::disk::Disk;
use super::failure::{Failure, Result};
use super::layer::{Format, Layer, beside, open_behind, open_chain};
use super::options::Wanted;
use super::target::Target;
use crate::config::parse_size;
use crate::io::real_path;
use crate::limits::{CONVERT_PIECE_BYTES, CONVERT_PIECES_MAX};
use crate::node::{Access, FreshFile, Place};
use copy::How;
use plan::Plan;

/// Zeros of at least so many bytes are not written, unless told otherwise: as `qemu-img`.
const SPARSE_BYTES: u64 = 4096;
/// Unit of the option for that.
const SECTOR_BYTES: u64 = 512;

/// What is to be copied, and how.
#[derive(Args)]
pub(in crate::cli) struct ConvertOptions {
    /// The image to copy, with all that is behind it.
    source: PathBuf,
    /// The new image.
    target: PathBuf,
    /// The source's format; without it, found out by its first bytes.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// The new image's format; without it, raw.
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Options of the new image, as for `create`.
    #[arg(short, value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Compresses the data; `-o compression_type=zstd` is the fast way.
    #[arg(short, long)]
    compress: bool,
    /// Only copies what the source itself holds; the new image stands on FILE, which shows what the source's
    /// backing does. A relative name is seen from the new image.
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// The format of that: raw or qcow2.
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Zeros of at least so many bytes are not written, 4KiB without this; 0 writes everything.
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse: Option<String>,
    /// Writes into an image that is there already, which takes what it shows from the source.
    #[arg(short, long, conflicts_with_all = ["options", "backing", "force"])]
    no_create: bool,
    /// Shows how far it is.
    #[arg(short, long)]
    progress: bool,
    /// Parts of the disk that are in work at once.
    #[arg(short = 'm', long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(CONVERT_PIECES_MAX)))]
    parallel: u16,
    /// Writes them as they come, not in their order.
    #[arg(short = 'W', long)]
    out_of_order: bool,
    /// Copies the source's persistent bitmaps, too.
    #[arg(long)]
    bitmaps: bool,
    /// Leaves out bitmaps that cannot be copied.
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
    /// Whether the new image is durable in the end: `unsafe` says no.
    #[arg(short = 't', long, value_name = "MODE", default_value = "writeback")]
    cache: Cache,
    /// Reads the source although another program may be writing it.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Overwrites what is there.
    #[arg(long)]
    force: bool,
}

/// As `qemu-img` calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// Durable in the end.
    Writeback,
    /// Left to the system, faster.
    Unsafe,
}

impl ConvertOptions {
    fn target_format(&self) -> Format {
        self.output_format.unwrap_or(Format::Raw)
    }

    fn wanted(&self) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        for text in &self.options {
            wanted.read(text)?;
        }
        if wanted.size_bytes.is_some() {
            return Err(Failure::usage(
                "-o size: the new disk is as long as the source's; `image resize` changes it \
                 afterwards",
            ));
        }
        wanted.backing = self.backing.clone().or(wanted.backing);
        wanted.backing_format = self.backing_format.clone().or(wanted.backing_format);
        wanted.validate()?;
        if self.compress && wanted.is_preallocated() {
            let message = "-o preallocation: takes room that -c is to save; leave one out";
            return Err(Failure::usage(message));
        }
        if self.compress && wanted.data_file.is_some() {
            let message = "-o data_file: such a file holds no compressed data; leave out -c";
            return Err(Failure::usage(message));
        }
        if self.target_format() == Format::Raw && !self.no_create {
            wanted.check_raw()?;
            let problem = match () {
                () if self.compress => "-c: a raw image is not compressed",
                () if self.bitmaps => "--bitmaps: a raw image keeps none",
                () => return Ok(wanted),
            };
            return Err(Failure::usage(format!("{problem}: -O qcow2 makes a qcow2 image")));
        }
        Ok(wanted)
    }

    /// 0 for all.
    fn sparse_bytes(&self) -> Result<u64> {
        let Some(text) = &self.sparse else { return Ok(SPARSE_BYTES) };
        let wrong = |problem: String| Failure::usage(format!("--sparse {text}: {problem}"));
        let bytes = parse_size(text).map_err(|problem| wrong(format!("it {problem}")))?;
        if bytes.is_multiple_of(SECTOR_BYTES) && bytes <= CONVERT_PIECE_BYTES {
            return Ok(bytes);
        }
        Err(wrong(format!(
            "a multiple of {SECTOR_BYTES} bytes, at most {CONVERT_PIECE_BYTES}, is needed"
        )))
    }
}

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

fn check_bitmaps(bitmaps: &Bitmaps<'_>) -> Result<()> {
    let cannot = |name: &str, problem: &str| {
        let message = format!(
            "bitmap `{name}` {problem}: --skip-broken-bitmaps leaves it out; `image bitmap` can \
             --remove it"
        );
        Err(Failure::of_file(bitmaps.path(), message))
    };
    for entry in bitmaps.entries() {
        match bitmaps.trust(entry) {
            Trust::Stored => {}
            Trust::Inconsistent => return cannot(&entry.name_lossy(), "is inconsistent"),
            Trust::Unknown => return cannot(&entry.name_lossy(), "is of a kind that is not known"),
        }
    }
    Ok(())
}

fn check_keeps_bitmaps(target: &Target, size_bytes: u64) -> Result<()> {
    let Some(image) = target.image() else { return Ok(()) };
    if image.info().version < Version::V3 {
        return Err(Failure::usage("--bitmaps: needs an image with compat=1.1"));
    }
    if image.size_bytes() != size_bytes {
        let message = format!(
            "--bitmaps: they are for a disk of {size_bytes} bytes, and this one has {}",
            image.size_bytes()
        );
        return Err(Failure::of_file(target.path(), message));
    }
    Ok(())
}

async fn copy_bitmaps(from: &Bitmaps<'_>, target: &Target) -> Result<()> {
    let Some(image) = target.image() else { return Ok(()) };
    let mut to = Bitmaps::load(target.path(), target.storage(), image).await?;
    let mut changes = Vec::new();
    for entry in from.entries().iter().filter(|entry| from.trust(entry) == Trust::Stored) {
        let name = entry.name_lossy().into_owned();
        changes.push(Change::Store(name, from.content(entry).await?));
    }
    to.change(&changes).await
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
            // A reader that has gone is no failure of ours.
            let mut output = std::io::stdout().lock();
            let _ = write!(output, "    ({}.{:02}/100%)\r", part / 100, part % 100);
            let _ = output.flush();
        }
    }

    fn end(mut self) {
        self.tell(self.all_bytes);
        if self.shown {
            let _ = writeln!(std::io::stdout().lock());
        }
    }
}
