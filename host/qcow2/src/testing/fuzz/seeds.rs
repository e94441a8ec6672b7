//! Inputs to begin with: small images of all kinds, as they are made here.

use crate::bitmaps::{BitmapChange, Directory, NewBitmap};
use crate::check::CheckOptions;
use crate::create::{Backing, CreateOptions, DataFile, Preallocation, create};
use crate::format::compressed::compress;
use crate::format::{ClusterSize, CompressionType, RefcountWidth, Version};
use crate::image::{Image, OpenOptions};
use crate::snapshots::{self, NewSnapshot};
use crate::testing::{Container, Disk, MemoryStorage, block_on};

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Of clusters of 512 bytes.
fn small(size_bytes: u64) -> CreateOptions {
    let cluster_size = ClusterSize::from_bits(9).expect("a size");
    CreateOptions { cluster_size, ..CreateOptions::new(size_bytes) }
}

fn made(options: &CreateOptions) -> MemoryStorage {
    let storage = MemoryStorage::default();
    block_on(create(&storage, options)).expect("an image");
    storage
}

/// Some data in an image.
fn written(file: MemoryStorage) -> MemoryStorage {
    let options = OpenOptions { writable: true, l2_cache_bytes: 0, ..OpenOptions::default() };
    let image = block_on(Image::open(&file, &options)).expect("an image");
    let disk = Disk { image, container: Container { file, data: None }, backing: None };
    for at in [0, 3000, 9000] {
        block_on(disk.write(at, &[5; 700])).expect("a write");
    }
    block_on(disk.image.zero(&disk.container, 0, 1024, true)).expect("zeros");
    block_on(disk.image.close(&disk.container)).expect("closes");
    disk.container.file
}

pub(super) fn headers() -> Seeds {
    let backing = Backing { name: "base.qcow2".into(), format: Some("qcow2".into()) };
    let data = DataFile { name: Some("data.raw".into()), raw: true };
    let kinds = [
        ("v2", CreateOptions { version: Version::V2, ..small(4096) }),
        ("v3", small(4096)),
        ("backing", CreateOptions { backing: Some(backing), ..small(4096) }),
        ("data-file", CreateOptions { data_file: Some(data), ..small(4096) }),
        ("zstd", CreateOptions { compression: CompressionType::Zstd, ..small(4096) }),
        ("lazy", CreateOptions { lazy_refcounts: true, ..small(4096) }),
    ];
    let head = |options| {
        let mut bytes = made(&options).content();
        bytes.truncate(options.cluster_size.bytes() as usize);
        bytes
    };
    kinds.into_iter().map(|(name, options)| (name, head(options))).collect()
}

pub(super) fn images() -> Seeds {
    let narrow = RefcountWidth::from_bits(1).expect("a width");
    let wide = RefcountWidth::from_bits(64).expect("a width");
    let metadata = Preallocation::Metadata;
    let seeds = [
        ("written", written(made(&small(64 << 10)))),
        ("v2", written(made(&CreateOptions { version: Version::V2, ..small(64 << 10) }))),
        (
            "narrow",
            made(&CreateOptions {
                refcount_width: narrow,
                preallocation: metadata,
                ..small(16 << 10)
            }),
        ),
        ("wide", written(made(&CreateOptions { refcount_width: wide, ..small(64 << 10) }))),
        ("lazy", written(made(&CreateOptions { lazy_refcounts: true, ..small(64 << 10) }))),
    ];
    seeds.into_iter().map(|(name, storage)| (name, storage.content())).collect()
}

pub(super) fn bitmaps() -> Seeds {
    // Names of features fill a header of 512 bytes.
    let cluster_size = ClusterSize::from_bits(10).expect("a size");
    let file = written(made(&CreateOptions { cluster_size, ..small(64 << 10) }));
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let image = block_on(Image::open(&file, &options)).expect("an image");
    let view = image.file(&file);
    let mut directory = block_on(Directory::load(&view)).expect("a directory");
    let bitmap = |name, auto, words| {
        BitmapChange::Store(NewBitmap {
            name,
            granularity_bits: 9,
            auto,
            in_use: false,
            size_bytes: 64 << 10,
            words,
        })
    };
    let changes = [bitmap(b"one", true, &[u64::MAX; 2]), bitmap(b"two", false, &[1, 0])];
    block_on(directory.change(&view, &changes)).expect("stored");
    block_on(image.close(&file)).expect("closes");
    vec![("two", file.content())]
}

pub(super) fn snapshots() -> Seeds {
    let mut file = written(made(&small(64 << 10)));
    let mut seeds = Seeds::new();
    for name in ["one", "two"] {
        let new = NewSnapshot { name: name.into(), date_seconds: 1, date_nanoseconds: 2 };
        block_on(snapshots::create(&file, new, &CheckOptions::default())).expect("taken");
        file = written(file);
        seeds.push((name, file.content()));
    }
    seeds
}

pub(super) fn compressed() -> Seeds {
    let cluster: Vec<u8> = (0..4096_u64).map(|at| (at * at / 700 % 64) as u8).collect();
    let kinds = [("deflate", 0, CompressionType::Deflate), ("zstd", 1, CompressionType::Zstd)];
    let seed = |(name, first, kind)| {
        let packed = compress(kind, &cluster).expect("compresses").expect("smaller");
        // Clusters of 512 << 3 bytes.
        (name, [&[first, 3][..], &packed].concat())
    };
    kinds.into_iter().map(seed).collect()
}
