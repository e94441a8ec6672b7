//! Filters that keep requests, limit them, or copy before a write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::stage::{BLOCK, CHANGED};
use crate::error::Result;
use crate::filter::Filter;
use crate::graph::Cx;
use crate::graph::testing::turn;
use crate::io::sim::Random;
use crate::io::{Buf, BufMut};
use crate::node::{Limits, NodeInfo, WriteFlags};

/// Shows its first child; does to requests what its parts say.
#[derive(Default)]
pub(super) struct TestFilter {
    pub(super) pause: Option<Pause>,
    pub(super) slots: Option<Slots>,
    pub(super) before_write: Option<BeforeWrite>,
    /// It is one that nobody may change.
    pub(super) is_read_only: bool,
    /// It takes whole blocks of this size alone.
    pub(super) block_bytes: Option<u32>,
}

/// Keeps each request for some turns by chance, before it goes on and before it ends.
pub(super) struct Pause {
    turns: u64,
    random: Mutex<Random>,
}

/// So many requests at once; the others wait.
pub(super) struct Slots(AtomicUsize);

/// Copies what a write is about to replace to the second child, once a block.
#[derive(Default)]
pub(super) struct BeforeWrite {
    is_armed: AtomicBool,
    /// Whether the copy of a block is done.
    blocks: Mutex<BTreeMap<u64, bool>>,
}

struct Slot<'a>(Option<&'a AtomicUsize>);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(free) = self.0 {
            free.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl TestFilter {
    pub(super) fn pausing(turns: u64, seed: u64) -> Self {
        let random = Mutex::new(Random::new(seed));
        Self { pause: Some(Pause { turns, random }), ..Self::default() }
    }

    pub(super) fn limited(self, requests: usize) -> Self {
        Self { slots: Some(Slots(AtomicUsize::new(requests))), ..self }
    }

    pub(super) fn copying_before_writes(self) -> Self {
        Self { before_write: Some(BeforeWrite::default()), ..self }
    }

    async fn pause(&self) {
        let Some(pause) = &self.pause else { return };
        let turns = lock(&pause.random).below(pause.turns);
        for _ in 0..turns {
            turn().await;
        }
    }

    async fn slot(&self) -> Slot<'_> {
        let Some(Slots(free)) = &self.slots else { return Slot(None) };
        // Others come first: whoever leaves and comes again would always find its slot free.
        turn().await;
        let take = |free: usize| free.checked_sub(1);
        while free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            turn().await;
        }
        Slot(Some(free))
    }
}

impl BeforeWrite {
    /// From now on the second child keeps what the first shows now.
    pub(super) fn arm(&self) {
        self.is_armed.store(true, Ordering::SeqCst);
    }

    async fn copy(&self, cx: Cx<'_>, offset: u64, len: u64) -> Result<()> {
        if !self.is_armed.load(Ordering::SeqCst) || cx.is_unchanged() {
            return Ok(());
        }
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            loop {
                let known = lock(&self.blocks).get(&block).copied();
                match known {
                    Some(true) => break,
                    Some(false) => turn().await,
                    None => {
                        lock(&self.blocks).insert(block, false);
                        let range = block * BLOCK..(block + 1) * BLOCK;
                        let copied = cx.copy(0, 1, range, CHANGED).await;
                        lock(&self.blocks).insert(block, true);
                        copied?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Filter for TestFilter {
    fn driver(&self) -> &'static str {
        "test-filter"
    }

    fn info(&self, children: &[NodeInfo]) -> Result<NodeInfo> {
        let info = NodeInfo::of_filter(children)?;
        let request_alignment = self.block_bytes.unwrap_or(info.limits.request_alignment);
        let limits = Limits { request_alignment, ..info.limits };
        Ok(NodeInfo { limits, read_only: info.read_only || self.is_read_only, ..info })
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        let _slot = self.slot().await;
        self.pause().await;
        cx.child(0)?.read(offset, buf).await
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        let _slot = self.slot().await;
        self.pause().await;
        if let Some(before_write) = &self.before_write {
            before_write.copy(cx, offset, buf.len() as u64).await?;
        }
        cx.child(0)?.write(offset, buf, flags).await?;
        self.pause().await;
        Ok(())
    }
}
