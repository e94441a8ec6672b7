//! The verdict word of `poll-one`.

use crate::Violation;

/// What `poll-one` answers.
///
/// ```text
///  63                                    8 7        0
/// +----------------------------------------+----------+
/// |  not before, ns (0: now)               |    1     |   forward
/// +----------------------------------------+----------+
/// |  0                                     |    0     |   actions are queued: call poll([])
/// +----------------------------------------+----------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PollOne {
    /// The answer is among the actions that `poll` with no events returns.
    Queued,
    /// FORWARD without flags.
    Forward {
        /// When, at the earliest; 0 for now.
        not_before_ns: u64,
    },
}

impl PollOne {
    /// The latest time that the word can carry, some 2.28 years; later ones are queued.
    pub const MAX_NOT_BEFORE_NS: u64 = u64::MAX >> 8;
    const FORWARD: u64 = 1;

    /// The word; a time past [`Self::MAX_NOT_BEFORE_NS`] is cut down to it.
    #[inline]
    #[must_use]
    pub const fn encode(self) -> u64 {
        match self {
            Self::Queued => 0,
            Self::Forward { not_before_ns } if not_before_ns > Self::MAX_NOT_BEFORE_NS => {
                Self::FORWARD | Self::MAX_NOT_BEFORE_NS << 8
            }
            Self::Forward { not_before_ns } => Self::FORWARD | not_before_ns << 8,
        }
    }

    /// Reads the word.
    ///
    /// # Errors
    ///
    /// [`Violation::PollOne`] if it is neither form.
    #[inline]
    pub const fn decode(word: u64) -> Result<Self, Violation> {
        match (word, word & 0xff) {
            (_, Self::FORWARD) => Ok(Self::Forward { not_before_ns: word >> 8 }),
            (0, _) => Ok(Self::Queued),
            _ => Err(Violation::PollOne(word)),
        }
    }
}
