//! Opening an image.

use blockloom_qcow2::Storage;
use blockloom_qcow2::image::{Image, OpenOptions};

use super::storage::from_engine;
use super::{FILE, Qcow2Node};
use crate::error::{Error, ErrorKind, Result};

/// How an image is opened, and which children its node will have beside `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// To be changed.
    pub write: bool,
    /// There is a child `backing`: it shows where the image has no bytes of its own. Without one, zeros do,
    /// whatever the image names.
    pub backing: bool,
    /// There is a child `data-file`.
    pub data_file: bool,
    /// Most bytes of L2 tables in memory.
    pub l2_cache_bytes: u64,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        let l2_cache_bytes = OpenOptions::default().l2_cache_bytes;
        Self { write: false, backing: false, data_file: false, l2_cache_bytes }
    }
}

impl Qcow2Node {
    /// Opens the image in `storage`, which its child `file` will be. Reads only.
    ///
    /// # Errors
    /// `EINVAL` for what is no qcow2 image, `ENOTSUP` for features that are not known, `EIO` for one that
    /// contradicts itself; `EINVAL` when the options do not fit the image; the storage's.
    pub async fn open<S: Storage>(storage: &S, options: &Qcow2Options) -> Result<Self> {
        let open = OpenOptions {
            writable: options.write,
            l2_cache_bytes: options.l2_cache_bytes,
            has_backing: Some(options.backing),
            ..OpenOptions::default()
        };
        let image = Image::open(storage, &open).await.map_err(from_engine)?;
        let info = image.info();
        if info.external_data != options.data_file {
            let message = match info.external_data {
                true => "the image keeps its data in another file: give it a child `data-file`",
                false => "the image keeps its data itself: take its child `data-file` away",
            };
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if options.write && info.dirty {
            let message = "the image was not closed by who wrote it last, and counts its clusters \
                           late: `blockloom image check --repair=all` counts them again";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if info.corrupt {
            tracing::warn!(
                "an image is marked as corrupt: it can only be read until it has been repaired"
            );
        }
        let data = options.data_file.then_some(FILE + 1);
        let backing = options.backing.then_some(1 + data.unwrap_or(FILE));
        Ok(Self { image, info, write: options.write, data, backing })
    }
}
