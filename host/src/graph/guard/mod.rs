//! Range guards: what keeps a node's view still while a copy reads it and writes what it read.
//!
//! A *source* is a node whose view copies are made of. An *operation* guards a range of one (exclusive)
//! and announces what its write enters (shared). A *change* is in flight for a source (shared) from the
//! edge by which it enters the source's down-set to its completion. A *watch* learns whether anything
//! has touched a range since it was read.
//!
//! | file | idea |
//! |---|---|
//! | `set.rs` | [`SourceId`], [`SourceSet`]: what a change enters, and when it touches a range |
//! | `shard.rs` | what one worker's requests have in the table |
//! | `queue.rs` | [`By`], [`Want`], and who waits, in order |
//! | `table.rs` | [`Guards`]: every decision, under its locks |
//! | `wait.rs` | `enter`, `acquire`, [`Held`]: the same for tasks |
//!
//! # Conflicts
//!
//! Two entries conflict if they are of the same source, their ranges overlap, and one is exclusive.
//! Lineage is directed: what an operation has *caused* passes its guard and its shared part; what has
//! caused the operation does not (a held guest write, let go while the copy runs on its behalf, would be
//! overwritten with old bytes). What passes spoils the guard: before the operation's write is issued,
//! `issue_part` fails; after it, `settle` says that the proof is void, and from that moment what the proof
//! exempted counts as shared. An operation whose write is issued spoils the granted guards that it
//! touches in the same way, however it came to be granted beside them.
//!
//! # Ordering
//!
//! **Invariant**: the mutexes are the whole ordering argument; nothing is decided by an atomic. The order of
//! locks is queue, then shards ascending; no waker is woken or dropped under one.
//!
//! - A change locks its worker's shard. An operation, or a new watch, locks all; the queue before them only
//!   to wait, or where somebody does: who waits is counted in a shard, so all shards say whether anybody does. So a change was either
//!   there before, and is seen; or comes after, and sees the copy of the guard or watch in its own shard.
//! - A flag set by a change, and the bytes it wrote, are seen by who is granted the range later: the
//!   grant locks the shard that the change has left.
//! - *No wake-up is lost.* Who waits counts itself in its shard (an operation's queued guard is in all
//!   of them), then looks again and keeps its waker, under the queue's lock. Who leaves or releases
//!   changes the shard first: it sees the count or the queued guard and locks the queue to wake, or
//!   the waiter, which came later, sees that it is gone. Whoever is granted from the queue is a holder:
//!   its end wakes who was behind it. Whoever is dropped from the queue wakes them at once.
//!
//! # Why nothing deadlocks
//!
//! 1. *Top-level* requests (a change at its first crossing; an operation of own accord or caused by a
//!    read) hold nothing. They wait for what is granted and for smaller tickets that conflict. A guard
//!    in the queue stops later top-level changes, so it is not starved.
//! 2. *Nested* requests (a change that crosses a further edge; an operation caused by a change or by an
//!    operation) may be waited for; they wait only for what is granted.
//! 3. The graph gives sources a static order: s before t if a holder of s can come to need t. A snapshot
//!    in which it has a cycle is refused (`graph/order.rs`). So among holders there is one that waits for nobody; it ends,
//!    and by induction over order, then tickets, all do.
//! 4. Gates are passed before the table, and descendants pass gates: a drain waits only for what ends
//!    by 3. In-flight limits are taken after the guard: who waits for a range holds no slot below it.
//! 5. What remains is policy that waits for itself (a plugin that holds a write until a copy above it
//!    is done). The caller's time limit ends the wait, or the span between read and issue; never a
//!    guard whose write is issued.
//!
//! # Bounds
//!
//! Operations: `GUARDS_MAX`; watches: `WATCHES_MAX`, of one node `WATCHES_OF_NODE_MAX`. Parked changes need
//! no bound of their own: each is a request in progress. A change scans its shard's guards and watches, an
//! operation also all flights.

mod queue;
mod set;
mod shard;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod wait;

pub(crate) use queue::{By, OpId, Want};
pub(crate) use set::{SourceId, SourceRange, SourceSet};
pub(crate) use shard::{FlightKey, Stale, WatchKey};
#[cfg(test)]
pub(crate) use table::Ticket;
pub(crate) use table::{Acquire, AtOnce, Full, Guards};
pub(crate) use wait::Held;
