//! Which jobs begin: any kind in any of its modes, on targets that hold what the mode expects them to hold.

use std::time::Duration;

use super::super::image::file_name;
use super::bitmaps::Target;
use super::populated::Populated;
use super::world::{Disk, World, lag_name};
use crate::bitmap::Granularity;
use crate::graph::BitmapRef;
use crate::io::sim::{Random, SECTOR};
use crate::job::{
    BackupSpec, BackupSync, BitmapMode, CommitSpec, CopyMode, JobKind, JobSpec, MirrorSpec,
    MirrorSync, OnCbwError, OnError, StreamSpec,
};
use crate::node::BackingName;

/// A job that is to begin, and what it owes.
pub(super) struct Plan {
    pub(super) spec: JobSpec,
    /// What is copied of which drive to which store.
    pub(super) copy: Option<Copy>,
    /// What becomes dirty.
    pub(super) populated: Option<Populated>,
}

#[derive(Clone, Debug)]
pub(super) struct Copy {
    /// Number of the drive.
    pub(super) disk: usize,
    pub(super) store: String,
    pub(super) kind: CopyKind,
    /// What becomes of bitmap `j` of the drive, if it says something.
    pub(super) mode: Option<BitmapMode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyKind {
    /// Of an instant.
    Backup,
    /// The same, of which parts are told apart from what was there first.
    BackupOfTop,
    /// Of an instant, as long as it runs.
    Fleecing,
    /// Kept up to date.
    Mirror,
}

/// What holds for the round in which it begins.
#[derive(Clone, Copy)]
pub(super) struct When {
    /// There is no other job.
    pub(super) is_alone: bool,
    /// Nobody writes yet.
    pub(super) is_first: bool,
}

impl World {
    /// A job of a drive, or nothing if something that it needs cannot be had.
    pub(super) async fn plan(
        &self,
        random: &mut Random,
        (at, id): (usize, &str),
        when: When,
    ) -> Option<Plan> {
        let disk = &self.disks[at];
        let mut populated = None;
        let (what, copy) = match random.below(9) {
            8 => {
                let (spec, owed) = self.populate(random, at, when).await?;
                populated = Some(owed);
                (JobKind::Populate(spec), None)
            }
            0 | 1 => (JobKind::Stream(self.stream(random, disk)?), None),
            2 | 3 => (JobKind::Commit(self.commit(random, disk, when)?), None),
            4 | 5 => {
                let (spec, copy) = self.mirror(random, at, when).await?;
                (JobKind::Mirror(spec), copy)
            }
            _ => {
                let (spec, copy) = self.backup(random, at, when).await?;
                (JobKind::Backup(spec), Some(copy))
            }
        };
        if let Some(copy) = &copy {
            let (store, exempt) = (copy.store.clone(), None);
            self.targets.borrow_mut().push(Target { store, exempt });
        }
        let errors = [OnError::Report, OnError::Ignore, OnError::Stop, OnError::StopForSpace];
        let spec = JobSpec {
            on_error: random.pick(&errors).unwrap_or_default(),
            on_target_error: random.pick(&errors).filter(|_| random.one_in(3)),
            speed: random.below(3) * self.past.size_bytes(),
            auto_finalize: !random.one_in(4),
            auto_dismiss: !random.one_in(4),
            ..JobSpec::new(id, what)
        };
        Some(Plan { spec, copy, populated })
    }

    fn stream(&self, random: &mut Random, disk: &Disk) -> Option<StreamSpec> {
        let chain = self.chain(disk);
        let at = random.below(chain.len() as u64) as usize;
        let top = if random.one_in(2) { &disk.id } else { chain.get(at)? };
        let lower = random.pick(&chain).filter(|_| random.one_in(2));
        let (base, bottom) = match random.one_in(3) {
            true => (None, lower),
            false => (lower, None),
        };
        let below = |store: &String| {
            let at = chain.iter().position(|other| other == store)?;
            chain.get(at + 1).cloned()
        };
        let on = base.clone().or_else(|| bottom.as_ref().and_then(below));
        let backing_name = on.map(|store| named(&store));
        Some(StreamSpec { base, bottom, backing_name, ..StreamSpec::of(top) })
    }

    fn commit(&self, random: &mut Random, disk: &Disk, when: When) -> Option<CommitSpec> {
        let chain = self.chain(disk);
        let top = if random.one_in(2) { 0 } else { random.below(chain.len() as u64) as usize };
        let below = chain.get(top + 1..).unwrap_or_default();
        let base = random.below(below.len() as u64) as usize;
        let (base, between) = below.get(..=base)?.split_last()?;
        let is_forced = when.is_alone && random.one_in(4);
        for store in between.iter().chain([base]) {
            let exempt = Some(chain[top].clone());
            self.targets.borrow_mut().push(Target { store: store.clone(), exempt });
            let others = self.disks.iter().filter(|other| other.id != disk.id);
            for other in others.filter(|other| is_forced && self.chain(other).contains(store)) {
                other.ledger.borrow_mut().open();
                self.trusts.set(true);
            }
        }
        let top = chain.get(top).cloned().filter(|_| top > 0 || random.one_in(2));
        let completes = random.one_in(2);
        let backing_name = Some(named(base));
        Some(CommitSpec {
            top,
            is_forced,
            completes,
            backing_name,
            ..CommitSpec::of(&disk.id, base)
        })
    }

    async fn mirror(
        &self,
        random: &mut Random,
        at: usize,
        when: When,
    ) -> Option<(MirrorSpec, Option<Copy>)> {
        let disk = &self.disks[at];
        let chain = self.chain(disk);
        let inner = random.pick(&chain).filter(|_| random.one_in(4));
        let is_inner = inner.is_some();
        let device = inner.unwrap_or_else(|| disk.id.clone());
        let (mut sync, mut mode) = (MirrorSync::Full, None);
        let store = match random.below(6) {
            0 if when.is_alone && !is_inner => {
                sync = MirrorSync::Top;
                self.over_below(random, disk).await?
            }
            1 if when.is_alone && when.is_first && !is_inner => {
                sync = MirrorSync::None;
                let words = self.read(&disk.id).await.ok()?;
                self.over(random, &words).await.ok()?
            }
            2 if !is_inner => {
                let modes = [BitmapMode::OnSuccess, BitmapMode::Never, BitmapMode::Always];
                let chosen = random.pick(&modes).unwrap_or(BitmapMode::Never);
                mode = Some(chosen);
                sync = MirrorSync::Bitmap(BitmapRef::of_drive(&disk.id, "j"), chosen);
                self.over_last(random, disk).await?
            }
            _ => self.fresh(random).await.ok()?,
        };
        if !matches!(sync, MirrorSync::Full) {
            // That the rest is there is somebody's word.
            self.trusts.set(true);
        }
        let modes = [CopyMode::WriteBlocking, CopyMode::Background];
        let copy_mode = random.pick(&modes).unwrap_or_default();
        let granularity = some_granularity(random);
        let (target, kind) = (lag_or_itself(random, &store), CopyKind::Mirror);
        let spec = MirrorSpec { sync, copy_mode, granularity, ..MirrorSpec::of(device, target) };
        if is_inner {
            let exempt = None;
            self.targets.borrow_mut().push(Target { store, exempt });
            return Some((spec, None));
        }
        Some((spec, Some(Copy { disk: at, store, kind, mode })))
    }

    async fn backup(
        &self,
        random: &mut Random,
        at: usize,
        when: When,
    ) -> Option<(BackupSpec, Copy)> {
        let disk = &self.disks[at];
        let some = [BitmapMode::OnSuccess, BitmapMode::Always];
        let told = random.pick(&some).filter(|_| random.one_in(3));
        let (sync, store, mode, kind) = match random.below(6) {
            0 if when.is_alone => {
                let store = self.over_below(random, disk).await?;
                (BackupSync::Top, store, told, CopyKind::BackupOfTop)
            }
            1 if when.is_alone => {
                let (root, store) = (self.root(disk)?, self.chain(disk).into_iter().next()?);
                let store = self.past.add_image(random, Some(&store));
                let store = self.add(store, Some(&root)).await.ok()?;
                (BackupSync::None, store, None, CopyKind::Fleecing)
            }
            2 => {
                let store = self.over_last(random, disk).await?;
                let mode = Some(BitmapMode::OnSuccess);
                (BackupSync::Incremental, store, mode, CopyKind::Backup)
            }
            3 => {
                let modes = [BitmapMode::OnSuccess, BitmapMode::Never, BitmapMode::Always];
                let store = self.over_last(random, disk).await?;
                (BackupSync::Bitmap, store, random.pick(&modes), CopyKind::Backup)
            }
            _ => (BackupSync::Full, self.fresh(random).await.ok()?, told, CopyKind::Backup),
        };
        let on_cbw_error = match random.one_in(2) {
            true => OnCbwError::BreakGuestWrite,
            false => OnCbwError::BreakSnapshot,
        };
        let is_hasty = self.fails.get() && random.one_in(3);
        let cbw_timeout = is_hasty.then(|| Duration::from_micros(random.below(20_000)));
        let spec = BackupSpec {
            sync,
            bitmap: mode.map(|_| BitmapRef::of_drive(&disk.id, "j")),
            bitmap_mode: mode,
            granularity: some_granularity(random),
            on_cbw_error,
            cbw_timeout,
            ..BackupSpec::of(&disk.id, lag_or_itself(random, &store))
        };
        Some((spec, Copy { disk: at, store, kind, mode }))
    }
}

/// How an image names a store as its backing.
fn named(store: &str) -> BackingName {
    BackingName { name: file_name(store), format: None }
}

fn some_granularity(random: &mut Random) -> Option<Granularity> {
    let bytes = SECTOR as u64 * (1 << random.below(5));
    Granularity::from_bytes(bytes).ok().filter(|_| !random.one_in(4))
}

/// A job may be given a store, or the filter over it.
pub(super) fn lag_or_itself(random: &mut Random, store: &str) -> String {
    if random.one_in(4) { store.to_owned() } else { lag_name(store) }
}
