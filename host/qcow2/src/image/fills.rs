//! What surrounds the bytes of a write in its clusters, and what becomes of these.

use std::ops::Range;

use super::request::Change;
use super::{Fill, FillSource, Image};
use crate::format::l2::ALL_SUBCLUSTERS;
use crate::format::{Cluster, HostOffset, StandardCluster};

/// Guest clusters whose mapping nobody else changes, as they are, and what is to become of them.
pub(super) struct Plan {
    pub(super) change: Change,
    pub(super) fills: Vec<Fill>,
    pub(super) len: u64,
}

impl Image {
    /// What a write makes of clusters that it reaches in one way, at `host` and after.
    pub(super) fn plan(
        &self,
        offset: u64,
        len: u64,
        clusters: &[Cluster],
        host: HostOffset,
        new: bool,
    ) -> Plan {
        let cluster_bytes = self.format.cluster_size.bytes();
        let first = self.format.cluster_size.floor(offset);
        let end = (offset + len).min(first + clusters.len() as u64 * cluster_bytes);
        let change = Change { first, clusters: Vec::new(), freed: Vec::new() };
        let mut plan = Plan { change, fills: Vec::new(), len: end - offset };
        for (index, old) in (0..).zip(clusters) {
            let guest = first + index * cluster_bytes;
            let host = HostOffset(host.0 + index * cluster_bytes);
            let part = offset.max(guest) - guest..(end - guest).min(cluster_bytes);
            let touched = self.touched(&part);
            let (data, zero) = match old {
                Cluster::Compressed(_) => (ALL_SUBCLUSTERS, 0),
                Cluster::Standard(old) => (old.data | touched, old.zero & !touched),
            };
            let mapped = StandardCluster { host: Some(host), copied: true, data, zero };
            plan.change.clusters.push(Cluster::Standard(mapped));
            if part != (0..cluster_bytes) {
                self.add_fills(&mut plan.fills, old, new, guest, host, &part);
            }
            if new {
                plan.change.freed.extend(self.host_clusters(old));
            }
        }
        plan
    }

    /// What has to be written in a cluster besides `part` so that the rest of it reads as before.
    fn add_fills(
        &self,
        fills: &mut Vec<Fill>,
        old: &Cluster,
        new: bool,
        guest: u64,
        host: HostOffset,
        part: &Range<u64>,
    ) {
        let unit = self.format.unit_bytes();
        let touched = self.touched(part);
        for start in (0..self.format.cluster_size.bytes()).step_by(unit as usize) {
            let bit = self.touched(&(start..start + unit));
            let is_touched = touched & bit != 0;
            let needed = match old {
                Cluster::Compressed(_) => true,
                Cluster::Standard(old) if new => is_touched || old.data & bit != 0,
                Cluster::Standard(old) => is_touched && old.data & bit == 0,
            };
            if !needed {
                continue;
            }
            let end = start + unit;
            for piece in [start..end.min(part.start), start.max(part.end)..end] {
                if piece.start < piece.end {
                    self.add_fill(fills, old, bit, guest, host, piece);
                }
            }
        }
    }

    /// One piece of a fill, which lies in one subcluster.
    fn add_fill(
        &self,
        fills: &mut Vec<Fill>,
        old: &Cluster,
        bit: u32,
        guest: u64,
        host: HostOffset,
        piece: Range<u64>,
    ) {
        let size = self.size_bytes();
        let mut push = |piece: Range<u64>, source: FillSource| {
            if piece.start >= piece.end {
                return;
            }
            let offset = guest + piece.start;
            let len = piece.end - piece.start;
            let fill = Fill { offset, len, host: HostOffset(host.0 + piece.start), source };
            match fills.last_mut() {
                Some(last) if joins(last, &fill) => last.len += len,
                _ => fills.push(fill),
            }
        };
        match old {
            Cluster::Compressed(data) => push(piece, FillSource::Compressed(*data)),
            Cluster::Standard(StandardCluster { host: Some(from), data, .. })
                if data & bit != 0 =>
            {
                let from = HostOffset(from.0 + piece.start);
                push(piece, FillSource::Host(from));
            }
            Cluster::Standard(old) => {
                // What lies past the disk's end must read as zeros when it grows. An external data file
                // does not get longer than the disk.
                let in_disk = size.saturating_sub(guest).clamp(piece.start, piece.end);
                let shows_below = old.zero & bit == 0 && self.has_backing();
                let source = if shows_below { FillSource::Below } else { FillSource::Zero };
                push(piece.start..in_disk, source);
                if !self.format.external_data {
                    push(in_disk..piece.end, FillSource::Zero);
                }
            }
        }
    }
}

/// Whether the second fill goes on as the first one ends.
fn joins(first: &Fill, next: &Fill) -> bool {
    let adjacent =
        first.offset + first.len == next.offset && first.host.0 + first.len == next.host.0;
    adjacent
        && match (first.source, next.source) {
            (FillSource::Host(a), FillSource::Host(b)) => a.0 + first.len == b.0,
            (a, b) => a == b,
        }
}
