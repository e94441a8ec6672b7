//! Graph changes for embedders.

use std::sync::Arc;

use super::call::on_worker;
use super::{Host, Inner, Result, check_running};
use crate::error::{Error, ErrorKind};
use crate::graph::{Action, Applied, LocalGraph, Transaction};

impl Host {
    /// Changes the graph under load: all of the transaction, or nothing. Requests of the drives that it
    /// touches pause; all others go on.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use blockloom::filter::PassNode;
    /// use blockloom::graph::{Action, ChildDecl, NodeDecl, Transaction, Which};
    /// use blockloom::node::MemoryNode;
    /// use blockloom::{Host, block_on};
    ///
    /// # fn main() -> blockloom::Result<()> {
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
    /// let remove = Action::RemoveNode { node: "filter".into() };
    /// let error = block_on(host.transact(Transaction::new().with(remove))).err();
    /// let error = error.map(|error| error.to_string()).unwrap_or_default();
    /// assert!(error.contains("in use by drive `vda`"), "{error}");
    /// # host.shutdown()
    /// # }
    /// ```
    ///
    /// # Errors
    /// Whatever stands against an action, naming both ends and who uses them; `EPERM` when a change is to
    /// keep what is seen and that cannot be proven; `ETIMEDOUT` when requests do not end in time. Nothing
    /// was changed then.
    pub async fn transact(&self, transaction: Transaction) -> Result<Applied> {
        let inner = &self.inner;
        inner.check_unexported(&transaction)?;
        let (cell, ended) = (Arc::clone(&inner.cell), Arc::clone(&inner.ended));
        let applied = on_worker(inner.first(), move || async move {
            check_running(&ended)?;
            cell.transact(transaction).await
        });
        let applied = applied.await?;
        inner.refresh_workers();
        Ok(applied)
    }
}

impl Inner {
    /// Refuses to remove a drive that is exported.
    fn check_unexported(&self, transaction: &Transaction) -> Result<()> {
        for action in transaction.actions() {
            let Action::RemoveDrive { drive } = action else { continue };
            let exports = self.server.exports_of(drive);
            if !exports.is_empty() {
                let names: Vec<String> = exports.iter().map(|name| format!("`{name}`")).collect();
                let message = format!("drive `{drive}` is in use by exports {}", names.join(", "));
                return Err(Error::new(ErrorKind::InUse, message));
            }
        }
        Ok(())
    }

    /// Lets every worker go over to the current snapshot now: one without requests would keep the former,
    /// and with it the files of removed nodes.
    fn refresh_workers(&self) {
        for worker in self.workers.handles() {
            let cell = Arc::clone(&self.cell);
            // A worker that has ended has let go of everything.
            let _ = worker.post(move || drop(LocalGraph::of(&cell).current()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_on;
    use crate::export::nbd::{Export, ListenAddress};
    use crate::node::MemoryNode;

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
