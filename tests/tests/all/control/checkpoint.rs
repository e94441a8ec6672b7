//! Checkpoints: one instant over several drives, pulled from views of it while guests write.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::tools;
use serde_json::{Value, json};

use super::{Controlled, Over};
use crate::MIB;

const SIZE: u64 = 2 * MIB;
const BLOCK: u64 = 4096;
const DIRTY: &str = "qemu:dirty-bitmap:daily";

/// Drive `vda` in memory, `vdb` on an image; both exported, with a bitmap.
fn start() -> Controlled {
    let drive = |id: &str| {
        format!(
            "[drive.{id}]\nroot = \"{id}-disk\"\nwritable = true\n\
             [bitmap.{id}]\ndrive = \"{id}\"\nname = \"daily\"\ngranularity = \"4KiB\"\n\
             [export.{id}]\ntype = \"nbd\"\ndrive = \"{id}\"\nlisten = \"unix:nbd.sock\"\n\
             writable = true\nbitmaps = [\"{id}\"]\n"
        )
    };
    let text = format!(
        "[node.vda-disk]\ndriver = \"memory\"\nsize = \"2MiB\"\n\
         [node.vdb-disk]\ndriver = \"qcow2\"\ncreate = {{ size = \"2MiB\" }}\n\
         file = {{ driver = \"file\", path = \"vdb.qcow2\" }}\n{}{}",
        drive("vda"),
        drive("vdb")
    );
    Controlled::start(&text, &["--workers", "2"])
}

/// What a guest writes, one after the other: to which drive, and where.
fn place(number: u64) -> (usize, u64) {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    ((number % 2) as usize, mixed % (SIZE / BLOCK) * BLOCK)
}

/// Two disks.
type Disks = [Vec<u8>; 2];

fn empty() -> Disks {
    [vec![0; SIZE as usize], vec![0; SIZE as usize]]
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// What the disks hold when so many writes have been done.
fn state(writes: u64) -> Disks {
    let mut disks = empty();
    for number in 1..=writes {
        let (drive, at) = place(number);
        disks[drive][at as usize..(at + BLOCK) as usize].copy_from_slice(&block(number));
    }
    disks
}

/// Checks that both disks are as at one instant between `from` and `to` writes.
fn check(disks: &Disks, (from, to): (u64, u64), what: &str) {
    let blocks = disks.iter().flat_map(|disk| disk.chunks(BLOCK as usize));
    let last = blocks.map(|it| u64::from_le_bytes(it[..8].try_into().expect("8"))).max();
    let last = last.expect("blocks");
    assert!((from..=to).contains(&last), "{what}: write {last} of {from} to {to}");
    assert!(*disks == state(last), "{what}: it is not what was there after write {last}");
}

struct Guest {
    done: AtomicU64,
    over: AtomicBool,
}

impl Guest {
    fn write(&self, host: &Controlled) {
        let mut drives = ["vda", "vdb"].map(|id| Client::open(host.daemon.uri(id)));
        let mut number = 0;
        while !self.over.load(Ordering::Relaxed) {
            number += 1;
            let (drive, at) = place(number);
            assert_eq!(drives[drive].write(0, at, &block(number)), 0);
            self.done.store(number, Ordering::SeqCst);
        }
        drives.into_iter().for_each(Client::disconnect);
    }

    fn wait_for(&self, writes: u64) {
        let from = self.done.load(Ordering::SeqCst);
        blockloom_tests::eventually("the guest writes", || {
            (self.done.load(Ordering::SeqCst) >= from + writes).then_some(())
        });
    }
}

fn view_uri(host: &Controlled, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", host.scratch.path("view.sock").display())
}

/// What a checkpoint is told; its views keep only what `daily` says if `is_partial`.
fn arguments(id: &str, is_partial: bool) -> Value {
    let view = |drive: &str| {
        let mut view = json!({"node": drive, "node-name": format!("{drive}-then"),
            "export": {"id": format!("{drive}-then"), "listen": "unix:view.sock"}});
        if is_partial {
            view["bitmap"] = "daily".into();
        }
        view
    };
    let mut second = view("vdb");
    second["target"] = json!({"driver": "memory", "node-name": "old", "size": SIZE});
    second["min-cluster-size"] = "16KiB".into();
    let bitmap = |drive: &str| json!({"node": drive, "name": "daily"});
    json!({"id": id, "bitmaps": [bitmap("vda"), bitmap("vdb")], "views": [view("vda"), second]})
}

fn begin(client: &mut Qmp, guest: &Guest, id: &str, is_partial: bool) -> (u64, u64) {
    let from = guest.done.load(Ordering::SeqCst);
    client.run("checkpoint", arguments(id, is_partial));
    // One more may be on its way.
    (from, guest.done.load(Ordering::SeqCst) + 1)
}

/// Copies ranges of a view.
fn pull(nbd: &mut Client, ranges: impl IntoIterator<Item = Range<u64>>, to: &mut [u8]) {
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(64 << 10);
            let bytes = nbd.read(at, len as u32).expect("what is covered can be read");
            to[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            at += len;
        }
    }
}

/// Whether all of these runs, each an offset and a length, are in `shown`.
fn covers(shown: &[(u64, u64)], runs: &[(u64, u64)]) -> bool {
    runs.iter().all(|it| shown.iter().any(|of| of.0 <= it.0 && it.0 + it.1 <= of.0 + of.1))
}

fn frozen_of(client: &mut Qmp, drive: &str) -> Vec<(u64, u64)> {
    let query = json!({"node": drive, "name": "daily", "frozen": true, "limit": 16384});
    let shown = client.run("block-dirty-bitmap-query", query);
    let ranges = shown["ranges"].as_array().expect("a list").iter();
    let number = |range: &Value, key: &str| range[key].as_u64().expect("a number");
    ranges.map(|range| (number(range, "offset"), number(range, "length"))).collect()
}

/// A full backup and incremental ones, each pulled over NBD from a checkpoint while a guest writes to two drives
/// in turn: each is of one instant of both. One that is given up leaves its changes to the next.
#[test]
fn incremental_backups_are_pulled_under_fire() {
    let host = start();
    let guest = Guest { done: AtomicU64::new(0), over: AtomicBool::new(false) };
    let terms = Terms { contexts: &[DIRTY], ..Terms::default() };
    thread::scope(|threads| {
        threads.spawn(|| guest.write(&host));
        let _over = Over(&guest.over);
        let mut client = host.client();
        guest.wait_for(100);
        let nodes = |client: &mut Qmp| client.run("query-graph", json!({}))["edges"].clone();
        let before = nodes(&mut client);
        let mut kept = empty();
        for round in 0..8 {
            let (is_first, is_given_up) = (round == 0, round % 3 == 2);
            let id = format!("round{round}");
            let between = begin(&mut client, &guest, &id, !is_first && round % 2 == 1);
            let (mut backup, mut lives) = (kept.clone(), Vec::new());
            for (at, drive) in ["vda", "vdb"].into_iter().enumerate() {
                let name = format!("{drive}-then");
                let mut nbd = Client::with(&view_uri(&host, &name), &terms).expect("the view");
                let dirty = nbd.flagged(DIRTY);
                assert_eq!(dirty, frozen_of(&mut client, drive), "{round} {drive}");
                let ranges: Vec<Range<u64>> = match is_first {
                    true => vec![0..SIZE; 1],
                    false => dirty.iter().map(|(start, len)| *start..start + len).collect(),
                };
                pull(&mut nbd, ranges, &mut backup[at]);
                guest.wait_for(50);
                assert_eq!(nbd.flagged(DIRTY), dirty, "what is frozen stands still");
                let mut live = Client::with(host.daemon.uri(drive), &terms).expect("the drive");
                let shown = live.flagged(DIRTY);
                assert!(covers(&shown, &dirty), "{round} {drive}: {dirty:?} in {shown:?}");
                lives.push((live, dirty));
                nbd.disconnect();
            }
            check(&backup, between, &id);
            client.run("checkpoint-end", json!({"id": id, "completed": !is_given_up}));
            // Who has read it before has nothing taken from it.
            for (mut live, dirty) in lives {
                let shown = live.flagged(DIRTY);
                assert!(covers(&shown, &dirty), "{round}: {dirty:?} in {shown:?}");
                live.disconnect();
            }
            if !is_given_up {
                kept = backup;
            }
            assert_eq!(nodes(&mut client), before, "nothing is left of it");
            assert_eq!(client.run("query-checkpoints", json!({})), json!([]));
        }
    });
    host.finish();
}

/// A checkpoint that is aborted has never been; one that ends disconnects who reads its views.
#[test]
fn all_of_a_checkpoint_or_nothing() {
    let host = start();
    let mut client = host.client();
    let graph = |client: &mut Qmp| client.run("query-graph", json!({}));
    let before = graph(&mut client);
    let act = |data: Value| json!({"type": "checkpoint", "data": data});
    let wrong = [
        json!({"type": "abort", "data": {}}),
        json!({"type": "block-dirty-bitmap-clear", "data": {"node": "vda", "name": "none"}}),
        act(arguments("other", false)),
    ];
    for wrong in wrong {
        client.fail("transaction", json!({"actions": [act(arguments("one", false)), wrong]}));
        assert_eq!(graph(&mut client), before);
        assert_eq!(client.run("query-checkpoints", json!({})), json!([]));
        assert!(!host.scratch.path("view.sock").exists());
    }
    client.run("checkpoint", arguments("one", false));
    let (_, desc) = client.fail("checkpoint", arguments("one", false));
    assert_eq!(desc, "there is a checkpoint 'one' already");
    let shown = client.run("query-checkpoints", json!({}));
    assert_eq!(
        shown[0]["bitmaps"],
        json!([{"node": "vda", "name": "daily"},
        {"node": "vdb", "name": "daily"}])
    );
    assert_eq!(shown[0]["views"][1]["export"], "vdb-then");
    let mut nbd = Client::open(&view_uri(&host, "vda-then"));
    assert_eq!(nbd.read(0, 512), Ok(vec![0; 512]));
    assert!(nbd.is_read_only());
    // Its filter stays as long as what it keeps is shown, whatever is put over it.
    let filter = json!({"driver": "pass", "node-name": "over"});
    let over = json!({"filter": filter, "above": "vda-then.filter"});
    client.run("blockdev-insert-filter", over);
    for _ in 0..2 {
        let remove = json!({"node-name": "vda-then.filter"});
        let (_, desc) = client.fail("blockdev-remove-filter", remove);
        assert!(desc.contains("it needs node `vda-then.filter` itself: remove it first"), "{desc}");
        // The second time it is alone.
        client.ask("blockdev-remove-filter", json!({"node-name": "over"}));
    }
    let (_, desc) = client.fail("checkpoint-end", json!({"id": "two", "completed": true}));
    assert_eq!(desc, "there is no checkpoint 'two'");
    let end = json!({"id": "one", "completed": true});
    let aborted = json!([{"type": "checkpoint-end", "data": end}, {"type": "abort", "data": {}}]);
    client.fail("transaction", json!({"actions": aborted}));
    assert_eq!(nbd.read(0, 512), Ok(vec![0; 512]));
    client.run("checkpoint-end", end);
    assert_eq!(nbd.stream().read_to_close(), b"");
    let after = graph(&mut client);
    assert_eq!((&after["nodes"], &after["exports"]), (&before["nodes"], &before["exports"]));
    let (_, desc) =
        client.fail("checkpoint", json!({"views": [{"node": "vda", "node-name": "x"}]}));
    assert_eq!(desc, "Parameter 'id' is missing");
    host.finish();
}

/// What a drive shows is copied below what keeps that for a view: so the view can go while the copy is kept up to date.
#[test]
fn a_checkpoint_ends_beside_a_mirror() {
    let host = start();
    let mut client = host.client();
    let view = json!({"node": "vda", "node-name": "then"});
    client.run("checkpoint", json!({"id": "c", "views": [view]}));
    let copy = json!({"driver": "memory", "node-name": "copy", "size": SIZE});
    client.run("blockdev-add", copy);
    let mirror = json!({"job-id": "j", "device": "vda", "target": "copy", "sync": "full"});
    client.run("blockdev-mirror", mirror);
    client.event("BLOCK_JOB_READY");
    client.run("checkpoint-end", json!({"id": "c", "completed": true}));
    client.run("job-complete", json!({"id": "j"}));
    let end = client.event("BLOCK_JOB_COMPLETED");
    assert!(end["data"]["error"].is_null(), "{end}");
    let drives = client.run("query-drives", json!({}));
    let mut drives = drives.as_array().expect("a list").iter();
    let drive = drives.find(|drive| drive["id"] == "vda").expect("a drive");
    assert_eq!(drive["node-name"], "copy");
    host.finish();
}

/// The same with QEMU's tools: what they copy is what was there, and they see what is to be copied.
#[test]
fn tools_pull_from_a_checkpoint() {
    if !tools::have(&["qemu-img", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let host = start();
    let guest = Guest { done: AtomicU64::new(0), over: AtomicBool::new(false) };
    thread::scope(|threads| {
        threads.spawn(|| guest.write(&host));
        let _over = Over(&guest.over);
        let mut client = host.client();
        guest.wait_for(50);
        let between = begin(&mut client, &guest, "tools", false);
        let mut disks = empty();
        for (at, drive) in ["vda", "vdb"].into_iter().enumerate() {
            let uri = view_uri(&host, &format!("{drive}-then"));
            let file = host.scratch.path(&format!("{drive}.img"));
            let path = file.display().to_string();
            match drive {
                "vda" => tools::succeed("nbdcopy", [&uri, &path]),
                _ => tools::succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", &uri, &path]),
            };
            disks[at] = std::fs::read(&file).expect("the copy");
            let dirty = tools::nbd_map(&uri, DIRTY).into_iter().filter(|(_, _, flags)| *flags != 0);
            let dirty: Vec<(u64, u64)> = dirty.map(|(offset, len, _)| (offset, len)).collect();
            assert_eq!(dirty, frozen_of(&mut client, drive));
        }
        check(&disks, between, "copies");
        client.run("checkpoint-end", json!({"id": "tools", "completed": false}));
    });
    host.finish();
}
