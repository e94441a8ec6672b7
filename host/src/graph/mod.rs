//! The block graph: immutable snapshots of nodes, edges and drives, and the one path of a request.
//!
//! ```text
//!   export / embedder → LocalDrive ─┐                         (drive.rs)
//!   driver → Cx::child ─────────────┤
//!                                   ▼
//!        admit      where a change enters: range, permission, pause, marks      (admit.rs)
//!          → EdgeRef  bounds, guards, alignment, emulation, counters   (edge.rs, flight.rs, align.rs, emulate.rs)
//!             → Node driver
//! ```
//!
//! A request begins at a drive, whose `origin` has a gate: behind it stands the request with all that it
//! causes. A change enters at a drive's root edge, at a storage or target edge (a driver changing its
//! container or its target), or where a node writes of its own accord (`evidence`). There, and only there,
//! it marks every dirty bitmap of every view it affects, before it is issued. What it affects is one
//! closure over the classes of the snapshot (`class`, `affected`).
//!
//! **Invariant**: nothing but [`EdgeRef`] calls a driver, and, with nothing in flight, a graph change that
//! resizes, deallocates or closes; and, as a request of its own, [`LocalGraph::call_node`].
//!
//! **Invariant**: a snapshot never changes. One writer builds the next one (`transaction`), closes the
//! gates of those who reach what it touches, waits until nothing is in flight there, publishes it, and
//! opens them (`cell`).

mod acting;
mod admit;
mod affected;
mod align;
mod awaited;
mod below;
mod build;
mod busy;
#[cfg(test)]
mod cases;
mod cell;
mod class;
mod counters;
mod depth;
mod detach;
mod drive;
mod edge;
mod emulate;
mod evidence;
mod fill;
mod flight;
mod gate;
#[cfg(test)]
mod gate_explored;
mod generation;
mod guard;
mod hint;
#[cfg(test)]
mod log_format;
#[doc(hidden)]
pub mod measure;
#[cfg(test)]
mod model;
mod mutation;
mod op;
mod opening;
mod order;
mod origin;
mod permission;
mod reopening;
mod showing;
mod shown;
#[cfg(test)]
mod simulation;
mod snapshot;
mod stake;
mod sync;
#[cfg(test)]
mod testing;
mod transaction;
mod user;

pub(crate) use below::Rests;
pub use build::{BitmapDecl, ChildDecl, DriveDecl, GraphDecl, NodeDecl};
pub use cell::{GraphCell, LocalGraph, Snapshot};
pub(crate) use cell::{WriterLock, Writing};
pub use class::Class;
pub use counters::{Counters, CountersSnapshot};
pub use depth::Layered;
pub use drive::LocalDrive;
pub(crate) use drive::check_transfer;
pub use edge::EdgeRef;
pub use evidence::{Copied, CopyHow, OnBehalf, Outcomes, OwnAccord, ProvenBuf, Tracked, Tracker};
pub use flight::EdgeCall;
pub use generation::NodeGeneration;
pub(crate) use hint::HasAll;
pub(crate) use mutation::{Mutation, mutated};
pub use op::{Op, OpKind};
pub use opening::{Children, NodeReader, OpenDecl, OpenDriver};
pub(crate) use permission::Verb;
pub use permission::{PermissionSet, Role, Users};
pub(crate) use showing::Showing;
pub use snapshot::{BitmapScope, Cx, Edge, Graph, GraphDrive, GraphNode};
pub use stake::JobStake;
pub use transaction::{
    Action, Applied, BitmapAction, BitmapChange, BitmapRef, Event, Events, Notice, Transaction,
    Unproven, User, Which,
};
pub(crate) use transaction::{Opened, Rider};
pub(crate) use user::{DriveTitle, EXPORT_DRIVE};
