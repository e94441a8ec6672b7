//! What the gate is made of. Its exploration under a scheduler (`gate_explored.rs`) brings others.

pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize};
