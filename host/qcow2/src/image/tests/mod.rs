//! The engine against a model: contents, consistency on disk, crashes, dropped futures.
//!
//! A disk's model is a value for each 512-byte sector, or rather the values that it may have: several
//! while writes are in flight, and after a crash. A sector holds its value 128 times, so that a sector
//! composed of two writes is found.

mod abandoned;
mod compressed;
mod concurrent;
mod crash;
mod device;
mod failed_syncs;
mod flags;
mod growth;
mod hostile;
mod interop;
mod model;
mod points;

use std::collections::BTreeSet;

use crate::check::{CheckOptions, CheckReport};
use crate::error::Result;
use crate::format::Version;
use crate::image::{Image, OpenOptions};
use crate::testing::{Container, Disk, Geometry, MemoryStorage, blank_image};

const SECTOR: u64 = 512;
/// Set in sectors of a backing.
const BACKING: u32 = 0x8000_0000;

/// Geometries in which images differ in code, small enough to fill.
fn geometries() -> Vec<Geometry> {
    let usual = Geometry { cluster_bits: 12, ..Geometry::usual(3 << 20) };
    let odd_end = usual.size_bytes - 7 * SECTOR;
    let backing_name = Some(b"base".to_vec());
    vec![
        usual.clone(),
        Geometry { cluster_bits: 9, size_bytes: 1 << 20, ..usual.clone() },
        Geometry { cluster_bits: 9, refcount_bits: 64, size_bytes: 400 << 10, ..usual.clone() },
        Geometry { refcount_bits: 1, size_bytes: odd_end, ..usual.clone() },
        Geometry { version: Version::V2, ..usual.clone() },
        Geometry { version: Version::V2, backing_name: backing_name.clone(), ..usual.clone() },
        Geometry { backing_name: backing_name.clone(), size_bytes: odd_end, ..usual.clone() },
        Geometry { cluster_bits: 14, extended_l2: true, ..usual.clone() },
        Geometry {
            cluster_bits: 15,
            extended_l2: true,
            backing_name: backing_name.clone(),
            size_bytes: odd_end,
            ..usual.clone()
        },
        Geometry { lazy_refcounts: true, ..usual.clone() },
        Geometry { cluster_bits: 9, lazy_refcounts: true, size_bytes: 1 << 20, ..usual.clone() },
        Geometry { external_data: true, size_bytes: odd_end, ..usual.clone() },
        Geometry { external_data: true, backing_name, ..usual },
    ]
}

fn options() -> OpenOptions {
    // The smallest cache: dirty slices are evicted all the time.
    OpenOptions { writable: true, l2_cache_bytes: 0, ..OpenOptions::default() }
}

/// A disk over a blank image; its backing, if any, is shorter than itself.
fn new_disk(geometry: &Geometry) -> Disk {
    let container = Container {
        file: MemoryStorage::new(blank_image(geometry)),
        data: geometry.external_data.then(MemoryStorage::default),
    };
    open_disk(container, geometry).expect("a blank image opens")
}

fn open_disk(container: Container, geometry: &Geometry) -> Result<Disk> {
    let image = crate::testing::block_on(Image::open(&container, &options()))?;
    let sectors = geometry.size_bytes / SECTOR * 3 / 4;
    let backing = geometry.backing_name.is_some();
    let content = || (0..sectors).flat_map(|s| sector_of(BACKING | s as u32)).collect();
    Ok(Disk { image, container, backing: backing.then(content) })
}

fn sector_of(value: u32) -> Vec<u8> {
    value.to_be_bytes().repeat(SECTOR as usize / 4)
}

/// What the crate's checker says, which shares no code with the engine but the format's.
fn check(storage: &MemoryStorage) -> CheckReport {
    let options = CheckOptions::default();
    crate::testing::block_on(crate::check::check(storage, &options)).expect("an image")
}

/// Values by sector.
struct Model {
    /// What a sector may read.
    now: Vec<BTreeSet<u32>>,
    /// What it may read after a crash.
    after_crash: Vec<BTreeSet<u32>>,
    next_value: u32,
}

impl Model {
    fn new(disk: &Disk) -> Self {
        let sectors = disk.image.size_bytes() / SECTOR;
        let backing = disk.backing.as_ref().map_or(0, |b| b.len() as u64 / SECTOR);
        let value = |s: u64| if s < backing { BACKING | s as u32 } else { 0 };
        let now: Vec<_> = (0..sectors).map(|s| BTreeSet::from([value(s)])).collect();
        Self { after_crash: now.clone(), now, next_value: 1 }
    }

    fn sectors(&self) -> u64 {
        self.now.len() as u64
    }

    fn fresh_value(&mut self) -> u32 {
        self.next_value += 1;
        self.next_value
    }

    /// A change of a sector was begun; `certain` once it has ended well, with nothing beside it.
    fn change(&mut self, sector: u64, value: u32, certain: bool) {
        let sector = sector as usize;
        if certain {
            self.now[sector].clear();
        }
        self.now[sector].insert(value);
        self.after_crash[sector].insert(value);
    }

    /// What was there before is durable.
    fn flushed(&mut self) {
        self.after_crash.clone_from(&self.now);
    }

    /// Whether the disk reads as it may; what it reads is known from now on.
    fn check(&mut self, disk: &Disk, crashed: bool, context: &str) {
        let mut content = vec![0; (self.sectors() * SECTOR) as usize];
        crate::testing::block_on(disk.read(0, &mut content)).expect(context);
        for (sector, bytes) in content.chunks_exact(SECTOR as usize).enumerate() {
            let mut first = [0; 4];
            first.copy_from_slice(&bytes[..4]);
            let value = u32::from_be_bytes(first);
            assert!(bytes == sector_of(value), "{context}: sector {sector} is torn");
            let may = if crashed { &self.after_crash[sector] } else { &self.now[sector] };
            assert!(
                may.contains(&value),
                "{context}: sector {sector} reads {value:#x}, may {may:x?}"
            );
            self.now[sector] = BTreeSet::from([value]);
            if crashed {
                self.after_crash[sector] = BTreeSet::from([value]);
            }
        }
    }
}

#[test]
fn an_image_is_shared_by_threads() {
    fn check<T: Send + Sync>() {}
    check::<Image>();
}
