//! `blockloom image resize`: a longer or shorter disk.

use std::path::PathBuf;

use blockloom_qcow2::format::Header;
use blockloom_qcow2::format::header::features;
use blockloom_qcow2::image::{Image, MappingKind, OpenOptions};
use blockloom_qcow2::{Error, Storage};

use super::failure::{Failure, Result};
use super::layer::{Format, Layer, sectors};
use crate::config::parse_size;
use crate::node::{Access, FileStorage};

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
    let fail = |error: Error| Failure::of_file(&path, error);
    match &layer.header {
        None if layer.storage.file().is_block_device() => {
            Err(Failure::of_file(&path, "a block device has the size that it has"))
        }
        None => {
            layer.storage.set_len(new).await.map_err(fail)?;
            layer.storage.flush().await.map_err(fail)
        }
        Some(header) => resize_qcow2(&layer, header, new).await,
    }
}

async fn resize_qcow2(layer: &Layer, header: &Header, new: u64) -> Result<()> {
    let fail = |error: Error| Failure::of_file(&layer.path, error);
    if header.autoclear & features::BITMAPS != 0 && header.bitmaps().is_some() {
        let message = "it has persistent bitmaps, which would not fit any more: remove them first";
        return Err(Failure::of_file(&layer.path, message));
    }
    let old = layer.size_bytes;
    let data = match header.has_external_data() {
        true => Some(FileStorage::open(&layer.data_path(), Access::Write)?),
        false => None,
    };
    let behind = backing_size(layer).await?;
    if new > old && behind > old {
        check_exposed(layer, header)?;
    }
    let raw_data = data.as_ref().filter(|_| header.has_raw_external_data());
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let storage = &layer.storage;
    let image = Image::open(storage, &options).await.map_err(fail)?;
    if let Some(data) = raw_data.filter(|_| new > old) {
        data.set_len(new).await.map_err(fail)?;
    }
    image.resize(storage, new).await.map_err(fail)?;
    if new > old {
        let added = clear_added(&image, storage, data.as_ref().unwrap_or(storage), old, behind);
        if let Err(error) = added.await {
            // What would show where nothing was is worse than the old size.
            image.resize(storage, old).await.map_err(fail)?;
            image.close(storage).await.map_err(fail)?;
            return Err(fail(error));
        }
    }
    image.close(storage).await.map_err(fail)?;
    match raw_data.filter(|_| new < old) {
        Some(data) => data.set_len(new).await.map_err(fail),
        None => Ok(()),
    }
}

/// The size of the disk behind an image; 0 without.
async fn backing_size(layer: &Layer) -> Result<u64> {
    let Some(path) = layer.backing_path() else { return Ok(0) };
    let format = layer.backing_format().and_then(|name| Format::of_name(&name));
    let backing = Layer::open(&path, format, Access::Read).await;
    Ok(backing.map_err(|failure| Failure::of_file(&layer.path, failure.message))?.size_bytes)
}

/// What a longer backing would show in what is added has to be hidden by whole units.
fn check_exposed(layer: &Layer, header: &Header) -> Result<()> {
    let unit = header.l2_format().unit_bytes();
    if layer.size_bytes.is_multiple_of(unit) {
        return Ok(());
    }
    let message = format!(
        "its backing file is longer, and its size is no multiple of {unit} bytes: the backing would \
         show; make an image of the new size over this one"
    );
    Err(Failure::of_file(&layer.path, message))
}

/// What is added reads as zeros: what the last cluster holds past the old end, and what the backing has there.
async fn clear_added(
    image: &Image,
    storage: &FileStorage,
    data: &FileStorage,
    old: u64,
    behind: u64,
) -> blockloom_qcow2::Result<()> {
    let (new, cluster) = (image.size_bytes(), image.cluster_bytes());
    if behind > old {
        let unit = image.zero_unit_bytes();
        let end = behind.next_multiple_of(unit).min(new);
        image.zero(storage, old, end - old, false).await?;
    }
    let turn = image.enter();
    let (mut at, end) = (old, old.next_multiple_of(cluster).min(new));
    while at < end {
        let mapping = image.map(&turn, storage, at, end - at).await?;
        match mapping.kind {
            MappingKind::Data(host) => data.write_zeros(host.0, mapping.len).await?,
            MappingKind::Zero(_) | MappingKind::Unallocated => {}
            _ => return Err(Error::invalid("the last cluster is compressed: convert the image")),
        }
        at += mapping.len;
    }
    data.flush().await
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
