//! What a transaction does to dirty bitmaps, which it knows by name or by what they are.

use std::fmt;
use std::sync::Arc;

use super::action::Action;
#[cfg(test)]
use crate::bitmap::Change;
use crate::bitmap::{Bitmap, BitmapName, BitmapUse, Granules};
use crate::graph::{BitmapScope, Graph};

/// A bitmap that an action is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BitmapRef {
    /// By what it records and its name, as the actions before this one leave them: also one that they
    /// add.
    Named {
        /// What it records.
        scope: BitmapScope,
        /// Its name there.
        name: String,
    },
    /// This one, whatever it is called and wherever it is.
    This(Arc<Bitmap>),
    /// The same, at the wish of a user, whose own use does not stand in the way.
    Held(Arc<BitmapUse>),
}

impl BitmapRef {
    /// A drive's bitmap, by name.
    pub fn of_drive(drive: &str, name: &str) -> Self {
        Self::Named { scope: BitmapScope::Drive(drive.into()), name: name.into() }
    }

    /// A node's bitmap, by name.
    pub fn of_node(node: &str, name: &str) -> Self {
        Self::Named { scope: BitmapScope::Node(node.into()), name: name.into() }
    }

    /// The bitmap, as it is in `graph`.
    pub(crate) fn find(&self, graph: &Graph) -> Option<Arc<Bitmap>> {
        match self {
            Self::Named { scope, name } => graph.find_bitmap(scope, name).cloned(),
            other => other.identity().cloned(),
        }
    }

    /// The bitmap, if it is not known by name alone.
    pub(super) fn identity(&self) -> Option<&Arc<Bitmap>> {
        match self {
            Self::Named { .. } => None,
            Self::This(bitmap) => Some(bitmap),
            Self::Held(held) => Some(held.bitmap()),
        }
    }
}

impl From<&Self> for BitmapRef {
    fn from(bitmap: &Self) -> Self {
        bitmap.clone()
    }
}

impl From<&Arc<Bitmap>> for BitmapRef {
    fn from(bitmap: &Arc<Bitmap>) -> Self {
        Self::This(Arc::clone(bitmap))
    }
}

impl From<&Arc<BitmapUse>> for BitmapRef {
    fn from(held: &Arc<BitmapUse>) -> Self {
        Self::Held(Arc::clone(held))
    }
}

impl fmt::Display for BitmapRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.identity()) {
            (Self::Named { scope, name }, _) => write!(f, "bitmap `{name}` of {scope}"),
            (_, Some(bitmap)) => write!(f, "bitmap `{}`", bitmap.name()),
            (_, None) => Ok(()),
        }
    }
}

/// What becomes of a bitmap. Each takes effect while no change of its view is in flight, at the same
/// instant as everything else in its transaction.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BitmapAction {
    /// All clean. Refused while somebody reads it.
    Clear,
    /// Records from now on.
    Enable,
    /// Records no more, and keeps what is dirty.
    Disable,
    /// What is dirty stands still; a fresh set records, unless the bitmap is disabled. Until the freeze
    /// ends, it shows both.
    Freeze,
    /// Ends a freeze: dirty is what stood still, and what has changed since.
    MergeBack,
    /// Ends a freeze: dirty is what has changed since, alone. Refused while a job reads it; clients of an export go
    /// on to see what stood still, of so many freezes.
    Abdicate,
    /// Ends a freeze: dirty is what this set holds then, and what has changed since. Refused as that.
    Leave(Arc<Granules>),
    /// Dirty becomes what this set holds then, too.
    Add(Arc<Granules>),
    /// Dirty becomes what any of these shows, too, whatever their granularity. Their views have the same
    /// size. A change in flight on another view may or may not be among it.
    Merge(Vec<BitmapRef>),
    /// Dirty becomes what this one shows, and nothing else. Refused while somebody reads what it
    /// replaces.
    CopyOf(BitmapRef),
    /// Another name. Refused while somebody uses it.
    Rename(BitmapName),
    /// It is of another node, or drive, from now on: one that is known to show the same, else it is all dirty.
    MoveTo(BitmapScope),
    /// What it holds means nothing: it is inconsistent from now on, until it is repaired or removed.
    Distrust,
    /// All of an inconsistent one is dirty, and it records from now on.
    Repair,
    /// It leaves the graph. Refused while somebody uses it.
    Remove,
}

impl BitmapAction {
    /// This, of a bitmap.
    pub fn of(self, bitmap: impl Into<BitmapRef>) -> Action {
        Action::Bitmap { bitmap: bitmap.into(), action: self }
    }

    /// A merge of these.
    pub fn merge<R: Into<BitmapRef>>(sources: impl IntoIterator<Item = R>) -> Self {
        Self::Merge(sources.into_iter().map(Into::into).collect())
    }

    /// The same with other words for the bitmaps that it reads.
    pub(super) fn map(&self, word: impl Fn(&BitmapRef) -> BitmapRef) -> Self {
        match self {
            Self::Merge(sources) => Self::Merge(sources.iter().map(word).collect()),
            Self::CopyOf(source) => Self::CopyOf(word(source)),
            other => other.clone(),
        }
    }

    /// In words, done to `bitmap`.
    pub(super) fn describe(&self, bitmap: &BitmapRef, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear => write!(f, "clear {bitmap}"),
            Self::Enable => write!(f, "enable {bitmap}"),
            Self::Disable => write!(f, "disable {bitmap}"),
            Self::Freeze => write!(f, "freeze {bitmap}"),
            Self::MergeBack => write!(f, "merge back {bitmap}"),
            Self::Abdicate => write!(f, "let {bitmap} abdicate"),
            Self::Leave(_) => write!(f, "leave in {bitmap} what was not copied"),
            Self::Add(_) => write!(f, "add to {bitmap}"),
            Self::Merge(sources) => write!(f, "merge {} into {bitmap}", list(sources)),
            Self::CopyOf(source) => write!(f, "copy {source} into {bitmap}"),
            Self::Rename(name) => write!(f, "rename {bitmap} to `{name}`"),
            Self::MoveTo(scope) => write!(f, "move {bitmap} to {scope}"),
            Self::Distrust => write!(f, "distrust {bitmap}"),
            Self::Repair => write!(f, "repair {bitmap}"),
            Self::Remove => write!(f, "remove {bitmap}"),
        }
    }
}

#[cfg(test)]
impl From<&Change> for BitmapAction {
    fn from(change: &Change) -> Self {
        match change {
            Change::Clear => Self::Clear,
            Change::Enable => Self::Enable,
            Change::Disable => Self::Disable,
            Change::Freeze => Self::Freeze,
            Change::MergeBack => Self::MergeBack,
            Change::Abdicate => Self::Abdicate,
            Change::Leave(set) => Self::Leave(Arc::clone(set)),
            Change::Add(set) => Self::Add(Arc::clone(set)),
            Change::Merge(sources) => Self::merge(sources),
            Change::CopyOf(source) => Self::CopyOf(source.into()),
            Change::Rename(name) => Self::Rename(name.clone()),
            Change::Distrust => Self::Distrust,
            Change::Repair => Self::Repair,
            Change::Remove => Self::Remove,
            Change::Checkpoint | Change::Resize(..) => unreachable!("no action of one bitmap"),
        }
    }
}

/// Bitmaps, one after the other.
pub(super) fn list(bitmaps: &[BitmapRef]) -> String {
    let names: Vec<String> = bitmaps.iter().map(ToString::to_string).collect();
    names.join(", ")
}
