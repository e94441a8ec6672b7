//! Several parts of the disk in work at once. They are read and compressed side by side; one after the other
//! is written, so that the new image lies in the file as the disk does, unless their order does not matter.

use std::ops::Range;

use blockloom_qcow2::format::{CompressionType, compressed};

use super::plan::{Plan, Step};
use super::window::Window;
use crate::cli::image::disk::Disk;
use crate::cli::image::failure::{Failure, Result};
use crate::cli::image::target::Target;
use crate::io::{Buf, BufMut, Urgency, compute, is_zero};

/// How a disk is copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Zeros of at least so many bytes are found; 0: none.
    pub(super) sparse_bytes: u64,
    pub(super) compress: bool,
    /// Parts are written in their order.
    pub(super) in_order: bool,
    /// Most parts in work.
    pub(super) pieces: usize,
}

/// A part that is ready to be written.
enum Ready {
    Data(u64, Buf),
    Clusters(u64, Vec<Cluster>),
    Zero(Range<u64>),
    Written(u64),
}

/// A cluster of compressed data.
enum Cluster {
    Zero(usize),
    /// With the bytes as they are.
    Packed(Buf, Vec<u8>),
    /// It would not be smaller.
    Plain(Buf),
}

/// Copies everything that the plan has; tells how many bytes are done.
pub(super) async fn copy(
    mut plan: Plan<'_>,
    disk: &Disk,
    target: &Target,
    how: &How,
    mut tell: impl FnMut(u64),
) -> Result<()> {
    let mut window = Window::new(how.in_order);
    let (mut is_planned, mut done_bytes) = (false, 0);
    loop {
        while !is_planned && window.len() < how.pieces {
            match window.beside(plan.next()).await? {
                Some(step) => window.push(work(step, disk, target, how)),
                None => is_planned = true,
            }
        }
        let Some(ready) = window.next().await else { return Ok(()) };
        done_bytes += window.beside(write(ready?, target, how)).await?;
        tell(done_bytes + plan.passed_bytes());
    }
}

async fn work(step: Step, disk: &Disk, target: &Target, how: &How) -> Result<Ready> {
    let ready = match step {
        Step::Zero(range) => Ready::Zero(range),
        Step::Data(range) => {
            let buf = BufMut::new((range.end - range.start) as usize);
            let buf = disk.read(range.start, buf).await?.freeze();
            match how.compress {
                true => pack(range.start, buf, target, how).await?,
                false => Ready::Data(range.start, buf),
            }
        }
    };
    match how.in_order {
        true => Ok(ready),
        false => write(ready, target, how).await.map(Ready::Written),
    }
}

/// Compresses clusters, on another thread.
async fn pack(offset: u64, buf: Buf, target: &Target, how: &How) -> Result<Ready> {
    let (cluster_bytes, kind) = (target.cluster_bytes() as usize, target.compression());
    let finds_zeros = how.sparse_bytes > 0;
    let packed = compute(Urgency::Later, move || {
        let starts = (0..buf.len()).step_by(cluster_bytes);
        let cluster = |start: usize| {
            let bytes = buf.slice(start..buf.len().min(start + cluster_bytes));
            pack_cluster(kind, bytes, cluster_bytes, finds_zeros)
        };
        starts.map(cluster).collect::<blockloom_qcow2::Result<Vec<_>>>()
    });
    let packed = packed.await.map_err(|error| Failure::of_file(target.path(), error))?;
    let packed = packed.map_err(|error| Failure::of_file(target.path(), error))?;
    Ok(Ready::Clusters(offset, packed))
}

fn pack_cluster(
    kind: CompressionType,
    bytes: Buf,
    cluster_bytes: usize,
    finds_zeros: bool,
) -> blockloom_qcow2::Result<Cluster> {
    if finds_zeros && is_zero(&bytes) {
        return Ok(Cluster::Zero(bytes.len()));
    }
    Ok(match compressed::compress_padded(kind, &bytes, cluster_bytes)? {
        Some(packed) => Cluster::Packed(bytes, packed),
        None => Cluster::Plain(bytes),
    })
}

/// Writes a part; says how many bytes of the disk it is.
async fn write(ready: Ready, target: &Target, how: &How) -> Result<u64> {
    match ready {
        Ready::Written(bytes) => Ok(bytes),
        Ready::Zero(range) => {
            let len = range.end - range.start;
            target.zero(range.start, len).await?;
            Ok(len)
        }
        Ready::Data(offset, buf) => {
            for (range, zero) in runs(&buf, offset, how.sparse_bytes) {
                let at = offset + range.start as u64;
                match zero {
                    true => target.leave_zero(at, range.len() as u64).await?,
                    false => target.write(at, &buf.slice(range)).await?,
                }
            }
            Ok(buf.len() as u64)
        }
        Ready::Clusters(offset, clusters) => {
            let mut at = offset;
            for cluster in clusters {
                at += match cluster {
                    Cluster::Zero(len) => {
                        target.leave_zero(at, len as u64).await?;
                        len as u64
                    }
                    Cluster::Packed(bytes, packed) => {
                        if !target.write_compressed(at, &packed).await? {
                            target.write(at, &bytes).await?;
                        }
                        bytes.len() as u64
                    }
                    Cluster::Plain(bytes) => {
                        target.write(at, &bytes).await?;
                        bytes.len() as u64
                    }
                };
            }
            Ok(at - offset)
        }
    }
}

/// Parts of `bytes`, which lie at `offset`, that are zero, and those that are not, in units of `unit` bytes of
/// the disk; one that is not for `unit` 0.
fn runs(bytes: &[u8], offset: u64, unit: u64) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = match unit {
            0 => bytes.len(),
            unit => bytes.len().min(at + (unit - (offset + at as u64) % unit) as usize),
        };
        let zero = unit > 0 && is_zero(&bytes[at..end]);
        match runs.last_mut() {
            Some((run, last)) if *last == zero => run.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_found_in_units_of_the_disk() {
        let bytes = |ones: &[usize]| {
            let mut bytes = vec![0; 4096];
            ones.iter().for_each(|at| bytes[*at] = 1);
            bytes
        };
        let check = |ones: &[usize], offset, unit, expect: &[(Range<usize>, bool)]| {
            assert_eq!(runs(&bytes(ones), offset, unit), expect, "{ones:?} {offset} {unit}");
        };
        check(&[], 0, 1024, &[(0..4096, true)]);
        check(&[], 0, 0, &[(0..4096, false)]);
        check(&[1024], 0, 1024, &[(0..1024, true), (1024..2048, false), (2048..4096, true)]);
        check(&[1024], 512, 1024, &[(0..512, true), (512..1536, false), (1536..4096, true)]);
        check(&[0, 1024], 0, 1024, &[(0..2048, false), (2048..4096, true)]);
        check(&[4095], 1 << 20, 1 << 20, &[(0..4096, false)]);
    }
}
