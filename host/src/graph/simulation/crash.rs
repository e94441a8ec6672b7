//! Crashes: everything stops between two events, and what the files hold then is opened again.
//!
//! What was written before a flush that succeeded is there; what came later may be there, sector by
//! sector; and nothing else is, above all not where only copies were written: those change no view, so no
//! crash may show that they were made.

use std::rc::Rc;
use std::sync::Arc;

use super::oracle::Tick;
use super::scene::Scene;
use super::shape::View;
use super::world::{EndOfWorld, Verdict, World};
use super::{Outcome, guest, jobs};
use crate::graph::{DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
use crate::io::BufMut;
use crate::io::sim::{Faults, Random, SECTOR, Simulation, Stop, note};
use crate::node::{FileNode, FileOptions, ImageLocking};

/// A failure of a sync is rare enough that flushes succeed between.
const FAULTS: Faults = Faults { sync: 40, space: 50, ..Faults::HARMLESS };

/// Guests and copies without an end.
async fn live(world: Rc<World>, mut random: Random) {
    let faults = if random.one_in(2) { Faults::HARMLESS } else { FAULTS };
    world.simulation.set_faults(faults);
    loop {
        guest::start(&world, &mut random);
        jobs::start(&world, &mut random);
        world.all_ended().await;
    }
}

/// Runs one seed to its crash and looks at what is left.
pub(super) fn run(seed: u64) -> Outcome {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    let _end = EndOfWorld;
    let events = random.within(10..500);
    simulation.crash_after(events);
    let scene = Scene::for_crashes(&mut random);
    let (inner, after) = (simulation.clone(), scene.clone());
    let ran = simulation.run(async move {
        let world = World::of(&inner, scene)?;
        live(world, random).await;
        Ok(())
    });
    let verdict = match (ran, super::world::current()) {
        (Err(Stop::Crashed), Some(world)) => {
            world.verdict().and_then(|()| look(&simulation, &world, after))
        }
        (Err(stop), _) => Err(stop.to_string()),
        (Ok(ended), _) => ended,
    };
    Outcome::of(verdict, &simulation)
}

/// Opens what is left, and checks every drive.
fn look(simulation: &Simulation, world: &Rc<World>, scene: Scene) -> Verdict {
    simulation.set_faults(Faults::HARMLESS);
    world.oracle.borrow_mut().has_crashed = true;
    let (inner, world) = (simulation.clone(), Rc::clone(world));
    let ran = simulation.run(async move {
        note("after the crash", [0; 3]);
        let graph = scene.graph(&inner).map_err(|error| error.to_string())?;
        let graph = Rc::new(LocalGraph::new(Arc::new(GraphCell::new(graph)), 0));
        for drive in &scene.drives {
            let flushed: Tick = world.flushed(&drive.id);
            let local = LocalDrive::open(&graph, &drive.id).map_err(|error| error.to_string())?;
            let len = super::scene::SECTORS as usize * SECTOR;
            let read = local.read(0, BufMut::new(len)).await;
            let words = super::world::words(&read.map_err(|error| error.to_string())?)?;
            let view = View::Drive(drive.id.clone());
            let checked = world.oracle.borrow().check(&view, 0, &words, flushed);
            checked.map_err(|wrong| format!("after the crash, flushed at {flushed}: {wrong}"))?;
        }
        Ok(())
    });
    ran.unwrap_or_else(|stop| Err(stop.to_string()))
}

#[test]
fn a_flush_after_a_failed_one_fails_too() {
    let simulation = Simulation::new(1);
    simulation.add_file("disk", vec![0; 8 * SECTOR]);
    let inner = simulation.clone();
    let flushed = simulation.run(async move {
        let path = "disk".into();
        let options =
            FileOptions { path, write: true, locking: ImageLocking::Off, ..FileOptions::default() };
        let driver = Arc::new(FileNode::open(&options).expect("a file"));
        let node = NodeDecl { name: "disk".into(), driver, children: vec![] };
        let root = Some("disk".into());
        let drive = DriveDecl { id: "d".into(), root, writable: true, only_shows: false };
        let decl = GraphDecl { nodes: vec![node], drives: vec![drive], bitmaps: vec![] };
        let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
        let drive = LocalDrive::open(&Rc::new(LocalGraph::new(cell, 0)), "d").expect("a drive");
        let mut flushed = vec![drive.flush().await.is_ok()];
        inner.set_faults(Faults { sync: 1, ..Faults::NONE });
        flushed.push(drive.flush().await.is_ok());
        inner.set_faults(Faults::NONE);
        flushed.push(drive.flush().await.is_ok());
        flushed
    });
    assert_eq!(flushed, Ok(vec![true, false, false]));
}
