//! Every bound of the host in one place, with its arithmetic.

use std::time::Duration;

/// Workers of one host. More than cores is never useful; 64 keeps per-worker tables small.
pub const WORKERS_MAX: usize = 64;

/// Longest single read or write, bytes: NBD's usual ceiling, which nbdkit allows too.
pub const TRANSFER_MAX_BYTES: u32 = 64 << 20;

/// Messages waiting at one worker from other threads. Each is one embedder call or one wake-up.
pub const WORKER_INBOX_MAX: usize = 16 * 1024;

/// Tasks polled in one turn before sockets, files and timers are looked at again.
pub const TASKS_PER_TURN_MAX: usize = 4096;

/// Longest time a worker polls before it sleeps, unless the graph file says otherwise.
pub const POLL_DEFAULT: Duration = Duration::from_micros(50);

/// Threads that run blocking calls for all workers (the thread engine, and calls without a ring opcode).
pub const BLOCKING_THREADS_MAX: usize = 16;

/// Operations waiting for a blocking thread. Above this an operation fails with `EAGAIN`.
pub const BLOCKING_QUEUE_MAX: usize = 64 * 1024;

/// Threads that calculate for all workers: more than cores is never useful. There is one more for what a guest waits
/// for.
pub const COMPUTE_THREADS_MAX: usize = 64;

/// Files that graph changes are opening, each on a thread of its own. Above this such a change fails with `EAGAIN`.
pub const ASIDE_MAX: usize = 16;

/// Calculations of one urgency that wait for a thread. Above this they are done by who asks.
pub const COMPUTE_QUEUE_MAX: usize = 1024;

/// Bytes that a conversion of an image moves at once: a whole number of the largest clusters.
pub const CONVERT_PIECE_BYTES: u64 = 2 << 20;

/// Such pieces that are in work. Each is in memory twice at most, read and compressed: 64 MiB.
pub const CONVERT_PIECES_MAX: u16 = 16;

/// Entries of a worker's submission ring; operations beyond it wait in the worker, not in the kernel.
pub const RING_ENTRIES: u32 = 1024;

/// Buffers that a ring knows by number, at most: each has from 128 KiB to [`POOL_CLASS_MAX_BYTES`], all of
/// them 128 MiB at most.
pub const RING_BUFFERS_MAX: u16 = 32;

/// Free buffers kept by one thread, bytes: 16 requests of 1 MiB, or 4,096 of 4 KiB.
pub const POOL_BYTES_MAX: usize = 16 << 20;

/// Largest buffer that is kept for re-use, bytes.
pub const POOL_CLASS_MAX_BYTES: usize = 4 << 20;

/// Requests of one NBD connection that are in progress; more stay in the socket.
pub const NBD_REQUESTS_MAX: usize = 256;

/// Bytes of one NBD connection's requests in progress. One largest request always fits; with
/// [`NBD_CONNECTIONS_MAX`] connections this bounds what all clients together can hold.
pub const NBD_BYTES_MAX: usize = TRANSFER_MAX_BYTES as usize;

/// NBD connections of one host; more are closed at once.
pub const NBD_CONNECTIONS_MAX: usize = 1024;

/// NBD exports of one host at once: four times what one file may have.
pub const NBD_EXPORTS_MAX: usize = 4096;

/// NBD listeners of one host at once: each has a descriptor and a task.
pub const NBD_LISTENERS_MAX: usize = 1024;

/// Receive buffer of one NBD connection, bytes: a burst of 32 writes of 4 KiB with headers fits twice.
pub const NBD_RECEIVE_BYTES: usize = 256 << 10;

/// Payloads of at least this many bytes are received straight into their final buffer.
pub const NBD_DIRECT_RECEIVE_BYTES: usize = 32 << 10;

/// Time an NBD client has for the handshake.
pub const NBD_HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Extents in one answer of `block_status`; a caller asks again from where the answer ends.
pub const EXTENTS_MAX: usize = 1024;

/// Largest unit in which a driver fills what a change touches, bytes: 16 of the largest qcow2 clusters.
pub const FILL_MAX_BYTES: u32 = 32 << 20;

/// Largest unit that a driver compresses by itself, bytes: the largest qcow2 cluster.
pub const COMPRESSED_MAX_BYTES: u32 = 2 << 20;

/// Where a view that grows ends at the latest, bytes: no sum of an offset and a transfer overflows.
pub const GROWN_MAX_BYTES: u64 = 1 << 62;

/// Chunk in which an edge emulates zeroing by writing, bytes.
pub const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// Nodes along any path of a graph. A request's futures nest this deep: a chain of images has room, with
/// filters on it.
pub const GRAPH_DEPTH_MAX: usize = 256;

/// Images that one image leads to as its backing, each by the header of the one above. Each is looked into
/// at the start.
pub const BACKING_CHAIN_MAX: usize = 200;
// The image on top, and the file of the last one.
const _: () = assert!(BACKING_CHAIN_MAX + 2 <= GRAPH_DEPTH_MAX);

/// Time that a drain may take before what waits for it fails and says so.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);

/// Time that a node has to close before whoever removes it, or ends the host, goes on without.
pub const CLOSE_TIME: Duration = Duration::from_secs(30);

/// A file time that is no older than this may be that of a change still to come: kernels count file times by
/// ticks of up to 10 ms.
pub const FILE_TIME_TICK: Duration = Duration::from_millis(20);

/// Operations that hold or await a range guard. Each has an entry in every worker's table, which
/// changes scan; above this a copy fails with `EAGAIN`.
pub const GUARDS_MAX: usize = 4096;

/// Ranges watched for changes since they were read. Each has an entry in every worker's table, which
/// changes scan; above this what is read carries no provenance.
pub const WATCHES_MAX: usize = 4096;

/// Those that one acting node may keep: a sixteenth of all, so that no node takes them from the others.
pub const WATCHES_OF_NODE_MAX: usize = WATCHES_MAX / 16;

/// Time that a copy waits for the guard of its range before it fails, with nothing written.
pub const GUARD_WAIT: Duration = Duration::from_secs(30);

/// Bytes that a copy moves under one guard; a backup that compresses, a whole unit ([`COMPRESSED_MAX_BYTES`]) at least.
pub const COPY_MAX_BYTES: usize = 1 << 20;

/// Times that a copy is done again because something that it caused touched what it had read; then it is
/// stale. Each time that something has gone wrong on the way to its target.
pub const COPY_TRIES: u32 = 4;

/// Bytes that are zeroed under one guard, because they show zeros already: more than a copy moves, as
/// most drivers keep zeros without data.
pub const ZERO_PROVEN_MAX_BYTES: u64 = 16 << 20;

/// Events that wait for one subscriber; the oldest are lost first, and counted. A few hundred bytes each.
pub const EVENTS_MAX: usize = 1024;

/// Clients of a control socket. Each has two threads; the next one is told so and sent away.
pub const CONTROL_CLIENTS_MAX: usize = 16;

/// Bytes of one command of a control client. QEMU takes 64 MiB; a command with 10,000 bitmaps has less than 1.
pub const CONTROL_COMMAND_BYTES_MAX: usize = 1 << 20;

/// Tokens of one command; each is some tens of bytes in memory: 8 MiB.
pub const CONTROL_TOKENS_MAX: usize = 128 << 10;

/// Brackets within each other in one command: twice the depth of a graph, and within a thread's stack. QEMU
/// takes 1024.
pub const CONTROL_NESTING_MAX: usize = 2 * GRAPH_DEPTH_MAX;

/// Bytes that wait for a control client to take them. Commands of one that is slower wait; events do not, and
/// end the connection. One answer may be longer.
pub const CONTROL_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Time for which a control client may take nothing that is there for it before its connection ends.
pub const CONTROL_STALL_TIME: Duration = Duration::from_secs(30);

/// Time that control clients have to take their last answers when the host ends.
pub const CONTROL_GRACE: Duration = Duration::from_secs(2);

/// Jobs of one host, those among them that have ended and not been dismissed.
pub const JOBS_MAX: usize = 256;

/// Bytes that one job has in flight, in memory: with [`JOBS_MAX`] jobs 4 GiB, if all of them are as fast as that.
pub const JOB_BYTES_MAX: u64 = 16 << 20;

/// How far a file that is written past the page cache is made longer ahead of what is written, bytes: sparse, and a
/// multiple of every alignment. Less in simulations, whose files are in memory.
pub const FILE_AHEAD_BYTES: u64 = if cfg!(test) { 128 << 10 } else { 64 << 20 };

/// Pieces that one job has in flight. Each needs a guard and a watch: sixteen such jobs leave three quarters of both.
pub const JOB_PIECES_MAX: usize = 64;

/// How often in a row, without anything done meanwhile, a job tries again what may pass by itself.
pub const JOB_RETRIES_MAX: usize = 16;

/// How long a job waits then; and at first when it is to go on after an error: the time doubles with each one in a row,
pub const JOB_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// up to this.
pub const JOB_RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a job tries to let its end take effect; and to take its node out of the graph before it ends without.
pub const JOB_END_TRIES: usize = 5;

/// How often a job sees anew what its end changes, because the graph has come to stand otherwise meanwhile: more often
/// than that all other jobs end, each with changes of its own.
pub const JOB_END_OUTDATED_MAX: usize = 4 * JOBS_MAX;

/// Time between two tries to take the node of a job that has ended out of the graph, at most: it doubles each time.
pub const JOB_LEFT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long such a try may hold up who uses the node.
pub const JOB_LEFT_TIME: Duration = Duration::from_secs(2);

/// How long a job that has failed waits for what it has in flight, and for that to be durable.
pub const JOB_SETTLE_TIME: Duration = Duration::from_secs(5);

/// Time between two such tries.
pub const JOB_END_PAUSE: Duration = Duration::from_millis(200);

/// Bytes that a job leaves to the transaction at its end, in which nothing else moves: a few milliseconds.
pub const JOB_LEFT_MAX_BYTES: u64 = 4 << 20;

/// How often a job that is ready looks whether there is something to copy.
pub const JOB_LOOK_PAUSE: Duration = Duration::from_millis(20);
