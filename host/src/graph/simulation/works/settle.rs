//! The end of a round: nothing is in flight; everything is looked at and checked, and some of it begins anew.

use std::collections::BTreeSet;

use super::bitmaps::Tracked;
use super::ledger::Ledger;
use super::world::{World, of_node, told};
use crate::bitmap::{BitmapName, Granularity};
use crate::graph::{Action, BitmapAction, BitmapDecl, BitmapScope, LocalDrive, Transaction};
use crate::io::sim::{Random, SECTOR};

impl World {
    /// Nothing is in flight: looks at everything, checks it, and begins anew with some of it.
    pub(super) async fn settle(
        &self,
        random: &mut Random,
        may_be_damaged: bool,
    ) -> Result<(), String> {
        if !self.cell.settle().await {
            return Err("requests do not end".to_owned());
        }
        self.verdict()?;
        self.check_jobs()?;
        let now = self.past.tick();
        let mut shown = Vec::new();
        for disk in &self.disks {
            let words = self.read(&disk.id).await?;
            let checked = disk.ledger.borrow().check((0, &words), &(now..now), may_be_damaged);
            checked.map_err(|wrong| format!("drive {}: {wrong}", disk.id))?;
            shown.push((BitmapScope::Drive(disk.id.as_str().into()), words));
        }
        shown.extend(self.look_at_nodes().await?);
        self.check_bitmaps(&shown, may_be_damaged)?;
        for (disk, (_, words)) in self.disks.iter().zip(&shown) {
            let drive = LocalDrive::open(&self.workers[0], &disk.id).map_err(told)?;
            match drive.flush().await {
                Ok(()) => {
                    let now = self.past.tick();
                    disk.ledger.borrow_mut().settle(words.clone(), now, may_be_damaged);
                }
                Err(error) => self.expect("a flush", &error, &[]),
            }
        }
        self.clear_some(random, &shown).await?;
        if !random.one_in(3) {
            self.tidy().await?;
        }
        self.track_more(random).await?;
        self.verdict()
    }

    /// No job is left, nor what stood for it.
    fn check_jobs(&self) -> Result<(), String> {
        if let Some(job) = self.jobs.all().first() {
            return Err(format!("job {} is still there: {}", job.id(), job.status()));
        }
        let graph = self.cell.load();
        let mut left = graph.nodes().iter().filter(|node| node.driver().job().is_some());
        left.next().map_or(Ok(()), |node| Err(format!("node {} is still there", node.name())))
    }

    /// What the nodes show that have a bitmap.
    async fn look_at_nodes(&self) -> Result<Vec<(BitmapScope, Vec<u64>)>, String> {
        let node = |tracked: &Tracked| match &tracked.scope {
            BitmapScope::Node(node) => Some(node.to_string()),
            BitmapScope::Drive(_) => None,
        };
        let nodes: BTreeSet<String> = self.tracked.borrow().iter().filter_map(node).collect();
        let nodes: Vec<String> = nodes.into_iter().collect();
        let shown = self.look(&nodes).await?;
        let scopes = nodes.iter().map(|node| of_node(node));
        Ok(scopes.zip(shown).collect())
    }

    fn check_bitmaps(
        &self,
        shown: &[(BitmapScope, Vec<u64>)],
        has_failed: bool,
    ) -> Result<(), String> {
        let happened = self.take_happened(has_failed);
        let ledgers: Vec<_> = self.disks.iter().map(|disk| disk.ledger.borrow()).collect();
        let by_id = |at: usize| (self.disks[at].id.as_str(), &*ledgers[at]);
        let all: Vec<(&str, &Ledger)> = (0..ledgers.len()).map(by_id).collect();
        for tracked in self.tracked.borrow_mut().iter_mut() {
            tracked.note(&happened, &all);
            let words = shown.iter().find(|(scope, _)| *scope == tracked.scope);
            let of = |id: &str| matches!(&tracked.scope, BitmapScope::Drive(of) if **of == *id);
            let ledger = all.iter().find(|(id, _)| of(id)).map(|(_, ledger)| *ledger);
            let words = words.map(|(_, words)| &words[..]).unwrap_or_default();
            tracked.check(words, ledger)?;
        }
        Ok(())
    }

    async fn clear_some(
        &self,
        random: &mut Random,
        shown: &[(BitmapScope, Vec<u64>)],
    ) -> Result<(), String> {
        let mut transaction = Transaction::new();
        let mut cleared = Vec::new();
        for (at, tracked) in self.tracked.borrow().iter().enumerate() {
            if random.one_in(2) {
                transaction = transaction.with(BitmapAction::Clear.of(tracked.reference()));
                cleared.push(at);
            }
        }
        self.transact(transaction).await.map_err(told)?;
        let now = self.past.tick();
        let mut all = self.tracked.borrow_mut();
        for at in cleared {
            let words = shown.iter().find(|(scope, _)| *scope == all[at].scope);
            all[at].begin(words.map(|(_, words)| words.clone()).unwrap_or_default(), now);
        }
        Ok(())
    }

    /// Gives some nodes bitmaps of their own.
    async fn track_more(&self, random: &mut Random) -> Result<(), String> {
        let stores = self.without_bitmap();
        let Some(store) = random.pick(&stores).filter(|_| random.one_in(2)) else { return Ok(()) };
        let scope = of_node(&store);
        let name = BitmapName::new("n").map_err(|error| error.to_string())?;
        let granularity = Granularity::from_bytes(SECTOR as u64);
        let granularity = granularity.map_err(|error| error.to_string())?;
        let decl = BitmapDecl { scope: scope.clone(), name, granularity, enabled: true };
        let add = Transaction::new().with(Action::AddBitmap(decl));
        self.transact(add).await.map_err(told)?;
        let words = self.look(&[store]).await?.pop().unwrap_or_default();
        let graph = self.cell.load();
        let found = graph.find_bitmap(&scope, "n").ok_or("a bitmap that was added")?;
        let tracked = Tracked::new(scope, std::sync::Arc::clone(found), words, self.past.tick());
        self.tracked.borrow_mut().push(tracked);
        self.past.count(|counts| counts.node_bitmaps += 1);
        Ok(())
    }
}
