//! Opening an image over nodes that stand already.

use std::sync::Arc;

use blockloom_qcow2::image::{Image, OpenOptions};
use blockloom_qcow2::{self as qcow2, Storage};

use super::bitmaps::Bitmaps;
use super::storage::{from_engine, to_engine};
use super::{FILE, Qcow2Node, to_usize};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Children, NodeReader, OpenDriver};
use crate::io::BufMut;
use crate::node::{Node, NodeFuture, OpenMode};

/// How an image is opened, and which children its node will have beside `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// To be changed.
    pub write: bool,
    /// Position of a child `backing`: it shows where the image has no bytes of its own. Without one, zeros
    /// do, whatever the image names.
    pub backing: Option<usize>,
    /// Position of a child `data-file`.
    pub data_file: Option<usize>,
    /// Most bytes of L2 tables in memory.
    pub l2_cache_bytes: u64,
    /// Whether refcounts are written when the image is closed only; absent: as the image says.
    pub lazy_refcounts: Option<bool>,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        let l2_cache_bytes = OpenOptions::default().l2_cache_bytes;
        Self { write: false, backing: None, data_file: None, l2_cache_bytes, lazy_refcounts: None }
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
            has_backing: Some(options.backing.is_some()),
            lazy_refcounts: options.lazy_refcounts,
            ..OpenOptions::default()
        };
        let image = Image::open(storage, &open).await.map_err(from_engine)?;
        let info = image.info();
        if info.external_data != options.data_file.is_some() {
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
        let Qcow2Options { write, backing, data_file: data, .. } = *options;
        let backing = backing.unwrap_or_else(|| 1 + usize::from(data.is_some()));
        let mode = OpenMode { write, auto: false, for_job: false };
        let (image, bitmaps) = (Arc::new(image), Arc::<Bitmaps>::default());
        let (under_way, alarm) = Default::default();
        Ok(Self { image, info, mode, data, backing, bitmaps, under_way, alarm })
    }
}

impl OpenDriver for Qcow2Options {
    fn open<'a>(self: Box<Self>, children: &'a Children) -> NodeFuture<'a, Arc<dyn Node>> {
        Box::pin(async move {
            let node = Qcow2Node::open(&Unopened(children.get(FILE)?), &self).await?;
            Ok(Arc::new(node) as Arc<dyn Node>)
        })
    }
}

/// The container of an image that is being opened: read only.
struct Unopened<'c>(&'c NodeReader);

fn read_only<T>() -> qcow2::Result<T> {
    let message = "an image is not changed while it is being opened";
    Err(qcow2::Error::new(qcow2::ErrorKind::ReadOnly, message))
}

impl Storage for Unopened<'_> {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> qcow2::Result<()> {
        let rest = to_usize(self.len_bytes().await?.saturating_sub(offset));
        let (there, behind) = buf.split_at_mut(rest.min(buf.len()));
        behind.fill(0);
        if !there.is_empty() {
            let read = self.0.read(offset, BufMut::new(there.len())).await;
            there.copy_from_slice(&read.map_err(|error| to_engine(&error))?);
        }
        Ok(())
    }

    async fn write(&self, _: u64, _: &[u8]) -> qcow2::Result<()> {
        read_only()
    }

    async fn zero(&self, _: u64, _: u64) -> qcow2::Result<()> {
        read_only()
    }

    async fn discard(&self, _: u64, _: u64) -> qcow2::Result<()> {
        read_only()
    }

    async fn flush(&self) -> qcow2::Result<()> {
        Ok(())
    }

    fn end_bytes(&self) -> Option<u64> {
        let info = self.0.info().ok()?;
        (!info.growable).then_some(info.size_bytes)
    }

    async fn len_bytes(&self) -> qcow2::Result<u64> {
        self.0.len_bytes().map_err(|error| to_engine(&error))
    }

    async fn set_len(&self, _: u64) -> qcow2::Result<()> {
        read_only()
    }
}
