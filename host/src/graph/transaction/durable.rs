//! What drives wrote, made durable before they lose the way by which their flushes come to it.
//!
//! A drive's flush goes to the node that it shows, through filters; not to what that node stands on. So a drive
//! that gets an overlay would leave what it has written before to nobody's flush, and a guest that flushes
//! later would be told that all of it is durable.

use super::drain::{Drained, Place, Side};
use super::touched::{Known, same_drive};
use crate::error::Result;

/// Flushes the nodes that drives write now, and will only stand on.
///
/// # Errors
/// The driver's: then the change must not be made.
pub(super) async fn flush_left(section: &Drained<'_>) -> Result<()> {
    let (before, after) = (section.graph(Side::Before), section.graph(Side::After));
    let known = Known::of(after);
    let mut left: Vec<usize> = Vec::new();
    for drive in before.drives.iter().filter(|drive| drive.writable) {
        let now = same_drive(after, drive).and_then(|drive| drive.root.as_ref());
        let (Some(was), Some(now)) = (&drive.root, now) else { continue };
        // A flush of the drive ends there.
        let was = before.unfiltered_at(was.child);
        let is_left = known.node(before.nodes[was].generation).is_some_and(|below| {
            after.unfiltered_at(now.child) != below && after.stands_on(now.child, below)
        });
        if is_left && !left.contains(&was) {
            left.push(was);
        }
    }
    for node in left {
        section.flush(Place { side: Side::Before, node }).await?;
    }
    Ok(())
}
