//! Whoever changes bitmaps and the graph while requests are under way.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::guest::{bytes_of, some_sectors};
use super::lag::Lag;
use super::oracle::{By, Leaves};
use super::scene::{SECTORS, overlay, probe_name};
use super::shape::{Link, Shape, View};
use super::world::World;
use crate::error::ErrorKind;
use crate::filter::PassNode;
use crate::graph::{
    Action, ChildDecl, DriveDecl, LocalDrive, NodeDecl, Transaction, Unproven, Which,
};
use crate::io::sim::{Random, SECTOR, note};
use crate::io::{sleep_until, turn_now};
use crate::node::Node;

/// Overlays that snapshots add, at most.
const SNAPSHOTS_MAX: usize = 3;

/// Kinds of graph changes.
pub(super) const KINDS: usize = 6;
/// The first of them keep what every drive shows.
const KINDS_PROVEN: u64 = 3;

/// Starts a phase's changes.
pub(super) fn start(world: &Rc<World>, random: &mut Random) {
    for _ in 0..random.within(1..3) {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_bitmaps(world_of, random));
    }
    if random.below(3) > 0 {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_graph(world_of, random, KINDS as u64));
    }
}

/// Starts a phase's changes of the graph, of those alone that the core can prove to keep every view.
pub(super) fn start_harmless(world: &Rc<World>, random: &mut Random) {
    let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
    world.task(change_graph(world_of, random, KINDS_PROVEN));
}

async fn pause(random: &mut Random, most_micros: u64) {
    sleep_until(turn_now() + Duration::from_micros(random.below(most_micros))).await;
}

async fn change_bitmaps(world: Rc<World>, mut random: Random) {
    for _ in 0..random.within(2..6) {
        pause(&mut random, 8000).await;
        let at = random.below(world.bitmaps.borrow().len() as u64) as usize;
        let (bitmap, (change, name)) = {
            let tracked = &mut world.bitmaps.borrow_mut()[at];
            if tracked.is_changing {
                continue;
            }
            tracked.is_changing = true;
            (Arc::clone(&tracked.bitmap), tracked.any_change(random.next()))
        };
        let began = world.oracle.borrow_mut().tick();
        note(name, [at as u64, began, 0]);
        let changed = world.cell().change_bitmap(&bitmap, std::slice::from_ref(&change)).await;
        // A driver that a hurried change of the graph has left behind may still be at its node.
        let is_done = world.expect("a bitmap's change", &changed, &[ErrorKind::InUse]);
        note("bitmap changed", [at as u64, u64::from(is_done), 0]);
        world.count(|counts| counts.bitmap_changes += u64::from(is_done));
        let mut oracle = world.oracle.borrow_mut();
        let tracked = &mut world.bitmaps.borrow_mut()[at];
        tracked.is_changing = false;
        if is_done {
            tracked.changed(&oracle, &change, began);
        }
        oracle.tick();
    }
}

/// A transaction, and the graph after it.
struct Plan {
    transaction: Transaction,
    shape: Shape,
    /// A view that comes with it, or goes elsewhere, and what it is to show.
    goes: Option<(View, View)>,
    /// A node that is to show its backing at these sectors.
    bares: Option<(String, Range<u64>)>,
}

impl Plan {
    fn new(transaction: Transaction, shape: Shape) -> Self {
        Self { transaction, shape, goes: None, bares: None }
    }
}

/// What may stand against a change: somebody else's permissions, or a driver that cannot.
const REFUSED: [ErrorKind; 2] = [ErrorKind::InUse, ErrorKind::NotSupported];

async fn change_graph(world: Rc<World>, mut random: Random, kinds: u64) {
    for number in 0..random.within(1..4) {
        pause(&mut random, 10_000).await;
        let name = format!("new{}-{number}", world.counts.get().settled);
        let kind = random.below(kinds);
        let plan = match kind {
            0 => snapshot(&world, &mut random, name),
            1 => insert(&world, &mut random, name),
            2 => remove(&world, &mut random),
            3 => set_root(&world, &mut random),
            4 => deallocate(&world, &mut random),
            _ => resize(&world, &mut random),
        };
        if let Some(plan) = plan {
            note("graph changes", [number, kind, 0]);
            let hurry = random.one_in(6).then(|| Duration::from_micros(random.below(2000)));
            let is_done = apply(&world, plan, hurry).await;
            note("graph changed", [number, kind, u64::from(is_done)]);
            world.count(|counts| {
                counts.graph_changes += u64::from(is_done);
                counts.kinds[kind as usize] += u64::from(is_done);
            });
        }
    }
}

/// Does it in both worlds; whether it could be done. In a `hurry` it may run out of time.
async fn apply(world: &Rc<World>, plan: Plan, hurry: Option<Duration>) -> bool {
    let Plan { mut transaction, shape, goes, bares } = plan;
    let mut refused = REFUSED.to_vec();
    if let Some(time) = hurry {
        transaction = transaction.within(time);
        refused.push(ErrorKind::TimedOut);
    }
    let new = goes.as_ref().map(|(view, _)| view).filter(|view| matches!(view, View::Node(_)));
    let new = new.cloned();
    let bared = {
        let mut oracle = world.oracle.borrow_mut();
        oracle.begin_change(shape, goes);
        bares.and_then(|(node, sectors)| {
            let backing = oracle.shape().child(&node)?;
            let leaves = Leaves::CopyOf(View::Node(oracle.shape().store(backing)));
            Some(oracle.begin(By::Node(node), sectors, leaves))
        })
    };
    let applied = world.cell().transact(transaction).await;
    let is_done = world.expect("a transaction", &applied, &refused);
    if let Some(bared) = bared {
        world.end_write(bared, false);
    }
    world.oracle.borrow_mut().end_change(is_done, new.as_ref());
    if let (true, Some(View::Node(store))) = (is_done, new) {
        world.stores.borrow_mut().push(store);
    }
    is_done
}

/// A drive shows another node, which nothing proves to be the same view.
fn set_root(world: &Rc<World>, random: &mut Random) -> Option<Plan> {
    let drive = random.pick(&world.scene.drives)?.id;
    let node = random.pick(&world.stores.borrow())?;
    let mut shape = world.oracle.borrow().shape().clone();
    let goes = Some((View::Drive(drive.clone()), View::Node(node.clone())));
    let node = shape.root(&probe_name(&node)).to_owned();
    shape.set_root(&drive, &node);
    let action = Action::SetRoot { drive, node };
    let transaction = Transaction::new().with_unproven(action, Unproven::MarkWhole);
    Some(Plan { goes, ..Plan::new(transaction, shape) })
}

/// An overlay gives up bytes of its own.
fn deallocate(world: &Rc<World>, random: &mut Random) -> Option<Plan> {
    let node = random.pick(&world.stores.borrow())?;
    let shape = world.oracle.borrow().shape().clone();
    let sectors = some_sectors(random);
    let bares = Some((node.clone(), sectors.clone()));
    let action = Action::Deallocate { node, range: bytes_of(&sectors) };
    let transaction = Transaction::new().with_unproven(action, Unproven::MarkWhole);
    Some(Plan { bares, ..Plan::new(transaction, shape) })
}

/// A node gets another size: never below that of the others, so that requests go on as before.
fn resize(world: &Rc<World>, random: &mut Random) -> Option<Plan> {
    let node = random.pick(&world.stores.borrow())?;
    let shape = world.oracle.borrow().shape().clone();
    let size_bytes = random.within(SECTORS..SECTORS + 9) * SECTOR as u64;
    let transaction = Transaction::new().with(Action::Resize { node, size_bytes });
    Some(Plan::new(transaction, shape))
}

/// An empty overlay on what a drive shows, with a probe.
fn snapshot(world: &Rc<World>, random: &mut Random, name: String) -> Option<Plan> {
    if world.stores.borrow().len() >= world.scene.stores().len() + SNAPSHOTS_MAX {
        return None;
    }
    let drive = random.pick(&world.scene.drives)?.id;
    let mut shape = world.oracle.borrow().shape().clone();
    let root = shape.root(&drive).to_owned();
    shape.stand(&name, &root, Link::Backing);
    shape.set_root(&drive, &name);
    shape.set_root(&probe_name(&name), &name);
    let children = vec![ChildDecl::backing(&root)];
    let size_bytes = LocalDrive::open(world.graph(random), &drive).ok()?.info().ok()?.size_bytes;
    let driver = overlay(size_bytes).ok()?;
    let probe = DriveDecl {
        id: probe_name(&name),
        root: Some(name.clone()),
        writable: false,
        only_shows: true,
    };
    let goes = Some((View::Node(name.clone()), View::Drive(drive.clone())));
    let overlay = NodeDecl { name, driver, children };
    let transaction =
        Transaction::new().with(Action::Snapshot { drive, overlay }).with(Action::AddDrive(probe));
    Some(Plan { goes, ..Plan::new(transaction, shape) })
}

/// A filter over a store.
fn insert(world: &Rc<World>, random: &mut Random, name: String) -> Option<Plan> {
    let node = random.pick(&world.stores.borrow())?;
    let mut shape = world.oracle.borrow().shape().clone();
    shape.stand(&name, &node, Link::Filtered);
    shape.repoint(&node, &name);
    world.removable.borrow_mut().push(name.clone());
    let driver: Arc<dyn Node> = if random.one_in(2) { Arc::new(Lag) } else { Arc::new(PassNode) };
    let filter = NodeDecl { name, driver, children: vec![ChildDecl::filtered(&node)] };
    let insert = Action::InsertAbove { node, filter, users: Which::All };
    Some(Plan::new(Transaction::new().with(insert), shape))
}

/// Takes a filter out.
fn remove(world: &Rc<World>, random: &mut Random) -> Option<Plan> {
    let mut removable = world.removable.borrow_mut();
    let at = random.below(removable.len() as u64) as usize;
    if removable.is_empty() {
        return None;
    }
    let node = removable.swap_remove(at);
    let mut shape = world.oracle.borrow().shape().clone();
    let child = shape.child(&node)?.to_owned();
    shape.repoint(&node, &child);
    shape.remove(&node);
    let remove = Action::RemoveFilter { node };
    Some(Plan::new(Transaction::new().with(remove), shape))
}
