//! E8, E11: bitmaps that images keep, over crashes, and of bytes that are elsewhere.

use blockloom_tests::Scratch;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::{nbd_map, qemu_io};
use serde_json::{Value, json};

use super::super::Controlled;
use super::super::jobs::scene::{SIZE, can_start, host};
use super::{EXPORT, dirty, dirty_ranges, read_all, succeed, write};
use crate::qcow2::bitmaps::listed;
use crate::{KIB, MIB, scratch};

/// The bitmaps of the image `top`, with their flags, in the eyes of QEMU.
fn flags(images: &Scratch) -> Vec<(String, String)> {
    let listed = listed(&images.image("top.qcow2").display().to_string()).into_iter();
    listed.map(|(name, flags)| (name, flags.join(" "))).collect()
}

fn expect(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, flags)| ((*name).to_owned(), (*flags).to_owned())).collect()
}

/// A node's text: an image, with more.
fn image(images: &Scratch, name: &str, more: &str) -> String {
    let path = images.image(&format!("{name}.qcow2")).display().to_string();
    format!(
        "[node.{name}]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{path}\" }}\n{more}"
    )
}

/// A host with the image `top`, and what its header says is below it.
fn again(images: Scratch) -> Controlled {
    let drive = format!("[drive.vda]\nroot = \"top\"\nwritable = true\n{EXPORT}");
    let text = image(&images, "top", &drive);
    Controlled::start_in(images, &text, &[])
}

fn kept(node: &str, name: &str) -> Value {
    json!({"node": node, "name": name, "persistent": true, "granularity": 64 * KIB})
}

/// The states of the bitmaps of `top`, by name.
fn states(client: &mut Qmp) -> Vec<(String, String)> {
    let nodes = client.run("query-named-block-nodes", json!({"flat": true}));
    let mut nodes = nodes.as_array().expect("a list").iter();
    let top = nodes.find(|node| node["node-name"] == "top").expect("a node");
    let text = |of: &Value, key: &str| of[key].as_str().expect("text").to_owned();
    let all = top["dirty-bitmaps"].as_array().into_iter().flatten();
    let mut all: Vec<_> = all.map(|it| (text(it, "name"), text(it, "state"))).collect();
    all.sort();
    all
}

/// E8. qemu-storage-daemon: a bitmap that was added since the image was opened is gone without a trace after `kill -9`,
/// with what it had recorded. Of a clean end the image keeps bitmaps, with `auto` those that record. Whoever opens it
/// for writing marks all of them as in use, those that stand still, too: killed without a single write, it leaves
/// nothing but inconsistent ones, which are recording nothing, have a count of 0, and can only be removed.
///
/// Right: a bitmap is in the image before it records anything. One that nobody has stored since counts as dirty whole
/// until somebody removes it, never as clean, and never as one that was not.
#[test]
fn bitmaps_and_crashes() {
    if !can_start() {
        return;
    }
    let first = host(EXPORT);
    first.client().run("block-dirty-bitmap-add", kept("top", "b"));
    write(first.daemon.uri("vda"), MIB, 7, 64 * KIB);
    let images = first.kill();
    assert_eq!(flags(&images), expect(&[("b", "in-use auto")]));

    let second = again(images);
    let mut client = second.client();
    assert_eq!(states(&mut client), expect(&[("b", "inconsistent")]));
    assert_eq!(dirty(&mut client)["top/b"], SIZE);
    let bitmap = json!({"node": "top", "name": "b"});
    for command in ["clear", "enable", "disable"] {
        let command = format!("block-dirty-bitmap-{command}");
        let (_, desc) = client.fail(&command, bitmap.clone());
        assert!(desc.contains("inconsistent: remove it"), "{command}: {desc}");
    }
    client.fail("block-dirty-bitmap-add", kept("top", "b"));
    client.run("block-dirty-bitmap-remove", bitmap);
    for name in ["off", "on"] {
        client.run("block-dirty-bitmap-add", kept("top", name));
    }
    client.run("block-dirty-bitmap-disable", json!({"node": "top", "name": "off"}));
    let (log, images) = second.end();
    assert!(log.contains("bitmap `b` in the image of node `top` is inconsistent"), "{log}");
    assert_eq!(flags(&images), expect(&[("off", ""), ("on", "auto")]));

    let third = again(images);
    let mut client = third.client();
    assert_eq!(states(&mut client), expect(&[("off", "disabled"), ("on", "recording")]));
    assert_eq!(dirty(&mut client).values().sum::<u64>(), 0);
    assert_eq!(flags(&third.scratch), expect(&[("off", "in-use"), ("on", "in-use auto")]));
    let last = again(third.kill());
    let mut client = last.client();
    let lost = expect(&[("off", "inconsistent"), ("on", "inconsistent")]);
    assert_eq!(states(&mut client), lost);
    assert_eq!(dirty(&mut client).values().sum::<u64>(), 2 * SIZE);
    last.finish();
}

/// E11. qemu-storage-daemon: an image may have any node as its data file, also another image: then it keeps the bitmaps
/// of what is there. But the node below may not be exported, not even for reading, and block status is of one piece:
/// all is data.
///
/// Right: the same image; who only shows what is below may do so, and holes are holes.
#[test]
fn another_image_as_data_file() {
    if !can_start() {
        return;
    }
    let images = scratch();
    let path = |name: &str| images.image(name).display().to_string();
    let create = ["create", "-q", "-f", "qcow2"];
    succeed("qemu-img", create.into_iter().chain([&*path("d.qcow2"), "16M"]));
    succeed("qemu-io", ["-f", "qcow2", "-c", "write -P 1 0 1M", &path("d.qcow2")]);
    let raw = format!("data_file={},data_file_raw=on", path("data.raw"));
    succeed("qemu-img", create.into_iter().chain(["-o", &raw, &path("md.qcow2"), "16M"]));
    let drive = format!("data-file = \"d\"\n[drive.vda]\nroot = \"md\"\n{EXPORT}");
    let text = image(&images, "d", "") + &image(&images, "md", &drive);
    let host = Controlled::start_in(images, &text, &[]);
    let (mut client, uri) = (host.client(), host.daemon.uri("vda").to_owned());
    client.run("block-dirty-bitmap-add", kept("md", "bp"));
    write(&uri, 2 * MIB, 7, 64 * KIB);
    let data = |uri: &str| {
        let all = nbd_map(uri, "base:allocation").into_iter().filter(|it| it.2 == 0);
        all.map(|(offset, len, _)| (offset, len)).collect::<Vec<_>>()
    };
    let expect = [(0, MIB), (2 * MIB, 64 * KIB)];
    assert_eq!(data(&uri), expect);
    let socket = host.scratch.path("d.sock").display().to_string();
    let export = json!({"type": "nbd", "id": "d", "node-name": "d", "name": "d",
        "listen": format!("unix:{socket}"), "bitmaps": [{"node": "md", "name": "bp"}]});
    client.run("block-export-add", export);
    let below = format!("nbd+unix:///d?socket={socket}");
    assert_eq!(data(&below), expect);
    assert_eq!(dirty_ranges(&below, "bp"), [(2 * MIB, 64 * KIB)]);
    assert_eq!(read_all(&below), read_all(&uri));
    qemu_io(&uri, &["read -P 1 0 1M", "read -P 7 2M 64k", "read -P 0 3M 13M"]);
    let (_, images) = host.end();
    let path = |name: &str| images.image(name).display().to_string();
    succeed("qemu-io", ["-f", "qcow2", "-c", "read -P 7 2M 64k", &path("d.qcow2")]);
    let listed = listed(&path("md.qcow2"));
    assert_eq!(listed, [("bp".to_owned(), vec!["auto".to_owned()])]);
    assert_eq!(std::fs::metadata(path("data.raw")).map(|it| it.len()).unwrap_or(0), 16 * MIB);
}
