//! The header as it lies in the container.

use crate::error::Result;
use crate::format::Header;
use crate::storage::Storage;

/// Reads the header, and refuses what this crate cannot handle.
///
/// # Errors
/// Those of [`Header::parse`] and [`Header::check_supported`], and the container's.
pub async fn read_header<S: Storage>(storage: &S) -> Result<Header> {
    let mut prefix = [0; Header::PREFIX_BYTES];
    storage.read(0, &mut prefix).await?;
    let mut cluster = vec![0; Header::cluster_size_in(&prefix)?.bytes() as usize];
    storage.read(0, &mut cluster).await?;
    let header = Header::parse(&cluster)?;
    header.check_supported()?;
    Ok(header)
}
