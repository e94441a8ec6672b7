//! Bitmap actions: names are settled action by action, as the draft stands then; contents when it is
//! assembled and the sizes of all views are known.

use std::sync::Arc;

use super::action::Action;
use super::apply::at_action;
use super::bitmap_action::{BitmapAction, BitmapRef};
use super::draft::{Draft, DraftBitmap, not_found};
use crate::bitmap::{
    Bitmap, BitmapError, BitmapName, BitmapState, BitmapUse, Change, Extension, Prepared,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::build::BitmapDecl;
use crate::graph::snapshot::{BitmapScope, Graph, ScopedBitmap};

/// What is to be done to a bitmap's content.
pub(super) struct BitmapStep {
    /// Number of its action.
    action: usize,
    target: Target,
    what: What,
}

enum Target {
    Bitmap(Arc<Bitmap>),
    Held(Arc<BitmapUse>),
}

enum What {
    /// The size of its view: it is new.
    Size,
    Change(Change),
}

impl Target {
    fn bitmap(&self) -> &Arc<Bitmap> {
        match self {
            Self::Bitmap(bitmap) => bitmap,
            Self::Held(held) => held.bitmap(),
        }
    }
}

impl Draft {
    /// Adds a bitmap, clean.
    ///
    /// # Errors
    /// `ENOENT` for an unknown scope, `EEXIST` for a name that is taken.
    pub(in crate::graph) fn add_bitmap(&mut self, decl: BitmapDecl) -> Result<()> {
        let BitmapDecl { scope, name, granularity, enabled } = decl;
        self.check_scope(&scope)
            .map_err(|error| Error::new(error.kind(), format!("bitmap `{name}`: {error}")))?;
        self.check_bitmap_name(&scope, &name, None)?;
        // Its size is known once all others are.
        let bitmap = Bitmap::new(name.clone(), 0, granularity, BitmapState::Disabled)?;
        let bitmap = Arc::new(bitmap);
        self.step(Target::Bitmap(Arc::clone(&bitmap)), What::Size);
        if enabled {
            self.step(Target::Bitmap(Arc::clone(&bitmap)), What::Change(Change::Enable));
        }
        let (moved, view_is_gone) = (None, false);
        self.bitmaps.push(DraftBitmap { scope, name, bitmap, moved, is_new: true, view_is_gone });
        Ok(())
    }

    fn step(&mut self, target: Target, what: What) {
        self.bitmap_steps.push(BitmapStep { action: self.by.action, target, what });
    }

    fn check_scope(&self, scope: &BitmapScope) -> Result<()> {
        match scope {
            BitmapScope::Node(name) => self.expect_node(name).map(drop),
            BitmapScope::Drive(id) => self.expect_drive(id).map(drop),
        }
    }

    /// Refuses a name that another bitmap of the scope has; `own` is the one that is to have it.
    fn check_bitmap_name(
        &self,
        scope: &BitmapScope,
        name: &BitmapName,
        own: Option<usize>,
    ) -> Result<()> {
        let mut all = self.bitmaps.iter().enumerate();
        let taken =
            all.any(|(at, entry)| Some(at) != own && entry.scope == *scope && entry.name == *name);
        if !taken {
            return Ok(());
        }
        let message = format!(
            "there is a bitmap `{name}` of {scope} already: remove it or choose another name"
        );
        Err(Error::new(ErrorKind::Exists, message))
    }

    /// # Errors
    /// `ENOENT`, with the names that there are.
    fn expect_bitmap(&self, which: &BitmapRef) -> Result<usize> {
        if let Some(at) = self.find_bitmap(which) {
            return Ok(at);
        }
        let BitmapRef::Named { scope, name } = which else {
            return Err(not_found(format!("{which} has been removed")));
        };
        self.check_scope(scope)?;
        let here = self.bitmaps.iter().filter(|entry| entry.scope == *scope);
        let known: Vec<String> = here.map(|entry| format!("`{}`", entry.name)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        Err(not_found(format!("{scope} has no bitmap `{name}`; it has: {known}")))
    }

    fn find_bitmap(&self, which: &BitmapRef) -> Option<usize> {
        self.bitmaps.iter().position(|entry| match (which, which.identity()) {
            (BitmapRef::Named { scope, name }, _) => {
                entry.scope == *scope && entry.name.as_str() == name
            }
            (_, Some(bitmap)) => Arc::ptr_eq(&entry.bitmap, bitmap),
            (_, None) => false,
        })
    }

    /// Does `action` to a bitmap.
    ///
    /// # Errors
    /// Unknown bitmaps, a name that is taken.
    pub(super) fn act_on_bitmap(&mut self, which: &BitmapRef, action: BitmapAction) -> Result<()> {
        let at = self.expect_bitmap(which)?;
        let change = match action {
            BitmapAction::Clear => Change::Clear,
            BitmapAction::Enable => Change::Enable,
            BitmapAction::Disable => Change::Disable,
            BitmapAction::Freeze => Change::Freeze,
            BitmapAction::MergeBack => Change::MergeBack,
            BitmapAction::Abdicate => Change::Abdicate,
            BitmapAction::Leave(set) => Change::Leave(set),
            BitmapAction::Add(set) => Change::Add(set),
            BitmapAction::Merge(sources) => {
                let source = |source: &BitmapRef| self.source(source);
                Change::Merge(sources.iter().map(source).collect::<Result<_>>()?)
            }
            BitmapAction::CopyOf(source) => Change::CopyOf(self.source(&source)?),
            BitmapAction::Rename(name) => {
                self.check_bitmap_name(&self.bitmaps[at].scope, &name, Some(at))?;
                self.bitmaps[at].name = name.clone();
                Change::Rename(name)
            }
            BitmapAction::MoveTo(scope) => {
                self.check_scope(&scope)?;
                return self.move_bitmap(at, &scope);
            }
            BitmapAction::Distrust => Change::Distrust,
            BitmapAction::Repair => Change::Repair,
            BitmapAction::Remove => Change::Remove,
        };
        self.change(which, at, change);
        if matches!(self.bitmap_steps.last(), Some(step) if step.removes()) {
            let entry = self.bitmaps.remove(at);
            self.removed.push(entry);
        }
        Ok(())
    }

    fn source(&self, which: &BitmapRef) -> Result<Arc<Bitmap>> {
        self.expect_bitmap(which).map(|at| Arc::clone(&self.bitmaps[at].bitmap))
    }

    fn change(&mut self, which: &BitmapRef, at: usize, change: Change) {
        let target = match which {
            BitmapRef::Held(held) => Target::Held(Arc::clone(held)),
            _ => Target::Bitmap(Arc::clone(&self.bitmaps[at].bitmap)),
        };
        self.step(target, What::Change(change));
    }

    /// Freezes bitmaps that record, each with a successor.
    ///
    /// # Errors
    /// Unknown bitmaps.
    pub(super) fn checkpoint(&mut self, bitmaps: &[BitmapRef]) -> Result<()> {
        for which in bitmaps {
            let at = self.expect_bitmap(which)?;
            self.change(which, at, Change::Checkpoint);
        }
        Ok(())
    }

    /// An action in words, with the names that bitmaps have before it.
    pub(super) fn describe_action(&self, action: &Action) -> String {
        let word = |which: &BitmapRef| match self.find_bitmap(which) {
            Some(at) => {
                let DraftBitmap { scope, name, .. } = &self.bitmaps[at];
                BitmapRef::Named { scope: scope.clone(), name: name.to_string() }
            }
            None => which.clone(),
        };
        match action {
            Action::Bitmap { bitmap, action } => {
                Action::Bitmap { bitmap: word(bitmap), action: action.map(word) }.to_string()
            }
            Action::Checkpoint { bitmaps } => {
                let bitmaps = bitmaps.iter().map(word).collect();
                Action::Checkpoint { bitmaps }.to_string()
            }
            other => other.to_string(),
        }
    }

    /// Gives every bitmap the size of its view in `graph`, then does the steps in turn; what follows goes
    /// to `prepared`, and what records afterwards to `graph`. Its last bitmaps are those that actions have
    /// taken out.
    ///
    /// # Errors
    /// As [`Prepared::add`], with the action that is to blame.
    pub(super) fn assemble_bitmaps(
        &self,
        graph: &mut Graph,
        prepared: &mut Prepared,
    ) -> Result<()> {
        // Also those that go: they can be merged before that.
        for entry in self.bitmaps.iter().chain(&self.removed).filter(|entry| !entry.is_new) {
            let Some(size_bytes) = view_size(graph, entry) else { continue };
            if size_bytes == entry.bitmap.size_bytes() {
                continue;
            }
            let resize = Change::Resize(size_bytes, Extension::Dirty);
            prepared.add(&entry.bitmap, &resize).map_err(|error| {
                let message = format!("bitmap `{}` of {}: {error}", entry.name, entry.scope);
                Error::new(error.kind(), message)
            })?;
        }
        for step in &self.bitmap_steps {
            prepared.begin(position(step.action));
            self.add_step(step, graph, prepared)
                .map_err(|error| at_action(&self.actions, step.action, &error))?;
        }
        // What goes is marked until then: it may have been merged.
        for entry in self.bitmaps.iter().chain(&self.removed) {
            let node = entry.node(graph);
            let (scope, bitmap) = (entry.scope.clone(), Arc::clone(&entry.bitmap));
            let recording = prepared.recording_after(&bitmap);
            let shown_by = Vec::new();
            graph.bitmaps.push(ScopedBitmap { scope, node, bitmap, recording, shown_by });
        }
        Ok(())
    }

    fn add_step(&self, step: &BitmapStep, graph: &Graph, prepared: &mut Prepared) -> Result<()> {
        let size;
        let change = match &step.what {
            What::Change(change) => change,
            What::Size => {
                let Some(to_bytes) = self.new_size(step.target.bitmap(), graph)? else {
                    return Ok(());
                };
                size = Change::Resize(to_bytes, Extension::Clean);
                &size
            }
        };
        let added: Result<(), BitmapError> = match &step.target {
            Target::Bitmap(bitmap) => prepared.add(bitmap, change),
            Target::Held(held) => prepared.add_by(held, change),
        };
        Ok(added?)
    }

    /// The size of a new bitmap; `None` if neither it nor its view is there in the end.
    fn new_size(&self, bitmap: &Arc<Bitmap>, graph: &Graph) -> Result<Option<u64>> {
        let is_it = |entry: &&DraftBitmap| Arc::ptr_eq(&entry.bitmap, bitmap);
        if let Some(entry) = self.bitmaps.iter().find(is_it) {
            let size_bytes = view_size(graph, entry);
            return size_bytes.map(Some).ok_or_else(|| {
                let message = format!("{} has no medium: insert one first", entry.scope);
                Error::new(ErrorKind::NoMedium, format!("bitmap `{}`: {message}", entry.name))
            });
        }
        let gone = self.removed.iter().find(is_it);
        Ok(gone.and_then(|entry| view_size(graph, entry)))
    }
}

impl BitmapStep {
    fn removes(&self) -> bool {
        matches!(self.what, What::Change(Change::Remove))
    }
}

/// The place of an action among the changes of bitmaps. What the new sizes of views call for comes before
/// all actions, at 0.
pub(super) fn position(action: usize) -> usize {
    action.saturating_add(1)
}

fn view_size(graph: &Graph, entry: &DraftBitmap) -> Option<u64> {
    let granularity = entry.bitmap.granularity();
    entry.node(graph).map(|node| graph.nodes[node].bitmap_bytes(granularity))
}
