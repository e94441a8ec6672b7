//! The container of an image as the engine sees it: children of the node, by the edges of one request.

use std::ops::Range;
use std::sync::Arc;

use blockloom_qcow2 as qcow2;
use blockloom_qcow2::Storage;

use super::alarm::Alarm;
use super::under_way::UnderWay;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Cx, EdgeRef};
use crate::io::{Buf, BufMut};
use crate::node::WriteFlags;

/// The child `file`, and what else has to be durable before the image's metadata say that it is.
pub(super) struct Container<'g> {
    cx: Cx<'g>,
    under_way: &'g Arc<UnderWay>,
    alarm: &'g Alarm,
    file: EdgeRef<'g>,
    /// An external data file.
    data: Option<EdgeRef<'g>>,
}

impl<'g> Container<'g> {
    pub(super) fn new(
        cx: Cx<'g>,
        data: Option<usize>,
        under_way: &'g Arc<UnderWay>,
        alarm: &'g Alarm,
    ) -> Result<Self> {
        let data = data.map(|position| cx.child(position)).transpose()?;
        Ok(Self { cx, under_way, alarm, file: cx.child(super::FILE)?, data })
    }

    /// A change of a range of the file, which runs to its end.
    async fn change(
        &self,
        range: Range<u64>,
        make: impl AsyncFnOnce(EdgeRef<'_>) -> Result<()> + 'static,
    ) -> Result<()> {
        let change = self.under_way.begin(range);
        let made = async move |file: EdgeRef<'_>| {
            change.alone().await;
            make(file).await
        };
        self.cx.to_the_end(super::FILE, made).await
    }
}

fn range(offset: u64, len: u64) -> Range<u64> {
    offset..offset.saturating_add(len)
}

/// An error of the engine as one of the node's.
pub(super) fn from_engine(error: qcow2::Error) -> Error {
    Error::new(ErrorKind::from_errno(error.errno()), error.to_string())
}

/// An error of a child as one that the engine hands back.
pub(super) fn to_engine(error: &Error) -> qcow2::Error {
    qcow2::Error::new(qcow2::ErrorKind::Storage(error.errno()), error.to_string())
}

impl Storage for Container<'_> {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> qcow2::Result<()> {
        self.under_way.landed(range(offset, buf.len() as u64)).await;
        let read = self.file.read(offset, BufMut::new(buf.len())).await;
        buf.copy_from_slice(&read.map_err(|error| to_engine(&error))?);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> qcow2::Result<()> {
        let (range, bytes) = (range(offset, bytes.len() as u64), Buf::copy_of(bytes));
        let write =
            async move |file: EdgeRef<'_>| file.write(offset, bytes, WriteFlags::NONE).await;
        self.change(range, write).await.map_err(|error| to_engine(&error))
    }

    async fn zero(&self, offset: u64, len: u64) -> qcow2::Result<()> {
        let zero = async move |file: EdgeRef<'_>| file.zero(offset, len, WriteFlags::NONE).await;
        self.change(range(offset, len), zero).await.map_err(|error| to_engine(&error))
    }

    async fn discard(&self, offset: u64, len: u64) -> qcow2::Result<()> {
        let discard = async move |file: EdgeRef<'_>| file.discard(offset, len).await;
        self.change(range(offset, len), discard).await.map_err(|error| to_engine(&error))
    }

    async fn flush(&self) -> qcow2::Result<()> {
        if let Some(data) = &self.data {
            data.flush().await.map_err(|error| to_engine(&error))?;
        }
        self.file.flush().await.map_err(|error| to_engine(&error))
    }

    fn found_corrupt(&self, what: &qcow2::Error, is_fatal: bool) {
        self.alarm.sound(&what.to_string(), is_fatal);
    }

    async fn len_bytes(&self) -> qcow2::Result<u64> {
        Ok(self.file.len_bytes())
    }

    fn end_bytes(&self) -> Option<u64> {
        let info = self.file.node().info();
        (!info.growable).then_some(info.size_bytes)
    }

    async fn set_len(&self, len_bytes: u64) -> qcow2::Result<()> {
        if self.end_bytes().is_some() {
            return Ok(());
        }
        let set_len = async move |file: EdgeRef<'_>| file.set_len(len_bytes).await;
        match self.change(len_bytes.min(self.file.len_bytes())..u64::MAX, set_len).await {
            // What is behind the end costs room, no more.
            Err(error) if error.kind() == ErrorKind::NotSupported => Ok(()),
            result => result.map_err(|error| to_engine(&error)),
        }
    }
}
