//! Waiting for a condition that nothing announces.

use std::time::{Duration, Instant};

/// Time after which a test gives up on anything that should happen at once. Generous: the machine may
/// be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Polls `condition` until it gives a value.
///
/// # Panics
/// When it has not come true by [`DEADLINE`]; `what` says what was waited for.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begin.elapsed() < DEADLINE, "did not happen in {DEADLINE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}
