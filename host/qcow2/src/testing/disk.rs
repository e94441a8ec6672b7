//! A virtual disk over an image: the guest I/O that the engine leaves to its caller, as plain as can be.

use super::MemoryStorage;
use crate::error::Result;
use crate::format::{CompressedData, compressed};
use crate::image::{Allocation, FillSource, Image, MappingKind, Step, Turn};
use crate::storage::Storage;

/// An image with its containers.
pub struct Disk {
    /// The image.
    pub image: Image,
    /// Metadata, and guest data if there is no external file.
    pub container: Container,
    /// What shows where nothing is allocated.
    pub backing: Option<Vec<u8>>,
}

/// A container, and the external data file if there is one: a flush is for both.
#[derive(Default)]
pub struct Container {
    /// The image file.
    pub file: MemoryStorage,
    /// Its data file.
    pub data: Option<MemoryStorage>,
}

impl Container {
    /// Where guest data is.
    pub fn data(&self) -> &MemoryStorage {
        self.data.as_ref().unwrap_or(&self.file)
    }
}

impl Storage for Container {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read(offset, buf).await
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write(offset, bytes).await
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.file.zero(offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        if let Some(data) = &self.data {
            data.flush().await?;
        }
        self.file.flush().await
    }

    fn end_bytes(&self) -> Option<u64> {
        self.file.end_bytes()
    }

    async fn len_bytes(&self) -> Result<u64> {
        self.file.len_bytes().await
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        self.file.set_len(len_bytes).await
    }
}

impl Disk {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Those of the image and its containers.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let turn = self.image.enter();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let len = (buf.len() - done) as u64;
            let mapping = match self.image.map_cached(&turn, at, len) {
                Some(mapping) => mapping,
                None => self.image.map(&turn, &self.container, at, len).await?,
            };
            assert!(mapping.len > 0 && mapping.len <= len);
            let part = &mut buf[done..done + mapping.len as usize];
            match mapping.kind {
                MappingKind::Data(host) => self.container.data().read(host.0, part).await?,
                MappingKind::Zero(_) => part.fill(0),
                MappingKind::Unallocated => self.read_below(at, part),
                MappingKind::Compressed(data) => self.read_compressed(at, data, part).await?,
            }
            done += mapping.len as usize;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of the image and its containers; part of the bytes may have been written.
    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let turn = self.image.enter();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            done += self.write_part(&turn, at, &bytes[done..]).await?;
        }
        Ok(())
    }

    async fn write_part(&self, turn: &Turn<'_>, offset: u64, bytes: &[u8]) -> Result<usize> {
        let len = bytes.len() as u64;
        let data = self.container.data();
        if let Some((host, len)) = self.image.prepare_write_cached(turn, offset, len) {
            data.write(host.0, &bytes[..len as usize]).await?;
            return Ok(len as usize);
        }
        match self.image.prepare_write(turn, &self.container, offset, len).await? {
            Step::InPlace { host, len } => {
                data.write(host.0, &bytes[..len as usize]).await?;
                Ok(len as usize)
            }
            Step::Allocate(allocation) => {
                let len = allocation.len() as usize;
                assert!(allocation.offset() == offset && len > 0 && len <= bytes.len());
                if let Err(error) = self.fill(&allocation, &bytes[..len]).await {
                    allocation.release();
                    return Err(error);
                }
                self.image.commit(&self.container, allocation).await?;
                Ok(len)
            }
        }
    }

    /// Writes an allocation's part and fills.
    async fn fill(&self, allocation: &Allocation<'_>, bytes: &[u8]) -> Result<()> {
        let data = self.container.data();
        data.write(allocation.host().0, bytes).await?;
        for fill in allocation.fills() {
            let mut buf = vec![0; fill.len as usize];
            match fill.source {
                FillSource::Below => self.read_below(fill.offset, &mut buf),
                FillSource::Zero if allocation.reads_zero() => continue,
                FillSource::Zero => (),
                FillSource::Host(host) => data.read(host.0, &mut buf).await?,
                FillSource::Compressed(data) => {
                    self.read_compressed(fill.offset, data, &mut buf).await?;
                }
            }
            data.write(fill.host.0, &buf).await?;
        }
        Ok(())
    }

    async fn read_compressed(
        &self,
        offset: u64,
        data: CompressedData,
        part: &mut [u8],
    ) -> Result<()> {
        let mut packed = vec![0; data.len_bytes as usize];
        self.container.file.read(data.host.0, &mut packed).await?;
        let mut cluster = vec![0; self.image.cluster_bytes() as usize];
        compressed::decompress(self.image.info().compression, &packed, &mut cluster)?;
        let start = (offset % self.image.cluster_bytes()) as usize;
        part.copy_from_slice(&cluster[start..start + part.len()]);
        Ok(())
    }

    /// Writes the cluster at `offset`, or the first `bytes` of it if the disk ends there: compressed, if that makes
    /// it smaller.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub async fn write_compressed(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (kind, cluster_bytes) = (self.image.info().compression, self.image.cluster_bytes());
        let packed = compressed::compress_padded(kind, bytes, cluster_bytes as usize)?;
        let Some(packed) = packed else { return self.write(offset, bytes).await };
        let (turn, lens) = (self.image.enter(), [packed.len() as u64]);
        let room = self.image.prepare_compressed_write(&turn, &self.container, offset, &lens, 1);
        let Some(room) = room.await? else { return self.write(offset, bytes).await };
        if let Err(error) = self.container.file.write(room.host().0, &packed).await {
            room.release();
            return Err(error);
        }
        self.image.commit(&self.container, room).await
    }

    fn read_below(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let Some(backing) = &self.backing else { return };
        let start = backing.len().min(offset as usize);
        let part = &backing[start..backing.len().min(start + buf.len())];
        buf[..part.len()].copy_from_slice(part);
    }
}

/// What tests put into compressed clusters.
pub const COMPRESSED: u8 = 0xcc;
