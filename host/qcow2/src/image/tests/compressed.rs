//! Compressed clusters that are written: beside each other, over others, with power lost, seen by QEMU.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Waker};

use super::points::{self, Start};
use super::{SECTOR, check, interop, new_disk, sector_of};
use crate::error::Result;
use crate::format::{CompressionType, compressed};
use crate::image::{Allocation, MappingKind, Turn};
use crate::testing::tools::{have, run, succeed};
use crate::testing::{Disk, Geometry, Random, block_on, run_all};

const CLUSTER: u64 = 4096;

type Request<'d> = Pin<Box<dyn Future<Output = Result<()>> + 'd>>;

fn geometry() -> Geometry {
    Geometry { cluster_bits: 12, ..Geometry::usual(1 << 20) }
}

fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.number() as u8).collect()
}

/// Host offset of a compressed cluster; `None` of one that is not.
fn packed_at(disk: &Disk, offset: u64) -> Option<u64> {
    let turn = disk.image.enter();
    let found = disk.image.map(&turn, &disk.container, offset, disk.image.cluster_bytes());
    match block_on(found).expect("a mapping").kind {
        MappingKind::Compressed(data) => Some(data.host.0),
        _ => None,
    }
}

fn check_clusters(disk: &Disk, expect: impl Fn(u64) -> Vec<u8>) {
    for (index, bytes) in points::contents(disk).chunks(CLUSTER as usize).enumerate() {
        assert!(bytes == expect(index as u64), "cluster {index}");
    }
}

/// Several lie in a host cluster, as many as it counts references.
#[test]
fn they_are_packed() {
    for (refcount_bits, most) in [(16, 40), (2, 3), (1, 1)] {
        let disk = new_disk(&Geometry { refcount_bits, ..geometry() });
        let bytes = |index: u64| match index {
            0..40 => vec![index as u8 + 1; CLUSTER as usize],
            _ => vec![0; CLUSTER as usize],
        };
        let mut in_cluster = BTreeMap::<u64, Vec<u64>>::new();
        for index in 0..40 {
            block_on(disk.write_compressed(index * CLUSTER, &bytes(index))).expect("writes");
            let host = packed_at(&disk, index * CLUSTER).expect("it is compressed");
            in_cluster.entry(host / CLUSTER).or_default().push(host);
        }
        assert!(in_cluster.values().all(|hosts| hosts.is_sorted() && hosts.len() <= most));
        assert_eq!(in_cluster.len(), 40_usize.div_ceil(most), "{refcount_bits}");
        block_on(disk.image.close(&disk.container)).expect("closes");
        let report = check(&disk.container.file);
        assert!(report.is_clean() && report.compressed_clusters == 40, "{report:?}");
        check_clusters(&disk, bytes);
    }
}

/// Room for clusters from one on, compressed to so many bytes each, in blocks.
fn prepare<'t>(
    disk: &'t Disk,
    turn: &'t Turn<'_>,
    index: u64,
    lens: &[u64],
    block_bytes: u64,
) -> Option<Allocation<'t>> {
    let offset = index * disk.image.cluster_bytes();
    let room =
        disk.image.prepare_compressed_write(turn, &disk.container, offset, lens, block_bytes);
    block_on(room).expect("an answer")
}

/// Clusters of one write are beside each other, as many as a host cluster and its count of references hold; each write
/// begins a block, and what comes after it, too, whatever its own blocks are.
#[test]
fn those_of_one_write_share_blocks() {
    let disk = new_disk(&Geometry { cluster_bits: 16, refcount_bits: 2, ..geometry() });
    let turn = disk.image.enter();
    let mut found = Vec::new();
    let mut write = |index, lens: &[u64], block_bytes| {
        let room = prepare(&disk, &turn, index, lens, block_bytes).expect("room");
        let span = room.span();
        assert!(span.start.is_multiple_of(block_bytes) && span.end.is_multiple_of(block_bytes));
        let clusters = room.clusters();
        assert_eq!(room.len(), lens[..clusters].iter().sum::<u64>());
        disk.container.file.write_now(span.start, &vec![1; (span.end - span.start) as usize]);
        block_on(disk.image.commit(&disk.container, room)).expect("commits");
        found.push((clusters, span));
    };
    write(0, &[5000, 3000, 100, 100], 4096);
    write(3, &[700], 512);
    write(4, &[700], 4096);
    write(5, &[700], 1);
    write(6, &[60_000, 6000, 600], 512);
    let places: Vec<_> = (0..7).filter_map(|index| packed_at(&disk, index << 16)).collect();
    let (clusters, spans): (Vec<usize>, Vec<_>) = found.into_iter().unzip();
    assert_eq!(
        clusters,
        [3, 1, 1, 1, 1],
        "three references a cluster, and no more bytes than it has"
    );
    assert_eq!(places[..3], [0, 5000, 8000].map(|at| spans[0].start + at));
    assert_eq!(spans[0].end - spans[0].start, 8192);
    let first = spans[1].start;
    assert!(first.is_multiple_of(1 << 16), "{spans:?}");
    let within = spans[1..].iter().map(|span| span.start.wrapping_sub(first)).collect::<Vec<_>>();
    assert_eq!(within[..3], [0, 4096, 8192]);
    drop(turn);
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert!(check(&disk.container.file).is_clean());
}

/// What is given up gives back all its references, whatever becomes of others in the cluster.
#[test]
fn all_of_a_write_is_given_back() {
    for is_settled in [true, false] {
        let disk = new_disk(&geometry());
        block_on(disk.write_compressed(0, &[1; CLUSTER as usize])).expect("writes");
        let turn = disk.image.enter();
        let room = prepare(&disk, &turn, 1, &[100, 100, 100], 512).expect("room");
        assert_eq!(room.clusters(), 3);
        match is_settled {
            true => room.release(),
            false => drop(room),
        }
        drop(turn);
        check_clusters(&disk, |index| vec![u8::from(index == 0); CLUSTER as usize]);
        block_on(disk.image.close(&disk.container)).expect("closes");
        let report = check(&disk.container.file);
        assert!(report.is_clean() && report.compressed_clusters == 1, "{report:?}");
    }
}

/// A write that fails may leave anything in the blocks that it touches. Nobody else is in them, and nobody comes into
/// its cluster any more.
#[test]
fn a_write_that_fails_spoils_no_other_cluster() {
    for block_bytes in [512, 4096] {
        let disk = new_disk(&Geometry { cluster_bits: 16, ..geometry() });
        let packed = compressed::compress(CompressionType::Deflate, &[7; 65536]);
        let packed = packed.expect("it compresses").expect("it gets shorter");
        let len = packed.len() as u64;
        let mut failed = None;
        for index in 0..12 {
            let turn = disk.image.enter();
            let room = prepare(&disk, &turn, index, &[len], block_bytes).expect("room");
            let span = room.span();
            assert!(span.start.is_multiple_of(block_bytes) && span.end.is_multiple_of(block_bytes));
            assert_ne!(failed, Some(span.start >> 16), "cluster {index} beside one that failed");
            if index % 5 == 2 {
                let spoiled = vec![0xdb; (span.end - span.start) as usize];
                disk.container.file.write_now(span.start, &spoiled);
                failed = Some(span.start >> 16);
                room.release();
            } else {
                disk.container.file.write_now(span.start, &packed);
                block_on(disk.image.commit(&disk.container, room)).expect("commits");
            }
        }
        block_on(disk.image.flush(&disk.container)).expect("flushes");
        for (index, bytes) in points::contents(&disk).chunks(65536).enumerate() {
            let expect = if index < 12 && index % 5 != 2 { 7 } else { 0 };
            assert!(bytes.iter().all(|byte| *byte == expect), "{block_bytes}: cluster {index}");
        }
        block_on(disk.image.close(&disk.container)).expect("closes");
        assert!(check(&disk.container.file).is_clean());
    }
}

/// What would take as many blocks as it has is written as it is.
#[test]
fn what_saves_no_block_is_not_compressed() {
    let disk = new_disk(&geometry());
    let turn = disk.image.enter();
    assert!(prepare(&disk, &turn, 0, &[1], 4096).is_none());
    assert!(prepare(&disk, &turn, 0, &[1], 1 << 20).is_none());
    assert!(prepare(&disk, &turn, 0, &[CLUSTER - 511], 512).is_none());
    assert!(prepare(&disk, &turn, 0, &[CLUSTER - 511, 512], 512).is_none());
    let room = prepare(&disk, &turn, 0, &[CLUSTER - 512], 512).expect("it saves one");
    assert_eq!((room.len(), room.span().end - room.host().0), (CLUSTER - 512, CLUSTER - 512));
    room.release();
    let room = prepare(&disk, &turn, 0, &[CLUSTER - 511, 511], 4096).expect("two in one");
    assert_eq!((room.clusters(), room.len(), room.spare), (2, CLUSTER, 0));
    room.release();
}

/// The format has fewer bits for where compressed data begin than for where others do.
#[test]
fn what_lies_too_high_for_it_is_not_compressed() {
    let cluster_bits = 21;
    let disk = new_disk(&Geometry { cluster_bits, size_bytes: 16 << 21, ..geometry() });
    let bytes = |index: u64| vec![index as u8 + 1; 1 << cluster_bits];
    block_on(disk.write_compressed(0, &bytes(0))).expect("writes");
    disk.image.allocator().search_from((1 << (62 - (cluster_bits - 8) - cluster_bits)) - 2);
    for index in 1..4 {
        block_on(disk.write(index << cluster_bits, &bytes(index))).expect("writes");
    }
    for index in 4..6 {
        block_on(disk.write_compressed(index << cluster_bits, &bytes(index))).expect("writes");
    }
    let is_packed = |index: u64| packed_at(&disk, index << cluster_bits).is_some();
    assert_eq!([0, 4, 5].map(is_packed), [true, false, false]);
    block_on(disk.image.flush(&disk.container)).expect("flushes");
    for index in [0, 3, 4, 5] {
        let mut shown = bytes(9);
        block_on(disk.read(index << cluster_bits, &mut shown)).expect("reads");
        assert!(shown == bytes(index), "cluster {index}");
    }
}

/// Zeros are written into compressed clusters of which a part is to be zero, nowhere else.
#[test]
fn only_parts_of_them_are_left_to_zero() {
    let extended = Geometry { cluster_bits: 14, extended_l2: true, ..geometry() };
    for backing_name in [None, Some(b"base".to_vec())] {
        let disk = new_disk(&Geometry { backing_name, ..extended.clone() });
        let (cluster, unit) = (1 << 14, 512);
        for index in [1, 3, 5] {
            block_on(disk.write_compressed(index * cluster, &vec![7; 1 << 14])).expect("writes");
        }
        block_on(disk.write(6 * cluster, &[7; 1 << 14])).expect("writes");
        let range = cluster + 3 * unit..7 * cluster - unit;
        let len = range.end - range.start;
        let left = block_on(disk.image.zero(&disk.container, range.start, len, false));
        let first = range.start..2 * cluster;
        assert_eq!(left.expect("zeroes"), [first]);
        assert_eq!(
            [1, 3, 5].map(|index| packed_at(&disk, index * cluster).is_some()),
            [true, false, false]
        );
        let range = cluster..cluster + unit;
        let left = block_on(disk.image.zero(&disk.container, range.start, unit, false));
        assert_eq!(left.expect("zeroes"), [range]);
        let mut shown = vec![1; 6 << 14];
        block_on(disk.read(2 * cluster, &mut shown)).expect("reads");
        let (zeros, data) = shown.split_at(5 * (1 << 14) - 512);
        assert!(zeros.iter().all(|byte| *byte == 0) && data[..512] == [7; 512]);
    }
}

/// What would not get smaller is written as it is; all of it is replaced by whatever comes next.
#[test]
fn what_does_not_get_smaller_is_not_compressed() {
    let disk = new_disk(&geometry());
    let mut random = Random::new(5);
    let noisy = noise(&mut random, CLUSTER as usize);
    let even = vec![7; CLUSTER as usize];
    for (bytes, is_packed) in [(&noisy, false), (&even, true), (&noisy, false), (&even, true)] {
        block_on(disk.write_compressed(0, bytes)).expect("writes");
        assert_eq!(packed_at(&disk, 0).is_some(), is_packed);
        let shown = points::contents(&disk);
        assert!(
            shown[..CLUSTER as usize] == **bytes
                && shown[CLUSTER as usize..] == vec![0; (1 << 20) - CLUSTER as usize]
        );
    }
    block_on(disk.image.close(&disk.container)).expect("closes");
    assert!(check(&disk.container.file).is_clean());
}

/// No bytes are put into a host cluster that is on its way to be free: it is discarded first.
#[test]
fn nothing_is_put_beside_what_is_being_freed() {
    for seed in 0..400 {
        let disk = new_disk(&geometry());
        block_on(disk.write_compressed(0, &[1; CLUSTER as usize])).expect("writes");
        block_on(disk.image.flush(&disk.container)).expect("flushes");
        block_on(disk.image.discard(&disk.container, 0, CLUSTER)).expect("discards");
        disk.container.file.set_delays(seed, 12);
        let mut random = Random::new(seed);
        let mut freeing: Request<'_> = Box::pin(async {
            for _ in 0..4 {
                disk.image.flush(&disk.container).await?;
            }
            Ok(())
        });
        // The others come at any moment of it.
        let mut context = Context::from_waker(Waker::noop());
        let is_over = (0..random.below(40)).any(|_| freeing.as_mut().poll(&mut context).is_ready());
        let mut requests = if is_over { Vec::new() } else { vec![freeing] };
        requests.extend((1..4).map(|index| -> Request<'_> {
            let bytes = [index as u8 + 1; CLUSTER as usize];
            let disk = &disk;
            Box::pin(async move { disk.write_compressed(index * CLUSTER, &bytes).await })
        }));
        for done in run_all(&mut random, None, requests).into_iter().flatten() {
            done.expect("nothing fails");
        }
        check_clusters(&disk, |index| match index {
            1..4 => vec![index as u8 + 1; CLUSTER as usize],
            _ => vec![0; CLUSTER as usize],
        });
        block_on(disk.image.close(&disk.container)).expect("closes");
        assert!(check(&disk.container.file).is_clean(), "seed {seed}");
    }
}

/// Over data, over each other, beside discards: with power lost at each write a cluster is what it was, or what was
/// written, whole.
#[test]
fn power_is_lost_at_any_write() {
    let mut judged = 0;
    for geometry in points::geometries() {
        for snapshot in points::has_snapshots(&geometry) {
            let start = Start::new(geometry.clone(), snapshot);
            let before = points::contents(&start.disk());
            let cluster = 1 << geometry.cluster_bits;
            let clusters = geometry.size_bytes.div_ceil(cluster);
            let of = |index: u64| {
                let first = index * cluster;
                first as usize..(first + cluster).min(geometry.size_bytes) as usize
            };
            // The last one is cut off by the end of the disk.
            let written: Vec<u64> = [0, 1, 2, 5, 6]
                .into_iter()
                .filter(|at| at + 1 < clusters)
                .chain([clusters - 1])
                .collect();
            let bytes =
                |value: u32, index: u64| sector_of(value).repeat(of(index).len() / SECTOR as usize);
            let operate = |disk: &Disk| {
                for value in [7, 8] {
                    for &index in &written {
                        block_on(disk.write_compressed(index * cluster, &bytes(value, index)))?;
                    }
                    block_on(disk.image.flush(&disk.container))?;
                    block_on(disk.image.discard(&disk.container, 0, cluster))?;
                }
                block_on(disk.write(cluster, &sector_of(9)))?;
                block_on(disk.image.close(&disk.container))
            };
            judged += start.at_every_point(5, operate, |_, disk, context| {
                let shown = points::contents(disk);
                for index in 0..clusters {
                    let (shown, before) = (&shown[of(index)], &before[of(index)]);
                    let mut may = vec![before.to_vec()];
                    if written.contains(&index) {
                        may.extend([7, 8].map(|value| bytes(value, index)));
                    }
                    if index == 0 {
                        may.push(vec![0; before.len()]);
                    }
                    if index == 1 {
                        let mut last = may[may.len() - 1].clone();
                        last[..SECTOR as usize].copy_from_slice(&sector_of(9));
                        may.push(last);
                    }
                    assert!(may.iter().any(|may| shown == may), "{context}: cluster {index}");
                }
            });
        }
    }
    assert!(judged > 1000, "{judged}");
}

/// Clusters of all kinds, in which the last is cut off, written compressed and not, over each other, discarded;
/// returns what the disk shows.
fn change(disk: &Disk, seed: u64, mut expect: Vec<u8>) -> Vec<u8> {
    let (mut random, cluster) = (Random::new(seed), disk.image.cluster_bytes() as usize);
    let rounds = ((16 << 20) / cluster).clamp(12, 60);
    for round in 0..rounds {
        let clusters = expect.len().div_ceil(cluster).min(30) as u64;
        let at = match random.one_in(6) {
            true => (expect.len() - 1) / cluster * cluster,
            false => random.below(clusters) as usize * cluster,
        };
        let end = expect.len().min(at + cluster);
        let part = &mut expect[at..end];
        match round % 6 {
            0 => {
                part.fill(0);
                block_on(disk.image.discard(&disk.container, at as u64, part.len() as u64))
                    .expect("discards");
                block_on(disk.image.flush(&disk.container)).expect("flushes");
                block_on(disk.read(at as u64, part)).expect("reads");
                continue;
            }
            1 => {
                let some = noise(&mut random, 1 + part.len() / 3);
                part[..some.len()].copy_from_slice(&some);
                block_on(disk.write(at as u64, &some)).expect("writes");
                continue;
            }
            2 => part.copy_from_slice(&noise(&mut random, part.len())),
            3 => part.fill(round as u8),
            _ => {
                part.fill(round as u8);
                let noisy = noise(&mut random, part.len() / 2);
                part[..noisy.len()].copy_from_slice(&noisy);
            }
        }
        block_on(disk.write_compressed(at as u64, part)).expect("writes");
    }
    expect
}

/// `qemu-img` finds nothing wrong and reads the same, also of a snapshot; QEMU writes there, and that is read here.
#[test]
fn they_are_read_by_qemu() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.qcow2");
    let name = interop::text(&path);
    for (seed, kind) in (1..).zip([
        "compat=1.1",
        "compat=0.10",
        "refcount_bits=1",
        "lazy_refcounts=on",
        "cluster_size=512",
        "cluster_size=2M",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=4k",
        "extended_l2=on,cluster_size=128k",
    ]) {
        let size = (8 << 20) - 3 * SECTOR as usize;
        let text = size.to_string();
        succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, name, &text]);
        let disk = interop::open(&path, None);
        let first = change(&disk, seed, vec![0; size]);
        assert!(interop::contents(&disk) == first, "{kind}");
        interop::save(&disk, &path);
        interop::check_seen_by_qemu(&path, &[], &first);
        if kind != "refcount_bits=1" {
            succeed("qemu-img", &["snapshot", "-c", "one", name]);
        }
        let disk = interop::open(&path, None);
        let mut last = change(&disk, seed + 50, first.clone());
        interop::save(&disk, &path);
        interop::check_seen_by_qemu(&path, &[], &last);
        if kind != "refcount_bits=1" {
            interop::check_seen_by_qemu(&path, &["-l", "one"], &first);
        }
        succeed("qemu-io", &["-f", "qcow2", "-c", "write -P 0xee 100k 700k", name]);
        last[100 << 10..800 << 10].fill(0xee);
        assert!(run("qemu-img", &["check", "-q", name]).status.success(), "{kind}");
        assert!(interop::contents(&interop::open(&path, None)) == last, "{kind}");
    }
}
