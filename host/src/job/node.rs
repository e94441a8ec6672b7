//! The node that stands for a job.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::kept::Kept;
use crate::error::Result;
use crate::filter::{Change, ChangeKind, Filter};
use crate::graph::{Cx, JobStake, Tracker};
use crate::node::NodeInfo;

/// It has the job's edges, with what the job may do. Nobody uses it, but where it is a filter: where a mirror copies
/// what is written before that is acknowledged, or a backup what is about to be overwritten.
pub(crate) struct JobNode {
    stake: JobStake,
    tracker: Mutex<Option<Arc<Tracker>>>,
    copies_writes: AtomicBool,
    kept: Option<Arc<Kept>>,
    /// Nobody may write through it.
    is_read_only: bool,
}

impl JobNode {
    pub(crate) fn new(stake: JobStake) -> Self {
        let (tracker, copies_writes) = (Mutex::default(), AtomicBool::new(false));
        Self { stake, tracker, copies_writes, kept: None, is_read_only: false }
    }

    /// One that keeps what is about to be overwritten.
    pub(super) fn keeping(stake: JobStake, kept: &Arc<Kept>) -> Self {
        Self { kept: Some(Arc::clone(kept)), ..Self::new(stake) }
    }

    /// The same, and whoever would write through it is refused.
    pub(super) fn for_nobody_to_write(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// What it tracks from now on.
    pub(crate) fn set_tracker(&self, tracker: &Arc<Tracker>) {
        let tracker = Some(Arc::clone(tracker));
        *self.tracker.lock().unwrap_or_else(PoisonError::into_inner) = tracker;
    }

    /// From now on what is written through it is copied before it is acknowledged, or no more.
    pub(super) fn set_copies_writes(&self, copies: bool) {
        self.copies_writes.store(copies, Ordering::Release);
    }

    pub(super) fn copies_writes(&self) -> bool {
        self.copies_writes.load(Ordering::Acquire)
    }

    /// A change has been made.
    async fn after(&self, cx: Cx<'_>, range: Range<u64>) {
        if !self.copies_writes() {
            return;
        }
        let Some(tracker) = self.tracker() else { return };
        let copied = cx.on_behalf().copy_tracked(tracker, range).await;
        if let Err(error) = copied {
            // What is not copied is known: the job comes to it, and deals with its error.
            tracing::debug!("job `{}`: a write was not copied with it: {error}", self.stake.id);
        }
    }
}

impl Filter for JobNode {
    fn driver(&self) -> &'static str {
        "job"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let info = NodeInfo::of_filter(children)?;
        Ok(NodeInfo { read_only: info.read_only || self.is_read_only, ..info })
    }

    fn job(&self) -> Option<&JobStake> {
        Some(&self.stake)
    }

    fn is_exclusive(&self, edge: usize) -> bool {
        self.kept.is_some() && edge == 0
    }

    fn start(&self, name: &str, info: &NodeInfo, children: &[NodeInfo]) -> Result<()> {
        self.kept.as_ref().map_or(Ok(()), |kept| kept.start(name, info, children))
    }

    fn keeps_old_bytes(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_unfinished())
    }

    fn tracker(&self) -> Option<Arc<Tracker>> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn change(
        &self,
        cx: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        if let Some(kept) = &self.kept {
            kept.before(cx, change.range.clone()).await?;
        }
        pass().await?;
        // What is cut off is not there to be copied.
        if change.kind != ChangeKind::SetLen {
            self.after(cx, change.range).await;
        }
        Ok(())
    }
}
