//! The simulator: an [`Io`](super::Io) engine, a clock, a schedule and files, all of them by one seed.
//!
//! The real worker loop, executor, timers and everything above run on it, on one thread: a [`Simulation`]
//! is in the place of the kernel. Time stands still while tasks run, and goes on to the next event when the
//! worker waits; sometimes when it does not, as on a machine that is busy. The same seed gives the
//! same run, event by event ([`Trace`]); what else decides anything (real clocks, threads, the order of
//! a hash table) would show as a difference between two runs of one seed.
//!
//! | file | idea |
//! |---|---|
//! | `simulation.rs` | what the runs of one seed share: clock, chance, files, trace; how to run something |
//! | `engine.rs` | the engine of one run: operations as events |
//! | `media.rs` | what a file holds, and what a crash leaves of it |
//! | `file.rs` | a file by name, in the place of a descriptor |
//! | `faults.rs` | how often what goes wrong |
//! | `random.rs`, `trace.rs` | numbers by chance; what happened |
//! | `record.rs` | what was written and made durable, for who looks at every point at which all may stop |
//!
//! # What is simulated, and what is not
//!
//! The seam is right below the worker: `Io` (operations, waiting, time), which ready task comes next, and
//! the descriptor within [`File`](super::File). One worker runs; what needs several has as many
//! `LocalGraph`s with numbers of their own, whose tasks one schedule mixes. A task runs from one await to the
//! next without interruption: what happens between two instructions is for `shuttle` to explore (the
//! gate, the guards, the bitmaps). Sockets, epoll, image locks and plugins are not simulated.
//!
//! # The fault model
//!
//! With faults switched on, at the rates of [`Faults`]:
//!
//! - *Order and time.* Any ready task may be next. An operation takes from a microsecond to 0.1 s, so any two
//!   may overtake each other; nothing takes longer, and whatever waits for more than that waits for itself.
//! - *Reads* see the sectors as they are at some moment of the operation; they may be short (by
//!   whole sectors), be interrupted (`EINTR`), or fail with `EIO`, with any bytes in the buffer.
//! - *Writes* (and what zeroes or deallocates) come into sight sector by sector, at any moment of the
//!   operation. They may be short or interrupted, or fail with `EIO` or `ENOSPC`: each sector is then old or
//!   new; or, with `EIO`, damaged: bytes that nobody wrote, and never wrote before. Nothing changes once an
//!   operation has ended.
//! - *A sync* covers the operations that have ended when it begins. It may fail with `EIO`: some of what
//!   it covers is then lost to every later sync, though reads show it until the next crash.
//! - *A crash* comes between any two events. Of each sector the medium then has any one content since the
//!   last sync that covers it, that one included, whatever its neighbours have: unsynced writes are lost,
//!   torn between sectors, and reordered. Operations under way count as unsynced writes. A sector itself
//!   is never torn, and no synced byte is lost.
//! - Lengths change at once and for good, and so do file times, which are multiples of 10 ms. Nothing rots: a sector that was read well is read well again.
//!
//! # Writing a scenario
//!
//! A [`Simulation`] of a seed; files by [`Simulation::add_file`]; a future for [`Simulation::run`], in which
//! `FileNode::open` finds those files and everything else of the host works as on a worker. It ends with the
//! future's value, or with why it did not end ([`Stop`]): a crash that was asked for
//! ([`Simulation::crash_after`]; files then hold what it left, and another `run` may look), nothing left
//! that could happen while something waits (a deadlock), or too many events. Choices of the scenario come from
//! [`Simulation::random`], notes for the trace go to [`note`]. `graph/simulation/` has the scenarios.

mod engine;
mod faults;
mod file;
mod media;
mod random;
mod record;
mod simulation;
#[cfg(test)]
mod tests;
mod trace;

pub(crate) use faults::Faults;
pub(super) use file::{SimFile, open};
pub(crate) use media::SECTOR;
pub(crate) use random::Random;
pub(crate) use record::Recorded;
pub(crate) use simulation::{Simulation, Stop, chance, note, say};
pub(super) use simulation::{choose_task, is_simulated, unique};
pub(crate) use trace::Trace;
