//! Nodes in QEMU's words.

use serde_json::{Value, json};

use super::super::*;

/// What is read of one node, or what is wrong with it.
fn read(options: &Value) -> Result<GraphSpec, String> {
    let (spec, found, _) = parse_blockdev("blockdev-add", options, "#block000", Live::default());
    if found.is_empty() { Ok(spec) } else { Err(found.brief()) }
}

fn only(options: Value) -> NodeSpec {
    let spec = read(&options).unwrap_or_else(|found| panic!("{found}"));
    spec.nodes.into_iter().next().expect("a node")
}

fn wrong(options: Value, expect: &str) {
    assert_eq!(read(&options).expect_err("wrong"), expect, "{options}");
}

#[test]
fn files() {
    let options = json!({
        "driver": "file",
        "node-name": "f",
        "filename": "/a",
        "cache": { "direct": true, "no-flush": false },
        "discard": "ignore",
        "aio": "io_uring",
        "locking": "off",
        "auto-read-only": true,
        "read-only": true,
    });
    let node = only(options);
    let DriverSpec::File(file) = &node.driver else { panic!("{node:?}") };
    assert_eq!((node.name.value.as_str(), file.path.value.as_str()), ("f", "/a"));
    assert_eq!((file.direct.value, file.discard.value), (true, false));
    assert_eq!((file.locking.value, node.read_only.value), (Locking::Off, true));
    let node = only(json!({ "driver": "host_device", "path": "/b", "discard": true }));
    let DriverSpec::File(file) = &node.driver else { panic!("{node:?}") };
    assert_eq!((file.path.value.as_str(), file.discard.value), ("/b", true));
    assert_eq!((node.name.value.as_str(), node.is_unnamed), ("#block000", true));
    let aio = json!({ "driver": "file", "filename": "/a", "aio": "x" });
    wrong(aio, "aio: `aio` cannot be \"x\" (possible here: \"threads\", \"native\", \"io_uring\")");
}

#[test]
fn formats() {
    let options = json!({
        "driver": "qcow2",
        "node-name": "q",
        "file": { "driver": "file", "filename": "a.qcow2" },
        "backing": {
            "driver": "raw",
            "node-name": "base",
            "offset": 512,
            "file": { "driver": "null-co", "size": 4096, "latency-ns": 1000 },
        },
        "l2-cache-size": 1_048_576,
        "lazy-refcounts": true,
        "overlap-check": "cached",
    });
    let spec = read(&options).unwrap_or_else(|found| panic!("{found}"));
    let names: Vec<_> = spec.nodes.iter().map(|node| node.name.value.as_str()).collect();
    assert_eq!(names, ["base", "#base.file", "q", "#q.file"]);
    let q = spec.node("q").expect("a node");
    let children: Vec<_> = q.children.iter().map(|child| child.node.value.as_str()).collect();
    assert_eq!(children, ["#q.file", "base"]);
    let DriverSpec::Qcow2(image) = &q.driver else { panic!("{q:?}") };
    assert_eq!(image.l2_cache_bytes.value, 1 << 20);
    let null = spec.node("#base.file").expect("a node");
    let DriverSpec::Null(null) = &null.driver else { panic!("{null:?}") };
    assert_eq!(null.latency.value, std::time::Duration::from_micros(1));
    for none in [Value::Null, json!(""), json!(false)] {
        let options = json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": "a" },
            "backing": none,
        });
        let DriverSpec::Qcow2(image) = only(options).driver else { panic!("an image") };
        assert_eq!(image.backing.value, BackingSpec::None);
    }
}

#[test]
fn filters() {
    let options = json!({
        "driver": "copy-before-write",
        "node-name": "cbw",
        "file": { "driver": "memory", "node-name": "disk", "size": "1MiB" },
        "target": { "driver": "memory", "size": "1MiB" },
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": 3,
    });
    let spec = read(&options).unwrap_or_else(|found| panic!("{found}"));
    let node = spec.node("cbw").expect("a node");
    let DriverSpec::Filter(filter) = &node.driver else { panic!("{node:?}") };
    let config = json!({ "sync": "none", "on-cbw-error": "break-snapshot", "cbw-timeout": "3s" });
    assert_eq!((filter.kind, &filter.config.json), (FilterKind::Backup, &config));
    let children = node.children.iter();
    let children: Vec<_> =
        children.map(|it| (it.name.value.as_str(), it.node.value.as_str())).collect();
    assert_eq!(children, [("file", "disk"), ("target", "#cbw.target")]);
    let throttle = json!({
        "driver": "throttle",
        "throttle-group": "g",
        "file": { "driver": "memory", "size": 512 },
    });
    let node = only(throttle);
    assert_eq!(node.driver.instance().map(|it| it.value.as_str()), Some("g"));
    wrong(
        json!({
            "driver": "pass",
            "file": { "driver": "memory", "size": 512 },
            "child": { "file": { "driver": "memory", "size": 512 } },
        }),
        "file: `child.file` is given a second time (remove one of them)",
    );
}

#[test]
fn views() {
    let described = json!({
        "driver": "copy-before-write",
        "node-name": "cbw",
        "file": { "driver": "memory", "size": "1MiB" },
        "target": { "driver": "memory", "size": "1MiB" },
    });
    let nodes = read(&described).unwrap_or_else(|found| panic!("{found}")).nodes;
    for (discard, expect) in
        [(json!({}), None), (json!("unmap"), Some(true)), (json!("ignore"), Some(false))]
    {
        let mut options =
            json!({ "driver": "snapshot-access", "node-name": "then", "file": "cbw" });
        if discard.is_string() {
            options["discard"] = discard;
        }
        let live = Live { nodes: nodes.clone(), ..Live::default() };
        let (spec, found, _) = parse_blockdev("blockdev-add", &options, "#block000", live);
        assert!(found.is_empty(), "{}", found.brief());
        let node = spec.node("then").expect("a node");
        let DriverSpec::View(view) = &node.driver else { panic!("{node:?}") };
        assert_eq!(view.discard.map(|discard| discard.value), expect);
        assert_eq!((view.of.value.as_str(), view.view.value.as_str()), ("cbw", "snapshot"));
    }
}

#[test]
fn what_is_wrong_is_shown_by_its_path() {
    wrong(
        json!({ "driver": "memory", "size": 512, "cache": { "writeback": true } }),
        "cache.writeback: `writeback` is unknown in `cache`",
    );
    wrong(
        json!({ "driver": "memory", "size": 512, "force-share": true }),
        "force-share: `force-share` cannot be true (possible here: false)",
    );
    let null = read(&json!({ "driver": "memory", "size": null })).expect_err("wrong");
    assert!(null.contains("size: cannot be null (leave the key out)"), "{null}");
    let options =
        json!({ "driver": "raw", "file": { "driver": "memory", "size": 513, "block-size": 512 } });
    let (_, found, _) = parse_blockdev("blockdev-add", &options, "#block000", Live::default());
    expect_test::expect![[r#"
        error: `size` of node `#block000/file` is not a multiple of its block size
          --> blockdev-add: file.size
           = note: file.block-size: the block size
           = help: the next multiple is 1024

        1 error in blockdev-add"#]]
    .assert_eq(&found.to_string());
}

/// The tables of a file as the members of an object.
#[test]
fn whole_objects() {
    let object = json!({
        "node": { "disk": { "driver": "null-aio", "size": 4096 } },
        "drive": { "vda": { "root": "disk", "writable": true } },
        "bitmap": { "daily": { "drive": "vda", "granularity": "4KiB" } },
        "export": { "vda": { "type": "nbd", "drive": "vda", "listen": "unix:x", "bitmaps": ["daily"] } },
    });
    let (spec, found) = parse_object("part", &object, Live::default());
    assert!(found.is_empty(), "{found}");
    assert_eq!((spec.nodes.len(), spec.drives.len(), spec.bitmaps.len()), (1, 1, 1));
    assert_eq!(spec.exports[0].bitmaps[0].value, "daily");
    let object = json!({ "node": { "disk": { "driver": "memory" } }, "drives": {}, "host": {} });
    let (_, found) = parse_object("part", &object, Live::default());
    let text = found.brief();
    for part in ["node.disk: node `disk` has no `size`", "drives: unknown key", "host: `host`"] {
        assert!(text.contains(part), "{text}");
    }
}

/// Nothing that is hostile makes it panic.
#[test]
fn any_shape_is_answered() {
    let mut deep = json!({ "driver": "memory", "size": 512 });
    for _ in 0..200 {
        deep = json!({ "driver": "pass", "file": deep });
    }
    let mut config = json!(1);
    for _ in 0..200 {
        config = json!([config]);
    }
    let plugin = json!({ "driver": "plugin", "plugin": "pass", "file": "x", "config": config });
    for options in [
        deep,
        plugin,
        json!(null),
        json!({}),
        json!({ "driver": 1 }),
        json!({ "driver": "file", "filename": "a\u{0}b" }),
        json!({ "driver": "raw", "node-name": "\u{1b}[31m", "file": [] }),
        json!({ "driver": "raw", "node-name": {}, "file": {} }),
        json!({ "driver": "qcow2", "file": null, "backing": 7, "cache": 1, "discard": {} }),
        json!({ "driver": "memory", "size": 1e300 }),
        json!({ "driver": "memory", "size": u64::MAX }),
        json!({ "driver": "plugin", "child": [], "grant": 1, "config": null, "limits": "x" }),
    ] {
        let error = read(&options).expect_err("wrong");
        assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
    }
}
