//! A transparent filter that takes its time, and fails now and then.

use std::cell::Cell;
use std::time::Duration;

use super::world;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Change, ChangeKind, Filter};
use crate::graph::Cx;
use crate::io::sim::{SECTOR, chance};
use crate::io::{Buf, BufMut, sleep_until, turn_now};
use crate::node::{Extent, WriteFlags};

/// See the module. What passes it is told to the world, as of a disk.
pub(super) struct Lag;

thread_local! {
    /// Requests of which one fails; 0: none.
    static FAILS: Cell<u64> = const { Cell::new(0) };
    static SWALLOWS: Cell<bool> = const { Cell::new(false) };
    static DAMAGES: Cell<u64> = const { Cell::new(0) };
}

/// A simulation begins: damage counts anew.
pub(super) fn begin() {
    FAILS.set(0);
    DAMAGES.set(0);
}

/// Whether requests get lost from now on: a rule of drivers, broken.
pub(super) fn set_swallows(swallows: bool) {
    SWALLOWS.set(swallows);
}

/// Once in how many requests filters fail from now on; 0: never.
pub(super) fn set_failures(one_in: u64) {
    FAILS.set(one_in);
}

fn fails() -> bool {
    FAILS.get() > 0 && chance(FAILS.get()) == 0
}

fn failure() -> Error {
    Error::new(ErrorKind::Io, "the seed wants it so")
}

async fn lag() {
    if SWALLOWS.get() && chance(200) == 0 {
        std::future::pending::<()>().await;
    }
    let micros = match chance(32) {
        0 => chance(20_000),
        1..=7 => chance(2000),
        8..=15 => 0,
        _ => chance(100),
    };
    if micros > 0 {
        sleep_until(turn_now() + Duration::from_micros(micros)).await;
    }
}

/// Bytes that nobody wrote, apart from those of the simulated files.
fn damaged(len: usize) -> (u64, Buf) {
    DAMAGES.set(DAMAGES.get() + 1);
    let word = 0xdead << 48 | 1 << 40 | DAMAGES.get();
    let mut buf = BufMut::new(len);
    buf.chunks_mut(8).for_each(|part| part.copy_from_slice(&word.to_le_bytes()));
    (word, buf.freeze())
}

impl Filter for Lag {
    fn driver(&self) -> &'static str {
        "lag"
    }

    async fn read(&self, cx: Cx<'_>, offset: u64, buf: BufMut) -> Result<BufMut> {
        lag().await;
        let buf = cx.child(0)?.read(offset, buf).await?;
        lag().await;
        if fails() { Err(failure()) } else { Ok(buf) }
    }

    async fn write(&self, cx: Cx<'_>, offset: u64, buf: Buf, flags: WriteFlags) -> Result<()> {
        lag().await;
        world::landed(cx.node_name(), offset, &buf);
        if !fails() {
            cx.child(0)?.write(offset, buf, flags).await?;
            lag().await;
            return Ok(());
        }
        let sectors = buf.len() / SECTOR;
        let (part, rest) = match chance(3) {
            // None of it, or some, or all.
            0 => (0, 0),
            1 => (chance(sectors as u64 + 1) as usize * SECTOR, 0),
            _ => (chance(sectors as u64) as usize * SECTOR, SECTOR),
        };
        if part > 0 {
            cx.child(0)?.write(offset, buf.slice(0..part), flags).await?;
        }
        if rest > 0 {
            let (word, bytes) = damaged(rest);
            let offset = offset + part as u64;
            let damage = world::begin_damage(cx.node_name(), offset / SECTOR as u64, word);
            let written = cx.child(0)?.write(offset, bytes, flags).await;
            world::end_damage(damage);
            written?;
        }
        lag().await;
        Err(failure())
    }

    async fn change(
        &self,
        _: Cx<'_>,
        change: Change,
        pass: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        lag().await;
        if change.kind != ChangeKind::Zero {
            return pass().await;
        }
        if fails() {
            return Err(failure());
        }
        pass().await?;
        lag().await;
        Ok(())
    }

    async fn flush(&self, cx: Cx<'_>) -> Result<()> {
        lag().await;
        if fails() { Err(failure()) } else { cx.child(0)?.flush().await }
    }

    async fn block_status(&self, cx: Cx<'_>, at: u64, len: u64) -> Result<Vec<Extent>> {
        lag().await;
        cx.child(0)?.block_status(at, len).await
    }
}
