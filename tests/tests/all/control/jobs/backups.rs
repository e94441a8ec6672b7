//! `blockdev-backup`: what has no sense together is refused as qemu-storage-daemon refuses it; what becomes of
//! bitmaps; several drives at one instant.

use std::path::Path;

use blockloom_tests::eventually;
use blockloom_tests::nbd::Client;
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools::succeed;
use serde_json::{Value, json};

use super::super::differential::answers;
use super::scene::{can_start, host, life, peer, status};
use crate::{KIB, MIB, scratch};

const SYNCS: [&str; 5] = ["full", "top", "none", "incremental", "bitmap"];
const MODES: [Option<&str>; 4] = [None, Some("on-success"), Some("never"), Some("always")];

/// Waits until a job is gone; what it told.
fn ended(client: &mut Qmp, job: &str) -> Vec<String> {
    let lived = life(client, job, status("null"));
    eventually("a job that is gone", || {
        let jobs = client.run("query-jobs", json!({}));
        (jobs == json!([])).then_some(())
    });
    lived
}

fn arguments(sync: &str, bitmap: Option<&str>, mode: Option<&str>) -> Value {
    let mut all = json!({"device": "top", "target": "tgt", "sync": sync, "job-id": "j"});
    for (key, value) in [("bitmap", bitmap), ("bitmap-mode", mode)] {
        if let Some(value) = value {
            all[key] = json!(value);
        }
    }
    all
}

/// E6: every sync with every mode, with a bitmap, one that is not there, and none.
#[test]
fn what_has_no_sense_together_is_refused_as_by_qemu() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let mut both = [host.client(), Qmp::open_peer(&peer.socket)];
    for client in &mut both {
        client.run("block-dirty-bitmap-add", json!({"node": "top", "name": "b"}));
    }
    for sync in SYNCS {
        for bitmap in [None, Some("b"), Some("zz")] {
            for mode in MODES {
                let arguments = arguments(sync, bitmap, mode);
                let input = json!({"execute": "blockdev-backup", "arguments": arguments});
                let input = input.to_string();
                let [ours, theirs] =
                    both.each_mut().map(|client| answers(client, input.as_bytes()));
                let answer = |all: &[Value]| {
                    let mut all = all.iter().filter(|answer| answer["event"].is_null());
                    all.next().expect("an answer").clone()
                };
                let (ours, theirs) = (answer(&ours), answer(&theirs));
                assert_eq!(ours["error"], theirs["error"], "{input}");
                if !ours["error"].is_null() {
                    continue;
                }
                for client in &mut both {
                    if sync == "none" {
                        client.run("job-cancel", json!({"id": "j"}));
                    }
                    ended(client, "j");
                }
            }
        }
    }
    host.finish();
}

/// The members of both, those of the second first.
fn with(mut all: Value, more: Value) -> Value {
    let (all_of, Value::Object(more)) = (all.as_object_mut().expect("an object"), more) else {
        panic!("an object")
    };
    all_of.extend(more);
    all
}

fn start(client: &mut Qmp, more: Value) {
    let all = with(json!({"device": "vda", "target": "tgt", "job-id": "j"}), more);
    client.run("blockdev-backup", all);
    let lived = ended(client, "j");
    let expect = "BLOCK_JOB_COMPLETED backup all done: true speed 0";
    assert!(lived.iter().any(|news| news == expect), "{lived:?}");
}

fn ranges(client: &mut Qmp, node: &str, name: &str) -> Vec<(u64, u64)> {
    let found = client.run("block-dirty-bitmap-query", json!({"node": node, "name": name}));
    let ranges = found["ranges"].as_array().expect("a list").iter();
    let number = |range: &Value, key: &str| range[key].as_u64().expect("a number");
    ranges.map(|range| (number(range, "offset"), number(range, "length"))).collect()
}

fn add(client: &mut Qmp, name: &str) {
    client.run("block-dirty-bitmap-add", json!({"node": "vda", "name": name}));
}

/// What bounds a backup is checked as by QEMU, and copies the same.
#[test]
fn how_much_is_in_flight() {
    if !can_start() {
        return;
    }
    let (host, theirs) = (host(""), scratch());
    let peer = peer(&theirs);
    let mut both = [host.client(), Qmp::open_peer(&peer.socket)];
    for perf in [
        json!({"max-chunk": 4096}),
        json!({"max-chunk": -1}),
        json!({"max-workers": 0}),
        json!({"max-workers": 2147483648_u64}),
    ] {
        let input = json!({"execute": "blockdev-backup", "arguments": {"device": "top",
            "target": "tgt", "sync": "full", "job-id": "j", "x-perf": perf}});
        let [ours, theirs] =
            both.each_mut().map(|client| answers(client, input.to_string().as_bytes()));
        let [ours, theirs] =
            [ours, theirs].map(|all| all[0]["error"]["desc"].as_str().map(str::to_lowercase));
        let (ours, theirs) = (ours.expect("an error"), theirs.expect("an error"));
        // What is found out with the graph names the job, too.
        assert!(ours.ends_with(&theirs), "{input}: {ours}, not {theirs}");
    }
    let [mut client, _] = both;
    for perf in [
        json!({"max-workers": 1, "max-chunk": 65536, "use-copy-range": true}),
        json!({"max-workers": 3, "max-chunk": 200_000}),
    ] {
        start(&mut client, json!({"sync": "full", "x-perf": perf}));
    }
    let mirror = json!({"device": "vda", "target": "tgt", "sync": "full", "job-id": "m",
        "buf-size": 100_000});
    client.run("blockdev-mirror", mirror);
    life(&mut client, "m", status("ready"));
    client.run("job-cancel", json!({"id": "m"}));
    life(&mut client, "m", status("null"));
    let (_, images) = host.end();
    let (top, tgt) = (images.image("top.qcow2"), images.image("tgt.qcow2"));
    same_images(&top, &tgt);
}

/// Fleecing: the view of a checkpoint is given up as it is backed up. What is copied may be written by nobody: QEMU lets
/// a guest go on to write what is discarded under it.
#[test]
fn a_source_that_is_given_up() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    let discards = |device: &str| {
        json!({"device": device, "target": "tgt", "sync": "full",
        "job-id": "j", "discard-source": true})
    };
    let (_, desc) = client.fail("blockdev-backup", discards("vda"));
    let expect =
        "job `j` discards there what it has copied, and drive `vda` (edge `root`) changes it";
    assert!(desc.contains(expect), "{desc}");
    client.run(
        "checkpoint",
        json!({"id": "c", "views": [{"node": "vda", "node-name": "then",
            "export": {"id": "then", "listen": "unix:then.sock"}}]}),
    );
    let uri = format!("nbd+unix:///then?socket={}", host.scratch.path("then.sock").display());
    let mut nbd = Client::open(&uri);
    assert_eq!(nbd.read(12 * MIB, 512), Ok(vec![3; 512]));
    client.run("blockdev-backup", discards("then"));
    let lived = ended(&mut client, "j");
    assert!(lived.iter().any(|news| news.starts_with("BLOCK_JOB_COMPLETED")), "{lived:?}");
    assert!(nbd.read(0, 512).is_err(), "it is there no more");
    drop(nbd);
    client.run("checkpoint-end", json!({"id": "c", "completed": true}));
    let (_, images) = host.end();
    same_images(&images.image("top.qcow2"), &images.image("tgt.qcow2"));
}

fn same_images(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(|path| path.display().to_string());
    let output = succeed("qemu-img", ["compare", &one, &other]);
    assert!(output.contains("identical"), "{output}");
}

/// A bitmap is made dirty by what lies in an image, and taken by the backup that copies that.
#[test]
fn a_bitmap_is_filled_and_taken() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "b");
    let populate = |client: &mut Qmp, more: Value| {
        let all = with(json!({"job-id": "p", "node": "vda", "name": "b"}), more);
        client.run("block-dirty-bitmap-populate", all);
        ended(client, "p");
    };
    populate(&mut client, json!({"pattern": "allocation-top"}));
    assert_eq!(ranges(&mut client, "vda", "b"), [(12 * MIB, 64 * KIB)]);
    populate(&mut client, json!({"pattern": "allocation-top", "base": "base"}));
    let above_base = [(4 * MIB, MIB), (12 * MIB, 64 * KIB)];
    assert_eq!(ranges(&mut client, "vda", "b"), above_base);
    start(&mut client, json!({"sync": "bitmap", "bitmap": "b", "bitmap-mode": "never"}));
    assert_eq!(ranges(&mut client, "vda", "b"), above_base);
    start(&mut client, json!({"sync": "incremental", "bitmap": "b"}));
    assert_eq!(ranges(&mut client, "vda", "b"), []);
    // What is missing is what lies in the base.
    populate(&mut client, json!({"pattern": "difference", "other": "tgt"}));
    assert_eq!(ranges(&mut client, "vda", "b"), [(0, 4 * MIB), (8 * MIB, MIB)]);
    start(&mut client, json!({"sync": "full", "bitmap": "b", "bitmap-mode": "always"}));
    populate(&mut client, json!({"pattern": "difference", "other": "tgt"}));
    assert_eq!(ranges(&mut client, "vda", "b"), []);
    for (more, expect) in [
        (json!({"pattern": "difference"}), "pattern 'difference' needs 'other'"),
        (json!({"pattern": "allocation-top", "name": "zz"}), "Bitmap 'zz' could not be found"),
        (
            json!({"pattern": "allocation-top", "other": "tgt"}),
            "'other' is for pattern 'difference' alone",
        ),
    ] {
        let all = with(json!({"job-id": "p", "node": "vda", "name": "b"}), more);
        let (_, desc) = client.fail("block-dirty-bitmap-populate", all);
        assert_eq!(desc, expect);
    }
    host.finish();
}

/// E12: a bitmap, what it is to hold, and the backup by it begin at one instant; or nothing does.
#[test]
fn it_begins_with_the_rest_of_a_transaction() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "old");
    let old = json!({"node": "vda", "name": "old"});
    let new = json!({"node": "vda", "name": "new"});
    let backup = json!({"device": "vda", "target": "tgt", "job-id": "j", "sync": "bitmap",
        "bitmap": "new", "bitmap-mode": "on-success"});
    let merge = json!({"node": "vda", "target": "new", "bitmaps": ["old"]});
    let actions = |last: Option<Value>| -> Value {
        let of = |kind: &str, data: &Value| json!({"type": kind, "data": data});
        let mut all = vec![
            of("block-dirty-bitmap-add", &new),
            of("block-dirty-bitmap-merge", &merge),
            of("block-dirty-bitmap-clear", &old),
            of("blockdev-backup", &backup),
        ];
        all.extend(last);
        json!({"actions": all})
    };
    let abort = json!({"type": "abort", "data": {}});
    client.fail("transaction", actions(Some(abort)));
    assert_eq!(client.run("query-jobs", json!({})), json!([]));
    client.run("transaction", actions(None));
    ended(&mut client, "j");
    assert_eq!(ranges(&mut client, "vda", "new"), []);
    host.finish();
}

/// E7: a bitmap that a job uses is left alone, and who asks is told by whom.
#[test]
fn a_bitmap_in_use_is_left_alone() {
    if !can_start() {
        return;
    }
    let host = host("");
    let mut client = host.client();
    add(&mut client, "b");
    client.run(
        "blockdev-backup",
        json!({"device": "vda", "target": "tgt", "job-id": "j", "sync": "full", "bitmap": "b",
            "bitmap-mode": "on-success", "speed": 1}),
    );
    life(&mut client, "j", status("running"));
    let b = json!({"node": "vda", "name": "b"});
    for command in ["clear", "disable", "remove"] {
        let (_, desc) = client.fail(&format!("block-dirty-bitmap-{command}"), b.clone());
        assert!(desc.contains("job `j`"), "{desc}");
    }
    let again = json!({"device": "vda", "target": "mid", "job-id": "k", "sync": "incremental",
        "bitmap": "b"});
    client.fail("blockdev-backup", again);
    client.run("job-cancel", json!({"id": "j"}));
    ended(&mut client, "j");
    client.run("block-dirty-bitmap-remove", b);
    host.finish();
}
