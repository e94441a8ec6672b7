//! Everything that touches the kernel: files, sockets, time, threads, wake-ups.
//!
//! One OS thread per core is a **worker** (`worker`): a small single-threaded executor (`task`),
//! timers, and an engine behind the [`Io`] seam. Engines differ in how file operations run: on an
//! io_uring ring (`uring`) or on blocking threads (`threads`). Sockets are plain non-blocking
//! recv/send; their readiness, the ring and wake-ups of other threads are waited for in one place
//! (`reactor`).
//!
//! The turn of a worker:
//!
//! ```text
//!   run ready tasks → turn hooks (plugins take the turn's batch) → until nothing is ready
//!     → Io::turn: submit all queued file operations at once, gather what has completed,
//!       poll for a bounded time, then sleep
//!     → fire timers
//! ```
//!
//! **Invariant**: the clock, files and threads are reached from here alone (`clippy.toml` bans them
//! elsewhere), so that a simulated engine can run everything above.
//!
//! **Invariant**: an operation owns its buffers until it completes (`ops`); dropping the future that
//! waits for it detaches it and cancels nothing.

mod blocking;
mod buf;
mod compute;
mod engine;
mod file;
mod local_socket;
mod lock;
mod net;
mod ops;
mod paths;
mod poller;
mod random;
mod reactor;
mod registered;
mod signal;
#[cfg(test)]
pub(crate) mod sim;
mod sleep;
mod task;
mod threads;
mod ticker;
mod time;
mod timer;
mod uring;
mod worker;
mod workers;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

pub use blocking::{background, in_parallel};
pub use buf::{BUFFER_ALIGN, Buf, BufMut, is_zero};
#[cfg(test)]
pub(crate) use compute::testing as compute_testing;
pub use compute::{Computed, Urgency, aside, compute};
pub use engine::{EngineChoice, EngineKind};
pub use file::{AllocateMode, File, FileStamp, OpenOptions, SeekTarget};
pub use local_socket::{LocalListener, LocalStream};
pub use lock::{ImageLock, LockMode, lock_conflict};
pub use net::{AttachedListener, Listener, Stream, socket_in_use};
pub use ops::{FileOp, OpFuture, OpOutput};
pub use paths::{
    PathFacts, TemporaryDirectory, create_parent_missing, path_facts, read_file, read_head,
    read_text_file, real_path, remove_file, replace_file, sync_directory_of, write_file,
};
pub(crate) use random::random_bytes;
pub use signal::{Signal, Signals, ask_to_end};
pub(crate) use sleep::next_turn;
pub use sleep::{sleep_until, until};
pub use task::LocalFuture;
pub use ticker::Ticker;
pub use time::Time;
pub(crate) use time::{thread_time, wall_clock};
pub use worker::{
    Local, Plug, TurnHook, WorkerHandle, WorkerOptions, current, plug, run_on_thread, spawn,
    spawn_boxed, turn_now,
};
pub(crate) use worker::{clock_now, is_more_to_come, is_on_worker};
pub use workers::Workers;

pub(crate) use buf::trim_pool;

/// What a worker may ask of the platform. One value per worker; it never leaves its thread.
///
/// Implemented by the io_uring engine, the thread engine, and (in tests) the simulator.
pub trait Io {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// The monotonic clock.
    fn now(&self) -> Time;

    /// Starts one file operation. It is submitted with all others of the turn, owns its buffers until
    /// it completes, and runs to its end whatever becomes of the future.
    fn start(&self, file: &Arc<File>, op: FileOp) -> OpFuture;

    /// Submits what is queued, gathers what has completed, and waits as told. Returns how many
    /// completions and readiness events came.
    ///
    /// # Errors
    /// Only when the platform itself is broken (a ring or an epoll that fails): the worker stops.
    fn turn(&self, wait: Wait) -> io::Result<usize>;

    /// Begins to watch a non-blocking socket for readiness.
    ///
    /// # Errors
    /// When the kernel refuses (too many descriptors watched).
    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<SourceKey>;

    /// Ends a [`Io::watch`].
    fn unwatch(&self, fd: BorrowedFd<'_>, key: SourceKey);

    /// Ready when `interest` was signalled since [`Io::clear_ready`]; registers the waker otherwise.
    fn poll_ready(&self, key: SourceKey, interest: Interest, cx: &mut Context<'_>) -> Poll<()>;

    /// Forgets a readiness that a call has just used up.
    fn clear_ready(&self, key: SourceKey, interest: Interest, drained: Drained);
}

/// How sure a caller is that a socket has nothing more for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// A call transferred less than asked: nothing more for now, unless the peer has ended.
    Likely,
    /// A call said `EAGAIN`.
    Surely,
}

/// How long [`Io::turn`] may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something comes or the time is reached.
    Until(Time),
    /// Until something comes.
    Forever,
}

/// A watched socket of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceKey(pub(super) usize);

/// A direction of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes (or a connection, or the end of the stream) can be read.
    Read,
    /// Bytes can be written.
    Write,
}
