//! An image whose disk is written: copied into, or made longer.

use std::ops::Range;
use std::path::{Path, PathBuf};

use blockloom_qcow2::format::{CompressionType, HostOffset, compressed};
use blockloom_qcow2::image::{
    Allocation, Fill, FillSource, Image, ImageInfo, Mapping, MappingKind, OpenOptions, Step,
};
use blockloom_qcow2::{Error, ErrorKind, Result as EngineResult, Storage};

use super::disk::Disk;
use super::failure::{Failure, Result};
use crate::io::{Buf, BufMut};
use crate::limits::ZERO_CHUNK_BYTES;
use crate::node::FileStorage;

/// Compressed clusters have no blocks for themselves here: they are packed byte by byte, as QEMU does it, and fill a file
/// as well as they can. Nobody relies on one of them before all of the image is there: whoever fails to make it removes
/// it, or has to make it again. Those that an image had before share no block with them, as what is found first in an
/// image that has been opened is a new host cluster.
const BLOCK_BYTES: u64 = 1;

/// An image that is written, by one user.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    storage: FileStorage,
    /// `None` of a raw image.
    image: Option<(Image, ImageInfo)>,
    /// What shows where it has nothing.
    below: Option<Disk>,
    /// It shows zeros, or its backing, where nothing has been written.
    is_new: bool,
}

impl Target {
    pub(super) fn raw(path: &Path, storage: FileStorage, sync: bool, is_new: bool) -> Self {
        let is_new = is_new && !storage.file().is_block_device();
        let storage = if sync { storage } else { storage.without_sync() };
        Self { path: path.to_owned(), storage, image: None, below: None, is_new }
    }

    pub(super) async fn qcow2(
        path: &Path,
        storage: FileStorage,
        sync: bool,
        below: Option<Disk>,
        is_new: bool,
    ) -> Result<Self> {
        let storage = if sync { storage } else { storage.without_sync() };
        let options = OpenOptions { writable: true, ..OpenOptions::default() };
        let image = Image::open(&storage, &options).await;
        let image = image.map_err(|error| Failure::of_file(path, error))?;
        let info = image.info();
        let image = Some((image, info));
        Ok(Self { path: path.to_owned(), storage, image, below, is_new })
    }

    /// As the user has named it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn storage(&self) -> &FileStorage {
        &self.storage
    }

    pub(super) fn image(&self) -> Option<&Image> {
        self.image.as_ref().map(|(image, _)| image)
    }

    /// Bytes of what is behind it.
    pub(super) fn below_bytes(&self) -> u64 {
        self.below.as_ref().map_or(0, Disk::size_bytes)
    }

    /// Whether it shows zeros, or its backing, where nothing has been written.
    pub(super) fn reads_zero(&self) -> bool {
        self.is_new
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        self.image.as_ref().map_or(1, |(_, info)| info.cluster_bytes)
    }

    pub(super) fn compression(&self) -> CompressionType {
        self.image.as_ref().map_or(CompressionType::Deflate, |(_, info)| info.compression)
    }

    fn failed(&self, error: Error) -> Failure {
        Failure::of_file(&self.path, error)
    }

    /// Writes bytes of the disk.
    pub(super) async fn write(&self, offset: u64, bytes: &Buf) -> Result<()> {
        let written = match &self.image {
            None => self.storage.write_buf(offset, bytes.clone()).await,
            Some((image, _)) => self.write_by_steps(image, offset, bytes).await,
        };
        written.map_err(|error| self.failed(error))
    }

    /// Writes a whole cluster that has been compressed; not, if that saves nothing.
    pub(super) async fn write_compressed(&self, offset: u64, packed: &[u8]) -> Result<bool> {
        let Some((image, _)) = &self.image else {
            return Err(self.failed(Error::invalid("a raw image is not compressed")));
        };
        let written = async {
            let (turn, lens) = (image.enter(), [packed.len() as u64]);
            let room =
                image.prepare_compressed_write(&turn, &self.storage, offset, &lens, BLOCK_BYTES);
            let Some(room) = room.await? else { return Ok(false) };
            self.storage.write(room.host().0, packed).await?;
            image.commit(&self.storage, room).await?;
            Ok(true)
        };
        written.await.map_err(|error| self.failed(error))
    }

    /// Sees to it that a part of which nothing has been written reads as zeros.
    pub(super) async fn leave_zero(&self, offset: u64, len: u64) -> Result<()> {
        if self.is_new && offset >= self.below_bytes() {
            return Ok(());
        }
        self.zero(offset, len).await
    }

    /// Makes a part read as zeros.
    pub(super) async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let zeroed = match &self.image {
            None => self.storage.zero(offset, len).await,
            Some((image, info)) => self.zero_image(image, info, offset, len).await,
        };
        zeroed.map_err(|error| self.failed(error))
    }

    /// Whole units by the metadata, the rest by writes.
    async fn zero_image(
        &self,
        image: &Image,
        info: &ImageInfo,
        offset: u64,
        len: u64,
    ) -> EngineResult<()> {
        if info.raw_external_data {
            image.begin_modifying(&self.storage).await?;
            self.storage.data().zero(offset, len).await?;
        }
        let (whole, end) = (image.whole_units(offset, len), offset + len);
        let left = match whole.is_empty() {
            true => Vec::new(),
            false => image.zero(&self.storage, whole.start, whole.end - whole.start, false).await?,
        };
        for range in [offset..whole.start, whole.end..end].into_iter().chain(left) {
            self.write_zeros(image, range).await?;
        }
        Ok(())
    }

    /// Writes zeros where the range shows anything else.
    async fn write_zeros(&self, image: &Image, range: Range<u64>) -> EngineResult<()> {
        let mut at = range.start;
        while at < range.end {
            let left = (range.end - at).min(ZERO_CHUNK_BYTES as u64);
            let Mapping { len, kind } = {
                let turn = image.enter();
                image.map(&turn, &self.storage, at, left).await?
            };
            let shows_zeros = match kind {
                MappingKind::Zero(_) => true,
                // Past the end of a backing, too: it may get longer, and these stay zeros.
                MappingKind::Unallocated => self.below.is_none(),
                MappingKind::Data(_) | MappingKind::Compressed(_) => false,
            };
            if !shows_zeros {
                self.write_by_steps(image, at, &Buf::zeros(len as usize)).await?;
            }
            at += len;
        }
        Ok(())
    }

    async fn write_by_steps(&self, image: &Image, offset: u64, bytes: &Buf) -> EngineResult<()> {
        let turn = image.enter();
        let mut at = 0;
        while at < bytes.len() {
            let (from, left) = (offset + at as u64, (bytes.len() - at) as u64);
            let step = image.prepare_write(&turn, &self.storage, from, left).await?;
            let len = match &step {
                Step::InPlace { len, .. } => *len as usize,
                Step::Allocate(allocation) => allocation.len() as usize,
            };
            let part = bytes.slice(at..bytes.len().min(at + len));
            at += part.len();
            match step {
                Step::InPlace { host, .. } => self.storage.data().write_buf(host.0, part).await?,
                Step::Allocate(allocation) => self.write_new(image, allocation, part).await?,
            }
        }
        Ok(())
    }

    /// Writes to new clusters, with what surrounds the bytes there.
    async fn write_new(
        &self,
        image: &Image,
        allocation: Allocation<'_>,
        bytes: Buf,
    ) -> EngineResult<()> {
        let data = self.storage.data();
        for fill in allocation.fills() {
            if fill.source == FillSource::Zero && allocation.reads_zero() {
                continue;
            }
            let filled = self.fill(fill).await?;
            data.write_buf(fill.host.0, filled).await?;
        }
        data.write_buf(allocation.host().0, bytes).await?;
        image.commit(&self.storage, allocation).await
    }

    async fn fill(&self, fill: &Fill) -> EngineResult<Buf> {
        let len = fill.len as usize;
        match fill.source {
            FillSource::Zero => Ok(Buf::zeros(len)),
            FillSource::Below => match &self.below {
                None => Ok(Buf::zeros(len)),
                Some(below) => {
                    let read = below.read(fill.offset, BufMut::new(len)).await;
                    let read = read.map_err(|failure| {
                        Error::new(ErrorKind::Storage(libc::EIO), failure.message)
                    })?;
                    Ok(read.freeze())
                }
            },
            FillSource::Host(HostOffset(host)) => {
                Ok(self.storage.data().read_buf(host, BufMut::new(len)).await?.freeze())
            }
            FillSource::Compressed(packed) => {
                let (cluster_bytes, kind) = (self.cluster_bytes(), self.compression());
                let mut bytes = vec![0; packed.len_bytes as usize];
                self.storage.read(packed.host.0, &mut bytes).await?;
                let mut cluster = vec![0; cluster_bytes as usize];
                compressed::decompress(kind, &bytes, &mut cluster)?;
                let start = (fill.offset % cluster_bytes) as usize;
                Ok(Buf::copy_of(&cluster[start..start + len]))
            }
        }
    }

    /// Makes everything durable.
    pub(super) async fn finish(&self) -> Result<()> {
        let closed = match &self.image {
            None => self.storage.flush().await,
            Some((image, _)) => image.close(&self.storage).await,
        };
        closed.map_err(|error| self.failed(error))
    }
}
