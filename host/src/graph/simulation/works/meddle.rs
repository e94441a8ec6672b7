//! Who changes the graph beside jobs: snapshots, filters that come and go.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::image::file_name;
use super::super::lag::Lag;
use super::shape::is_store;
use super::world::{World, lag_over};
use crate::filter::PassNode;
use crate::graph::{Action, ChildDecl, NodeDecl, Transaction, Which};
use crate::io::sim::{Random, note};
use crate::io::{sleep_until, turn_now};
use crate::node::{BackingName, Node};

impl World {
    /// An empty image on what a drive shows, and a filter over it.
    pub(super) async fn snapshot(&self, random: &mut Random, at: usize, hurry: Option<Duration>) {
        let disk = &self.disks[at];
        let (Some(root), Some(top)) = (self.root(disk), self.chain(disk).into_iter().next()) else {
            return;
        };
        let name = self.past.add_image(random, Some(&top));
        let Ok(mut nodes) = self.past.nodes(&name, Some(&root)) else { return };
        let Some(overlay) = nodes.pop() else { return };
        let add = nodes.into_iter().map(Action::AddNode);
        let (drive, node, filter) = (disk.id.clone(), name.clone(), lag_over(&name));
        let transaction = add
            .fold(Transaction::new(), Transaction::with)
            .with(Action::Snapshot { drive, overlay })
            .with(Action::InsertAbove { node, filter, users: Which::All });
        self.past.is_unsure_of(&name);
        if self.change(&format!("snapshot {name} on {top}"), transaction, hurry).await {
            self.name_backing(&name, &top).await;
        }
        self.past.is_sure_of(&name);
    }

    /// Where a job was quicker, the image was told of what is not its backing any more.
    async fn name_backing(&self, image: &str, named: &str) {
        let below = {
            let graph = self.cell.load();
            let chains = self.disks.iter().map(|disk| super::shape::chain(&graph, &disk.id));
            let below = |chain: Vec<String>| {
                let at = chain.iter().position(|store| store == image)?;
                chain.get(at + 1).cloned()
            };
            chains.into_iter().find_map(below)
        };
        let Some(below) = below.filter(|below| below != named) else { return };
        let format = if self.past.is_image(&below) { "qcow2" } else { "raw" };
        let name = BackingName { name: file_name(&below), format: Some(format.to_owned()) };
        let action = Action::NameBacking { node: image.to_owned(), name: Some(name) };
        self.change("another backing is named", Transaction::new().with(action), None).await;
    }

    async fn change(&self, what: &str, to: Transaction, hurry: Option<Duration>) -> bool {
        let changed = match hurry {
            Some(time) => self.transact(to.within(time)).await,
            None => self.transact(to).await,
        };
        self.past.tell(|| match &changed {
            Ok(()) => what.to_owned(),
            Err(error) => format!("{what} is refused: {error}"),
        });
        note("graph changed", [u64::from(changed.is_ok()), 0, 0]);
        if let Err(error) = &changed {
            let late = hurry.map(|_| crate::error::ErrorKind::TimedOut);
            let refused: Vec<_> = super::REFUSED.into_iter().chain(late).collect();
            self.expect(what, error, &refused);
        }
        self.past.count(|counts| counts.changes += u64::from(changed.is_ok()));
        changed.is_ok()
    }

    /// Some changes of the graph, whatever else there is.
    pub(super) async fn meddle(self: Rc<Self>, mut random: Random) {
        for _ in 0..random.below(4) {
            let pause = Duration::from_micros(random.below(15_000));
            sleep_until(turn_now() + pause).await;
            let hurry = random.one_in(6).then(|| Duration::from_micros(random.below(2000)));
            match random.below(4) {
                0 => {
                    let at = random.below(self.disks.len() as u64) as usize;
                    self.snapshot(&mut random, at, hurry).await;
                }
                1 | 2 => self.insert(&mut random, hurry).await,
                _ => self.remove(&mut random, hurry).await,
            }
        }
    }

    async fn insert(&self, random: &mut Random, hurry: Option<Duration>) {
        let nodes = self.nodes(|name| is_store(name) || name.ends_with("-lag"));
        let Some(node) = random.pick(&nodes) else { return };
        let name = self.past.next_name("filter");
        let what = format!("{name} over {node}");
        let driver: Arc<dyn Node> =
            if random.one_in(2) { Arc::new(Lag) } else { Arc::new(PassNode) };
        let filter = NodeDecl { name, driver, children: vec![ChildDecl::filtered(&node)] };
        let insert = Action::InsertAbove { node, filter, users: Which::All };
        self.change(&what, Transaction::new().with(insert), hurry).await;
    }

    async fn remove(&self, random: &mut Random, hurry: Option<Duration>) {
        let nodes = self.nodes(|name| name.starts_with("filter"));
        let Some(node) = random.pick(&nodes) else { return };
        let what = format!("no {node}");
        let remove = Transaction::new().with(Action::RemoveFilter { node });
        self.change(&what, remove, hurry).await;
    }

    fn nodes(&self, is_one: impl Fn(&str) -> bool) -> Vec<String> {
        let graph = self.cell.load();
        let names = graph.nodes().iter().map(|node| node.name());
        names.filter(|name| is_one(name)).map(str::to_owned).collect()
    }
}
