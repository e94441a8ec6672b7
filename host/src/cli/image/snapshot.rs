//! `blockloom image snapshot`: the internal snapshots of an image.

use std::path::PathBuf;

use blockloom_qcow2::check::CheckOptions;
use blockloom_qcow2::format::snapshot::Snapshot;
use blockloom_qcow2::snapshot_table;
use blockloom_qcow2::snapshots::{self, NewSnapshot};

use super::failure::{Failure, Result};
use super::layer::Layer;
use super::output::{Lines, date, rounded_size};
use crate::io::wall_clock;
use crate::node::Access;
use crate::text::printable;

/// The table that `qemu-img snapshot -l` prints; dates are UTC.
pub(super) fn human_table(snapshots: &[Snapshot]) -> String {
    let row = |id: &str, tag: &str, size: &str, date: &str, clock: &str, icount: &str| {
        format!("{id:<7} {tag:<16} {size:>8} {date:>20} {clock:>15} {icount:>10}\n")
    };
    let mut text = "Snapshot list:\n".to_owned();
    text += &row("ID", "TAG", "VM_SIZE", "DATE (UTC)", "VM_CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let milliseconds = snapshot.vm_clock_nanoseconds / 1_000_000;
        let seconds = milliseconds / 1000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        let clock =
            format!("{hours:04}:{minutes:02}:{:02}.{:03}", seconds % 60, milliseconds % 1000);
        text += &row(
            &printable(&String::from_utf8_lossy(&snapshot.id)),
            &printable(&snapshot.name_lossy()),
            &rounded_size(snapshot.vm_state_bytes),
            &date(snapshot.date_seconds),
            &clock,
            &snapshot.icount.map_or_else(|| "--".to_owned(), |icount| icount.to_string()),
        );
    }
    text
}

/// Prints the internal snapshots of an image.
pub(super) async fn list(path: PathBuf, access: Access) -> Result<()> {
    let (layer, header) = Layer::open_qcow2(&path, access).await?;
    let table = snapshot_table::load(&layer.storage, &header).await;
    let table = table.map_err(|error| Failure::of_file(&path, error))?;
    if !table.snapshots.is_empty() {
        Lines::new().put(&human_table(&table.snapshots));
    }
    Ok(())
}

/// What becomes of the snapshots of an image.
pub(super) enum Change {
    /// One is taken, with this name.
    Create(String),
    /// The image goes back to it.
    Apply(String),
    /// It goes.
    Delete(String),
}

/// Takes, applies or deletes a snapshot.
pub(super) async fn change(path: PathBuf, change: Change) -> Result<()> {
    let (layer, _) = Layer::open_qcow2(&path, Access::Write).await?;
    let (storage, options) = (&layer.storage, CheckOptions::default());
    let changed = match change {
        Change::Create(name) => {
            let now = wall_clock();
            let new = NewSnapshot {
                name: name.into_bytes(),
                date_seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
                date_nanoseconds: now.subsec_nanos(),
            };
            snapshots::create(storage, new, &options).await.map(drop)
        }
        Change::Apply(name) => snapshots::apply(storage, name.as_bytes(), &options).await,
        Change::Delete(name) => snapshots::delete(storage, name.as_bytes(), &options).await,
    };
    changed.map_err(|error| Failure::of_file(&path, error))
}
