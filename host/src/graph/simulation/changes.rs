//! Whoever changes bitmaps and the graph while requests are under way.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::lag::Lag;
use super::scene::{overlay, probe_name};
use super::shape::{Link, Shape, View};
use super::world::World;
use crate::error::ErrorKind;
use crate::filter::PassNode;
use crate::graph::{Action, ChildDecl, DriveDecl, NodeDecl, Transaction, Which};
use crate::io::sim::{Random, note};
use crate::io::{sleep_until, turn_now};
use crate::node::Node;

/// Overlays that snapshots add, at most.
const SNAPSHOTS_MAX: usize = 3;

/// Starts a phase's changes.
pub(super) fn start(world: &Rc<World>, random: &mut Random) {
    for _ in 0..random.within(1..3) {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_bitmaps(world_of, random));
    }
    if random.below(3) > 0 {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_graph(world_of, random));
    }
}

async fn pause(random: &mut Random, most_micros: u64) {
    sleep_until(turn_now() + Duration::from_micros(random.below(most_micros))).await;
}

async fn change_bitmaps(world: Rc<World>, mut random: Random) {
    for _ in 0..random.within(2..6) {
        pause(&mut random, 8000).await;
        let at = random.below(world.bitmaps.borrow().len() as u64) as usize;
        let (bitmap, change) = {
            let tracked = &mut world.bitmaps.borrow_mut()[at];
            if tracked.is_changing {
                continue;
            }
            tracked.is_changing = true;
            (Arc::clone(&tracked.bitmap), tracked.any_change(random.next()))
        };
        let began = world.oracle.borrow_mut().tick();
        note("bitmap changes", [at as u64, 0, 0]);
        let changed = world.cell().change_bitmap(&bitmap, std::slice::from_ref(&change)).await;
        let is_done = world.expect("a bitmap's change", &changed, &[]);
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

/// A transaction, the graph after it, and a node that comes with it (and what that shows).
struct Plan {
    transaction: Transaction,
    shape: Shape,
    new: Option<(View, View)>,
}

async fn change_graph(world: Rc<World>, mut random: Random) {
    for number in 0..random.within(1..4) {
        pause(&mut random, 10_000).await;
        let name = format!("new{}-{number}", world.counts.get().settled);
        let plan = match random.below(3) {
            0 => snapshot(&world, &mut random, name),
            1 => insert(&world, &mut random, name),
            _ => remove(&world, &mut random),
        };
        let Some(Plan { transaction, shape, new }) = plan else { continue };
        note("graph changes", [number, 0, 0]);
        let view = new.as_ref().map(|(view, _)| view.clone());
        world.oracle.borrow_mut().begin_change(shape, new);
        let applied = world.cell().transact(transaction).await;
        let is_done = world.expect("a transaction", &applied, &[ErrorKind::InUse]);
        note("graph changed", [number, u64::from(is_done), 0]);
        world.count(|counts| counts.graph_changes += u64::from(is_done));
        world.oracle.borrow_mut().end_change(is_done, view.as_ref());
        if let (true, Some(View::Node(store))) = (is_done, view) {
            world.stores.borrow_mut().push(store);
        }
    }
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
    let driver = overlay().ok()?;
    let probe = DriveDecl {
        id: probe_name(&name),
        root: Some(name.clone()),
        writable: false,
        only_shows: true,
    };
    let new = Some((View::Node(name.clone()), View::Drive(drive.clone())));
    let overlay = NodeDecl { name, driver, children };
    let transaction =
        Transaction::new().with(Action::Snapshot { drive, overlay }).with(Action::AddDrive(probe));
    Some(Plan { transaction, shape, new })
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
    Some(Plan { transaction: Transaction::new().with(insert), shape, new: None })
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
    Some(Plan { transaction: Transaction::new().with(remove), shape, new: None })
}
