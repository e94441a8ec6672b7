//! Where a value stands among a command's arguments, for messages.

use std::fmt;

use super::super::error::QmpError;

/// A path of members and indices.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    above: Option<&'a Self>,
    part: Part<'a>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Root,
    Member(&'a str),
    Index(usize),
}

/// Characters of a client's word that a message repeats.
const SHOWN_MAX: usize = 256;

impl<'a> Place<'a> {
    /// The arguments themselves.
    pub(crate) const ROOT: Self = Self { above: None, part: Part::Root };

    /// A member of what stands here.
    pub(crate) fn member(&'a self, name: &'a str) -> Self {
        Self { above: Some(self), part: Part::Member(name) }
    }

    /// An element of what stands here.
    pub(crate) fn element(&'a self, index: usize) -> Self {
        Self { above: Some(self), part: Part::Index(index) }
    }

    /// Whether it stands within more than so many members and elements.
    pub(super) fn is_deeper_than(&self, most: usize) -> bool {
        std::iter::successors(Some(self), |place| place.above).nth(most).is_some()
    }

    /// The error of a value of another kind.
    pub(crate) fn expected(&self, kind: &str) -> QmpError {
        QmpError::generic(format!("Invalid parameter type for '{self}', expected: {kind}"))
    }

    /// The error of a word that is not in the list; QEMU says the last part of the path alone.
    pub(crate) fn not_accepted(&self, word: &str) -> QmpError {
        let word = clip(word);
        let desc = match self.part {
            Part::Member(name) => {
                format!("Parameter '{}' does not accept value '{word}'", clip(name))
            }
            _ => format!("Parameter '{self}' does not accept value '{word}'"),
        };
        QmpError::generic(desc)
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let above = self.above.filter(|above| !matches!(above.part, Part::Root));
        above.map_or(Ok(()), |above| above.fmt(f))?;
        match self.part {
            Part::Root => Ok(()),
            Part::Member(name) if above.is_some() => write!(f, ".{}", clip(name)),
            Part::Member(name) => f.write_str(&clip(name)),
            Part::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The beginning of a word that may be as long as a command.
pub(crate) fn clip(word: &str) -> String {
    match word.char_indices().nth(SHOWN_MAX) {
        None => word.to_owned(),
        Some((end, _)) => format!("{}…", &word[..end]),
    }
}
