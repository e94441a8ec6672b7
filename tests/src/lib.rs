//! Harness of the end-to-end tests: a temporary place for a test ([`Scratch`]), the program under
//! test as a process ([`Daemon`]), others that end with their test ([`Killed`]), an NBD client that can do everything the protocol allows and much
//! that it does not ([`nbd`]), and foreign tools ([`tools`]).
//!
//! Nothing here sleeps for a fixed time: processes are waited for, and where only polling is possible
//! [`eventually`] does it against a deadline.

mod daemon;
mod killed;
pub mod nbd;
mod pattern;
pub mod qmp;
mod scratch;
pub mod tools;
mod wait;

pub use daemon::{Daemon, Ended, Refused};
pub use killed::Killed;
pub use pattern::{Random, pattern};
pub use scratch::Scratch;
pub use wait::{DEADLINE, eventually};
