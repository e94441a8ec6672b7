//! `blockloom image resize`: a longer or shorter disk.
//!
//! A longer one is zeroed before the image tells of it. Persistent bitmaps go with the disk: what is added
//! counts as changed. They are marked as in use meanwhile, so after a crash they are inconsistent, never
//! wrong.

use std::path::PathBuf;

use blockloom_qcow2::bitmaps::Trust;
use blockloom_qcow2::image::{Image, Step};
use blockloom_qcow2::{Error, Storage};
use clap::ValueEnum;

use super::bitmaps::{Bitmaps, Change as BitmapChange, Content};
use super::disk::Disk;
use super::failure::{Failure, Result};
use super::layer::{Format, Layer, open_behind, sectors};
use super::options::parse_size;
use super::target::Target;
use crate::bitmap::Extension;
use crate::node::{Access, FileStorage};

/// What is allocated of a longer disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum PreallocationChoice {
    /// Nothing.
    Off,
    /// The places of data, not the room.
    Metadata,
    /// The room, by the file system.
    Falloc,
    /// The room, by writing zeros.
    Full,
}

/// A new size, or by how much the disk gets longer or shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    To(u64),
    Longer(u64),
    Shorter(u64),
}

fn parse(text: &str) -> Result<Change> {
    let (change, size): (fn(u64) -> Change, _) = match text.as_bytes().first() {
        Some(b'+') => (Change::Longer, &text[1..]),
        Some(b'-') => (Change::Shorter, &text[1..]),
        _ => (Change::To, text),
    };
    let size = parse_size(size);
    size.map(change).map_err(|problem| Failure::usage(format!("SIZE {text}: it {problem}")))
}

/// Resizes a disk; a shorter one only if that is allowed.
pub(super) async fn resize(
    path: PathBuf,
    format: Option<Format>,
    size: String,
    shrink: bool,
    preallocation: PreallocationChoice,
) -> Result<()> {
    let change = parse(&size)?;
    let layer = Layer::open(&path, format, Access::Write).await?;
    let old = layer.size_bytes;
    let new = match change {
        Change::To(size) => Some(size),
        Change::Longer(by) => old.checked_add(by),
        Change::Shorter(by) => old.checked_sub(by),
    };
    let new = new.filter(|new| i64::try_from(*new).is_ok_and(|new| new <= i64::MAX - 511));
    let Some(new) = new.map(sectors) else {
        let message = format!("SIZE {size}: the disk has {old} bytes, and there are at most 2^63");
        return Err(Failure::usage(message));
    };
    if new < old && !shrink {
        let message = format!(
            "the disk would lose what is behind {new} of its {old} bytes: --shrink allows that"
        );
        return Err(Failure::of_file(&path, message));
    }
    if new <= old && preallocation != PreallocationChoice::Off {
        return Err(Failure::usage("--preallocation: only a disk that gets longer takes room"));
    }
    match layer.header {
        None => resize_raw(&layer, new, preallocation).await,
        Some(_) => resize_qcow2(layer, new, preallocation).await,
    }
}

async fn resize_raw(layer: &Layer, new: u64, preallocation: PreallocationChoice) -> Result<()> {
    let (storage, old) = (&layer.storage, layer.size_bytes);
    if storage.file().is_block_device() {
        return Err(Failure::of_file(&layer.path, "a block device has the size that it has"));
    }
    if preallocation == PreallocationChoice::Metadata {
        let message = "--preallocation metadata: a raw image has none; falloc or full";
        return Err(Failure::usage(message));
    }
    let resized = async {
        storage.set_len(new).await?;
        match preallocation {
            PreallocationChoice::Falloc => storage.zero(old, new - old).await?,
            PreallocationChoice::Full => storage.write_zeros(old, new - old).await?,
            PreallocationChoice::Off | PreallocationChoice::Metadata => {}
        }
        storage.flush().await
    };
    resized.await.map_err(|error| Failure::of_file(&layer.path, error))
}

async fn resize_qcow2(layer: Layer, new: u64, preallocation: PreallocationChoice) -> Result<()> {
    let old = layer.size_bytes;
    let behind = open_behind(&layer, Access::Read).await?;
    if !behind.is_empty() && preallocation != PreallocationChoice::Off {
        let message =
            "--preallocation: what is allocated would hide the backing file; leave it out";
        return Err(Failure::of_file(&layer.path, message));
    }
    let below = if behind.is_empty() { None } else { Some(Disk::to_read(behind).await?) };
    // One that cannot be written says why.
    layer.image(true).await?;
    let path = layer.path.clone();
    let storage = layer.with_data_file(Access::Write)?.storage;
    let target = Target::qcow2(&path, storage, true, below, false).await?;
    let Some(image) = target.image() else { return Ok(()) };
    let mut bitmaps = Bitmaps::load(&path, target.storage(), image).await?;
    let contents = Contents::load(&bitmaps, new).await?;
    bitmaps.begin_use().await?;
    let changed = match new > old {
        true => grow(&target, image, old, new, preallocation).await,
        false => cut(&target, image, new).await,
    };
    let stored = match &changed {
        Ok(()) => bitmaps.change(&contents.new).await,
        Err(_) if image.size_bytes() == old => bitmaps.change(&contents.old).await,
        // They stay in use: they fit neither size.
        Err(_) => Ok(()),
    };
    let finished = target.finish().await;
    changed.and(stored).and(finished)
}

/// What bitmaps are to hold afterwards.
#[derive(Default)]
struct Contents {
    /// If the size stays.
    old: Vec<BitmapChange>,
    /// If it is the new one: what is added is dirty.
    new: Vec<BitmapChange>,
}

impl Contents {
    async fn load(bitmaps: &Bitmaps<'_>, new: u64) -> Result<Self> {
        let mut all = Self::default();
        for entry in bitmaps.entries() {
            match bitmaps.trust(entry) {
                Trust::Unknown => return Err(bitmaps.unknown(&entry.name_lossy())),
                Trust::Inconsistent => {}
                Trust::Stored => {
                    let (name, old) =
                        (entry.name_lossy().into_owned(), bitmaps.content(entry).await?);
                    let granules = old.granules.resized(new, Extension::Dirty);
                    let granules =
                        granules.map_err(|error| Failure::of_file(bitmaps.path(), error))?;
                    let new = Content { granules, auto: old.auto };
                    all.new.push(BitmapChange::Store(name.clone(), new));
                    all.old.push(BitmapChange::Store(name, old));
                }
            }
        }
        Ok(all)
    }
}

async fn cut(target: &Target, image: &Image, new: u64) -> Result<()> {
    let fail = |error: Error| Failure::of_file(target.path(), error);
    let storage = target.storage();
    image.resize(storage, new).await.map_err(fail)?;
    match image.info().raw_external_data {
        true => storage.data().set_len(new).await.map_err(fail),
        false => Ok(()),
    }
}

async fn grow(
    target: &Target,
    image: &Image,
    old: u64,
    new: u64,
    preallocation: PreallocationChoice,
) -> Result<()> {
    let fail = |error: Error| Failure::of_file(target.path(), error);
    let storage = target.storage();
    if image.info().raw_external_data {
        storage.data().set_len(new).await.map_err(fail)?;
    }
    let added = async {
        image.extend(storage, new).await.map_err(fail)?;
        // What the last cluster holds past the old end, and what a longer backing has there.
        let end = target.below_bytes().max(old.next_multiple_of(image.cluster_bytes())).min(new);
        if end > old {
            target.zero(old, end - old).await?;
        }
        allocate(image, storage, old, new, preallocation).await.map_err(fail)?;
        image.flush(storage).await.map_err(fail)
    };
    if let Err(failure) = added.await {
        // Nothing has told of the new size yet.
        if let Err(error) = image.resize(storage, old).await {
            tracing::warn!("`{}` keeps what was added: {error}", target.path().display());
        }
        return Err(failure);
    }
    image.resize(storage, new).await.map_err(fail)
}

/// Takes room for a part of the disk that shows zeros.
async fn allocate(
    image: &Image,
    storage: &FileStorage,
    start: u64,
    end: u64,
    preallocation: PreallocationChoice,
) -> blockloom_qcow2::Result<()> {
    if preallocation == PreallocationChoice::Off {
        return Ok(());
    }
    let turn = image.enter();
    let mut at = start;
    while at < end {
        let step = image.prepare_write(&turn, storage, at, end - at).await?;
        at += match step {
            // The rest of the last cluster.
            Step::InPlace { len, .. } => len,
            Step::Allocate(room) => {
                let (span, len) = (room.span(), room.len());
                let (host, bytes) = (span.start, span.end - span.start);
                match preallocation {
                    PreallocationChoice::Full => storage.data().write_zeros(host, bytes).await?,
                    PreallocationChoice::Falloc => storage.data().zero(host, bytes).await?,
                    _ if !room.reads_zero() => storage.data().zero(host, bytes).await?,
                    _ => {
                        let data = storage.data();
                        data.set_len(data.len_bytes().await?.max(span.end)).await?;
                    }
                }
                image.commit(storage, room).await?;
                len
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_changes() {
        let check = |text: &str, expect: Option<Change>| {
            assert_eq!(parse(text).ok(), expect, "{text}");
        };
        check("64K", Some(Change::To(65_536)));
        check("+1GiB", Some(Change::Longer(1 << 30)));
        check("-512", Some(Change::Shorter(512)));
        check("", None);
        check("+", None);
        check("1X", None);
    }
}
