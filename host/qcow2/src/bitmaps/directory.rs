//! The directory of an open image: what there is, and what of it may be trusted.

use super::BitmapImage;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Header;
use crate::format::bitmap::{BitmapEntry, encode_directory, flag, parse_directory};
use crate::format::extension::BitmapsExtension;
use crate::format::header::features;
use crate::format::record::Record;
use crate::limits::{BITMAP_DIRECTORY_MAX_BYTES, BITMAPS_MAX};
use crate::storage::Storage;

/// What may be done with a stored bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its bits are what they were when it was stored.
    Stored,
    /// Its bits mean nothing: it was not stored after its last use, or the image was changed by somebody who
    /// does not know of bitmaps.
    Inconsistent,
    /// Nobody here knows what it is: it is kept.
    Unknown,
}

/// The bitmap directory, and where it is. Its methods are called one at a time; a future that is dropped
/// leaves it usable, and the image consistent.
#[derive(Debug)]
pub struct Directory {
    pub(super) entries: Vec<BitmapEntry>,
    /// As in the header.
    pub(super) place: Option<BitmapsExtension>,
    /// The header says so.
    consistent: bool,
    /// What the header says of the bitmaps beside.
    pub(super) record: Option<Record>,
    /// What it says of the files below was so when it was read.
    is_record_current: bool,
    /// What the header says now is not known: a switch has failed, or was given up.
    pub(super) doubtful: bool,
}

impl Directory {
    /// Reads the directory. One that the header does not call consistent may be anything, and is read as
    /// far as it is one.
    ///
    /// # Errors
    /// `EIO` for a consistent one that contradicts itself or the specification; the container's.
    pub async fn load<I: BitmapImage>(image: &I) -> Result<Self> {
        let header = Self::header_on_disk(image).await?;
        let consistent = header.autoclear & features::BITMAPS != 0;
        let place = header.bitmaps();
        let entries = match place {
            Some(place) => read_entries(image, &header, place).await,
            None => Ok(Vec::new()),
        };
        let entries = match entries {
            Err(error) if error.kind() == ErrorKind::Corrupt && !consistent => Vec::new(),
            entries => entries?,
        };
        let consistent = consistent || place.is_none();
        let (record, is_record_current) = (header.record(), header.is_record_current());
        Ok(Self { entries, place, consistent, record, is_record_current, doubtful: false })
    }

    /// After the switch to these.
    pub(super) fn switched(
        entries: Vec<BitmapEntry>,
        place: Option<BitmapsExtension>,
        record: Option<Record>,
        is_record_current: bool,
    ) -> Self {
        Self { entries, place, consistent: true, record, is_record_current, doubtful: false }
    }

    async fn header_on_disk<I: BitmapImage>(image: &I) -> Result<Header> {
        let mut cluster = vec![0; image.header().cluster_size.bytes() as usize];
        image.storage().read(0, &mut cluster).await?;
        Header::parse(&cluster)
    }

    /// Reads it again if it is not known what is there.
    pub(super) async fn settle<I: BitmapImage>(&mut self, image: &I) -> Result<()> {
        if self.doubtful {
            *self = Self::load(image).await?;
        }
        Ok(())
    }

    /// Everything that is there, in its order.
    pub fn entries(&self) -> &[BitmapEntry] {
        &self.entries
    }

    /// Whether the header calls the directory consistent; one that is not there is.
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    /// What is recorded of the bitmaps beside, if it can be read.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Whether nobody else had opened the image for writing since the record was made, when it was read.
    pub fn is_record_current(&self) -> bool {
        self.is_record_current
    }

    /// The entry of this name.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn entry(&self, name: &[u8]) -> Result<&BitmapEntry> {
        let found = self.entries.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Error::new(ErrorKind::NotFound, format!("the image has no bitmap '{name}'"))
        })
    }

    /// What may be done with one of the entries.
    pub fn trust(&self, entry: &BitmapEntry) -> Trust {
        match entry.is_usable() {
            false => Trust::Unknown,
            true if entry.in_use() || !self.consistent => Trust::Inconsistent,
            true => Trust::Stored,
        }
    }

    /// Marks bitmaps as in use, durably, where they are: from now on each counts as inconsistent until it is
    /// stored. Power lost meanwhile leaves each marked or as it was.
    ///
    /// Besides those that are `wanted`, all that record from opening on ([`flag::AUTO`]) and cannot be kept
    /// up to date here.
    ///
    /// # Errors
    /// The container's; some may be marked then.
    pub async fn begin_use<I: BitmapImage>(
        &mut self,
        image: &I,
        wanted: impl Fn(&BitmapEntry) -> bool,
    ) -> Result<()> {
        self.settle(image).await?;
        let (Some(place), true) = (self.place, self.consistent) else { return Ok(()) };
        let mut entries = self.entries.clone();
        for entry in entries.iter_mut().filter(|entry| !entry.in_use()) {
            if wanted(entry) || entry.auto() && !entry.is_usable() {
                entry.flags |= flag::IN_USE;
            }
        }
        if entries == self.entries {
            return Ok(());
        }
        // Nothing but flags differ, and no flags lie across two sectors.
        let bytes = encode_directory(&entries)?;
        if bytes.len() as u64 != place.directory_len_bytes {
            return Err(Error::corrupt(
                "bitmap directory: it does not have the length that it has",
            ));
        }
        image.storage().write(place.directory_offset, &bytes).await?;
        image.flush().await?;
        self.entries = entries;
        Ok(())
    }
}

async fn read_entries<I: BitmapImage>(
    image: &I,
    header: &Header,
    place: BitmapsExtension,
) -> Result<Vec<BitmapEntry>> {
    let BitmapsExtension { bitmaps, directory_len_bytes: len, directory_offset: offset } = place;
    if bitmaps == 0 || bitmaps > BITMAPS_MAX || len > BITMAP_DIRECTORY_MAX_BYTES {
        let message = format!("bitmap directory of {bitmaps} entries, {len} bytes");
        return Err(Error::corrupt(message));
    }
    if offset == 0 || !header.cluster_size.is_aligned(offset) {
        return Err(Error::corrupt(format!("bitmap directory at {offset:#x}")));
    }
    check_within(image.storage(), offset, len, "bitmap directory").await?;
    let mut bytes = vec![0; len as usize];
    image.storage().read(offset, &mut bytes).await?;
    parse_directory(&bytes, bitmaps, header.cluster_size)
}

/// Refuses a range that is not all there: what is missing would be read as zeros, and zeros mean clean.
pub(super) async fn check_within<S: Storage>(
    storage: &S,
    offset: u64,
    len: u64,
    what: &str,
) -> Result<()> {
    let end = offset.checked_add(len);
    if end.is_some_and(|end| end <= i64::MAX as u64) && end <= Some(storage.len_bytes().await?) {
        return Ok(());
    }
    Err(Error::corrupt(format!("{what} at {offset:#x}, {len} bytes: past the end of the image")))
}
