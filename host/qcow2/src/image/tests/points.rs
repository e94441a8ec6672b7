//! Power is lost at every single write of an operation that changes more than mappings: another size, another
//! backing, longer tables. At each, nothing of what was not flushed survives, all of it, or some.

use super::crash::check_and_mend;
use super::{SECTOR, check, open_disk, sector_of};
use crate::check::CheckOptions;
use crate::error::Result;
use crate::format::Header;
use crate::format::Version;
use crate::read_header;
use crate::snapshots::{self, NewSnapshot};
use crate::testing::{Container, Disk, Geometry, MemoryStorage, Random, blank_image, block_on};

/// What is left at a point beside nothing and all, by chance.
const SAMPLES: usize = 6;

/// An image before an operation, closed.
pub(super) struct Start {
    /// For messages.
    name: String,
    geometry: Geometry,
    content: Vec<u8>,
}

impl Start {
    /// Every second run of 24 sectors holds data; `snapshot` has been taken of the half of it.
    pub(super) fn new(geometry: Geometry, snapshot: bool) -> Self {
        let file = MemoryStorage::new(blank_image(&geometry));
        let mut disk = open(file, &geometry);
        let sectors = geometry.size_bytes / SECTOR;
        for half in 0..2 {
            for first in (half * 24..sectors).step_by(96) {
                let bytes: Vec<u8> = (first..sectors.min(first + 24))
                    .flat_map(|s| sector_of(s as u32 + 1))
                    .collect();
                block_on(disk.write(first * SECTOR, &bytes)).expect("a write");
            }
            if half == 0 && snapshot {
                block_on(disk.image.close(&disk.container)).expect("closes");
                let new = NewSnapshot { name: b"one".into(), date_seconds: 1, date_nanoseconds: 1 };
                let file = disk.container.file;
                block_on(snapshots::create(&file, new, &CheckOptions::default())).expect("taken");
                disk = open(file, &geometry);
            }
        }
        block_on(disk.image.close(&disk.container)).expect("closes");
        let name = format!(
            "{:?}, {} bits, lazy {}, backing {}, snapshot {snapshot}",
            geometry.version,
            geometry.cluster_bits,
            geometry.lazy_refcounts,
            geometry.backing_name.as_ref().map_or(0, Vec::len),
        );
        Self { name, geometry, content: disk.container.file.content() }
    }

    pub(super) fn disk(&self) -> Disk {
        open(MemoryStorage::new(self.content.clone()), &self.geometry)
    }

    /// Does `operate` with power lost after one write more each time, until it gets through; `judge` gets what
    /// is left, repaired, and the disk on it. Gives the number of images judged.
    pub(super) fn at_every_point(
        &self,
        seed: u64,
        operate: impl Fn(&Disk) -> Result<()>,
        judge: impl Fn(&Header, &Disk, &str),
    ) -> u64 {
        let mut random = Random::new(seed);
        let mut judged = 0;
        for operations in 0.. {
            let disk = self.disk();
            disk.container.file.die_after(operations);
            let outcome = operate(&disk);
            for sample in 0..SAMPLES + 2 {
                let context = format!("{}: operation {operations}, sample {sample}", self.name);
                let left = match sample {
                    0 => disk.container.file.crash_keeping(|| false),
                    1 => disk.container.file.crash_keeping(|| true),
                    _ => disk.container.file.crash(&mut random),
                };
                check_and_mend(&left, &context);
                let header = block_on(read_header(&left)).expect(&context);
                judge(&header, &open(left, &self.geometry), &context);
                judged += 1;
            }
            if outcome.is_ok() {
                break;
            }
        }
        judged
    }
}

fn open(file: MemoryStorage, geometry: &Geometry) -> Disk {
    open_disk(Container { file, data: None }, geometry).expect("an image")
}

pub(super) fn contents(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.image.size_bytes() as usize];
    block_on(disk.read(0, &mut bytes)).expect("reads");
    bytes
}

/// As a node does: what is added reads as zeros before it is told.
fn grow(disk: &Disk, size_bytes: u64) -> Result<()> {
    let before = disk.image.size_bytes();
    block_on(disk.image.extend(&disk.container, size_bytes))?;
    let cluster_end = before.next_multiple_of(disk.image.cluster_bytes());
    let shown = disk.backing.as_ref().map_or(0, Vec::len) as u64;
    let end = cluster_end.max(shown).min(size_bytes);
    if end > before {
        block_on(disk.write(before, &vec![0; (end - before) as usize]))?;
    }
    block_on(disk.image.flush(&disk.container))?;
    block_on(disk.image.resize(&disk.container, size_bytes))
}

/// Small images that differ in what a change of their size does.
pub(super) fn geometries() -> Vec<Geometry> {
    let usual = Geometry { cluster_bits: 9, ..Geometry::usual(300 * SECTOR) };
    let backing_name = Some(b"base".to_vec());
    vec![
        usual.clone(),
        Geometry { backing_name: backing_name.clone(), ..usual.clone() },
        Geometry { version: Version::V2, backing_name, ..usual.clone() },
        Geometry { lazy_refcounts: true, ..usual.clone() },
        Geometry { cluster_bits: 12, size_bytes: 1001 * SECTOR, ..usual.clone() },
        Geometry { cluster_bits: 14, extended_l2: true, size_bytes: 1001 * SECTOR, ..usual },
    ]
}

pub(super) fn has_snapshots(geometry: &Geometry) -> impl Iterator<Item = bool> + use<> {
    let possible = geometry.version >= Version::V3;
    [false, true].into_iter().filter(move |snapshot| possible || !snapshot)
}

/// Until the disk is told to be smaller it has all of its bytes; and what was cut off never comes back.
#[test]
fn a_disk_shrinks() {
    let mut judged = 0;
    for geometry in geometries() {
        for snapshot in has_snapshots(&geometry) {
            let start = Start::new(geometry.clone(), snapshot);
            let before = contents(&start.disk());
            let (old, new) = (geometry.size_bytes, 101 * SECTOR);
            let shrink = |disk: &Disk| {
                block_on(disk.image.resize(&disk.container, new))?;
                block_on(disk.image.close(&disk.container))
            };
            judged += start.at_every_point(1, shrink, |header, disk, context| {
                assert!([old, new].contains(&header.size_bytes), "{context}");
                let len = header.size_bytes as usize;
                assert!(contents(disk) == before[..len], "{context}: bytes have changed");
                if header.size_bytes == old {
                    return;
                }
                if header.version >= Version::V3 {
                    // Others do not look behind the end: who repairs leaves nothing there.
                    block_on(disk.image.finish_shrink(&disk.container)).expect(context);
                    assert!(!disk.image.modifying.has_begun(), "{context}: there was something");
                }
                grow(disk, old).expect(context);
                let grown = contents(disk);
                assert!(grown[..len] == before[..len], "{context}: bytes have changed");
                assert!(grown[len..].iter().all(|&byte| byte == 0), "{context}: bytes came back");
                block_on(disk.image.close(&disk.container)).expect(context);
                let report = check(&disk.container.file);
                let v2 = header.version == Version::V2 && !report.is_damaged();
                assert!(report.is_clean() || v2, "{context}: {report:?}");
            });
        }
    }
    assert!(judged > 1000, "{judged}");
}

/// It grows at once, and by zeros; with a longer L1 table.
#[test]
fn a_disk_grows() {
    let mut judged = 0;
    for geometry in geometries() {
        for snapshot in has_snapshots(&geometry) {
            let start = Start::new(geometry.clone(), snapshot);
            let before = contents(&start.disk());
            let (old, new) = (geometry.size_bytes, geometry.size_bytes * 20);
            let sectors = (old / SECTOR) as usize;
            let written = (new / SECTOR - 3) as usize;
            let operate = |disk: &Disk| {
                grow(disk, new)?;
                block_on(disk.write(new - 3 * SECTOR, &sector_of(7)))?;
                block_on(disk.image.close(&disk.container))
            };
            judged += start.at_every_point(2, operate, |header, disk, context| {
                assert!([old, new].contains(&header.size_bytes), "{context}");
                let shown = contents(disk);
                assert!(shown[..old as usize] == before, "{context}: bytes have changed");
                for (sector, bytes) in shown.chunks(SECTOR as usize).enumerate().skip(sectors) {
                    let may = sector == written && bytes == sector_of(7);
                    assert!(may || bytes == sector_of(0), "{context}: sector {sector}");
                }
            });
        }
    }
    assert!(judged > 1000, "{judged}");
}

/// The header names the old backing or the new one, with its format, whole.
#[test]
fn a_backing_is_named() {
    let mut judged = 0;
    let long = |byte: u8, len: usize| vec![byte; len];
    for bits in [9, 12] {
        for version in [Version::V2, Version::V3] {
            for (old, new) in [(20, 300), (300, 20), (700, 1000), (1000, 10)] {
                let (old, new) = (long(b'o', old), long(b'n', new));
                let geometry = Geometry {
                    version,
                    cluster_bits: bits,
                    backing_name: Some(old.clone()),
                    ..Geometry::usual(100 * SECTOR)
                };
                if bits == 9 && old.len().max(new.len()) > 300 {
                    continue;
                }
                let start = Start::new(geometry, false);
                let before = contents(&start.disk());
                let rename = |disk: &Disk| {
                    let format = Some(&b"qcow2"[..]);
                    let named = disk.image.set_backing_file(&disk.container, Some(&new), format);
                    block_on(named)?;
                    block_on(disk.image.close(&disk.container))
                };
                judged += start.at_every_point(3, rename, |header, disk, context| {
                    let name = header.backing_name.as_deref();
                    let is_new = name == Some(&new[..]);
                    let len = name.map_or(0, <[u8]>::len);
                    assert!(is_new || name == Some(&old[..]), "{context}: {len} bytes");
                    assert!(contents(disk) == before, "{context}: bytes have changed");
                });
            }
        }
    }
    assert!(judged > 300, "{judged}");
}

/// Blocks that the refcount table has no entries for, so that it moves: 64 entries of 64 clusters of 512 bytes.
#[test]
fn a_refcount_table_grows() {
    let mut judged = 0;
    for (refcount_bits, lazy_refcounts) in [(64, false), (64, true)] {
        let sectors = 3900;
        let geometry = Geometry {
            cluster_bits: 9,
            refcount_bits,
            lazy_refcounts,
            ..Geometry::usual(2 * sectors * SECTOR)
        };
        let disk = open(MemoryStorage::new(blank_image(&geometry)), &geometry);
        let filled: Vec<u8> = (0..sectors).flat_map(|s| sector_of(s as u32 + 1)).collect();
        block_on(disk.write(0, &filled)).expect("a write");
        block_on(disk.image.close(&disk.container)).expect("closes");
        let start = Start {
            name: "growing table".into(),
            geometry,
            content: disk.container.file.content(),
        };
        let table = |header: &Header| header.refcount_table_offset;
        let old_table = table(&block_on(read_header(&disk.container.file)).expect("a header"));
        let moved = std::cell::Cell::new(0);
        let operate = |disk: &Disk| {
            for piece in 0..4 {
                let first = sectors + piece * 128;
                let bytes = sector_of(9).repeat(128);
                block_on(disk.write(first * SECTOR, &bytes))?;
                block_on(disk.image.flush(&disk.container))?;
            }
            block_on(disk.image.close(&disk.container))
        };
        judged += start.at_every_point(4, operate, |header, disk, context| {
            moved.set(moved.get() + u64::from(table(header) != old_table));
            let shown = contents(disk);
            assert!(shown[..filled.len()] == filled, "{context}: bytes have changed");
            for sector in shown[filled.len()..].chunks(SECTOR as usize) {
                assert!(sector == sector_of(9) || sector == sector_of(0), "{context}");
            }
        });
        assert!(moved.get() > 8, "the table has not moved");
    }
    assert!(judged > 300, "{judged}");
}
