//! What is added to a host that runs, as it is written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{self, Diagnostics, GraphSpec, Live};

/// Nodes, drives, bitmaps and exports for a host that runs: what a file would say of them. It may name what is
/// there.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// For messages.
    name: String,
    written: Written,
    base: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Written {
    Toml(String),
    Object(Value),
    Blockdev(Value),
}

impl Fragment {
    fn new(name: &str, written: Written) -> Self {
        Self { name: name.to_owned(), written, base: None }
    }

    /// TOML text, as in a file; `name` is the file's, for messages.
    pub fn toml(name: &str, text: &str) -> Self {
        Self::new(name, Written::Toml(text.to_owned()))
    }

    /// The same as JSON: `{ "node": { NAME: { … } }, "drive": …, "bitmap": …, "export": … }`. Nodes may be
    /// described in the words of QEMU, too.
    pub fn json(name: &str, object: Value) -> Self {
        Self::new(name, Written::Object(object))
    }

    /// One node: QEMU's `BlockdevOptions`, or the same in the words of TOML, with the node's name as
    /// `node-name`; without one, one is made up.
    pub fn blockdev(options: Value) -> Self {
        Self::new("blockdev-add", Written::Blockdev(options))
    }

    /// Relative paths are taken from this directory, and files in it may be named by images; else it is that of
    /// the file that the host began with.
    #[must_use]
    pub fn in_dir(mut self, base: &Path) -> Self {
        self.base = Some(base.to_owned());
        self
    }

    /// The same for messages about something else.
    #[must_use]
    pub(super) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub(super) fn base(&self) -> Option<&Path> {
        self.base.as_deref()
    }

    /// What it says, what is wrong with it, and which node it is about, if it is about one.
    pub(super) fn read(
        &self,
        made_up: impl FnOnce() -> String,
        live: Live,
    ) -> (GraphSpec, Diagnostics, Option<String>) {
        match &self.written {
            Written::Toml(text) => {
                let (spec, found) = config::parse_addition(&self.name, text, live);
                (spec, found, None)
            }
            Written::Object(object) => {
                let (spec, found) = config::parse_object(&self.name, object, live);
                (spec, found, None)
            }
            Written::Blockdev(options) => {
                let (spec, found, root) =
                    config::parse_blockdev(&self.name, options, &made_up(), live);
                (spec, found, Some(root))
            }
        }
    }
}
