//! The command line of `blockloom image convert`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::image::failure::{Failure, Result};
use crate::cli::image::layer::Format;
use crate::cli::image::options::{Wanted, parse_size};
use crate::limits::{CONVERT_PIECE_BYTES, CONVERT_PIECES_MAX};

/// Zeros of at least so many bytes are not written, unless told otherwise: as `qemu-img`.
const SPARSE_BYTES: u64 = 4096;
/// Unit of the option for that.
const SECTOR_BYTES: u64 = 512;

/// What is to be copied, and how.
#[derive(Args)]
pub(in crate::cli) struct ConvertOptions {
    /// The image to copy, with all that is behind it.
    pub(super) source: PathBuf,
    /// The new image.
    pub(super) target: PathBuf,
    /// The source's format; without it, found out by its first bytes.
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
    /// The new image's format; without it, raw.
    #[arg(short = 'O', long, value_name = "FORMAT")]
    pub(super) output_format: Option<Format>,
    /// Options of the new image, as for `create`.
    #[arg(short, value_name = "KEY=VALUE,…")]
    pub(super) options: Vec<String>,
    /// Compresses the data; `-o compression_type=zstd` is the fast way.
    #[arg(short, long)]
    pub(super) compress: bool,
    /// Only copies what the source itself holds; the new image stands on FILE, which shows what the source's
    /// backing does. A relative name is seen from the new image.
    #[arg(short = 'B', long, value_name = "FILE")]
    pub(super) backing: Option<String>,
    /// The format of that: raw or qcow2.
    #[arg(short = 'F', long, value_name = "FORMAT")]
    pub(super) backing_format: Option<String>,
    /// Zeros of at least so many bytes are not written, 4KiB without this; 0 writes everything.
    #[arg(short = 'S', long, value_name = "SIZE")]
    pub(super) sparse: Option<String>,
    /// Writes into an image that is there already, which takes what it shows from the source.
    #[arg(short, long, conflicts_with_all = ["options", "backing", "force"])]
    pub(super) no_create: bool,
    /// Shows how far it is.
    #[arg(short, long)]
    pub(super) progress: bool,
    /// Parts of the disk that are in work at once.
    #[arg(short = 'm', long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(CONVERT_PIECES_MAX)))]
    pub(super) parallel: u16,
    /// Writes them as they come, not in their order.
    #[arg(short = 'W', long)]
    pub(super) out_of_order: bool,
    /// Copies the source's persistent bitmaps, too.
    #[arg(long)]
    pub(super) bitmaps: bool,
    /// Leaves out bitmaps that cannot be copied.
    #[arg(long, requires = "bitmaps")]
    pub(super) skip_broken_bitmaps: bool,
    /// Whether the new image is durable in the end: `unsafe` says no.
    #[arg(short = 't', long, value_name = "MODE", default_value = "writeback")]
    pub(super) cache: Cache,
    /// Reads the source although another program may be writing it.
    #[arg(short = 'U', long)]
    pub(super) force_share: bool,
    /// Overwrites what is there.
    #[arg(long)]
    pub(super) force: bool,
}

/// As `qemu-img` calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Cache {
    /// Durable in the end.
    Writeback,
    /// Left to the system, faster.
    Unsafe,
}

impl ConvertOptions {
    pub(super) fn target_format(&self) -> Format {
        self.output_format.unwrap_or(Format::Raw)
    }

    pub(super) fn wanted(&self) -> Result<Wanted> {
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
    pub(super) fn sparse_bytes(&self) -> Result<u64> {
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
