//! The bits of a stored bitmap.

use super::directory::check_within;
use super::{BitmapImage, Directory, Trust};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bitmap::{BitmapCluster, BitmapEntry};
use crate::limits::BITMAP_MAX_BYTES;
use crate::storage::Storage;

/// Most bytes read at once.
pub(super) const BATCH_BYTES: u64 = 1 << 20;

impl Directory {
    /// The bits of a bitmap over `size_bytes` bytes: granule 0 is the lowest bit of the first word, and bits
    /// past the last granule are zero. At most [`BITMAP_MAX_BYTES`]; words that are zero on trust of the
    /// table cost no memory before they are written.
    ///
    /// # Errors
    /// `ENOENT`; `EIO` for one that is inconsistent, or too short for the size, or contradicts the
    /// specification; `ENOTSUP` for one of which nobody here knows what it is.
    pub async fn load_words<I: BitmapImage>(
        &self,
        image: &I,
        name: &[u8],
        size_bytes: u64,
    ) -> Result<Vec<u64>> {
        let entry = self.entry(name)?;
        let name = entry.name_lossy();
        match self.trust(entry) {
            Trust::Stored => {}
            Trust::Inconsistent => {
                let message = format!("bitmap '{name}' is inconsistent: it was not stored");
                return Err(Error::corrupt(message));
            }
            Trust::Unknown => {
                let message = format!("bitmap '{name}' is of a kind that is not known");
                return Err(Error::new(ErrorKind::NotSupported, message));
            }
        }
        let bits = bits_of(size_bytes, entry.granularity_bits)?;
        let cluster = image.header().cluster_size;
        let needed = cluster.clusters_of(bits.div_ceil(8));
        if needed > u64::from(entry.table_entries) {
            let message = format!("bitmap '{name}' is too short for {size_bytes} bytes");
            return Err(Error::corrupt(message));
        }
        let mut table = read_table(image, entry).await?;
        table.truncate(needed as usize);
        let mut words = vec![0; bits.div_ceil(64) as usize];
        read_words(image, &table, &mut words).await?;
        if let (Some(last), used @ 1..) = (words.last_mut(), bits % 64) {
            *last &= (1 << used) - 1;
        }
        Ok(words)
    }
}

/// Bits of a bitmap over so many bytes.
///
/// # Errors
/// `EINVAL` above [`BITMAP_MAX_BYTES`], and for a granularity that is none.
pub(super) fn bits_of(size_bytes: u64, granularity_bits: u8) -> Result<u64> {
    if !BitmapEntry::GRANULARITY_BITS.contains(&granularity_bits) {
        return Err(Error::invalid(format!("a granularity of 2^{granularity_bits} bytes")));
    }
    let bits = size_bytes.div_ceil(1 << granularity_bits);
    if bits.div_ceil(8) > BITMAP_MAX_BYTES {
        let message = format!(
            "a bitmap over {size_bytes} bytes at {} bytes: a larger granularity is needed",
            1_u64 << granularity_bits
        );
        return Err(Error::invalid(message));
    }
    Ok(bits)
}

/// The table of a bitmap, every entry of it checked to be within the image.
pub(super) async fn read_table<I: BitmapImage>(
    image: &I,
    entry: &BitmapEntry,
) -> Result<Vec<BitmapCluster>> {
    let cluster = image.header().cluster_size;
    let len = u64::from(entry.table_entries) * 8;
    let what = format!("table of bitmap '{}'", entry.name_lossy());
    check_within(image.storage(), entry.table.0, len, &what).await?;
    let file_len = image.storage().len_bytes().await?;
    let mut bytes = vec![0; len as usize];
    image.storage().read(entry.table.0, &mut bytes).await?;
    let mut table = Vec::with_capacity(entry.table_entries as usize);
    for bytes in bytes.chunks_exact(8) {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        let decoded = BitmapCluster::decode(u64::from_be_bytes(word), cluster)?;
        if let BitmapCluster::Stored(host) = decoded
            && host.0.saturating_add(cluster.bytes())
                > cluster.clusters_of(file_len) << cluster.bits()
        {
            let message = format!("{what}: bits at {:#x}, past the end of the image", host.0);
            return Err(Error::corrupt(message));
        }
        table.push(decoded);
    }
    Ok(table)
}

/// Fills `words`, which are zero.
async fn read_words<I: BitmapImage>(
    image: &I,
    table: &[BitmapCluster],
    words: &mut [u64],
) -> Result<()> {
    let cluster = image.header().cluster_size;
    let cluster_words = (cluster.bytes() / 8) as usize;
    let batch_clusters = (BATCH_BYTES / cluster.bytes()).max(1) as usize;
    let file_len = image.storage().len_bytes().await?;
    let mut at = 0;
    while at < table.len() {
        let from = at * cluster_words;
        let BitmapCluster::Stored(host) = table[at] else {
            let end = words.len().min(from + cluster_words);
            if table[at] == BitmapCluster::Ones {
                words[from..end].fill(u64::MAX);
            }
            at += 1;
            continue;
        };
        let follows = |index: &usize| {
            let next = host.0 + ((index - at) as u64) * cluster.bytes();
            matches!(table[*index], BitmapCluster::Stored(host) if host.0 == next)
        };
        let end_limit = table.len().min(at + batch_clusters);
        let run = (at..end_limit).take_while(follows).count();
        let end = words.len().min(from + run * cluster_words);
        let mut bytes = vec![0; (end - from) * 8];
        if host.0.saturating_add(bytes.len() as u64) > file_len.saturating_add(7) {
            return Err(Error::corrupt(format!("bits of a bitmap at {:#x}: cut", host.0)));
        }
        image.storage().read(host.0, &mut bytes).await?;
        for (word, bytes) in words[from..end].iter_mut().zip(bytes.chunks_exact(8)) {
            let mut array = [0; 8];
            array.copy_from_slice(bytes);
            *word = u64::from_le_bytes(array);
        }
        at += run;
    }
    Ok(())
}
