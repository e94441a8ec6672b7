//! Changes of single fields of the header.

use std::sync::atomic::Ordering;

use super::Image;
use crate::error::Result;
use crate::format::Version;
use crate::format::header::fields;
use crate::storage::Storage;

impl Image {
    /// Writes a field of the header, durably. If that fails, or is dropped, nobody knows which value a crash
    /// leaves: until it is known again the header that is in memory counts, and the next one who changes a
    /// field, or makes anything durable, writes that first.
    ///
    /// The caller holds `header_changes`, and changes the header in memory afterwards.
    pub(super) async fn write_header_field<S: Storage>(
        &self,
        s: &S,
        offset: u64,
        value: &[u8],
    ) -> Result<()> {
        if self.header_in_doubt.swap(true, Ordering::AcqRel) {
            self.write_known_fields(s).await?;
        }
        s.write(offset, value).await?;
        s.flush().await?;
        self.header_in_doubt.store(false, Ordering::Release);
        Ok(())
    }

    /// Has the container's header be that in memory, durably, if it may be another.
    pub(super) async fn settle_header<S: Storage>(&self, s: &S) -> Result<()> {
        if !self.header_in_doubt.load(Ordering::Acquire) {
            return Ok(());
        }
        let _changing = self.header_changes.lock(0..1).await;
        self.write_known_fields(s).await?;
        s.flush().await?;
        self.header_in_doubt.store(false, Ordering::Release);
        Ok(())
    }

    /// All that [`Self::write_header_field`] may have changed.
    async fn write_known_fields<S: Storage>(&self, s: &S) -> Result<()> {
        let header = self.header().clone();
        s.write(fields::SIZE, &header.size_bytes.to_be_bytes()).await?;
        s.write(fields::L1, &header.l1_field()).await?;
        if header.version >= Version::V3 {
            s.write(fields::FEATURES, &header.features_field()).await?;
        }
        Ok(())
    }
}
