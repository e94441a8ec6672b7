//! Graph changes for embedders.

use super::jobs::Changer;
use super::{Host, Inner, Result};
use crate::error::{Error, ErrorKind};
use crate::export::nbd::ExportStatus;
use crate::graph::{Action, Applied, Transaction};

impl Host {
    /// Changes the graph and its bitmaps under load: all of the transaction, or nothing, at one instant.
    /// Requests of the drives that it touches pause; all others go on.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use blockloom::bitmap::{BitmapName, Granularity};
    /// use blockloom::filter::PassNode;
    /// use blockloom::graph::{
    ///     Action, BitmapAction, BitmapDecl, BitmapRef, BitmapScope, ChildDecl, NodeDecl, Transaction,
    ///     Which,
    /// };
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let host = Host::builder()
    ///     .node("disk", MemoryNode::new(1 << 20, 1)?, vec![])
    ///     .drive("vda", "disk", true)
    ///     .start()?;
    /// let drive = host.drive("vda")?;
    /// block_on(drive.write(4096, b"hello"))?;
    ///
    /// let (name, driver) = ("filter".into(), Arc::new(PassNode));
    /// let filter = NodeDecl { name, driver, children: vec![ChildDecl::filtered("disk")] };
    /// let (node, users) = ("disk".into(), Which::All);
    /// let insert = Action::InsertAbove { node, filter, users };
    /// block_on(host.transact(Transaction::new().with(insert)))?;
    /// assert_eq!(&block_on(drive.read(4096, 5))?[..], b"hello");
    /// assert_eq!(host.graph().nodes().len(), 2);
    ///
    /// // A snapshot, and a bitmap of everything that is written from that very instant on.
    /// let driver = Arc::new(MemoryNode::overlay(1 << 20, 1)?);
    /// let overlay =
    ///     NodeDecl { name: "top".into(), driver, children: vec![ChildDecl::backing("filter")] };
    /// let scope = BitmapScope::Drive("vda".into());
    /// let (name, granularity) = (BitmapName::new("since")?, Granularity::from_bytes(4096)?);
    /// let since = BitmapDecl { scope: scope.clone(), name, granularity, enabled: true };
    /// let snapshot = Transaction::new()
    ///     .with(Action::Snapshot { drive: "vda".into(), overlay })
    ///     .with(Action::AddBitmap(since));
    /// block_on(host.transact(snapshot))?;
    /// block_on(drive.write(8192, b"world"))?;
    /// let since = host.bitmap(&scope, "since")?;
    /// assert_eq!(since.ranges(0..1 << 20).collect::<Vec<_>>(), [8192..12288]);
    ///
    /// // A backup would take what stands still now; what is written meanwhile is the next one's.
    /// let checkpoint = Action::Checkpoint { bitmaps: vec![BitmapRef::from(&since)] };
    /// block_on(host.transact(Transaction::new().with(checkpoint)))?;
    /// block_on(drive.write(0, b"later"))?;
    /// let still = since.read().still().ok_or("it is frozen")?;
    /// assert_eq!(still.ranges(0..1 << 20).collect::<Vec<_>>(), [8192..12288]);
    /// let end = BitmapAction::Abdicate.of(BitmapRef::of_drive("vda", "since"));
    /// block_on(host.transact(Transaction::new().with(end)))?;
    /// assert_eq!(since.ranges(0..1 << 20).collect::<Vec<_>>(), [0..4096]);
    ///
    /// let remove = Action::RemoveNode { node: "filter".into() };
    /// let error = block_on(host.transact(Transaction::new().with(remove))).err();
    /// let error = error.map(|error| error.to_string()).unwrap_or_default();
    /// assert!(error.contains("in use by node `top` (edge `backing`)"), "{error}");
    /// # Ok(host.shutdown()?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// Whatever stands against an action, naming both ends and who uses them; `EPERM` when a change is to
    /// keep what is seen and that cannot be proven; `ETIMEDOUT` when requests do not end in time. Nothing
    /// was changed then, but what a driver has spoiled that failed to resize or deallocate: that range is
    /// marked, and an event says so.
    pub async fn transact(&self, transaction: Transaction) -> Result<Applied> {
        self.inner.transact(transaction).await
    }
}

impl Inner {
    /// As [`Host::transact`].
    pub(super) async fn transact(&self, transaction: Transaction) -> Result<Applied> {
        self.check_unexported(&transaction)?;
        Changer::of(self).apply(transaction).await
    }

    /// Refuses to remove a drive that is exported, and to take from an export what its clients may do.
    pub(super) fn check_unexported(&self, transaction: &Transaction) -> Result<()> {
        for action in transaction.actions() {
            let (drive, is_removed) = match action {
                Action::RemoveDrive { drive } => (drive, true),
                Action::SetWritable { drive, writable: false } => (drive, false),
                _ => continue,
            };
            let mut exports = self.server.exports();
            exports.retain(|it| it.drive == *drive && !transaction.ends_export(&it.id));
            exports.retain(|it| is_removed || it.writable);
            if exports.is_empty() {
                continue;
            }
            let names = |of: fn(&ExportStatus) -> &str| {
                let names: Vec<String> = exports.iter().map(|it| format!("`{}`", of(it))).collect();
                names.join(", ")
            };
            let message = match (is_removed, exports.len()) {
                (true, _) => {
                    format!("drive `{drive}` is in use by exports {}", names(|it| &it.name))
                }
                (false, 1) => {
                    let export = names(|it| &it.id);
                    format!("export {export} of drive `{drive}` is writable: remove it first")
                }
                (false, _) => {
                    let exports = names(|it| &it.id);
                    format!("exports {exports} of drive `{drive}` are writable: remove them first")
                }
            };
            return Err(Error::new(ErrorKind::InUse, message));
        }
        Ok(())
    }

    /// See [`Changer::refresh`].
    pub(super) fn refresh_workers(&self) {
        Changer::of(self).refresh();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;
    use crate::bitmap::{BitmapName, Granularity};
    use crate::block_on;
    use crate::export::nbd::{Export, ListenAddress};
    use crate::filter::PassNode;
    use crate::graph::{
        BitmapAction, BitmapDecl, BitmapRef, BitmapScope, ChildDecl, Event, NodeDecl, Which,
    };
    use crate::io::WorkerOptions;
    use crate::node::{MemoryNode, Node};

    const BLOCK: u64 = 512;
    const BLOCKS: u64 = 256;

    fn node(name: &str, driver: impl Node, child: ChildDecl) -> NodeDecl {
        NodeDecl { name: name.into(), driver: Arc::new(driver), children: vec![child] }
    }

    fn memory() -> MemoryNode {
        MemoryNode::new(BLOCKS * BLOCK, 512).expect("a size")
    }

    fn bitmap(name: &str) -> BitmapDecl {
        let (scope, granularity) = (BitmapScope::Drive("vda".into()), Granularity::MIN);
        let name = BitmapName::new(name).expect("a name");
        BitmapDecl { scope, name, granularity, enabled: true }
    }

    /// Writes blocks of one half over and over, and reads each back; returns which.
    fn write_until(host: &Host, over: &AtomicBool, half: u64) -> BTreeSet<u64> {
        let vda = host.drive("vda").expect("a drive");
        let (mut random, mut written) = (half + 1, BTreeSet::new());
        while !over.load(SeqCst) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Some blocks stay as they are.
            let block = (half + random % (BLOCKS / 2) * 2) & !4;
            let data = [(random >> 32) as u8; BLOCK as usize];
            block_on(vda.write(block * BLOCK, &data)).expect("a write");
            written.insert(block);
            let read = block_on(vda.read(block * BLOCK, BLOCK as usize)).expect("a read");
            assert_eq!(read[..], data[..], "block {block}");
        }
        written
    }

    /// Requests of two threads run on two workers while a filter is put in and taken out, snapshots are
    /// made and bitmaps added: nothing is lost, nothing else is dirty, and events tell of each pause.
    #[test]
    fn filters_are_inserted_while_requests_run() {
        let options = WorkerOptions { workers: 2, ..WorkerOptions::default() };
        let BitmapDecl { scope, name, granularity, .. } = bitmap("all");
        let host = Host::builder().workers(options).node("disk", memory(), vec![]);
        let host = host.drive("vda", "disk", true).bitmap(scope.clone(), name, granularity);
        let host = host.start().expect("a host");
        let (over, mut events) = (AtomicBool::new(false), host.events());
        let transact = |transaction| block_on(host.transact(transaction)).expect("a transaction");
        let changes = || {
            let mut below = "disk".to_owned();
            for round in 0..60 {
                let filter = node("filter", PassNode, ChildDecl::filtered(&below));
                let insert = Action::InsertAbove { node: below.clone(), filter, users: Which::All };
                transact(Transaction::new().with(insert));
                let mut next = Transaction::new();
                if round % 20 == 10 {
                    let top = format!("top{round}");
                    let driver = MemoryNode::overlay(BLOCKS * BLOCK, 512).expect("a size");
                    let overlay = node(&top, driver, ChildDecl::backing("filter"));
                    next = next
                        .with(Action::Snapshot { drive: "vda".into(), overlay })
                        .with(Action::AddBitmap(bitmap(&top)))
                        .with(
                            BitmapAction::merge([BitmapRef::of_drive("vda", "all")])
                                .of(BitmapRef::of_drive("vda", &top)),
                        );
                    below = top;
                }
                let remove = Action::RemoveFilter { node: "filter".into() };
                transact(next.with(remove));
            }
        };
        let written = std::thread::scope(|scope| {
            let write = |half: u64| {
                let (host, over) = (&host, &over);
                scope.spawn(move || write_until(host, over, half))
            };
            let writers = [write(0), write(1)];
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(changes));
            over.store(true, SeqCst);
            let written = writers.map(|writer| writer.join().expect("a writer"));
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
            written
        });
        let written: Vec<u64> =
            written.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
        let graph = host.graph();
        assert_eq!(graph.nodes().len(), 4);
        let blocks = |bitmap: &crate::DirtyBitmap| -> Vec<u64> {
            let ranges = bitmap.ranges(0..u64::MAX);
            ranges.flat_map(|it| it.start / BLOCK..it.end / BLOCK).collect()
        };
        for name in ["all", "top10", "top30", "top50"] {
            let bitmap = host.bitmap(&scope, name).expect("a bitmap");
            assert_eq!(blocks(&bitmap), written, "{name}");
        }
        let mut pauses = 0;
        while let Some(notice) = events.try_next() {
            assert!(!matches!(notice.event, Event::BitmapMarkedWhole { .. }), "{}", notice.event);
            assert_eq!(notice.lost, 0);
            pauses += u32::from(matches!(notice.event, Event::Paused { .. }));
        }
        assert_eq!(pauses, 120);
        host.shutdown().expect("an end in order");
        assert_eq!(block_on(events.next()), None);
    }

    #[test]
    fn a_drive_that_is_exported_stays() {
        let disk = MemoryNode::new(1 << 20, 512).expect("a size");
        let builder = Host::builder().node("disk", disk, vec![]);
        let host = builder.drive("vda", "disk", true).drive("idle", "disk", false);
        let Err(error) = host.start() else { panic!("two users that mind each other") };
        assert_eq!(error.kind(), ErrorKind::InUse);

        let disk = MemoryNode::new(1 << 20, 512).expect("a size");
        let host = Host::builder().node("disk", disk, vec![]).drive("vda", "disk", true).start();
        let host = host.expect("a host");
        let export = Export {
            name: "system".into(),
            description: String::new(),
            drive: "vda".into(),
            writable: true,
            writethrough: false,
            allocation_depth: false,
            bitmaps: vec![],
        };
        let directory = tempfile::tempdir().expect("a directory");
        let address = ListenAddress::Unix(directory.path().join("socket"));
        host.serve_nbd(&address, vec![export]).expect("a listener");
        let remove = Action::RemoveDrive { drive: "vda".into() };
        let error = block_on(host.transact(Transaction::new().with(remove))).expect_err("exported");
        assert_eq!(error.to_string(), "drive `vda` is in use by exports `system`");
        host.shutdown().expect("an end in order");
    }
}
