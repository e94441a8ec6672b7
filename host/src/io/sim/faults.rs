//! How often what goes wrong.

use super::random::Random;

/// Once in so many operations; never, if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Reads that fail.
    pub(crate) read: u64,
    /// Writes that fail with `EIO`.
    pub(crate) write: u64,
    /// Writes that fail with `ENOSPC`.
    pub(crate) space: u64,
    /// Syncs that fail.
    pub(crate) sync: u64,
    /// Reads and writes that are short.
    pub(crate) short: u64,
    /// Operations that are interrupted.
    pub(crate) interrupted: u64,
}

impl Faults {
    pub(crate) const NONE: Self =
        Self { read: 0, write: 0, space: 0, sync: 0, short: 0, interrupted: 0 };

    /// What a correct caller does not notice.
    pub(crate) const HARMLESS: Self = Self { short: 9, interrupted: 17, ..Self::NONE };

    /// Rates by chance; a third of the seeds has none that anybody would notice.
    pub(crate) fn by_chance(random: &mut Random) -> Self {
        if random.one_in(3) {
            return Self::HARMLESS;
        }
        let mut rate = |usual: u64| if random.one_in(3) { 0 } else { usual };
        let (read, write, space, sync) = (rate(40), rate(25), rate(60), rate(12));
        Self { read, write, space, sync, ..Self::HARMLESS }
    }
}

/// What becomes of an operation, as is settled when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Whole,
    Short,
    Interrupted,
    /// With an errno.
    Fails(i32),
}

pub(super) const EINTR: i32 = 4;
pub(super) const EIO: i32 = 5;
pub(super) const ENXIO: i32 = 6;
pub(super) const ENOSPC: i32 = 28;

impl Fate {
    pub(super) fn of_read(faults: &Faults, random: &mut Random) -> Self {
        match () {
            () if random.one_in(faults.read) => Self::Fails(EIO),
            () if random.one_in(faults.interrupted) => Self::Interrupted,
            () if random.one_in(faults.short) => Self::Short,
            () => Self::Whole,
        }
    }

    pub(super) fn of_write(faults: &Faults, random: &mut Random) -> Self {
        match () {
            () if random.one_in(faults.write) => Self::Fails(EIO),
            () if random.one_in(faults.space) => Self::Fails(ENOSPC),
            () if random.one_in(faults.interrupted) => Self::Interrupted,
            () if random.one_in(faults.short) => Self::Short,
            () => Self::Whole,
        }
    }

    pub(super) fn of_sync(faults: &Faults, random: &mut Random) -> Self {
        match () {
            () if random.one_in(faults.sync) => Self::Fails(EIO),
            () if random.one_in(faults.interrupted) => Self::Interrupted,
            () => Self::Whole,
        }
    }

    /// The errno, if it fails with one.
    pub(super) fn errno(self) -> Option<i32> {
        match self {
            Self::Whole | Self::Short => None,
            Self::Interrupted => Some(EINTR),
            Self::Fails(errno) => Some(errno),
        }
    }
}
