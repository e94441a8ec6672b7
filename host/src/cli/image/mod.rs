//! `blockloom image …`: offline work on images, with the options and the JSON of `qemu-img`.
//!
//! | file | idea |
//! |---|---|
//! | `layer.rs` | an open image, and the chain behind it |
//! | `mapper.rs` | where the bytes of one image are |
//! | `disk.rs` | the disk that a chain shows |
//! | `target.rs` | an image that is written |
//! | `bitmaps.rs` | the persistent bitmaps of an image |
//! | `info.rs`, `map.rs`, … | one command each |
//! | `output.rs`, `failure.rs` | what is printed, and how commands fail |
//!
//! Everything runs on one thread that becomes a worker for the time of the command.

mod bitmap;
mod bitmap_list;
mod bitmap_options;
mod bitmaps;
mod check;
mod convert;
mod create;
mod disk;
mod failure;
mod info;
mod layer;
mod map;
mod mapper;
mod options;
mod output;
mod resize;
mod snapshot;
mod target;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use bitmap_options::{Actions, Extras};
use check::RepairChoice;
use convert::ConvertOptions;

use super::complain;
use crate::node::Access;
use failure::{Failure, Result};
use layer::Format;
use options::{Wanted, parse_size};
use output::OutputFormat;
use resize::PreallocationChoice;

use crate::bitmap::Granularity;
use crate::io::{EngineChoice, run_on_thread};

/// A command on images.
#[derive(Subcommand)]
pub(super) enum ImageCommand {
    /// Makes a qcow2 image. What is there already is overwritten only with --force; a command that fails
    /// leaves nothing behind.
    Create {
        /// The image.
        file: PathBuf,
        /// Size of the disk, such as 512, 64KiB, 10G; without it, the backing's.
        size: Option<String>,
        /// Options of `qemu-img create`: cluster_size, refcount_bits, compat, extended_l2, data_file,
        /// data_file_raw, lazy_refcounts, preallocation, compression_type, backing_file, backing_fmt.
        #[arg(short, value_name = "KEY=VALUE,…")]
        options: Vec<String>,
        /// The image behind it; a relative name is seen from the new image.
        #[arg(short, long, value_name = "FILE")]
        backing: Option<String>,
        /// The format of that: raw or qcow2.
        #[arg(short = 'F', long, value_name = "FORMAT")]
        backing_format: Option<String>,
        /// A file for the data, made together with the image; a relative name is seen from it.
        #[arg(long, value_name = "FILE")]
        data_file: Option<String>,
        /// Metadata alone: the data are those of the node that the graph file has as `data-file`, a whole
        /// graph perhaps. The image names no file, so nobody opens it with the wrong one.
        #[arg(long, conflicts_with = "data_file")]
        data_node: bool,
        /// An image whose disk has the size that this one is to have.
        #[arg(long, value_name = "FILE", conflicts_with = "size")]
        size_of: Option<PathBuf>,
        /// Overwrites what is there.
        #[arg(long)]
        force: bool,
    },
    /// Checks the metadata of a qcow2 image. Exit codes are those of qemu-img check: 0 in order (or
    /// repaired), 1 the check failed, 2 corrupt (or a wrong command line), 3 space is lost and nothing
    /// else, 63 the format has nothing to check.
    Check {
        #[command(flatten)]
        image: ReadImage,
        /// Repairs leaks, or everything that can be without a guess.
        #[arg(short, long, value_name = "WHAT", num_args = 0..=1, require_equals = true,
              default_missing_value = "all", conflicts_with = "force_share")]
        repair: Option<RepairChoice>,
    },
    /// Changes or lists the persistent bitmaps of a qcow2 image. Several actions are done in the order in which
    /// they are written, all of them or none.
    Bitmap {
        #[command(flatten)]
        actions: Actions,
        /// Lists the image's bitmaps, or the one that is named, with what they hold.
        #[arg(long)]
        list: bool,
        /// The image that has the bitmaps of --merge, if that is another one.
        #[arg(short = 'b', long, value_name = "FILE")]
        source_file: Option<PathBuf>,
        /// The format of that.
        #[arg(short = 'F', long, value_name = "FORMAT")]
        source_format: Option<Format>,
        /// Bytes that a bit of a new bitmap stands for: a power of two, 512 to 2GiB. Without it a cluster's,
        /// but at least 4KiB and at most 64KiB.
        #[arg(short, long, value_name = "SIZE")]
        granularity: Option<String>,
        #[command(flatten)]
        image: ReadImage,
        /// The bitmap.
        bitmap: Option<String>,
    },
    /// Copies a disk, with all that is behind its image, into a new raw or qcow2 image, which is there when it
    /// is complete.
    Convert {
        #[command(flatten)]
        options: ConvertOptions,
    },
    /// Makes the disk of an image longer or shorter.
    Resize {
        /// The image.
        file: PathBuf,
        /// The new size, or with + or - the change.
        #[arg(allow_hyphen_values = true)]
        size: String,
        /// The image's format; without it, found out by its first bytes.
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<Format>,
        /// Allows that what is behind the new end is lost.
        #[arg(long)]
        shrink: bool,
        /// What is allocated of a longer disk: off, metadata, falloc or full.
        #[arg(long, value_name = "HOW", default_value = "off")]
        preallocation: PreallocationChoice,
    },
    /// Lists, takes, applies or deletes internal snapshots of a qcow2 image.
    Snapshot {
        #[command(flatten)]
        what: SnapshotAction,
        /// The image.
        file: PathBuf,
        /// Reads it although another program may be writing it.
        #[arg(short = 'U', long)]
        force_share: bool,
    },
    /// Shows what an image says of itself: format, sizes, backing, snapshots, bitmaps.
    Info {
        #[command(flatten)]
        image: ReadImage,
        /// Also shows every image behind it.
        #[arg(long)]
        backing_chain: bool,
    },
    /// Shows which file of a chain holds which part of the disk.
    Map {
        #[command(flatten)]
        image: ReadImage,
    },
}

/// An image that is only read.
#[derive(Args)]
pub(super) struct ReadImage {
    /// The image.
    file: PathBuf,
    /// The image's format; without it, found out by its first bytes.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Reads it although another program may be writing it.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How to print: for people, or with the keys of `qemu-img`.
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    output: OutputFormat,
}

impl ReadImage {
    fn access(&self) -> Access {
        reading(self.force_share)
    }
}

fn reading(force_share: bool) -> Access {
    if force_share { Access::ReadShared } else { Access::Read }
}

/// Runs a command.
pub(super) fn run(command: ImageCommand) -> ExitCode {
    match dispatch(command) {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, message }) => {
            complain(&message);
            ExitCode::from(code)
        }
    }
}

fn dispatch(command: ImageCommand) -> Result<u8> {
    match command {
        ImageCommand::Create {
            file,
            size,
            options,
            backing,
            backing_format,
            data_file,
            data_node,
            size_of,
            force,
        } => {
            let mut wanted = Wanted::default();
            for text in &options {
                wanted.read(text)?;
            }
            if let Some(text) = size {
                let size = parse_size(&text);
                let size = size.map_err(|it| Failure::usage(format!("SIZE {text}: it {it}")))?;
                wanted.size_bytes = Some(size);
            }
            wanted.backing = backing.or(wanted.backing);
            wanted.backing_format = backing_format.or(wanted.backing_format);
            wanted.data_file = data_file.or(wanted.data_file);
            wanted.data_node = data_node;
            on_worker(create::create_image(file, wanted, size_of, force))?;
        }
        ImageCommand::Check { image, repair } => {
            let access = if repair.is_some() { Access::Write } else { image.access() };
            let (file, format, output) = (image.file, image.format, image.output);
            return on_worker(check::check_image(file, format, repair, access, output));
        }
        ImageCommand::Bitmap {
            actions,
            list,
            source_file,
            source_format,
            granularity,
            image,
            bitmap,
        } => {
            let granularity_bytes = granularity.map(|text| granularity_of(&text)).transpose()?;
            let extras = Extras { source_file, source_format, granularity_bytes };
            run_bitmap(actions, list, extras, image, bitmap)?;
        }
        ImageCommand::Convert { options } => on_worker(convert::convert(options))?,
        ImageCommand::Resize { file, size, format, shrink, preallocation } => {
            on_worker(resize::resize(file, format, size, shrink, preallocation))?;
        }
        ImageCommand::Snapshot { what, file, force_share } => match what.change() {
            None => on_worker(snapshot::list(file, reading(force_share)))?,
            Some(_) if force_share => {
                let message = "--force-share is for reading: nobody else may have an image open that \
                               is changed";
                return Err(Failure::usage(message));
            }
            Some(change) => on_worker(snapshot::change(file, change))?,
        },
        ImageCommand::Info { image, backing_chain } => {
            let access = image.access();
            on_worker(info::info(image.file, image.format, backing_chain, access, image.output))?;
        }
        ImageCommand::Map { image } => {
            let access = image.access();
            on_worker(map::map(image.file, image.format, access, image.output))?;
        }
    }
    Ok(0)
}

/// One of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(in crate::cli) struct SnapshotAction {
    /// Lists them.
    #[arg(short, long)]
    list: bool,
    /// Takes one of what the image holds now.
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,
    /// Gives the image the contents of one; what it holds now is lost.
    #[arg(short, long, value_name = "NAME")]
    apply: Option<String>,
    /// Deletes one.
    #[arg(short, long, value_name = "NAME")]
    delete: Option<String>,
}

impl SnapshotAction {
    /// `None` to list them.
    fn change(self) -> Option<snapshot::Change> {
        let create = self.create.map(snapshot::Change::Create);
        let apply = || self.apply.map(snapshot::Change::Apply);
        create.or_else(apply).or_else(|| self.delete.map(snapshot::Change::Delete))
    }
}

fn granularity_of(text: &str) -> Result<u64> {
    let wrong = |problem: String| Failure::usage(format!("--granularity {text}: {problem}"));
    let bytes = parse_size(text).map_err(|problem| wrong(format!("it {problem}")))?;
    Granularity::from_bytes(bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(bytes)
}

fn run_bitmap(
    actions: Actions,
    list: bool,
    extras: Extras,
    image: ReadImage,
    bitmap: Option<String>,
) -> Result<()> {
    let access = image.access();
    if list {
        if !actions.0.is_empty() {
            return Err(Failure::usage("--list: changes nothing; list after the change"));
        }
        let listed = bitmap_list::list(image.file, image.format, bitmap, access, image.output);
        return on_worker(listed);
    }
    if access == Access::ReadShared {
        let message =
            "--force-share is for --list: nobody else may have an image open that is changed";
        return Err(Failure::usage(message));
    }
    actions.check(&extras)?;
    let Some(bitmap) = bitmap else {
        return Err(Failure::usage("BITMAP is missing: name it behind the image"));
    };
    on_worker(bitmap::change(image.file, image.format, bitmap, actions, extras))
}

fn on_worker<T: 'static>(work: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let result = run_on_thread(EngineChoice::Auto, work);
    result.map_err(|error| Failure::failed(format!("cannot start a worker: {error}")))?
}
