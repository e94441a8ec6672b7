//! `plugin new`: a crate that builds and passes its tests.

#![allow(clippy::disallowed_methods, reason = "a scaffold is files and nothing else")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::println;
use crate::error::{Error, ErrorKind, Result};
use crate::host::StartError;

const NAME_MAX_BYTES: usize = 64;

/// Where each file goes, and its text. `NAME`, `TYPE`, `CRATE` and `SDK` stand for what differs.
const FILES: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("template/manifest.toml")),
    ("src/lib.rs", include_str!("template/lib.rs")),
    ("tests/native.rs", include_str!("template/native.rs")),
];

/// Makes the crate and says what comes next.
pub(super) fn new(
    name: &str,
    path: Option<PathBuf>,
    sdk: Option<PathBuf>,
) -> std::result::Result<(), StartError> {
    check_name(name).map_err(StartError::File)?;
    let path = path.unwrap_or_else(|| PathBuf::from(name));
    let made = |place: &Path, error: &io::Error| {
        Error::os(format!("cannot make `{}`", place.display()), error)
    };
    fs::create_dir_all(&path).map_err(|error| made(&path, &error))?;
    let here = path.canonicalize().map_err(|error| made(&path, &error))?;
    let sdk = match sdk {
        Some(sdk) => Some(checked_sdk(&sdk)?),
        None => here.ancestors().map(|dir| dir.join("sdk")).find(|dir| is_sdk(dir)),
    };
    let dependency = match sdk {
        // A JSON string is one of TOML, too.
        Some(sdk) => format!("{{ path = {} }}", serde_json::Value::from(sdk.display().to_string())),
        None => format!("{:?}", env!("CARGO_PKG_VERSION")),
    };
    for (file, template) in FILES {
        let place = here.join(file);
        if place.symlink_metadata().is_ok() {
            let message = format!("`{}` is there already: choose another --path", place.display());
            return Err(Error::new(ErrorKind::Exists, message).into());
        }
        let text = template
            .replace("NAME", name)
            .replace("TYPE", &type_name(name))
            .replace("CRATE", &name.replace('-', "_"))
            .replace("SDK", &dependency);
        fs::create_dir_all(place.parent().unwrap_or(&here))
            .map_err(|error| made(&place, &error))?;
        fs::write(&place, text).map_err(|error| made(&place, &error))?;
    }
    let wasm = format!("target/wasm32-unknown-unknown/release/{}.wasm", name.replace('-', "_"));
    println(format_args!("made {}; in it:", path.display()));
    println(format_args!("  cargo test"));
    println(format_args!("  cargo build --release --target wasm32-unknown-unknown"));
    println(format_args!("  blockloom plugin test {wasm}"));
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let is_right = name.len() <= NAME_MAX_BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
        && !name.contains("--")
        && name.bytes().all(|it| matches!(it, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if is_right {
        return Ok(());
    }
    let message = format!(
        "`{}` is no name for a plugin: lower-case letters, digits and single hyphens, such as \
         `protect-boot`",
        name.escape_default()
    );
    Err(Error::new(ErrorKind::Invalid, message))
}

fn is_sdk(dir: &Path) -> bool {
    let manifest = fs::read_to_string(dir.join("Cargo.toml"));
    manifest.is_ok_and(|text| text.contains("name = \"blockloom-sdk\""))
}

fn checked_sdk(dir: &Path) -> Result<PathBuf> {
    match dir.canonicalize() {
        Ok(whole) if is_sdk(&whole) => Ok(whole),
        _ => {
            let message = format!("there is no crate `blockloom-sdk` in `{}`", dir.display());
            Err(Error::new(ErrorKind::NotFound, message))
        }
    }
}

/// `protect-boot` as `ProtectBoot`.
fn type_name(name: &str) -> String {
    let parts = name.split('-').map(|part| {
        let (first, rest) = part.split_at(1.min(part.len()));
        first.to_uppercase() + rest
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_become_types() {
        assert_eq!(type_name("protect-boot2-x"), "ProtectBoot2X");
        for name in ["a", "log2", "copy-on-read"] {
            check_name(name).expect(name);
        }
        for name in ["", "-a", "a-", "a--b", "A", "2a", "a/b", "ä", &"a".repeat(65)] {
            check_name(name).expect_err(name);
        }
    }
}
