//! What a host leaves, by an end in order or by a loss of power, and what the next one makes of it.
//!
//! Images have leaks, after a loss of power, and nothing worse. Drives show what was flushed, in the chains that
//! the images name. Backups that were complete hold what they held. The bitmap that is kept comes back as it was
//! stored, all dirty, or inconsistent.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::bitmaps::Tracked;
use super::past::{Kept, Past};
use super::round::Hazard;
use super::world::{Disk, LOOK, World, of_drive, of_node, told};
use crate::bitmap::{Bitmap, BitmapName, BitmapState};
use crate::graph::{Action, BitmapAction, BitmapRef, BitmapScope, Transaction};
use crate::host::Keep;
use crate::host::persist::Wanted;
use crate::io::sim::{Faults, Random, Stop, note};
use crate::node::BackingName;

/// For the requests that a close waits for.
const CLOSE_TIME: Duration = Duration::from_secs(5);

impl World {
    fn bitmap(&self, scope: &BitmapScope, name: &str) -> Result<Arc<Bitmap>, String> {
        let graph = self.cell.load();
        let found = graph.find_bitmap(scope, name).cloned();
        found.ok_or_else(|| format!("{scope} has no bitmap {name}"))
    }

    /// Begins with what there is; checks it, unless this is the first host.
    async fn take_over(&self, is_first: bool) -> Result<(), String> {
        note("a host begins", [u64::from(is_first), 0, 0]);
        self.past.tell(|| {
            let chains: Vec<_> = self.disks.iter().map(|disk| self.chain(disk)).collect();
            format!("a host begins: {chains:?}")
        });
        let kept = self.load_bitmaps().await?;
        for disk in &self.disks {
            let words = self.read(&disk.id).await?;
            if !is_first {
                let left = disk.ledger.borrow().check_left(&words);
                left.map_err(|wrong| format!("what is left of drive {}: {wrong}", disk.id))?;
            }
            let now = self.past.tick();
            disk.ledger.borrow_mut().begin_anew(words.clone(), now);
            for name in ["b", "j"] {
                self.track(&kept, (of_drive(&disk.id), name), &words, now)?;
            }
        }
        for (scope, name, _) in &kept {
            if let BitmapScope::Node(node) = scope {
                let words = self.look(&[node.to_string()]).await?.pop().unwrap_or_default();
                self.track(&kept, (scope.clone(), name), &words, self.past.tick())?;
            }
        }
        for (image, name) in self.past.take_known() {
            if self.cell.load().find_node(&image).is_none() {
                continue;
            }
            let name = Some(BackingName { name, format: None });
            let action = Action::NameBacking { node: image, name };
            self.transact(Transaction::new().with(action)).await.map_err(told)?;
        }
        Ok(())
    }

    /// A bitmap, of a view that shows these words now.
    fn track(
        &self,
        kept: &[(BitmapScope, &'static str, Option<Kept>)],
        (scope, name): (BitmapScope, &str),
        words: &[u64],
        now: u64,
    ) -> Result<(), String> {
        let bitmap = self.bitmap(&scope, name)?;
        let mut kept = kept.iter().filter(|(of, other, _)| *of == scope && *other == name);
        let before = kept.next().and_then(|(_, _, before)| before.as_ref());
        let mut tracked = Tracked::new(scope.clone(), bitmap, words.to_vec(), now);
        if tracked.bitmap.dirty_bytes() > 0 {
            tracked.expect_all();
        }
        if let Some(before) = before {
            tracked.go_on_from(before.references.clone(), now..now);
            tracked.check(words, None)?;
        }
        self.tracked.borrow_mut().push(tracked);
        Ok(())
    }

    /// Has images keep bitmap `b` of the first drive, and `k` of a node below it; what is known of them since the last
    /// host, if they came back.
    async fn load_bitmaps(&self) -> Result<Vec<(BitmapScope, &'static str, Option<Kept>)>, String> {
        let disk = &self.disks[0];
        let Some(image) = self.past.keeping(&self.chain(disk)) else {
            self.past.kept.borrow_mut().clear();
            return Ok(Vec::new());
        };
        let all =
            [(of_drive(&disk.id), "b", Keep::Root), (of_node(&image), "k", Keep::Node(image))];
        let mut known = self.past.kept.take();
        let all =
            all.map(|(scope, name, keep)| (known.remove(&scope.to_string()), scope, name, keep));
        let mut wanted = Vec::new();
        for (before, scope, name, keep) in &all {
            let uuid = before.as_ref().map(|kept| kept.uuid);
            let name = BitmapName::new(name).map_err(|error| error.to_string())?;
            wanted.push(Wanted { scope: scope.clone(), name, keep: keep.clone(), uuid });
        }
        let loaded = self.changer.persistence.load(&self.cell, &wanted).await;
        loaded.map_err(|not| format!("a bitmap is not kept: {}", not.error))?;
        let mut loaded = Vec::new();
        for (at, (before, scope, name, _)) in all.into_iter().enumerate() {
            let bitmap = self.bitmap(&scope, name)?;
            self.came_back(&bitmap, &scope, at, before.as_ref()).await?;
            let uuid = bitmap.identity().uuid;
            let now = Kept { uuid, references: Vec::new(), closed: None };
            self.past.kept.borrow_mut().insert(scope.to_string(), now);
            loaded.push((scope, name, before));
        }
        Ok(loaded)
    }

    /// Checks what came back of a bitmap.
    async fn came_back(
        &self,
        bitmap: &Bitmap,
        scope: &BitmapScope,
        at: usize,
        before: Option<&Kept>,
    ) -> Result<(), String> {
        let is_all = || bitmap.dirty_bytes() == bitmap.size_bytes();
        let how = match bitmap.state() {
            BitmapState::Inconsistent => {
                let name = bitmap.name();
                let of = match scope {
                    BitmapScope::Drive(id) => BitmapRef::of_drive(id, name.as_str()),
                    BitmapScope::Node(node) => BitmapRef::of_node(node, name.as_str()),
                };
                let repair = Transaction::new().with(BitmapAction::Repair.of(of));
                self.transact(repair).await.map_err(told)?;
                if !is_all() {
                    return Err("a bitmap that was repaired is not all dirty".to_owned());
                }
                2
            }
            _ if before.is_none() => return Ok(()),
            _ if is_all() => 1,
            _ => {
                let words = bitmap.read().to_words();
                let closed = before.and_then(|kept| kept.closed.as_ref());
                if closed != Some(&words) {
                    return Err(format!(
                        "the bitmap of {scope} is {words:x?}, and was {closed:x?}"
                    ));
                }
                0
            }
        };
        self.past.count(|counts| counts.kept[at][how] += 1);
        Ok(())
    }

    /// Closes all nodes; whether that has succeeded.
    async fn close(&self) -> Result<bool, String> {
        if !self.cell.settle().await {
            return Err("requests do not end".to_owned());
        }
        for (scope, kept) in &mut *self.past.kept.borrow_mut() {
            let all = self.tracked.borrow();
            let of = |it: &&Tracked| {
                it.scope.to_string() == *scope && matches!(it.bitmap.name().as_str(), "b" | "k")
            };
            if let Some(tracked) = all.iter().find(of)
                && self.changer.persistence.kept_in(&tracked.bitmap).is_some()
            {
                kept.closed = Some(tracked.bitmap.read().to_words());
            }
        }
        note("everything closes", [0; 3]);
        let closed = self.cell.close_nodes(CLOSE_TIME).await;
        if let Err(error) = &closed {
            self.expect("a close", error, &[]);
        }
        self.verdict().map(|()| closed.is_ok())
    }

    /// It has ended: what is known of it goes on.
    fn leave(&self) {
        for disk in &self.disks {
            let chain = self.chain(disk);
            self.past.remember(&chain);
            *disk.root.borrow_mut() = chain.into_iter().next().unwrap_or_default();
            disk.guests.set(0);
        }
        // Those of nodes that have gone went with them.
        let all = self.tracked.borrow();
        self.past.kept.borrow_mut().retain(|scope, kept| {
            let mut of = all.iter().filter(|it| {
                it.scope.to_string() == *scope && matches!(it.bitmap.name().as_str(), "b" | "k")
            });
            let references = of.next().map(|tracked| tracked.references.clone());
            let is_there = references.is_some() || all.is_empty();
            kept.references = references.unwrap_or_default();
            is_there
        });
    }
}

/// A host from its beginning to its end, in order unless power is lost before.
pub(super) struct Life {
    pub(super) is_first: bool,
    pub(super) rounds: u64,
    pub(super) hazard: Hazard,
    /// After how many events power is lost.
    pub(super) crash: Option<u64>,
}

impl Life {
    /// # Errors
    /// What was wrong, or is wrong with what it has left.
    pub(super) fn run(
        &self,
        past: &Rc<Past>,
        disks: &[Rc<Disk>],
        mut random: Random,
    ) -> Result<(), String> {
        let simulation = &past.simulation;
        simulation.set_faults(Faults::HARMLESS);
        if let Some(events) = self.crash {
            simulation.crash_after(events);
        }
        let world = Rc::<RefCell<Option<Rc<World>>>>::default();
        let (inner, keep, drives) = (Rc::clone(past), Rc::clone(&world), disks.to_vec());
        let Self { is_first, rounds, hazard, .. } = *self;
        let ran = simulation.run(async move {
            let world = World::open(&inner, &drives, &mut random)?;
            *keep.borrow_mut() = Some(Rc::clone(&world));
            world.fails.set(hazard == Hazard::Syncs);
            world.take_over(is_first).await?;
            for _ in 0..rounds {
                world.round(&mut random, hazard).await?;
            }
            world.close().await
        });
        let world = world.take();
        let has_closed = match ran {
            Ok(closed) => closed?,
            Err(Stop::Crashed) => false,
            Err(stop) => return Err(stop.to_string()),
        };
        let Some(world) = world else { return Ok(()) };
        world.verdict()?;
        past.count(|counts| counts.crashed += u64::from(self.crash.is_some() && !has_closed));
        world.leave();
        drop(world);
        Self::look(past, disks, has_closed && hazard == Hazard::Nothing)
    }

    /// Looks at what is left.
    fn look(past: &Rc<Past>, disks: &[Rc<Disk>], is_clean: bool) -> Result<(), String> {
        let mut stores = Vec::new();
        let backups = past.backups();
        let roots = disks.iter().map(|disk| disk.root.borrow().clone());
        for root in roots.chain(backups.iter().map(|(store, _)| store.clone())) {
            stores.extend(past.chain(&root)?);
        }
        stores.sort();
        stores.dedup();
        past.repair(&stores, is_clean)?;
        for (store, words) in backups {
            let disk = Disk::new(LOOK, store.clone(), Vec::new());
            let (inner, mut random) = (Rc::clone(past), Random::new(0));
            let ran = past
                .simulation
                .run(async move { World::open(&inner, &[disk], &mut random)?.read(LOOK).await });
            let left = ran.unwrap_or_else(|stop| Err(stop.to_string()));
            let left = left.map_err(|wrong| format!("backup {store}: {wrong}"))?;
            if let Some(at) = left.iter().zip(&words).position(|(left, word)| left != word) {
                let (left, word) = (left[at], words[at]);
                return Err(format!(
                    "sector {at} of backup {store} is {left:#x}, and was {word:#x} when it was complete"
                ));
            }
            past.count(|counts| counts.left += 1);
        }
        Ok(())
    }
}
