//! An image in memory: allocated at its end, every write of it noted down.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::super::{BitmapImage, replace_header, with_bitmaps};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extension::BitmapsExtension;
use crate::format::record::Record;
use crate::format::{
    ClusterSize, CompressionType, Header, HostOffset, L2Format, RefcountWidth, Version,
};
use crate::storage::Storage;

/// Runs a future that waits for nothing.
pub(super) fn run<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}

#[derive(Clone)]
pub(super) enum Step {
    Write(u64, Vec<u8>),
    Flush,
}

/// A container in memory.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) bytes: RefCell<Vec<u8>>,
    pub(super) steps: RefCell<Vec<Step>>,
    /// Writes that succeed before all others fail.
    pub(super) writes_left: Cell<Option<u64>>,
}

pub(super) fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (from, end) = (offset as usize, offset as usize + data.len());
    bytes.resize(bytes.len().max(end), 0);
    bytes[from..end].copy_from_slice(data);
}

impl Storage for Memory {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.borrow();
        let from = bytes.len().min(offset as usize);
        let end = bytes.len().min(offset as usize + buf.len());
        buf.fill(0);
        buf[..end - from].copy_from_slice(&bytes[from..end]);
        Ok(())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        if let Some(left) = self.writes_left.get() {
            let next = left.checked_sub(1);
            self.writes_left
                .set(Some(next.ok_or_else(|| Error::new(ErrorKind::Storage(5), "broken"))?));
        }
        self.steps.borrow_mut().push(Step::Write(offset, data.to_vec()));
        put(&mut self.bytes.borrow_mut(), offset, data);
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, &vec![0; len as usize]).await
    }

    async fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.steps.borrow_mut().push(Step::Flush);
        Ok(())
    }

    async fn len_bytes(&self) -> Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        self.bytes.borrow_mut().resize(len_bytes as usize, 0);
        Ok(())
    }
}

pub(super) struct TestImage {
    pub(super) memory: Memory,
    pub(super) header: RefCell<Header>,
}

impl TestImage {
    /// An empty image of version 3.
    pub(super) fn new(cluster_bits: u32, size_bytes: u64) -> Self {
        let cluster_size = ClusterSize::from_bits(cluster_bits).expect("a size");
        let at = |cluster: u64| HostOffset(cluster << cluster_bits);
        let format =
            L2Format { cluster_size, extended: false, external_data: false, zero_flag: true };
        let l1_entries = format.l1_entries_of(size_bytes).max(1);
        // Header, refcount table, L1 table.
        let used = 2 + cluster_size.clusters_of(l1_entries * 8);
        let header = Header {
            version: Version::V3,
            cluster_size,
            size_bytes,
            l1_entries: l1_entries as u32,
            l1_offset: at(2),
            refcount_table_offset: at(1),
            refcount_table_clusters: 1,
            snapshots: 0,
            snapshots_offset: HostOffset(0),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_width: RefcountWidth::SIXTEEN,
            compression: CompressionType::Deflate,
            unknown_fields: vec![],
            extensions: vec![],
            backing_name: None,
        };
        let mut bytes = header.encode().expect("a header");
        bytes.resize((used << cluster_bits) as usize, 0);
        let image = Self::open(bytes);
        (0..used).for_each(|cluster| image.set_count(cluster, 1).expect("room"));
        image
    }

    pub(super) fn open(bytes: Vec<u8>) -> Self {
        let prefix = bytes.first_chunk().expect("a header");
        let cluster_bytes = Header::cluster_size_in(prefix).expect("qcow2").bytes() as usize;
        let mut cluster = bytes.clone();
        cluster.resize(cluster_bytes, 0);
        let header = Header::parse(&cluster).expect("a header");
        let memory = Memory { bytes: RefCell::new(bytes), ..Memory::default() };
        Self { memory, header: RefCell::new(header) }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.memory.bytes.borrow().clone()
    }

    fn word(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        run(self.memory.read(offset, &mut bytes)).expect("memory");
        u64::from_be_bytes(bytes)
    }

    /// Where the count of a cluster is: the block, and the index in it.
    fn count_place(&self, cluster: u64) -> (u64, Option<u64>, u64) {
        let header = self.header.borrow();
        let per_block = header.refcount_width.block_entries(header.cluster_size);
        let entry = header.refcount_table_offset.0 + cluster / per_block * 8;
        let block = self.word(entry);
        (entry, (block != 0).then_some(block), cluster % per_block)
    }

    pub(super) fn count(&self, cluster: u64) -> u64 {
        let (_, Some(block), index) = self.count_place(cluster) else { return 0 };
        self.word(block + index * 2) >> 48
    }

    fn set_count(&self, cluster: u64, count: u16) -> Result<()> {
        let header = self.header();
        assert_eq!(header.refcount_width, RefcountWidth::SIXTEEN);
        let cluster_bytes = header.cluster_size.bytes();
        let (entry, block, index) = self.count_place(cluster);
        let block = match block {
            Some(block) => block,
            None => {
                let block = self.end();
                run(self.memory.write(block, &vec![0; cluster_bytes as usize]))?;
                run(self.memory.write(entry, &block.to_be_bytes()))?;
                self.set_count(block / cluster_bytes, 1)?;
                block
            }
        };
        run(self.memory.write(block + index * 2, &count.to_be_bytes()))
    }

    fn end(&self) -> u64 {
        let len = self.memory.bytes.borrow().len() as u64;
        len.next_multiple_of(self.header().cluster_size.bytes())
    }

    /// Clusters that are counted.
    pub(super) fn used(&self) -> u64 {
        let clusters = self.header().cluster_size.index_of(self.end());
        (0..clusters).filter(|&cluster| self.count(cluster) > 0).count() as u64
    }
}

impl BitmapImage for TestImage {
    type Storage = Memory;

    fn storage(&self) -> &Memory {
        &self.memory
    }

    fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    async fn set_bitmaps(
        &self,
        bitmaps: Option<BitmapsExtension>,
        record: Option<&Record>,
        is_current: bool,
    ) -> Result<()> {
        let mut next = with_bitmaps(&self.header(), bitmaps);
        next.set_record(record, is_current);
        replace_header(&self.memory, &next).await?;
        *self.header.borrow_mut() = next;
        Ok(())
    }

    async fn allocate(&self, clusters: u64) -> Result<HostOffset> {
        let bits = self.header().cluster_size.bits();
        // A block of counts that is needed comes first, so that the clusters are in a row.
        let last = (self.end() >> bits) + clusters + 1;
        if self.count_place(last).1.is_none() {
            self.set_count(last, 0)?;
        }
        let offset = self.end();
        let end = offset + (clusters << bits);
        for cluster in offset >> bits..end >> bits {
            self.set_count(cluster, 1)?;
        }
        self.memory.set_len(end).await?;
        Ok(HostOffset(offset))
    }

    async fn free(&self, offset: HostOffset, clusters: u64) -> Result<()> {
        let first = offset.0 >> self.header().cluster_size.bits();
        for cluster in first..first + clusters {
            assert_eq!(self.count(cluster), 1, "freed twice: {cluster}");
            self.set_count(cluster, 0)?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.memory.flush().await
    }
}
