//! Evidence: values that let the host leave bitmaps clean.
//!
//! | type | says | lives |
//! |---|---|---|
//! | [`SameView`] | two nodes show the same bytes | in the drained section that made it |
//!
//! Why that is enough. Fields are private and constructors check what they claim, in the section that
//! they borrow: a value cannot be made elsewhere, altered, or kept for another moment. Neither type is
//! `Clone`; what consumes one takes it by value.

mod same_view;

pub(super) use same_view::SameView;
