//! What tasks wait for beside their requests: times, and each other.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker as TaskWaker};

use super::time::Time;
use super::timer::TimerKey;
use super::worker::{Local, expect_current};

/// Waits until the worker's clock reaches `at`.
pub async fn sleep_until(at: Time) {
    let mut sleep = Sleep { local: expect_current(), at, key: None };
    poll_fn(|cx| sleep.poll(cx.waker())).await;
}

/// What `future` gave before the worker's clock reached `at`; else `None`, and the future is dropped.
pub async fn until<T>(at: Time, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut timer) = (pin!(future), pin!(sleep_until(at)));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Lets others have their turn.
pub(crate) async fn next_turn() {
    let mut is_over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

struct Sleep {
    local: Rc<Local>,
    at: Time,
    key: Option<TimerKey>,
}

impl Sleep {
    fn poll(&mut self, waker: &TaskWaker) -> Poll<()> {
        if self.local.now.get() >= self.at {
            return Poll::Ready(());
        }
        match self.key {
            Some(key) => self.local.timers.update(key, waker),
            None => self.key = Some(self.local.timers.insert(self.at, waker.clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.local.timers.remove(key);
        }
    }
}
