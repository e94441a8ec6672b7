//! The compiler's target and the nested cargo.

use std::path::Path;
use std::process::Command;
use std::{env, ffi::OsString};

use crate::{BuildError, PROFILE, TARGET};

/// Variables that are about the outer build, or would let both share a directory.
const SCRUBBED: &[&str] = &[
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "TARGET",
];

/// Adds the target where rustup can, and says how to where it cannot.
pub(crate) fn require_target() -> Result<(), BuildError> {
    if has_target()? {
        return Ok(());
    }
    // rustup's own proxies set RUSTUP_TOOLCHAIN, so this is the toolchain of the build.
    let added = Command::new("rustup").args(["target", "add", TARGET]).output();
    let reason = match added {
        Ok(output) if output.status.success() && has_target()? => return Ok(()),
        Ok(output) => format!("rustup said: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("rustup could not be run: {error}"),
    };
    Err(BuildError::Target { reason })
}

fn has_target() -> Result<bool, BuildError> {
    let rustc = program("RUSTC", "rustc");
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|source| BuildError::Io { path: rustc.into(), source })?;
    let libraries = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(libraries.trim()).is_dir())
}

pub(crate) fn build(
    root: &Path,
    target_dir: &Path,
    plugins: &[(&str, &str)],
) -> Result<(), BuildError> {
    let cargo = program("CARGO", "cargo");
    let mut command = Command::new(&cargo);
    command.current_dir(root).args(["build", "--locked", "--target", TARGET, "--profile", PROFILE]);
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    command.arg("--target-dir").arg(target_dir);
    // What is not generic in the sdk is set-up, whose size counts and whose speed does not. The
    // data plane is compiled with each plugin, by the profile.
    command.args(["--config", "profile.plugin.package.blockloom-sdk.opt-level=\"z\""]);
    for (_, package) in plugins {
        command.args(["--package", package]);
    }
    for name in SCRUBBED {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let flags = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if flags || text.starts_with("CARGO_PROFILE_") {
            command.env_remove(&name);
        }
    }
    // Set, it also overrides flags from configuration files. The linker otherwise pads every index
    // and address in the code to five bytes.
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Clink-arg=--compress-relocations");
    command.env("CARGO_BUILD_BUILD_DIR", target_dir);
    // Only the standard error is captured to be shown: a build script's output is cargo's to read.
    let output =
        command.output().map_err(|source| BuildError::Io { path: cargo.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(BuildError::Cargo { output: String::from_utf8_lossy(&output.stderr).into_owned() })
}

fn program(variable: &str, default: &str) -> OsString {
    env::var_os(variable).unwrap_or_else(|| default.into())
}
