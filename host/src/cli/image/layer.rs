//! One image of a chain: opened by its format, and the way to the image behind it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blockloom_qcow2::format::Header;
use blockloom_qcow2::image::{Image, OpenOptions};
use blockloom_qcow2::{Storage, read_header};
use clap::ValueEnum;

use super::failure::{Failure, Result};
use super::mapper::Mapper;
use crate::limits::BACKING_CHAIN_MAX;
use crate::node::{Access, FileStorage};

/// With which every qcow2 image begins (specification, header, `magic`).
const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of the header, version 3 (specification, header). No whole image is so short.
const QCOW2_MIN_BYTES: u64 = 104;
/// Bytes by which formats are told apart.
const HEAD_BYTES: usize = 512;
/// With which images of other formats begin, or have at an offset.
const FOREIGN: [(usize, &[u8], &str); 7] = [
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
];
/// Unit in which QEMU tells sizes, bytes.
const SECTOR_BYTES: u64 = 512;

/// What kind of image a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Format {
    /// The bytes of the disk, nothing else.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl Format {
    /// What an image's header calls the format of its backing.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        match name {
            "raw" | "file" | "host_device" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

fn foreign_format(head: &[u8]) -> Option<&'static str> {
    let is_it =
        |(at, magic): (usize, &[u8])| head.get(at..).is_some_and(|it| it.starts_with(magic));
    FOREIGN.iter().find(|(at, magic, _)| is_it((*at, magic))).map(|(.., name)| *name)
}

/// An open image.
#[derive(Debug)]
pub(super) struct Layer {
    /// As named by the user, or found by the name in the image above.
    pub path: PathBuf,
    pub storage: FileStorage,
    /// Of a qcow2 image.
    pub header: Option<Box<Header>>,
    /// Bytes of the disk that it shows: of a raw image, whole sectors.
    pub size_bytes: u64,
}

impl Layer {
    /// Opens an image; the format is found out if it is not given.
    pub(super) async fn open(path: &Path, format: Option<Format>, access: Access) -> Result<Self> {
        let storage = FileStorage::open(path, access)?;
        let fail = |error| Failure::of_file(path, error);
        let format = match format {
            Some(format) => format,
            None => {
                let mut head = [0; HEAD_BYTES];
                storage.read(0, &mut head).await.map_err(fail)?;
                if let Some(name) = foreign_format(&head) {
                    let message = format!(
                        "looks like an image of format {name}, which is not known here: -f raw takes its \
                         bytes as they are"
                    );
                    return Err(Failure::of_file(path, message));
                }
                if head.starts_with(MAGIC) { Format::Qcow2 } else { Format::Raw }
            }
        };
        let len_bytes = storage.length()?;
        if format == Format::Qcow2 && (1..QCOW2_MIN_BYTES).contains(&len_bytes) {
            let message = format!("is cut off: its {len_bytes} bytes are less than a header");
            return Err(Failure::of_file(path, message));
        }
        let header = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Box::new(read_header(&storage).await.map_err(fail)?)),
        };
        let size_bytes = match &header {
            Some(header) => header.size_bytes,
            None => sectors(storage.length()?),
        };
        Ok(Self { path: path.to_owned(), storage, header, size_bytes })
    }

    /// Opens a qcow2 image, by its magic.
    pub(super) async fn open_qcow2(path: &Path, access: Access) -> Result<(Self, Box<Header>)> {
        let layer = Self::open(path, None, access).await?;
        match layer.header.clone() {
            Some(header) => Ok((layer, header)),
            None => Err(Failure::of_file(path, "not a qcow2 image: this command works on those")),
        }
    }

    /// The engine on its metadata; on one that is to be changed only if it can be.
    pub(super) async fn image(&self, writable: bool) -> Result<Image> {
        let fail = |problem: &str| Err(Failure::of_file(&self.path, problem));
        if let Some(header) = &self.header {
            let table_end = header.l1_offset.0.checked_add(u64::from(header.l1_entries) * 8);
            if table_end.is_none_or(|end| end > self.storage.length().unwrap_or(0)) {
                return fail(
                    "is cut off: its L1 table is behind the end; `image check` shows what is left",
                );
            }
        }
        let options = OpenOptions { writable, ..OpenOptions::default() };
        let image = Image::open(&self.storage, &options).await;
        let image = image.map_err(|error| Failure::of_file(&self.path, error))?;
        let info = image.info();
        if writable && info.corrupt {
            return fail("it is marked as corrupt: `blockloom image check --repair` first");
        }
        if writable && info.dirty {
            return fail(
                "it was not closed by who wrote it last, and counts its clusters late: \
                 `blockloom image check --repair` counts them again",
            );
        }
        Ok(image)
    }

    /// What finds the places of its data.
    pub(super) async fn mapper(&self) -> Result<Mapper> {
        let header = self.header.as_deref();
        let image = match header {
            Some(_) => Some(self.image(false).await?),
            None => None,
        };
        let mapper = Mapper::new(&self.storage, header, image).await;
        mapper.map_err(|error| Failure::of_file(&self.path, error))
    }

    /// With the external data file open, if there is one.
    pub(super) fn with_data_file(mut self, access: Access) -> Result<Self> {
        if self.header.as_ref().is_some_and(|header| header.has_external_data()) {
            let data = FileStorage::open(&self.data_path(), access)?;
            self.storage = self.storage.with_data_file(Some(data));
        }
        Ok(self)
    }

    /// The name of the backing file as the image has it.
    pub(super) fn backing_name(&self) -> Option<String> {
        let name = self.header.as_ref()?.backing_name.as_ref()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// The format of the backing file as the image has it.
    pub(super) fn backing_format(&self) -> Option<String> {
        let name = self.header.as_ref()?.backing_format()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Where the backing file is: a relative name is seen from the image.
    pub(super) fn backing_path(&self) -> Option<PathBuf> {
        let name = self.header.as_ref()?.backing_name.as_ref()?;
        Some(beside(&self.path, OsStr::from_bytes(name).as_ref()))
    }

    /// The file that holds the data, for messages and maps.
    pub(super) fn data_path(&self) -> PathBuf {
        let name = self.header.as_ref().and_then(|header| header.data_file_name());
        match name.filter(|_| self.header.as_ref().is_some_and(|it| it.has_external_data())) {
            Some(name) => beside(&self.path, OsStr::from_bytes(name).as_ref()),
            None => self.path.clone(),
        }
    }
}

/// Opens an image and all that are behind it, the top one first.
///
/// # Errors
/// What opening one of them answers; a chain that comes back to itself or is longer than
/// [`BACKING_CHAIN_MAX`].
pub(super) async fn open_chain(
    path: &Path,
    format: Option<Format>,
    access: Access,
) -> Result<Vec<Layer>> {
    let top = Layer::open(path, format, access).await?;
    let mut chain = open_behind(&top, access).await?;
    chain.insert(0, top);
    Ok(chain)
}

/// Opens all images that are behind one; errors as of [`open_chain`].
pub(super) async fn open_behind(top: &Layer, access: Access) -> Result<Vec<Layer>> {
    let mut identities = vec![identity(top)?];
    let mut chain: Vec<Layer> = Vec::new();
    loop {
        let above = chain.last().unwrap_or(top);
        let Some(path) = above.backing_path() else { break };
        let fail = |problem: String| {
            let message = format!("backing file `{}`: {problem}", path.display());
            Err(Failure::of_file(&above.path, message))
        };
        if identities.len() >= BACKING_CHAIN_MAX {
            return fail(format!("the chain has more than {BACKING_CHAIN_MAX} images"));
        }
        if has_protocol(&path) {
            return fail("only files can be opened here, not what another protocol serves".into());
        }
        let format = match above.backing_format() {
            None => None,
            Some(name) => match Format::of_name(&name) {
                Some(format) => Some(format),
                None => return fail(format!("its format is `{name}`: raw and qcow2 can be read")),
            },
        };
        let layer = match Layer::open(&path, format, access).await {
            Ok(layer) => layer,
            Err(failure) => return fail(failure.message),
        };
        let identity = identity(&layer)?;
        if identities.contains(&identity) {
            return fail("it is in the chain already: the chain comes back to itself".into());
        }
        identities.push(identity);
        chain.push(layer);
    }
    Ok(chain)
}

fn identity(layer: &Layer) -> Result<(u64, u64)> {
    layer.storage.file().identity().map_err(|error| Failure::of_file(&layer.path, error))
}

/// Where a name in the image at `path` leads, as QEMU combines them.
pub(super) fn beside(path: &Path, name: &Path) -> PathBuf {
    let name = match name.as_os_str().as_bytes().strip_prefix(b"file:") {
        Some(rest) => Path::new(OsStr::from_bytes(rest)),
        None => name,
    };
    match path.parent() {
        Some(parent) if !has_protocol(name) => parent.join(name),
        _ => name.to_owned(),
    }
}

/// Whether a name begins with a protocol (`nbd:`, `json:`): a colon before the first slash.
pub(super) fn has_protocol(name: &Path) -> bool {
    let bytes = name.as_os_str().as_bytes();
    bytes.iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':')
}

/// A length as QEMU tells it: whole sectors.
pub(super) fn sectors(len_bytes: u64) -> u64 {
    len_bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(len_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_an_image_are_seen_from_it() {
        let check = |image: &str, name: &str, expect: &str| {
            assert_eq!(beside(Path::new(image), Path::new(name)), Path::new(expect));
        };
        check("top.qcow2", "base.img", "base.img");
        check("a/top.qcow2", "base.img", "a/base.img");
        check("a/top.qcow2", "../base.img", "a/../base.img");
        check("/a/top.qcow2", "/b/base.img", "/b/base.img");
        check("a/top.qcow2", "file:base.img", "a/base.img");
        check("a/top.qcow2", "nbd://host/x", "nbd://host/x");
        check("a/top.qcow2", "./b:c", "a/./b:c");
    }
}
