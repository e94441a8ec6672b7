//! Bodies of the fuzz targets: whatever bytes an image has, all that is done with it ends, with an answer.
//!
//! An input is an image file (for [`COMPRESSED`] a kind, a cluster size and compressed bytes). What holds for
//! each, and is asserted here or by who runs it:
//! - nothing panics, waits for ever or recurses;
//! - a container is accessed at most [`ACCESSES_MAX`] times by one operation;
//! - at most [`MEMORY_MAX_BYTES`] are allocated at a time, the container in memory included.

mod damage;
mod seeds;

pub use damage::damage;

use super::{Container, Disk, MemoryStorage, block_on};
use crate::bitmaps::{BitmapChange, Directory, NewBitmap};
use crate::check::{CheckOptions, Repair, check, mend};
use crate::error::Result;
use crate::format::compressed::{compress, decompress};
use crate::format::{CompressionType, Header};
use crate::image::{Image, OpenOptions};
use crate::info::info;
use crate::read_header;
use crate::snapshots::{self, NewSnapshot};

/// Longer inputs are cut.
pub const INPUT_MAX_BYTES: usize = 64 << 10;
/// Most accesses of the container by one operation on an input: a few for each of its 128 clusters of 512 bytes
/// and for each that there is room for.
pub const ACCESSES_MAX: u64 = 20_000;
/// Most bytes allocated while an input is run.
pub const MEMORY_MAX_BYTES: usize = 16 << 20;

/// Bytes that a container grows to, when it is full.
const ROOM_BYTES: u64 = 4 << 20;
/// Bytes of a disk that are looked at.
const LOOK_BYTES: u64 = 1 << 20;
/// Bytes of memory that a check may take.
const CHECK_BYTES: u64 = 8 << 20;

/// What is done with an input, and inputs to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As the fuzz target and its corpus are called.
    pub name: &'static str,
    /// Says whether the input was what it should be, at first sight.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are, with names for their files.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// The header: read, told, written again.
pub const HEADER: Target = Target { name: "qcow2_header", run: run_header, seeds: seeds::headers };
/// L1, L2 and refcount tables: opened, mapped, written, checked, repaired.
pub const TABLES: Target = Target { name: "qcow2_tables", run: run_tables, seeds: seeds::images };
/// The bitmap directory: loaded with all bits, marked, changed.
pub const BITMAPS: Target =
    Target { name: "qcow2_bitmaps", run: run_bitmaps, seeds: seeds::bitmaps };
/// The snapshot table: shown, applied, deleted, one more taken.
pub const SNAPSHOTS: Target =
    Target { name: "qcow2_snapshots", run: run_snapshots, seeds: seeds::snapshots };
/// Compressed clusters of both kinds.
pub const COMPRESSED: Target =
    Target { name: "qcow2_compressed", run: run_compressed, seeds: seeds::compressed };
/// All.
pub const TARGETS: [Target; 5] = [HEADER, TABLES, BITMAPS, SNAPSHOTS, COMPRESSED];

/// A container with an input; each operation gets its own.
fn container(input: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new(input[..input.len().min(INPUT_MAX_BYTES)].to_vec());
    storage.set_len_max(ROOM_BYTES);
    storage.set_accesses_max(ACCESSES_MAX);
    storage
}

fn check_options(repair: Repair) -> CheckOptions {
    CheckOptions { repair, memory_bytes: CHECK_BYTES }
}

fn open_options(writable: bool) -> OpenOptions {
    OpenOptions { writable, l2_cache_bytes: 0, ..OpenOptions::default() }
}

fn run_header(input: &[u8]) -> bool {
    let storage = container(input);
    let _ = block_on(info(&storage));
    let Ok(header) = block_on(read_header(&storage)) else { return false };
    if let Ok(mut bytes) = header.encode() {
        bytes.resize(header.cluster_size.bytes() as usize, 0);
        let again = Header::parse(&bytes).expect("what was encoded is read");
        assert_eq!(again, header, "it is read as it was");
    }
    true
}

fn run_tables(input: &[u8]) -> bool {
    let is_image = block_on(map_all(input)).is_ok();
    let _ = block_on(change(input));
    let storage = container(input);
    let found = block_on(check(&storage, &check_options(Repair::None)));
    for repair in [Repair::Leaks, Repair::All] {
        let storage = container(input);
        let fixed = block_on(check(&storage, &check_options(repair)));
        // What the repair calls clean, it must still find clean.
        if fixed.is_ok_and(|report| report.is_clean()) {
            let again = block_on(check(&storage, &check_options(Repair::None))).expect("an image");
            assert!(again.is_clean(), "{found:?}\n{again:?}");
        }
    }
    let _ = block_on(mend(&container(input), CHECK_BYTES));
    is_image
}

/// How all of the disk is mapped.
async fn map_all(input: &[u8]) -> Result<()> {
    let storage = container(input);
    let image = Image::open(&storage, &open_options(false)).await?;
    map_from(&image, &storage).await
}

async fn map_from(image: &Image, storage: &MemoryStorage) -> Result<()> {
    let turn = image.enter();
    let (mut at, end) = (0, image.size_bytes().min(LOOK_BYTES));
    while at < end {
        let mapping = image.map(&turn, storage, at, end - at).await?;
        assert!(mapping.len > 0, "a mapping of no bytes");
        at += mapping.len;
    }
    Ok(())
}

/// What a guest does, and a change of the size.
async fn change(input: &[u8]) -> Result<()> {
    let file = container(input);
    let image = Image::open(&file, &open_options(true)).await?;
    let data = image.info().external_data.then(MemoryStorage::default);
    let disk = Disk { image, container: Container { file, data }, backing: None };
    let (image, container) = (&disk.image, &disk.container);
    let size = image.size_bytes();
    let _ = disk.write(size.min(LOOK_BYTES) / 2, &[7; 700][..size.min(700) as usize / 2]).await;
    let _ = image.discard(container, 0, size.min(LOOK_BYTES / 4)).await;
    let _ = disk.write(0, &[7; 700][..size.min(700) as usize]).await;
    let _ = image.flush(container).await;
    let _ = image.resize(container, size / 2).await;
    let _ = image.resize(container, size.saturating_add(LOOK_BYTES)).await;
    image.close(container).await
}

fn run_bitmaps(input: &[u8]) -> bool {
    block_on(load_bitmaps(input)).unwrap_or(false)
}

async fn load_bitmaps(input: &[u8]) -> Result<bool> {
    let storage = container(input);
    let image = Image::open(&storage, &open_options(true)).await?;
    let file = image.file(&storage);
    let mut directory = Directory::load(&file).await?;
    let size_bytes = image.size_bytes().min(LOOK_BYTES);
    let mut is_loaded = false;
    for entry in directory.entries() {
        is_loaded |= directory.load_words(&file, &entry.name, size_bytes).await.is_ok();
    }
    image.follow_bitmaps();
    let _ = directory.begin_use(&file, |_| true).await;
    let new = NewBitmap {
        name: b"new",
        granularity_bits: 9,
        auto: true,
        in_use: false,
        size_bytes,
        words: &[5],
    };
    let _ = directory.change(&file, &[BitmapChange::Store(new)]).await;
    let _ = image.close(&storage).await;
    let _ = check(&storage, &check_options(Repair::All)).await;
    Ok(is_loaded)
}

fn run_snapshots(input: &[u8]) -> bool {
    let Ok(found) = block_on(snapshots::list(&container(input))) else { return false };
    let options = check_options(Repair::All);
    for snapshot in found.iter().take(3) {
        let storage = container(input);
        let open = OpenOptions { snapshot: Some(snapshot.id.clone()), ..open_options(false) };
        if let Ok(image) = block_on(Image::open(&storage, &open)) {
            let _ = block_on(map_from(&image, &storage));
        }
        let _ = block_on(snapshots::apply(&container(input), &snapshot.id, &options));
        let _ = block_on(snapshots::delete(&container(input), &snapshot.id, &options));
    }
    let new = NewSnapshot { name: b"new".to_vec(), date_seconds: 1, date_nanoseconds: 2 };
    let _ = block_on(snapshots::create(&container(input), new, &options));
    !found.is_empty()
}

fn run_compressed(input: &[u8]) -> bool {
    let [kind, bits, bytes @ ..] = input else { return false };
    let kind = if kind % 2 == 0 { CompressionType::Deflate } else { CompressionType::Zstd };
    let mut cluster = vec![0; 512 << (bits % 8)];
    if decompress(kind, bytes, &mut cluster).is_err() {
        return false;
    }
    if let Some(packed) = compress(kind, &cluster).expect("it is compressed") {
        let mut again = vec![1; cluster.len()];
        decompress(kind, &packed, &mut again).expect("what was compressed is read");
        assert!(again == cluster, "it is read as it was");
    }
    true
}
