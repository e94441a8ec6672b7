//! Jobs: long work on the graph, beside all who use it.
//!
//! A job stands in the graph as a node that nobody uses, whose edges lead to what it reads and writes, with what
//! it may do there. So permissions, gates, guards and marks are those of every node that acts of its own accord;
//! a change of the graph that would take its ground away is refused with its name, and every other one is made
//! under it. The node comes by a transaction, which may do more, and goes by one that also makes the changes for
//! which the job was there: all or nothing, at one instant, of all jobs of a group.
//!
//! | file | idea |
//! |---|---|
//! | `spec.rs`, `list.rs`, `handle.rs` | what may be asked for; all jobs; what may be asked of each |
//! | `status.rs` | the states and what each allows: QEMU's |
//! | `record.rs`, `watched.rs` | what is known of a job everywhere, and can be waited for |
//! | `event.rs` | what subscribers of the host's events learn |
//! | `group.rs` | the life of a job; ending together |
//! | `context.rs`, `flow.rs`, `pace.rs` | what a job works with: pieces in flight, speed, pauses, errors |
//! | `work.rs` | `Work`: what a kind of job is |
//! | `node.rs` | the node |
//! | `stream.rs`, `commit.rs`, `mirror.rs`, `backup/`, `populate.rs` | the kinds |
//! | `copying.rs` | what commit and mirror have in common |
//! | `busy.rs` | what they may not have in common |
//! | `looked.rs` | what block status said of the ranges that come next |
//! | `kept.rs` | how a backup keeps what is about to be overwritten |
//!
//! # States
//!
//! ```text
//!   created → running ⇄ paused
//!                │  └─► ready ⇄ standby      (mirror, active commit: until asked to complete)
//!                ▼        ▼
//!             waiting ─► pending ─► concluded ─► null
//!        a group's others  │ finalize      │ dismiss
//!   any of them ─► aborting ─► concluded
//! ```
//!
//! # Another kind of job
//!
//! It is a `Work`, planned from the graph: the edges of its node, `run`, which launches pieces by
//! its `JobCx`, and `end`, the actions by which it takes effect. Between two pieces it comes to
//! a *point*, at which it stands still, fails or is cancelled as asked; what has failed is tried again, left out
//! or reported there by the job's `on_error`. It never calls a node by itself, and never waits for a
//! transaction with pieces in flight that only it would poll: each piece is a task of its own.
//!
//! **Invariants**
//! - A job makes nothing that anybody sees, but by the transaction at its end; cancelled or failed, it leaves the
//!   view of every drive as it was.
//! - What proves its claims is the graph's own evidence, never the job's word.
//! - In flight are at most [`JOB_BYTES_MAX`](crate::limits::JOB_BYTES_MAX) bytes and
//!   [`JOB_PIECES_MAX`](crate::limits::JOB_PIECES_MAX) pieces of a job; of a host there are at most
//!   [`JOBS_MAX`](crate::limits::JOBS_MAX) jobs.

mod backup;
mod busy;
mod commit;
mod context;
mod copying;
mod event;
mod flow;
mod group;
mod handle;
mod kept;
mod list;
mod looked;
mod mirror;
mod node;
mod pace;
mod populate;
mod record;
mod spec;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod watched;
mod work;

pub(crate) use backup::mode_of as backup_mode;
pub use event::{ErrorAction, JobEvent, JobNews, Progress};
pub(crate) use group::Changes;
pub use handle::JobHandle;
pub(crate) use list::{Jobs, Needs};
#[cfg(test)]
pub(crate) use node::JobNode;
pub use record::{IoStatus, JobEnd, JobInfo};
pub use spec::{
    BackupSpec, BackupSync, BitmapMode, CommitSpec, CopyMode, JobKind, JobSpec, MirrorSpec,
    MirrorSync, OnCbwError, OnError, PopulateFrom, PopulateSpec, StreamSpec,
};
pub use status::{JobStatus, Verb};
