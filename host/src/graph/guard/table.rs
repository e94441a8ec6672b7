//! The table: every decision, taken under its locks. Nothing here waits for more than a lock.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use crossbeam::utils::CachePadded;

use super::queue::{Queue, Wanted};
use super::shard::{Guard, Operation, Shard, Watch};
use super::sync::{Mutex, MutexGuard};
use super::{By, FlightKey, OpId, SourceRange, SourceSet, Stale, Want, WatchKey};
use crate::graph::mutation::{Mutation, mutated};
use crate::limits::{GUARDS_MAX, WATCHES_MAX};

/// Who does not wait in the queue is behind all that do.
const LAST: u64 = u64::MAX;

/// The range guards of one host. See the module for the order of its locks.
pub(crate) struct Guards {
    queue: Mutex<Queue>,
    /// One a worker.
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    next_watch: AtomicU64,
}

/// All shards, locked.
struct AllShards<'a> {
    /// Spares hosts of few workers an allocation.
    first: [Option<MutexGuard<'a, Shard>>; SHARDS_INLINE],
    rest: Vec<MutexGuard<'a, Shard>>,
}

const SHARDS_INLINE: usize = 4;

impl AllShards<'_> {
    fn iter(&self) -> impl Iterator<Item = &Shard> {
        self.first.iter().flatten().chain(&self.rest).map(|shard| &**shard)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Shard> {
        self.first.iter_mut().flatten().chain(&mut self.rest).map(|shard| &mut **shard)
    }

    /// That of one worker.
    fn of(&mut self, worker: usize) -> Option<&mut Shard> {
        match self.first.get_mut(worker) {
            Some(shard) => shard.as_deref_mut(),
            None => self.rest.get_mut(worker - SHARDS_INLINE).map(|shard| &mut **shard),
        }
    }

    /// What an operation holds that has been granted.
    fn want_of(&self, op: OpId) -> Option<&Want> {
        let mut operations = self.iter().flat_map(|shard| &shard.operations);
        operations.find(|operation| operation.op == op).map(|operation| &operation.want)
    }

    /// Whether anybody waits in the queue, or is about to.
    fn is_anybody_waiting(&self) -> bool {
        self.iter().any(|shard| shard.waiting > 0)
    }

    /// A new operation of a worker.
    fn new_op(&mut self, worker: usize) -> OpId {
        let begun = self.of(worker).map_or(0, |shard| {
            shard.begun += 1;
            shard.begun
        });
        OpId::of(worker, begun)
    }
}

/// A place in the queue; given back by [`Guards::forget`] unless it was granted.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what waits stops what comes after it"]
pub(crate) struct Ticket(u64);

/// What became of an operation's want.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquire {
    Granted(OpId),
    Queued(Ticket),
}

/// What became of an operation that wants to write at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    /// Granted and issued.
    Issued(OpId),
    /// What it has read is stale: nothing may be written.
    Stale,
    /// It must wait.
    MustWait,
}

/// [`GUARDS_MAX`] or [`WATCHES_MAX`] is reached: an operation fails with `EAGAIN`, a read goes on
/// without provenance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Guards {
    /// A table for a host of so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            queue: Mutex::default(),
            shards: (0..workers).map(|_| CachePadded::default()).collect(),
            next_watch: AtomicU64::new(0),
        }
    }

    /// A change enters `sources` at `range` and stales what it touches, unless a guard stops it: then
    /// it must [`Self::park`]. What enters no source needs no entry here.
    #[inline]
    pub(crate) fn try_enter(
        &self,
        worker: usize,
        sources: &SourceSet,
        range: &Range<u64>,
        by: By<'_>,
    ) -> Option<FlightKey> {
        self.shard(worker).enter(sources, range, by, LAST)
    }

    /// A change ends: completed, whatever its result.
    #[inline]
    pub(crate) fn leave(&self, worker: usize, key: FlightKey) {
        // The shard is unlocked before the queue is locked.
        let left = self.shard(worker).leave(key);
        if let Some((flight, true)) = left {
            self.wake(|what| what.waits_for(&flight.sources, &flight.range));
        }
    }

    /// A change that was stopped takes a place in the queue; it then asks [`Self::try_grant_entry`].
    pub(crate) fn park(&self, worker: usize, sources: SourceSet, range: Range<u64>) -> Ticket {
        let mut queue = self.queue();
        self.shard(worker).waiting += 1;
        let ticket = queue.push(worker, Wanted::Entry { sources, range });
        if queue.has_watched() {
            let wakers = take_watched(&mut queue, &self.all_shards(), ticket);
            drop(queue);
            wakers.into_iter().for_each(Waker::wake);
        }
        Ticket(ticket)
    }

    /// Whether anything waits for what these operations hold; else `waker` is woken when something comes to, until
    /// [`Self::ignore_awaited`].
    pub(crate) fn poll_awaited(&self, ops: &[OpId], waker: &Waker) -> bool {
        if ops.is_empty() {
            return false;
        }
        let mut queue = self.queue();
        let shards = self.all_shards();
        let is_awaited = |op: &OpId| shards.want_of(*op).is_some_and(|it| queue.is_awaited(it));
        let is_awaited = ops.iter().any(is_awaited);
        let replaced: Vec<_> = match is_awaited {
            true => Vec::new(),
            false => ops.iter().filter_map(|op| queue.watch(*op, waker)).collect(),
        };
        drop((shards, queue));
        drop(replaced);
        is_awaited
    }

    /// Nobody is to be woken when something comes to wait for these operations.
    pub(crate) fn ignore_awaited(&self, ops: &[OpId]) {
        let wakers = self.queue().take_watched(|op| ops.contains(&op));
        drop(wakers);
    }

    /// Lets a parked change in; else `waker` is woken when it is worth asking again.
    pub(crate) fn try_grant_entry(
        &self,
        ticket: &Ticket,
        by: By<'_>,
        waker: &Waker,
    ) -> Option<FlightKey> {
        let mut queue = self.queue();
        let waiting = queue.get(ticket.0)?;
        let Wanted::Entry { sources, range } = &waiting.what else { return None };
        let mut shard = self.shard(waiting.worker);
        let Some(key) = shard.enter(sources, range, by, ticket.0) else {
            let replaced = queue.keep_waker(ticket.0, waker);
            drop((shard, queue));
            drop(replaced);
            return None;
        };
        shard.waiting -= 1;
        let granted = queue.remove(ticket.0);
        drop((shard, queue));
        drop(granted);
        Some(key)
    }

    /// Grants an operation all it wants, or queues it for all of it.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn try_acquire(
        &self,
        worker: usize,
        want: Want,
        by: By<'_>,
    ) -> Result<Acquire, Full> {
        let mut queue = self.queue();
        let mut shards = self.all_shards();
        let must_wait = must_wait(Some(&queue), &shards, &want, by)?;
        let op = shards.new_op(worker);
        if !must_wait {
            grant(&mut shards, worker, op, want, None);
            return Ok(Acquire::Granted(op));
        }
        if let Some(shard) = shards.of(worker) {
            shard.waiting += 1;
        }
        let place = want.exclusive.clone();
        let ticket = queue.push(worker, Wanted::Operation { op, want });
        if let Some(place) = place {
            for shard in shards.iter_mut() {
                let place = place.clone();
                shard.guards.push(Guard { op, place, ticket, granted: false, spoiled: false });
            }
        }
        if queue.has_watched() {
            let wakers = take_watched(&mut queue, &shards, ticket);
            drop((shards, queue));
            wakers.into_iter().for_each(Waker::wake);
        }
        Ok(Acquire::Queued(Ticket(ticket)))
    }

    /// [`Self::try_acquire`] and [`Self::issue`] in one, for an operation that has read before:
    /// `is_fresh` is asked while nothing can touch what it guards. What it wants is taken once it is issued.
    ///
    /// # Errors
    /// [`Full`].
    #[inline]
    pub(crate) fn try_issue(
        &self,
        worker: usize,
        want: &mut Want,
        by: By<'_>,
        is_fresh: impl FnOnce() -> bool,
    ) -> Result<AtOnce, Full> {
        let mut shards = self.all_shards();
        if shards.is_anybody_waiting() {
            drop(shards);
            let queue = self.queue();
            return issue(Some(&queue), &mut self.all_shards(), worker, want, by, is_fresh);
        }
        // Who comes to wait now has not counted itself: it looks again, and sees this one.
        issue(None, &mut shards, worker, want, by, is_fresh)
    }

    /// Grants a queued operation what it wants; else `waker` is woken when it is worth asking again.
    pub(crate) fn try_grant(&self, ticket: &Ticket, by: By<'_>, waker: &Waker) -> Option<OpId> {
        let mut queue = self.queue();
        let mut shards = self.all_shards();
        let Wanted::Operation { op, want } = &queue.get(ticket.0)?.what else { return None };
        let op = *op;
        let is_behind = !by.is_nested() && queue.is_behind_another(want, ticket.0);
        if is_behind || is_held(&shards, want, by) {
            let replaced = queue.keep_waker(ticket.0, waker);
            drop((shards, queue));
            drop(replaced);
            return None;
        }
        let waiting = queue.remove(ticket.0)?;
        for guard in shards.iter_mut().filter_map(|shard| shard.guard_of(op)) {
            guard.granted = true;
        }
        let shard = shards.of(waiting.worker)?;
        shard.waiting -= 1;
        if let Wanted::Operation { want, .. } = waiting.what {
            shard.operations.push(Operation { op, want, issued: None });
        }
        // The waker that is left of it goes without the locks.
        drop((shards, queue));
        Some(op)
    }

    /// Takes what waits out of the queue, and wakes what waited behind it.
    pub(crate) fn forget(&self, ticket: Ticket) {
        let mut queue = self.queue();
        let Some(forgotten) = queue.remove(ticket.0) else { return };
        let wakers = match &forgotten.what {
            Wanted::Entry { .. } => {
                self.shard(forgotten.worker).waiting -= 1;
                queue.take_wakers(|what| match what {
                    Wanted::Operation { want, .. } => forgotten.what.conflicts(want),
                    Wanted::Entry { .. } => false,
                })
            }
            Wanted::Operation { op, want } => {
                let mut shards = self.all_shards();
                if let Some(shard) = shards.of(forgotten.worker) {
                    shard.waiting -= 1;
                }
                for shard in shards.iter_mut() {
                    shard.remove_guard(*op);
                }
                drop(shards);
                queue.take_wakers(|what| what.conflicts(want))
            }
        };
        drop(queue);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The operation is about to write all that it wanted to: see [`Self::issue_part`].
    #[cfg(test)]
    #[must_use = "a stale operation must not write"]
    pub(crate) fn issue(&self, op: OpId) -> bool {
        let range = self.all_shards().iter().find_map(|shard| {
            let operation = shard.operations.iter().find(|operation| operation.op == op)?;
            Some(operation.want.range.clone())
        });
        let range = range.unwrap_or(0..0);
        self.issue_part(op, &range)
    }

    /// The operation is about to write `part` of the range that it wanted: nothing else is touched. From
    /// now on only [`Self::release`] ends it. `false`: what it has read may have changed since it was
    /// granted; nothing may be written.
    #[must_use = "a stale operation must not write"]
    pub(crate) fn issue_part(&self, op: OpId, part: &Range<u64>) -> bool {
        let mut shards = self.all_shards();
        if shards.iter().any(|shard| shard.is_spoiled(op)) {
            return false;
        }
        let announced = shards.iter_mut().find_map(|shard| {
            let operation = shard.operations.iter_mut().find(|operation| operation.op == op)?;
            let wanted = &operation.want.range;
            debug_assert!(
                wanted.start <= part.start && part.end <= wanted.end,
                "it announced more"
            );
            operation.issued = Some(part.clone());
            Some(operation.want.shared.clone())
        });
        let Some(sources) = announced else { return false };
        if !sources.is_empty() {
            for shard in shards.iter_mut() {
                shard.touch(&sources, part, Some(op));
            }
        }
        true
    }

    /// The operation's write has succeeded. `false`: its proof is void, because something that it
    /// let pass touched its guard; it then keeps what it holds until [`Self::release`]. Else `intact` runs
    /// before anything can touch it, and it gives back all it holds. `intact` must be short.
    #[must_use = "a void proof must be marked"]
    pub(crate) fn settle(&self, op: OpId, intact: impl FnOnce()) -> bool {
        let shards = self.all_shards();
        if is_spoiled(&shards, op) {
            return false;
        }
        intact();
        self.remove(shards, op);
        true
    }

    /// The operation gives back all it holds; what waited for it is woken.
    pub(crate) fn release(&self, op: OpId) {
        self.remove(self.all_shards(), op);
    }

    fn remove(&self, mut shards: AllShards<'_>, op: OpId) {
        // Who waits has counted itself before it last looked at what this operation held.
        let is_anybody_waiting = shards.is_anybody_waiting();
        for shard in shards.iter_mut() {
            shard.remove_guard(op);
        }
        let shard = shards.of(op.worker());
        let released = shard.and_then(|shard| shard.remove_operation(op, is_anybody_waiting));
        drop(shards);
        if let Some(Operation { want, .. }) = released {
            self.wake(|what| what.is_held_up_by(&want));
        }
    }

    /// Watches a place: from now on every change that touches it stales the watch, and one that is in
    /// flight there has staled it already. To be called before the read is issued.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn watch(&self, place: &SourceRange, stale: Stale) -> Result<WatchKey, Full> {
        let mut shards = self.all_shards();
        if shards.iter().any(|shard| shard.watches.len() >= WATCHES_MAX) {
            return Err(Full);
        }
        for shard in shards.iter().filter(|_| !mutated(Mutation::ForgetsChangesInFlight)) {
            for (_, flight) in &shard.flights {
                if flight.sources.touch(&flight.range, place) {
                    stale.touched(place, &flight.sources, &flight.range);
                }
            }
            // What is granted but not issued touches the watch when it is issued.
            for Operation { op, want, issued } in &shard.operations {
                let Some(range) = issued else { continue };
                if want.shared.touch(range, place) {
                    stale.touched(place, &want.shared, range);
                }
                if want.exempt.touch(range, place) && is_spoiled(&shards, *op) {
                    stale.touched(place, &want.exempt, range);
                }
            }
        }
        let key = WatchKey(self.next_watch.fetch_add(1, Ordering::Relaxed));
        for shard in shards.iter_mut() {
            let (place, stale) = (place.clone(), stale.clone());
            shard.watches.push(Watch { key, place, stale });
        }
        Ok(key)
    }

    /// Ends a watch.
    pub(crate) fn unwatch(&self, key: WatchKey) {
        for index in 0..self.shards.len() {
            let mut shard = self.shard(index);
            let position = shard.watches.iter().position(|watch| watch.key == key);
            let removed = position.map(|position| shard.watches.swap_remove(position));
            drop(shard);
            // A set of granules may be large: it is freed without the lock.
            drop(removed);
        }
    }

    /// Something has touched `sources` at `range` that was no change in flight there, or may have
    /// touched more than was said: a failed proven write, a change of the graph.
    pub(crate) fn stale(&self, sources: &SourceSet, range: &Range<u64>) {
        for index in 0..self.shards.len() {
            self.shard(index).touch(sources, range, None);
        }
    }

    /// Nodes that these show have been altered, and show the same: what has been read is not to be relied on, what
    /// is tracked stays as it is.
    pub(crate) fn forget_read(&self, sources: &SourceSet) {
        for index in 0..self.shards.len() {
            self.shard(index).forget_read(sources);
        }
    }

    fn wake(&self, concerns: impl Fn(&Wanted) -> bool) {
        let wakers = self.queue().take_wakers(concerns);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn shard(&self, worker: usize) -> MutexGuard<'_, Shard> {
        self.shards[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In ascending order. Inlined, so that what it returns need not be moved.
    #[inline(always)]
    fn all_shards(&self) -> AllShards<'_> {
        let mut all = AllShards { first: [const { None }; SHARDS_INLINE], rest: Vec::new() };
        for (place, index) in all.first.iter_mut().zip(0..self.shards.len()) {
            *place = Some(self.shard(index));
        }
        if self.shards.len() > SHARDS_INLINE {
            all.rest = (SHARDS_INLINE..self.shards.len()).map(|index| self.shard(index)).collect();
        }
        all
    }
}

/// See [`Guards::try_issue`]; without the queue if nobody waits in it.
#[inline]
fn issue(
    queue: Option<&Queue>,
    shards: &mut AllShards<'_>,
    worker: usize,
    want: &mut Want,
    by: By<'_>,
    is_fresh: impl FnOnce() -> bool,
) -> Result<AtOnce, Full> {
    if !is_fresh() {
        return Ok(AtOnce::Stale);
    }
    if must_wait(queue, shards, want, by)? {
        return Ok(AtOnce::MustWait);
    }
    let op = shards.new_op(worker);
    if !want.shared.is_empty() {
        for shard in shards.iter_mut() {
            shard.touch(&want.shared, &want.range, Some(op));
        }
    }
    let issued = Some(want.range.clone());
    grant(shards, worker, op, std::mem::take(want), issued);
    Ok(AtOnce::Issued(op))
}

/// Whether an operation must wait for something granted, or for something that asked before it.
fn must_wait(
    queue: Option<&Queue>,
    shards: &AllShards<'_>,
    want: &Want,
    by: By<'_>,
) -> Result<bool, Full> {
    let granted: usize = shards.iter().map(|shard| shard.operations.len()).sum();
    if granted + queue.map_or(0, Queue::operations) >= GUARDS_MAX {
        return Err(Full);
    }
    let is_behind =
        || !by.is_nested() && queue.is_some_and(|queue| queue.is_behind_another(want, LAST));
    Ok(is_held(shards, want, by) || is_behind())
}

/// The tasks to wake because something has come to wait.
fn take_watched(queue: &mut Queue, shards: &AllShards<'_>, ticket: u64) -> Vec<Waker> {
    let Some(waiting) = queue.get(ticket) else { return Vec::new() };
    let what = waiting.what.clone();
    let holds_up = |op| shards.want_of(op).is_some_and(|want| what.is_held_up_by(want));
    queue.take_watched(holds_up)
}

fn grant(
    shards: &mut AllShards<'_>,
    worker: usize,
    op: OpId,
    want: Want,
    issued: Option<Range<u64>>,
) {
    if let Some(place) = &want.exclusive {
        for shard in shards.iter_mut() {
            let place = place.clone();
            shard.guards.push(Guard { op, place, ticket: LAST, granted: true, spoiled: false });
        }
    }
    if let Some(shard) = shards.of(worker) {
        shard.operations.push(Operation { op, want, issued });
    }
}

/// Whether something granted, other than what caused the operation, stands in its way.
fn is_held(shards: &AllShards<'_>, want: &Want, by: By<'_>) -> bool {
    let holds = |Operation { op, want: held, issued }: &Operation| {
        let is_void = || issued.is_some() && is_spoiled(shards, *op);
        let is_in_the_way =
            held.conflicts(want) || (want.is_guarded_from(&held.exempt, &held.range) && is_void());
        is_in_the_way && !by.is_caused_by(*op)
    };
    shards.iter().any(|shard| {
        shard.flights.iter().any(|(_, flight)| want.is_guarded_from(&flight.sources, &flight.range))
            || shard.operations.iter().any(holds)
    })
}

fn is_spoiled(shards: &AllShards<'_>, op: OpId) -> bool {
    shards.iter().any(|shard| shard.is_spoiled(op))
}
