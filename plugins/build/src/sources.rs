//! What the plugins are made from, so that cargo runs the build script again when it changes.

use std::fs;
use std::path::Path;

use crate::{BuildError, PLUGINS};

/// What is known without building.
pub(crate) fn announce_fixed(root: &Path) {
    for path in
        ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "wit", "sdk/Cargo.toml", "sdk/src"]
    {
        announce(&root.join(path));
    }
    for (name, _) in PLUGINS {
        announce(&root.join("plugins").join(name));
    }
    for variable in ["RUSTC", "CARGO", "RUSTUP_TOOLCHAIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}

/// What a build names in its dependency file.
pub(crate) fn announce_used(dependencies: &Path) -> Result<(), BuildError> {
    let text = fs::read_to_string(dependencies)
        .map_err(|source| BuildError::Io { path: dependencies.to_owned(), source })?;
    prerequisites(&text).iter().for_each(|path| announce(Path::new(path)));
    Ok(())
}

/// A missing path would make cargo run the build script every time.
fn announce(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// The paths after the colon of each rule of a make file; a space in a path has a backslash.
fn prerequisites(text: &str) -> Vec<String> {
    const SPACE: &str = "\0";
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(_, list)| {
            list.replace("\\ ", SPACE)
                .split_whitespace()
                .map(|path| path.replace(SPACE, " "))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_spaces_are_read() {
        let text = "/t/a.wasm: /w/src/lib.rs /w/my\\ plugin/lib.rs\n\n/w/src/lib.rs:\n";
        assert_eq!(prerequisites(text), ["/w/src/lib.rs", "/w/my plugin/lib.rs"]);
        assert_eq!(prerequisites(""), Vec::<String>::new());
    }
}
