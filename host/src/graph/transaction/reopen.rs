//! Drivers that take the places of others, with nothing in flight: nodes that are opened in another way.
//!
//! Whoever keeps its bytes in a container hands over before that does, and takes over after it: so what it still
//! has to write goes where it went before, and what the next one writes goes where that is open for it.

use std::sync::Arc;
use std::time::Duration;

use super::close_order::order;
use super::draft::{Draft, DraftNode};
use super::drain::{Drained, Place, Side};
use super::time_limit::TimeLimit;
use super::touched::Known;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::snapshot::{Cx, Graph};
use crate::io::aside;
use crate::node::{Node, NodeFuture, OpenMode, Reopen, Reopening};

/// How long a change waits for what it need not have: that nodes which nobody writes any more are open for reading alone.
const CLOSE_LEFT_TIME: Duration = Duration::from_secs(1);

/// Drivers that have been opened in another way, each with the one beside which it was.
#[derive(Default)]
pub(crate) struct Opened(Vec<(Arc<dyn Node>, Arc<dyn Node>)>);

impl Opened {
    /// The one that was opened beside another one, for writing or not.
    fn beside(&self, driver: &Arc<dyn Node>, write: bool) -> Option<Arc<dyn Node>> {
        let is_it = |(beside, opened): &&(Arc<dyn Node>, Arc<dyn Node>)| {
            Arc::ptr_eq(beside, driver) && mode_of(&**opened).write == write
        };
        self.0.iter().find(is_it).map(|(_, opened)| Arc::clone(opened))
    }
}

impl Draft {
    /// Nodes that are open for writing only while somebody writes them are opened as they are used in the end. It
    /// opens files, and waits for that as long as it takes, within the limit.
    ///
    /// # Errors
    /// Why one that is written cannot be opened so; `ETIMEDOUT`.
    pub(super) async fn open_as_used(&mut self, limit: TimeLimit) -> Result<()> {
        let is_auto = |node: &DraftNode| mode_of(&*node.driver).auto;
        if !self.nodes.iter().any(is_auto) {
            return Ok(());
        }
        loop {
            // What else is wrong is told when all of it is assembled.
            let Ok(graph) = self.assemble_edges() else { return Ok(()) };
            let closed = graph.unopened();
            if closed.is_empty() {
                self.close_left(&graph, limit.at_most(CLOSE_LEFT_TIME)).await;
                return Ok(());
            }
            // None of them is among the closed ones any more.
            for name in closed {
                self.open_as(&name, true, limit).await?;
            }
        }
    }

    /// What stays open is opened read-only with another change.
    async fn close_left(&mut self, graph: &Graph, limit: TimeLimit) {
        // What is worked on stays as it is: the next change closes what is left then.
        if !self.works.is_empty() {
            return;
        }
        for name in graph.left_by_writers() {
            let mut nodes = self.nodes.iter();
            let is_it = |node: &&DraftNode| node.name == name && !node.is_new && !node.is_reopened;
            if nodes.find(is_it).is_none() {
                continue;
            }
            if let Err(error) = self.open_as(&name, false, limit).await {
                tracing::warn!("a node that nobody writes stays open for writing: {error}");
            }
        }
    }

    async fn open_as(&mut self, name: &str, write: bool, limit: TimeLimit) -> Result<()> {
        let at = self.expect_node(name)?;
        let driver = Arc::clone(&self.nodes[at].driver);
        let Some(reopening) = driver.reopening() else { return Ok(()) };
        let for_job = write && reopening.mode().for_job;
        let how = Reopen { write: Some(write), for_job, ..Reopen::default() };
        let opened = match self.opened.beside(&driver, write) {
            Some(opened) => opened,
            None => {
                let opened = opened_aside(Arc::clone(&driver), how, limit).await;
                let opened = opened.map_err(|error| error.at_node(name))?;
                self.opened.0.push((driver, Arc::clone(&opened)));
                opened
            }
        };
        let node = &mut self.nodes[at];
        node.driver = opened;
        node.is_reopened |= !node.is_new;
        Ok(())
    }
}

/// Opens a driver in another way. The worker does not wait for the file system.
///
/// # Errors
/// As [`Reopening::reopened`]; `ETIMEDOUT`, `EAGAIN`.
async fn opened_aside(
    driver: Arc<dyn Node>,
    how: Reopen,
    limit: TimeLimit,
) -> Result<Arc<dyn Node>> {
    let open = move || driver.reopening().map(|reopening| reopening.reopened(&how));
    let failed = |error: std::io::Error| Error::os("it cannot be opened", &error);
    let opened = limit.keep(aside("open", open).map_err(failed)?).await;
    let opened = opened.ok_or_else(|| {
        let message = "it was not opened in time, and nothing was changed: see that its file system \
                       answers, and try again";
        Error::new(ErrorKind::TimedOut, message)
    })?;
    let cannot = || Error::new(ErrorKind::NotSupported, "it cannot be opened in another way");
    opened.map_err(failed)?.ok_or_else(cannot)?
}

fn mode_of(driver: &dyn Node) -> OpenMode {
    driver.reopening().map(Reopening::mode).unwrap_or_default()
}

/// A node whose driver is another one in the graph that is to be.
#[derive(Clone, Copy)]
struct Exchange {
    before: usize,
    after: usize,
}

/// All of them, parents before their containers.
fn exchanges(before: &Graph, after: &Graph) -> Vec<Exchange> {
    let known = Known::of(after);
    let exchange = |at: usize| {
        let now = known.node(before.nodes[at].generation)?;
        let is_other = !Arc::ptr_eq(&before.nodes[at].driver, &after.nodes[now].driver);
        is_other.then_some(Exchange { before: at, after: now })
    };
    if (0..before.nodes.len()).any(|at| exchange(at).is_some()) {
        order(before).into_iter().filter_map(exchange).collect()
    } else {
        Vec::new()
    }
}

/// Has all drivers whose places others take hand over, and those take over.
///
/// # Errors
/// A driver's; `ETIMEDOUT`. Those that are have their places back then, for which there is as much time again.
pub(super) async fn exchange(section: &Drained<'_>, limit: TimeLimit) -> Result<()> {
    let all = exchanges(section.graph(Side::Before), section.graph(Side::After));
    let (mut handed, mut taken) = (0, all.len());
    let result = async {
        while let Some(at) = all.get(handed) {
            handed += 1;
            hand_over(section, *at, Side::Before, limit).await?;
        }
        while let Some(at) = taken.checked_sub(1) {
            taken = at;
            take_over(section, all[at], Side::After, limit).await?;
        }
        Ok(())
    }
    .await;
    if result.is_err() {
        give_back(section, &all[..handed], taken, limit.again()).await;
    }
    result
}

/// Has those that are take over again; those that were to come have done so from number `taken` on.
async fn give_back(section: &Drained<'_>, all: &[Exchange], taken: usize, limit: TimeLimit) {
    let tell = |result: Result<()>| {
        if let Err(error) = result {
            tracing::error!("a node is not open as it was: {error}");
        }
    };
    for at in all.iter().skip(taken) {
        tell(hand_over(section, *at, Side::After, limit).await);
    }
    for at in all.iter().rev() {
        tell(take_over(section, *at, Side::Before, limit).await);
    }
}

/// Those that have lost their places hold nothing any more.
pub(super) fn leave(before: &Graph, after: &Graph) {
    for at in exchanges(before, after) {
        if let Some(reopening) = before.nodes[at.before].driver.reopening() {
            reopening.leave();
        }
    }
}

async fn hand_over(
    section: &Drained<'_>,
    exchange: Exchange,
    from: Side,
    limit: TimeLimit,
) -> Result<()> {
    let (before, after) = (section.graph(Side::Before), section.graph(Side::After));
    let to = match from {
        Side::Before => &after.nodes[exchange.after],
        Side::After => &before.nodes[exchange.before],
    };
    let to = to.driver.reopening().map(Reopening::mode).unwrap_or_default();
    call(section, exchange, from, limit, &mut |driver, cx| driver.hand_over(cx, to)).await
}

async fn take_over(
    section: &Drained<'_>,
    exchange: Exchange,
    side: Side,
    limit: TimeLimit,
) -> Result<()> {
    call(section, exchange, side, limit, &mut |driver, cx| driver.take_over(cx)).await
}

type Ask<'f> = dyn for<'a> FnMut(&'a dyn Reopening, Cx<'a>) -> NodeFuture<'a, ()> + 'f;

async fn call(
    section: &Drained<'_>,
    exchange: Exchange,
    side: Side,
    limit: TimeLimit,
    ask: &mut Ask<'_>,
) -> Result<()> {
    let node = match side {
        Side::Before => exchange.before,
        Side::After => exchange.after,
    };
    let request = section.request(Place { side, node });
    let cx = Cx { graph: request.graph(), request: &request, node };
    let node = &cx.graph.nodes[node];
    let Some(driver) = node.driver.reopening() else { return Ok(()) };
    let late = || {
        let message = "it was not open in another way in time";
        Err(Error::new(ErrorKind::TimedOut, message))
    };
    let done = limit.keep(ask(driver, cx)).await.unwrap_or_else(late);
    done.map_err(|error| error.at_node(&node.name))
}

/// How a node is open in the graph that is, where that is not as it is to be.
pub(super) fn former_mode(before: &Graph, after: &Graph, name: &str) -> Option<OpenMode> {
    let (was, now) = (before.find_node(name)?, after.find_node(name)?);
    let (was, now) = (&before.nodes[was], &after.nodes[now]);
    let is_exchanged = was.generation == now.generation && !Arc::ptr_eq(&was.driver, &now.driver);
    is_exchanged.then(|| was.driver.reopening().map(Reopening::mode).unwrap_or_default())
}
