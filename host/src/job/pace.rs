//! How a job keeps to its speed: what it has begun to copy it pays for by time, before it copies more, is ready, or
//! ends.

use std::cell::Cell;

use crate::io::Time;

/// What is still to be paid for: see the module.
#[derive(Default)]
pub(super) struct Pace {
    /// Bytes a second; 0 for no limit.
    speed: Cell<u64>,
    /// When it is paid for at that speed.
    paid_at: Cell<Time>,
}

impl Pace {
    /// So many bytes are begun now.
    pub(super) fn owe(&self, bytes: u64, speed: u64, now: Time) {
        self.go_at(speed, now);
        if speed > 0 {
            let from = self.paid_at.get().max(now);
            self.paid_at.set(after(from, bytes.into(), speed));
        }
    }

    /// When all is paid for at that speed, if it is not so by now.
    pub(super) fn due(&self, speed: u64, now: Time) -> Option<Time> {
        self.go_at(speed, now);
        Some(self.paid_at.get()).filter(|paid_at| speed > 0 && *paid_at > now)
    }

    /// Nothing is to be paid for any more.
    pub(super) fn forgive(&self) {
        self.paid_at.set(Time::default());
    }

    /// What is left is paid for at another speed from now on.
    fn go_at(&self, speed: u64, now: Time) {
        let before = self.speed.replace(speed);
        if before == speed {
            return;
        }
        let nanos = self.paid_at.get().as_nanos().saturating_sub(now.as_nanos());
        let bytes = u128::from(nanos) * u128::from(before) / NANOS_PER_SECOND;
        self.paid_at.set(if speed == 0 { now } else { after(now, bytes, speed) });
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// When so many bytes are paid for that are begun at `from`.
fn after(from: Time, bytes: u128, speed: u64) -> Time {
    let nanos = bytes.saturating_mul(NANOS_PER_SECOND) / u128::from(speed);
    let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
    Time::from_nanos(from.as_nanos().saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn what_was_begun_is_paid_for() {
        let pace = Pace::default();
        assert_eq!(pace.due(100, seconds(1)), None);
        pace.owe(200, 100, seconds(1));
        pace.owe(100, 100, seconds(2));
        assert_eq!(pace.due(100, seconds(2)), Some(seconds(4)));
        assert_eq!(pace.due(100, seconds(4)), None, "paid");
        // What was not asked for in time is not saved up.
        pace.owe(100, 100, seconds(9));
        assert_eq!(pace.due(100, seconds(9)), Some(seconds(10)));
        pace.forgive();
        assert_eq!(pace.due(100, seconds(9)), None);
    }

    #[test]
    fn another_speed_counts_for_what_is_left() {
        let pace = Pace::default();
        pace.owe(1000, 1, seconds(0));
        assert_eq!(pace.due(1, seconds(10)), Some(seconds(1000)));
        assert_eq!(pace.due(99, seconds(10)), Some(seconds(20)), "990 bytes are left");
        assert_eq!(pace.due(0, seconds(11)), None);
        assert_eq!(pace.due(1, seconds(11)), None, "without a limit all is paid for at once");
        pace.owe(u64::MAX, 1, seconds(11));
        assert_eq!(pace.due(1, seconds(11)), Some(Time::from_nanos(u64::MAX)));
        pace.owe(100, 0, seconds(12));
        assert_eq!(pace.due(0, seconds(12)), None);
    }
}
