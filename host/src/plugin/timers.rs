//! The timers of a guest.
//!
//! They are in the store's place, by when they come due; what wakes a worker then is one task of its own
//! ([`LocalPlugin::alarm_at`](super::local::LocalPlugin::alarm_at)), however many there are.

use std::collections::{BTreeSet, HashMap};

use blockloom_abi::Token;

/// See the module. Bounded by the operations that an instance may have in flight.
#[derive(Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(u64, Token)>,
    times: HashMap<Token, u64>,
}

impl Timers {
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    /// Sets one, or changes its time.
    pub(super) fn set(&mut self, token: Token, at_ns: u64) {
        self.remove(token);
        self.times.insert(token, at_ns);
        self.by_time.insert((at_ns, token));
    }

    /// Ends one; `false` if there is none under that token.
    pub(super) fn remove(&mut self, token: Token) -> bool {
        match self.times.remove(&token) {
            Some(at_ns) => self.by_time.remove(&(at_ns, token)),
            None => false,
        }
    }

    /// When the next one comes due.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.by_time.first().map(|(at_ns, _)| *at_ns)
    }

    /// Takes one that is due.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<Token> {
        let &(_, token) = self.by_time.first().filter(|(at_ns, _)| *at_ns <= now_ns)?;
        self.remove(token);
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_due_in_order_unless_they_are_dropped() {
        let mut timers = Timers::default();
        for (token, at_ns) in [(1, 30), (2, 10), (3, 20), (4, 20)] {
            timers.set(Token(token), at_ns);
        }
        assert!(timers.remove(Token(3)) && !timers.remove(Token(3)));
        timers.set(Token(1), 15);
        assert_eq!((timers.next_ns(), timers.len()), (Some(10), 3));
        assert_eq!(timers.take_due(9), None);
        let due: Vec<_> = std::iter::from_fn(|| timers.take_due(15)).collect();
        assert_eq!(due, [Token(2), Token(1)]);
        assert_eq!((timers.next_ns(), timers.len()), (Some(20), 1));
    }
}
