//! What the bitmaps of an image need of it while it is in use.

use super::Image;
use super::allocator::Run;
use crate::bitmaps::{BitmapImage, replace_header, with_bitmaps};
use crate::error::{Error, Result};
use crate::format::extension::BitmapsExtension;
use crate::format::header::features;
use crate::format::record::Record;
use crate::format::{Header, HostOffset};
use crate::storage::Storage;

/// An image with its container: what [`crate::bitmaps`] works on.
#[derive(Debug)]
pub struct ImageFile<'i, S> {
    image: &'i Image,
    storage: &'i S,
}

impl Image {
    /// The image as its bitmaps see it. See [`Self::follow_bitmaps`].
    pub fn file<'i, S: Storage>(&'i self, storage: &'i S) -> ImageFile<'i, S> {
        ImageFile { image: self, storage }
    }
}

impl<S: Storage> BitmapImage for ImageFile<'_, S> {
    type Storage = S;

    fn storage(&self) -> &S {
        self.storage
    }

    fn header(&self) -> Header {
        self.image.header().clone()
    }

    async fn set_bitmaps(
        &self,
        bitmaps: Option<BitmapsExtension>,
        record: Option<&Record>,
        is_current: bool,
    ) -> Result<()> {
        self.image.begin_modifying(self.storage).await?;
        let _changing = self.image.header_changes.lock(0..1).await;
        let mut header = with_bitmaps(&self.image.header(), bitmaps);
        header.set_record(record, is_current);
        // If this fails, or is dropped, the directory may be any: nobody is to call it consistent again.
        self.image.header().autoclear &= !(features::BITMAPS | features::RECORD);
        replace_header(self.storage, &header).await?;
        *self.image.header() = header;
        Ok(())
    }

    async fn allocate(&self, clusters: u64) -> Result<HostOffset> {
        self.image.begin_modifying(self.storage).await?;
        let reserved = self.image.allocate_contiguous(self.storage, clusters.max(1)).await;
        let reserved = self.image.mark_if_corrupt(self.storage, reserved).await?;
        Ok(HostOffset(reserved.keep().first << self.image.format.cluster_size.bits()))
    }

    async fn free(&self, offset: HostOffset, clusters: u64) -> Result<()> {
        self.image.check_modifiable()?;
        let cluster_size = self.image.format.cluster_size;
        let run = Run::new(cluster_size.index_of(offset.0), clusters);
        let is_possible = {
            let allocator = self.image.allocator();
            let end = run.first.checked_add(clusters);
            cluster_size.is_aligned(offset.0)
                && end.is_some_and(|end| end <= allocator.reached())
                && !allocator.is_metadata(&run)
        };
        if !is_possible {
            let message = format!("{clusters} clusters at {:#x} are no bitmap's", offset.0);
            return Err(Error::corrupt(message));
        }
        self.image.frees.retire(&self.image.turns, run);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.image.flush(self.storage).await
    }
}
