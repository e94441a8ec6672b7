//! Changes of a large graph under load: who pauses, and for how long.
//!
//! `cargo bench --bench transaction` builds a graph of 200 nodes with 50 drives, lets eight threads write
//! and read through it without a pause, puts an overlay on every drive in one transaction and takes it away
//! in the next, and prints a table. A missed target is printed, not failed: a shared machine proves nothing.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use blockloom::bitmap::{BitmapName, Granularity};
use blockloom::filter::PassNode;
use blockloom::graph::{
    Action, BitmapAction, BitmapRef, BitmapScope, ChildDecl, Event, NodeDecl, Transaction,
};
use blockloom::node::{MemoryNode, Node};
use blockloom::{Drive, Host, Result, block_on};

const DRIVES: usize = 50;
const SWAPS: usize = 200;
const CLIENTS: usize = 8;
const SIZE_BYTES: u64 = 16 << 20;
const REQUEST_BYTES: usize = 4096;
/// What is to be reached beyond the drain of what is in flight.
const TARGET: Duration = Duration::from_millis(1);

fn filtered(below: &str) -> Vec<ChildDecl> {
    vec![ChildDecl::filtered(below)]
}

fn overlay() -> Result<MemoryNode> {
    MemoryNode::overlay(SIZE_BYTES, 512)
}

/// Four nodes a drive, with a bitmap of the drive and one of its lowest node.
fn host() -> Result<Host> {
    let mut builder = Host::builder();
    for at in 0..DRIVES {
        let (disk, f, g, h) =
            (format!("disk{at}"), format!("f{at}"), format!("g{at}"), format!("h{at}"));
        builder = builder
            .node(&disk, MemoryNode::new(SIZE_BYTES, 512)?, vec![])
            .node(&f, PassNode, filtered(&disk))
            .node(&g, overlay()?, vec![ChildDecl::backing(&f)])
            .node(&h, PassNode, filtered(&g))
            .drive(&format!("d{at}"), &h, true);
        for scope in [of_drive(at), BitmapScope::Node(disk.into())] {
            builder = builder.bitmap(scope, BitmapName::new("b")?, Granularity::DEFAULT);
        }
    }
    builder.start()
}

fn of_drive(at: usize) -> BitmapScope {
    BitmapScope::Drive(format!("d{at}").into())
}

fn snapshots() -> Result<Transaction> {
    let mut all = Transaction::new();
    for at in 0..DRIVES {
        let driver: Arc<dyn Node> = Arc::new(overlay()?);
        let children = vec![ChildDecl::backing(format!("h{at}"))];
        let overlay = NodeDecl { name: format!("o{at}"), driver, children };
        all = all.with(Action::Snapshot { drive: format!("d{at}"), overlay });
    }
    Ok(all)
}

/// The overlays are full of what clients wrote meanwhile: here nobody minds losing it.
fn back() -> Transaction {
    (0..DRIVES).fold(Transaction::new(), |all, at| {
        let set = Action::SetRoot { drive: format!("d{at}"), node: format!("h{at}") };
        all.with_unproven(set, blockloom::graph::Unproven::MarkWhole)
            .with(Action::RemoveNode { node: format!("o{at}") })
    })
}

fn checkpoint() -> Transaction {
    let bitmaps = (0..DRIVES).map(|at| BitmapRef::Named { scope: of_drive(at), name: "b".into() });
    Transaction::new().with(Action::Checkpoint { bitmaps: bitmaps.collect() })
}

fn ended() -> Transaction {
    (0..DRIVES).fold(Transaction::new(), |all, at| {
        let bitmap = BitmapRef::Named { scope: of_drive(at), name: "b".into() };
        all.with(BitmapAction::Abdicate.of(bitmap))
    })
}

/// Requests one after the other, each on another drive; returns how long the slowest took.
fn client(drives: &[Drive], number: usize, over: &AtomicBool) -> Result<Duration> {
    let mut worst = Duration::ZERO;
    let data = [1; REQUEST_BYTES];
    for turn in number.. {
        if over.load(SeqCst) {
            break;
        }
        let drive = &drives[turn % drives.len()];
        let offset = (turn * REQUEST_BYTES) as u64 % SIZE_BYTES;
        let began = Instant::now();
        if turn % 2 == 0 {
            block_on(drive.write(offset, &data))?;
        } else {
            block_on(drive.read(offset, REQUEST_BYTES))?;
        }
        worst = worst.max(began.elapsed());
    }
    Ok(worst)
}

/// Drain, still and the whole of each change.
#[derive(Default)]
struct Pauses(Vec<(Duration, Duration, Duration)>);

impl Pauses {
    fn make(&mut self, host: &Host, transaction: Transaction) -> Result<()> {
        let began = Instant::now();
        let applied = block_on(host.transact(transaction))?;
        let whole = began.elapsed();
        for event in applied.events {
            if let Event::Paused { drain, still, .. } = event {
                self.0.push((still, drain, whole));
            }
        }
        Ok(())
    }

    fn print(mut self, name: &str) {
        self.0.sort_unstable();
        let Some((worst, _, _)) = self.0.last() else { return };
        let verdict = if *worst <= TARGET { "reached" } else { "MISSED" };
        for (label, at) in [("median", self.0.len() / 2), ("worst", self.0.len() - 1)] {
            let (still, drain, whole) = self.0[at];
            println!(
                "{name:24} {label:8} still {still:>10.1?}  drain {drain:>10.1?}  all {whole:>10.1?}"
            );
        }
        println!("{name:24} {verdict}: at most {TARGET:?} still, beyond the drain");
    }
}

/// How long does the slowest request take, without and with swaps of the graph it runs through?
fn main() -> Result<()> {
    let host = host()?;
    let drives: Vec<Drive> =
        (0..DRIVES).map(|at| host.drive(&format!("d{at}"))).collect::<Result<_>>()?;
    for is_swapping in [false, true] {
        let over = AtomicBool::new(false);
        let (mut there, mut again, mut cut) = <(Pauses, Pauses, Pauses)>::default();
        let worst = std::thread::scope(|scope| -> Result<Duration> {
            let (drives, over) = (&drives, &over);
            let start = |number| scope.spawn(move || client(drives, number, over));
            let clients: Vec<_> = (0..CLIENTS).map(start).collect();
            let done = if is_swapping {
                swaps(&host, &mut there, &mut again, &mut cut)
            } else {
                std::thread::sleep(Duration::from_secs(2));
                Ok(())
            };
            over.store(true, SeqCst);
            let mut worst = Duration::ZERO;
            for client in clients {
                let result = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                worst = worst.max(result?);
            }
            done.map(|()| worst)
        })?;
        let when = if is_swapping { "while the graph is swapped" } else { "on a graph at rest" };
        println!("slowest of the requests {when}: {worst:.1?}");
        there.print("50 snapshots");
        again.print("50 roots");
        cut.print("checkpoint of 50 bitmaps");
    }
    host.shutdown()
}

fn swaps(host: &Host, there: &mut Pauses, again: &mut Pauses, cut: &mut Pauses) -> Result<()> {
    for _ in 0..SWAPS {
        there.make(host, snapshots()?)?;
        again.make(host, back())?;
        cut.make(host, checkpoint())?;
        cut.make(host, ended())?;
    }
    Ok(())
}
