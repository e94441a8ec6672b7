//! A container in memory that can lose power.
//!
//! Fault model: an operation takes one or more polls. What has not been flushed may be lost at a crash,
//! each 512-byte sector of it by itself, in any order. A future dropped before its end may have had its
//! effect or not. Anything may fail with an errno; a failed write may have had its effect.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::Random;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// Bytes, sparse.
#[derive(Clone, Default)]
struct Bytes {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
}

impl Bytes {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = &mut *buf;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (part, next) = rest.split_at_mut(rest.len().min(PAGE as usize - within));
            match self.pages.get(&(at / PAGE)) {
                Some(page) => part.copy_from_slice(&page[within..within + part.len()]),
                None => part.fill(0),
            }
            at += part.len() as u64;
            rest = next;
        }
        let past = (offset + buf.len() as u64).saturating_sub(self.len.max(offset)) as usize;
        let len = buf.len();
        buf[len - past..].fill(0);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (part, next) = rest.split_at(rest.len().min(PAGE as usize - within));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            rest = next;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE));
            if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
                page[(len % PAGE) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

struct State {
    now: Bytes,
    durable: Bytes,
    /// Since the last flush.
    unflushed: Vec<Change>,
    random: Random,
    /// Most polls that an operation waits.
    polls_max: u64,
    /// One in so many operations fails.
    fail_one_in: Option<u64>,
    len_max: u64,
    /// It has this length for good.
    end: Option<u64>,
    flushes: u64,
    operations: u64,
    /// Reads included.
    accesses: u64,
    accesses_max: u64,
    /// After so many operations the container is dead: what it had then is what is left.
    dies_at: Option<u64>,
    /// The number of flushes before it.
    flush_that_fails: Option<u64>,
}

enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A container in memory.
pub struct MemoryStorage {
    state: Mutex<State>,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl MemoryStorage {
    /// With this content, durable.
    pub fn new(content: Vec<u8>) -> Self {
        let mut bytes = Bytes::default();
        bytes.write(0, &content);
        let state = State {
            now: bytes.clone(),
            durable: bytes,
            unflushed: Vec::new(),
            random: Random::new(1),
            polls_max: 0,
            fail_one_in: None,
            len_max: u64::MAX,
            end: None,
            flushes: 0,
            operations: 0,
            accesses: 0,
            accesses_max: u64::MAX,
            dies_at: None,
            flush_that_fails: None,
        };
        Self { state: Mutex::new(state) }
    }

    /// Operations take up to so many polls, their number random.
    pub fn set_delays(&self, seed: u64, polls_max: u64) {
        let mut state = self.state();
        state.random = Random::new(seed);
        state.polls_max = polls_max;
    }

    /// One in so many operations fails with `EIO`.
    pub fn set_failures(&self, one_in: Option<u64>) {
        self.state().fail_one_in = one_in;
    }

    /// Writes that would make it longer than this fail with `ENOSPC`.
    pub fn set_len_max(&self, len_max: u64) {
        self.state().len_max = len_max;
    }

    /// Operations so far, reads included.
    pub fn accesses(&self) -> u64 {
        self.state().accesses
    }

    /// It may be accessed so many times more: one time more panics, as by code that does not end.
    pub fn set_accesses_max(&self, accesses: u64) {
        let mut state = self.state();
        state.accesses_max = state.accesses + accesses;
    }

    /// It is this long, for good, like a block device.
    pub fn set_end(&self, end: u64) {
        let mut state = self.state();
        state.end = Some(end);
        state.len_max = end;
        state.now.set_len(end);
        state.durable.set_len(end);
    }

    /// After so many more operations it answers `EIO` and changes no more.
    pub fn die_after(&self, operations: u64) {
        let mut state = self.state();
        state.dies_at = Some(state.operations + operations);
    }

    /// The flush after so many more fails: what it was to make durable may be, or not.
    pub fn fail_flush_after(&self, flushes: u64) {
        let mut state = self.state();
        state.flush_that_fails = Some(state.flushes + flushes);
    }

    /// Operations so far that change it, flushes included.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// What it holds now.
    pub fn content(&self) -> Vec<u8> {
        let state = self.state();
        let mut content = vec![0; state.now.len as usize];
        state.now.read(0, &mut content);
        content
    }

    /// Bytes, at once.
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) {
        self.state().now.read(offset, buf);
    }

    /// Writes at once, as a write by somebody who has waited for it.
    pub fn write_now(&self, offset: u64, bytes: &[u8]) {
        self.state().apply(Change::Write(offset, bytes.to_vec()));
    }

    /// What it may hold after a crash now: all that was flushed, and of the rest what the generator
    /// says, sector by sector.
    pub fn crash(&self, random: &mut Random) -> Self {
        // At one crash little is lost, at another one nearly all.
        let odds = 1 + random.below(4);
        self.crash_keeping(|| random.below(5) < odds)
    }

    /// What it holds after a crash now: all that was flushed, and of the rest each sector, or change of the
    /// length, that `keeps` says.
    pub fn crash_keeping(&self, mut keeps: impl FnMut() -> bool) -> Self {
        let state = self.state();
        let mut bytes = state.durable.clone();
        for change in &state.unflushed {
            match change {
                Change::Write(offset, data) => {
                    let mut at = 0;
                    while at < data.len() {
                        let to_sector_end = SECTOR - (offset + at as u64) % SECTOR;
                        let end = data.len().min(at + to_sector_end as usize);
                        if keeps() {
                            bytes.write(offset + at as u64, &data[at..end]);
                        }
                        at = end;
                    }
                }
                Change::SetLen(len) => {
                    if keeps() {
                        bytes.set_len(*len);
                    }
                }
            }
        }
        let mut content = vec![0; bytes.len as usize];
        bytes.read(0, &mut content);
        Self::new(content)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a few polls; says whether the operation fails.
    async fn delay(&self) -> Result<()> {
        let (mut polls, fails) = {
            let mut state = self.state();
            state.accesses += 1;
            assert!(state.accesses <= state.accesses_max, "the container is accessed without end");
            let polls_max = state.polls_max;
            let polls = if polls_max == 0 { 0 } else { state.random.below(polls_max + 1) };
            let fails = state.fail_one_in.is_some_and(|n| state.random.one_in(n));
            (polls, fails)
        };
        poll_fn(|context| {
            if polls == 0 {
                return Poll::Ready(());
            }
            polls -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        if fails { Err(eio()) } else { Ok(()) }
    }

    /// A change that happens while it is waited for, at its begin or its end; both if it is dropped or
    /// fails in between is decided by the generator.
    async fn change(&self, change: Change) -> Result<()> {
        let early = self.state().random.one_in(2);
        if let Change::Write(offset, bytes) = &change
            && offset + bytes.len() as u64 > self.state().len_max
        {
            return Err(full());
        }
        let mut change = Some(change);
        if early && let Some(change) = change.take() {
            self.state().apply(change);
        }
        self.delay().await?;
        if let Some(change) = change {
            self.state().apply(change);
        }
        if self.state().is_dead() { Err(eio()) } else { Ok(()) }
    }
}

impl State {
    fn is_dead(&self) -> bool {
        self.dies_at.is_some_and(|at| self.operations >= at)
    }

    fn apply(&mut self, change: Change) {
        if self.is_dead() {
            return;
        }
        self.operations += 1;
        match &change {
            Change::Write(offset, bytes) => self.now.write(*offset, bytes),
            Change::SetLen(len) => self.now.set_len(*len),
        }
        self.unflushed.push(change);
    }

    fn flush(&mut self, upto: usize) {
        if self.is_dead() {
            return;
        }
        self.operations += 1;
        self.flushes += 1;
        for change in self.unflushed.drain(..upto) {
            match change {
                Change::Write(offset, bytes) => self.durable.write(offset, &bytes),
                Change::SetLen(len) => self.durable.set_len(len),
            }
        }
    }
}

fn full() -> Error {
    Error::new(ErrorKind::NoSpace, "the container is full")
}

fn eio() -> Error {
    Error::new(ErrorKind::Storage(5), "the container failed")
}

impl Storage for MemoryStorage {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.delay().await?;
        let state = self.state();
        if state.is_dead() {
            return Err(eio());
        }
        state.now.read(offset, buf);
        Ok(())
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(Change::Write(offset, bytes.to_vec())).await
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        if offset.saturating_add(len) > self.state().len_max {
            return Err(full());
        }
        self.change(Change::Write(offset, vec![0; len as usize])).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        // What it reads afterwards is not known: here it never is what it was.
        let len = len.min(self.state().now.len.saturating_sub(offset));
        self.change(Change::Write(offset, vec![0xdd; len as usize])).await
    }

    async fn flush(&self) -> Result<()> {
        // Only what was complete when it was asked for has to be durable.
        let upto = self.state().unflushed.len();
        self.delay().await?;
        let mut state = self.state();
        if state.flush_that_fails == Some(state.flushes) {
            state.flush_that_fails = None;
            state.flushes += 1;
            return Err(eio());
        }
        let upto = upto.min(state.unflushed.len());
        state.flush(upto);
        if state.is_dead() { Err(eio()) } else { Ok(()) }
    }

    async fn len_bytes(&self) -> Result<u64> {
        Ok(self.state().now.len)
    }

    fn end_bytes(&self) -> Option<u64> {
        self.state().end
    }

    async fn set_len(&self, len_bytes: u64) -> Result<()> {
        if self.end_bytes().is_some() {
            return Ok(());
        }
        self.change(Change::SetLen(len_bytes)).await
    }
}
