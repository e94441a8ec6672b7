//! Persistent bitmaps that go with the disk.

use blockloom_qcow2::bitmaps::Trust;
use blockloom_qcow2::format::Version;

use crate::cli::image::bitmaps::{Bitmaps, Change};
use crate::cli::image::failure::{Failure, Result};
use crate::cli::image::target::Target;

/// Every bitmap of the source can be copied.
pub(super) fn check_bitmaps(bitmaps: &Bitmaps<'_>) -> Result<()> {
    let cannot = |name: &str, problem: &str| {
        let message = format!(
            "bitmap `{name}` {problem}: --skip-broken-bitmaps leaves it out; `image bitmap` can \
             --remove it"
        );
        Err(Failure::of_file(bitmaps.path(), message))
    };
    for entry in bitmaps.entries() {
        match bitmaps.trust(entry) {
            Trust::Stored => {}
            Trust::Inconsistent => return cannot(&entry.name_lossy(), "is inconsistent"),
            Trust::Unknown => return cannot(&entry.name_lossy(), "is of a kind that is not known"),
        }
    }
    Ok(())
}

/// The target can keep bitmaps of a disk of so many bytes.
pub(super) fn check_keeps_bitmaps(target: &Target, size_bytes: u64) -> Result<()> {
    let Some(image) = target.image() else { return Ok(()) };
    if image.info().version < Version::V3 {
        return Err(Failure::usage("--bitmaps: needs an image with compat=1.1"));
    }
    if image.size_bytes() != size_bytes {
        let message = format!(
            "--bitmaps: they are for a disk of {size_bytes} bytes, and this one has {}",
            image.size_bytes()
        );
        return Err(Failure::of_file(target.path(), message));
    }
    Ok(())
}

/// Copies all that can be copied, at one instant.
pub(super) async fn copy_bitmaps(from: &Bitmaps<'_>, target: &Target) -> Result<()> {
    let Some(image) = target.image() else { return Ok(()) };
    let mut to = Bitmaps::load(target.path(), target.storage(), image).await?;
    let mut changes = Vec::new();
    for entry in from.entries().iter().filter(|entry| from.trust(entry) == Trust::Stored) {
        let name = entry.name_lossy().into_owned();
        changes.push(Change::Store(name, from.content(entry).await?));
    }
    to.change(&changes).await
}
