//! `stream`: an overlay gets what it shows of what lies below it, down to a base, and then stands on that.
//!
//! All that is written is what the overlay shows already, by a claim that the host proves: no bitmap of it, nor
//! of anything above, is marked, through whatever filters it is used. At the end one transaction leads its
//! backing edge to the base, or ends it; that the overlay shows the same then the host finds out by itself, with
//! nothing in flight, or there is no such change.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::context::{Doing, Failed, JobCx, JobFuture, Step};
use super::flow::Piece;
use super::looked::Looked;
use super::node::JobNode;
use super::spec::StreamSpec;
use super::work::{
    Actions, Ending, Opening, Place, Planned, Work, backing, down, find, proven, remove_unused,
};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Action, ChildDecl, CopyHow, Graph, GraphNode, JobStake, NodeGeneration, OnBehalf, OwnAccord,
    PermissionSet, Role,
};
use crate::limits::{COPY_MAX_BYTES, EXTENTS_MAX, ZERO_PROVEN_MAX_BYTES};
use crate::node::{BackingName, ExtentKind};

/// Number of the edge to the overlay.
const TOP: usize = 0;
/// Number of the edge to the base, if there is one.
const BASE: usize = 1;

struct Stream {
    id: String,
    top: NodeGeneration,
    size_bytes: u64,
    /// Where the base ends, if there is one.
    base_bytes: Option<u64>,
    /// What the image is to call its base, if that is still this node.
    backing_name: Option<(NodeGeneration, BackingName)>,
}

/// What is to be done about a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Todo {
    Nothing,
    Copy,
    Zero,
}

pub(super) fn plan(graph: &Graph, id: &str, spec: &StreamSpec) -> Result<Planned> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let name = |node: usize| graph.nodes()[node].name();
    let start = find(graph, &spec.top)?;
    let (top, below) = backing(graph, start).ok_or_else(|| {
        invalid("it has no backing: there is nothing to stream".to_owned()).at_node(name(start))
    })?;
    let base = match (&spec.base, &spec.bottom) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            return Err(invalid("`base` and `bottom` say the same twice: give one".to_owned()));
        }
        (Some(base), None) => Some(find(graph, base)?),
        (None, Some(bottom)) => {
            let bottom = find(graph, bottom)?;
            let is_below = bottom == top || down(graph, below).any(|at| at == bottom);
            if !is_below {
                let message = format!("node `{}` is not below it", name(bottom));
                return Err(invalid(message).at_node(name(top)));
            }
            backing(graph, bottom).map(|(_, base)| base)
        }
    };
    if let Some(base) = base.filter(|base| !down(graph, below).any(|at| at == *base)) {
        let message = format!("the base `{}` is not below it", name(base));
        return Err(invalid(message).at_node(name(top)));
    }
    if base.is_none() && spec.backing_name.is_some() {
        let message = "a backing is named, but nothing is left below: name none, or give a `base`";
        return Err(invalid(message.to_owned()).at_node(name(top)));
    }
    let source = |edge: &str, node: usize, grants| ChildDecl {
        name: edge.to_owned(),
        role: Role::Source,
        grants,
        ..ChildDecl::filtered(name(node))
    };
    let mut children = vec![source("top", top, PermissionSet::HARMLESS)];
    children.extend(base.map(|base| source("base", base, PermissionSet::NONE)));
    let stands_on = base.map(|_| (TOP, BASE)).into_iter().collect();
    let generation = |node: usize| graph.nodes()[node].generation();
    let size_bytes = graph.nodes()[top].info().size_bytes;
    let base_bytes = base.map(|base| graph.nodes()[base].info().size_bytes);
    let work = Arc::new(Stream {
        id: id.to_owned(),
        top: generation(top),
        size_bytes,
        base_bytes,
        backing_name: base
            .map(|base| graph.unfiltered(&graph.nodes()[base]).generation())
            .zip(spec.backing_name.clone()),
    });
    let stake = JobStake {
        id: id.to_owned(),
        stands_on,
        tracks: None,
        leaves_out: Some((TOP, base.map(|_| BASE))),
        alters_others: false,
    };
    let node = Arc::new(JobNode::new(stake));
    Ok(Planned { node, children, place: Place::Beside, growth: None, before: Actions::new(), work })
}

impl Work for Stream {
    fn open(&self, opening: Opening<'_>) -> Result<JobCx> {
        let doing: Doing = Rc::new(|own, piece| Box::pin(carry_up(own, piece)));
        Ok(JobCx::new(opening.record, opening.own, doing, Failed::Again))
    }

    fn run<'a>(&'a self, cx: &'a JobCx) -> JobFuture<'a, Step<Ending>> {
        Box::pin(async move {
            cx.record.set_left(self.size_bytes);
            let looked = <(Looked, Looked)>::default();
            let mut at = 0;
            while at < self.size_bytes {
                let (run, todo) = self.next_run(cx, &looked, at).await?;
                at = run.end;
                match todo {
                    Todo::Nothing => cx.record.add_done(run.end - run.start),
                    Todo::Copy | Todo::Zero => launch(cx, run, todo == Todo::Zero).await?,
                }
                cx.point().await?;
            }
            cx.finish().await?;
            // What was left out must stay below.
            match cx.ignored() {
                Some(error) => Err(error.into()),
                None => Ok(Ending::Done),
            }
        })
    }

    fn end(&self, graph: &Graph, how: Ending) -> Result<Actions> {
        if how != Ending::Done {
            return Ok(Actions::new());
        }
        let gone = || Error::new(ErrorKind::NotFound, "a node of the job has gone");
        // Where a filter has gone on which it stood, the edges of its node lead below that.
        let own = graph.nodes().iter().find(|node| self.is_own(node)).ok_or_else(gone)?;
        let child = |edge: usize| own.edges().get(edge).map(|edge| edge.child()).ok_or_else(gone);
        let top = child(TOP)?;
        if graph.nodes()[top].generation() != self.top {
            return Err(gone());
        }
        let Some((_, below)) = backing(graph, top) else { return Ok(Actions::new()) };
        let base = self.base_bytes.map(|_| child(BASE)).transpose()?;
        if base == Some(below) {
            return Ok(Actions::new());
        }
        let edges = graph.nodes()[top].edges();
        let edge = edges.iter().find(|edge| edge.role() == Role::Backing).ok_or_else(gone)?;
        let name = |node: usize| graph.nodes()[node].name().to_owned();
        let (node, edge, child) = (name(top), edge.name().to_owned(), base.map(name));
        let mut actions = vec![Action::SetChild { node: node.clone(), edge, child }];
        // Another job of its group may give it yet another backing.
        if graph.nodes()[top].driver().names_backing() {
            // What is said is of the image itself: a filter over it may come to stand on another one.
            let image = base.map(|base| graph.unfiltered(&graph.nodes()[base]));
            let said = image.zip(self.backing_name.as_ref());
            let said = said.filter(|(image, (named, _))| image.generation() == *named);
            let said = said.map(|(image, (_, said))| (image.name().to_owned(), said.clone()));
            actions.push(Action::NameOwnBacking { node, said });
        }
        actions.extend(remove_unused(graph, &[below]));
        Ok(proven(actions))
    }
}

/// Begins the pieces of a range.
async fn launch(cx: &JobCx, run: Range<u64>, is_zero: bool) -> Step<()> {
    let most = if is_zero { ZERO_PROVEN_MAX_BYTES } else { COPY_MAX_BYTES as u64 };
    cx.launch_all(Piece { range: run, is_zero }, most).await
}

impl Stream {
    fn is_own(&self, node: &GraphNode) -> bool {
        node.driver().job().is_some_and(|job| job.id == self.id)
    }

    /// What is to be done from `at` on, as far as it is the same.
    async fn next_run(
        &self,
        cx: &JobCx,
        (own, below): &(Looked, Looked),
        at: u64,
    ) -> Step<(Range<u64>, Todo)> {
        let (base, rest) = (self.base_bytes, at..self.size_bytes);
        let ask = async |ground: OnBehalf, range: Range<u64>| {
            ground.block_status(TOP, None, range, EXTENTS_MAX).await
        };
        let found = own.first(cx, &rest, |kind| kind, ask).await?;
        let Some((kind, end)) = found else { return Ok((rest, Todo::Nothing)) };
        let run = at..end;
        match (kind, base) {
            (ExtentKind::Unallocated, _) => {}
            // It shows zeros for want of a backing: on the base it would show that.
            (ExtentKind::Hole, Some(end)) if at < end => {
                return Ok((at..run.end.min(end), Todo::Zero));
            }
            _ => return Ok((run, Todo::Nothing)),
        }
        let above = base.map(|_| BASE);
        let todo = |kind| match kind {
            ExtentKind::Data | ExtentKind::Unreadable => Todo::Copy,
            // Without a base they show by themselves.
            ExtentKind::Zero | ExtentKind::Hole if base.is_some() => Todo::Zero,
            ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Unallocated => Todo::Nothing,
        };
        let ask = async |ground: OnBehalf, range: Range<u64>| {
            ground.block_status_shown(TOP, above, range, EXTENTS_MAX).await
        };
        let found = below.first(cx, &run, todo, ask).await?;
        Ok(found.map_or((run, Todo::Nothing), |(todo, end)| (at..end, todo)))
    }
}

/// Has the overlay keep what it shows.
async fn carry_up(own: OwnAccord, piece: Piece) -> Result<u64> {
    let Piece { range, is_zero } = piece;
    let len = range.end - range.start;
    if is_zero {
        let zeroed = own.on_behalf().await?.zero_proven(TOP, TOP, range.clone()).await;
        match zeroed {
            // Somebody has written there meanwhile: that is its own.
            Err(error) if error.kind() == ErrorKind::NotPermitted => {}
            zeroed => return zeroed.map(|()| len),
        }
    }
    let how = CopyHow { unchanged: true, only_unallocated: true };
    own.on_behalf().await?.copy(TOP, TOP, range, how).await.map(|_| len)
}
