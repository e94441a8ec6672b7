//! The snapshot table as it lies in the container.

use crate::error::{Error, Result};
use crate::format::Header;
use crate::format::snapshot::{Parsed, Snapshot};
use crate::limits::{SNAPSHOT_TABLE_MAX_BYTES, SNAPSHOTS_MAX};
use crate::storage::Storage;

/// Bytes that are read at once, if an entry is not longer.
const PIECE_BYTES: usize = 64 << 10;

/// All internal snapshots of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotTable {
    /// In the table's order.
    pub snapshots: Vec<Snapshot>,
    /// Bytes of the table; the header does not tell.
    pub len_bytes: u64,
}

/// Reads the table.
///
/// # Errors
/// `EIO` for a table that is broken, larger than [`SNAPSHOT_TABLE_MAX_BYTES`], or goes on behind the last cluster
/// of the container, where zeros would be entries; the container's errors.
pub async fn load<S: Storage>(storage: &S, header: &Header) -> Result<SnapshotTable> {
    let (count, offset) = (header.snapshots, header.snapshots_offset.0);
    if count > SNAPSHOTS_MAX {
        return Err(Error::corrupt(format!("{count} snapshots: at most {SNAPSHOTS_MAX}")));
    }
    let mut table = SnapshotTable::default();
    let (mut bytes, mut start) = (Vec::new(), 0);
    let cluster_size = header.cluster_size;
    let container_end = cluster_size.clusters_of(storage.len_bytes().await?) << cluster_size.bits();
    while table.snapshots.len() < count as usize {
        match Snapshot::parse(&bytes[start..], header.cluster_size)? {
            Parsed::Entry(snapshot, len) => {
                table.snapshots.push(*snapshot);
                start += len;
                table.len_bytes += len as u64;
            }
            Parsed::Needs(len) => {
                bytes.drain(..start);
                start = 0;
                let have = bytes.len();
                let want = len.max(PIECE_BYTES);
                let end = table.len_bytes + want as u64;
                let at = offset.checked_add(table.len_bytes + have as u64);
                let Some(at) = at.filter(|_| end <= SNAPSHOT_TABLE_MAX_BYTES + PIECE_BYTES as u64)
                else {
                    return Err(Error::corrupt("snapshot table: too large"));
                };
                bytes.resize(want, 0);
                storage.read(at, &mut bytes[have..]).await?;
            }
        }
        if offset.saturating_add(table.len_bytes) > container_end {
            return Err(Error::corrupt("snapshot table: past the container's end"));
        }
        if table.len_bytes > SNAPSHOT_TABLE_MAX_BYTES {
            return Err(Error::corrupt("snapshot table: too large"));
        }
    }
    Ok(table)
}
