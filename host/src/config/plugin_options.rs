//! What is particular to plugins: where they come from, grants, limits and their own configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PermissionSet;
use super::diagnostic::{Span, Spanned};

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginSource {
    /// One that comes with the host, by its name.
    Bundled(String),
    /// A `.wasm` file; the path as written.
    File(String),
}

impl PluginSource {
    /// The path of a plugin that is a file, relative to the directory of the configuration file.
    pub fn path_in(&self, base_dir: &Path) -> Option<PathBuf> {
        match self {
            Self::Bundled(_) => None,
            Self::File(path) => Some(base_dir.join(path)),
        }
    }

    /// The same with the path of a file taken relative to `base_dir`.
    #[must_use]
    pub fn in_dir(&self, base_dir: &Path) -> Self {
        match self.path_in(base_dir) {
            Some(path) => Self::File(path.to_string_lossy().into_owned()),
            None => self.clone(),
        }
    }
}

impl fmt::Display for PluginSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled(name) => f.write_str(name),
            Self::File(path) => f.write_str(path),
        }
    }
}

/// What a plugin may do to a child of its own accord, besides passing requests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// Read.
    Read,
    /// Write what is proven to change no view.
    WriteUnchanged,
    /// Write anything.
    Write,
    /// Discard.
    Discard,
    /// Change the size.
    Resize,
}

impl Grant {
    /// Every grant.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::WriteUnchanged, Self::Write, Self::Discard, Self::Resize];

    /// The word in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::WriteUnchanged => "write-unchanged",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Resize => "resize",
        }
    }

    /// What the plugin's edge uses for it. A discard changes bytes, so it is a write.
    pub fn permission(self) -> PermissionSet {
        match self {
            Self::Read => PermissionSet::CONSISTENT_READ,
            Self::WriteUnchanged => PermissionSet::WRITE_UNCHANGED,
            Self::Write | Self::Discard => PermissionSet::WRITE,
            Self::Resize => PermissionSet::RESIZE,
        }
    }
}

/// What a plugin may do with the data of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BytesGrant {
    /// Look at it.
    Read,
    /// Make it other data: the node shows bytes of its own.
    Transform,
}

/// The grants for one child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantSpec {
    /// The name of the child.
    pub child: Spanned<String>,
    /// What is granted, each once.
    pub grants: Vec<Spanned<Grant>>,
}

impl GrantSpec {
    /// What the edge uses for these grants.
    pub fn permissions(&self) -> PermissionSet {
        let sets = self.grants.iter().map(|grant| grant.value.permission());
        sets.fold(PermissionSet::NONE, PermissionSet::union)
    }
}

/// What happens to a node when its plugin fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFault {
    /// Its requests fail.
    #[default]
    Fail,
    /// Its requests go to the child that it filters, if the plugin allows it.
    Bypass,
    /// It starts again.
    Restart {
        /// So many faults,
        faults: u32,
        /// in so long a time; one more, and requests fail.
        within: Duration,
    },
}

/// What a plugin is told, and where in the file each part stands.
#[derive(Clone, Debug)]
pub struct ConfigSpec {
    /// The table as JSON; `{}` if the file has none.
    pub json: serde_json::Value,
    /// Where the key `config` stands; without one, where the node is named.
    pub span: Span,
    /// Where the key of each part stands, by its JSON pointer (RFC 6901).
    pub(super) spans: BTreeMap<String, Span>,
}

impl ConfigSpec {
    pub(super) fn forget_places(&mut self) {
        self.span = Span::NOWHERE;
        self.spans.clear();
    }

    /// Whether nothing was said.
    pub(super) fn is_absent(&self) -> bool {
        self.json.as_object().is_some_and(serde_json::Map::is_empty)
    }

    /// Where the part at `path` stands, or the nearest part around it that the file has.
    ///
    /// `path` is a JSON pointer (`/limits/0/iops`) or a dotted path (`limits[0].iops`).
    pub fn span_of(&self, path: &str) -> Span {
        let mut pointer = if path.starts_with('/') { path.to_owned() } else { pointer_of(path) };
        loop {
            if let Some(span) = self.spans.get(&pointer) {
                return *span;
            }
            match pointer.rfind('/') {
                Some(cut) => pointer.truncate(cut),
                None => return self.span,
            }
        }
    }
}

/// `a.b[0]` as `/a/b/0`.
fn pointer_of(path: &str) -> String {
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    parts.map(pointer_part).collect()
}

/// `/` and the name of a part, escaped as RFC 6901 wants.
pub(super) fn pointer_part(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}
