//! What a plugin may do to its node's children, besides passing requests on.

use std::fmt;

use blockloom_abi::ChildIndex;

use super::bindings::exports::blockloom::filter::control;
use super::bytes::ByteAccess;
use super::module::PluginModule;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::PermissionSet;

/// The filtered child.
pub(super) const FILE: ChildIndex = ChildIndex(0);

/// A set of grants for one child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grants(u8);

impl Grants {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// To read it.
    pub const READ: Self = Self(1);
    /// To write what is proven to change no view.
    pub const WRITE_UNCHANGED: Self = Self(2);
    /// To write anything.
    pub const WRITE: Self = Self(4);
    /// To discard.
    pub const DISCARD: Self = Self(8);
    /// To change its size.
    pub const RESIZE: Self = Self(16);

    const ALL: [Grant; 5] = [
        Grant {
            one: Self::READ,
            name: "read",
            permission: PermissionSet::CONSISTENT_READ,
            wire: control::Grants::READ,
        },
        Grant {
            one: Self::WRITE_UNCHANGED,
            name: "write-unchanged",
            permission: PermissionSet::WRITE_UNCHANGED,
            wire: control::Grants::WRITE_UNCHANGED,
        },
        Grant {
            one: Self::WRITE,
            name: "write",
            permission: PermissionSet::WRITE,
            wire: control::Grants::WRITE,
        },
        Grant {
            one: Self::DISCARD,
            name: "discard",
            permission: PermissionSet::WRITE,
            wire: control::Grants::DISCARD,
        },
        Grant {
            one: Self::RESIZE,
            name: "resize",
            permission: PermissionSet::RESIZE,
            wire: control::Grants::RESIZE,
        },
    ];

    /// The grant with this name in a configuration.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.name == name).map(|grant| grant.one)
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this one alone.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether one of `other` is in it.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn each(self) -> impl Iterator<Item = Grant> {
        Self::ALL.into_iter().filter(move |grant| self.intersects(grant.one))
    }

    /// The names of its members.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.each().map(|grant| grant.name)
    }

    /// What the edge to the child uses for them.
    pub fn permissions(self) -> PermissionSet {
        self.each().fold(PermissionSet::NONE, |all, grant| all.union(grant.permission))
    }

    pub(super) fn of_wants(wants: control::Grants) -> Self {
        let wanted = Self::ALL.into_iter().filter(|grant| wants.contains(grant.wire));
        wanted.fold(Self::NONE, |all, grant| all.union(grant.one))
    }

    pub(super) fn to_wire(self) -> control::Grants {
        self.each().fold(control::Grants::empty(), |all, grant| all | grant.wire)
    }
}

/// One of them.
struct Grant {
    one: Grants,
    name: &'static str,
    permission: PermissionSet,
    wire: control::Grants,
}

/// Their names in backquotes.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.names().map(|name| format!("`{name}`")).collect();
        f.write_str(&names.join(" or "))
    }
}

/// A child of a plugin's node.
#[derive(Clone, Debug)]
pub(super) struct PluginChild {
    pub(super) name: String,
    /// What the plugin calls it.
    pub(super) index: ChildIndex,
    /// Number of the edge.
    pub(super) edge: usize,
    pub(super) granted: Grants,
    /// Nobody else may change what it shows, but through the node.
    pub(super) exclusive: bool,
}

/// The children that a plugin describes, in its order, as a node has them: their names in the order of its
/// edges, and what is granted for each. The first described is the filtered one, `file`.
pub(super) fn resolve(
    module: &PluginModule,
    children: &[(String, Grants)],
) -> Result<Vec<PluginChild>> {
    let wanted = &module.inspection().children;
    let (plugin, mut resolved) = (module.name(), Vec::new());
    for (index, child) in wanted.iter().enumerate() {
        let edge = children.iter().position(|(name, _)| *name == child.name);
        let Some(edge) = edge else {
            if child.required {
                let message = format!(
                    "plugin `{plugin}` needs a child `{name}`: add `child.{name} = \"…\"`",
                    name = child.name
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            continue;
        };
        let granted = children[edge].1;
        let missing = child.wants.without(granted);
        if !missing.is_empty() {
            let all: Vec<String> =
                child.wants.union(granted).names().map(|name| format!("\"{name}\"")).collect();
            let message = format!(
                "plugin `{plugin}` wants more of its child `{name}` than it is granted: write \
                 `grant.{name} = [{}]`, or use another plugin",
                all.join(", "),
                name = child.name
            );
            return Err(Error::new(ErrorKind::NotPermitted, message));
        }
        let index = u8::try_from(index).ok().filter(|index| *index < u8::MAX);
        let index = index.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("plugin `{plugin}` describes too many children"))
        })?;
        resolved.push(PluginChild {
            name: child.name.clone(),
            index: ChildIndex(index),
            edge,
            granted,
            exclusive: child.exclusive,
        });
    }
    let known = |name: &str| wanted.iter().any(|child| child.name == name);
    match children.iter().find(|(name, _)| !known(name)) {
        None => Ok(resolved),
        Some((name, _)) => {
            let names: Vec<String> = wanted.iter().map(|it| format!("`{}`", it.name)).collect();
            let message =
                format!("plugin `{plugin}` has no child `{name}`: it knows {}", names.join(", "));
            Err(Error::new(ErrorKind::Invalid, message))
        }
    }
}

/// Checks the bitmaps that are lent to a node, by the names that the plugin has for them.
pub(super) fn check_bitmaps<'a>(
    module: &PluginModule,
    lent: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    let (wanted, plugin) = (&module.inspection().bitmaps, module.name());
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    let is_lent = |name: &str| lent.clone().any(|lent| lent == name);
    if let Some((name, _)) = wanted.iter().find(|(name, needed)| *needed && !is_lent(name)) {
        return invalid(format!(
            "plugin `{plugin}` needs a bitmap `{name}`: add `bitmap.{name} = \"…\"`"
        ));
    }
    let is_wanted = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
    match lent.clone().find(|name| !is_wanted(name)) {
        Some(name) => invalid(format!("plugin `{plugin}` reads no bitmap `{name}`")),
        None => Ok(()),
    }
}

/// Checks what is granted of the data of a node's requests.
pub(super) fn check_bytes(module: &PluginModule, granted: ByteAccess) -> Result<()> {
    let wanted = module.inspection().wants_bytes;
    if wanted <= granted {
        return Ok(());
    }
    let to = match wanted {
        ByteAccess::Transform => "change the data of requests",
        _ => "look at the data of requests",
    };
    let message = format!(
        "plugin `{}` wants to {to}, and is not granted that: write `grant.bytes = \"{}\"`, or use another \
         plugin",
        module.name(),
        wanted.name()
    );
    Err(Error::new(ErrorKind::NotPermitted, message))
}

/// Checks that the plugin offers a view.
pub(super) fn check_view(module: &PluginModule, view: &str) -> Result<()> {
    let views = &module.inspection().views;
    if views.iter().any(|offered| offered == view) {
        return Ok(());
    }
    let offered = match views.is_empty() {
        true => "none".to_owned(),
        false => format!("`{}`", views.join("`, `")),
    };
    let message =
        format!("plugin `{}` offers no view `{view}` (it offers: {offered})", module.name());
    Err(Error::new(ErrorKind::NotFound, message))
}
