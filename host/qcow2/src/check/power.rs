//! Repairs that lose power: at no moment is the image worse than it was.

use super::{CheckOptions, Repair, check};
use crate::create::{CreateOptions, Preallocation, create};
use crate::format::header::fields;
use crate::format::{ClusterSize, Header};
use crate::image::{Image, MappingKind, OpenOptions};
use crate::read_header;
use crate::storage::Storage;
use crate::testing::{MemoryStorage, Random, block_on};

const ALL: CheckOptions = CheckOptions { repair: Repair::All, memory_bytes: 1 << 24 };

/// What the guest sees, and from where.
fn guest(storage: &MemoryStorage) -> Vec<(u64, Vec<u8>)> {
    let image = block_on(Image::open(storage, &OpenOptions::default())).unwrap();
    let turn = image.enter();
    let (mut at, mut pieces) = (0, Vec::new());
    while at < image.size_bytes() {
        let mapping = block_on(image.map(&turn, storage, at, image.size_bytes() - at)).unwrap();
        let mut bytes = vec![0; mapping.len as usize];
        if let MappingKind::Data(host) = mapping.kind {
            storage.read_now(host.0, &mut bytes);
        }
        pieces.push((at, bytes));
        at += mapping.len;
    }
    pieces
}

/// An image full of data.
fn image() -> (MemoryStorage, Header) {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        cluster_size: ClusterSize::from_bits(9).unwrap(),
        preallocation: Preallocation::Metadata,
        ..CreateOptions::new(200 << 10)
    };
    block_on(create(&storage, &options)).unwrap();
    let len = storage.content().len();
    let mut random = Random::new(11);
    let noise: Vec<u8> = (0..200 << 10).map(|_| random.number() as u8).collect();
    storage.write_now((len - noise.len()) as u64, &noise);
    let header = block_on(read_header(&storage)).unwrap();
    (storage, header)
}

fn damage(storage: &MemoryStorage, header: &Header, kind: u64) {
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        storage.read_now(offset, &mut bytes);
        u64::from_be_bytes(bytes)
    };
    let (table, l1) = (header.refcount_table_offset.0, header.l1_offset.0);
    match kind {
        // A block of refcounts is behind.
        0 => storage.write_now(word(table), &[0; 400]),
        // It is gone.
        1 => storage.write_now(table + 8, &[0; 8]),
        // It is another one's.
        2 => storage.write_now(table + 8, &word(table).to_be_bytes()),
        // Flags say what refcounts do not, and the other way round.
        3 => {
            storage.write_now(l1, &(word(l1) & !(1 << 63)).to_be_bytes());
            storage.write_now(word(table), &[0, 2, 0, 3, 0, 1, 0, 2, 0, 3, 0, 1, 0, 4]);
        }
        // Leaks behind the end, and a dirty mark.
        _ => {
            let end = storage.content().len() as u64;
            storage.write_now(end, &[7; 3 * 512]);
            let block = word(table + 8);
            storage.write_now(block + (end / 512 % 256) * 2, &[0, 1, 0, 9, 0, 2]);
            let header = Header { incompatible: 1, ..header.clone() };
            storage.write_now(fields::FEATURES, &header.features_field());
        }
    }
    block_on(storage.flush()).unwrap();
}

#[test]
fn power_is_lost_during_a_repair() {
    for kind in 0..5 {
        let (storage, header) = image();
        damage(&storage, &header, kind);
        let before = guest(&storage);
        let first = storage.content();
        let mut random = Random::new(kind);
        for operations in 0.. {
            let storage = MemoryStorage::new(first.clone());
            storage.die_after(operations);
            let outcome = block_on(check(&storage, &ALL));
            let after = storage.crash(&mut random);
            assert!(guest(&after) == before, "damage {kind}, {operations} operations");
            let report = block_on(check(&after, &ALL)).unwrap();
            assert!(report.is_clean(), "damage {kind}, {operations} operations: {report:?}");
            assert!(guest(&after) == before, "damage {kind}, {operations} operations");
            if let Ok(report) = outcome {
                assert!(report.is_clean() && operations > 2, "damage {kind}");
                break;
            }
        }
    }
}

#[test]
fn power_is_lost_during_a_creation() {
    let options = CreateOptions {
        cluster_size: ClusterSize::from_bits(9).unwrap(),
        preallocation: Preallocation::Full,
        ..CreateOptions::new(64 << 10)
    };
    let mut random = Random::new(5);
    let former = image().0.content();
    for operations in 0.. {
        let storage = MemoryStorage::new(former.clone());
        storage.die_after(operations);
        let outcome = block_on(create(&storage, &options));
        let after = storage.crash(&mut random);
        // The old image, none, or the new one.
        if block_on(read_header(&after)).is_ok() {
            let report = block_on(check(&after, &CheckOptions::default())).unwrap();
            assert!(report.is_clean(), "{operations} operations: {report:?}");
        }
        if outcome.is_ok() {
            assert_eq!(block_on(read_header(&after)).unwrap().size_bytes, options.virtual_size);
            break;
        }
    }
}
