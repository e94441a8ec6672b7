//! Copies to `target` what was there at one point in time, while the disk goes on changing.
//!
//! The point in time is when the node begins: from then on the old bytes of a granule go to the target before
//! the first change of it does to the child, and the rest follows of its own accord. What is still to be copied
//! is in the bitmap `todo`, which the host clears as copies settle: two writes to one granule copy it once, and
//! an instance that starts again after a failure goes on where the former one was.
#![deny(unsafe_code)]

mod config;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use blockloom_sdk::{
    BitmapIndex, ChildIndex, ChildWant, Condition, ConfigError, Control, ControlKind, Cx,
    Description, Errno, FILE, Filter, Grants, Kinds, Level, MAX_COPY_BYTES, Node, NodeId, Request,
    RequestFlags, Rule, Signal, Time, Verdict, bitmap_count, bitmap_merge, bitmap_next, bitmap_own,
    bitmap_set, each_of, either, log, set_rules,
};

pub use config::{BackupConfig, GRANULARITY, MAX_WORKERS, OnError, Sync};

const TARGET: ChildIndex = ChildIndex(1);
const CHANGES: Kinds = Kinds::WRITE.with(Kinds::ZERO).with(Kinds::DISCARD);
/// Time between two reports of progress.
const REPORT: Duration = Duration::from_secs(5);

/// The backup of one node.
struct Backup {
    size_bytes: u64,
    /// What is still to be copied.
    todo: BitmapIndex,
    /// Set whole once `todo` has been filled.
    begun: BitmapIndex,
    changes: Option<BitmapIndex>,
    armed: Signal,
    /// It is worth nothing any more.
    broken: Cell<bool>,
}

/// The filter.
pub struct BackupFilter {
    config: BackupConfig,
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
            .child(target)
            .bitmap("changes", false)
    }

    fn configure(config: &str) -> Result<Self, ConfigError> {
        Ok(Self { config: BackupConfig::from_json(config)?, nodes: RefCell::default() })
    }

    fn add_node(&self, node: Node) -> Result<(), String> {
        let target_bytes = node.child(TARGET).map_or(0, |target| target.size_bytes);
        if target_bytes < node.size_bytes {
            return Err("the target is smaller than what is to be copied to it".to_owned());
        }
        let changes = node.bitmaps.iter().find(|bitmap| bitmap.name == "changes");
        if (self.config.sync == Sync::Incremental) != changes.is_some() {
            return Err(match changes {
                Some(_) => "only with `sync = \"incremental\"` is there a bitmap `changes`",
                None => "an incremental backup needs `bitmap.changes = \"…\"`",
            }
            .to_owned());
        }
        let backup = Backup {
            size_bytes: node.size_bytes,
            todo: bitmap_own(node.index, "todo", self.config.granularity)?,
            begun: bitmap_own(node.index, "begun", 1 << 30)?,
            changes: changes.map(|bitmap| bitmap.index),
            armed: Signal::default(),
            broken: Cell::new(false),
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
        if backup.broken.get() || request.flags.contains(RequestFlags::UNCHANGED) {
            return Verdict::Forward;
        }
        let granules = self.config.granules_of(&request.range());
        let copies = backup.copy(cx, granules);
        let copied = match self.config.timeout {
            None => copies.await,
            Some(timeout) => {
                let end = cx.sleep_until(cx.now() + timeout);
                either(copies, end).await.unwrap_or(Err(Errno::ETIMEDOUT))
            }
        };
        match (copied, self.config.on_error) {
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
        if let Err(error) = backup.begin(node) {
            return backup.break_off(node, &error);
        }
        backup.armed.wait().await;
        log(Level::Info, "the point in time is reached");
        if self.config.sync == Sync::None {
            return;
        }
        match self.copy_rest(&backup, cx).await {
            Ok(()) if backup.broken.get() => {}
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
        let pace = Pace::new(cx.now(), self.config.speed);
        let total = bitmap_count(backup.todo);
        let reported = Cell::new(cx.now());
        while bitmap_next(backup.todo, 0).is_some() && !backup.broken.get() {
            let from = Cell::new(0);
            let pieces = std::iter::from_fn(|| {
                let (start, len) = bitmap_next(backup.todo, from.get())?;
                let end = start + len.min(MAX_COPY_BYTES.max(self.config.granularity));
                from.set(end);
                (!backup.broken.get() && !cx.stop_requested()).then_some(start..end)
            });
            let copy = |piece: Range<u64>| async {
                cx.sleep_until(pace.next(cx.now(), piece.end - piece.start)).await;
                let copied = backup.copy(cx, piece).await;
                if cx.now() - reported.get() >= REPORT {
                    reported.set(cx.now());
                    backup.report(total);
                }
                copied
            };
            each_of(self.config.workers, pieces.map(copy)).await?;
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
        if bitmap_next(self.begun, 0).is_none() {
            match self.changes {
                None => bitmap_set(self.todo, 0, self.size_bytes, true)?,
                Some(changes) => bitmap_merge(self.todo, changes)?,
            }
            bitmap_set(self.begun, 0, self.size_bytes.max(1), true)?;
        }
        let only = Condition::AnySet(self.todo);
        set_rules(node, &[Rule { kinds: CHANGES, only, budget: None }], 1)
    }

    /// Copies those of a range that are still to be copied.
    async fn copy(&self, cx: &Cx, granules: Range<u64>) -> Result<(), Errno> {
        let mut at = granules.start;
        let end = granules.end.min(self.size_bytes);
        while at < end {
            let piece = at..end.min(at + MAX_COPY_BYTES);
            at = piece.end;
            cx.copy(FILE, TARGET, piece).clear(self.todo).await?;
        }
        Ok(())
    }

    fn stop_asking(&self, node: NodeId) {
        if let Err(error) = set_rules(node, &[], 2) {
            log(Level::Warn, &error);
        }
    }

    fn break_off(&self, node: NodeId, why: &str) {
        if !self.broken.replace(true) {
            log(Level::Error, &format!("the backup is broken: {why}"));
            self.stop_asking(node);
        }
    }

    fn report(&self, total: u64) {
        let done = total.saturating_sub(bitmap_count(self.todo));
        log(Level::Info, &format!("{done} of {total} bytes are copied"));
    }
}

/// When the next bytes may go.
struct Pace {
    speed: Option<u64>,
    next: Cell<Time>,
}

impl Pace {
    fn new(now: Time, speed: Option<u64>) -> Self {
        Self { speed, next: Cell::new(now) }
    }

    fn next(&self, now: Time, bytes: u64) -> Time {
        let Some(speed) = self.speed else { return now };
        let start = self.next.get().max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(speed);
        self.next.set(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        start
    }
}

blockloom_sdk::export_filter!(BackupFilter);
