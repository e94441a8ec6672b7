//! Drives for embedders.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::call::on_worker;
use super::{Inner, Result, check_running};
use crate::graph::{LocalDrive, LocalGraph, check_transfer};
use crate::io::{Buf, BufMut, WorkerHandle};
use crate::node::{Extent, NodeInfo, WriteFlags};

/// A drive in use. Its requests run on one worker, chosen when it is opened; clones share it.
///
/// ```
/// use blockloom::node::{MemoryNode, WriteFlags};
/// use blockloom::{ErrorKind, Host, block_on};
///
/// # fn main() -> blockloom::Result<()> {
/// # let memory = MemoryNode::new(1 << 20, 1)?;
/// # let builder = Host::builder().node("disk", memory, vec![]);
/// # let host = builder.drive("vda", "disk", true).start()?;
/// let drive = host.drive("vda")?;
/// assert_eq!(drive.info()?.size_bytes, 1 << 20);
/// block_on(async {
///     drive.write(0, b"some bytes").await?;
///     drive.zero(5, 5, WriteFlags::FUA).await?;
///     drive.flush().await?;
///     assert_eq!(&drive.read(0, 10).await?[..], b"some \0\0\0\0\0");
///     let past_the_end = drive.write(1 << 20, b"x").await.map_err(|error| error.kind());
///     assert_eq!(past_the_end, Err(ErrorKind::NoSpace));
///     Ok::<(), blockloom::Error>(())
/// })?;
/// # host.shutdown()
/// # }
/// ```
#[derive(Clone)]
pub struct Drive {
    inner: Arc<Inner>,
    worker: WorkerHandle,
    id: Arc<str>,
}

impl Drive {
    pub(super) fn open(inner: &Arc<Inner>, id: &str) -> Result<Self> {
        inner.cell.load().expect_drive(id)?;
        Ok(Self { inner: Arc::clone(inner), worker: inner.next(), id: id.into() })
    }

    /// What its root node is now.
    ///
    /// # Errors
    /// `ENOMEDIUM`.
    pub fn info(&self) -> Result<NodeInfo> {
        let graph = self.inner.cell.load();
        let drive = &graph.drives()[graph.expect_drive(&self.id)?];
        Ok(*graph.nodes()[drive.medium()?.child()].info())
    }

    fn run<T, F, Fut>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<T>> + Send + 'static + use<T, F, Fut>
    where
        T: Send + 'static,
        F: FnOnce(Rc<LocalDrive>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let (ended, id) = (Arc::clone(&self.inner.ended), Arc::clone(&self.id));
        let cell = Arc::clone(&self.inner.cell);
        on_worker(&self.worker, move || async move {
            check_running(&ended)?;
            let drive = Rc::new(LocalDrive::open(&LocalGraph::of(&cell), &id)?);
            f(drive).await
        })
    }

    /// Reads `len` bytes from `offset`.
    ///
    /// # Errors
    /// `EINVAL` past the end or above 64 MiB; the nodes'.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Buf> {
        check_transfer(len as u64)?;
        let read = self.run(move |drive| async move { drive.read(offset, BufMut::new(len)).await });
        Ok(read.await?.freeze())
    }

    /// Writes a copy of `data` at `offset`.
    ///
    /// # Errors
    /// `ENOSPC` past the end, `EINVAL` above 64 MiB, `EPERM` or `EROFS`; the nodes'.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_transfer(data.len() as u64)?;
        self.write_buf(offset, Buf::copy_of(data), WriteFlags::NONE).await
    }

    /// Writes a buffer at `offset`.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub async fn write_buf(&self, offset: u64, data: Buf, flags: WriteFlags) -> Result<()> {
        self.run(move |drive| async move { drive.write(offset, data, flags).await }).await
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Drive::write`]; `ENOTSUP` when `flags.fast` and only writing data would do.
    pub async fn zero(&self, offset: u64, len: u64, flags: WriteFlags) -> Result<()> {
        self.run(move |drive| async move { drive.zero(offset, len, flags).await }).await
    }

    /// Tells that a range is not needed: advisory.
    ///
    /// # Errors
    /// As [`Drive::write`].
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.run(move |drive| async move { drive.discard(offset, len).await }).await
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// The nodes'.
    pub async fn flush(&self) -> Result<()> {
        self.run(move |drive| async move { drive.flush().await }).await
    }

    /// The extents from `offset` on; may end before `offset + len`.
    ///
    /// # Errors
    /// `EINVAL` past the end; the nodes'.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.run(move |drive| async move { drive.block_status(offset, len).await }).await
    }
}
