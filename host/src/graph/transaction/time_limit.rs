//! The time that a change has.

use std::future::Future;
use std::time::Duration;

use crate::io::{Time, turn_now, until};

/// By when all has to be over that a change waits for and can call off: one limit for all of it.
#[derive(Clone, Copy)]
pub(in crate::graph) struct TimeLimit {
    pub(super) within: Duration,
    end: Time,
}

impl TimeLimit {
    /// From now on.
    pub(in crate::graph) fn of(within: Duration) -> Self {
        Self { within, end: turn_now() + within }
    }

    /// The same, or so much from now on if that is less.
    pub(super) fn at_most(self, within: Duration) -> Self {
        Self { end: self.end.min(turn_now() + within), ..self }
    }

    /// As much from now on.
    pub(super) fn again(self) -> Self {
        Self::of(self.within)
    }

    pub(super) fn is_over(self) -> bool {
        turn_now() >= self.end
    }

    /// What comes of something by then. It is not begun if that is over.
    pub(super) async fn keep<T>(self, future: impl Future<Output = T>) -> Option<T> {
        if self.is_over() {
            return None;
        }
        until(self.end, future).await
    }

    /// The same for what is under way already, and may have ended.
    pub(super) async fn keep_under_way<T>(self, future: impl Future<Output = T>) -> Option<T> {
        until(self.end, future).await
    }
}
