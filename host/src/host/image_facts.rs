//! What the header of a qcow2 image says of the files beside it, read before anything is opened. It may block.

use std::path::Path;

use blockloom_qcow2::format::Header;
use blockloom_qcow2::format::header::features;

use crate::config::{BackingReference, DataFileSpec, ImageFacts};
use crate::io::read_head;

/// With which every image begins (specification, header, `magic`).
const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes that are read at first: the whole header of images with clusters of at most this size.
const HEAD_BYTES: u64 = 64 << 10;

/// What the image at `path` says; `None`: it is no qcow2 image.
///
/// # Errors
/// Why it cannot be read, or what is wrong with the header.
pub(in crate::host) fn image_facts(path: &Path) -> Result<Option<ImageFacts>, String> {
    let read = |bytes| read_head(path, bytes).map_err(|error| error.to_string());
    let mut head = read(HEAD_BYTES)?;
    let Some(prefix) = head.first_chunk::<{ Header::PREFIX_BYTES }>() else { return Ok(None) };
    if !prefix.starts_with(MAGIC) {
        return Ok(None);
    }
    let cluster_bytes = Header::cluster_size_in(prefix).map_err(|error| error.to_string())?.bytes();
    if cluster_bytes > HEAD_BYTES {
        head = read(cluster_bytes)?;
    }
    let header = Header::parse(&head).map_err(|error| error.to_string())?;
    header.check_supported().map_err(|error| error.to_string())?;
    facts_of(&header).map(Some)
}

fn facts_of(header: &Header) -> Result<ImageFacts, String> {
    let text = |what: &str, bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map(str::to_owned);
        text.map_err(|_| format!("the {what} is not UTF-8 text"))
    };
    let backing = match &header.backing_name {
        None => None,
        Some(name) => Some(BackingReference {
            name: text("name of its backing file", name)?,
            format: header
                .backing_format()
                .map(|format| text("format of its backing file", format))
                .transpose()?,
        }),
    };
    let name = header.data_file_name();
    Ok(ImageFacts {
        size_bytes: header.size_bytes,
        backing,
        data_file: match header.has_external_data() {
            true if header.has_raw_external_data() => DataFileSpec::Raw,
            true => DataFileSpec::Mapped,
            false => DataFileSpec::None,
        },
        data_file_name: name.map(|name| text("name of its data file", name)).transpose()?,
        is_dirty: header.incompatible & features::DIRTY != 0,
        is_left_open: header.autoclear & features::OPEN != 0,
    })
}
