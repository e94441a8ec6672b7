//! Images of `qemu-img`'s, good and damaged: both checkers must agree.

use std::path::{Path, PathBuf};

use super::{CheckOptions, CheckReport, Repair, check, mend};
use crate::create::{CreateOptions, Preallocation, create};
use crate::format::header::{features, fields};
use crate::format::{ClusterSize, Header, HostOffset};
use crate::read_header;
use crate::storage::Storage;
use crate::testing::{FileStorage, MemoryStorage, block_on, tools};
use crate::words::word_at;

fn repair(path: &Path, repair: Repair) -> CheckReport {
    let storage = FileStorage::open(path).unwrap();
    block_on(check(&storage, &CheckOptions { repair, ..CheckOptions::default() })).unwrap()
}

/// The numbers that `qemu-img check` has as well, in its order.
fn numbers(report: &CheckReport) -> [u64; 8] {
    [
        report.image_end_offset,
        report.total_clusters,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
        report.leaks,
        report.corruptions,
        report.check_errors,
    ]
}

fn qemu_numbers(path: &Path) -> [u64; 8] {
    let found = tools::qemu_check(path.to_str().unwrap());
    [
        "image-end-offset",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
        "leaks",
        "corruptions",
        "check-errors",
    ]
    .map(|field| found[field].as_u64().unwrap_or(0))
}

/// Images with something in them, by name.
const IMAGES: [(&str, &str); 9] = [
    ("plain", "size=64M"),
    ("old", "size=64M,compat=0.10"),
    ("small clusters", "size=16M,cluster_size=512"),
    ("large clusters", "size=64M,cluster_size=2M"),
    ("narrow refcounts", "size=64M,refcount_bits=2,cluster_size=4k"),
    ("wide refcounts", "size=64M,refcount_bits=64,cluster_size=4k"),
    ("extended", "size=64M,extended_l2=on"),
    ("zstd", "size=64M,compression_type=zstd"),
    ("lazy", "size=64M,lazy_refcounts=on"),
];

/// Has data, zeros, compressed clusters, two snapshots with changes between, and a bitmap.
fn image(dir: &Path, options: &str) -> PathBuf {
    let path = dir.join("image.qcow2");
    let text = path.to_str().unwrap();
    let (size, rest) = options.split_once(',').unwrap_or((options, "compat=1.1"));
    let size = size.strip_prefix("size=").unwrap();
    let qemu_img = |arguments: &[&str]| tools::succeed("qemu-img", arguments);
    let qemu_io = |commands: &[&str]| {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        tools::succeed(
            "qemu-io",
            &["-f", "qcow2"].into_iter().chain(commands).chain([text]).collect::<Vec<_>>(),
        );
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", rest, text, size]);
    if !rest.contains("compat=0.10") {
        qemu_img(&["bitmap", "-f", "qcow2", "--add", text, "bits"]);
    }
    qemu_io(&["write -P 1 100k 500k", "write -P 2 3M 1M", "write -c 4M 2M", "write -c 8M 2M"]);
    // Compressed clusters share host clusters, up to the largest refcount: a snapshot would double it.
    let snapshots = !rest.contains("refcount_bits=2");
    if snapshots {
        qemu_img(&["snapshot", "-c", "first", text]);
    }
    qemu_io(&["write -P 3 200k 100k", "write -P 4 6M 200k", "discard 3M 512k"]);
    if snapshots {
        qemu_img(&["snapshot", "-c", "second", text]);
    }
    qemu_io(&["write -P 5 150k 3k", "write -c 10M 2M"]);
    path
}

#[test]
fn good_images() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in IMAGES {
        let path = image(dir.path(), options);
        let report = repair(&path, Repair::None);
        assert!(report.is_clean(), "{name}: {report:?}");
        assert_eq!(numbers(&report), qemu_numbers(&path), "{name}");
    }
}

/// A small image, whose bytes a damage changes.
struct Victim {
    bytes: Vec<u8>,
    header: Header,
}

impl Victim {
    fn new(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let header = block_on(read_header(&MemoryStorage::new(bytes.clone()))).unwrap();
        Self { bytes, header }
    }

    fn word(&self, offset: u64) -> u64 {
        word_at(&self.bytes, offset as usize / 8)
    }

    fn set_word(&mut self, offset: u64, word: u64) {
        self.bytes[offset as usize..][..8].copy_from_slice(&word.to_be_bytes());
    }

    fn l1(&self) -> u64 {
        self.header.l1_offset.0
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & 0x00ff_ffff_ffff_fe00
    }

    /// The offset of the first entry of the first L2 table that has data.
    fn data_entry(&self) -> u64 {
        let table = self.l2();
        (table..).step_by(8).find(|&at| self.word(at) & 0x00ff_ffff_ffff_fe00 != 0).unwrap()
    }

    /// Of the first bitmap: the offset of its table is the first word of the directory.
    fn bitmap_table(&self) -> u64 {
        self.word(self.header.bitmaps().unwrap().directory_offset)
    }

    fn block(&self) -> u64 {
        self.word(self.header.refcount_table_offset.0)
    }

    /// Where the 16-bit refcount of a host offset is.
    fn refcount(&self, host: u64) -> usize {
        (self.block() + (host >> 16) * 2) as usize
    }
}

type Damage = (&'static str, fn(&mut Victim));

/// What can be repaired, completely.
const DAMAGES: [Damage; 12] = [
    ("leak", |victim| {
        let end = victim.bytes.len().next_multiple_of(65536) + 65536;
        victim.bytes.resize(end, 0);
        let at = victim.refcount(end as u64 - 65536);
        victim.bytes[at + 1] = 1;
    }),
    ("refcount too large", |victim| {
        let at = victim.refcount(victim.l2());
        victim.bytes[at + 1] = 7;
    }),
    ("refcount of an L2 table zero", |victim| {
        let at = victim.refcount(victim.l2());
        victim.bytes[at + 1] = 0;
    }),
    ("refcount of data zero", |victim| {
        let host = victim.word(victim.data_entry()) & 0x00ff_ffff_ffff_fe00;
        let at = victim.refcount(host);
        victim.bytes[at + 1] = 0;
    }),
    ("refcount of the header zero", |victim| {
        let at = victim.refcount(0);
        victim.bytes[at + 1] = 0;
    }),
    ("copied flag of an L2 table", |victim| {
        let (at, word) = (victim.l1(), victim.word(victim.l1()));
        victim.set_word(at, word ^ 1 << 63);
    }),
    ("copied flag of data", |victim| {
        let at = victim.data_entry();
        victim.set_word(at, victim.word(at) ^ 1 << 63);
    }),
    ("all refcounts zero", |victim| {
        let at = victim.block() as usize;
        victim.bytes[at..at + 65536].fill(0);
    }),
    ("no refcount block", |victim| {
        victim.set_word(victim.header.refcount_table_offset.0, 0);
    }),
    ("refcount block not aligned", |victim| {
        let word = victim.block();
        victim.set_word(victim.header.refcount_table_offset.0, word + 512);
    }),
    ("refcount block past the end", |victim| {
        victim.set_word(victim.header.refcount_table_offset.0, 1 << 40);
    }),
    ("refcount block is an L2 table", |victim| {
        victim.set_word(victim.header.refcount_table_offset.0, victim.l2());
    }),
];

fn write_victim(path: &Path, damage: fn(&mut Victim), good: &Path) {
    let mut victim = Victim::new(good);
    damage(&mut victim);
    std::fs::write(path, &victim.bytes).unwrap();
}

/// Both find as much, our repair leaves an image that `qemu-img` finds clean, with the same contents.
#[test]
fn damaged_images() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let good = image(dir.path(), "size=64M");
    let damaged = dir.path().join("damaged.qcow2");
    let (good_text, text) = (good.to_str().unwrap(), damaged.to_str().unwrap());
    for (name, damage) in DAMAGES {
        write_victim(&damaged, damage, &good);
        let before = std::fs::read(&damaged).unwrap();
        let (report, expect) = (repair(&damaged, Repair::None), qemu_numbers(&damaged));
        assert_eq!(std::fs::read(&damaged).unwrap(), before, "{name}: a check changes nothing");
        assert!(!report.is_clean(), "{name}");
        // Where the table itself is broken, the two count its parts differently.
        if !name.contains("block") {
            assert_eq!(numbers(&report), expect, "{name}: {:?}", report.findings);
        } else {
            assert!(report.corruptions > 0 && expect[6] > 0, "{name}: {report:?}");
        }
        let report = repair(&damaged, Repair::All);
        assert!(report.is_clean(), "{name}: {report:?}");
        assert!(report.leaks_fixed + report.corruptions_fixed > 0, "{name}");
        let found = qemu_numbers(&damaged);
        assert_eq!(found[5..], [0, 0, 0], "{name}");
        assert_eq!(numbers(&report), found, "{name}");
        tools::succeed(
            "qemu-img",
            &["compare", "-q", "-f", "qcow2", "-F", "qcow2", good_text, text],
        );
        let again = repair(&damaged, Repair::All);
        assert_eq!((again.leaks_fixed, again.corruptions_fixed), (0, 0), "{name}");
    }
}

/// What no checker can put right without a guess is told, and stays as it was.
#[test]
fn damage_beyond_repair() {
    const BEYOND: [Damage; 9] = [
        ("data not aligned", |victim| {
            let at = victim.data_entry();
            victim.set_word(at, victim.word(at) + 512);
        }),
        ("data past the end", |victim| {
            let at = victim.data_entry();
            victim.set_word(at, 1 << 63 | 1 << 40);
        }),
        ("reserved bit", |victim| {
            let at = victim.data_entry();
            victim.set_word(at, victim.word(at) | 1 << 60);
        }),
        ("L2 table not aligned", |victim| {
            let at = victim.l1();
            victim.set_word(at, victim.word(at) + 512);
        }),
        ("L2 table past the end", |victim| victim.set_word(victim.l1(), 1 << 63 | 1 << 40)),
        ("data in the refcount block", |victim| {
            let at = victim.data_entry();
            victim.set_word(at, 1 << 63 | victim.block());
        }),
        ("bitmap data past the end", |victim| {
            let at = victim.bitmap_table();
            victim.set_word(at, 1 << 40);
        }),
        ("bitmap without a name", |victim| {
            let at = victim.header.bitmaps().unwrap().directory_offset as usize;
            victim.bytes[at + 18..at + 20].fill(0);
        }),
        ("snapshots nowhere", |victim| {
            victim.header.snapshots_offset = HostOffset(1 << 40);
            let field = victim.header.snapshots_field();
            victim.bytes[fields::SNAPSHOTS as usize..][..12].copy_from_slice(&field);
        }),
    ];
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let good = image(dir.path(), "size=64M");
    let damaged = dir.path().join("damaged.qcow2");
    for (name, damage) in BEYOND {
        write_victim(&damaged, damage, &good);
        let report = repair(&damaged, Repair::None);
        assert!(report.is_damaged(), "{name}");
        let report = repair(&damaged, Repair::All);
        assert!(report.is_damaged() || name.starts_with("data in"), "{name}: {report:?}");
    }
}

/// A writer with lazy refcounts that was killed: refcounts are behind, nothing else.
#[test]
fn a_dirty_image() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dirty.qcow2");
    let text = path.to_str().unwrap();
    tools::succeed(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", text, "64M"],
    );
    let commands = ["-f", "qcow2", "-c", "write -P 9 0 5M", "-c", "flush", "-c", "abort", text];
    tools::run("qemu-io", &commands);
    let storage = FileStorage::open(&path).unwrap();
    assert_eq!(block_on(read_header(&storage)).unwrap().incompatible, 1);
    let report = repair(&path, Repair::All);
    assert!(report.is_clean() && report.corruptions_fixed == 80, "{report:?}");
    assert_eq!(block_on(read_header(&storage)).unwrap().incompatible, 0);
    assert_eq!(qemu_numbers(&path), numbers(&report));
    tools::succeed("qemu-io", &["-f", "qcow2", "-c", "read -P 9 0 5M", text]);
}

#[test]
fn unknown_autoclear_features_do_not_survive_a_repair() {
    let storage = MemoryStorage::default();
    block_on(create(&storage, &CreateOptions::new(1 << 20))).unwrap();
    let mut header = block_on(read_header(&storage)).unwrap();
    header.autoclear = 1 << 40;
    block_on(storage.write(fields::FEATURES, &header.features_field())).unwrap();
    for (repair, autoclear) in [(Repair::None, 1 << 40), (Repair::Leaks, 0)] {
        let options = CheckOptions { repair, ..CheckOptions::default() };
        assert!(block_on(check(&storage, &options)).unwrap().is_clean());
        assert_eq!(block_on(read_header(&storage)).unwrap().autoclear, autoclear);
    }
}

#[test]
fn memory_is_bounded() {
    let storage = MemoryStorage::default();
    block_on(create(&storage, &CreateOptions::new(1 << 20))).unwrap();
    let options = CheckOptions { memory_bytes: 8192, ..CheckOptions::default() };
    assert_eq!(block_on(check(&storage, &options)).unwrap_err().errno(), 28);
}

/// An image with a mapping for each of its clusters, and a header that says what `tell` has it say.
fn full(tell: impl Fn(&mut Header)) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        cluster_size: ClusterSize::from_bits(9).unwrap(),
        preallocation: Preallocation::Metadata,
        ..CreateOptions::new(4 << 20)
    };
    block_on(create(&storage, &options)).unwrap();
    let mut header = block_on(read_header(&storage)).unwrap();
    tell(&mut header);
    block_on(storage.write(fields::FEATURES, &header.features_field())).unwrap();
    block_on(storage.write(fields::SIZE, &header.size_bytes.to_be_bytes())).unwrap();
    storage
}

/// The first start after a kill reads each table of an image once, if that is well.
#[test]
fn what_is_in_order_is_looked_at_once() {
    for mark in [features::OPEN, 0] {
        let storage = full(|header| {
            header.autoclear |= mark;
            header.incompatible |= if mark == 0 { features::DIRTY } else { 0 };
        });
        let before = storage.accesses();
        assert!(block_on(check(&storage, &CheckOptions::default())).unwrap().is_clean());
        let once = storage.accesses() - before;
        let report = block_on(mend(&storage, 1 << 24)).unwrap().expect("it was not closed");
        assert!(report.is_clean());
        let mended = storage.accesses() - before - once;
        assert!(once > 250 && mended < once + once / 4, "{mended} accesses, a check has {once}");
        assert_eq!(block_on(mend(&storage, 1 << 24)).unwrap(), None, "the mark is taken back");
    }
}

/// What is told of a repaired image is so after all of the repair, the end of a shrink that was cut short included.
#[test]
fn a_report_is_of_the_image_as_it_is() {
    let storage = full(|header| {
        header.autoclear |= features::OPEN;
        header.size_bytes /= 2;
    });
    let before = block_on(check(&storage, &CheckOptions::default())).unwrap();
    let report = block_on(mend(&storage, 1 << 24)).unwrap().expect("it was not closed");
    let after = block_on(check(&storage, &CheckOptions::default())).unwrap();
    assert!(report.is_clean() && after.image_end_offset < before.image_end_offset);
    assert_eq!(numbers(&report), numbers(&after));
}
