//! Crashes: everything stops between two events, and what the files hold then is opened again.
//!
//! What was written before a flush that succeeded is there; what came later may be there, sector by
//! sector; and nothing else is, above all not where only copies were written: those change no view, so no
//! crash may show that they were made.

use std::rc::Rc;

use super::oracle::Tick;
use super::scene::Scene;
use super::shape::View;
use super::world::{EndOfWorld, Verdict, World};
use super::{Outcome, guest, jobs};
use crate::graph::{GraphCell, LocalDrive, LocalGraph};
use crate::io::BufMut;
use crate::io::sim::{Faults, Random, SECTOR, Simulation, Stop, note};

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
    let mut counts = super::Counts::default();
    let verdict = match (ran, super::world::current()) {
        (Err(Stop::Crashed), Some(world)) => {
            counts = world.counts.get();
            world.verdict().and_then(|()| look(&simulation, &world, after))
        }
        (Err(stop), _) => Err(stop.to_string()),
        (Ok(ended), _) => ended,
    };
    Outcome { verdict, trace: simulation.trace(), counts }
}

/// Opens what is left, and checks every drive.
fn look(simulation: &Simulation, world: &Rc<World>, scene: Scene) -> Verdict {
    simulation.set_faults(Faults::HARMLESS);
    world.oracle.borrow_mut().has_crashed = true;
    let (inner, world) = (simulation.clone(), Rc::clone(world));
    let ran = simulation.run(async move {
        note("after the crash", [0; 3]);
        let graph = scene.graph(&inner).map_err(|error| error.to_string())?;
        let graph = Rc::new(LocalGraph::new(GraphCell::new(graph).into(), 0));
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
