//! One chain of images, for us and for qemu-storage-daemon: each has copies of its own.

use std::process::Command;

use blockloom_tests::Scratch;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::{have, succeed};
use serde_json::{Value, json};

use super::super::Controlled;
use super::super::differential::Peer;
use crate::{KIB, MIB, scratch};

/// Size of all images.
pub(in super::super) const SIZE: u64 = 16 * MIB;

/// Every image, and what it stands on.
const IMAGES: [(&str, Option<&str>); 4] =
    [("base", None), ("mid", Some("base")), ("top", Some("mid")), ("tgt", None)];
/// What they hold at first.
const BYTES: [(&str, u8, u64, u64); 4] = [
    ("base", 1, 0, 4 * MIB),
    ("base", 1, 8 * MIB, MIB),
    ("mid", 2, 4 * MIB, MIB),
    ("top", 3, 12 * MIB, 64 * KIB),
];

/// Makes base ← mid ← top, and `tgt` beside.
pub(in super::super) fn make_images(scratch: &Scratch) {
    let size = SIZE.to_string();
    for (name, below) in IMAGES {
        let path = scratch.image(&format!("{name}.qcow2")).display().to_string();
        let mut create: Vec<String> = ["create", "-q", "-f", "qcow2"].map(str::to_owned).into();
        if let Some(below) = below {
            create.extend(["-b".into(), format!("{below}.qcow2"), "-F".into(), "qcow2".into()]);
        }
        succeed("qemu-img", create.iter().chain([&path, &size]));
    }
    for (name, value, offset, len) in BYTES {
        let path = scratch.image(&format!("{name}.qcow2")).display().to_string();
        let command = format!("write -P {value} {offset} {len}");
        succeed("qemu-io", ["-f", "qcow2", "-c", &command, &path]);
    }
}

/// What `top` shows at first.
pub(in super::super) fn shown_at_first() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    for (_, value, offset, len) in BYTES {
        bytes[offset as usize..(offset + len) as usize].fill(value);
    }
    bytes
}

/// A host with the chain, which `vda` shows, and more text.
pub(in super::super) fn host(more: &str) -> Controlled {
    host_of("top", more)
}

/// The same, where `vda` shows the node `root`.
pub(in super::super) fn host_of(root: &str, more: &str) -> Controlled {
    host_from(|text| text.replace("root = \"top\"", &format!("root = \"{root}\"")) + more)
}

/// The same, from its text as it is after an edit.
pub(in super::super) fn host_from(edit: impl FnOnce(String) -> String) -> Controlled {
    let images = scratch();
    make_images(&images);
    let mut text = String::new();
    for (name, below) in IMAGES {
        let path = images.image(&format!("{name}.qcow2")).display().to_string();
        text += &format!("[node.f{name}]\ndriver = \"file\"\npath = \"{path}\"\n");
        text += &format!("[node.{name}]\ndriver = \"qcow2\"\nfile = \"f{name}\"\n");
        text += &below.map(|below| format!("backing = \"{below}\"\n")).unwrap_or_default();
    }
    text += "[drive.vda]\nroot = \"top\"\nwritable = true\n";
    // Who nobody writes at first would be opened for reading.
    text += "[drive.opened]\nroot = \"tgt\"\nwritable = true\n";
    let host = Controlled::start_in(images, &edit(text), &[]);
    host.client().run("drive-del", json!({"id": "opened"}));
    host
}

/// Whether all is there that such a host, or a peer, needs.
pub(in super::super) fn can_start() -> bool {
    have(&["qemu-img", "qemu-io", "qemu-storage-daemon", "nbdinfo"])
}

/// qemu-storage-daemon with such a chain, and nobody who uses it.
pub(super) fn peer(images: &Scratch) -> Peer {
    make_images(images);
    peer_of(images, "mid", |_| {})
}

/// The same with more on its command line, before `top`, which stands on the node `below`.
pub(super) fn peer_of(images: &Scratch, below: &str, add: impl FnOnce(&mut Command)) -> Peer {
    let mut command = Command::new("qemu-storage-daemon");
    let add_image = |command: &mut Command, name: &str, backing: Option<&str>| {
        let path = images.image(&format!("{name}.qcow2"));
        command
            .args(["--blockdev", &format!("file,node-name=f{name},filename={}", path.display())]);
        let backing = backing.map(|below| format!(",backing={below}")).unwrap_or_default();
        command.args(["--blockdev", &format!("qcow2,node-name={name},file=f{name}{backing}")]);
    };
    add_image(&mut command, "base", None);
    add_image(&mut command, "mid", Some("base"));
    add_image(&mut command, "tgt", None);
    if below == "mid" {
        add_image(&mut command, "top", Some(below));
        add(&mut command);
    } else {
        add(&mut command);
        add_image(&mut command, "top", Some(below));
    }
    Peer::start(command, images.path("peer.sock"))
}

/// The life of a job: its events by name, with what of them does not depend on who tells them.
pub(super) fn life(client: &mut Qmp, job: &str, until: impl Fn(&Value) -> bool) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let event = client.any_event();
        let (name, data) = (event["event"].as_str().expect("a name"), &event["data"]);
        if data["id"] != job && data["device"] != job {
            continue;
        }
        let mut words = vec![name.to_owned()];
        for key in ["status", "type", "action", "operation"] {
            words.extend(data[key].as_str().map(str::to_owned));
        }
        let ends = name == "BLOCK_JOB_COMPLETED" || name == "BLOCK_JOB_READY";
        if ends && data["error"].is_null() {
            words.push(format!("all done: {}", data["offset"] == data["len"]));
        }
        words.extend(data["speed"].as_i64().map(|speed| format!("speed {speed}")));
        seen.push(words.join(" "));
        if until(&event) {
            return seen;
        }
    }
}

/// Until a job is in this state.
pub(super) fn status<'a>(status: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == "JOB_STATUS_CHANGE" && event["data"]["status"] == status
}

/// Until this event.
pub(super) fn event<'a>(name: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == name
}
