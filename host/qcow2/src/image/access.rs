//! An image that becomes writable while it is open, or read-only.

use super::Image;
use super::open::{open_allocator, read_table};
use super::tables::words_of;
use crate::error::{Error, Result};
use crate::header_io::read_header;
use crate::storage::Storage;

impl Image {
    /// Whether it may be changed.
    pub fn is_writable(&self) -> bool {
        self.modifying.is_writable()
    }

    /// From now on it may be changed, as if it had been opened so. Reads only. To be called with no request in
    /// flight.
    ///
    /// # Errors
    /// As for [`Self::open`]; `EINVAL` for an image whose refcounts have to be rebuilt first; `EIO` if another
    /// program has changed it since it was opened. It is read-only then.
    pub async fn make_writable<S: Storage>(&self, s: &S) -> Result<()> {
        if self.is_writable() {
            return Ok(());
        }
        if self.modifying.was_dirty() {
            return Err(Error::invalid(
                "the image was not closed: its refcounts have to be rebuilt first",
            ));
        }
        let known = self.header().clone();
        let l1 = self.l1.load_full();
        let len_bytes = s.len_bytes().await?;
        let is_same = read_header(s).await? == known && l1.offset == known.l1_offset && {
            let table = read_table(s, l1.offset.0, l1.len() * 8, len_bytes).await?;
            words_of(&table).eq(l1.values())
        };
        if !is_same {
            let message = "another program has changed the image since it was opened";
            return Err(Error::corrupt(message));
        }
        let allocator = open_allocator(s, &known, &l1, true, len_bytes).await?;
        *self.allocator() = allocator;
        self.modifying.set_writable(true);
        Ok(())
    }

    /// Closes it, and from now on it may not be changed. To be called with no request in flight.
    ///
    /// # Errors
    /// As for [`Self::close`]: it may be changed still.
    pub async fn make_read_only<S: Storage>(&self, s: &S) -> Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        if !self.is_corrupt() {
            self.close(s).await?;
        }
        self.modifying.set_writable(false);
        Ok(())
    }
}
