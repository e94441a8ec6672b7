//! Chains of disks against a model of bytes, by random steps.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::graph::LocalDrive;
use crate::node::ExtentKind;

/// A node of a chain, and what it is to hold.
struct Layer {
    memory: Arc<MemoryNode>,
    block_size: u64,
    is_overlay: bool,
    /// By byte; `None` where it has none of its own.
    own: Vec<Option<u8>>,
}

impl Layer {
    fn new(block_size: u32, size_bytes: u64, is_overlay: bool) -> Self {
        let make = if is_overlay { MemoryNode::overlay } else { MemoryNode::new };
        let size_bytes = size_bytes.next_multiple_of(block_size.into());
        let memory = Arc::new(make(size_bytes, block_size).expect("a node"));
        let own = vec![None; to_usize(size_bytes)];
        Self { memory, block_size: block_size.into(), is_overlay, own }
    }

    fn size_bytes(&self) -> u64 {
        self.own.len() as u64
    }

    /// Whole blocks around a range, or inside it.
    fn outer(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let end = (offset + len).next_multiple_of(self.block_size);
        to_usize(offset / self.block_size * self.block_size)..to_usize(end)
    }

    fn inner(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let start = offset.next_multiple_of(self.block_size);
        let end = (offset + len) / self.block_size * self.block_size;
        to_usize(start)..to_usize(end.max(start))
    }
}

/// Layers from the base up.
struct Chain(Vec<Layer>);

impl Chain {
    /// A drive on the layer `at`, with what stands under it.
    fn drive(&self, at: usize, order: Option<Order>) -> LocalDrive {
        let declared: Vec<Declared<'_>> = (0..=at)
            .map(|layer| {
                let drive = if layer == at { DriveUse::Writes } else { DriveUse::None };
                (&self.0[layer].memory, layer.checked_sub(1), drive)
            })
            .collect();
        drives(&declared, order).pop().flatten().expect("a drive")
    }

    fn view(&self, at: usize) -> Vec<u8> {
        let below = at.checked_sub(1).map(|below| self.view(below)).unwrap_or_default();
        let own = self.0[at].own.iter().enumerate();
        own.map(|(at, own)| own.or_else(|| below.get(at).copied()).unwrap_or(0)).collect()
    }

    fn size_below(&self, at: usize) -> u64 {
        at.checked_sub(1).map_or(0, |below| self.0[below].size_bytes())
    }

    /// Allocates whole blocks around a range, as a write of it does, and puts `bytes` there.
    fn put(&mut self, at: usize, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let view = self.view(at);
        let layer = &mut self.0[at];
        for block in layer.outer(offset, bytes.len() as u64) {
            layer.own[block].get_or_insert(view[block]);
        }
        for (own, byte) in layer.own[to_usize(offset)..].iter_mut().zip(bytes) {
            *own = Some(*byte);
        }
    }

    async fn step(&mut self, step: &Step, number: usize) -> Result<()> {
        let at = step.layer % self.0.len();
        let (size_bytes, block_size) = (self.0[at].size_bytes(), self.0[at].block_size);
        let (offset, len) = step.range(size_bytes, self.size_below(at));
        let drive = self.drive(at, None);
        match step.kind {
            Kind::Write => {
                let bytes: Vec<u8> =
                    (offset..offset + len).map(|byte| (byte * 7) as u8 ^ number as u8).collect();
                drive.write(offset, Buf::copy_of(&bytes), WriteFlags::NONE).await?;
                self.put(at, offset, &bytes);
            }
            Kind::Zero | Kind::ZeroKept => {
                let no_unmap = step.kind == Kind::ZeroKept;
                drive.zero(offset, len, WriteFlags { no_unmap, ..WriteFlags::NONE }).await?;
                self.put(at, offset, &vec![0; to_usize(len)]);
            }
            Kind::Discard => {
                drive.discard(offset, len).await?;
                let range = self.0[at].inner(offset, len);
                let own = self.0[at].own[range].iter_mut();
                own.filter(|own| own.is_some()).for_each(|own| *own = Some(0));
            }
            Kind::Deallocate => {
                let range = self.0[at].inner(offset, len);
                let order = Order::Deallocate(range.start as u64, range.len() as u64);
                let done = self.drive(at, Some(order)).flush().await;
                if !self.0[at].is_overlay {
                    assert!(done.is_err_and(|error| error.kind() == ErrorKind::NotSupported));
                    return Ok(());
                }
                done?;
                self.0[at].own[range].fill(None);
            }
            Kind::Resize => {
                let next_bytes = (offset + step.len).next_multiple_of(block_size).min(300 * KIB);
                let next_bytes = next_bytes / block_size * block_size;
                self.drive(at, Some(Order::Resize(next_bytes))).flush().await?;
                let shown = self.size_below(at).next_multiple_of(block_size);
                let own = &mut self.0[at].own;
                own.resize(to_usize(next_bytes), None);
                for byte in size_bytes..shown.min(next_bytes) {
                    own[to_usize(byte)] = Some(0);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the layer `at`, if anything is.
    async fn check(&self, at: usize, step: &Step) -> std::result::Result<(), String> {
        let (layer, view, drive) = (&self.0[at], self.view(at), self.drive(at, None));
        let size_bytes = layer.size_bytes();
        let wrong = |error: Error| format!("layer {at}: {error}");
        let info = drive.info().map_err(wrong)?;
        if info.size_bytes != size_bytes {
            return Err(format!("layer {at} has {} bytes, not {size_bytes}", info.size_bytes));
        }
        for (offset, len) in [(0, size_bytes), step.range(size_bytes, self.size_below(at))] {
            let got = drive.read(offset, BufMut::new(to_usize(len))).await.map_err(wrong)?;
            let expected = view[to_usize(offset)..].iter();
            if let Some(byte) = got.iter().zip(expected).position(|(got, byte)| got != byte) {
                return Err(format!("layer {at} differs at {}", offset + byte as u64));
            }
        }
        let mut from = 0;
        while from < size_bytes {
            for extent in drive.block_status(from, size_bytes - from).await.map_err(wrong)? {
                for byte in from..from + extent.len {
                    self.check_kind(at, byte, extent.kind, view[to_usize(byte)])?;
                }
                from += extent.len;
            }
        }
        Ok(())
    }

    fn check_kind(
        &self,
        at: usize,
        byte: u64,
        kind: ExtentKind,
        shown: u8,
    ) -> std::result::Result<(), String> {
        let own = self.0[at].own[to_usize(byte)].is_some();
        let is_right = match (self.0[at].is_overlay, kind) {
            // It knows of chunks alone.
            (false, kind) => kind == ExtentKind::Data || kind == ExtentKind::Hole && shown == 0,
            (true, ExtentKind::Data) => own,
            (true, ExtentKind::Zero) => own && shown == 0,
            (true, ExtentKind::Unallocated) => !own && byte < self.size_below(at),
            (true, ExtentKind::Hole) => !own && byte >= self.size_below(at) && shown == 0,
            (true, ExtentKind::Unreadable) => false,
        };
        if is_right { Ok(()) } else { Err(format!("layer {at}: byte {byte} is no {kind:?}")) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write,
    Zero,
    ZeroKept,
    Discard,
    Deallocate,
    Resize,
}

#[derive(Clone, Debug)]
struct Step {
    layer: usize,
    kind: Kind,
    /// What the range is near to: chunks, ends.
    near: usize,
    delta: i64,
    len: u64,
}

impl Step {
    fn range(&self, size_bytes: u64, size_below: u64) -> (u64, u64) {
        let chunk = chunks::CHUNK_BYTES as u64;
        let near = [0, chunk, 2 * chunk, size_bytes / 2, size_bytes, size_below][self.near];
        let offset = near.saturating_add_signed(self.delta).min(size_bytes);
        (offset, self.len.min(size_bytes - offset))
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        6 => Just(Kind::Write),
        2 => Just(Kind::Zero),
        1 => Just(Kind::ZeroKept),
        3 => Just(Kind::Discard),
        3 => Just(Kind::Deallocate),
        2 => Just(Kind::Resize),
    ];
    let delta = prop_oneof![Just(0_i64), -40..40_i64, -9000..9000_i64];
    let len = prop_oneof![3 => 0..40_u64, 3 => 0..12_000_u64, 1 => 0..200_000_u64];
    let step = (0..3_usize, kind, 0..6_usize, delta, len)
        .prop_map(|(layer, kind, near, delta, len)| Step { layer, kind, near, delta, len });
    prop::collection::vec(step, 1..24)
}

fn layers() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let size = prop_oneof![Just(150 * KIB), 0..40 * KIB, 120 * KIB..200 * KIB];
    let layer = (prop::sample::select(vec![1_u32, 512, 4096]), size);
    prop::collection::vec(layer, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Chains of one to three nodes of any block sizes, each shorter or longer than the one below; every
    /// step changes any of them, and each is looked at after it.
    #[test]
    fn chains_are_as_the_model(
        base_is_overlay: bool,
        layers in layers(),
        steps in steps(),
    ) {
        let found: std::result::Result<(), String> = on_worker(async move {
            let layer = |(at, (block_size, size_bytes)): (usize, &(u32, u64))| {
                Layer::new(*block_size, *size_bytes, at > 0 || base_is_overlay)
            };
            let mut chain = Chain(layers.iter().enumerate().map(layer).collect());
            for (number, step) in steps.iter().enumerate() {
                let done = chain.step(step, number).await;
                done.map_err(|error| format!("step {number}: {error}"))?;
                for at in 0..chain.0.len() {
                    let found = chain.check(at, step).await;
                    found.map_err(|wrong| format!("after step {number}: {wrong}"))?;
                }
            }
            Ok(())
        });
        prop_assert_eq!(found, Ok(()));
    }
}
