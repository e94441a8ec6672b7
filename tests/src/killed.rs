//! Processes that do not outlive who started them.

use std::ops::{Deref, DerefMut};
use std::process::Child;

/// A process; killed when dropped.
pub struct Killed(Child);

impl From<Child> for Killed {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Deref for Killed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Killed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
