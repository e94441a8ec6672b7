//! `throttle`: limits requests and bytes a second by delaying requests; fails none.
//!
//! What starts when is the plugin's own decision (`blockloom-plugin-throttle`): what differs is who asks it.
//! Of the requests that wait in a group one keeps the time for all, on its worker.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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
    waiters: BTreeMap<u64, Waiter>,
    next_key: u64,
    /// Who keeps the time, and until when.
    keeper: Option<(u64, Time)>,
}

struct Waiter {
    waker: Waker,
    is_started: bool,
}

impl ThrottleGroup {
    /// A group with its own limits.
    pub fn new(config: &ThrottleConfig) -> Self {
        let shared = Shared {
            throttle: Throttle::new(config),
            members: 0,
            waiters: BTreeMap::new(),
            next_key: 0,
            keeper: None,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if it may start at once.
    #[inline]
    fn offer(&self, member: u16, kind: Kind, len: u64) -> Option<Held<'_>> {
        let mut shared = self.lock();
        let key = shared.next_key;
        if shared.throttle.offer(member, kind, len, key, turn_now().as_nanos()) {
            return None;
        }
        shared.next_key += 1;
        let waker = Waker::noop().clone();
        shared.waiters.insert(key, Waiter { waker, is_started: false });
        Some(Held { group: self, member, key })
    }
}

impl Shared {
    /// Starts what may start; returns when the next may.
    fn start(&mut self) -> Option<Time> {
        loop {
            match self.throttle.queue.next(turn_now().as_nanos()) {
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
struct Held<'a> {
    group: &'a ThrottleGroup,
    member: u16,
    key: u64,
}

impl Held<'_> {
    /// Until it starts; with a time, this one has to look again then, for all.
    fn poll(&self, task: &Context<'_>) -> Poll<Option<Time>> {
        let mut shared = self.group.lock();
        let at = shared.start();
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
                && let Some(at) = std::task::ready!(self.poll(task))
            {
                let timer = timer.insert(Box::pin(sleep_until(at)));
                std::task::ready!(timer.as_mut().poll(task));
            }
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut shared = self.group.lock();
        if shared.waiters.remove(&self.key).is_some_and(|waiter| !waiter.is_started) {
            shared.throttle.queue.forget(self.member, self.key);
        }
        if shared.keeper.is_some_and(|(keeper, _)| keeper == self.key) {
            shared.keeper = None;
            let next = shared.waiters.values().find(|waiter| !waiter.is_started);
            next.iter().for_each(|waiter| waiter.waker.wake_by_ref());
        }
    }
}

/// The native `throttle` filter; its child is the first edge.
pub struct ThrottleNode {
    group: ThrottleGroup,
    member: u16,
}

impl ThrottleNode {
    /// A node of `group`.
    pub fn new(group: ThrottleGroup) -> Self {
        let mut shared = group.lock();
        let member = shared.members;
        shared.members = member.saturating_add(1);
        drop(shared);
        Self { group, member }
    }

    async fn wait(&self, cx: Cx<'_>, kind: Kind, len: u64) {
        if let Some(held) = self.group.offer(self.member, kind, len) {
            Box::pin(held.started(cx)).await;
        }
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
