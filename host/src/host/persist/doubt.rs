//! Whether a stored bitmap is what was changed since it was last clean: never clean on trust.

use std::sync::Arc;

use super::place::view_path;
use super::{Entry, Home, Keep, Wanted};
use crate::bitmap::{BitmapIdentity, Uuid};
use crate::error::Result;
use crate::graph::{BitmapScope, Graph, GraphNode, Role};
use crate::node::{Below, StoredBitmap, Trust};

/// What an image has.
pub(super) struct Listed {
    pub(super) home: Home,
    /// It has come since the last time.
    pub(super) is_new: bool,
    pub(super) stored: Vec<StoredBitmap>,
}

impl Listed {
    /// # Errors
    /// The store's.
    pub(super) fn is_kept(&self, stored: &StoredBitmap) -> Result<bool> {
        Ok(self.home.store()?.keeping().has(&stored.name))
    }

    fn form_of(&self, uuid: Uuid) -> Option<u64> {
        let identities = self.stored.iter().filter_map(|stored| stored.identity);
        identities.filter(|it| it.uuid == uuid).map(|it| it.generation).max()
    }
}

/// A later stored form of a bitmap.
#[derive(Clone, Debug)]
pub(super) struct Later {
    pub(super) generation: u64,
    /// Where it is, for messages.
    pub(super) place: String,
    /// In an image below the one of which is spoken.
    is_below: bool,
}

/// What is to become of a stored bitmap that no bitmap of the graph claims, for all that is known of its other
/// forms.
pub(super) enum Fate {
    /// It is loaded; with doubts, if there is a later form below.
    Loads(Option<Later>),
    /// A later form has come in its place: it goes.
    Outdated,
    /// A bitmap without an image may come home here: it stays as it is.
    Waits,
}

/// What else there is of a stored bitmap in images that stand on `here`, or below it, and in memory.
pub(super) struct Forms {
    later: Option<Later>,
    is_homeless: bool,
}

impl Forms {
    pub(super) fn of(
        graph: &Graph,
        all: &[Listed],
        live: &[Entry],
        here: &Listed,
        identity: BitmapIdentity,
    ) -> Self {
        let uuid = identity.uuid;
        let alive = live.iter().find(|entry| entry.bitmap.identity().uuid == uuid);
        let in_memory = alive.and_then(|entry| {
            let place = format!("node `{}`", entry.home.as_ref()?.name);
            let generation = entry.bitmap.identity().generation;
            Some(Later { generation, place, is_below: false })
        });
        let others = all.iter().filter(|other| other.home.generation != here.home.generation);
        let stored = others.filter_map(|other| {
            let is_below = is_over(graph, here, other);
            let generation =
                other.form_of(uuid).filter(|_| is_below || is_over(graph, other, here))?;
            let place = format!("the image of node `{}`", other.home.name);
            Some(Later { generation, place, is_below })
        });
        let later = stored.chain(in_memory).filter(|it| it.generation > identity.generation);
        let later = later.max_by_key(|it| it.generation);
        Self { later, is_homeless: alive.is_some_and(|entry| entry.home.is_none()) }
    }

    /// The later form, of one that is claimed: it is loaded all the same.
    pub(super) fn later(self) -> Option<Later> {
        self.later
    }

    pub(super) fn fate(self) -> Fate {
        match self.later {
            _ if self.is_homeless => Fate::Waits,
            Some(later) if !later.is_below => Fate::Outdated,
            later => Fate::Loads(later),
        }
    }
}

/// The node of an image below `here` with a form of a bitmap that is wanted there and not stored: a change that
/// was to bring it along, from a drive's image to the next, was cut short, or made by somebody else. What the
/// drive has changed since it was last clean is in that form, if anywhere.
pub(super) fn left_below(
    graph: &Graph,
    all: &[Listed],
    here: &Listed,
    wanted: &Wanted,
    is_claimed: impl Fn(&Listed) -> bool,
) -> Option<Arc<str>> {
    if matches!(wanted.keep, Keep::Node(_)) {
        return None;
    }
    let below = all.iter().filter(|other| is_over(graph, here, other) && !is_claimed(other));
    let is_form = |stored: &StoredBitmap| {
        let was_kept_here = stored.identity.is_some() || stored.trust == Trust::Inconsistent;
        stored.name == wanted.name && was_kept_here
    };
    let mut left = below.filter(|other| other.stored.iter().any(is_form));
    left.next().map(|image| Arc::clone(&image.home.name))
}

/// Whether one of two images shows the other.
pub(super) fn are_related(graph: &Graph, one: &Listed, other: &Listed) -> bool {
    is_over(graph, one, other) || is_over(graph, other, one)
}

/// Whether an image shows another one along view edges.
fn is_over(graph: &Graph, upper: &Listed, lower: &Listed) -> bool {
    let scope = BitmapScope::Node(Arc::clone(&upper.home.name));
    view_path(graph, &scope).any(|node| node.generation() == lower.home.generation)
}

/// Why a bitmap with this scope may be clean where its view has changed, for all that is known of what is below
/// the image that has it.
///
/// A node's own bitmap of which another program has kept hold is believed as that program believes it.
pub(super) fn doubt(scope: &BitmapScope, below: &Below) -> Option<String> {
    let is_of_node = matches!(scope, BitmapScope::Node(_));
    match below {
        Below::Same => None,
        Below::Changed { through_store: true, .. } | Below::NeverSaid if is_of_node => None,
        Below::Changed { what, .. } => Some(what.clone()),
        Below::NeverSaid => Some("nobody has said what was below".into()),
    }
}

/// The same for what a drive shows before it comes to the image that keeps its bitmap: of that nothing is
/// recorded.
pub(super) fn doubt_of_what_is_above(
    graph: &Graph,
    scope: &BitmapScope,
    home: &Home,
) -> Option<String> {
    let above = view_path(graph, scope).take_while(|node| node.generation() != home.generation);
    let is_filter = |node: &&GraphNode| node.edges().iter().any(|it| it.role() == Role::Filtered);
    let own = above.filter(|node| !is_filter(node)).map(|node| node.name()).next()?;
    Some(format!("nobody has said what node `{own}`, which is above the image, held"))
}
