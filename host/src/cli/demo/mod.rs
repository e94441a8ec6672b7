//! `blockloom demo`: what this is for, in one run, on temporary files.
//!
//! An image is served as an overlay through three plugins. While a guest reads and writes, backups are taken, the
//! chain is changed under it, and a plugin is killed and replaced; each backup is compared with what the disk showed
//! at its instant. A table says what was copied, and what QEMU's rules for dirty bitmaps would have copied.

mod guest;
mod ledger;
mod nbd;
mod place;
mod scene;
mod story;
mod table;

use std::process::ExitCode;

use super::{complain, println};
use place::Place;

/// Runs it.
pub(super) fn run() -> ExitCode {
    let told = Place::new().and_then(|place| story::tell(&place));
    match told {
        Ok(table) => {
            println(format_args!("{table}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error);
            ExitCode::from(1)
        }
    }
}
