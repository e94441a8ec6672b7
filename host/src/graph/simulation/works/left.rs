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
use super::world::{Disk, World, of_drive, told};
use crate::bitmap::{Bitmap, BitmapName, BitmapState};
use crate::graph::{Action, BitmapAction, BitmapRef, Transaction};
use crate::host::Keep;
use crate::host::persist::Wanted;
use crate::io::sim::{Faults, Random, Stop, note};
use crate::node::BackingName;

/// For the requests that a close waits for.
const CLOSE_TIME: Duration = Duration::from_secs(5);

impl World {
    fn bitmap(&self, disk: &Disk, name: &str) -> Result<Arc<Bitmap>, String> {
        let graph = self.cell.load();
        let found = graph.find_bitmap(&of_drive(&disk.id), name).cloned();
        found.ok_or_else(|| format!("drive {} has no bitmap {name}", disk.id))
    }

    /// Begins with what there is; checks it, unless this is the first host.
    async fn take_over(&self, is_first: bool) -> Result<(), String> {
        note("a host begins", [u64::from(is_first), 0, 0]);
        self.past.tell(|| {
            let chains: Vec<_> = self.disks.iter().map(|disk| self.chain(disk)).collect();
            format!("a host begins: {chains:?}")
        });
        let kept = self.load_bitmap().await?;
        for (at, disk) in self.disks.iter().enumerate() {
            let words = self.read(&disk.id).await?;
            if !is_first {
                let left = disk.ledger.borrow().check_left(&words);
                left.map_err(|wrong| format!("what is left of drive {}: {wrong}", disk.id))?;
            }
            let now = self.past.tick();
            disk.ledger.borrow_mut().begin_anew(words.clone(), now);
            for name in ["b", "j"] {
                let bitmap = self.bitmap(disk, name)?;
                let mut tracked = Tracked::new(of_drive(&disk.id), bitmap, words.clone(), now);
                if tracked.bitmap.dirty_bytes() > 0 {
                    tracked.expect_all();
                }
                if let Some(kept) = kept.as_ref().filter(|_| at == 0 && name == "b") {
                    tracked.go_on_from(kept.references.clone(), now..now);
                    tracked.check(&words, None)?;
                }
                self.tracked.borrow_mut().push(tracked);
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

    /// Has images keep bitmap `b` of the first drive; what is known of it since the last host, if it came back.
    async fn load_bitmap(&self) -> Result<Option<Kept>, String> {
        let disk = &self.disks[0];
        let chain = self.chain(disk);
        if !self.past.keeps || !chain.iter().any(|store| self.past.is_image(store)) {
            self.past.kept.take();
            return Ok(None);
        }
        let before = self.past.kept.borrow().clone();
        let uuid = before.as_ref().map(|kept| kept.uuid);
        let name = BitmapName::new("b").map_err(|error| error.to_string())?;
        let wanted = Wanted { scope: of_drive(&disk.id), name, keep: Keep::Root, uuid };
        let loaded = self.changer.persistence.load(&self.cell, &[wanted]).await;
        loaded.map_err(|not| format!("a bitmap is not kept: {}", not.error))?;
        let bitmap = self.bitmap(disk, "b")?;
        let is_all = |bitmap: &Bitmap| bitmap.dirty_bytes() == bitmap.size_bytes();
        match bitmap.state() {
            BitmapState::Inconsistent => {
                self.past.count(|counts| counts.kept[2] += 1);
                let repair = BitmapAction::Repair.of(BitmapRef::of_drive(&disk.id, "b"));
                self.transact(Transaction::new().with(repair)).await.map_err(told)?;
                if !is_all(&bitmap) {
                    return Err("a bitmap that was repaired is not all dirty".to_owned());
                }
            }
            _ if before.is_none() => {}
            _ if is_all(&bitmap) => self.past.count(|counts| counts.kept[1] += 1),
            _ => {
                let words = bitmap.read().to_words();
                if before.as_ref().and_then(|kept| kept.closed.as_ref()) != Some(&words) {
                    let before = before.map(|kept| kept.closed);
                    return Err(format!("bitmap b came back as {words:x?}, not {before:x?}"));
                }
                self.past.count(|counts| counts.kept[0] += 1);
            }
        }
        let uuid = bitmap.identity().uuid;
        let now = Kept { uuid, references: Vec::new(), closed: None };
        *self.past.kept.borrow_mut() = Some(now);
        Ok(before)
    }

    /// Closes all nodes; whether that has succeeded.
    async fn close(&self) -> Result<bool, String> {
        if !self.cell.settle().await {
            return Err("requests do not end".to_owned());
        }
        let bitmap = self.bitmap(&self.disks[0], "b")?;
        if self.changer.persistence.kept_in(&bitmap).is_some()
            && let Some(kept) = &mut *self.past.kept.borrow_mut()
        {
            kept.closed = Some(bitmap.read().to_words());
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
        if let Some(kept) = &mut *self.past.kept.borrow_mut() {
            kept.references = self.references(&self.disks[0].id, "b");
        }
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
            let disk = Disk::new("look", store.clone(), Vec::new());
            let (inner, mut random) = (Rc::clone(past), Random::new(0));
            let ran = past
                .simulation
                .run(async move { World::open(&inner, &[disk], &mut random)?.read("look").await });
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
