//! Plugins that mean harm, or are broken: whatever one does, the daemon lives, its neighbours go on, and
//! each request ends exactly once, with the right bytes below.
//!
//! A [`guest::Guest`] is a plugin written as WebAssembly text, one behaviour each; a [`scene::Scene`] puts it
//! over a [`disk::Disk`] that keeps books, beside a drive with a plugin of its own that must not notice.

mod answers;
mod bytes;
mod claims;
mod disk;
mod flood;
mod guest;
mod holding;
mod loading;
mod operations;
mod policies;
mod protocol;
mod scene;
mod suite;
mod time;
mod traps;
mod workers;
