//! Incremental backup under fire. Guests and fio write all the time; round after round what has changed is pushed by
//! a job, or pulled by a client from a view, while the graph changes below the drive: images come and go, jobs pivot,
//! filters and plugins are exchanged, images are opened in another way. Some jobs are cancelled, and some clients die.
//! Everything is done by commands. What a round restores is what the disk held at its checkpoint.

mod changes;
mod fio;
mod guests;

use blockloom_tests::Random;
use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use crate::control::Controlled;
use crate::{MIB, scratch};
use changes::{CHANGES, Change, Graph};
use fio::Fio;
use guests::{Guests, Stopping, check};

/// What guests write.
const GUESTS_SIZE: u64 = 16 * MIB;
/// The disk: the rest is fio's.
const SIZE: u64 = 20 * MIB;
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

struct Fire<'h> {
    host: &'h Controlled,
    graph: Graph<'h>,
    /// For checkpoints and backups; changes have a client of their own.
    qmp: Qmp,
    guests: &'h Guests,
    random: Random,
    /// What clients have pulled.
    pulled: Vec<u8>,
    tally: Tally,
}

fn begin() -> Controlled {
    let scratch = scratch();
    let image = scratch.image("n0.qcow2").display().to_string();
    let bitmap = |name| {
        format!("[bitmap.{name}]\ndrive = \"vda\"\ngranularity = \"16KiB\"\npersist = \"none\"\n")
    };
    let export = |name: &str, of: &str| {
        format!("[export.{name}]\ntype = \"nbd\"\n{of}\nlisten = \"unix:nbd.sock\"\n")
    };
    let text = format!(
        "[node.pushed]\ndriver = \"memory\"\nsize = {SIZE}\n\
         [node.n0]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"{image}\" }}\n\
         create = {{ size = {SIZE} }}\n\
         [drive.vda]\nroot = \"n0\"\nwritable = true\n{}{}{}writable = true\n{}",
        bitmap("push"),
        bitmap("pull"),
        export("vda", "drive = \"vda\""),
        export("pushed", "node = \"pushed\""),
    );
    Controlled::start_in(scratch, &text, &["--workers", "2"])
}

#[test]
fn each_round_restores_what_was_there() {
    let (rounds, seed) =
        (number("BLOCKLOOM_FIRE_ROUNDS", ROUNDS), number("BLOCKLOOM_FIRE_SEED", 7));
    let host = begin();
    let uri = host.daemon.uri("vda").to_owned();
    let guests = Guests::default();
    let fio = Fio::start(&uri, GUESTS_SIZE..SIZE);
    let tally = std::thread::scope(|scope| {
        let stopping = Stopping(&guests);
        guests.start(scope, &uri);
        let mut fire = Fire {
            host: &host,
            graph: Graph::new(&host),
            qmp: host.client(),
            guests: &guests,
            random: Random::new(seed),
            pulled: vec![0; SIZE as usize],
            tally: Tally::default(),
        };
        for round in 0..rounds {
            let what = format!("BLOCKLOOM_FIRE_SEED={seed}, round {round}");
            match fire.random.below(2) {
                0 => fire.push(round, &what),
                _ => fire.pull(&what),
            }
        }
        drop(stopping);
        fire.tally
    });
    let written = fio.map(Fio::finish);
    eprintln!("{rounds} rounds, {:?} writes, {written:?} of fio: {tally:?}", guests.answered());
    let end = guests.answered();
    check(&read_all(&uri), (end, end), "the disk in the end");
    let judged = tally.pushed + tally.pulled;
    assert!(judged * 2 >= rounds, "most backups come to their end: {tally:?}");
    host.finish();
}

fn read_all(uri: &str) -> Vec<u8> {
    let mut client = Client::open(uri);
    let bytes = client.read(0, SIZE as u32).expect("a read");
    client.disconnect();
    bytes
}

/// A job's end, by its event.
fn end_of(qmp: &mut Qmp, job: &str) -> Value {
    loop {
        let event = qmp.any_event();
        let is_end = |name: &Value| name == "BLOCK_JOB_COMPLETED" || name == "BLOCK_JOB_CANCELLED";
        if event["data"]["device"] == job && is_end(&event["event"]) {
            return event;
        }
    }
}

impl Fire<'_> {
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

    /// What the view `then` is made of: all that the disk holds at this instant.
    fn checkpoint(&self, bitmaps: &Value) -> Value {
        let listen = format!("unix:{}", self.host.scratch.path("then.sock").display());
        let export = json!({"id": "then", "listen": listen});
        let view = json!({"node": "vda", "node-name": "then", "export": export});
        json!({"id": "now", "bitmaps": bitmaps, "views": [view]})
    }

    fn then(&self) -> String {
        format!("nbd+unix:///then?socket={}", self.host.scratch.path("then.sock").display())
    }

    /// A job writes what has changed to the node `pushed`; a view of the same instant says what there was.
    fn push(&mut self, round: u64, what: &str) {
        let id = format!("push{round}");
        let mut backup = json!({"job-id": id, "device": "vda", "target": "pushed",
            "sync": "incremental", "bitmap": "push"});
        if self.random.below(2) == 0 {
            backup["speed"] = json!(16 * MIB);
        }
        let actions = json!([
            {"type": "blockdev-backup", "data": backup},
            {"type": "checkpoint", "data": self.checkpoint(&json!([]))},
        ]);
        let from = self.guests.answered();
        self.qmp.run("transaction", json!({"actions": actions}));
        let instant = (from, self.guests.issued());
        let waiting = self.change();
        if self.random.below(4) == 0 {
            // It may have ended by itself.
            self.qmp.ask("block-job-cancel", json!({"device": id, "force": true}));
        }
        let end = end_of(&mut self.qmp, &id);
        assert_eq!(end["data"]["error"], Value::Null, "{what}");
        let then = read_all(&self.then());
        if end["event"] == "BLOCK_JOB_CANCELLED" {
            self.tally.cancelled += 1;
        } else {
            self.tally.pushed += 1;
            let pushed = read_all(self.host.daemon.uri("pushed"));
            check(&pushed, instant, what);
            assert!(pushed == then, "{what}: what was pushed is not what the view shows");
        }
        self.qmp.run("checkpoint-end", json!({"id": "now", "completed": true}));
        self.change_after(waiting, what);
    }

    /// A client reads what has changed from a view, and may die while it does.
    fn pull(&mut self, what: &str) {
        let checkpoint = self.checkpoint(&json!([{"node": "vda", "name": "pull"}]));
        let from = self.guests.answered();
        self.qmp.run("checkpoint", checkpoint);
        let instant = (from, self.guests.issued());
        let waiting = self.change();
        let dirty = "qemu:dirty-bitmap:pull";
        let terms = Terms { contexts: &[dirty], ..Terms::default() };
        let mut client = Client::with(&self.then(), &terms).expect("the view's bitmap");
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
        if dies {
            self.tally.killed += 1;
        } else {
            self.tally.pulled += 1;
            check(&self.pulled, instant, what);
            let then = read_all(&self.then());
            assert!(self.pulled == then, "{what}: what was pulled is not what the view shows");
        }
        self.qmp.run("checkpoint-end", json!({"id": "now", "completed": !dies}));
        self.change_after(waiting, what);
    }
}
