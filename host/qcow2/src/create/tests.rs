//! Fresh images, as `qemu-img` and the checker see them.

use std::path::Path;

use super::{Backing, CreateOptions, DataFile, Preallocation, create};
use crate::check::{CheckOptions, check};
use crate::format::{ClusterSize, CompressionType, RefcountWidth, Version};
use crate::testing::{FileStorage, MemoryStorage, block_on, tools};

const MIB: u64 = 1 << 20;

fn cluster(bytes: u64) -> ClusterSize {
    ClusterSize::from_bytes(bytes).unwrap()
}

/// Some of everything, each with a name for messages. The data file's name is absolute: QEMU sees relative
/// ones from where it runs.
fn geometries(dir: &Path) -> Vec<(&'static str, CreateOptions)> {
    let new = CreateOptions::new;
    let backing = |name: &str, format: Option<&str>| {
        Some(Backing { name: name.into(), format: format.map(Into::into) })
    };
    let data = |raw| {
        let name = dir.join("data.raw").to_str().unwrap().to_owned();
        Some(DataFile { name: Some(name), raw })
    };
    let mut all = vec![
        ("empty", new(0)),
        ("one sector", new(512)),
        ("default", new(1 << 30)),
        ("version 2", CreateOptions { version: Version::V2, ..new(10 * MIB) }),
        ("large", new(1 << 50)),
        ("backing", CreateOptions { backing: backing("base.raw", Some("raw")), ..new(MIB) }),
        ("lazy", CreateOptions { lazy_refcounts: true, ..new(MIB) }),
        ("zstd", CreateOptions { compression: CompressionType::Zstd, ..new(MIB) }),
        ("extended", CreateOptions { extended_l2: true, ..new(100 * MIB) }),
        ("data file", CreateOptions { data_file: data(false), ..new(MIB) }),
        ("raw data file", CreateOptions { data_file: data(true), ..new(MIB) }),
        (
            "everything",
            CreateOptions {
                extended_l2: true,
                lazy_refcounts: true,
                cluster_size: cluster(16384),
                refcount_width: RefcountWidth::from_bits(1).unwrap(),
                compression: CompressionType::Zstd,
                backing: backing("base.raw", Some("raw")),
                preallocation: Preallocation::Metadata,
                ..new(64 * MIB + 512)
            },
        ),
    ];
    for bits in [9, 12, 16, 21] {
        for order in 0..=6 {
            let preallocation = match order % 4 {
                0 => Preallocation::Off,
                1 => Preallocation::Metadata,
                2 => Preallocation::Falloc,
                _ => Preallocation::Full,
            };
            let cluster_size = ClusterSize::from_bits(bits).unwrap();
            let refcount_width = RefcountWidth::from_order(order).unwrap();
            let size = if bits == 9 { 3 * MIB + 512 } else { 9 * MIB };
            let options =
                CreateOptions { cluster_size, refcount_width, preallocation, ..new(size) };
            all.push(("geometry", options));
        }
    }
    all
}

#[test]
fn the_checker_finds_nothing() {
    for (name, options) in geometries(Path::new("/")) {
        let storage = MemoryStorage::default();
        block_on(create(&storage, &options)).unwrap();
        let report = block_on(check(&storage, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
        let maps = options.maps_all();
        assert_eq!(
            report.allocated_clusters,
            if maps { report.total_clusters } else { 0 },
            "{name}"
        );
        assert_eq!(report.fragmented_clusters, 0, "{name}");
    }
}

#[test]
fn qemu_img_sees_what_was_asked_for() {
    if !tools::have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let text = path.to_str().unwrap();
    std::fs::write(dir.path().join("base.raw"), vec![7; MIB as usize]).unwrap();
    for (name, options) in geometries(dir.path()) {
        if options.data_file.is_some() {
            let data_file = std::fs::File::create(dir.path().join("data.raw")).unwrap();
            data_file.set_len(options.virtual_size).unwrap();
        }
        block_on(create(&FileStorage::create(&path).unwrap(), &options)).unwrap();
        let found = tools::qemu_check(text);
        for what in ["leaks", "corruptions"] {
            assert!(found[what].is_null(), "{name}: {found}");
        }
        assert_eq!(found["check-errors"], 0, "{name}");
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(found["image-end-offset"], length, "{name}");

        let info = tools::qemu_info(text);
        let specific = &info["format-specific"]["data"];
        let third = options.version == Version::V3;
        assert_eq!(info["virtual-size"], options.virtual_size, "{name}");
        assert_eq!(info["cluster-size"], options.cluster_size.bytes(), "{name}");
        assert_eq!(specific["compat"], if third { "1.1" } else { "0.10" }, "{name}");
        assert_eq!(specific["refcount-bits"], options.refcount_width.bits(), "{name}");
        assert_eq!(specific["compression-type"], options.compression.name(), "{name}");
        if third {
            assert_eq!(specific["lazy-refcounts"], options.lazy_refcounts, "{name}");
            assert_eq!(specific["extended-l2"], options.extended_l2, "{name}");
            assert_eq!(specific["corrupt"], false, "{name}");
        }
        let backing = options.backing.as_ref();
        let text_or_null = |text: Option<&str>| serde_json::json!(text);
        let backing_name = text_or_null(backing.map(|backing| &backing.name[..]));
        assert_eq!(info["backing-filename"], backing_name, "{name}");
        let backing_format = backing.and_then(|backing| backing.format.as_deref());
        assert_eq!(info["backing-filename-format"], text_or_null(backing_format), "{name}");
        let data_name = options.data_file.as_ref().and_then(|file| file.name.as_deref());
        assert_eq!(specific["data-file"], text_or_null(data_name), "{name}");
        let raw = options.data_file.as_ref().map(|file| file.raw);
        assert_eq!(specific["data-file-raw"], serde_json::json!(raw), "{name}");
    }
}

#[test]
fn qemu_writes_to_it_and_it_stays_clean() {
    if !tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let text = path.to_str().unwrap();
    std::fs::write(dir.path().join("base.raw"), vec![7; MIB as usize]).unwrap();
    for (name, options) in geometries(dir.path()) {
        if options.virtual_size < MIB {
            continue;
        }
        if options.data_file.is_some() {
            let data_file = std::fs::File::create(dir.path().join("data.raw")).unwrap();
            data_file.set_len(options.virtual_size).unwrap();
        }
        block_on(create(&FileStorage::create(&path).unwrap(), &options)).unwrap();
        // Past what is written: the base, or zeros.
        let below = if options.backing.is_some() { "read -P 7 4k 4k" } else { "read -P 0 4k 4k" };
        let commands =
            ["read -P 0 1040384 8k", below, "write -P 9 600k 100k", "read -P 9 600k 100k"];
        let first = if options.backing.is_some() { 1 } else { 0 };
        let commands = commands[first..].iter().flat_map(|command| ["-c", command]);
        let arguments: Vec<&str> =
            ["-f", "qcow2"].into_iter().chain(commands).chain([text]).collect();
        let output = tools::succeed("qemu-io", &arguments);
        assert!(!output.contains("failed"), "{name}: {output}");
        tools::succeed("qemu-img", &["check", "-q", "-f", "qcow2", text]);
        let storage = FileStorage::open(&path).unwrap();
        let report = block_on(check(&storage, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    #[track_caller]
    fn refuse(options: CreateOptions, message: &str) {
        let storage = MemoryStorage::new(vec![5; 10]);
        let error = block_on(create(&storage, &options)).unwrap_err();
        assert_eq!(error.errno(), 22);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(storage.content(), [5; 10], "nothing is written");
    }
    let new = || CreateOptions::new(MIB);
    let second = || CreateOptions { version: Version::V2, ..new() };
    let data = |raw| Some(DataFile { name: Some("d".into()), raw });
    let backing = || Some(Backing { name: "b".into(), format: None });
    let zstd = CompressionType::Zstd;
    let eight = RefcountWidth::from_bits(8).unwrap();
    refuse(CreateOptions::new(1000), "multiple of 512");
    refuse(CreateOptions { lazy_refcounts: true, ..second() }, "1.1 is needed for lazy_refcounts");
    refuse(CreateOptions { refcount_width: eight, ..second() }, "needed for refcount_bits");
    refuse(CreateOptions { extended_l2: true, ..second() }, "needed for extended_l2");
    refuse(CreateOptions { data_file: data(false), ..second() }, "needed for data_file");
    refuse(CreateOptions { compression: zstd, ..second() }, "needed for compression_type");
    let small = CreateOptions { extended_l2: true, cluster_size: cluster(8192), ..new() };
    refuse(small, "cluster_size=16k");
    let over_raw = CreateOptions { data_file: data(true), backing: backing(), ..new() };
    refuse(over_raw, "data_file_raw=on and a backing file");
    let over = CreateOptions { backing: backing(), preallocation: Preallocation::Full, ..new() };
    refuse(over, "extended_l2=on");
    let long = Some(Backing { name: "x".repeat(1024), format: None });
    refuse(CreateOptions { backing: long, ..new() }, "1 to 1023 bytes");
    let nameless = Some(DataFile { name: Some(String::new()), raw: false });
    refuse(CreateOptions { data_file: nameless, ..new() }, "data_file: a name");
    let huge = CreateOptions { cluster_size: cluster(512), ..CreateOptions::new(129 << 30) };
    refuse(huge, "larger cluster_size");
    let widest = RefcountWidth::from_bits(64).unwrap();
    let much = CreateOptions {
        preallocation: Preallocation::Metadata,
        refcount_width: widest,
        ..CreateOptions::new(1 << 50)
    };
    refuse(much, "preallocation: too large");
}
