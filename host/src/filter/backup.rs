//! `backup`: copies to `target` what was there at one point in time, while the disk goes on changing.
//!
//! The point in time is when the node joins the graph, before its first request. From then on the old bytes of
//! a granule are copied before the first change of it; the rest follows of the node's own accord. The
//! configuration is the plugin's (`blockloom-plugin-backup`).

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use blockloom_plugin_backup::{BackupConfig, OnError, Pace, REPORT, Sync, each_of};

use super::native::{Change, FILE, Filter};
use super::point_in_time::PointInTime;
use crate::bitmap::{BitmapState, Granularity};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BitmapScope, ChildDecl, CopyHow, Cx, LocalGraph, OnBehalf, OwnAccord};
use crate::graph::{PermissionSet, Role};
use crate::io::{Time, next_turn, sleep_until, spawn, turn_now, until};
use crate::limits::COPY_MAX_BYTES;
use crate::node::NodeInfo;

/// Number of the edge to the target.
const TARGET: usize = 1;

/// The native `backup` filter; for its edges see [`BackupNode::children`].
pub struct BackupNode {
    config: BackupConfig,
    /// What says what an incremental one copies.
    changes: Option<(BitmapScope, String)>,
    state: Arc<OnceLock<PointInTime>>,
}

impl BackupNode {
    /// What the bitmap is called that says what has changed.
    pub const CHANGES: &str = "changes";
    /// What the child is called to which it copies.
    pub const TARGET: &str = "target";

    /// `changes` is the bitmap of an incremental backup, or of one that copies nothing by itself; of what it says
    /// when the node begins, old bytes are kept.
    ///
    /// # Errors
    /// `EINVAL` if that is not so.
    pub fn new(config: BackupConfig, changes: Option<(BitmapScope, String)>) -> Result<Self> {
        let message = match (config.sync, &changes) {
            (Sync::Full, Some(_)) => {
                "only with `sync = \"incremental\"` or `\"none\"` is there a bitmap `changes`"
            }
            (Sync::Incremental, None) => "an incremental backup needs `bitmap.changes = \"…\"`",
            _ => return Ok(Self { config, changes, state: Arc::default() }),
        };
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Its edges, with the grants that it needs: to read `file` and to write `target`.
    pub fn children(file: impl Into<String>, target: impl Into<String>) -> Vec<ChildDecl> {
        let file =
            ChildDecl { grants: PermissionSet::CONSISTENT_READ, ..ChildDecl::filtered(file) };
        let target = ChildDecl {
            name: Self::TARGET.to_owned(),
            role: Role::Target,
            grants: PermissionSet::WRITE,
            ..ChildDecl::filtered(target)
        };
        vec![file, target]
    }

    /// What makes the view of its point in time.
    pub(super) fn state(&self) -> Arc<OnceLock<PointInTime>> {
        Arc::clone(&self.state)
    }

    /// Whether what it has copied is there for the view alone: else it is the backup, of which no reader gives up
    /// anything.
    pub(super) fn is_for_its_view(&self) -> bool {
        self.config.sync == Sync::None
    }

    fn sets(&self) -> Result<&PointInTime> {
        let missing = || Error::new(ErrorKind::Io, "the backup has not begun");
        self.state.get().ok_or_else(missing)
    }

    /// Copies what is still to be copied of the granules that a change is going to touch.
    async fn before(&self, cx: Cx<'_>, range: Range<u64>) -> Result<()> {
        let sets = self.sets()?;
        // Behind the end there is nothing to keep.
        let range = range.start..range.end.min(sets.todo.size_bytes());
        if range.is_empty() {
            return Ok(());
        }
        let range = self.config.granules_of(&range);
        if cx.is_unchanged() || !sets.is_todo(&range) || sets.is_broken() {
            return Ok(());
        }
        // Apart: nearly all changes find nothing to copy, and are not to carry what that takes.
        Box::pin(self.keep(cx, sets, range)).await
    }

    /// Copies what is still to be copied in a range of whole granules, or does without.
    async fn keep(&self, cx: Cx<'_>, sets: &PointInTime, range: Range<u64>) -> Result<()> {
        let copy = copy(cx.on_behalf(), sets, range);
        let copied = match self.config.timeout {
            None => copy.await,
            Some(timeout) => {
                let late =
                    || Error::new(ErrorKind::TimedOut, "a copy before a write took too long");
                until(turn_now() + timeout, copy).await.unwrap_or_else(|| Err(late()))
            }
        };
        match (copied, self.config.on_error) {
            (Err(error), OnError::BreakSnapshot) => {
                let why = format!("a copy before a write failed ({error})");
                break_off(sets, cx.node_name(), &why);
                Ok(())
            }
            (copied, _) => copied,
        }
    }

    /// An incremental one is of what the bitmap says; until now all was copied before it was changed.
    fn narrow(&self, graph: &LocalGraph) -> Result<()> {
        let Some((scope, name)) = &self.changes else { return Ok(()) };
        let (sets, snapshot) = (self.sets()?, graph.current());
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no `{name}`"));
        let changes = snapshot.find_bitmap(scope, name).ok_or_else(missing)?.read();
        // What a checkpoint has frozen is of the point in time; what has been recorded since is not.
        let is_frozen = changes.state() == BitmapState::Frozen;
        let frozen = changes.still().filter(|_| is_frozen);
        frozen
            .unwrap_or(changes)
            .ranges(0..u64::MAX)
            .for_each(|run| sets.covered.mark(run.start, run.end - run.start));
        let mut at = 0;
        for run in sets.covered.ranges(0..u64::MAX) {
            sets.todo.clear_range(at, run.start - at);
            at = run.end;
        }
        sets.todo.clear_range(at, u64::MAX - at);
        Ok(())
    }
}

/// Copies those of a range of whole granules that are still to be copied: then none is left in it.
async fn copy(ground: OnBehalf, sets: &PointInTime, range: Range<u64>) -> Result<()> {
    let (how, todo) = (CopyHow::default(), Arc::clone(&sets.todo));
    ground.copy_set(FILE, TARGET, range.clone(), how, todo).await?;
    if sets.is_todo(&range) && !sets.is_broken() {
        let message = format!(
            "bytes {} to {} are still to be copied: the disk or the target ends before them",
            range.start, range.end
        );
        return Err(Error::new(ErrorKind::Stale, message));
    }
    Ok(())
}

/// To be told before anything that is not copied goes on.
fn break_off(sets: &PointInTime, node: &str, why: &str) {
    if !sets.is_broken() {
        sets.broken.set_all();
        tracing::error!("node `{node}`: the backup is broken: {why}");
    }
}

/// Copies what is left, until nothing is, and makes it durable.
async fn copy_rest(own: &OwnAccord, sets: &PointInTime, config: &BackupConfig) -> Result<()> {
    let (pace, total) = (Pace::new(config.speed), sets.todo.dirty_bytes());
    let most = config.granularity.max(COPY_MAX_BYTES as u64);
    let reported = Cell::new(turn_now());
    while sets.todo.next_dirty(0).is_some() && !sets.is_broken() {
        let from = Cell::new(0);
        let pieces = std::iter::from_fn(|| {
            let run = sets.todo.next_dirty(from.get()).filter(|_| !sets.is_broken())?;
            let piece = run.start..run.end.min(run.start.saturating_add(most));
            from.set(piece.end);
            Some(piece)
        });
        let copies = pieces.map(|piece| async {
            // A copy need not wait for anything.
            next_turn().await;
            let start = pace.next(turn_now().as_nanos(), piece.end - piece.start);
            if start > turn_now().as_nanos() {
                sleep_until(Time::from_nanos(start)).await;
            }
            copy(own.on_behalf().await?, sets, piece).await?;
            if turn_now().since(reported.get()) >= REPORT {
                reported.set(turn_now());
                let done = total.saturating_sub(sets.todo.dirty_bytes());
                tracing::info!("backup: {done} of {total} bytes are copied");
            }
            Ok::<(), Error>(())
        });
        each_of(config.workers, copies).await?;
    }
    own.on_behalf().await?.flush(TARGET).await
}

async fn job(own: OwnAccord, sets: PointInTime, config: BackupConfig, node: String) {
    match copy_rest(&own, &sets, &config).await {
        Ok(()) if sets.is_broken() => {}
        Ok(()) => tracing::info!("node `{node}`: the backup is complete"),
        Err(error) => break_off(&sets, &node, &format!("copying failed ({error})")),
    }
}

impl Filter for BackupNode {
    fn driver(&self) -> &'static str {
        "backup"
    }

    fn is_exclusive(&self, edge: usize) -> bool {
        edge == FILE
    }

    fn start(&self, _name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
        if children.get(TARGET).is_none_or(|target| target.size_bytes < info.size_bytes) {
            let message = "the target is smaller than what is to be copied to it";
            return Err(invalid(message.to_owned()));
        }
        let granularity = Granularity::from_bytes(self.config.granularity);
        let sets = granularity.and_then(|it| PointInTime::new(info.size_bytes, it));
        let sets = sets.map_err(|error| invalid(error.to_string()))?;
        sets.todo.set_all();
        if self.changes.is_none() {
            sets.covered.set_all();
            sets.begun.set_all();
        }
        self.state.set(sets).map_err(|_| invalid("a backup is of one node".to_owned()))
    }

    fn run(&self, graph: &Rc<LocalGraph>, name: &str) {
        let Ok(sets) = self.sets() else { return };
        let own = self.narrow(graph).and_then(|()| OwnAccord::open(graph, name));
        let own = match own {
            Ok(own) => own,
            Err(error) => return break_off(sets, name, &error.to_string()),
        };
        sets.given_up.belongs_to(graph.cell(), name);
        sets.begun.set_all();
        tracing::info!("node `{name}`: the point in time is reached");
        if self.config.sync != Sync::None {
            spawn(job(own, sets.clone(), self.config, name.to_owned()));
        }
    }

    fn keeps_old_bytes(&self) -> bool {
        self.state.get().is_some_and(PointInTime::is_unfinished)
    }

    async fn change(
        &self,
        cx: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.before(cx, change.range).await?;
        pass().await
    }
}
