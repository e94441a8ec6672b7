//! What is added to a host that runs is what a file would have made, and is refused as it would be.

use std::fs;

use blockloom::error::ErrorKind;
use blockloom::export::nbd::RemovalMode;
use blockloom::graph::{BitmapScope, Unproven, Which};
use blockloom::host::{FilterPlace, Fragment, NewExport, Overrides, start};
use blockloom::{Host, block_on};
use blockloom_tests::eventually;
use blockloom_tests::nbd::Client;
use blockloom_tests::tools::{have, qemu_io, succeed};
use serde_json::{Value, json};

use super::{add, empty, export, nodes, refusal};
use crate::{MIB, WHOLE_GRAPH, scratch};

/// Nodes and what leads from one to the other, with roles and permissions.
fn shape(host: &Host) -> Vec<String> {
    let graph = host.graph();
    let mut lines = Vec::new();
    for node in graph.nodes() {
        let (driver, info) = (node.driver().driver(), node.info());
        let edges = node.edges().iter().map(|edge| {
            let child = graph.nodes()[edge.child()].name();
            format!("{} {child} {:?} {} {}", edge.name(), edge.role(), edge.uses(), edge.shares())
        });
        let edges: Vec<String> = edges.collect();
        let (name, size, read_only) = (node.name(), info.size_bytes, info.read_only);
        lines.push(format!("{name} {driver} {size} {read_only}: {}", edges.join(", ")));
    }
    lines.extend(
        graph.drives().iter().map(|drive| format!("{} {}", drive.id(), drive.is_writable())),
    );
    let bitmaps = graph.bitmaps().map(|(scope, bitmap)| format!("{scope} {}", bitmap.name()));
    lines.extend(bitmaps);
    lines.sort();
    lines
}

#[test]
fn a_fragment_makes_what_a_file_makes() {
    let (at_start, later) = (scratch(), scratch());
    let path = at_start.graph("graph.toml", WHOLE_GRAPH);
    let (first, exports) = start(&path, Overrides::default()).expect("start");
    let second = empty();
    let directory = later.path("");
    let added = second.add(&Fragment::toml("later.toml", WHOLE_GRAPH).in_dir(&directory));
    let added = added.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(shape(&first), shape(&second));
    assert_eq!((added.drives, exports.len(), added.exports.len()), (vec!["vda".to_owned()], 1, 1));
    let mut client = Client::open(&added.exports[0].uri);
    assert_eq!(client.write(0, MIB, b"kept"), 0);
    client.disconnect();
    first.shutdown().expect("an end in order");
    second.shutdown().expect("an end in order");

    // What it kept is found by the next host, again added while it runs.
    let third = empty();
    let added = third.add(&Fragment::toml("later.toml", WHOLE_GRAPH).in_dir(&directory));
    added.unwrap_or_else(|error| panic!("{error}"));
    let bitmap = third.bitmap(&BitmapScope::Drive("vda".into()), "daily").expect("a bitmap");
    assert_eq!(bitmap.ranges(0..u64::MAX).map(|it| it.start).collect::<Vec<_>>(), [MIB]);
    assert_eq!(bitmap.kept_in().as_deref(), Some("top"));
    third.shutdown().expect("an end in order");
}

/// As libvirt does: file and format each by a command of its own; as `qemu-storage-daemon`'s users do: at once,
/// with the backing found in the header.
#[test]
fn images_are_added_as_by_qmp() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let text = |name: &str| scratch.image(name).to_str().expect("text").to_owned();
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", &text("base.qcow2"), "4M"]);
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 1 0 1M", &text("base.qcow2")]);
    let (base, top) = (text("base.qcow2"), text("top.qcow2"));
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &top]);
    let host = empty();
    let storage = json!({
        "driver": "file",
        "filename": top,
        "node-name": "storage",
        "cache": { "direct": false, "no-flush": false },
        "auto-read-only": true,
        "discard": "unmap",
    });
    add(&host, storage);
    let format = json!({
        "driver": "qcow2",
        "node-name": "format",
        "read-only": false,
        "discard": "unmap",
        "detect-zeroes": "off",
        "cache": { "direct": false, "no-flush": false },
        "file": "storage",
    });
    add(&host, format);
    let expect = ["#format.backing", "#format.backing/file", "format", "storage"];
    assert_eq!(nodes(&host), expect);
    let uri =
        export(&host, &scratch, NewExport { writable: true, ..NewExport::of_node("a", "format") });
    qemu_io(&uri, &["read -P 1 0 1M", "read -P 0 1M 3M", "write -P 2 512k 1M"]);
    block_on(host.remove_export("a", RemovalMode::Hard)).expect("an end");
    let error = block_on(host.remove_node("storage")).expect_err("in use").to_string();
    assert!(error.contains("in use by node `format` (edge `file`)"), "{error}");
    // What an image named goes with it; what was named by its own name stays.
    let gone = block_on(host.remove_node("format")).expect("nobody uses it");
    assert_eq!(gone, ["format", "#format.backing", "#format.backing/file"]);
    assert_eq!(nodes(&host), ["storage"]);
    block_on(host.remove_node("storage")).expect("nobody uses it");
    succeed("qemu-io", ["-f", "qcow2", "-c", "read -P 2 512k 1M", &top]);

    let whole = json!({
        "driver": "qcow2",
        "file": { "driver": "file", "filename": top },
        "backing": {
            "driver": "qcow2",
            "node-name": "base",
            "file": { "driver": "file", "filename": base },
            "read-only": true,
        },
    });
    let made_up = add(&host, whole);
    assert!(made_up.starts_with("#block"), "{made_up}");
    let mut expect = vec!["#base.file".to_owned(), "base".to_owned(), format!("{made_up}/file")];
    expect.push(made_up.clone());
    expect.sort();
    assert_eq!(nodes(&host), expect);
    let writable = NewExport { writable: true, ..NewExport::of_node("b", &made_up) };
    let uri = export(&host, &scratch, writable);
    qemu_io(&uri, &["read -P 1 0 512k", "read -P 2 512k 1M"]);
    host.shutdown().expect("an end in order");
}

#[test]
fn what_is_wrong_is_said_by_the_path_of_its_key() {
    let host = empty();
    add(&host, json!({ "driver": "memory", "node-name": "disk", "size": 4096 }));
    block_on(host.add_drive("vda", Some("disk"), true)).expect("a drive");
    let check = |options: Value, expect: &[&str]| {
        let error = refusal(&host, options);
        for part in expect {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(nodes(&host), ["disk"]);
    };
    check(json!({ "driver": "file", "filename": "/none/x" }), &["filename: file `/none/x`"]);
    check(json!({ "driver": "nonsense" }), &["driver: unknown driver `nonsense`"]);
    check(json!({ "driver": "memory", "size": true }), &["size: `size`", "must be a size"]);
    check(
        json!({ "driver": "raw", "file": { "driver": "null-co", "sise": 1, "size": 512 } }),
        &["file.sise: unknown key `sise`"],
    );
    check(json!({ "driver": "raw", "file": "none" }), &["file: ", "refers to node `none`"]);
    check(json!({ "driver": "raw", "file": "#none" }), &["file: `#none` is no name"]);
    let taken = json!({ "driver": "memory", "node-name": "disk", "size": 512 });
    check(taken, &["there is a node `disk` already"]);
    let taken = json!({ "driver": "memory", "node-name": "vda", "size": 512 });
    check(taken, &["there is a drive `vda` already"]);
    check(
        json!({ "driver": "memory", "size": 512, "cache": { "no-flush": true } }),
        &["cache.no-flush: `no-flush` cannot be true"],
    );
    check(
        json!({ "driver": "memory", "size": 512, "detect-zeroes": "unmap" }),
        &["detect-zeroes: `detect-zeroes` cannot be \"unmap\" (possible here: \"off\")"],
    );
    check(json!([1]), &["it must be an object"]);
    // Two things at once: both are told.
    let two = json!({ "driver": "null-co", "size": "x", "latency-ns": "y" });
    check(two, &["size: ", "latency-ns: `latency-ns` must be a number of nanoseconds"]);
    // Checked against what is there: the core says who stands against it.
    let storage = json!({
        "driver": "qcow2",
        "node-name": "image",
        "file": "disk",
        "backing": null,
    });
    check(storage, &["disk"]);
    host.shutdown().expect("an end in order");
}

#[test]
fn a_fragment_that_fails_leaves_nothing() {
    let scratch = scratch();
    let host = empty();
    let directory = scratch.path("");
    let before = shape(&host);
    let check = |text: String, expect: &str| {
        let error = host.add(&Fragment::toml("part.toml", &text).in_dir(&directory));
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(expect), "{error}");
        assert_eq!(shape(&host), before, "{expect}");
        let files: Vec<_> = fs::read_dir(&directory).expect("the directory").collect();
        assert!(files.is_empty(), "{expect}: {files:?}");
        assert!(host.exports().is_empty());
    };
    let image = "[node.image]\ndriver = \"qcow2\"\nfile = { driver = \"file\", path = \"a.qcow2\" }\n\
                 create = { size = \"1MiB\" }\n";
    let drive = "[drive.vda]\nroot = \"image\"\nwritable = true\n";
    // Only found when everything else is there.
    let no_bitmap = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
                     bitmaps = [\"none\"]\n";
    check(format!("{image}{drive}{no_bitmap}"), "bitmap `none`");
    let second = "[node.second]\ndriver = \"qcow2\"\nfile = \"image\"\nbacking = false\n";
    check(format!("{image}{second}"), "second");
    let host_table = "[host]\nworkers = 2\n";
    check(format!("{image}{host_table}"), "`host` of the file is for a host that is to start");
    check(format!("{image}siez = 1\n"), "unknown key `siez`");
    let config =
        "[node.slow]\ndriver = \"throttle\"\nchild.file = \"image\"\nconfig = { iopss = 1 }\n";
    check(format!("{image}{config}"), "iopss");
    host.shutdown().expect("an end in order");
}

/// A file that is open already, once more: the same rules as within one file.
#[test]
fn a_file_is_not_opened_twice_to_be_written() {
    let scratch = scratch();
    let file = scratch.sparse_image("disk.img", MIB);
    let host = empty();
    let read = |name: &str| json!({ "driver": "file", "node-name": name, "filename": file, "read-only": true });
    add(&host, read("one"));
    add(&host, read("two"));
    let error = refusal(&host, json!({ "driver": "file", "node-name": "three", "filename": file }));
    assert!(error.contains("are the same file, and `three` writes it"), "{error}");
    for node in ["one", "two"] {
        block_on(host.remove_node(node)).expect("nobody uses it");
    }
    add(&host, json!({ "driver": "file", "node-name": "three", "filename": file }));
    host.shutdown().expect("an end in order");
}

#[test]
fn instances_and_groups_are_shared_by_name() {
    let host = empty();
    for name in ["a", "b"] {
        add(&host, json!({ "driver": "memory", "node-name": name, "size": "1MiB" }));
    }
    let group = |name: &str, file: &str| json!({ "driver": "throttle", "node-name": name, "throttle-group": "g", "file": file });
    let mut first = group("one", "a");
    first["config"] = json!({ "iops": 100_000 });
    add(&host, first);
    // Without a configuration of its own it has the group's.
    add(&host, group("two", "b"));
    let mut other = group("three", "b");
    other["config"] = json!({ "iops": 5 });
    let error = refusal(&host, other);
    assert!(error.contains("share instance `g`, but differ in `config`"), "{error}");
    let plugin = |name: &str, config: Value| {
        json!({
            "driver": "plugin",
            "plugin": "throttle",
            "instance": "shared",
            "node-name": name,
            "child": { "file": "a" },
            "config": config,
        })
    };
    add(&host, plugin("p", json!({ "iops": 1000 })));
    add(&host, plugin("q", json!({})));
    for node in ["one", "two", "p", "q"] {
        block_on(host.remove_node(node)).expect("nobody uses it");
    }
    // Nobody is left of the group: its name begins anew.
    let mut other = group("three", "b");
    other["config"] = json!({ "iops": 5 });
    add(&host, other);
    host.shutdown().expect("an end in order");
}

#[test]
fn filters_are_put_in_and_taken_out() {
    let scratch = scratch();
    let host = empty();
    add(&host, json!({ "driver": "memory", "node-name": "disk", "size": "4MiB" }));
    block_on(host.add_drive("vda", Some("disk"), true)).expect("a drive");
    let writable = NewExport { writable: true, ..NewExport::of_drive("vda", "vda") };
    let mut client = Client::open(&export(&host, &scratch, writable));
    assert_eq!(client.write(0, 0, b"then"), 0);
    let above = |node: &str| FilterPlace::Above { node: node.into(), users: Which::All };
    let cbw = json!({
        "driver": "copy-before-write",
        "node-name": "cbw",
        "target": { "driver": "memory", "size": "4MiB" },
        "on-cbw-error": "break-guest-write",
        "cbw-timeout": 5,
    });
    let added = host.insert_filter(&above("disk"), &cbw).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(added.nodes, ["cbw", "#cbw.target"]);
    add(&host, json!({ "driver": "snapshot-access", "node-name": "then", "file": "cbw" }));
    let then = export(&host, &scratch, NewExport::of_node("then", "then"));
    let mut pit = Client::open(&then);
    eventually("the point in time is reached", || {
        (pit.read(0, 4) == Ok(b"then".to_vec())).then_some(())
    });
    assert_eq!(client.write(0, 0, b"now!"), 0);
    assert_eq!((pit.read(0, 4), client.read(0, 4)), (Ok(b"then".to_vec()), Ok(b"now!".to_vec())));

    let below = FilterPlace::Below { node: "cbw".into(), edge: "file".into() };
    let slow = json!({ "driver": "plugin", "plugin": "throttle", "node-name": "slow", "config": { "iops": 100_000 } });
    host.insert_filter(&below, &slow).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(client.read(0, 4), Ok(b"now!".to_vec()));
    let check = |place: &FilterPlace, options: Value, expect: &str| {
        let error = host.insert_filter(place, &options).expect_err("refused").brief();
        assert!(error.contains(expect), "{error}");
    };
    check(&above("none"), json!({ "driver": "pass" }), "there is no node `none`");
    let wrong = FilterPlace::Below { node: "cbw".into(), edge: "x".into() };
    check(&wrong, json!({ "driver": "pass" }), "it has no edge `x`; it has: `file`, `target`");
    check(&above("disk"), json!({ "driver": "pass", "file": "disk" }), "leave it out");
    check(&above("disk"), json!({ "driver": "pass", "node-name": "cbw" }), "already");

    pit.disconnect();
    block_on(host.remove_export("then", RemovalMode::Hard)).expect("an end");
    block_on(host.remove_node("then")).expect("nobody uses it");
    assert_eq!(block_on(host.remove_filter("cbw")).expect("a filter"), ["cbw", "#cbw.target"]);
    assert_eq!(block_on(host.remove_filter("slow")).expect("a filter"), ["slow"]);
    assert_eq!(nodes(&host), ["disk"]);
    add(&host, json!({ "driver": "memory", "node-name": "other", "size": "4MiB" }));
    let error = block_on(host.replace_node("disk", "other", Unproven::Refuse));
    assert_eq!(error.expect_err("another view").kind(), ErrorKind::NotPermitted);
    block_on(host.replace_node("disk", "other", Unproven::MarkWhole)).expect("as was asked for");
    assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
    host.shutdown().expect("an end in order");
}

/// Options that can change do, together or not at all.
#[test]
fn nodes_are_reopened() {
    let scratch = scratch();
    let host = empty();
    for name in ["a", "b"] {
        add(&host, json!({ "driver": "memory", "node-name": name, "size": "4MiB" }));
    }
    let image = scratch.image("top.qcow2");
    let options = |backing: &str| json!({ "driver": "qcow2", "node-name": "top", "file": "#top.file", "backing": backing });
    let made = json!({
        "driver": "qcow2",
        "node-name": "top",
        "file": { "driver": "file", "filename": image },
        "backing": "a",
        "create": { "size": "4MiB" },
    });
    add(&host, made);
    add(&host, json!({ "driver": "raw", "node-name": "raw", "file": "top" }));
    block_on(host.add_drive("vda", Some("raw"), true)).expect("a drive");
    let backing = || {
        let graph = host.graph();
        let top = &graph.nodes()[graph.find_node("top").expect("a node")];
        let edge = top.edges().iter().find(|edge| edge.name() == "backing").expect("an edge");
        graph.nodes()[edge.child()].name().to_owned()
    };
    host.reopen_nodes(&[options("b")], Unproven::MarkWhole).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(backing(), "b");
    let check = |nodes: &[Value], expect: &str| {
        let error = host.reopen_nodes(nodes, Unproven::MarkWhole).expect_err("refused").brief();
        assert!(error.contains(expect), "{error}");
        assert_eq!(backing(), "b");
    };
    let mut wrong = options("a");
    wrong["read-only"] = json!(true);
    check(
        &[wrong],
        "node `top`: it is read-only, and drive `vda` (edge `root`) changes node `raw`",
    );
    check(&[options("none")], "refers to node `none`");
    // The second one does not go: neither does the first.
    let raw = json!({ "driver": "raw", "node-name": "raw", "file": "top", "offset": 512 });
    check(&[options("a"), raw], "offset: `offset` of node `raw` cannot change while it runs");
    check(&[json!({ "driver": "raw", "file": "top" })], "node-name");
    check(&[json!({ "driver": "raw", "node-name": "x", "file": "top" })], "there is no node `x`");
    let other = json!({ "driver": "pass", "node-name": "raw", "file": "top" });
    check(&[other], "`driver` of node `raw` cannot change while it runs");
    let both = [options("a"), json!({ "driver": "raw", "node-name": "raw", "file": "b" })];
    host.reopen_nodes(&both, Unproven::MarkWhole).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(backing(), "a");
    host.shutdown().expect("an end in order");
}
