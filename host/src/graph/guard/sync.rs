//! The locks of the table. Its exploration under a scheduler (`tests/explored.rs`) brings others.

pub(super) use std::sync::{Mutex, MutexGuard};
