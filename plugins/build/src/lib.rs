//! Compiles the bundled plugins from a build script.
//!
//! [`bundle`] runs a cargo of its own for `wasm32-unknown-unknown`, in `plugins` below the target
//! directory, so that the two never wait for each other's lock. That cargo sees none of the outer
//! one's compiler flags and wrappers: `cargo clippy`, coverage and sanitizers leave plugins alone.
//! It writes `$OUT_DIR/bundled.rs`, to be included:
//!
//! ```text
//! /// Name and core module of each bundled plugin.
//! pub(crate) static BUNDLED: &[(&str, &[u8])] = &[("pass", …), …];
//! ```
#![forbid(unsafe_code)]

mod nested;
mod sources;
mod trim;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs, io};

/// Name and package of each bundled plugin.
pub const PLUGINS: &[(&str, &str)] = &[
    ("backup", "blockloom-plugin-backup"),
    ("copy-on-read", "blockloom-plugin-copy-on-read"),
    ("delay", "blockloom-plugin-delay"),
    ("error", "blockloom-plugin-error"),
    ("log", "blockloom-plugin-log"),
    ("pass", "blockloom-plugin-pass"),
    ("protect", "blockloom-plugin-protect"),
    ("stats", "blockloom-plugin-stats"),
    ("throttle", "blockloom-plugin-throttle"),
    ("xor", "blockloom-plugin-xor"),
];

/// What plugins are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";
/// The profile, of the workspace's manifest.
const PROFILE: &str = "plugin";

/// Why the plugins could not be bundled.
#[derive(Debug)]
pub enum BuildError {
    /// Not run by cargo as a build script: this variable is missing.
    Variable(&'static str),
    /// The compiler has no standard library for [`TARGET`].
    Target {
        /// What the attempt to add it said.
        reason: String,
    },
    /// The nested cargo failed.
    Cargo {
        /// What it printed.
        output: String,
    },
    /// A file or a program could not be used.
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "{name} is not set: this runs in a build script"),
            Self::Target { reason } => write!(
                f,
                "the bundled plugins need the Rust target {TARGET}; add it with\n\n    \
                 rustup target add {TARGET}\n\nor install your distribution's package of it \
                 (such as rust-std-static-{TARGET}), then build again\n{reason}"
            ),
            Self::Cargo { output } => {
                write!(f, "the bundled plugins could not be compiled\n{output}")
            }
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Compiles the plugins and writes `$OUT_DIR/bundled.rs`; tells cargo when to do so again.
///
/// # Errors
///
/// What failed, and what to type where that helps.
pub fn bundle() -> Result<(), BuildError> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(BuildError::Variable("OUT_DIR"))?);
    let root = workspace_root();
    let target_dir = target_dir(&out).join("plugins");

    sources::announce_fixed(&root);
    nested::require_target()?;
    nested::build(&root, &target_dir)?;

    let artifacts = target_dir.join(TARGET).join(PROFILE);
    let mut list = String::from(
        "/// Name and core module of each bundled plugin.\n\
         pub(crate) static BUNDLED: &[(&str, &[u8])] = &[\n",
    );
    for (name, package) in PLUGINS {
        let stem = package.replace('-', "_");
        let module = artifacts.join(format!("{stem}.wasm"));
        let wasm = fs::read(&module).map_err(|source| BuildError::Io { path: module, source })?;
        let wasm = trim::trimmed(&wasm).unwrap_or(wasm);
        write_changed(&out.join(format!("{name}.wasm")), &wasm)?;
        sources::announce_used(&artifacts.join(format!("{stem}.d")))?;
        // Writing to a string does not fail.
        let _ = writeln!(
            list,
            "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.wasm\"))),"
        );
    }
    list.push_str("];\n");
    write_changed(&out.join("bundled.rs"), list.as_bytes())
}

/// This crate lies two folders below the workspace's root.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The target directory that a build script's output directory lies in: the one that cargo marks
/// as a cache, else where cargo's usual layout has it.
fn target_dir(out: &Path) -> PathBuf {
    let marked = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    // TARGET/PROFILE/build/PACKAGE-HASH/out
    marked.or_else(|| out.ancestors().nth(4)).unwrap_or(out).to_owned()
}

/// Leaves a file with these contents as it is, so that nothing is compiled again for its sake.
fn write_changed(path: &Path, contents: &[u8]) -> Result<(), BuildError> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    fs::write(path, contents).map_err(|source| BuildError::Io { path: path.to_owned(), source })
}
