//! Groups of jobs on one chain: what their ends write into images is what the images stand on, all of them together.

use std::fs;
use std::path::Path;

use blockloom_tests::Scratch;
use blockloom_tests::nbd::Client;
use blockloom_tests::tools::{have, succeed};
use serde_json::{Value, json};

use super::super::Controlled;
use super::scene::{SIZE, life, status};
use crate::{KIB, MIB, scratch};

/// Its name, what it stands on, and what it holds: values, offsets and lengths.
type ImageOf<'a> = (&'a str, Option<&'a str>, &'a [(u8, u64, u64)]);

/// From below.
const IMAGES: [ImageOf<'_>; 4] = [
    ("base", None, &[(1, 0, 4 * MIB), (1, 8 * MIB, MIB)]),
    ("mid", Some("base"), &[(2, 2 * MIB, MIB), (2, 10 * MIB, MIB)]),
    ("upper", Some("mid"), &[(3, 2 * MIB + 512 * KIB, MIB), (3, 6 * MIB, MIB)]),
    ("top", Some("upper"), &[(4, 12 * MIB, 64 * KIB)]),
];

const EXPORT: &str = "[export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\n\
    writable = true\n";

fn path(scratch: &Scratch, name: &str) -> String {
    scratch.image(&format!("{name}.qcow2")).display().to_string()
}

/// Makes the images; returns what the topmost shows.
fn make(scratch: &Scratch) -> Vec<u8> {
    let mut shown = vec![0; SIZE as usize];
    for (name, below, holds) in IMAGES {
        let (path, size) = (path(scratch, name), SIZE.to_string());
        let mut create = vec!["create".to_owned(), "-q".into(), "-f".into(), "qcow2".into()];
        if let Some(below) = below {
            create.extend(["-b".into(), format!("{below}.qcow2"), "-F".into(), "qcow2".into()]);
        }
        succeed("qemu-img", create.iter().chain([&path, &size]));
        for (value, offset, len) in holds {
            let write = format!("write -P {value} {offset} {len}");
            succeed("qemu-io", ["-f", "qcow2", "-c", &write, &path]);
            shown[*offset as usize..(offset + len) as usize].fill(*value);
        }
    }
    shown
}

/// The images as nodes, with a filter over `mid`, on which `upper` stands.
fn text(scratch: &Scratch) -> String {
    let node = |(name, below, _): (&str, Option<&str>, _)| {
        let below = below.map(|below| if below == "mid" { "over" } else { below });
        let backing = below.map_or_else(|| "false".to_owned(), |below| format!("\"{below}\""));
        format!(
            "[node.{name}]\ndriver = \"qcow2\"\nbacking = {backing}\n\
             file = {{ driver = \"file\", path = \"{}\" }}\n",
            path(scratch, name)
        )
    };
    let nodes: String = IMAGES.into_iter().map(node).collect();
    let filter = "[node.over]\ndriver = \"pass\"\nchild.file = \"mid\"\n";
    format!("{nodes}{filter}[drive.vda]\nroot = \"top\"\nwritable = true\n{EXPORT}")
}

fn read_all(uri: &str) -> Vec<u8> {
    let mut client = Client::open(uri);
    let pieces = (0..SIZE / MIB).map(|at| client.read(at * MIB, MIB as u32).expect("a read"));
    let bytes = pieces.flatten().collect();
    client.disconnect();
    bytes
}

/// The image shows these bytes, with those below it that are named in headers, and each of them is in order.
fn check(scratch: &Scratch, images: &[&str], shown: &[u8]) {
    for image in images {
        succeed("qemu-img", ["check", "-q", "-f", "qcow2", &path(scratch, image)]);
    }
    let raw = scratch.image_of("expect.raw", shown).display().to_string();
    let top = path(scratch, "top");
    let compared = succeed("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &raw, &top]);
    assert!(compared.contains("identical"), "{compared}");
}

/// The chain, from the top, as the headers have it.
fn chain(scratch: &Scratch) -> Vec<String> {
    let info = ["info", "--output=json", "--backing-chain", "-f", "qcow2"];
    let info = succeed("qemu-img", info.into_iter().chain([&*path(scratch, "top")]));
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let images = info.as_array().expect("a list").iter();
    let name = |image: &Value| {
        let path = Path::new(image["filename"].as_str().expect("a name"));
        path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned()
    };
    images.map(name).collect()
}

/// A stream ends on a filter over an image that a commit takes away at the same instant: by then the filter stands on the
/// commit's base, and that is the backing, whatever was said of the image that was there.
#[test]
fn a_stream_onto_what_a_commit_takes_away() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = scratch();
    let mut shown = make(&scratch);
    let text = text(&scratch);
    let host = Controlled::start_in(scratch, &text, &[]);
    let (mut one, mut other) = (host.client(), host.client());
    let named = path(&host.scratch, "mid");
    let stream = json!({"type": "block-stream", "data": {
        "job-id": "s", "device": "top", "base-node": "over", "backing-file": named}});
    let commit = json!({"type": "block-commit", "data": {
        "job-id": "c", "device": "vda", "top-node": "mid", "base-node": "base"}});
    let properties = json!({"completion-mode": "grouped"});
    one.run("transaction", json!({"actions": [stream, commit], "properties": properties}));
    let uri = host.daemon.uri("vda").to_owned();
    let mut guest = Client::open(&uri);
    let (offset, len) = (2 * MIB + 256 * KIB, 128 * KIB);
    assert_eq!(guest.write(0, offset, &vec![9; len as usize]), 0);
    shown[offset as usize..(offset + len) as usize].fill(9);
    for (client, job) in [(&mut one, "s"), (&mut other, "c")] {
        let lived = life(client, job, status("null"));
        assert!(lived.iter().any(|event| event.starts_with("BLOCK_JOB_COMPLETED")), "{lived:?}");
    }
    assert_eq!(guest.write(0, 14 * MIB, &vec![8; len as usize]), 0);
    shown[14 * MIB as usize..(14 * MIB + len) as usize].fill(8);
    guest.disconnect();
    assert_eq!(read_all(&uri), shown);

    let (_, scratch) = host.end();
    assert_eq!(chain(&scratch), ["top", "base"]);
    check(&scratch, &["top", "base"], &shown);
    for gone in ["mid", "upper"] {
        fs::remove_file(path(&scratch, gone)).expect("nobody needs it");
    }
    check(&scratch, &["top", "base"], &shown);
    let text = format!(
        "[node.top]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{}\" }}\n\
         [drive.vda]\nroot = \"top\"\nwritable = true\n{EXPORT}",
        path(&scratch, "top")
    );
    let host = Controlled::start_in(scratch, &text, &[]);
    assert_eq!(read_all(host.daemon.uri("vda")), shown);
    host.finish();
}
