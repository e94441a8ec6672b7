//! A transaction while its actions are put together: names as the actions so far leave them, and what comes
//! before and after.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::context::Context;
use super::error::{QmpError, QmpResult};
use crate::block_on;
use crate::export::nbd::{ListenAddress, RemovalMode};
use crate::graph::{
    Action, Applied, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, Graph, Transaction, Unproven,
};
use crate::host::{Added, Composition, DirtyBitmap, FilterPlace, Fragment, Keep, NewExport};
use crate::job::{JobKind, JobSpec};

/// What is done when the transaction has been applied; it can fail no more.
type Afterwards = Box<dyn FnOnce(&Context<'_>, &Applied)>;

/// See the module. Nothing has happened before [`Plan::commit`].
pub(crate) struct Plan<'a> {
    pub(crate) context: &'a Context<'a>,
    graph: Arc<Graph>,
    transaction: Transaction,
    is_first: bool,
    drives: BTreeSet<String>,
    nodes: BTreeSet<String>,
    /// Each with how many actions come before it.
    kept: Vec<(usize, BitmapDecl, Keep)>,
    /// The same.
    jobs: Vec<(usize, JobSpec)>,
    /// Whether an action so far alters what nodes or drives show, or stand on.
    reshapes: bool,
    /// What its actions begin ends together.
    pub(crate) completes_together: bool,
    composition: Composition<'a>,
    afterwards: Vec<Afterwards>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(context: &'a Context<'a>) -> Self {
        let graph = context.host.graph();
        let drives = graph.drives().iter().map(|drive| drive.id().to_owned()).collect();
        let nodes = graph.nodes().iter().map(|node| node.name().to_owned()).collect();
        Self {
            context,
            graph,
            transaction: Transaction::new(),
            is_first: true,
            drives,
            nodes,
            kept: Vec::new(),
            jobs: Vec::new(),
            reshapes: false,
            completes_together: false,
            composition: Composition::new(context.host),
            afterwards: Vec::new(),
        }
    }

    /// The graph that is, if no action has come before this one: then what stands against it can be said in
    /// QEMU's words.
    pub(crate) fn untouched(&self) -> Option<&Graph> {
        self.is_first.then_some(&*self.graph)
    }

    /// One more change, as [`Transaction::with`].
    pub(crate) fn push(&mut self, action: Action) {
        let unproven = action.default_unproven();
        self.push_unproven(action, unproven);
    }

    /// One more change, as [`Transaction::with_unproven`].
    pub(crate) fn push_unproven(&mut self, action: Action, unproven: Unproven) {
        self.is_first = false;
        self.reshapes |= reshapes(&action);
        match &action {
            Action::AddDrive(decl) => drop(self.drives.insert(decl.id.clone())),
            Action::RemoveDrive { drive } => drop(self.drives.remove(drive)),
            Action::AddNode(decl) => drop(self.nodes.insert(decl.name.clone())),
            Action::RemoveNode { node } | Action::RemoveFilter { node } => {
                self.nodes.remove(node);
            }
            Action::InsertAbove { filter, .. } | Action::InsertBelow { filter, .. } => {
                self.nodes.insert(filter.name.clone());
            }
            Action::Snapshot { overlay, .. } => drop(self.nodes.insert(overlay.name.clone())),
            _ => {}
        }
        let before = std::mem::take(&mut self.transaction);
        self.transaction = before.with_unproven(action, unproven);
    }

    /// Adds a bitmap that an image keeps from now on.
    pub(crate) fn add_kept(&mut self, decl: BitmapDecl, keep: Keep) -> QmpResult<()> {
        let is_there = match &decl.scope {
            BitmapScope::Drive(id) => self.graph.find_drive(id).is_some(),
            BitmapScope::Node(name) => self.graph.find_node(name).is_some(),
        };
        if !is_there {
            return Err(QmpError::generic(format!(
                "{} comes with the same transaction: add what is to be kept of it after that",
                decl.scope
            )));
        }
        self.is_first = false;
        self.kept.push((self.transaction.actions().count(), decl, keep));
        Ok(())
    }

    /// Starts a job at that instant.
    pub(crate) fn start(&mut self, spec: JobSpec) -> QmpResult<()> {
        let mut planned = self.jobs.iter().map(|(_, job)| &job.id);
        if self.context.host.job(&spec.id).is_ok() || planned.any(|id| *id == spec.id) {
            return Err(QmpError::generic(format!("Job ID '{}' already in use", spec.id)));
        }
        if self.reshapes {
            let desc =
                "an action before it changes the graph: start the job when that has been done";
            return Err(QmpError::generic(format!("job '{}': {desc}", spec.id)));
        }
        self.is_first = false;
        self.jobs.push((self.transaction.actions().count(), spec));
        Ok(())
    }

    /// Nobody else adds or removes nodes, exports and checkpoints from now on.
    pub(crate) fn take_turn(&mut self) -> QmpResult<()> {
        Ok(self.composition.take_turn()?)
    }

    /// Adds nodes, as [`Host::add`](crate::Host::add).
    pub(crate) fn add_nodes(&mut self, fragment: &Fragment) -> QmpResult<Added> {
        let added = self.composition.add(fragment)?;
        Ok(self.take_added(added))
    }

    /// Puts a filter in its place, as [`Host::insert_filter`](crate::Host::insert_filter).
    pub(crate) fn insert_filter(&mut self, at: &FilterPlace, options: &Value) -> QmpResult<Added> {
        let added = self.composition.insert_filter(at, options)?;
        Ok(self.take_added(added))
    }

    /// Adds nodes, one of them, a filter, at a place.
    pub(crate) fn add_placed(
        &mut self,
        fragment: &Fragment,
        at: &FilterPlace,
        filter: &str,
    ) -> QmpResult<Added> {
        let added = self.composition.add_placed(fragment, at, filter)?;
        Ok(self.take_added(added))
    }

    fn take_added(&mut self, (actions, added): (Vec<Action>, Added)) -> Added {
        self.is_first = false;
        self.push_all(actions);
        self.nodes.extend(added.nodes.iter().cloned());
        added
    }

    fn push_all(&mut self, actions: Vec<Action>) {
        actions.into_iter().for_each(|action| self.push(action));
    }

    /// Removes a node, with what came with it.
    pub(crate) fn remove_node(&mut self, node: &str) -> QmpResult<()> {
        let actions = self.composition.remove_node(node)?;
        self.push_all(actions);
        Ok(())
    }

    /// Takes a filter out, with what came with it.
    pub(crate) fn remove_filter(&mut self, node: &str) -> QmpResult<()> {
        let actions = self.composition.remove_filter(node)?;
        self.push_all(actions);
        Ok(())
    }

    /// Has nodes be as they are described, as [`Host::reopen_nodes`](crate::Host::reopen_nodes).
    pub(crate) fn reopen(&mut self, nodes: &[Value], unproven: Unproven) -> QmpResult<()> {
        self.take_turn()?;
        let mut reopening = self.context.host.reopening(nodes, unproven)?;
        for (action, unproven) in std::mem::take(&mut reopening.actions) {
            self.push_unproven(action, unproven);
        }
        self.afterwards(move |context, _| context.host.reopened(reopening));
        Ok(())
    }

    /// Begins an export; gives where.
    pub(crate) fn add_export(&mut self, export: NewExport) -> QmpResult<ListenAddress> {
        let (actions, address) = self.composition.add_export(export)?;
        self.is_first = false;
        self.push_all(actions);
        Ok(address)
    }

    /// Ends an export.
    pub(crate) fn end_export(&mut self, id: &str, mode: RemovalMode) -> QmpResult<()> {
        let actions = self.composition.end_export(id, mode)?;
        self.is_first = false;
        self.push_all(actions);
        Ok(())
    }

    /// Something for when the transaction has been applied.
    pub(crate) fn afterwards(&mut self, act: impl FnOnce(&Context<'_>, &Applied) + 'static) {
        self.afterwards.push(Box::new(act));
    }

    /// What a client calls `node`: a drive by its id, else a node.
    pub(crate) fn find_scope(&self, name: &str) -> Option<BitmapScope> {
        if self.drives.contains(name) {
            return Some(BitmapScope::Drive(name.into()));
        }
        self.nodes.contains(name).then(|| BitmapScope::Node(name.into()))
    }

    /// Whether there is a drive of this id then.
    pub(crate) fn has_drive(&self, id: &str) -> bool {
        self.drives.contains(id)
    }

    /// Whether there is a node of this name then.
    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.nodes.contains(name)
    }

    /// Makes all of it happen, if it could be `planned`. What is taken back if it fails is not to be tried again: of
    /// such an error nobody is told that something was missing.
    ///
    /// # Errors
    /// As it was planned; of [`Self::commit`].
    pub(crate) fn commit_if(self, planned: QmpResult<()>) -> QmpResult<Applied> {
        let has_begun = self.composition.has_added() || !self.kept.is_empty();
        let done = planned.and_then(|()| self.commit());
        done.map_err(|error| QmpError { is_missing: error.is_missing && !has_begun, ..error })
    }

    /// Makes all of it happen, at one instant, or nothing.
    ///
    /// What is to be kept is put into its image before that, where it can fail, and cleared at that instant.
    pub(crate) fn commit(mut self) -> QmpResult<Applied> {
        let host = self.context.host;
        let riders = self.composition.riders().into_iter();
        let mut transaction = riders.fold(self.transaction, Transaction::with_rider);
        let (mut begun, mut jobs) = (Vec::new(), self.jobs);
        // From the last one, so that the numbers of those before stay what they are.
        for (at, decl, keep) in self.kept.into_iter().rev() {
            match begin(self.context, decl, keep) {
                Ok(bitmap) => {
                    let clear = BitmapAction::Clear.of(&bitmap);
                    let unproven = clear.default_unproven();
                    transaction = transaction.with_before(at, [(clear, unproven)]);
                    // A job that was asked for after it comes after it.
                    jobs.iter_mut().filter(|(of, _)| *of >= at).for_each(|(of, _)| *of += 1);
                    begun.push(bitmap);
                }
                Err(error) => {
                    give_up(&begun);
                    return Err(error);
                }
            }
        }
        for (_, job) in &jobs {
            if let Err(error) = self.context.begin_for(job, &mut transaction, &mut begun) {
                give_up(&begun);
                return Err(error);
            }
        }
        let started = block_on(host.start_jobs_at(jobs, self.completes_together, transaction));
        let (applied, _) = started.inspect_err(|_| give_up(&begun))?;
        self.afterwards.into_iter().for_each(|act| act(self.context, &applied));
        self.composition.applied();
        Ok(applied)
    }
}

impl Context<'_> {
    /// A bitmap by which a job is told what to do has to be there when it is planned: one that comes with the same
    /// transaction is added before it, and cleared in its place.
    fn begin_for(
        &self,
        job: &JobSpec,
        transaction: &mut Transaction,
        begun: &mut Vec<DirtyBitmap>,
    ) -> QmpResult<()> {
        let JobKind::Backup(backup) = &job.what else { return Ok(()) };
        let Some(BitmapRef::Named { scope, name }) = &backup.bitmap else { return Ok(()) };
        let Some((at, decl)) = transaction.added(scope, name) else { return Ok(()) };
        let bitmap = block_on(self.host.add_bitmap(decl.clone()))?;
        let before = std::mem::take(transaction);
        *transaction = before.with_instead(at, BitmapAction::Clear.of(&bitmap));
        begun.push(bitmap);
        Ok(())
    }
}

/// Whether an action alters what nodes or drives show, or stand on.
fn reshapes(action: &Action) -> bool {
    !matches!(
        action,
        Action::Bitmap { .. }
            | Action::AddBitmap(_)
            | Action::Checkpoint { .. }
            | Action::AddDrive(_)
            | Action::SetWritable { .. }
    )
}

/// Adds a bitmap, and has its image keep it; if that cannot be, it is not there.
fn begin(context: &Context<'_>, decl: BitmapDecl, keep: Keep) -> QmpResult<DirtyBitmap> {
    let bitmap = block_on(context.host.add_bitmap(decl))?;
    match block_on(bitmap.keep(keep)) {
        Ok(()) => Ok(bitmap),
        Err(error) => {
            give_up(std::slice::from_ref(&bitmap));
            Err(error.into())
        }
    }
}

fn give_up(begun: &[DirtyBitmap]) {
    for bitmap in begun {
        if let Err(error) = block_on(bitmap.remove()) {
            tracing::warn!("bitmap `{}` is left over: {error}", bitmap.name());
        }
    }
}
