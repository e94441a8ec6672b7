//! The reference model: what is true of views and dirty bitmaps, written from design §3 alone.
//!
//! A [`World`] is run in lock step with the real core. It is pure and sequential, knows no marking
//! code, no cache and no index: views are byte arrays computed by definition each time they are asked
//! for, and what a change touches is found by walking *down* from each view, where the host walks *up*
//! from the change.
//!
//! | file | idea |
//! |---|---|
//! | `ids.rs`, `refusal.rs`, `violation.rs` | [`View`], [`Span`], names; what to answer; what was wrong |
//! | `memory.rs` | bytes with an allocation map, clusters and their fill |
//! | `graph.rs` | nodes, edges, drives; **every view by definition** |
//! | `change.rs` | how a change reaches a view: **the touch set** |
//! | `bitmap.rs` | what a bitmap must, may and must not have dirty; the baseline |
//! | `flight.rs`, `world.rs` | a change step by step: admit, issue, land, settle |
//! | `evidence.rs` | watches, captured reads, claims and the verdict on them |
//! | `resize.rs`, `actions.rs`, `repoint.rs`, `bitmap_actions.rs` | resize, deallocation, graph changes, evidence for them, bitmap commands |
//! | `requests.rs` | whole requests and transactions, one step each |
//! | `check.rs` | soundness by bytes; exact precision by touches |
//! | `describe.rs` | the world in a few lines, for a failing test's message |
//!
//! # How to run it beside the core
//!
//! Give every node, drive and bitmap the id of the model as its name. For each step do the same to
//! both, compare answers ([`Refusal`] or value; for claims [`Verdict::admits`]), then call
//! [`World::check`] with what the host has dirty. What the model cannot know it is told: how a failed
//! write left the bytes ([`Outcome`]), whether a discard did anything. When the host may choose, ask
//! before the step ([`World::judge`]), and step only if the host did it.
//!
//! Views are computed byte by byte, so keep them small: let a model byte stand for 512 real ones (scale
//! offsets, fill each sector with one value), and views of 16 to 64 bytes.
//!
//! # Invariants
//!
//! - A question never changes the world, and a step never asks whether the host was right: a wrong host
//!   can be followed, and the next check names what it broke.
//! - Ids are never used twice, so an id is name and generation in one.
//! - A refused request, claim or transaction leaves the world as it was.
//!
//! # What is not here
//!
//! Permissions, limits, time-outs, fairness, lineage of nested copies, persistence; what a driver may
//! lose of settled writes when power fails.

mod actions;
mod bitmap;
mod bitmap_actions;
mod change;
mod check;
mod describe;
mod evidence;
mod flight;
mod graph;
mod ids;
mod memory;
mod refusal;
mod repoint;
mod requests;
mod resize;
mod violation;
#[allow(clippy::module_inception, reason = "the world is the model's own main file")]
mod world;

pub use actions::{Action, Orphans};
pub use bitmap::{Bitmap, GranuleSet, Part, Record};
pub use bitmap_actions::BitmapAction;
pub use change::{Leg, Reach};
pub use evidence::{Answer, Buffer, Verdict};
pub use flight::{Flight, Freshness, Outcome, Payload, Watch};
pub use graph::{Graph, Node, Stop};
pub use ids::{BitmapId, DriveId, FlightId, NodeId, Span, View, WatchId};
pub use memory::Memory;
pub use refusal::Refusal;
pub use repoint::SameView;
pub use requests::Unproven;
pub use violation::Violation;
pub use world::World;
