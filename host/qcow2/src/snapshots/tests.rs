//! Snapshots of ours and of `qemu-img`'s, on the same images.

use std::path::Path;

use super::{NewSnapshot, apply, create, delete, list};
use crate::check::{CheckOptions, check};
use crate::format::ClusterSize;
use crate::image::{Image, MappingKind, OpenOptions};
use crate::testing::{FileStorage, MemoryStorage, Random, block_on, tools};

fn new(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.into(), date_seconds: 1_700_000_000, date_nanoseconds: 7 }
}

fn options() -> CheckOptions {
    CheckOptions::default()
}

/// An image whose first 4 MiB have a pattern.
fn qemu_image(path: &Path, options: &str) {
    let text = path.to_str().unwrap();
    tools::succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, text, "16M"]);
    qemu_io(path, &["write -P 1 0 4M"]);
}

fn qemu_io(path: &Path, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let path = path.to_str().unwrap();
    let arguments: Vec<&str> = ["-f", "qcow2"].into_iter().chain(commands).chain([path]).collect();
    let output = tools::succeed("qemu-io", &arguments);
    assert!(!output.contains("failed"), "{output}");
}

fn qemu_finds_nothing(path: &Path) {
    tools::succeed("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}

const OPTIONS: [&str; 6] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M,refcount_bits=64",
    "extended_l2=on",
    "refcount_bits=4,cluster_size=4k",
];

#[test]
fn qemu_accepts_ours() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for how in OPTIONS {
        let path = dir.path().join("image.qcow2");
        qemu_image(&path, how);
        let storage = FileStorage::open(&path).unwrap();
        assert_eq!(block_on(create(&storage, new("one"), &options())).unwrap(), b"1", "{how}");
        qemu_finds_nothing(&path);
        qemu_io(&path, &["write -P 2 1M 2M", "discard 3M 512k"]);
        assert_eq!(block_on(create(&storage, new("two"), &options())).unwrap(), b"2", "{how}");
        qemu_finds_nothing(&path);
        qemu_io(&path, &["write -P 3 0 6M"]);

        let snapshots = tools::qemu_info(path.to_str().unwrap())["snapshots"].clone();
        assert_eq!(snapshots[1]["name"], "two", "{how}");
        assert_eq!(snapshots[1]["id"], "2", "{how}");
        assert_eq!(snapshots[1]["date-sec"], 1_700_000_000, "{how}");

        block_on(apply(&storage, b"one", &options())).unwrap();
        qemu_finds_nothing(&path);
        qemu_io(&path, &["read -P 1 0 4M", "read -P 0 4M 4M", "write -P 4 0 64k"]);
        block_on(apply(&storage, b"2", &options())).unwrap();
        qemu_finds_nothing(&path);
        qemu_io(&path, &["read -P 1 0 1M", "read -P 2 1M 2M", "write -P 5 0 64k"]);

        block_on(delete(&storage, b"one", &options())).unwrap();
        qemu_finds_nothing(&path);
        tools::succeed("qemu-img", &["snapshot", "-a", "two", path.to_str().unwrap()]);
        qemu_io(&path, &["read -P 1 0 1M", "read -P 2 1M 2M"]);
        block_on(delete(&storage, b"two", &options())).unwrap();
        qemu_finds_nothing(&path);
        qemu_io(&path, &["read -P 1 0 1M", "read -P 2 1M 2M"]);
        assert_eq!(block_on(list(&storage)).unwrap(), []);
    }
}

#[test]
fn we_accept_qemus() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for how in OPTIONS {
        let path = dir.path().join("image.qcow2");
        qemu_image(&path, how);
        tools::succeed("qemu-img", &["snapshot", "-c", "first", path.to_str().unwrap()]);
        // A snapshot remembers its size.
        if how != "compat=0.10" {
            let text = path.to_str().unwrap();
            tools::succeed("qemu-img", &["resize", "-q", "-f", "qcow2", text, "40M"]);
        }
        qemu_io(&path, &["write -P 2 0 4M"]);
        let storage = FileStorage::open(&path).unwrap();
        let names: Vec<_> = block_on(list(&storage)).unwrap();
        assert_eq!(names[0].name, b"first", "{how}");
        block_on(apply(&storage, b"first", &options())).unwrap();
        qemu_finds_nothing(&path);
        qemu_io(&path, &["read -P 1 0 4M"]);
        let info = tools::qemu_info(path.to_str().unwrap());
        assert_eq!(info["virtual-size"], 16 << 20, "{how}");
        block_on(delete(&storage, b"1", &options())).unwrap();
        qemu_finds_nothing(&path);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let storage = MemoryStorage::default();
    let small = crate::create::CreateOptions {
        cluster_size: ClusterSize::from_bits(9).unwrap(),
        refcount_width: crate::format::RefcountWidth::from_bits(1).unwrap(),
        preallocation: crate::create::Preallocation::Metadata,
        ..crate::create::CreateOptions::new(4096)
    };
    block_on(crate::create::create(&storage, &small)).unwrap();
    let before = storage.content();
    let code = |result: crate::Result<()>| result.unwrap_err().errno();
    let take = |name: &str| block_on(create(&storage, new(name), &options())).map(|_| ());
    assert_eq!(code(take("a")), 28, "a refcount of one bit");
    assert_eq!(code(take("")), 22);
    assert_eq!(code(block_on(apply(&storage, b"a", &options()))), 2);
    assert_eq!(code(block_on(delete(&storage, b"a", &options()))), 2);
    assert_eq!(storage.content(), before);

    let wide = crate::create::CreateOptions {
        refcount_width: crate::format::RefcountWidth::SIXTEEN,
        ..small.clone()
    };
    block_on(crate::create::create(&storage, &wide)).unwrap();
    take("a").unwrap();
    assert_eq!(code(take("a")), 17);
    // Damage: the header's refcount.
    let header = block_on(crate::read_header(&storage)).unwrap();
    let mut block = [0; 8];
    storage.read_now(header.refcount_table_offset.0, &mut block);
    storage.write_now(u64::from_be_bytes(block), &[0, 0]);
    assert_eq!(code(take("b")), 5);

    let data_file = crate::create::DataFile { name: Some("d".into()), raw: false };
    let external = crate::create::CreateOptions { data_file: Some(data_file), ..wide };
    block_on(crate::create::create(&storage, &external)).unwrap();
    assert_eq!(code(take("a")), 95);
}

/// What the guest sees.
fn guest(storage: &MemoryStorage) -> Vec<u8> {
    let image = block_on(Image::open(storage, &OpenOptions::default())).unwrap();
    let turn = image.enter();
    let (mut at, mut bytes) = (0, vec![0; image.size_bytes() as usize]);
    while at < image.size_bytes() {
        let mapping = block_on(image.map(&turn, storage, at, image.size_bytes() - at)).unwrap();
        if let MappingKind::Data(host) = mapping.kind {
            storage.read_now(host.0, &mut bytes[at as usize..][..mapping.len as usize]);
        }
        at += mapping.len;
    }
    bytes
}

/// At every moment the guest sees what it saw before, or what it shall see.
#[test]
fn power_is_lost() {
    #[track_caller]
    fn check_all(
        first: &MemoryStorage,
        after: &[u8],
        work: impl Fn(&MemoryStorage) -> crate::Result<()>,
    ) -> MemoryStorage {
        let (content, before) = (first.content(), guest(first));
        let mut random = Random::new(3);
        for operations in 0.. {
            let storage = MemoryStorage::new(content.clone());
            storage.die_after(operations);
            let outcome = work(&storage);
            let left = storage.crash(&mut random);
            let report = block_on(check(&left, &options())).unwrap();
            let dirty = block_on(crate::read_header(&left)).unwrap().incompatible & 1 != 0;
            assert!(dirty || !report.is_damaged(), "{operations} operations: {report:?}");
            let seen = guest(&left);
            assert!(seen == before || seen == after, "{operations} operations");
            let repair = crate::check::Repair::All;
            let report = block_on(check(&left, &CheckOptions { repair, ..options() })).unwrap();
            assert!(report.is_clean(), "{operations} operations: {report:?}");
            assert!(guest(&left) == seen, "{operations} operations");
            if outcome.is_ok() {
                assert!(seen == after);
                return left;
            }
        }
        unreachable!()
    }
    let storage = MemoryStorage::default();
    let small = crate::create::CreateOptions {
        cluster_size: ClusterSize::from_bits(9).unwrap(),
        preallocation: crate::create::Preallocation::Metadata,
        ..crate::create::CreateOptions::new(100 << 10)
    };
    block_on(crate::create::create(&storage, &small)).unwrap();
    let len = storage.content().len() as u64;
    storage.write_now(len - (100 << 10), &[1; 100 << 10]);
    let storage = MemoryStorage::new(storage.content());
    let first = guest(&storage);

    let storage = check_all(&storage, &first, |storage| {
        block_on(create(storage, new("a"), &options())).map(|_| ())
    });
    // The guest goes on.
    let mut second = first.clone();
    second[..70 << 10].fill(2);
    block_on(write(&storage, &second[..70 << 10]));
    assert!(guest(&storage) == second);
    let storage = MemoryStorage::new(storage.content());
    let storage = check_all(&storage, &first, |storage| block_on(apply(storage, b"a", &options())));
    let storage =
        check_all(&storage, &first, |storage| block_on(delete(storage, b"1", &options())));
    assert_eq!(block_on(list(&storage)).unwrap(), []);
}

/// Writes from the guest's offset 0 on, in whole clusters, and closes the image.
async fn write(storage: &MemoryStorage, bytes: &[u8]) {
    use crate::image::Step;
    let writable = OpenOptions { writable: true, ..OpenOptions::default() };
    let image = Image::open(storage, &writable).await.unwrap();
    let mut at = 0;
    while at < bytes.len() as u64 {
        let turn = image.enter();
        let rest = bytes.len() as u64 - at;
        match image.prepare_write(&turn, storage, at, rest).await.unwrap() {
            Step::InPlace { host, len } => {
                storage.write_now(host.0, &bytes[at as usize..][..len as usize]);
                at += len;
            }
            Step::Allocate(allocation) => {
                assert_eq!(allocation.fills(), []);
                let (start, len) = (allocation.offset(), allocation.len());
                storage.write_now(allocation.host().0, &bytes[start as usize..][..len as usize]);
                image.commit(storage, allocation).await.unwrap();
                at = start + len;
            }
        }
    }
    image.close(storage).await.unwrap();
}
