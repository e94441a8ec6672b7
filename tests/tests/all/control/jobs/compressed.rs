//! `blockdev-backup` with `compress`: into images of all kinds, while a guest writes; refused as qemu-storage-daemon
//! refuses it.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::{have, run, succeed};
use blockloom_tests::{Random, eventually, pattern};
use serde_json::{Value, json};

use super::super::differential::answers;
use super::super::{Controlled, Over};
use super::scene::{can_start, host, life, peer, status};
use crate::{KIB, MIB, scratch};

/// The last cluster of an image of it is cut off.
const SIZE: u64 = 12 * MIB - 3 * 512;

/// Of each 64 KiB a part is noise, some are all noise, some all zeros.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    for (index, part) in bytes.chunks_mut(64 << 10).enumerate() {
        let noisy = match index % 8 {
            0 => continue,
            1 => part.len(),
            of => part.len() / (of * 3),
        };
        part.fill(index as u8);
        part[..noisy].copy_from_slice(&pattern(index as u64 + 1, noisy));
    }
    bytes
}

fn same([left, left_format]: [&str; 2], image: &str) {
    let output = succeed("qemu-img", ["compare", "-f", left_format, "-F", "qcow2", left, image]);
    assert!(output.contains("identical"), "{output}");
}

fn number(report: &Value, what: &str) -> u64 {
    report[what].as_u64().unwrap_or(0)
}

/// Finds nothing wrong; how many compressed clusters there are.
fn compressed_clusters(path: &str) -> u64 {
    let report = succeed("qemu-img", ["check", "--output=json", "-f", "qcow2", path]);
    let report: Value = serde_json::from_str(&report).expect("JSON");
    for what in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(number(&report, what), 0, "{report}");
    }
    number(&report, "compressed-clusters")
}

/// Writes noise anywhere until it is over.
fn guest(uri: &str, over: &AtomicBool) {
    let (mut client, mut random) = (Client::open(uri), Random::new(7));
    while !over.load(Ordering::Relaxed) {
        let len = 512 * (1 + random.below(100));
        let offset = random.below((SIZE - len) / 512) * 512;
        let bytes = pattern(random.next_u64(), len as usize);
        assert_eq!(client.write(0, offset, &bytes), 0, "write {offset}+{len}");
    }
    client.disconnect();
}

/// A disk of [`content`] is backed up into an image made with these options, of which `file` says more.
fn check(options: &str, over_it: Option<&str>, is_full: bool, file: Value) {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let images = scratch();
    let disk = images.image_of("disk.raw", &content()).display().to_string();
    let expect = images.image_of("expect.raw", &content()).display().to_string();
    let target = images.image("tgt.qcow2").display().to_string();
    succeed("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, &target, &SIZE.to_string()]);
    if is_full {
        succeed("qemu-io", ["-f", "qcow2", "-c", &format!("write -P 9 0 {SIZE}"), &target]);
    }
    let text = format!(
        "[node.disk]\ndriver = \"file\"\npath = \"{disk}\"\n[drive.vda]\nroot = \"disk\"\nwritable = true\n\
         [export.vda]\ntype = \"nbd\"\ndrive = \"vda\"\nlisten = \"unix:nbd.sock\"\nwritable = true\n"
    );
    let host = Controlled::start_in(images, &text, &[]);
    let mut client = host.client();
    let mut below = json!({"driver": "file", "filename": target});
    below.as_object_mut().expect("an object").extend(file.as_object().cloned().unwrap_or_default());
    client.run("blockdev-add", json!({"driver": "qcow2", "node-name": "tgt", "file": below}));
    if let Some(driver) = over_it {
        client.run("blockdev-add", json!({"driver": driver, "node-name": "over", "file": "tgt"}));
    }
    let uri = host.daemon.uri("vda").to_owned();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Over(&over);
        let backup = json!({"device": "vda", "job-id": "j", "sync": "full", "compress": true,
            "target": if over_it.is_some() { "over" } else { "tgt" }, "speed": 1});
        client.run("blockdev-backup", backup);
        // It stands still by now: what is written is copied first.
        let mut first = Client::open(&uri);
        for at in [SIZE - 512, 5 * MIB + 512, 7 * MIB, 64 * KIB] {
            assert_eq!(first.write(0, at, &[0xee; 512]), 0);
        }
        first.disconnect();
        scope.spawn(|| guest(&uri, &over));
        client.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
        let lived = life(&mut client, "j", status("null"));
        let well = "BLOCK_JOB_COMPLETED backup all done: true speed 0";
        assert!(lived.iter().any(|news| news == well), "{options}: {lived:?}");
        drop(ends);
    });
    let (_, images) = host.end();
    same([&expect, "raw"], &target);
    assert!(compressed_clusters(&target) > 0, "{options}");
    let data = content().iter().filter(|byte| **byte != 0).count() as u64;
    let allocated = std::fs::metadata(images.image("tgt.qcow2")).expect("a file").blocks() * 512;
    // With all metadata, of which one table may be 2 MiB.
    assert!(is_full || allocated < data * 8 / 10, "{options}: {allocated} bytes for {data}");
}

#[test]
fn into_an_image_under_writes() {
    check("cluster_size=64k", None, false, json!({}));
    check(
        "compression_type=zstd,cluster_size=16k",
        None,
        false,
        json!({"cache": {"direct": true}}),
    );
}

/// The clusters are larger than what a job copies at once else.
#[test]
fn into_large_clusters() {
    check("compression_type=zstd,cluster_size=2M", None, false, json!({}));
    check("extended_l2=on,cluster_size=128k", None, false, json!({}));
}

/// QEMU fails where the target has data already.
#[test]
fn over_what_an_image_holds() {
    check("cluster_size=64k", None, true, json!({}));
    check("refcount_bits=1,compat=1.1", Some("copy-on-read"), true, json!({}));
}

/// The same command to both: the same error, up to the target's name, which QEMU has for devices alone.
fn refused(both: &mut [Qmp; 2], target: &str) {
    let input = json!({"execute": "blockdev-backup", "arguments": {"device": "top", "target": target,
        "sync": "full", "job-id": "j", "compress": true}});
    let [ours, theirs] = both.each_mut().map(|client| {
        let answers = answers(client, input.to_string().as_bytes());
        let error = &answers[0]["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("class"), text("desc"))
    });
    assert_eq!(theirs.1, "Compression is not supported for this drive ", "{target}");
    assert_eq!(ours, (theirs.0, theirs.1 + target));
}

#[test]
fn it_is_refused_and_done_as_by_qemu() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let mut both = [host.client(), Qmp::open_peer(&peer.socket)];
    for (client, images) in both.iter_mut().zip([&host.scratch, &theirs]) {
        let plain = images.sparse_image("plain.raw", super::scene::SIZE).display().to_string();
        client.run(
            "blockdev-add",
            json!({"driver": "file", "node-name": "plain", "filename": plain}),
        );
        client.run("blockdev-add", json!({"driver": "raw", "node-name": "raw", "file": "tgt"}));
    }
    refused(&mut both, "plain");
    refused(&mut both, "raw");
    for client in &mut both {
        client.run("blockdev-del", json!({"node-name": "raw"}));
        let over = json!({"driver": "copy-on-read", "node-name": "over", "file": "tgt"});
        client.run("blockdev-add", over);
        let backup = json!({"device": "top", "target": "over", "sync": "full", "job-id": "j",
            "compress": true});
        client.run("blockdev-backup", backup);
        let lived = life(client, "j", status("null"));
        let well = "BLOCK_JOB_COMPLETED backup all done: true speed 0";
        assert!(lived.iter().any(|news| news == well), "{lived:?}");
        eventually("a job that is gone", || {
            (client.run("query-jobs", json!({})) == json!([])).then_some(())
        });
    }
    let [_, mut theirs_client] = both;
    theirs_client.run("quit", json!({}));
    let (_, images) = host.end();
    let [ours, theirs] =
        [&images, &theirs].map(|images| images.image("tgt.qcow2").display().to_string());
    eventually("the peer has closed its images", || {
        let check = run("qemu-img", ["check", "-q", "-f", "qcow2", &theirs]);
        check.status.success().then_some(())
    });
    same([&ours, "qcow2"], &theirs);
    assert_eq!(compressed_clusters(&ours), compressed_clusters(&theirs));
}
