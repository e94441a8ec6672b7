//! The short way of reads and writes.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use blockloom_abi::ChildIndex;

use super::super::local::{Arrival, Verdict, Waiting};
use super::super::rules::KeptRules;
use super::super::table::Answer;
use super::PluginNode;
use super::judging::{Offered, Shape, Stand, Without};
use crate::error::Result;
use crate::graph::{Cx, EdgeCall, EdgeRef, HasAll};
use crate::node::NodeFuture;

/// A read or write on its way through the plugin. Nearly all are forwarded as they are: those need no
/// more than this, which is small, as many of them wait in one turn.
pub(super) struct Passing<'a, T, C> {
    node: &'a PluginNode,
    cx: Cx<'a>,
    shape: Shape,
    /// Runs it on the child; taken when it is.
    call: Option<C>,
    /// What comes of it without the child.
    without: Without<T>,
    stage: Stage<'a, T>,
    /// By which it passed, until it has ended.
    rules: Option<Rc<KeptRules>>,
}

enum Stage<'a, T> {
    New,
    /// By its rules the guest is asked unless the child has all of the range.
    Looking(HasAll<'a>, Rc<KeptRules>),
    Judged(Waiting),
    Child(EdgeCall<'a, T>),
    Other(NodeFuture<'a, T>),
    Over,
}

impl<'a, T, C> Passing<'a, T, C>
where
    T: Unpin + 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    pub(super) fn boxed(
        (node, cx): (&'a PluginNode, Cx<'a>),
        shape: Shape,
        without: Without<T>,
        call: C,
    ) -> NodeFuture<'a, T> {
        let (call, stage) = (Some(call), Stage::New);
        Box::pin(Self { node, cx, shape, call, without, stage, rules: None })
    }

    /// Begins the next stage; an error ends the request.
    #[inline]
    fn forward(&mut self) -> Result<()> {
        let call = self.call.take().ok_or_else(|| self.node.fault_error())?;
        self.stage = Stage::Child(call(self.cx.child(self.node.file)?));
        Ok(())
    }

    #[inline]
    fn look(&mut self, child: ChildIndex, rules: Rc<KeptRules>) -> Result<()> {
        match self.node.looking(self.cx, &self.shape, child)? {
            Some(looking) => {
                self.stage = Stage::Looking(looking, rules);
                Ok(())
            }
            None => self.looked(false, rules),
        }
    }

    #[inline]
    fn looked(&mut self, has_all: bool, rules: Rc<KeptRules>) -> Result<()> {
        match self.node.looked(&self.shape, None, has_all, rules) {
            Ok(waiting) => {
                self.stage = Stage::Judged(waiting);
                Ok(())
            }
            Err(rules) => {
                self.rules = Some(rules);
                self.forward()
            }
        }
    }

    #[cold]
    fn other(&mut self, verdict: Verdict) -> Result<()> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let (Stage::Judged(waiting), Some(call)) = (stage, self.call.take()) else {
            return Err(self.node.fault_error());
        };
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        let without = std::mem::replace(&mut self.without, Without::Nothing);
        self.stage = Stage::Other(Box::pin(async move {
            // The edge is the one that `obey` would lend.
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, (shape, None), Stand::Judged(waiting, verdict), without, call).await
        }));
        Ok(())
    }

    #[cold]
    fn down(&mut self, arrival: Arrival) -> Result<()> {
        let call = self.call.take().ok_or_else(|| self.node.fault_error())?;
        let (node, cx, shape) = (self.node, self.cx, self.shape);
        let without = std::mem::replace(&mut self.without, Without::Nothing);
        self.stage = Stage::Other(Box::pin(async move {
            let call = async move |_: EdgeRef<'_>| call(cx.child(node.file)?).await;
            node.obey(cx, (shape, None), Stand::Down(arrival), without, call).await
        }));
        Ok(())
    }
}

impl<'a, T, C> Future for Passing<'a, T, C>
where
    T: Unpin + 'a,
    C: FnOnce(EdgeRef<'a>) -> EdgeCall<'a, T> + Unpin + 'a,
{
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let Stage::New = this.stage {
            match this.node.offer(&this.shape, None) {
                Offered::Waiting(waiting) => this.stage = Stage::Judged(waiting),
                Offered::Forward => this.forward()?,
                Offered::Pass(rules) => {
                    this.rules = Some(rules);
                    this.forward()?;
                }
                Offered::Look(child, rules) => this.look(child, rules)?,
                Offered::Down(arrival) => this.down(arrival)?,
                Offered::Fail(error) => return Poll::Ready(Err(error)),
            }
        }
        if let Stage::Looking(looking, _) = &mut this.stage {
            let has_all = std::task::ready!(Pin::new(looking).poll(task));
            if let Stage::Looking(_, rules) = std::mem::replace(&mut this.stage, Stage::Over) {
                this.looked(has_all, rules)?;
            }
        }
        if let Stage::Judged(waiting) = &this.stage {
            match std::task::ready!(waiting.poll(task.waker())) {
                Verdict::Answer(Answer::Forward { known: None, .. }) => {
                    this.rules = waiting.take_rules();
                    this.forward()?;
                }
                verdict => this.other(verdict)?,
            }
        }
        match &mut this.stage {
            Stage::Child(call) => Pin::new(call).poll(task),
            Stage::Other(future) => future.as_mut().poll(task),
            _ => Poll::Ready(Err(this.node.fault_error())),
        }
    }
}
