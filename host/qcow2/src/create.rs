//! Fresh images, laid out so that `qemu-img` finds nothing to say.
//!
//! The header comes first, then the refcount table, its blocks, the L1 table and, when preallocated, all
//! L2 tables and the data. Every number of this layout is known before the first write; the header is
//! written last, so that an image whose creation was cut short is no image.

mod header;
mod options;
mod plan;
#[cfg(test)]
mod tests;

pub use options::{Backing, CreateOptions, DataFile, Preallocation};

use plan::Plan;

use crate::error::Result;
use crate::format::{HostOffset, L1Entry, RefcountTableEntry};
use crate::storage::Storage;

/// Longest write of zeros, bytes.
const ZEROS_BYTES: usize = 1 << 20;

/// Makes an empty image of what is in `storage`; its former contents are lost.
///
/// With an external data file, `storage` is the container of the metadata alone: the caller makes the data
/// file as long as the virtual size, and preallocates it.
///
/// # Errors
/// `EINVAL` for options that do not go together (nothing has been written then); the container's errors.
pub async fn create<S: Storage>(storage: &S, options: &CreateOptions) -> Result<()> {
    let plan = Plan::new(options)?;
    let header = header::encode(&plan, options)?;
    let keeps_length = empty(storage, &plan).await?;
    storage.set_len(plan.file_bytes()).await?;
    write_refcounts(storage, &plan).await?;
    write_mapping(storage, &plan).await?;
    preallocate(storage, &plan, options.preallocation, keeps_length).await?;
    storage.flush().await?;
    storage.write(0, &header).await?;
    storage.flush().await
}

/// Takes a former image away, before anything of it is overwritten. Whether the container keeps its length,
/// and so its old bytes.
async fn empty<S: Storage>(storage: &S, plan: &Plan) -> Result<bool> {
    if storage.len_bytes().await? == 0 {
        return Ok(false);
    }
    storage.set_len(0).await?;
    let keeps_length = storage.len_bytes().await? > 0;
    if keeps_length {
        storage.zero(0, plan.cluster().bytes()).await?;
    }
    storage.flush().await?;
    Ok(keeps_length)
}

/// Every cluster up to the end has one user.
async fn write_refcounts<S: Storage>(storage: &S, plan: &Plan) -> Result<()> {
    let cluster = plan.cluster();
    let per_block = plan.width().block_entries(cluster);
    for index in 0..plan.refcount_blocks() {
        let used = (plan.clusters() - index * per_block).min(per_block);
        let mut block = vec![0; cluster.bytes() as usize];
        for entry in 0..used as usize {
            plan.width().set(&mut block, entry, 1)?;
        }
        storage.write(plan.refcount_block(index).0, &block).await?;
    }
    let blocks = (0..plan.refcount_blocks()).map(|index| plan.refcount_block(index));
    let mut table: Vec<u8> =
        blocks.flat_map(|at| RefcountTableEntry(at.0).0.to_be_bytes()).collect();
    table.resize(
        cluster.clusters_of(table.len() as u64).max(1) as usize * cluster.bytes() as usize,
        0,
    );
    storage.write(plan.refcount_table().0, &table).await
}

/// The L1 table, and the L2 tables of a preallocated image.
async fn write_mapping<S: Storage>(storage: &S, plan: &Plan) -> Result<()> {
    let mut l1 = vec![0; plan.l1_bytes() as usize];
    for index in 0..plan.l2_tables() {
        let entry = L1Entry::new(plan.l2_table(index), true);
        l1[index as usize * 8..][..8].copy_from_slice(&entry.0.to_be_bytes());
        storage.write(plan.l2_table(index).0, &plan.l2_bytes(index)?).await?;
    }
    if l1.is_empty() { Ok(()) } else { storage.write(plan.l1_table().0, &l1).await }
}

/// Sees to it that mapped data read as zeros.
async fn preallocate<S: Storage>(
    storage: &S,
    plan: &Plan,
    how: Preallocation,
    keeps_length: bool,
) -> Result<()> {
    let Some((HostOffset(start), len)) = plan.data() else { return Ok(()) };
    match how {
        Preallocation::Off | Preallocation::Metadata if !keeps_length => Ok(()),
        Preallocation::Off | Preallocation::Metadata | Preallocation::Falloc => {
            storage.zero(start, len).await
        }
        Preallocation::Full => {
            let zeros = vec![0; ZEROS_BYTES.min(len as usize)];
            let mut at = start;
            while at < start + len {
                let piece = (start + len - at).min(zeros.len() as u64);
                storage.write(at, &zeros[..piece as usize]).await?;
                at += piece;
            }
            Ok(())
        }
    }
}
