//! A header over another one.

use std::ops::Range;

use super::BitmapsExtension;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extension::Extension;
use crate::format::header::{features, fields};
use crate::format::{Header, Version};
use crate::storage::Storage;

/// What a container writes wholly or not at all, bytes.
const SECTOR_BYTES: usize = 512;
/// Where `backing_file_offset` and `backing_file_size` are, 12 bytes.
const BACKING: Range<usize> = 8..20;
/// Where `header_length` is, 4 bytes.
const HEADER_LEN: usize = 100;
/// Type and length of an extension.
const EXTENSION_HEAD_BYTES: usize = 8;
/// Where the autoclear features are, 8 bytes.
const AUTOCLEAR: usize = fields::FEATURES as usize + 16;

/// Autoclear features that are not there while a header is laid out anew.
const NOT_BEFORE_THE_END: u64 = features::BITMAPS | features::RECORD;

/// The header with this bitmap directory, which is consistent; or with none.
pub fn with_bitmaps(header: &Header, bitmaps: Option<BitmapsExtension>) -> Header {
    let mut next = header.clone();
    let is_bitmaps = |extension: &Extension| matches!(extension, Extension::Bitmaps(_));
    let place = next.extensions.iter().position(is_bitmaps);
    match (place, bitmaps) {
        (Some(at), Some(bitmaps)) => next.extensions[at] = Extension::Bitmaps(bitmaps),
        (None, Some(bitmaps)) => next.extensions.push(Extension::Bitmaps(bitmaps)),
        (Some(at), None) => drop(next.extensions.remove(at)),
        (None, None) => {}
    }
    next.autoclear &= !features::BITMAPS;
    next.autoclear |= if bitmaps.is_some() { features::BITMAPS } else { 0 };
    next
}

/// Writes `header` over the one that the image has, durably. Whatever is lost of it, a crash leaves a header
/// that is read, with everything but the bitmaps extension as before or as in `header`; and what is left of
/// that extension is not called consistent. A change within one sector, as of a directory's place mostly is,
/// is all there or not at all.
///
/// Of extensions that differ, but for that of bitmaps, and those behind them, a crash may leave none.
///
/// # Errors
/// `ENOSPC` if the header does not fit the first cluster, or the backing file's name has no place there while
/// it moves; the container's.
pub async fn replace_header<S: Storage>(storage: &S, header: &Header) -> Result<()> {
    let new = header.encode()?;
    let mut now = vec![0; header.cluster_size.bytes() as usize];
    storage.read(0, &mut now).await?;
    let sectors = new.chunks(SECTOR_BYTES).zip(now.chunks(SECTOR_BYTES)).enumerate();
    let changed: Vec<usize> = sectors
        .filter_map(|(at, (new, now))| (!now.starts_with(new)).then_some(at * SECTOR_BYTES))
        .collect();
    if changed.is_empty() {
        return storage.flush().await;
    }
    let sector = |at: usize| &new[at..new.len().min(at + SECTOR_BYTES)];
    if let [at] = changed[..] {
        storage.write(at as u64, sector(at)).await?;
        return storage.flush().await;
    }
    // The first sector as it is, but that no bitmaps are consistent, the extensions end where they differ,
    // and the name is where nothing moves.
    let mut first = now[..SECTOR_BYTES].to_vec();
    if header.version >= Version::V3 {
        for (byte, gone) in first[AUTOCLEAR..].iter_mut().zip(NOT_BEFORE_THE_END.to_be_bytes()) {
            *byte &= !gone;
        }
    }
    let cut = cut(&now, header)?;
    let end_marker = [0; EXTENSION_HEAD_BYTES];
    if let Some(head) = cut.and_then(|cut| first.get_mut(cut..cut + EXTENSION_HEAD_BYTES)) {
        head.copy_from_slice(&end_marker);
    }
    if let Some(name) = header.backing_name.as_deref()
        && backing_of(&now) != backing_of(&new)
    {
        let place = aside(&now, &new, name.len())?;
        storage.write(place, name).await?;
        storage.flush().await?;
        let (offset, len) = (place.to_be_bytes(), (name.len() as u32).to_be_bytes());
        first[BACKING].copy_from_slice(&[&offset[..], &len].concat());
    }
    if first != now[..SECTOR_BYTES] {
        storage.write(0, &first).await?;
        storage.flush().await?;
    }
    let cut_behind = cut.filter(|cut| *cut >= SECTOR_BYTES);
    if let Some(cut) = cut_behind {
        storage.write(cut as u64, &end_marker).await?;
        storage.flush().await?;
    }
    let mut rest = new.get(SECTOR_BYTES..).unwrap_or_default().to_vec();
    if let Some(cut) = cut_behind
        && let Some(head) =
            rest.get_mut(cut - SECTOR_BYTES..cut - SECTOR_BYTES + EXTENSION_HEAD_BYTES)
    {
        head.copy_from_slice(&end_marker);
    }
    if !rest.is_empty() {
        storage.write(SECTOR_BYTES as u64, &rest).await?;
        storage.flush().await?;
    }
    if let Some(cut) = cut_behind
        && let Some(head) = new.get(cut..cut + EXTENSION_HEAD_BYTES)
    {
        storage.write(cut as u64, head).await?;
        storage.flush().await?;
    }
    storage.write(0, sector(0)).await?;
    storage.flush().await
}

/// Where the extensions of the header `now` are to end while what is behind changes: where the first begins
/// that is not in `header`, but for one of bitmaps. Extensions begin at multiples of 8, so that the first 8 bytes of each lie within
/// one sector. `None` if nothing but a bitmaps extension changes, which is read whatever is left of it.
fn cut(now: &[u8], header: &Header) -> Result<Option<usize>> {
    let old = Header::parse(now)?;
    let pairs = || old.extensions.iter().zip(&header.extensions);
    let is_alike = |(old, new): &(&Extension, &Extension)| {
        old == new || matches!((old, new), (Extension::Bitmaps(_), Extension::Bitmaps(_)))
    };
    if old.extensions.len() == header.extensions.len() && pairs().all(|pair| is_alike(&pair)) {
        return Ok(None);
    }
    // One of bitmaps has one length.
    let same = pairs().take_while(is_alike).count();
    let extensions = header.extensions[..same].to_vec();
    let up_to_there = Header { extensions, backing_name: None, ..header.clone() }.encode()?;
    // A header as older programs write it is shorter.
    let (old_len, new_len) = match header.version {
        Version::V2 => (0, 0),
        Version::V3 => (header_len(now), header_len(&up_to_there)),
    };
    let end = up_to_there.len() - EXTENSION_HEAD_BYTES;
    Ok(Some((end + old_len).saturating_sub(new_len)))
}

fn header_len(header: &[u8]) -> usize {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[HEADER_LEN..HEADER_LEN + 4]);
    u32::from_be_bytes(bytes) as usize
}

/// Where the name of the backing file is, and its bytes.
fn backing_of(header: &[u8]) -> (Range<u64>, &[u8]) {
    let (mut offset, mut len) = ([0; 8], [0; 4]);
    offset.copy_from_slice(&header[BACKING][..8]);
    len.copy_from_slice(&header[BACKING][8..]);
    let (offset, len) = (u64::from_be_bytes(offset), u32::from_be_bytes(len));
    let place = if offset == 0 { 0..0 } else { offset..offset.saturating_add(len.into()) };
    let name = header.get(place.start as usize..place.end as usize).unwrap_or_default();
    (place, name)
}

/// Where in the first cluster a name of `len` bytes neither touches the header `now` nor the `new` one.
fn aside(now: &[u8], new: &[u8], len: usize) -> Result<u64> {
    let place = backing_of(now).0.end.max(new.len() as u64);
    if place.saturating_add(len as u64) > now.len() as u64 {
        let message = "the first cluster has no room for another header extension";
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(place)
}
