//! What is to be done with each part of the disk, from its start to its end.

use std::ops::Range;

use super::copy::How;
use crate::cli::image::disk::Disk;
use crate::cli::image::failure::Result;
use crate::cli::image::mapper::RunKind;
use crate::cli::image::target::Target;
use crate::limits::CONVERT_PIECE_BYTES;

/// What is to be done with a part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its bytes are copied.
    Data(Range<u64>),
    /// It is made zero.
    Zero(Range<u64>),
}

/// What a part of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data,
    Zero,
    /// The target shows it already.
    Same,
}

/// The parts of a disk.
pub(super) struct Plan<'d> {
    disk: &'d Disk,
    at: u64,
    end: u64,
    /// Images that are looked at: what those behind show, the target's backing does, too.
    depth_end: usize,
    /// Where the target's backing ends.
    below_end: u64,
    keeps_backing: bool,
    /// A target that nobody has written shows zeros.
    reads_zero: bool,
    /// Everything is written.
    full: bool,
    /// Parts are whole clusters.
    cluster_bytes: Option<u64>,
    passed: u64,
}

impl<'d> Plan<'d> {
    pub(super) fn new(disk: &'d Disk, target: &Target, how: &How, keeps_backing: bool) -> Self {
        let layers = disk.layers().count();
        let keeps_backing = keeps_backing && layers > 1;
        Self {
            disk,
            at: 0,
            end: disk.size_bytes(),
            depth_end: if keeps_backing { 1 } else { layers },
            below_end: target.below_bytes(),
            keeps_backing,
            reads_zero: target.reads_zero(),
            full: how.sparse_bytes == 0 && !keeps_backing,
            cluster_bytes: how.compress.then(|| target.cluster_bytes()),
            passed: 0,
        }
    }

    /// Bytes that needed nothing so far.
    pub(super) fn passed_bytes(&self) -> u64 {
        self.passed
    }

    /// The next step; at most so many bytes of data as are moved at once.
    pub(super) async fn next(&mut self) -> Result<Option<Step>> {
        while self.at < self.end {
            let start = self.at;
            let (part, len) = self.part().await?;
            self.at += len;
            match part {
                Part::Same => self.passed += len,
                Part::Zero => return Ok(Some(Step::Zero(start..self.at))),
                Part::Data => {
                    let stop = (start / CONVERT_PIECE_BYTES + 1) * CONVERT_PIECE_BYTES;
                    let stop = stop.min(self.end);
                    self.at = self.at.min(stop);
                    while self.at < stop {
                        let (Part::Data, len) = self.part().await? else { break };
                        self.at = (self.at + len).min(stop);
                    }
                    return Ok(Some(Step::Data(start..self.at)));
                }
            }
        }
        Ok(None)
    }

    /// What comes next, whole clusters of it if those are needed.
    async fn part(&self) -> Result<(Part, u64)> {
        let (part, len) = self.plain_part().await?;
        let Some(cluster_bytes) = self.cluster_bytes else { return Ok((part, len)) };
        let end = self.at + len;
        let whole = if end == self.end { len } else { len / cluster_bytes * cluster_bytes };
        match whole {
            // One that is several things is copied.
            0 => Ok((Part::Data, cluster_bytes.min(self.end - self.at))),
            whole => Ok((part, whole)),
        }
    }

    async fn plain_part(&self) -> Result<(Part, u64)> {
        let left = self.end - self.at;
        if self.full {
            return Ok((Part::Data, left));
        }
        let piece = self.disk.piece_above(self.at, left, self.depth_end).await?;
        match piece.kind {
            RunKind::Data | RunKind::Compressed(_) => Ok((Part::Data, piece.len)),
            RunKind::Unallocated if self.keeps_backing => Ok((Part::Same, piece.len)),
            _ if self.reads_zero && self.at >= self.below_end => Ok((Part::Same, piece.len)),
            _ if self.reads_zero => Ok((Part::Zero, piece.len.min(self.below_end - self.at))),
            _ => Ok((Part::Zero, piece.len)),
        }
    }
}
