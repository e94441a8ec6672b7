//! The pieces of a job in flight: how many bytes at once, and which have failed.
//!
//! It begins with a few pieces, and takes more as long as that brings more: after each round, so many bytes as may
//! be in flight twice, the throughput is compared with the round before.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

use crate::error::Error;
use crate::io::{Time, turn_now};
use crate::limits::{COPY_MAX_BYTES, JOB_BYTES_MAX, JOB_PIECES_MAX};

/// A part of what a job has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    /// It needs no data.
    pub(super) is_zero: bool,
}

impl Piece {
    /// Bytes of memory that it takes.
    fn weight(&self) -> u64 {
        if self.is_zero { 0 } else { self.range.end - self.range.start }
    }
}

/// What a job has in flight at most, as far as somebody wants less than it may have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    pub(super) pieces: Option<usize>,
    /// Of all pieces together. One is always in flight.
    pub(super) bytes: Option<u64>,
    /// Of a piece that needs data.
    pub(super) piece_bytes: Option<u64>,
}

/// See the module.
pub(super) struct Flow(RefCell<State>);

struct State {
    most_pieces: usize,
    /// Up to so many bytes it adapts.
    bound_bytes: u64,
    pieces: usize,
    bytes: u64,
    /// Bytes that may be in flight.
    most_bytes: u64,
    round: Round,
    /// At most as many as have been in flight.
    failed: VecDeque<(Piece, Error)>,
    wakers: Vec<Waker>,
}

struct Round {
    began: Time,
    bytes: u64,
    /// Bytes a second of the round before.
    before: u64,
}

const START_BYTES: u64 = 4 * COPY_MAX_BYTES as u64;

impl Default for Flow {
    fn default() -> Self {
        let round = Round { began: turn_now(), bytes: 0, before: 0 };
        Self(RefCell::new(State {
            most_pieces: JOB_PIECES_MAX,
            bound_bytes: JOB_BYTES_MAX,
            pieces: 0,
            bytes: 0,
            most_bytes: START_BYTES,
            round,
            failed: VecDeque::new(),
            wakers: Vec::new(),
        }))
    }
}

impl Flow {
    /// Within bounds, before anything is in flight.
    pub(super) fn within(bounds: &Bounds) -> Self {
        let flow = Self::default();
        let mut state = flow.0.borrow_mut();
        state.most_pieces = bounds.pieces.unwrap_or(JOB_PIECES_MAX).clamp(1, JOB_PIECES_MAX);
        state.bound_bytes = bounds.bytes.unwrap_or(JOB_BYTES_MAX).clamp(1, JOB_BYTES_MAX);
        state.most_bytes = START_BYTES.min(state.bound_bytes);
        drop(state);
        flow
    }

    /// A piece begins.
    pub(super) fn begin(&self, piece: &Piece) {
        let mut state = self.0.borrow_mut();
        if state.pieces == 0 {
            // What nobody asked for says nothing of how fast it can be.
            (state.round.began, state.round.bytes) = (turn_now(), 0);
        }
        state.pieces += 1;
        state.bytes += piece.weight();
    }

    /// A piece has ended.
    pub(super) fn end(&self, piece: Piece, failed: Option<Error>) {
        let mut state = self.0.borrow_mut();
        state.pieces -= 1;
        state.bytes -= piece.weight();
        match failed {
            Some(error) => state.failed.push_back((piece, error)),
            None => state.adapt(piece.weight(), turn_now()),
        }
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The next piece that has failed.
    pub(super) fn take_failed(&self) -> Option<(Piece, Error)> {
        self.0.borrow_mut().failed.pop_front()
    }

    /// Waits until there is room for a piece, or one has failed.
    pub(super) async fn room(&self, piece: &Piece) {
        self.when(|state| {
            let fits = state.bytes + piece.weight() <= state.most_bytes || state.bytes == 0;
            (fits && state.pieces < state.most_pieces) || !state.failed.is_empty()
        })
        .await;
    }

    /// Waits until a piece has failed.
    pub(super) async fn failing(&self) {
        self.when(|state| !state.failed.is_empty()).await;
    }

    /// Whether there is room for a piece.
    pub(super) fn has_room(&self, piece: &Piece) -> bool {
        let state = self.0.borrow();
        let fits = state.bytes + piece.weight() <= state.most_bytes || state.bytes == 0;
        fits && state.pieces < state.most_pieces
    }

    /// Waits until nothing is in flight.
    pub(super) async fn idle(&self) {
        self.when(|state| state.pieces == 0).await;
    }

    async fn when(&self, is_so: impl Fn(&State) -> bool) {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if is_so(&state) {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl State {
    fn adapt(&mut self, bytes: u64, now: Time) {
        self.round.bytes += bytes;
        if self.round.bytes < 2 * self.most_bytes {
            return;
        }
        let nanos = now.since(self.round.began).as_nanos().max(1);
        let rate = u128::from(self.round.bytes) * 1_000_000_000 / nanos;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let before = self.round.before;
        self.most_bytes = match () {
            // A tenth more, or less, is no accident.
            () if rate > before.saturating_add(before / 10) => self.most_bytes.saturating_mul(2),
            () if rate < before - before / 10 => self.most_bytes / 2,
            () => self.most_bytes,
        }
        .clamp(self.bound_bytes.min(COPY_MAX_BYTES as u64), self.bound_bytes);
        self.round = Round { began: now, bytes: 0, before: rate };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Bytes that may be in flight after rounds of which each takes so many milliseconds for a MiB.
    fn after(rounds: &[u64]) -> Vec<u64> {
        let flow = Flow::default();
        let mut state = flow.0.borrow_mut();
        let mut now = state.round.began.as_nanos();
        let mut most = Vec::new();
        for millis in rounds {
            let pieces = 2 * state.most_bytes / MIB;
            for _ in 0..pieces {
                now += millis * 1_000_000;
                state.adapt(MIB, Time::from_nanos(now));
            }
            most.push(state.most_bytes / MIB);
        }
        most
    }

    #[test]
    fn no_more_is_in_flight_than_is_wanted() {
        let piece = |bytes: u64| Piece { range: 0..bytes, is_zero: false };
        let few = Flow::within(&Bounds { pieces: Some(2), ..Bounds::default() });
        (0..2).for_each(|_| few.begin(&piece(512)));
        assert!(!few.has_room(&piece(512)));
        few.end(piece(512), None);
        assert!(few.has_room(&piece(512)));
        let small = Flow::within(&Bounds { bytes: Some(MIB / 2), ..Bounds::default() });
        assert!(small.has_room(&piece(MIB)), "one is always possible");
        small.begin(&piece(MIB / 4));
        assert!(small.has_room(&piece(MIB / 4)) && !small.has_room(&piece(MIB / 2)));
        small.end(piece(MIB / 4), None);
        let mut state = small.0.borrow_mut();
        let mut now = state.round.began.as_nanos();
        for _ in 0..64 {
            now += 1000;
            state.adapt(MIB / 4, Time::from_nanos(now));
        }
        assert_eq!(state.most_bytes, MIB / 2);
    }

    #[test]
    fn more_is_in_flight_as_long_as_that_brings_more() {
        assert_eq!(after(&[10, 5, 2, 1]), [8, 16, 16, 16], "bounded");
        assert_eq!(after(&[10, 10, 10]), [8, 8, 8], "no faster");
        assert_eq!(after(&[10, 5, 9, 18, 36, 72, 144]), [8, 16, 8, 4, 2, 1, 1], "slower");
    }
}
