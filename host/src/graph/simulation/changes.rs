//! Whoever changes bitmaps and the graph while requests are under way.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::guest::{bytes_of, some_sectors};
use super::image::{self, Geometry};
use super::lag::Lag;
use super::oracle::{By, Leaves};
use super::scene::{SECTORS, Scene, overlay, probe_name};
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
/// Those that keep what every drive shows.
const PROVEN: [u64; 3] = [0, 1, 2];
/// Those after which a scene can be built anew: its images tell the rest.
const TOLD_BY_IMAGES: [u64; 2] = [0, 5];

/// Starts a phase's changes.
pub(super) fn start(world: &Rc<World>, random: &mut Random) {
    for _ in 0..random.within(1..3) {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_bitmaps(world_of, random));
    }
    if random.below(3) > 0 {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_graph(world_of, random, &[0, 1, 2, 3, 4, 5]));
    }
}

/// Starts a round's changes in a world of images that is to crash.
pub(super) fn start_in_images(world: &Rc<World>, random: &mut Random) {
    let (world_of, bitmaps) = (Rc::clone(world), Random::new(random.next()));
    world.task(change_bitmaps(world_of, bitmaps));
    if random.one_in(2) {
        let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
        world.task(change_graph(world_of, random, &TOLD_BY_IMAGES));
    }
}

/// Starts a phase's changes of the graph, of those alone that the core can prove to keep every view.
pub(super) fn start_harmless(world: &Rc<World>, random: &mut Random) {
    let (world_of, random) = (Rc::clone(world), Random::new(random.next()));
    world.task(change_graph(world_of, random, &PROVEN));
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
    /// The scene with the image that it adds.
    scene: Option<Scene>,
}

impl Plan {
    fn new(transaction: Transaction, shape: Shape) -> Self {
        Self { transaction, shape, goes: None, bares: None, scene: None }
    }
}

/// What may stand against a change: somebody else's permissions, or a driver that cannot.
const REFUSED: [ErrorKind; 2] = [ErrorKind::InUse, ErrorKind::NotSupported];

async fn change_graph(world: Rc<World>, mut random: Random, kinds: &'static [u64]) {
    for number in 0..random.within(1..4) {
        pause(&mut random, 10_000).await;
        let name = format!("new{}", world.counts.get().graphs);
        world.count(|counts| counts.graphs += 1);
        let kind = random.pick(kinds).unwrap_or(0);
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
    let Plan { mut transaction, shape, goes, bares, scene } = plan;
    let mut refused = REFUSED.to_vec();
    if let Some(time) = hurry {
        transaction = transaction.within(time);
        refused.push(ErrorKind::TimedOut);
    }
    if world.scene.has_images {
        // An image that could neither grow nor take that back has another size than its overlay expects.
        refused.push(ErrorKind::NotPermitted);
    }
    let new = goes.as_ref().map(|(view, _)| view).filter(|view| matches!(view, View::Node(_)));
    let new = new.cloned();
    let bared = {
        let mut oracle = world.oracle.borrow_mut();
        oracle.begin_change(shape, goes);
        bares.map(|(node, sectors)| {
            let leaves = match oracle.shape().child(&node) {
                Some(backing) => Leaves::CopyOf(View::Node(oracle.shape().store(backing))),
                None => Leaves::Zeros,
            };
            oracle.begin(By::Node(node), sectors, leaves)
        })
    };
    *world.scene_next.borrow_mut() = scene;
    let prepared = world.persistence.prepare(&world.cell().load(), transaction);
    let applied = match prepared {
        Ok((transaction, entered)) => {
            let applied = world.cell().transact(transaction).await;
            if applied.is_ok() {
                world.persistence.follow(world.cell(), entered).await;
            }
            applied.map(drop)
        }
        Err(error) => Err(error),
    };
    let is_done = world.expect("a transaction", &applied, &refused);
    if let Some(bared) = bared {
        world.end_write(bared, false);
    }
    world.oracle.borrow_mut().end_change(is_done, new.as_ref());
    if let (true, Some(scene)) = (is_done, world.scene_next.take()) {
        *world.scene_now.borrow_mut() = scene;
    }
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
    let most = if world.scene.has_images && random.one_in(3) { 5 * SECTORS } else { SECTORS + 9 };
    let size_bytes = random.within(SECTORS..most) * SECTOR as u64;
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
    let size_bytes = LocalDrive::open(world.graph(random), &drive).ok()?.info().ok()?.size_bytes;
    let probe = DriveDecl {
        id: probe_name(&name),
        root: Some(name.clone()),
        writable: false,
        only_shows: true,
    };
    let goes = Some((View::Node(name.clone()), View::Drive(drive.clone())));
    let mut transaction = Transaction::new();
    let (mut scene, mut overlay_in) = (None, None);
    if world.scene.has_images {
        let geometry = Geometry::by_chance(random, true, world.scene.keeps_bitmaps);
        let simulation = &world.simulation;
        let make = || image::fresh(&name, &geometry, size_bytes, Some(&root), &[]);
        image::add(simulation, &name, make);
        let mut nodes = image::nodes(simulation, &name, &geometry, Some(&root)).ok()?;
        overlay_in = nodes.pop();
        for node in nodes {
            transaction = transaction.with(Action::AddNode(node));
        }
        let mut with_it = world.scene_now.borrow().clone();
        with_it.with_snapshot(&drive, &name, &root, geometry);
        scene = Some(with_it);
    }
    let in_memory = |driver| {
        let children = vec![ChildDecl::backing(&root)];
        NodeDecl { name: name.clone(), driver, children }
    };
    let overlay = overlay_in.or_else(|| overlay(size_bytes).ok().map(in_memory))?;
    let transaction =
        transaction.with(Action::Snapshot { drive, overlay }).with(Action::AddDrive(probe));
    Some(Plan { goes, scene, ..Plan::new(transaction, shape) })
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
