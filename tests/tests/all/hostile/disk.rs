//! Native nodes around the plugin: a disk that keeps books, and a fan that asks for many blocks at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use blockloom::filter::Filter;
use blockloom::graph::Cx;
use blockloom::io::{Buf, BufMut, sleep_until, turn_now};
use blockloom::node::{Caps, Extent, ExtentKind, Limits, Node, NodeFuture, NodeInfo, WriteFlags};
use blockloom::{Error, ErrorKind, Result};
use rustix::time::{ClockId, clock_gettime};

pub(super) const BLOCK: usize = 4096;
pub(super) const BLOCKS: usize = 64;
pub(super) const DISK_BYTES: usize = BLOCK * BLOCKS;

/// What the books of a [`Disk`] say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) zeros: u64,
    pub(super) discards: u64,
    pub(super) flushes: u64,
}

/// A disk in memory that counts what reaches it, takes its time, and fails when told to.
pub(super) struct Disk {
    bytes: Mutex<Vec<u8>>,
    books: Mutex<Books>,
    delay_us: AtomicU64,
    failing: AtomicU32,
}

/// The byte that block `index` holds at first.
pub(super) fn first_byte(index: usize) -> u8 {
    index as u8 | 0x80
}

impl Disk {
    pub(super) fn new() -> Arc<Self> {
        let bytes = (0..DISK_BYTES).map(|at| first_byte(at / BLOCK)).collect();
        let (delay_us, failing) = (AtomicU64::new(0), AtomicU32::new(0));
        Arc::new(Self { bytes: Mutex::new(bytes), books: Mutex::default(), delay_us, failing })
    }

    pub(super) fn books(&self) -> Books {
        *self.books.lock().expect("books")
    }

    /// The byte that fills block `index`.
    pub(super) fn byte(&self, index: usize) -> u8 {
        let bytes = self.bytes.lock().expect("bytes");
        let block = &bytes[index * BLOCK..][..BLOCK];
        assert!(block.iter().all(|byte| *byte == block[0]), "block {index} is torn");
        block[0]
    }

    /// Whether no byte was changed.
    pub(super) fn is_untouched(&self) -> bool {
        (0..BLOCKS).all(|index| self.byte(index) == first_byte(index))
    }

    /// From now on every request takes this long.
    pub(super) fn slow_down(&self, delay: Duration) {
        self.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// The next `count` requests fail with `ENOSPC`.
    pub(super) fn fail_next(&self, count: u32) {
        self.failing.store(count, Ordering::Relaxed);
    }

    async fn begin(&self, book: impl FnOnce(&mut Books)) -> Result<()> {
        book(&mut self.books.lock().expect("books"));
        let delay = Duration::from_micros(self.delay_us.load(Ordering::Relaxed));
        if !delay.is_zero() {
            sleep_until(turn_now() + delay).await;
        }
        let fails = |left: u32| left.checked_sub(1);
        match self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails) {
            Ok(_) => Err(Error::new(ErrorKind::NoSpace, "the disk was told to fail")),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn fill(&self, offset: u64, len: u64, byte: u8) {
        self.bytes.lock().expect("bytes")[offset as usize..][..len as usize].fill(byte);
    }
}

/// The node of a [`Disk`] that the test keeps.
pub(super) struct DiskNode(pub(super) Arc<Disk>);

impl Node for DiskNode {
    fn driver(&self) -> &'static str {
        "counting"
    }

    fn info(&self, _: &[NodeInfo]) -> Result<NodeInfo> {
        let size_bytes = DISK_BYTES as u64;
        Ok(NodeInfo {
            size_bytes,
            limits: Limits::NONE,
            caps: Caps::FILTER,
            read_only: false,
            growable: false,
        })
    }

    fn read<'a>(&'a self, _: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            self.0.begin(|books| books.reads += 1).await?;
            let len = buf.len();
            buf.copy_from_slice(&self.0.bytes.lock().expect("bytes")[offset as usize..][..len]);
            Ok(buf)
        })
    }

    fn write<'a>(&'a self, _: Cx<'a>, offset: u64, buf: Buf, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.begin(|books| books.writes += 1).await?;
            self.0.bytes.lock().expect("bytes")[offset as usize..][..buf.len()]
                .copy_from_slice(&buf);
            Ok(())
        })
    }

    fn zero<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64, _: WriteFlags) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.begin(|books| books.zeros += 1).await?;
            self.0.fill(offset, len, 0);
            Ok(())
        })
    }

    fn discard<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            self.0.begin(|books| books.discards += 1).await?;
            self.0.fill(offset, len, 0);
            Ok(())
        })
    }

    fn flush<'a>(&'a self, _: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { self.0.begin(|books| books.flushes += 1).await })
    }

    fn block_status<'a>(&'a self, _: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, Vec<Extent>> {
        let extent = Extent { offset, len, kind: ExtentKind::Data, host_offset: None };
        Box::pin(async move { Ok(vec![extent]) })
    }
}

/// A filter that notes how much processor time its worker has spent between two reads.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<Mutex<Metered>>);

#[derive(Default)]
struct Metered {
    last: Option<Duration>,
    most: Duration,
}

impl Meter {
    /// The most since the last call.
    pub(super) fn take_most(&self) -> Duration {
        std::mem::take(&mut *self.0.lock().expect("a meter")).most
    }
}

impl Filter for Meter {
    fn driver(&self) -> &'static str {
        "meter"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        {
            let mut metered = self.0.lock().expect("a meter");
            let spent = metered.last.replace(now).map_or(Duration::ZERO, |last| now - last);
            metered.most = metered.most.max(spent);
        }
        cx.child(0)?.read(offset, buf).await
    }
}

/// How one block's request ended: its index, and the kind of its error.
pub(super) type End = (usize, Option<ErrorKind>);

/// A filter that turns each request into one a block, all in one turn of the worker, and notes how
/// each ended.
#[derive(Clone, Default)]
pub(super) struct Fan {
    ends: Arc<Mutex<Vec<End>>>,
}

impl Fan {
    /// The ends noted since the last call, by block.
    pub(super) fn take_ends(&self) -> Vec<End> {
        let mut ends = std::mem::take(&mut *self.ends.lock().expect("ends"));
        ends.sort_by_key(|(index, _)| *index);
        ends
    }

    async fn each<T>(
        &self,
        offset: u64,
        len: u64,
        call: impl AsyncFn(usize, u64) -> Result<T>,
    ) -> Result<Vec<T>> {
        let first = offset as usize / BLOCK;
        let one = async |index: usize| {
            let result = call(index - first, (index * BLOCK) as u64).await;
            let kind = result.as_ref().err().map(Error::kind);
            self.ends.lock().expect("ends").push((index, kind));
            result
        };
        let blocks = first..(offset + len) as usize / BLOCK;
        all(blocks.map(|index| Box::pin(one(index)) as Pin<Box<dyn Future<Output = _>>>).collect())
            .await
            .into_iter()
            .collect()
    }
}

/// Waits for all of `futures`.
async fn all<T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut values: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let _plug = (futures.len() > 1).then(blockloom::io::plug);
        for (value, future) in values.iter_mut().zip(&mut futures) {
            if value.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *value = Some(ready);
            }
        }
        if values.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    values.into_iter().flatten().collect()
}

impl Node for Fan {
    fn driver(&self) -> &'static str {
        "fan"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let limits = Limits { request_alignment: BLOCK as u32, ..Limits::NONE };
        Ok(NodeInfo { limits, ..NodeInfo::of_filter(children)? })
    }

    fn read<'a>(&'a self, cx: Cx<'a>, offset: u64, mut buf: BufMut) -> NodeFuture<'a, BufMut> {
        Box::pin(async move {
            let len = buf.len() as u64;
            let read = async |_, at| cx.child(0)?.read(at, BufMut::new(BLOCK)).await;
            let blocks = self.each(offset, len, read).await?;
            for (to, from) in buf.chunks_mut(BLOCK).zip(blocks) {
                to.copy_from_slice(&from);
            }
            Ok(buf)
        })
    }

    fn write<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        buf: Buf,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let len = buf.len() as u64;
            let write = async |index: usize, at| {
                let block = buf.slice(index * BLOCK..(index + 1) * BLOCK);
                cx.child(0)?.write(at, block, flags).await
            };
            self.each(offset, len, write).await.map(drop)
        })
    }

    fn zero<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
    ) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let zero = async |_, at| cx.child(0)?.zero(at, BLOCK as u64, flags).await;
            self.each(offset, len, zero).await.map(drop)
        })
    }

    fn discard<'a>(&'a self, cx: Cx<'a>, offset: u64, len: u64) -> NodeFuture<'a, ()> {
        Box::pin(async move {
            let discard = async |_, at| cx.child(0)?.discard(at, BLOCK as u64).await;
            self.each(offset, len, discard).await.map(drop)
        })
    }

    fn flush<'a>(&'a self, cx: Cx<'a>) -> NodeFuture<'a, ()> {
        Box::pin(async move { cx.child(0)?.flush().await })
    }

    fn block_status<'a>(
        &'a self,
        cx: Cx<'a>,
        offset: u64,
        len: u64,
    ) -> NodeFuture<'a, Vec<Extent>> {
        Box::pin(async move { cx.child(0)?.block_status(offset, len).await })
    }
}
