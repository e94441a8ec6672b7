//! What waits to be sent to one client: bounded, and never waited for by anybody but that client's own threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::limits::CONTROL_OUTPUT_BYTES_MAX;

/// A line with its end.
pub(crate) type Line = Arc<[u8]>;

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    /// Of these, and of the one that is being sent.
    bytes: usize,
    /// No line comes after these.
    is_ended: bool,
    /// Nothing can be sent any more.
    is_broken: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        while_: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, while_).unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an answer as soon as there is room. Whether the client is still there.
    pub(crate) fn answer(&self, line: Line) -> bool {
        let is_full = |state: &mut State| {
            state.bytes >= CONTROL_OUTPUT_BYTES_MAX && !state.is_broken && !state.is_ended
        };
        let mut state = self.wait(self.lock(), is_full);
        self.push(&mut state, line)
    }

    /// Queues an event, if there is room: false if there is none, or the client has gone.
    pub(crate) fn event(&self, line: &Line) -> bool {
        let mut state = self.lock();
        let has_room = state.bytes.saturating_add(line.len()) <= CONTROL_OUTPUT_BYTES_MAX;
        has_room && self.push(&mut state, Arc::clone(line))
    }

    fn push(&self, state: &mut State, line: Line) -> bool {
        if state.is_broken || state.is_ended {
            return false;
        }
        state.bytes = state.bytes.saturating_add(line.len());
        state.lines.push_back(line);
        self.changed.notify_all();
        true
    }

    /// Waits for the next line to send; `None` when there will be none.
    pub(crate) fn next(&self) -> Option<Line> {
        let is_idle =
            |state: &mut State| state.lines.is_empty() && !state.is_ended && !state.is_broken;
        let mut state = self.wait(self.lock(), is_idle);
        if state.is_broken { None } else { state.lines.pop_front() }
    }

    /// The line that [`Self::next`] gave has been sent.
    pub(crate) fn sent(&self, line: &Line) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(line.len());
        self.changed.notify_all();
    }

    /// What is queued is the rest.
    pub(crate) fn end(&self) {
        self.lock().is_ended = true;
        self.changed.notify_all();
    }

    /// Nothing can be sent any more; whether that is news.
    pub(crate) fn give_up(&self) -> bool {
        let mut state = self.lock();
        let is_news = !state.is_broken;
        state.is_broken = true;
        state.lines = VecDeque::new();
        self.changed.notify_all();
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(len_bytes: usize) -> Line {
        vec![b'x'; len_bytes].into()
    }

    #[test]
    fn events_do_not_wait_and_answers_do() {
        let output = Output::default();
        assert!(output.answer(line(2 * CONTROL_OUTPUT_BYTES_MAX)), "one answer may be longer");
        assert!(!output.event(&line(1)), "there is no room");
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| output.answer(line(3)));
            let first = output.next().expect("a line");
            assert!(!output.event(&line(1)), "it has not been sent yet");
            output.sent(&first);
            assert!(answer.join().expect("an answer"));
        });
        assert_eq!(output.next().map(|it| it.len()), Some(3));
        assert!(output.event(&line(1)));
        output.end();
        assert!(!output.event(&line(1)) && !output.answer(line(1)));
        assert_eq!(output.next().map(|it| it.len()), Some(1));
        assert_eq!(output.next(), None);
    }

    #[test]
    fn whoever_waits_is_let_go_when_the_client_is_given_up() {
        let output = Output::default();
        output.answer(line(CONTROL_OUTPUT_BYTES_MAX));
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| output.answer(line(1)));
            assert!(output.give_up());
            assert!(!answer.join().expect("an end"));
        });
        assert!(!output.give_up());
        assert_eq!(output.next(), None);
    }
}
