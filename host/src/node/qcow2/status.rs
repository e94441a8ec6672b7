//! What ranges of the view are.

use std::ops::Range;

use blockloom_qcow2::format::HostOffset;
use blockloom_qcow2::image::MappingKind;

use super::Qcow2Node;
use super::storage::from_engine;
use crate::error::Result;
use crate::graph::Cx;
use crate::limits::EXTENTS_MAX;
use crate::node::{Extent, ExtentKind};

impl Qcow2Node {
    /// `Data` and `Zero` where clusters are allocated or zeros are noted; `Unallocated` where the backing
    /// shows; `Hole` where nothing does. Data that a sparse file has no bytes for are zeros, too; what a raw
    /// data file says of itself, the view says.
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
            match run.kind {
                MappingKind::Data(host) => {
                    at = self.data_extents(cx, at..run_end, host, &mut extents).await?;
                    continue;
                }
                MappingKind::Compressed(_) => {
                    push(&mut extents, at, run_end, ExtentKind::Data, None);
                }
                MappingKind::Zero(_) => push(&mut extents, at, run_end, ExtentKind::Zero, None),
                MappingKind::Unallocated => {
                    let shown = shown_bytes.clamp(at, run_end);
                    push(&mut extents, at, shown, ExtentKind::Unallocated, None);
                    push(&mut extents, shown, run_end, ExtentKind::Hole, None);
                }
            }
            at = run_end;
        }
        Ok(extents)
    }

    /// A run of data, as the child that holds it sees it. Returns how far that went.
    async fn data_extents(
        &self,
        cx: Cx<'_>,
        run: Range<u64>,
        host: HostOffset,
        extents: &mut Vec<Extent>,
    ) -> Result<u64> {
        let held = self.data(cx)?.block_status(host.0, run.end - run.start).await?;
        let mut at = run.start;
        for part in held {
            if extents.len() == EXTENTS_MAX {
                break;
            }
            let end = run.end.min(at + part.len);
            let kind = match part.kind {
                kind if self.info.raw_external_data => kind,
                ExtentKind::Data | ExtentKind::Unallocated => ExtentKind::Data,
                ExtentKind::Zero | ExtentKind::Hole => ExtentKind::Zero,
                ExtentKind::Unreadable => ExtentKind::Unreadable,
            };
            let host_offset = Some(host.0 + (at - run.start)).filter(|_| kind == ExtentKind::Data);
            push(extents, at, end, kind, host_offset);
            at = end;
        }
        Ok(at)
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
