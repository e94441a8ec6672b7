//! What a transaction is made of: changes of the graph and of its bitmaps, by name.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::bitmap_action::{BitmapAction, BitmapRef, list};
use super::event::Event;
use super::reopen::Opened;
use super::stored::NewEntry;
use crate::bitmap::{Bitmap, BitmapUse};
use crate::error::Result;
use crate::graph::{BitmapDecl, BitmapScope, DriveDecl, DriveTitle, Graph, NodeDecl};
use crate::limits::DRAIN_TIME;
use crate::node::{BackingName, BitmapContent, Reopened};

/// Somebody who uses a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A drive, by its root.
    Drive(String),
    /// A node, by one of its edges.
    Node {
        /// The parent.
        node: String,
        /// Its name for the child.
        edge: String,
    },
}

/// Which users of a node an action is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Whoever uses it now.
    All,
    /// These, who all must use it.
    These(Vec<User>),
}

/// One change of the graph or of a bitmap. Actions of a transaction see what those before them have done;
/// to everybody else they are one instant.
///
/// What a change of the graph marks, it marks in its turn: a bitmap that a later action clears or adds is
/// clean, one that an earlier action cleared is marked.
///
/// A node that an action brings in names its children itself: a filter put above `disk` has an edge to
/// `disk`, an overlay a backing edge to the node that the drive shows.
#[derive(Clone)]
#[non_exhaustive]
pub enum Action {
    /// Adds a node. Nobody uses it yet.
    AddNode(NodeDecl),
    /// Removes a node that nobody uses and that has no bitmaps.
    RemoveNode {
        /// Its name.
        node: String,
    },
    /// Removes nodes that were never named, and what was never named of that on which they stand, as far as nobody uses
    /// them after all actions and they have no bitmaps. What jobs use that go on, goes when these have ended.
    RemoveUnused {
        /// Their names; one that is not there is none.
        nodes: Vec<String>,
    },
    /// Adds a drive.
    AddDrive(DriveDecl),
    /// Removes a drive that has no bitmaps.
    RemoveDrive {
        /// Its id.
        drive: String,
    },
    /// Puts a filter over a node: its users go to the filter.
    InsertAbove {
        /// The node.
        node: String,
        /// The filter, with an edge to it.
        filter: NodeDecl,
        /// Who goes to the filter.
        users: Which,
    },
    /// Puts a filter between a node and one of its children.
    InsertBelow {
        /// The parent.
        node: String,
        /// Its edge to the child.
        edge: String,
        /// The filter, with an edge to that child.
        filter: NodeDecl,
    },
    /// Makes the node of a job a filter of what it reads by an edge: the users of that come through it.
    Interpose {
        /// The node, of a job that goes on.
        node: String,
        /// Its edge, which shows that from then on.
        edge: String,
    },
    /// Takes a filter out: its users, and its bitmaps, go to its child.
    RemoveFilter {
        /// Its name.
        node: String,
    },
    /// Lets all users of a node use another one. The node stays, with its bitmaps.
    Replace {
        /// The node.
        node: String,
        /// Its successor. What it stands on itself is left as it is.
        by: String,
    },
    /// Puts an empty overlay on what a drive shows.
    Snapshot {
        /// The drive.
        drive: String,
        /// The overlay, with a backing edge to the drive's root.
        overlay: NodeDecl,
    },
    /// Lets a drive show another node.
    SetRoot {
        /// The drive, which has a medium.
        drive: String,
        /// Its new root.
        node: String,
    },
    /// Gives a drive without medium one.
    InsertMedium {
        /// The drive.
        drive: String,
        /// Its root.
        node: String,
    },
    /// Takes a drive's medium out. Its requests fail with `ENOMEDIUM`; its bitmaps stay.
    EjectMedium {
        /// The drive.
        drive: String,
    },
    /// Lets a drive's users change what it shows, or no more.
    SetWritable {
        /// The drive.
        drive: String,
        /// Whether they may.
        writable: bool,
    },
    /// Points an edge to another child, or ends it: cuts a chain.
    SetChild {
        /// The parent.
        node: String,
        /// Its edge; `backing` is made if the node shows no child.
        edge: String,
        /// The new child; `None` ends a backing edge.
        child: Option<String>,
    },
    /// Changes the size of a node.
    Resize {
        /// The node, which was there before the transaction.
        node: String,
        /// Its new size, bytes.
        size_bytes: u64,
    },
    /// Gives up a node's own bytes, so that its backing shows.
    Deallocate {
        /// The node, which was there before the transaction.
        node: String,
        /// Bytes of its view.
        range: Range<u64>,
    },
    /// Has what a node copies to show what it copies from, at this instant: what is left is copied.
    CatchUp {
        /// The node, which tracks where the two differ.
        node: String,
    },
    /// Has a node's image name the backing on which it is opened the next time, durably. What the node shows is
    /// the other actions' business.
    NameBacking {
        /// The node.
        node: String,
        /// `None` for no backing.
        name: Option<BackingName>,
    },
    /// Has a node's image name the backing on which the node stands after all actions, durably; or none, if it stands
    /// on nothing. Where no name of that is known, the image goes on to name what it does.
    NameOwnBacking {
        /// The node.
        node: String,
        /// A node, and how it is called where that is the backing; by its file, by default: relatively, if images
        /// have named each other so down to it. A format that is not said is the node's: `qcow2`, or `raw` whatever
        /// keeps its bytes.
        said: Option<(String, BackingName)>,
    },
    /// Opens a node in another way: what was made for that takes its driver's place, or its driver holds nothing open
    /// and stays. What it shows is the same.
    Reopen {
        /// The node; one whose driver goes was there before the transaction, which resizes and deallocates nothing.
        node: String,
        /// Made of the driver that it has, unless that stays.
        to: Reopened,
    },
    /// Adds a bitmap, clean.
    AddBitmap(BitmapDecl),
    /// Does something to a bitmap: [`BitmapAction::of`].
    Bitmap {
        /// The bitmap.
        bitmap: BitmapRef,
        /// What.
        action: BitmapAction,
    },
    /// Freezes bitmaps of any drives and nodes, all of them recording, and starts a successor of each. No
    /// change is in flight then on any of their views: each is in what stands still of all bitmaps that
    /// see it, or in their successors.
    Checkpoint {
        /// The bitmaps.
        bitmaps: Vec<BitmapRef>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddNode(decl) => write!(f, "add node `{}`", decl.name),
            Self::RemoveNode { node } => write!(f, "remove node `{node}`"),
            Self::RemoveUnused { nodes } => {
                write!(f, "remove what nobody uses of `{}`", nodes.join("`, `"))
            }
            Self::AddDrive(decl) => write!(f, "add {}", DriveTitle(&decl.id)),
            Self::RemoveDrive { drive } => write!(f, "remove {}", DriveTitle(drive)),
            Self::InsertAbove { node, filter, .. } => {
                write!(f, "insert `{}` above `{node}`", filter.name)
            }
            Self::InsertBelow { node, edge, filter } => {
                write!(f, "insert `{}` below `{node}` (edge `{edge}`)", filter.name)
            }
            Self::Interpose { node, edge } => write!(f, "interpose `{node}` (edge `{edge}`)"),
            Self::RemoveFilter { node } => write!(f, "remove filter `{node}`"),
            Self::Replace { node, by } => write!(f, "replace `{node}` by `{by}`"),
            Self::Snapshot { drive, overlay } => {
                write!(f, "snapshot of {} into `{}`", DriveTitle(drive), overlay.name)
            }
            Self::SetRoot { drive, node } => {
                write!(f, "set root of {} to `{node}`", DriveTitle(drive))
            }
            Self::InsertMedium { drive, node } => write!(f, "insert `{node}` into drive `{drive}`"),
            Self::EjectMedium { drive } => write!(f, "eject drive `{drive}`"),
            Self::SetWritable { drive, writable } => {
                let to = if *writable { "writable" } else { "read-only" };
                write!(f, "make drive `{drive}` {to}")
            }
            Self::SetChild { node, edge, child: Some(child) } => {
                write!(f, "set edge `{edge}` of `{node}` to `{child}`")
            }
            Self::SetChild { node, edge, child: None } => {
                write!(f, "end edge `{edge}` of `{node}`")
            }
            Self::Resize { node, size_bytes } => write!(f, "resize `{node}` to {size_bytes} bytes"),
            Self::Deallocate { node, range } => {
                write!(f, "deallocate {}..{} of `{node}`", range.start, range.end)
            }
            Self::CatchUp { node } => write!(f, "let `{node}` catch up"),
            Self::NameBacking { node, name: Some(name) } => {
                write!(f, "name `{}` as the backing of `{node}`", name.name)
            }
            Self::NameBacking { node, name: None } => write!(f, "name no backing of `{node}`"),
            Self::NameOwnBacking { node, .. } => {
                write!(f, "name what `{node}` stands on as its backing")
            }
            Self::Reopen { node, to } => {
                let how = if to.mode().write { "writable" } else { "read-only" };
                write!(f, "open `{node}` {how}")
            }
            Self::AddBitmap(decl) => write!(f, "add bitmap `{}` of {}", decl.name, decl.scope),
            Self::Bitmap { bitmap, action } => action.describe(bitmap, f),
            Self::Checkpoint { bitmaps } => write!(f, "checkpoint of {}", list(bitmaps)),
        }
    }
}

/// What becomes of a change of which the host cannot show that it keeps what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Every bitmap that could see it is marked whole (a deallocation marks its range), and an event says
    /// so.
    MarkWhole,
    /// The transaction fails.
    Refuse,
}

impl Action {
    /// What goes without saying: a change of medium is another view; everything else is asked for because
    /// it keeps the view.
    pub fn default_unproven(&self) -> Unproven {
        match self {
            Self::InsertMedium { .. } | Self::EjectMedium { .. } => Unproven::MarkWhole,
            _ => Unproven::Refuse,
        }
    }
}

/// Changes that apply wholly or not at all, at one instant.
///
/// ```
/// use std::time::Duration;
///
/// use blockloom::graph::{Action, BitmapAction, BitmapRef, Transaction, Unproven};
///
/// let transaction = Transaction::new()
///     .with(Action::EjectMedium { drive: "cdrom".into() })
///     .with(Action::InsertMedium { drive: "cdrom".into(), node: "disc2".into() })
///     .with_unproven(
///         Action::SetRoot { drive: "vda".into(), node: "mirror".into() },
///         Unproven::MarkWhole,
///     )
///     .with(BitmapAction::Clear.of(BitmapRef::of_drive("cdrom", "daily")))
///     .within(Duration::from_secs(2));
/// # let _ = transaction;
/// ```
#[must_use = "a transaction does nothing until it is given to the host"]
pub struct Transaction {
    pub(super) actions: Vec<(Action, Unproven)>,
    pub(super) within: Duration,
    /// What nodes of the graph that is to be store before anybody uses them.
    pub(super) entries: Vec<NewEntry>,
    /// The jobs whose nodes it takes out.
    pub(super) ended_jobs: Vec<String>,
    /// The graph of which it was made, if it is to change none that stands otherwise.
    pub(super) only_on: Option<Arc<Graph>>,
    /// The nodes whose images need not name another backing.
    may_keep_names: Vec<String>,
    /// What need not be opened again.
    pub(super) opened: Opened,
    /// What else changes at its instant.
    pub(super) riders: Vec<Box<dyn Rider>>,
}

/// What changes at the instant of a transaction beside the graph. Dropped unpublished, it takes back what it has
/// prepared.
pub(crate) trait Rider: Send {
    /// Does all that can fail, with nothing in flight that the transaction touches. Other things of the
    /// transaction may fail after it.
    ///
    /// # Errors
    /// What stands against it: the transaction fails with that.
    fn prepare(&mut self, after: &Graph) -> Result<()>;

    /// It takes effect: the graph has been published, and no other has been since.
    fn publish(self: Box<Self>, graph: &Arc<Graph>);

    /// Whether it ends an export.
    fn ends_export(&self, id: &str) -> bool;
}

impl Default for Transaction {
    fn default() -> Self {
        Self {
            actions: Vec::new(),
            within: DRAIN_TIME,
            entries: Vec::new(),
            ended_jobs: Vec::new(),
            only_on: None,
            may_keep_names: Vec::new(),
            opened: Opened::default(),
            riders: Vec::new(),
        }
    }
}

impl Transaction {
    /// Without actions, within [`DRAIN_TIME`].
    pub fn new() -> Self {
        Self::default()
    }

    /// One more action, which is to keep what is seen unless that goes without saying:
    /// [`Action::default_unproven`].
    pub fn with(self, action: Action) -> Self {
        let unproven = action.default_unproven();
        self.with_unproven(action, unproven)
    }

    /// One more action, and what becomes of it if it may alter what is seen.
    pub fn with_unproven(mut self, action: Action, unproven: Unproven) -> Self {
        self.actions.push((action, unproven));
        self
    }

    /// More actions, before the one with this number.
    pub(crate) fn with_before(
        mut self,
        at: usize,
        actions: impl IntoIterator<Item = (Action, Unproven)>,
    ) -> Self {
        let at = at.min(self.actions.len());
        self.actions.splice(at..at, actions);
        self
    }

    /// What the actions before the one with this number do to a bitmap, they do at the wish of who uses it.
    pub(crate) fn wished_before(mut self, at: usize, graph: &Graph, by: &Arc<BitmapUse>) -> Self {
        for (action, _) in self.actions.iter_mut().take(at) {
            if let Action::Bitmap { bitmap, .. } = action
                && bitmap.find(graph).is_some_and(|found| Arc::ptr_eq(&found, by.bitmap()))
            {
                *bitmap = BitmapRef::from(by);
            }
        }
        self
    }

    /// The bitmap that it adds under this name, and by which action.
    pub(crate) fn added(&self, scope: &BitmapScope, name: &str) -> Option<(usize, &BitmapDecl)> {
        self.actions().enumerate().find_map(|(at, action)| match action {
            Action::AddBitmap(decl) if decl.scope == *scope && decl.name.as_str() == name => {
                Some((at, decl))
            }
            _ => None,
        })
    }

    /// Another action in the place of one.
    pub(crate) fn with_instead(mut self, at: usize, action: Action) -> Self {
        if let Some(place) = self.actions.get_mut(at) {
            *place = (action, place.1);
        }
        self
    }

    /// The same changes, without what else changes at their instant.
    pub(crate) fn changes(&self) -> Self {
        let (actions, ended_jobs) = (self.actions.clone(), self.ended_jobs.clone());
        Self { actions, ended_jobs, ..Self::default() }
    }

    /// Time for all that it waits for and can call off: files that are opened, requests in flight, what drivers are asked.
    /// Drivers that resize or deallocate, which cannot be called off, have as much for that alone; and so has what is
    /// taken back.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = time;
        self
    }

    /// Before anything changes, the node `node` makes an entry for a bitmap, durably. If it cannot, the
    /// transaction fails; and if that fails for another reason, the entry goes again.
    pub(crate) fn with_entry(
        mut self,
        node: String,
        bitmap: &Arc<Bitmap>,
        content: BitmapContent,
    ) -> Self {
        self.entries.push(NewEntry { node, bitmap: Arc::clone(bitmap), content });
        self
    }

    /// It uses what was opened when it was checked, as far as that is as it was then.
    pub(crate) fn with_opened(mut self, opened: Opened) -> Self {
        self.opened = opened;
        self
    }

    /// It ends a job, and may take its node out.
    pub(crate) fn ending_job(mut self, job: &str) -> Self {
        self.ended_jobs.push(job.to_owned());
        self
    }

    /// It was made of what stands on what in this graph: one in which that is otherwise it does not change, `ESTALE`.
    pub(crate) fn only_on(mut self, graph: &Arc<Graph>) -> Self {
        self.only_on = Some(Arc::clone(graph));
        self
    }

    /// If the image of this node cannot be opened for writing, it goes on naming the backing that it names.
    pub(crate) fn may_keep_name(mut self, node: &str) -> Self {
        self.may_keep_names.push(node.to_owned());
        self
    }

    /// The nodes of [`Self::may_keep_name`].
    pub(crate) fn may_keep_names(&self) -> &[String] {
        &self.may_keep_names
    }

    /// The same, but that the image of this node goes on naming the backing that it names.
    pub(crate) fn without_name(mut self, of: &str) -> Self {
        let names =
            |action: &Action| matches!(action, Action::NameOwnBacking { node, .. } if node == of);
        self.actions.retain(|(action, _)| !names(action));
        self
    }

    /// Something else that changes at its instant.
    pub(crate) fn with_rider(mut self, rider: Box<dyn Rider>) -> Self {
        self.riders.push(rider);
        self
    }

    /// Whether an export ends with it.
    pub(crate) fn ends_export(&self, id: &str) -> bool {
        self.riders.iter().any(|rider| rider.ends_export(id))
    }

    /// Its actions.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.actions.iter().map(|(action, _)| action)
    }
}

/// A transaction that has been applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Generation of the graph that it made.
    pub generation: u64,
    /// What happened beside what was asked for.
    pub events: Vec<Event>,
    /// The bitmaps that it added, in the order of their actions.
    pub added: Vec<Arc<Bitmap>>,
}
