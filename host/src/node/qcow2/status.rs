//! What ranges of the view are.

use blockloom_qcow2::image::MappingKind;

use super::Qcow2Node;
use super::storage::from_engine;
use crate::error::Result;
use crate::graph::Cx;
use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind};

impl Qcow2Node {
    /// `Data` and `Zero` where clusters are allocated or zeros are noted; `Unallocated` where the backing
    /// shows; `Hole` where nothing does.
    pub(super) async fn extents(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let container = self.container(cx)?;
        let shown_bytes = self.shown_bytes(cx)?;
        let turn = self.image.enter();
        let (mut at, end) = (offset, offset + len);
        let mut extents: Vec<Extent> = Vec::new();
        // A run may become two extents.
        while at < end && extents.len() + 2 <= EXTENTS_MAX {
            let run = self.image.map(&turn, &container, at, end - at).await.map_err(from_engine)?;
            let run_end = at + run.len.min(end - at);
            let (kind, host_offset) = match run.kind {
                MappingKind::Data(host) => (ExtentKind::Data, Some(host.0)),
                MappingKind::Compressed(_) => (ExtentKind::Data, None),
                MappingKind::Zero(_) => (ExtentKind::Zero, None),
                MappingKind::Unallocated => (ExtentKind::Unallocated, None),
            };
            let shown = if kind == ExtentKind::Unallocated {
                shown_bytes.clamp(at, run_end)
            } else {
                run_end
            };
            push(&mut extents, at, shown, kind, host_offset);
            push(&mut extents, shown, run_end, ExtentKind::Hole, None);
            at = run_end;
        }
        Ok(extents)
    }
}

/// Adds a range, to the last extent if it goes on there.
fn push(
    extents: &mut Vec<Extent>,
    offset: u64,
    end: u64,
    kind: ExtentKind,
    host_offset: Option<u64>,
) {
    if offset == end {
        return;
    }
    let len = end - offset;
    if let Some(last) = extents.last_mut() {
        let goes_on = last.host_offset.map(|host| host + last.len) == host_offset;
        if last.kind == kind && goes_on {
            last.len += len;
            return;
        }
    }
    extents.push(Extent { offset, len, kind, host_offset });
}
