//! The speed of what is copied of its own accord.

use std::cell::Cell;

/// When the next bytes may go; times in nanoseconds.
#[derive(Debug)]
pub struct Pace {
    speed: Cell<Option<u64>>,
    next: Cell<u64>,
}

impl Pace {
    /// So many bytes a second; none for no limit.
    #[must_use]
    pub fn new(speed: Option<u64>) -> Self {
        Self { speed: Cell::new(speed), next: Cell::new(0) }
    }

    /// From now on at this speed.
    pub fn set(&self, speed: Option<u64>) {
        self.speed.set(speed);
        self.next.set(0);
    }

    /// The time at which `bytes` more may go.
    pub fn next(&self, now: u64, bytes: u64) -> u64 {
        let Some(speed) = self.speed.get() else { return now };
        let start = self.next.get().max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(speed.max(1));
        self.next.set(start.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_at_their_time() {
        let pace = Pace::new(Some(1000));
        assert_eq!(
            [pace.next(5, 500), pace.next(5, 1), pace.next(9_000_000_000, 1)],
            [5, 500_000_005, 9_000_000_000]
        );
        assert_eq!(Pace::new(None).next(7, u64::MAX), 7);
    }
}
