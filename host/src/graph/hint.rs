//! Whether a child has all of a range, as far as it says so.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::edge::EdgeRef;
use crate::error::Result;
use crate::node::{Extent, ExtentKind, NodeFuture};

/// A walk along the extents of a child, up to the first that is not its own. Its answer is a hint: whoever relies
/// on it looks again, under a guard.
pub(crate) struct HasAll<'g> {
    edge: EdgeRef<'g>,
    /// What is not known yet.
    left: Range<u64>,
    status: Option<NodeFuture<'g, Vec<Extent>>>,
}

impl<'g> EdgeRef<'g> {
    /// Whether the child has all of `range`.
    #[inline]
    pub(crate) fn has_all(self, range: Range<u64>) -> HasAll<'g> {
        HasAll { edge: self, left: range, status: None }
    }
}

impl Future for HasAll<'_> {
    type Output = bool;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = self.get_mut();
        while !this.left.is_empty() {
            let (edge, left) = (this.edge, &this.left);
            let look = || edge.hinted_status(left.start, left.end - left.start);
            let found = ready!(this.status.get_or_insert_with(look).as_mut().poll(cx));
            this.status = None;
            let Some(end) = had_until(left.start, found) else { return Poll::Ready(false) };
            this.left.start = end;
        }
        Poll::Ready(true)
    }
}

/// Up to where a child has all bytes from `at` on: at least some; none if it lacks the first, or does not say.
fn had_until(at: u64, found: Result<Vec<Extent>>) -> Option<u64> {
    let mut end = at;
    for extent in found.ok()? {
        if extent.offset > end || extent.kind == ExtentKind::Unallocated {
            return None;
        }
        end = end.max(extent.offset.saturating_add(extent.len));
    }
    (end > at).then_some(end)
}
