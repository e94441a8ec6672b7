//! Roles and permissions of edges: what a parent uses of its child, and what it shares with others.
//!
//! As QEMU's (`include/block/block-common.h`): a graph is in order when no edge uses what another edge
//! to the same node does not share. [`Role::pass`] is the rule by which they go down the graph; the
//! configuration's diagnostics and the graph's own check both follow it.

use std::fmt;

/// What users of a permission do, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Verb {
    pub(crate) one: &'static str,
    pub(crate) both: &'static str,
}

/// A set of permissions on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PermissionSet(u8);

impl PermissionSet {
    /// No permission.
    pub const NONE: Self = Self(0);
    /// To read bytes that are consistent.
    pub const CONSISTENT_READ: Self = Self(1);
    /// To change bytes.
    pub const WRITE: Self = Self(2);
    /// To write what changes no view.
    pub const WRITE_UNCHANGED: Self = Self(4);
    /// To change the size.
    pub const RESIZE: Self = Self(8);
    /// Every permission.
    pub const ALL: Self = Self(15);
    /// To read and to change bytes.
    pub const READ_WRITE: Self = Self(3);
    /// Nothing that alters a view.
    pub const HARMLESS: Self = Self(5);
    /// Everything but reading.
    pub const CHANGES: Self = Self(14);

    const NAMES: [(Self, &str, Verb); 4] = [
        (Self::CONSISTENT_READ, "cr", Verb { one: "reads", both: "read" }),
        (Self::WRITE, "w", Verb { one: "writes", both: "write" }),
        (
            Self::WRITE_UNCHANGED,
            "wu",
            Verb { one: "writes unchanged bytes to", both: "write unchanged bytes to" },
        ),
        (Self::RESIZE, "r", Verb { one: "resizes", both: "resize" }),
    ];

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one alone.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this one.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The gravest permission of the set, with the verb for it.
    pub(crate) fn gravest(self) -> Option<(Self, Verb)> {
        let order = [Self::WRITE, Self::RESIZE, Self::WRITE_UNCHANGED, Self::CONSISTENT_READ];
        let one = order.into_iter().find(|one| self.contains(*one))?;
        let (_, _, verb) = Self::NAMES.into_iter().find(|(it, _, _)| *it == one)?;
        Some((one, verb))
    }
}

/// `cr`: consistent-read, `w`: write, `wu`: write-unchanged, `r`: resize; joined by `+`, or `-`.
impl fmt::Display for PermissionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.into_iter().filter(|(one, _, _)| self.contains(*one));
        let names: Vec<&str> = names.map(|(_, name, _)| name).collect();
        f.pad(&if names.is_empty() { "-".to_owned() } else { names.join("+") })
    }
}

/// What a child is to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node that a drive or an export of a node shows.
    Root,
    /// The parent shows the child's bytes.
    Filtered,
    /// The parent keeps its bytes in the child, at the same offsets: shows them as they are.
    Data,
    /// Shown where the parent has no bytes of its own.
    Backing,
    /// The parent keeps its bytes in the child.
    Storage,
    /// The parent reads it and does not show it.
    Source,
    /// The parent writes it.
    Target,
}

/// What the users above a node use together, and what all of them share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// The union of what they use.
    pub uses: PermissionSet,
    /// The intersection of what they share.
    pub shares: PermissionSet,
    /// The same of what may be done to nodes of which the node shows bytes that are not its own. Whoever
    /// only writes a node does not mind: so the target of copies that come before writes can be an
    /// overlay of what is written.
    pub shares_below: PermissionSet,
}

impl Users {
    /// Nobody.
    pub const NONE: Self = Self::all_sharing(PermissionSet::NONE, PermissionSet::ALL);

    /// Those who mind changes of a node's backing as they mind changes of the node.
    const fn all_sharing(uses: PermissionSet, shares: PermissionSet) -> Self {
        Self { uses, shares, shares_below: shares }
    }

    /// The same of an edge to a child that nobody else may change: what it keeps of it has to be kept before.
    #[must_use]
    pub const fn exclusive(self) -> Self {
        Self {
            uses: self.uses,
            shares: self.shares.intersection(PermissionSet::HARMLESS),
            shares_below: self.shares_below.intersection(PermissionSet::HARMLESS),
        }
    }

    /// These and others.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self {
            uses: self.uses.union(others.uses),
            shares: self.shares.intersection(others.shares),
            shares_below: self.shares_below.intersection(others.shares_below),
        }
    }
}

impl Role {
    /// What an edge of this role uses and shares of its own, given the users above its parent.
    #[must_use]
    pub const fn pass(self, above: Users) -> Users {
        match self {
            Self::Root | Self::Filtered => above,
            Self::Data => {
                Users::all_sharing(above.uses, above.shares.intersection(PermissionSet::HARMLESS))
            }
            // Who can live with foreign changes of the overlay can live with them in its base.
            Self::Backing => Users::all_sharing(
                above.uses.intersection(PermissionSet::CONSISTENT_READ),
                PermissionSet::HARMLESS.union(above.shares_below),
            ),
            // What leaves the parent's view as it is still writes its container.
            Self::Storage => Users::all_sharing(
                match above.uses.contains(PermissionSet::WRITE_UNCHANGED) {
                    true => above.uses.union(PermissionSet::WRITE),
                    false => above.uses,
                }
                .without(PermissionSet::RESIZE),
                above.shares.intersection(PermissionSet::HARMLESS),
            ),
            Self::Source => Users::all_sharing(PermissionSet::CONSISTENT_READ, PermissionSet::ALL),
            // What it writes is to stay. It does not look at what shows beside that, but others may: they
            // share by themselves.
            Self::Target => Users {
                uses: PermissionSet::NONE,
                shares: PermissionSet::HARMLESS,
                shares_below: PermissionSet::HARMLESS.union(PermissionSet::WRITE),
            },
        }
    }

    /// What a drive uses and shares of its root: a user minds changes unless it only shows, as a
    /// read-only export of a node does, whatever is there.
    #[must_use]
    pub const fn root(writable: bool, only_shows: bool) -> Users {
        let uses =
            if writable { PermissionSet::READ_WRITE } else { PermissionSet::CONSISTENT_READ };
        let shares = match (writable, only_shows) {
            (false, true) => PermissionSet::ALL,
            _ => PermissionSet::HARMLESS,
        };
        Users::all_sharing(uses, shares)
    }

    /// Whether parent and child show one view.
    #[must_use]
    pub const fn is_same_view(self) -> bool {
        matches!(self, Self::Root | Self::Filtered | Self::Data)
    }

    /// Whether a change of the child shows at the same range of the parent, unless the parent hides it.
    #[must_use]
    pub const fn is_view(self) -> bool {
        self.is_same_view() || matches!(self, Self::Backing)
    }

    /// Whether the parent's own changes go on through it.
    #[must_use]
    pub const fn forwards_changes(self) -> bool {
        matches!(self, Self::Filtered | Self::Data)
    }

    /// Whether changes of the child come from the parent's own (and are admitted there).
    #[must_use]
    pub const fn is_entry(self) -> bool {
        matches!(self, Self::Root | Self::Storage | Self::Target)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Filtered => "filtered",
            Self::Data => "data",
            Self::Backing => "backing",
            Self::Storage => "storage",
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}
