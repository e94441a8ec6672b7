//! Copies to `target` what was there at one point in time, while the disk goes on changing.
//!
//! The point in time is when the node begins: from then on the old bytes of a granule go to the target before
//! the first change of it does to the child, and the rest follows of its own accord. What is still to be copied
//! is in the bitmap `todo`, which the host clears as copies settle: two writes to one granule copy it once, and
//! an instance that starts again after a failure goes on where the former one was. With `covered`, which says
//! what is to be in the backup at all, it makes the view `snapshot`, that of the point in time. Both have the size that
//! the node had when it was added: what a disk that grows later gains is none of the backup's, whose target may end
//! before it.
#![deny(unsafe_code)]

mod config;
mod pace;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use blockloom_sdk::{
    BitmapIndex, ChildIndex, ChildWant, Condition, ConfigError, Control, ControlKind, Cx,
    Description, Errno, FILE, Filter, Grants, Kinds, Level, MAX_COPY_BYTES, Node, NodeId, Request,
    RequestFlags, Rule, Signal, Time, Verdict, bitmap_count, bitmap_merge, bitmap_next, bitmap_own,
    bitmap_set, either, log, set_rules,
};

pub use blockloom_sdk::each_of;
pub use config::{BackupConfig, GRANULARITY, MAX_WORKERS, OnError, Sync};
pub use pace::Pace;

const TARGET: ChildIndex = ChildIndex(1);
const CHANGES: Kinds = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);
/// What is still to be copied.
const TODO: &str = "todo";
/// Granules of bitmaps that are set whole or not at all.
const WHOLE: u64 = 1 << 30;
/// Time between two reports of progress.
pub const REPORT: Duration = Duration::from_secs(5);

/// Of a bitmap, all.
const ALL: u64 = u64::MAX;

/// The backup of one node.
struct Backup {
    /// What is still to be copied.
    todo: BitmapIndex,
    /// What `todo` was at the beginning.
    covered: BitmapIndex,
    /// Set whole once the two have been filled.
    begun: BitmapIndex,
    /// Set whole when it is worth nothing any more.
    broken: BitmapIndex,
    changes: Option<BitmapIndex>,
    /// Nothing is forwarded before.
    ready: Signal,
    armed: Signal,
    pace: Pace,
}

/// The filter.
pub struct BackupFilter {
    config: Cell<BackupConfig>,
    nodes: RefCell<BTreeMap<NodeId, Rc<Backup>>>,
}

impl std::fmt::Debug for BackupFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupFilter").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Filter for BackupFilter {
    const KINDS: Kinds = CHANGES;
    const JOB: bool = true;

    fn describe() -> Description {
        let target = ChildWant { wants: Grants::WRITE, ..ChildWant::new("target") };
        Description::new("backup", env!("CARGO_PKG_VERSION"))
            .wants(Grants::READ)
            .exclusive()
            .child(target)
            .bitmap("changes", false)
            .view("snapshot")
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        let config = Cell::new(BackupConfig::from_json(config)?);
        Ok(Self { config, nodes: RefCell::default() })
    }

    /// What has been begun keeps what makes the copy: `sync` and `min-cluster-size`. More or fewer `max-workers`
    /// copy from the next round on.
    fn reload(&self, config: &str) -> Result<(), ConfigError> {
        let (new, present) = (BackupConfig::from_json(config)?, self.config.get());
        if new.sync != present.sync {
            return Err(ConfigError::new("sync", "cannot be changed once the backup has begun"));
        }
        if new.granularity != present.granularity {
            let message = "cannot be changed once the backup has begun";
            return Err(ConfigError::new("min-cluster-size", message));
        }
        self.config.set(new);
        self.nodes.borrow().values().for_each(|backup| backup.pace.set(new.speed));
        Ok(())
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        let target_bytes = node.child(TARGET).map_or(0, |target| target.size_bytes);
        // For a later instance the disk may have grown.
        let is_known = node.bitmaps.iter().any(|bitmap| bitmap.owned && bitmap.name == TODO);
        if target_bytes < node.size_bytes && !is_known {
            return Err("the target is smaller than what is to be copied to it".to_owned());
        }
        let changes = node.bitmaps.iter().find(|bitmap| bitmap.name == "changes");
        if (self.config.get().sync == Sync::Incremental) != changes.is_some() {
            return Err(match changes {
                Some(_) => "only with `sync = \"incremental\"` is there a bitmap `changes`",
                None => "an incremental backup needs `bitmap.changes = \"…\"`",
            }
            .to_owned());
        }
        let backup = Backup {
            todo: bitmap_own(node.index, TODO, self.config.get().granularity)?,
            covered: bitmap_own(node.index, "covered", self.config.get().granularity)?,
            begun: bitmap_own(node.index, "begun", WHOLE)?,
            broken: bitmap_own(node.index, "broken", WHOLE)?,
            changes: changes.map(|bitmap| bitmap.index),
            ready: Signal::default(),
            armed: Signal::default(),
            pace: Pace::new(self.config.get().speed),
        };
        self.nodes.borrow_mut().insert(node.index, Rc::new(backup));
        Ok(())
    }

    fn remove_node(&self, node: NodeId) {
        self.nodes.borrow_mut().remove(&node);
    }

    fn control(&self, control: Control) {
        if control.kind == ControlKind::Armed
            && let Some(backup) = self.backup(control.node)
        {
            backup.armed.set();
        }
    }

    // Zeroing and discarding come here, too.
    async fn write(&self, request: Request, cx: &Cx) -> Verdict {
        let Some(backup) = self.backup(request.node) else { return Verdict::Fail(Errno::EIO) };
        backup.ready.wait().await;
        if request.flags.contains(RequestFlags::UNCHANGED) {
            return Verdict::Forward;
        }
        if backup.is_broken() {
            // The host says so itself where something passed.
            backup.stop_asking(request.node);
            return Verdict::Forward;
        }
        let granules = self.config.get().granules_of(&request.range());
        let copies = backup.copy(cx, granules);
        let copied = match self.config.get().timeout {
            None => copies.await,
            Some(timeout) => {
                let end = cx.sleep_until(cx.now() + timeout);
                either(copies, end).await.unwrap_or(Err(Errno::ETIMEDOUT))
            }
        };
        match (copied, self.config.get().on_error) {
            (Ok(()), _) => Verdict::Forward,
            (Err(errno), OnError::BreakGuestWrite) => Verdict::Fail(errno),
            (Err(errno), OnError::BreakSnapshot) => {
                backup.break_off(request.node, &format!("a copy before a write failed ({errno})"));
                Verdict::Forward
            }
        }
    }

    async fn job(&self, node: NodeId, cx: &Cx) {
        let Some(backup) = self.backup(node) else { return };
        let begun = backup.begin(node);
        if let Err(error) = &begun {
            backup.break_off(node, error);
        }
        backup.ready.set();
        if begun.is_err() {
            return;
        }
        if backup.is_broken() {
            // By a former instance.
            backup.stop_asking(node);
            return;
        }
        if either(backup.armed.wait(), cx.stopped()).await.is_none() {
            return;
        }
        log(Level::Info, "the point in time is reached");
        if self.config.get().sync == Sync::None {
            return;
        }
        match self.copy_rest(&backup, cx).await {
            // Whoever comes next goes on from the bitmaps.
            _ if cx.stop_requested() => {}
            Ok(()) if backup.is_broken() => backup.stop_asking(node),
            Ok(()) => {
                backup.stop_asking(node);
                log(Level::Info, "the backup is complete");
            }
            Err(errno) => backup.break_off(node, &format!("copying failed ({errno})")),
        }
    }
}

impl BackupFilter {
    fn backup(&self, node: NodeId) -> Option<Rc<Backup>> {
        self.nodes.borrow().get(&node).map(Rc::clone)
    }

    /// Copies what is left, until nothing is, and makes it durable.
    async fn copy_rest(&self, backup: &Backup, cx: &Cx) -> Result<(), Errno> {
        let pace = &backup.pace;
        let total = bitmap_count(backup.todo);
        let reported = Cell::new(cx.now());
        while bitmap_next(backup.todo, 0).is_some() && !backup.is_broken() {
            let from = Cell::new(0);
            let pieces = std::iter::from_fn(|| {
                let (start, len) = bitmap_next(backup.todo, from.get())?;
                let end = start + len.min(MAX_COPY_BYTES.max(self.config.get().granularity));
                from.set(end);
                (!backup.is_broken() && !cx.stop_requested()).then_some(start..end)
            });
            let copy = |piece: Range<u64>| async {
                let start = pace.next(cx.now().as_nanos(), piece.end - piece.start);
                cx.sleep_until(Time::from_nanos(start)).await;
                let copied = backup.copy(cx, piece).await;
                if cx.now() - reported.get() >= REPORT {
                    reported.set(cx.now());
                    backup.report(total);
                }
                copied
            };
            each_of(self.config.get().workers, pieces.map(copy)).await?;
            if cx.stop_requested() {
                return Err(Errno::ECANCELED);
            }
        }
        cx.flush(TARGET).await
    }
}

impl Backup {
    /// Everything that is offered from now on is copied first. Nothing is awaited here, so no request comes
    /// between the bitmap and the rules.
    fn begin(&self, node: NodeId) -> Result<(), String> {
        if self.is_broken() {
            return Ok(());
        }
        if bitmap_next(self.begun, 0).is_none() {
            match self.changes {
                None => bitmap_set(self.covered, 0, ALL, true)?,
                Some(changes) => bitmap_merge(self.covered, changes)?,
            }
            bitmap_merge(self.todo, self.covered)?;
            bitmap_set(self.begun, 0, ALL, true)?;
        }
        let only = Condition::AnySet(self.todo);
        set_rules(node, &[Rule { kinds: CHANGES, only, budget: None }], 1)
    }

    /// Copies those of a range of whole granules that are still to be copied: then none is left in it.
    async fn copy(&self, cx: &Cx, granules: Range<u64>) -> Result<(), Errno> {
        let mut at = granules.start;
        while let Some((start, len)) = self.first_todo(at..granules.end) {
            let piece = start..start + len.min(granules.end - start).min(MAX_COPY_BYTES);
            at = piece.end;
            cx.copy(FILE, TARGET, piece).clear(self.todo).await?;
        }
        let is_left = self.first_todo(granules).is_some();
        if is_left && !self.is_broken() { Err(Errno::ESTALE) } else { Ok(()) }
    }

    /// The first run of a range on that is still to be copied; it may go on behind the range.
    fn first_todo(&self, granules: Range<u64>) -> Option<(u64, u64)> {
        bitmap_next(self.todo, granules.start).filter(|(start, _)| *start < granules.end)
    }

    fn stop_asking(&self, node: NodeId) {
        if let Err(error) = set_rules(node, &[], 2) {
            log(Level::Warn, &error);
        }
    }

    fn is_broken(&self) -> bool {
        bitmap_next(self.broken, 0).is_some()
    }

    /// To be told before anything that is not copied goes on.
    fn break_off(&self, node: NodeId, why: &str) {
        if !self.is_broken() {
            if let Err(error) = bitmap_set(self.broken, 0, ALL, true) {
                log(Level::Error, &error);
            }
            log(Level::Error, &format!("the backup is broken: {why}"));
            self.stop_asking(node);
        }
    }

    fn report(&self, total: u64) {
        let done = total.saturating_sub(bitmap_count(self.todo));
        log(Level::Info, &format!("{done} of {total} bytes are copied"));
    }
}

blockloom_sdk::export_filter!(BackupFilter);
