//! The allocator with the I/O that it needs.

use super::Image;
use super::allocator::{Allocator, Outcome, Run};
use crate::error::{Error, Result};
use crate::storage::Storage;

/// Clusters that count as used and have no mapping yet: given back when dropped.
pub(super) struct Reserved<'i> {
    image: &'i Image,
    run: Option<Run>,
    /// Whether they read as zeros.
    pub(super) reads_zero: bool,
}

impl<'i> Reserved<'i> {
    /// Of clusters with one reference for nobody yet.
    pub(super) fn new(image: &'i Image, run: Run) -> Self {
        Self { image, run: Some(run), reads_zero: false }
    }

    pub(super) fn first(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.first)
    }

    pub(super) fn count(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.count)
    }

    /// They have a mapping, or somebody else gives them back.
    pub(super) fn keep(mut self) -> Run {
        self.run.take().unwrap_or_else(|| Run::new(0, 0))
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.image.frees.retire(&self.image.turns, run);
        }
    }
}

impl Image {
    /// One to `wanted` contiguous clusters.
    pub(super) async fn allocate<S: Storage>(&self, s: &S, wanted: u64) -> Result<Reserved<'_>> {
        let found = self.with_blocks(s, |allocator| allocator.allocate(wanted)).await?;
        Ok(Reserved { image: self, run: Some(found.run), reads_zero: found.reads_zero })
    }

    /// So many contiguous clusters.
    pub(super) async fn allocate_contiguous<S: Storage>(
        &self,
        s: &S,
        count: u64,
    ) -> Result<Reserved<'_>> {
        let run = self.with_blocks(s, |allocator| allocator.allocate_contiguous(count)).await?;
        Ok(Reserved { image: self, run: Some(run), reads_zero: false })
    }

    /// Runs an operation, again whenever a block that it needs has been loaded.
    pub(super) async fn with_blocks<S: Storage, T>(
        &self,
        s: &S,
        mut operation: impl FnMut(&mut Allocator) -> Result<Outcome<T>>,
    ) -> Result<T> {
        loop {
            let outcome = operation(&mut self.allocator())?;
            match outcome {
                Outcome::Done(result) => return Ok(result),
                Outcome::NeedsBlock(index) => self.load_block(s, index).await?,
            }
        }
    }

    async fn load_block<S: Storage>(&self, s: &S, index: usize) -> Result<()> {
        let _loading = self.block_loads.lock(index as u64..index as u64 + 1).await;
        // While this is held nobody else brings the block in, so that it cannot change behind the read.
        let offset = {
            let allocator = self.allocator();
            if allocator.has_block(index) {
                return Ok(());
            }
            let Some(offset) = allocator.block_offset(index)? else { return Ok(()) };
            if self.format.cluster_size.index_of(offset.0) >= allocator.reached() {
                let message = format!("the refcount block at {:#x} lies past the end", offset.0);
                return Err(Error::corrupt(message));
            }
            offset.0
        };
        let mut bytes = vec![0; self.format.cluster_size.bytes() as usize];
        s.read(offset, &mut bytes).await?;
        while !self.allocator().insert_block(index, bytes.clone()) {
            self.write_back(s).await?;
        }
        Ok(())
    }

    /// Makes clusters free that nothing refers to any more, neither on disk nor in flight.
    pub(super) async fn reclaim<S: Storage>(&self, s: &S) -> Result<()> {
        let _reclaiming = self.reclaims.lock(0..1).await;
        while let Some(run) = self.frees.take_ready(&self.turns) {
            let mut ready = Ready { image: self, run: Some(run.clone()) };
            if self.discard_freed && self.is_last_reference(s, &run).await? {
                let bits = self.format.cluster_size.bits();
                // Advisory, so its failure is none. It has to end before the clusters are used again.
                let _ = s.discard(run.first << bits, run.count << bits).await;
            }
            self.with_blocks(s, |allocator| {
                let outcome = allocator.decrement(&run);
                if !matches!(outcome, Ok(Outcome::NeedsBlock(_))) {
                    ready.run = None;
                }
                outcome
            })
            .await?;
        }
        Ok(())
    }

    /// Whether nothing but a run that is about to be freed refers to its clusters. Then nothing will: no more bytes
    /// are put beside those in it.
    async fn is_last_reference<S: Storage>(&self, s: &S, run: &Run) -> Result<bool> {
        for cluster in run.first..run.first + run.count {
            let is_last = |allocator: &mut Allocator| {
                let outcome = allocator.refcount(cluster);
                if matches!(outcome, Outcome::Done(1)) {
                    allocator.seal(cluster);
                }
                Ok(outcome)
            };
            if self.with_blocks(s, is_last).await? != 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The end of the clusters in use.
    pub(super) async fn used_end<S: Storage>(&self, s: &S) -> Result<u64> {
        self.with_blocks(s, |allocator| Ok(allocator.used_end())).await
    }
}

/// A run taken from the ready ones; there again if this is dropped with it.
struct Ready<'i> {
    image: &'i Image,
    run: Option<Run>,
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.image.frees.put_back(run);
        }
    }
}
