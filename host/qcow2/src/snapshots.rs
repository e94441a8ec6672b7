//! Internal snapshots of an image that nobody has open: created, applied, deleted.
//!
//! Each operation counts the uses of all clusters first, as a check does, and refuses a damaged image. Then
//! it writes new tables to free clusters, marks the image as dirty, raises refcounts, and switches the
//! header to the new tables with one write of one sector. A repair then makes refcounts and flags what the
//! new tables ask for, and takes the mark back.
//!
//! Power loss leaves the image as before or as after, to be repaired when it is opened for writing. Version
//! 2 has no mark that says so: there are leaks then, and flags that disagree with refcounts that are too
//! large. Neither harms data.

#[cfg(test)]
mod tests;

use crate::check::{CheckOptions, Repair, Scan, check};
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{features, fields};
use crate::format::snapshot::Snapshot;
use crate::format::{Header, HostOffset, Version};
use crate::limits::{L1_MAX_BYTES, SNAPSHOT_TABLE_MAX_BYTES, SNAPSHOTS_MAX};
use crate::storage::Storage;
use crate::words::Words;
use crate::{read_header, snapshot_table};

/// Bit 63 of an L1 entry.
const COPIED: u64 = 1 << 63;
/// Bytes of the header that one write changes: size, tables, snapshots, features; within one sector.
const SWITCH: std::ops::Range<usize> = fields::SIZE as usize..fields::FEATURES as usize + 24;

/// A snapshot to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name, not empty, not that of another one.
    pub name: Vec<u8>,
    /// Now, seconds since the Epoch.
    pub date_seconds: u32,
    /// And the part of a second, nanoseconds.
    pub date_nanoseconds: u32,
}

/// The internal snapshots, in the table's order.
///
/// # Errors
/// `EIO` for a broken table; those of [`read_header`].
pub async fn list<S: Storage>(storage: &S) -> Result<Vec<Snapshot>> {
    let header = read_header(storage).await?;
    Ok(snapshot_table::load(storage, &header).await?.snapshots)
}

/// Takes a snapshot; gives its id.
///
/// # Errors
/// `EEXIST` if the name is taken, `ENOTSUP` with an external data file, `ENOSPC` if refcounts are too
/// narrow or there are too many snapshots, `EIO` for a damaged image; the container's errors.
pub async fn create<S: Storage>(
    storage: &S,
    new: NewSnapshot,
    options: &CheckOptions,
) -> Result<Vec<u8>> {
    let header = read_header(storage).await?;
    if header.has_external_data() {
        let message = "snapshots: an image with an external data file has none";
        return Err(Error::new(ErrorKind::NotSupported, message));
    }
    let mut snapshots = snapshot_table::load(storage, &header).await?.snapshots;
    let id = next_id(&snapshots, &new.name)?;
    let mut scan = Scan::of_sound_image(storage, &header, options).await?;
    let entries = u64::from(header.l1_entries);
    scan.use_all_of(header.l1_offset, entries).await?;
    let l1_table = place(&mut scan, &header, entries * 8)?;
    snapshots.push(Snapshot {
        l1_table,
        l1_entries: header.l1_entries,
        id: id.clone(),
        name: new.name,
        date_seconds: new.date_seconds,
        date_nanoseconds: new.date_nanoseconds,
        virtual_size: Some(header.size_bytes),
        ..Snapshot::default()
    });
    let mut next = header.clone();
    let table = place_table(&mut scan, &mut next, &snapshots)?;
    scan.check_width()?;
    copy_l1(storage, header.l1_offset, entries, l1_table).await?;
    storage.write(next.snapshots_offset.0, &table).await?;
    scan.settle().await?;
    drop(scan);
    switch(storage, next, options).await?;
    Ok(id)
}

/// Gives the image the contents, and the size, of a snapshot; what it had otherwise is lost.
///
/// # Errors
/// `ENOENT`; `ENOTSUP` if there are persistent bitmaps, which could not tell what changes; as
/// [`create`] otherwise.
pub async fn apply<S: Storage>(
    storage: &S,
    id_or_name: &[u8],
    options: &CheckOptions,
) -> Result<()> {
    let header = read_header(storage).await?;
    let snapshots = snapshot_table::load(storage, &header).await?.snapshots;
    let snapshot = &snapshots[find(&snapshots, id_or_name)?];
    if header.bitmaps().is_some() && header.autoclear & features::BITMAPS != 0 {
        let message = "snapshot: the image has persistent bitmaps, which would miss the change: \
                       remove them first";
        return Err(Error::new(ErrorKind::NotSupported, message));
    }
    let mut next = header.clone();
    next.size_bytes = snapshot.virtual_size.unwrap_or(header.size_bytes);
    let (from, entries) = (snapshot.l1_table, u64::from(snapshot.l1_entries));
    let needed = header.l2_format().l1_entries_of(next.size_bytes).max(entries);
    next.l1_entries = u32::try_from(needed)
        .ok()
        .filter(|_| needed * 8 <= L1_MAX_BYTES)
        .ok_or_else(|| Error::corrupt("snapshot: its virtual size is too large for an L1 table"))?;
    let mut scan = Scan::of_sound_image(storage, &header, options).await?;
    scan.use_all_of(from, entries).await?;
    next.l1_offset = place(&mut scan, &header, needed * 8)?;
    scan.check_width()?;
    zero_l1(storage, next.l1_offset, needed).await?;
    copy_l1(storage, from, entries, next.l1_offset).await?;
    scan.settle().await?;
    scan.clear_copied(from, entries).await?;
    drop(scan);
    switch(storage, next, options).await
}

/// Removes a snapshot, and frees what it alone has.
///
/// # Errors
/// `ENOENT`; as [`create`] otherwise.
pub async fn delete<S: Storage>(
    storage: &S,
    id_or_name: &[u8],
    options: &CheckOptions,
) -> Result<()> {
    let header = read_header(storage).await?;
    let mut snapshots = snapshot_table::load(storage, &header).await?.snapshots;
    let index = find(&snapshots, id_or_name)?;
    snapshots.remove(index);
    let mut scan = Scan::of_sound_image(storage, &header, options).await?;
    let mut next = header.clone();
    let table = place_table(&mut scan, &mut next, &snapshots)?;
    scan.check_width()?;
    if !table.is_empty() {
        storage.write(next.snapshots_offset.0, &table).await?;
    }
    scan.settle().await?;
    drop(scan);
    switch(storage, next, options).await
}

/// Where a snapshot is in the table: by id, else by name, as QEMU looks.
fn find(snapshots: &[Snapshot], id_or_name: &[u8]) -> Result<usize> {
    let by = |field: fn(&Snapshot) -> &Vec<u8>| {
        snapshots.iter().position(|snapshot| field(snapshot) == id_or_name)
    };
    by(|snapshot| &snapshot.id).or_else(|| by(|snapshot| &snapshot.name)).ok_or_else(|| {
        let name = String::from_utf8_lossy(id_or_name);
        Error::new(ErrorKind::NotFound, format!("there is no snapshot '{name}'"))
    })
}

/// One more than the largest number that is an id, as QEMU counts.
fn next_id(snapshots: &[Snapshot], name: &[u8]) -> Result<Vec<u8>> {
    let text = String::from_utf8_lossy(name);
    if name.is_empty() || name.len() > u16::MAX.into() {
        return Err(Error::invalid("snapshot: a name of 1 to 65535 bytes is needed"));
    }
    if snapshots.iter().any(|snapshot| snapshot.name == name) {
        return Err(Error::new(ErrorKind::Exists, format!("snapshot '{text}' exists already")));
    }
    if snapshots.len() as u64 >= SNAPSHOTS_MAX.into() {
        let message = format!("snapshot '{text}': there are {SNAPSHOTS_MAX} already");
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    let number = |snapshot: &Snapshot| std::str::from_utf8(&snapshot.id).ok()?.parse::<u64>().ok();
    let last = snapshots.iter().filter_map(number).max().unwrap_or(0);
    Ok(last.saturating_add(1).to_string().into_bytes())
}

/// Room for a table; nowhere if it is empty.
fn place<S: Storage>(
    scan: &mut Scan<'_, S>,
    header: &Header,
    len_bytes: u64,
) -> Result<HostOffset> {
    match header.cluster_size.clusters_of(len_bytes) {
        0 => Ok(HostOffset(0)),
        clusters => scan.place(clusters),
    }
}

/// Room for the snapshot table, which the header to come refers to; gives its bytes.
fn place_table<S: Storage>(
    scan: &mut Scan<'_, S>,
    next: &mut Header,
    snapshots: &[Snapshot],
) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        let mut snapshot = snapshot.clone();
        if next.version >= Version::V3 && !snapshot.is_complete() {
            snapshot.virtual_size = Some(next.size_bytes);
        }
        snapshot.encode_into(&mut table)?;
    }
    if table.len() as u64 > SNAPSHOT_TABLE_MAX_BYTES {
        return Err(Error::new(ErrorKind::NoSpace, "snapshot: the table is full"));
    }
    next.snapshots = snapshots.len() as u32;
    next.snapshots_offset = place(scan, next, table.len() as u64)?;
    Ok(table)
}

/// Copies an L1 table; nothing that the copy refers to is its own.
async fn copy_l1<S: Storage>(
    storage: &S,
    from: HostOffset,
    entries: u64,
    to: HostOffset,
) -> Result<()> {
    const PIECE_BYTES: usize = 64 << 10;
    let mut words = Words::new(storage, from, entries);
    let (mut piece, mut at) = (Vec::with_capacity(PIECE_BYTES), to.0);
    while let Some((index, word)) = words.next().await? {
        piece.extend((word & !COPIED).to_be_bytes());
        if piece.len() == PIECE_BYTES || index + 1 == entries {
            storage.write(at, &piece).await?;
            at += piece.len() as u64;
            piece.clear();
        }
    }
    Ok(())
}

/// Entries past those of a shorter table are zero.
async fn zero_l1<S: Storage>(storage: &S, at: HostOffset, entries: u64) -> Result<()> {
    if entries == 0 { Ok(()) } else { storage.zero(at.0, entries * 8).await }
}

/// Makes the new tables the image's, and everything else fit them.
async fn switch<S: Storage>(storage: &S, next: Header, options: &CheckOptions) -> Result<()> {
    // A repair may have moved the refcount table.
    let now = read_header(storage).await?;
    let mut next = Header {
        refcount_table_offset: now.refcount_table_offset,
        refcount_table_clusters: now.refcount_table_clusters,
        autoclear: next.autoclear & features::AUTOCLEAR_KNOWN,
        ..next
    };
    if next.version >= Version::V3 {
        next.incompatible |= features::DIRTY;
    }
    // Version 2 ends before the features: there, the backing's name may follow at once.
    let end = if next.version >= Version::V3 { SWITCH.end } else { fields::FEATURES as usize };
    storage.flush().await?;
    storage.write(fields::SIZE, &next.encode()?[SWITCH.start..end]).await?;
    storage.flush().await?;
    let report = check(storage, &CheckOptions { repair: Repair::All, ..*options }).await?;
    if report.is_damaged() {
        let first = report.findings.first().map_or("", |finding| finding);
        return Err(Error::corrupt(format!("after the change the image is damaged: {first}")));
    }
    Ok(())
}
