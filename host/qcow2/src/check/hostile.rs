//! Damage at random: whatever an image says, opening and checking it ends, with an answer, in bounds.

use super::{CheckOptions, Repair, check};
use crate::create::{CreateOptions, Preallocation, create};
use crate::format::snapshot::Snapshot;
use crate::format::{ClusterSize, HostOffset, RefcountWidth};
use crate::image::{Image, OpenOptions};
use crate::info::info;
use crate::testing::{MemoryStorage, Random, block_on};

/// Changes a repair may try to write this far: it must find that there is no room.
const ROOM_BYTES: u64 = 64 << 20;
/// Most operations of a repair, of a few hundred clusters.
const OPERATIONS_MAX: u64 = 20_000;
const ROUNDS: u64 = 2000;

fn images() -> Vec<Vec<u8>> {
    let build = |options: CreateOptions| {
        let storage = MemoryStorage::default();
        block_on(create(&storage, &options)).unwrap();
        let mut bytes = storage.content();
        // Tables that only corrupted numbers lead to: a snapshot table and rubbish.
        let mut table = Vec::new();
        let l1_table = HostOffset(3 * options.cluster_size.bytes());
        for id in 0..3 {
            let snapshot = Snapshot {
                l1_table,
                l1_entries: 1,
                id: vec![b'0' + id],
                virtual_size: Some(options.virtual_size),
                ..Snapshot::default()
            };
            snapshot.encode_into(&mut table).unwrap();
        }
        bytes.extend(table);
        bytes
    };
    let metadata = Preallocation::Metadata;
    let small = ClusterSize::from_bits(9).unwrap();
    let narrow = RefcountWidth::from_bits(1).unwrap();
    vec![
        build(CreateOptions {
            cluster_size: small,
            preallocation: metadata,
            ..CreateOptions::new(64 << 10)
        }),
        build(CreateOptions {
            cluster_size: small,
            refcount_width: narrow,
            preallocation: metadata,
            ..CreateOptions::new(200 << 10)
        }),
        build(CreateOptions {
            cluster_size: ClusterSize::from_bits(14).unwrap(),
            extended_l2: true,
            preallocation: metadata,
            ..CreateOptions::new(128 << 10)
        }),
    ]
}

/// Changes a few words: most of them to what could be a place, a flag or a large number.
fn damage(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let metadata = 16 << 10;
        let end = if random.one_in(2) { 128 } else { bytes.len().min(metadata) as u64 };
        let at = (random.below(end) as usize & !3).min(bytes.len() - 8);
        match random.below(5) {
            0 => bytes[at] = random.number() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at..at + 4].copy_from_slice(&(random.number() as u32).to_be_bytes()),
            3 => bytes[at..at + 8].copy_from_slice(&(random.below(300) << 9).to_be_bytes()),
            _ => bytes[at..at + 8].copy_from_slice(&[u8::MAX; 8]),
        }
    }
}

#[test]
fn no_damage_is_too_much() {
    let images = images();
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let mut bytes = images[random.below(images.len() as u64) as usize].clone();
        damage(&mut bytes, &mut random);
        println!("seed {seed}");
        let storage = MemoryStorage::new(bytes);
        storage.set_len_max(ROOM_BYTES);
        let _ = block_on(info(&storage));
        let options = CheckOptions { memory_bytes: 16 << 20, ..CheckOptions::default() };
        let found = block_on(check(&storage, &options));
        for writable in [false, true] {
            let options = OpenOptions { writable, ..OpenOptions::default() };
            if let Ok(image) = block_on(Image::open(&storage, &options)) {
                let turn = image.enter();
                let (mut at, end) = (0, image.size_bytes().min(1 << 20));
                while at < end {
                    let Ok(mapping) = block_on(image.map(&turn, &storage, at, end - at)) else {
                        break;
                    };
                    assert!(mapping.len > 0);
                    at += mapping.len;
                }
            }
        }
        let before = storage.operations();
        let fixed = block_on(check(&storage, &CheckOptions { repair: Repair::All, ..options }));
        assert!(storage.operations() - before < OPERATIONS_MAX);
        // What the repair calls clean, it must still find clean.
        if fixed.is_ok_and(|report| report.is_clean()) {
            let again = block_on(check(&storage, &options)).unwrap();
            assert!(again.is_clean(), "{found:?}\n{again:?}");
        }
    }
}
