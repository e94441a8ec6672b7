//! Changes that run to their end.
//!
//! A change that has been issued cannot be taken back: the kernel still writes when the future that
//! asked has gone. Its marks, its place behind the gate and its guards must last as long, so they belong
//! to a future that is never dropped half-way: whoever drops the handle leaves the rest to the worker.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::edge::EdgeRef;
use super::mutation::{Mutation, mutated};
use super::snapshot::Cx;
use crate::error::Result;
use crate::io::{LocalFuture, is_on_worker, spawn_boxed};

/// A change. Once it has been polled, it is finished whatever becomes of this.
#[must_use = "a change that is not awaited does not begin"]
pub(crate) struct ToTheEnd<T: 'static> {
    rest: Option<Pin<Box<dyn Future<Output = Result<T>>>>>,
    begun: bool,
}

impl<T: 'static> ToTheEnd<T> {
    pub(super) fn new(change: impl Future<Output = Result<T>> + 'static) -> Self {
        Self { rest: Some(Box::pin(change)), begun: false }
    }
}

impl<T: 'static> Future for ToTheEnd<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = &mut *self;
        this.begun = true;
        let Some(rest) = &mut this.rest else { return Poll::Pending };
        let result = std::task::ready!(rest.as_mut().poll(cx));
        this.rest = None;
        Poll::Ready(result)
    }
}

impl<T: 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        // A worker that has ended has dropped its tasks: the host is gone then.
        if let Some(rest) = self.rest.take()
            && self.begun
            && !mutated(Mutation::GuardsEndWithFutures)
            && is_on_worker()
        {
            let rest: LocalFuture = Box::pin(async move {
                if let Err(error) = rest.await {
                    tracing::warn!("what nobody waited for any more failed: {error}");
                }
            });
            spawn_boxed(rest);
        }
    }
}

impl Cx<'_> {
    /// Asks child number `index` for something that is finished once it has been begun, whatever becomes of this;
    /// a drain waits for it.
    pub(crate) fn to_the_end<T: 'static>(
        self,
        index: usize,
        ask: impl AsyncFnOnce(EdgeRef<'_>) -> Result<T> + 'static,
    ) -> ToTheEnd<T> {
        let (request, node) = (self.request.cause(), self.node);
        ToTheEnd::new(async move {
            let cx = Cx { graph: request.graph(), request: &request, node };
            ask(cx.child(index)?).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::{DriveDecl, GraphCell, GraphDecl, LocalDrive, LocalGraph, NodeDecl};
    use super::*;
    use crate::io::{Buf, EngineChoice, EngineKind, run_on_thread, turn_now};
    use crate::node::{NullNode, WriteFlags};

    #[test]
    fn a_drain_waits_for_a_write_whose_future_was_dropped() {
        const LATENCY: Duration = Duration::from_millis(20);
        let waited = run_on_thread(EngineChoice::Exactly(EngineKind::Threads), async {
            let null = NullNode::new(1 << 20, false, LATENCY);
            let node = NodeDecl { name: "null".into(), driver: Arc::new(null), children: vec![] };
            let root = Some("null".into());
            let drive = DriveDecl { id: "d".into(), root, writable: true, only_shows: false };
            let decl = GraphDecl { nodes: vec![node], drives: vec![drive], bitmaps: vec![] };
            let cell = Arc::new(GraphCell::new(decl.build().expect("a graph")));
            let local = LocalGraph::of(&cell);
            let drive = LocalDrive::open(&local, "d").expect("a drive");
            let start = turn_now();
            {
                let mut write = Box::pin(drive.write(0, Buf::zeros(4096), WriteFlags::NONE));
                let polled = std::future::poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await;
                assert!(polled.is_pending());
            }
            assert!(cell.settle().await);
            turn_now().since(start)
        });
        assert!(waited.expect("a worker") >= LATENCY);
    }
}
