//! Worlds of images: bitmaps that the images keep, the end of a run in order, and what comes after a crash.
//!
//! A crash leaves images in which the engine's check finds leaks and nothing worse, and no bitmap that counts
//! although it was in use; a close in order leaves bitmaps that are exact. After the leaks have been repaired
//! everything goes on, and ends with images in which nothing is wrong.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use blockloom_qcow2::testing::MemoryStorage;

use super::bitmaps::Tracked;
use super::image::file_name;
use super::oracle::Tick;
use super::scene::{Scene, bitmap_name, probe_name};
use super::shape::View;
use super::world::{EndOfWorld, Verdict, World};
use super::{Outcome, changes, guest, jobs, judge};
use crate::bitmap::{BitmapName, BitmapState};
use crate::graph::{BitmapScope, LocalDrive};
use crate::host::Keep;
use crate::host::persist::Wanted;
use crate::io::sim::{Faults, Random, Simulation, Stop, note};

/// Damage is left out: of a damaged header or table nobody can know what it was.
const FAULTS: Faults = Faults { sync: 40, space: 40, ..Faults::HARMLESS };
/// For the requests that a close waits for.
const CLOSE_TIME: Duration = Duration::from_secs(5);

impl World {
    /// The bitmaps that images are to keep, those of drives wherever the drive's root-most image is.
    fn wanted(&self) -> Vec<Wanted> {
        let (scene, shape) = (&self.scene, self.oracle.borrow().shape().clone());
        let is_image = |node: &String| scene.images().any(|(name, _)| name == node);
        let wanted = |tracked: &Tracked| {
            let name = BitmapName::new(&bitmap_name(&tracked.view)).ok()?;
            let (scope, keep) = match &tracked.view {
                View::Node(node) if is_image(node) => {
                    (BitmapScope::Node(node.as_str().into()), Keep::Node(node.clone()))
                }
                View::Drive(id) if shape.path(shape.root(id)).iter().any(is_image) => {
                    (BitmapScope::Drive(id.as_str().into()), Keep::Root)
                }
                _ => return None,
            };
            Some(Wanted { scope, name, keep, uuid: None })
        };
        self.bitmaps.borrow().iter().filter_map(wanted).collect()
    }

    /// Has images keep bitmaps, from now on.
    ///
    /// # Errors
    /// Something stands against it.
    pub(super) async fn keep_bitmaps(&self) -> Verdict {
        if !self.scene.keeps_bitmaps {
            return Ok(());
        }
        let loaded = self.persistence.load(self.cell(), &self.wanted()).await;
        loaded.map_err(|not| format!("bitmaps are not kept: {}", not.error))?;
        self.keeps.set(true);
        // What was in use when everything stopped says nothing any more.
        let mut bitmaps = self.bitmaps.borrow_mut();
        bitmaps.retain(|tracked| tracked.bitmap.state() != BitmapState::Inconsistent);
        Ok(())
    }

    /// Closes all nodes; whether that has succeeded.
    ///
    /// # Errors
    /// Requests do not end.
    pub(super) async fn close(&self) -> Result<bool, String> {
        if !self.cell().settle().await {
            return Err("requests do not end".to_owned());
        }
        let is_kept = |it: &&Tracked| self.persistence.kept_in(&it.bitmap).is_some();
        let content = |it: &Tracked| (it.bitmap.name().to_string(), it.bitmap.read().to_words());
        let kept = self.bitmaps.borrow().iter().filter(is_kept).map(content).collect();
        *self.closed.borrow_mut() = Some(kept);
        note("everything closes", [0; 3]);
        Ok(self.cell().close_nodes(CLOSE_TIME).await.is_ok())
    }

    /// Everything at once, on images, and an end in order.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) async fn live_on_images(self: Rc<Self>, random: Random) -> Verdict {
        self.keep_bitmaps().await?;
        Rc::clone(&self).live(random).await?;
        let is_closed = self.close().await?;
        if self.is_damaged() {
            return Ok(());
        }
        look_at_images(&self, is_closed)
    }

    fn last_scene(&self) -> Scene {
        let next = self.scene_next.borrow().clone();
        next.unwrap_or_else(|| self.scene_now.borrow().clone())
    }
}

/// What all images have in their files.
///
/// # Errors
/// Something is wrong with one.
fn look_at_images(world: &World, is_closed: bool) -> Verdict {
    let scene = world.last_scene();
    let closed = world.closed.borrow().clone();
    let mut stored = BTreeMap::new();
    for (name, _) in scene.images() {
        let told = |wrong: String| format!("image {name}: {wrong}");
        let storage = MemoryStorage::new(world.simulation.bytes(&file_name(name)));
        judge::leaks(&storage).map_err(told)?;
        for (bitmap, bits) in judge::bitmaps(&storage).map_err(told)? {
            let Some(bits) = bits else { continue };
            match closed.as_ref().and_then(|closed| closed.get(&bitmap)) {
                None => return Err(told(format!("bitmap {bitmap} counts, and was in use"))),
                Some(kept) if !bits.are(kept) => {
                    let words = bits.words;
                    return Err(told(format!("bitmap {bitmap} holds {words:x?}, not {kept:x?}")));
                }
                Some(_) => drop(stored.insert(bitmap, ())),
            }
        }
    }
    let missing = closed.iter().flatten().find(|(name, _)| !stored.contains_key(*name));
    match missing {
        Some((name, _)) if is_closed => Err(format!("bitmap {name} was not stored")),
        _ => Ok(()),
    }
}

/// Rounds of everything, some of them before all nodes close; whether they have closed.
async fn live(world: Rc<World>, mut random: Random) -> Result<bool, String> {
    world.keep_bitmaps().await?;
    let faults = if random.one_in(2) { Faults::HARMLESS } else { FAULTS };
    world.simulation.set_faults(faults);
    let rounds = if random.one_in(2) { u64::MAX } else { random.within(1..4) };
    for _ in 0..rounds {
        guest::start(&world, &mut random);
        jobs::start(&world, &mut random);
        changes::start_in_images(&world, &mut random);
        world.all_ended().await;
    }
    world.close().await
}

/// Runs one seed to its crash, looks at what is left, and goes on with that.
pub(super) fn run(seed: u64) -> Outcome {
    let simulation = Simulation::new(seed);
    let mut random = simulation.random();
    let _end = EndOfWorld;
    let most = if random.one_in(2) { 400 } else { 4000 };
    simulation.crash_after(random.within(10..most));
    let scene = Scene::of_images_for_crashes(&mut random);
    let (inner, again) = (simulation.clone(), Random::new(random.next()));
    let ran = simulation.run(async move {
        let world = World::of(&inner, scene)?;
        live(world, random).await
    });
    let verdict = match (ran, super::world::current()) {
        (Ok(Err(wrong)), _) => Err(wrong),
        (Ok(Ok(is_closed)), Some(world)) => after(&world, is_closed, false, again),
        (Err(Stop::Crashed), Some(world)) => after(&world, false, true, again),
        (Err(stop), _) => Err(stop.to_string()),
        (Ok(Ok(_)), None) => Err("there was no world".to_owned()),
    };
    Outcome::of(verdict, &simulation)
}

/// Looks at what a run has left, repairs leaks, and goes on.
fn after(world: &Rc<World>, is_closed: bool, has_crashed: bool, random: Random) -> Verdict {
    world.verdict()?;
    look_at_images(world, is_closed)?;
    let (simulation, scene) = (world.simulation.clone(), world.last_scene());
    for (name, _) in scene.images() {
        let storage = MemoryStorage::new(simulation.bytes(&file_name(name)));
        judge::repair(&storage).map_err(|wrong| format!("image {name}: {wrong}"))?;
        simulation.add_file(&file_name(name), storage.content());
    }
    simulation.set_faults(Faults::HARMLESS);
    world.oracle.borrow_mut().has_crashed = has_crashed;
    let (inner, before) = (simulation.clone(), Rc::clone(world));
    let ran = simulation.run(async move {
        let next = World::of(&inner, scene)?;
        // Before anything is changed: copies that reads cause would be changes.
        next.keep_bitmaps().await?;
        next.take_over(&before).await?;
        Rc::clone(&next).go_on(random).await?;
        Ok(next)
    });
    let next: Rc<World> = ran.unwrap_or_else(|stop| Err(stop.to_string()))?;
    look_at_images(&next, true)?;
    let scene = next.last_scene();
    for (name, _) in scene.images() {
        let storage = MemoryStorage::new(simulation.bytes(&file_name(name)));
        let clean = judge::is_clean(&storage);
        clean.map_err(|wrong| format!("image {name}, after an end in order: {wrong}"))?;
    }
    crash_with_stored(&simulation, scene, &next)
}

/// Everything is opened once more, with bitmaps that were stored well, and crashes early: while they say that
/// they count, nothing has changed.
fn crash_with_stored(simulation: &Simulation, scene: Scene, stored: &Rc<World>) -> Verdict {
    let mut random = simulation.random();
    simulation.crash_after(random.within(1..120));
    let (inner, before) = (simulation.clone(), Rc::clone(stored));
    let ran = simulation.run(async move {
        let world = World::of(&inner, scene)?;
        *world.closed.borrow_mut() = before.closed.borrow().clone();
        world.keep_bitmaps().await?;
        world.check_loaded(&before)?;
        guest::start(&world, &mut random);
        world.all_ended().await;
        std::future::pending::<()>().await;
        Ok(())
    });
    match (ran, super::world::current()) {
        (Ok(Err(wrong)), _) => Err(wrong),
        (Err(Stop::Crashed | Stop::Deadlock), Some(world)) => {
            if world.keeps.get() {
                // From here on none counts.
                *world.closed.borrow_mut() = None;
            }
            look_at_images(&world, false)
        }
        (Err(stop), _) => Err(stop.to_string()),
        (Ok(Ok(())), _) => Err("it is to crash".to_owned()),
    }
}

impl World {
    /// Checks what the drives of a world that has ended show now, and takes that as given.
    async fn take_over(&self, before: &World) -> Verdict {
        note("after the end", [0; 3]);
        for drive in &self.scene.drives {
            let words = self.read_all(&drive.id).await?;
            let flushed: Tick = before.flushed(&drive.id);
            let view = View::Drive(drive.id.clone());
            let checked = before.oracle.borrow().check(&view, 0, &words, flushed);
            checked.map_err(|wrong| format!("afterwards, flushed at {flushed}: {wrong}"))?;
        }
        let views = self.oracle.borrow().views();
        for view in views {
            let id = match &view {
                View::Drive(id) => id.clone(),
                View::Node(node) => probe_name(node),
            };
            let words = self.read_all(&id).await?;
            self.oracle.borrow_mut().add_view(view, words);
        }
        let oracle = self.oracle.borrow();
        for tracked in self.bitmaps.borrow_mut().iter_mut() {
            let bitmap = std::sync::Arc::clone(&tracked.bitmap);
            *tracked = Tracked::new(&oracle, tracked.view.clone(), bitmap);
        }
        Ok(())
    }

    /// Bitmaps hold what a world that ended in order has stored.
    fn check_loaded(&self, stored: &World) -> Verdict {
        let closed = stored.closed.borrow();
        for tracked in self.bitmaps.borrow().iter() {
            let (name, words) =
                (tracked.bitmap.name().to_string(), tracked.bitmap.read().to_words());
            let kept = closed.as_ref().and_then(|closed| closed.get(&name));
            let is_all_dirty = tracked.bitmap.dirty_bytes() == tracked.bitmap.size_bytes();
            if is_all_dirty && self.may_be_doubted(&tracked.view) {
                continue;
            }
            if kept.is_some_and(|kept| *kept != words) {
                return Err(format!("bitmap {name} was loaded as {words:x?}, stored as {kept:x?}"));
            }
        }
        Ok(())
    }

    /// Whether a view rests on a node that cannot say whether it was changed meanwhile.
    fn may_be_doubted(&self, view: &View) -> bool {
        let oracle = self.oracle.borrow();
        let shape = oracle.shape();
        let top = match view {
            View::Node(node) => node,
            View::Drive(id) => shape.root(id),
        };
        shape.path(top).iter().any(|node| self.scene.is_silent(node))
    }

    /// A phase without faults, and an end in order.
    async fn go_on(self: Rc<Self>, mut random: Random) -> Verdict {
        guest::start(&self, &mut random);
        jobs::start(&self, &mut random);
        self.all_ended().await;
        self.settle().await?;
        for drive in self.scene.drives.iter().filter(|drive| drive.is_writable) {
            let drive = LocalDrive::open(self.graph(&mut random), &drive.id);
            let drive = drive.map_err(|error| error.to_string())?;
            drive.flush().await.map_err(|error| format!("a flush: {error}"))?;
        }
        match self.close().await? {
            true => Ok(()),
            false => Err("nothing fails, and not all nodes have closed".to_owned()),
        }
    }
}
