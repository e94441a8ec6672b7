//! Incremental backup under fire. Guests write all the time; round after round what has changed is pushed by a job,
//! or pulled by a client from a view, while the graph changes below the drive: images come and go, jobs pivot,
//! filters and plugins are exchanged. Some jobs are cancelled, and some clients die. What a round restores is what
//! the disk held at its checkpoint.

mod changes;
mod guests;

use std::sync::Arc;

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::control::{Control, ControlOptions};
use blockloom::graph::{BitmapDecl, BitmapRef, BitmapScope};
use blockloom::host::NewExport;
use blockloom::job::{BackupSpec, BackupSync, JobEnd, JobKind, JobSpec};
use blockloom::{Host, block_on};
use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use blockloom_tests::{Random, Scratch};
use serde_json::json;

use crate::MIB;
use crate::running::{add, empty, export, uri};
use crate::scratch;
use changes::{CHANGES, Change, Graph};
use guests::{Guests, Stopping, check};

const SIZE: u64 = 16 * MIB;
const BLOCK: u64 = 4096;
/// Rounds, if `BLOCKLOOM_FIRE_ROUNDS` says nothing else. `BLOCKLOOM_FIRE_SEED` chooses others.
const ROUNDS: u64 = 8;
/// Bytes that a client reads at once.
const PIECE: u64 = 256 << 10;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |it| it.parse().expect("a number"))
}

/// What came of the rounds.
#[derive(Debug, Default)]
struct Tally {
    pushed: u64,
    pulled: u64,
    cancelled: u64,
    killed: u64,
    /// Changes that were made while a backup was under way, and those that had to wait for its end.
    during: u64,
    after: u64,
    by_kind: [u64; CHANGES.len()],
}

struct Fire<'g, 's> {
    graph: Graph<'s>,
    guests: &'g Guests,
    random: Random,
    /// What clients have pulled.
    pulled: Vec<u8>,
    tally: Tally,
}

/// The host, and where its drive is exported.
fn begin(scratch: &Scratch) -> (Arc<Host>, String) {
    let host = empty();
    for (name, shown) in [("pushed", true), ("n0", false)] {
        let node = match shown {
            true => json!({ "driver": "memory", "node-name": name, "size": SIZE }),
            false => json!({
                "driver": "qcow2",
                "node-name": name,
                "file": { "driver": "file", "filename": scratch.image("n0.qcow2") },
                "create": { "size": SIZE },
            }),
        };
        add(&host, node);
    }
    block_on(host.add_drive("vda", Some("n0"), true)).expect("a drive");
    for name in ["push", "pull"] {
        let scope = BitmapScope::Drive("vda".into());
        let name = BitmapName::new(name).expect("a name");
        let granularity = Granularity::from_bytes(16 << 10).expect("a granularity");
        let decl = BitmapDecl { scope, name, granularity, enabled: true };
        block_on(host.add_bitmap(decl)).expect("a bitmap");
    }
    let uri =
        export(&host, scratch, NewExport { writable: true, ..NewExport::of_drive("vda", "vda") });
    (Arc::new(host), uri)
}

#[test]
fn each_round_restores_what_was_there() {
    let (rounds, seed) =
        (number("BLOCKLOOM_FIRE_ROUNDS", ROUNDS), number("BLOCKLOOM_FIRE_SEED", 1));
    let scratch = scratch();
    let (host, uri) = begin(&scratch);
    let pushed = export(&host, &scratch, NewExport::of_node("pushed", "pushed"));
    let path = scratch.path("control.sock");
    let options = ControlOptions { path: path.clone(), uids: Vec::new() };
    let control = Control::start(Arc::clone(&host), options, || {}).expect("a control socket");
    let guests = Guests::default();
    let tally = std::thread::scope(|scope| {
        let stopping = Stopping(&guests);
        guests.start(scope, &uri);
        let qmp = Qmp::open(&path);
        let mut fire = Fire {
            graph: Graph { host: Arc::clone(&host), qmp, scratch: &scratch, made: 0 },
            guests: &guests,
            random: Random::new(seed),
            pulled: vec![0; SIZE as usize],
            tally: Tally::default(),
        };
        for round in 0..rounds {
            let what = format!("BLOCKLOOM_FIRE_SEED={seed}, round {round}");
            match fire.random.below(2) {
                0 => fire.push(round, &pushed, &what),
                _ => fire.pull(&what),
            }
        }
        drop(stopping);
        fire.tally
    });
    eprintln!("{rounds} rounds, {:?} writes: {tally:?}", guests.answered());
    let end = guests.answered();
    check(&read_all(&uri), (end, end), "the disk in the end");
    let judged = tally.pushed + tally.pulled;
    assert!(judged * 2 >= rounds, "most backups come to their end: {tally:?}");
    control.finish();
    host.end().expect("an end in order");
}

fn read_all(uri: &str) -> Vec<u8> {
    let mut client = Client::open(uri);
    let bytes = client.read(0, SIZE as u32).expect("a read");
    client.disconnect();
    bytes
}

impl Fire<'_, '_> {
    fn host(&self) -> &Host {
        &self.graph.host
    }

    /// Makes a change while a backup is under way, or says which one has to wait for its end.
    fn change(&mut self) -> Option<(Change, String)> {
        self.guests.go_on(20);
        let change = CHANGES[self.random.below(CHANGES.len() as u64) as usize];
        match self.graph.make(change, &mut self.random) {
            Ok(made) => {
                self.tally.during += 1;
                self.tally.by_kind[made as usize] += 1;
                None
            }
            Err(why) => Some((change, why)),
        }
    }

    fn change_after(&mut self, waiting: Option<(Change, String)>, what: &str) {
        let Some((change, why)) = waiting else { return };
        let made = self.graph.make(change, &mut self.random);
        let made =
            made.unwrap_or_else(|again| panic!("{what}: {change:?}: {again}, before: {why}"));
        self.tally.after += 1;
        self.tally.by_kind[made as usize] += 1;
    }

    /// A job writes what has changed to the node `pushed`.
    fn push(&mut self, round: u64, uri: &str, what: &str) {
        let backup = BackupSpec {
            sync: BackupSync::Incremental,
            bitmap: Some(BitmapRef::of_drive("vda", "push")),
            ..BackupSpec::of("vda", "pushed")
        };
        let speed = if self.random.below(2) == 0 { 0 } else { 16 * MIB };
        let spec =
            JobSpec { speed, ..JobSpec::new(format!("push{round}"), JobKind::Backup(backup)) };
        let from = self.guests.answered();
        let job = block_on(self.host().start_job(spec));
        let instant = (from, self.guests.issued());
        let job = job.unwrap_or_else(|error| panic!("{what}: {error}"));
        let waiting = self.change();
        if self.random.below(4) == 0 {
            // It may have ended by itself.
            let _ = job.cancel(true);
        }
        match block_on(job.wait()) {
            JobEnd::Completed => {
                self.tally.pushed += 1;
                check(&read_all(uri), instant, what);
            }
            JobEnd::Cancelled => self.tally.cancelled += 1,
            JobEnd::Failed(error) => panic!("{what}: {error}"),
        }
        self.change_after(waiting, what);
    }

    /// A client reads what has changed from a view, and may die while it does.
    fn pull(&mut self, what: &str) {
        let listen = format!("unix:{}", self.graph.scratch.path("nbd.sock").display());
        let view = json!({
            "node": "vda",
            "node-name": "then",
            "export": { "id": "then", "listen": listen },
        });
        let bitmaps = json!([{ "node": "vda", "name": "pull" }]);
        let checkpoint = json!({ "id": "now", "bitmaps": bitmaps, "views": [view] });
        let from = self.guests.answered();
        self.graph.qmp.run("checkpoint", checkpoint);
        let instant = (from, self.guests.issued());
        let waiting = self.change();
        let dirty = "qemu:dirty-bitmap:pull";
        let terms = Terms { contexts: &[dirty], ..Terms::default() };
        let then = uri(self.graph.scratch, "then");
        let mut client = Client::with(&then, &terms).expect("the view's bitmap");
        let ranges = client.flagged(dirty);
        let dies = self.random.below(4) == 0;
        let count = if dies { ranges.len() / 2 } else { ranges.len() };
        for (start, len) in ranges.into_iter().take(count) {
            for at in (start..start + len).step_by(PIECE as usize) {
                let piece = PIECE.min(start + len - at);
                let bytes = client.read(at, piece as u32).expect("what is covered can be read");
                self.pulled[at as usize..(at + piece) as usize].copy_from_slice(&bytes);
            }
        }
        // Without a farewell.
        drop(client);
        self.graph.qmp.run("checkpoint-end", json!({ "id": "now", "completed": !dies }));
        if dies {
            self.tally.killed += 1;
        } else {
            self.tally.pulled += 1;
            check(&self.pulled, instant, what);
        }
        self.change_after(waiting, what);
    }
}
