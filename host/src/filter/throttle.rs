//! `throttle`: limits requests and bytes a second by delaying requests; fails none.
//!
//! What starts when is the plugin's own decision (`blockloom-plugin-throttle`): what differs is who asks it.
//! Of the requests that wait in a group one keeps the time for all, on its worker. Limits can change, and a node can go
//! to another group, while requests wait.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use arc_swap::{ArcSwap, Guard};
use blockloom_abi::Kind;
use blockloom_plugin_throttle::{Next, Throttle, ThrottleConfig};

use super::native::{Change, ChangeKind, FILE, Filter};
use crate::error::Result;
use crate::graph::Cx;
use crate::io::{BufMut, Time, sleep_until, turn_now};

/// Limits shared by the nodes that are made from clones of it.
#[derive(Clone)]
pub struct ThrottleGroup {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    throttle: Throttle<u64>,
    members: u16,
    /// Numbers of members that have gone.
    free: Vec<u16>,
    waiters: BTreeMap<u64, Waiter>,
    next_key: u64,
    /// Who keeps the time, and until when.
    keeper: Option<(u64, Time)>,
}

struct Waiter {
    member: u16,
    waker: Waker,
    is_started: bool,
}

impl ThrottleGroup {
    /// A group with its own limits.
    pub fn new(config: &ThrottleConfig) -> Self {
        let shared = Shared {
            throttle: Throttle::new(config),
            members: 0,
            free: Vec::new(),
            waiters: BTreeMap::new(),
            next_key: 0,
            keeper: None,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has other limits from now on. They begin anew: what was admitted under low ones does not make higher ones wait.
    pub fn set_limits(&self, config: &ThrottleConfig) {
        let mut shared = self.lock();
        shared.throttle.reconfigure(&ThrottleConfig::default());
        shared.throttle.reconfigure(config);
        // Whoever keeps the time does so by the former limits.
        shared.waiters.values().for_each(|waiter| waiter.waker.wake_by_ref());
    }

    /// Starts all requests of a member that wait.
    fn let_go(&self, member: u16) {
        let mut shared = self.lock();
        let Shared { throttle, waiters, .. } = &mut *shared;
        let of_member = waiters.iter_mut().filter(|(_, waiter)| waiter.member == member);
        for (key, waiter) in of_member.filter(|(_, waiter)| !waiter.is_started) {
            throttle.queue.forget(member, *key);
            waiter.is_started = true;
            waiter.waker.wake_by_ref();
        }
    }

    /// `None` if it may start at once.
    #[inline]
    fn offer(&self, member: u16, kind: Kind, len: u64, now: Time) -> Option<Held> {
        let mut shared = self.lock();
        let key = shared.next_key;
        if shared.throttle.offer(member, kind, len, key, now.as_nanos()) {
            return None;
        }
        shared.next_key += 1;
        let waker = Waker::noop().clone();
        shared.waiters.insert(key, Waiter { member, waker, is_started: false });
        drop(shared);
        Some(Held { group: self.clone(), member, key })
    }
}

impl Shared {
    /// Starts what may start; returns when the next may.
    fn start(&mut self, now: Time) -> Option<Time> {
        loop {
            match self.throttle.queue.next(now.as_nanos()) {
                Next::Start(key) => {
                    if let Some(waiter) = self.waiters.get_mut(&key) {
                        waiter.is_started = true;
                        waiter.waker.wake_by_ref();
                    }
                }
                Next::At(nanos) => return Some(Time::from_nanos(nanos)),
                Next::Idle => return None,
            }
        }
    }

    fn wake(&self, key: u64) {
        self.waiters.get(&key).iter().for_each(|it| it.waker.wake_by_ref());
    }
}

/// A request that waits.
struct Held {
    group: ThrottleGroup,
    member: u16,
    key: u64,
}

impl Held {
    /// Until it starts; with a time, this one has to look again then, for all.
    fn poll(&self, task: &Context<'_>, now: Time) -> Poll<Option<Time>> {
        let mut shared = self.group.lock();
        let at = shared.start(now);
        if let Some(waiter) = shared.waiters.get_mut(&self.key) {
            if waiter.is_started {
                return Poll::Ready(None);
            }
            waiter.waker.clone_from(task.waker());
        }
        let Some(at) = at else { return Poll::Pending };
        match shared.keeper {
            Some((keeper, until)) if keeper != self.key => {
                if at < until {
                    shared.wake(keeper);
                }
                Poll::Pending
            }
            _ => {
                shared.keeper = Some((self.key, at));
                Poll::Ready(Some(at))
            }
        }
    }

    async fn started(&self, cx: Cx<'_>) {
        let mut timer = None;
        poll_fn(|task| {
            while !cx.poll_drained(task)
                && let Some(at) = std::task::ready!(self.poll(task, turn_now()))
            {
                let timer = timer.insert(Box::pin(sleep_until(at)));
                std::task::ready!(timer.as_mut().poll(task));
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shared = self.group.lock();
        if shared.waiters.remove(&self.key).is_some_and(|waiter| !waiter.is_started) {
            shared.throttle.queue.forget(self.member, self.key);
        }
        // Where nobody keeps the time, this may be the one that was woken to do it.
        if shared.keeper.is_none_or(|(keeper, _)| keeper == self.key) {
            shared.keeper = None;
            let next = shared.waiters.values().find(|waiter| !waiter.is_started);
            next.iter().for_each(|waiter| waiter.waker.wake_by_ref());
        }
    }
}

/// A node's place among the members of a group.
struct Seat {
    group: ThrottleGroup,
    member: u16,
}

impl Seat {
    fn in_group(group: ThrottleGroup) -> Self {
        let mut shared = group.lock();
        let member = shared.free.pop().unwrap_or_else(|| {
            let member = shared.members;
            shared.members = member.saturating_add(1);
            member
        });
        drop(shared);
        Self { group, member }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.lock().free.push(self.member);
    }
}

/// The native `throttle` filter; its child is the first edge.
pub struct ThrottleNode {
    seat: ArcSwap<Seat>,
}

impl ThrottleNode {
    /// A node of `group`.
    pub fn new(group: ThrottleGroup) -> Self {
        Self { seat: ArcSwap::from_pointee(Seat::in_group(group)) }
    }

    /// It is of another group from now on. Its requests that wait in the one that it leaves, start.
    pub fn join(&self, group: ThrottleGroup) {
        let left = self.seat.swap(Arc::new(Seat::in_group(group)));
        left.group.let_go(left.member);
    }

    async fn wait(&self, cx: Cx<'_>, kind: Kind, len: u64) {
        let seat = self.seat.load();
        let Some(held) = seat.group.offer(seat.member, kind, len, turn_now()) else { return };
        // Its number in the group is its own as long as it waits.
        let seat = Guard::into_inner(seat);
        // Whoever has the node leave that group finds it there, or it sees that here.
        match Arc::ptr_eq(&seat, &self.seat.load()) {
            true => Box::pin(held.started(cx)).await,
            false => drop(held),
        }
        drop(seat);
    }
}

impl Filter for ThrottleNode {
    fn driver(&self) -> &'static str {
        "throttle"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        self.wait(cx, Kind::Read, buf.len() as u64).await;
        cx.child(FILE)?.read(offset, buf).await
    }

    async fn change(
        &self,
        cx: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let kind = match change.kind {
            ChangeKind::Write => Kind::Write,
            ChangeKind::Zero => Kind::Zero,
            ChangeKind::Discard => Kind::Discard,
            // It is no guest's request.
            ChangeKind::SetLen => return pass().await,
        };
        self.wait(cx, kind, change.len_bytes()).await;
        pass().await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    /// Requests of a scene that were woken and not polled since.
    #[derive(Default)]
    struct Woken(Mutex<BTreeSet<usize>>);

    struct WakerOf(Arc<Woken>, usize);

    impl Wake for WakerOf {
        fn wake(self: Arc<Self>) {
            self.0.0.lock().expect("no test panics in here").insert(self.1);
        }
    }

    proptest! {
        /// In whatever order the requests of two workers are polled, and whichever are dropped: as long as one
        /// waits, somebody has been woken or keeps the time.
        #[test]
        fn the_time_is_always_kept(choices in prop::collection::vec(any::<u16>(), 1..200)) {
            let config = ThrottleConfig::from_json(r#"{"iops": 1000, "burst": "0s"}"#).expect("valid");
            let group = ThrottleGroup::new(&config);
            let woken = Arc::new(Woken::default());
            let mut now = Time::from_nanos(1_000_000_000);
            // What waits, and until when it sleeps.
            let mut held: Vec<Option<(Held, Option<Time>)>> = Vec::new();
            for choice in choices {
                let which = usize::from(choice >> 3);
                let live: Vec<usize> = (0..held.len()).filter(|&it| held[it].is_some()).collect();
                match choice & 7 {
                    0..=2 => {
                        let new = group.offer(choice >> 15, Kind::Read, 512, now);
                        if let Some(new) = new {
                            woken.0.lock().expect("woken").insert(held.len());
                            held.push(Some((new, None)));
                        }
                    }
                    3 if !live.is_empty() => held[live[which % live.len()]] = None,
                    5 if which % 4 == 0 => {
                        let json = format!(r#"{{"iops": {}, "burst": "0s"}}"#, 1 + which);
                        group.set_limits(&ThrottleConfig::from_json(&json).expect("valid"));
                    }
                    5 if which % 4 == 1 => group.let_go(choice >> 15),
                    4 => now = now + std::time::Duration::from_micros(u64::from(choice)),
                    _ => {
                        let due = |it: &usize| held[*it].as_ref().is_some_and(|(_, at)| at.is_some_and(|at| at <= now));
                        let ready: BTreeSet<usize> = woken.0.lock().expect("woken").iter().copied()
                            .chain(live.iter().copied().filter(due)).collect();
                        let Some(&next) = ready.iter().nth(which % ready.len().max(1)) else { continue };
                        woken.0.lock().expect("woken").remove(&next);
                        let waker = Waker::from(Arc::new(WakerOf(Arc::clone(&woken), next)));
                        let Some((request, sleeps)) = &mut held[next] else { continue };
                        match request.poll(&Context::from_waker(&waker), now) {
                            Poll::Ready(None) => held[next] = None,
                            Poll::Ready(Some(at)) => *sleeps = Some(at),
                            Poll::Pending => *sleeps = sleeps.filter(|at| *at > now),
                        }
                    }
                }
                let woken = woken.0.lock().expect("woken");
                let waits = |(index, it): (usize, &Option<(Held, Option<Time>)>)| {
                    it.as_ref().map(|(_, sleeps)| sleeps.is_some() || woken.contains(&index))
                };
                let attended: Vec<bool> = held.iter().enumerate().filter_map(waits).collect();
                prop_assert!(attended.is_empty() || attended.contains(&true), "nobody looks again");
            }
        }
    }
}
