//! Incremental backup under fire. Guests and fio write all the time; round after round what has changed is pushed by
//! a job, or pulled by a client from a view, while the graph changes below the drive: images come and go, jobs pivot,
//! filters and plugins are exchanged, images are opened in another way. Some jobs are cancelled, and some clients die.
//! Everything is done by commands. What a round restores is what the disk held at its checkpoint, and what it copies
//! is what was written: none of the changes of the graph makes anything else dirty.

mod changes;
mod fio;
mod guests;

use blockloom_tests::Random;
use blockloom_tests::nbd::{Client, Terms};
use blockloom_tests::qmp::Qmp;
use serde_json::{Value, json};

use crate::control::Controlled;
use crate::{MIB, scratch};
use changes::{CHANGES, Change, Graph, ORDER};
use fio::Fio;
use guests::{Counts, Guests, Stopping, check, touched};

/// What guests write.
const GUESTS_SIZE: u64 = 16 * MIB;
/// The disk: the rest is fio's.
const SIZE: u64 = 20 * MIB;
const BLOCK: u64 = 4096;
/// Bytes of a granule of the bitmaps.
const GRANULE: u64 = 16 << 10;
/// Rounds, if `BLOCKLOOM_FIRE_ROUNDS` says nothing else: in these each change is made beside two kinds of backups.
/// `BLOCKLOOM_FIRE_SEED` chooses others.
const ROUNDS: u64 = 2 * ORDER.len() as u64;
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
    /// Of which writes on the bitmaps tell: those after the last backup that came to its end.
    since_push: Counts,
    since_pull: Counts,
    tally: Tally,
}

fn begin() -> Controlled {
    let scratch = scratch();
    let image = scratch.image("n0.qcow2").display().to_string();
    let bitmap = |name| {
        format!("[bitmap.{name}]\ndrive = \"vda\"\ngranularity = {GRANULE}\npersist = \"none\"\n")
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
            since_push: Counts::default(),
            since_pull: Counts::default(),
            tally: Tally::default(),
        };
        for round in 0..rounds {
            let what = format!("BLOCKLOOM_FIRE_SEED={seed}, round {round}");
            let (change, backup) = match round < ROUNDS {
                true => {
                    let again = round / ORDER.len() as u64;
                    (ORDER[round as usize % ORDER.len()], (round + again) % 4)
                }
                false => {
                    let change = CHANGES[fire.random.below(CHANGES.len() as u64) as usize];
                    (change, [0, 0, 0, 1, 1, 1, 2, 3][fire.random.below(8) as usize])
                }
            };
            match backup {
                0 => fire.push(round, change, false, &what),
                1 => fire.pull(change, false, &what),
                2 => fire.push(round, change, true, &what),
                _ => fire.pull(change, true, &what),
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
    if rounds >= ROUNDS {
        let each = [judged * 2 / rounds, tally.cancelled, tally.killed, tally.during];
        let all = each.iter().chain(&tally.by_kind);
        assert!(all.copied().all(|count| count > 0), "too little has happened: {tally:?}");
    }
    host.finish();
}

fn read_all(uri: &str) -> Vec<u8> {
    let mut client = Client::open(uri);
    let bytes = client.read(0, SIZE as u32).expect("a read");
    client.disconnect();
    bytes
}

/// Granules of the guests' part of the disk in which ranges lie.
fn granules(ranges: &[(u64, u64)]) -> impl Iterator<Item = u64> {
    let granules = |(start, len): (u64, u64)| start / GRANULE..(start + len).div_ceil(GRANULE);
    ranges.iter().copied().flat_map(granules).filter(|granule| granule * GRANULE < GUESTS_SIZE)
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
    fn change(&mut self, change: Change) -> Option<(Change, String)> {
        self.guests.go_on(20);
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
    fn push(&mut self, round: u64, change: Change, cancels: bool, what: &str) {
        let id = format!("push{round}");
        let mut backup = json!({"job-id": id, "device": "vda", "target": "pushed",
            "sync": "incremental", "bitmap": "push"});
        match self.random.below(2) {
            // It is not at its end by itself.
            _ if cancels => backup["speed"] = json!(1),
            0 => backup["speed"] = json!(16 * MIB),
            _ => {}
        }
        let actions = json!([
            {"type": "blockdev-backup", "data": backup},
            {"type": "checkpoint", "data": self.checkpoint(&json!([]))},
        ]);
        let from = self.guests.answered();
        self.qmp.run("transaction", json!({"actions": actions}));
        let instant = (from, self.guests.issued());
        let waiting = self.change(change);
        if cancels {
            self.qmp.run("block-job-cancel", json!({"device": id, "force": true}));
        }
        let end = end_of(&mut self.qmp, &id);
        assert_eq!(end["data"]["error"], Value::Null, "{what}");
        let then = read_all(&self.then());
        assert_eq!(end["event"] == "BLOCK_JOB_CANCELLED", cancels, "{what}");
        if cancels {
            self.tally.cancelled += 1;
        } else {
            self.tally.pushed += 1;
            let written = touched((self.since_push, instant.1), GRANULE).len() as u64 * GRANULE;
            let copied = end["data"]["len"].as_u64().expect("a length");
            assert!(
                copied <= written + SIZE - GUESTS_SIZE,
                "{what}: {copied} bytes are copied, and {written} were written, beside those of fio"
            );
            self.since_push = from;
            let pushed = read_all(self.host.daemon.uri("pushed"));
            check(&pushed, instant, what);
            assert!(pushed == then, "{what}: what was pushed is not what the view shows");
        }
        self.qmp.run("checkpoint-end", json!({"id": "now", "completed": true}));
        self.change_after(waiting, what);
    }

    /// A client reads what has changed from a view, and may die while it does.
    fn pull(&mut self, change: Change, dies: bool, what: &str) {
        let checkpoint = self.checkpoint(&json!([{"node": "vda", "name": "pull"}]));
        let from = self.guests.answered();
        self.qmp.run("checkpoint", checkpoint);
        let instant = (from, self.guests.issued());
        let waiting = self.change(change);
        let dirty = "qemu:dirty-bitmap:pull";
        let terms = Terms { contexts: &[dirty], ..Terms::default() };
        let mut client = Client::with(&self.then(), &terms).expect("the view's bitmap");
        let ranges = client.flagged(dirty);
        let written = touched((self.since_pull, instant.1), GRANULE);
        for granule in granules(&ranges) {
            assert!(written.contains(&granule), "{what}: nobody wrote in granule {granule}");
        }
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
            self.since_pull = from;
            check(&self.pulled, instant, what);
            let then = read_all(&self.then());
            assert!(self.pulled == then, "{what}: what was pulled is not what the view shows");
        }
        self.qmp.run("checkpoint-end", json!({"id": "now", "completed": !dies}));
        self.change_after(waiting, what);
    }
}
