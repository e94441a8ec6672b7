//! Declarations of types: see the module above.

/// What a field is called in the protocol.
macro_rules! wire_name {
    ($field:ident) => {{
        const NAME: &str = stringify!($field);
        const BYTES: [u8; NAME.len()] = $crate::control::qapi::with_dashes(NAME);
        match std::str::from_utf8(&BYTES) {
            Ok(name) => name,
            Err(_) => NAME,
        }
    }};
    ($field:ident, $wire:literal) => {
        $wire
    };
}

/// A struct: see [`super`].
macro_rules! qapi_struct {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident $(as $wire:literal)?: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type,)*
        }

        impl $crate::control::qapi::QapiType for $name {
            fn schema(schema: &mut $crate::control::qapi::Schema) -> String {
                schema.define::<Self>(stringify!($name), |schema| {
                    let members =
                        <Self as $crate::control::qapi::QapiObject>::members(schema);
                    $crate::control::qapi::object(&members)
                })
            }

            fn parse(
                value: serde_json::Value,
                at: &$crate::control::qapi::Place<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                $crate::control::qapi::parse_object(value, at)
            }

            fn emit(self) -> Option<serde_json::Value> {
                Some($crate::control::qapi::emit_object(self))
            }

            fn is_kind(value: &serde_json::Value) -> bool {
                value.is_object()
            }
        }

        #[allow(unused_mut, unused_variables, reason = "some have no members")]
        impl $crate::control::qapi::QapiObject for $name {
            fn members(
                schema: &mut $crate::control::qapi::Schema,
            ) -> Vec<$crate::control::qapi::MemberInfo> {
                vec![$($crate::control::qapi::MemberInfo::new::<$type>(
                    $crate::control::qapi::wire_name!($field $(, $wire)?),
                    schema,
                ),)*]
            }

            fn take(
                members: &mut $crate::control::qapi::Members<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                Ok(Self {
                    $($field: members.take(
                        $crate::control::qapi::wire_name!($field $(, $wire)?),
                    )?,)*
                })
            }

            fn put(self, to: &mut serde_json::Map<String, serde_json::Value>) {
                $(if let Some(value) = $crate::control::qapi::QapiType::emit(self.$field) {
                    let name = $crate::control::qapi::wire_name!($field $(, $wire)?);
                    to.insert(name.to_owned(), value);
                })*
            }
        }
    };
}

/// A struct that is sent as an event.
macro_rules! qapi_event {
    (
        $(#[$meta:meta])*
        $vis:vis event $event:literal $name:ident { $($members:tt)* }
    ) => {
        $crate::control::qapi::qapi_struct! {
            $(#[$meta])*
            $vis struct $name { $($members)* }
        }

        impl $crate::control::qapi::QapiEvent for $name {
            const NAME: &'static str = $event;
        }
    };
}

/// A list of words.
macro_rules! qapi_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$word_meta:meta])* $variant:ident = $word:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$word_meta])* $variant,)*
        }

        impl $crate::control::qapi::QapiType for $name {
            fn schema(schema: &mut $crate::control::qapi::Schema) -> String {
                schema.define::<Self>(stringify!($name), |_| {
                    let words = <Self as $crate::control::qapi::QapiEnum>::WORDS;
                    $crate::control::qapi::words(words)
                })
            }

            fn parse(
                value: serde_json::Value,
                at: &$crate::control::qapi::Place<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                let word = <String as $crate::control::qapi::QapiType>::parse(value, at)?;
                match word.as_str() {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(at.not_accepted(&word)),
                }
            }

            fn emit(self) -> Option<serde_json::Value> {
                Some(match self {
                    $(Self::$variant => $word.into(),)*
                })
            }

            fn is_kind(value: &serde_json::Value) -> bool {
                value.is_string()
            }
        }

        impl $crate::control::qapi::QapiEnum for $name {
            const WORDS: &'static [&'static str] = &[$($word,)*];
        }
    };
}

/// A struct with a member, of a list of words, on which more members depend: those of `base` and of the branch
/// stand beside each other.
macro_rules! qapi_union {
    (
        $(#[$meta:meta])*
        $vis:vis union $name:ident by $tag:literal: $tags:ident {
            base: $base:ty,
            $(#[$branches_meta:meta])*
            branches: $branches:ident {
                $($(#[$branch_meta:meta])* $variant:ident($type:ty) = $case:literal,)*
            }
        }
    ) => {
        $crate::control::qapi::qapi_enum! {
            /// Which one of the union it is.
            $vis enum $tags {
                $($(#[$branch_meta])* $variant = $case,)*
            }
        }

        $(#[$branches_meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis enum $branches {
            $($(#[$branch_meta])* $variant($type),)*
        }

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name {
            /// What all have.
            $vis base: $base,
            /// What this one has.
            $vis branch: $branches,
        }

        impl $crate::control::qapi::QapiType for $name {
            fn schema(schema: &mut $crate::control::qapi::Schema) -> String {
                schema.define::<Self>(stringify!($name), |schema| {
                    let members =
                        <Self as $crate::control::qapi::QapiObject>::members(schema);
                    let branches = [$((
                        $case,
                        <$type as $crate::control::qapi::QapiType>::schema(schema),
                    ),)*];
                    $crate::control::qapi::union(&members, $tag, &branches)
                })
            }

            fn parse(
                value: serde_json::Value,
                at: &$crate::control::qapi::Place<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                $crate::control::qapi::parse_object(value, at)
            }

            fn emit(self) -> Option<serde_json::Value> {
                Some($crate::control::qapi::emit_object(self))
            }

            fn is_kind(value: &serde_json::Value) -> bool {
                value.is_object()
            }
        }

        impl $crate::control::qapi::QapiObject for $name {
            fn members(
                schema: &mut $crate::control::qapi::Schema,
            ) -> Vec<$crate::control::qapi::MemberInfo> {
                let tag = $crate::control::qapi::MemberInfo::new::<$tags>($tag, schema);
                let mut members = <$base as $crate::control::qapi::QapiObject>::members(schema);
                members.insert(0, tag);
                members
            }

            fn take(
                members: &mut $crate::control::qapi::Members<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                let tag: $tags = members.take($tag)?;
                let base = <$base as $crate::control::qapi::QapiObject>::take(members)?;
                let branch = match tag {
                    $($tags::$variant => $branches::$variant(
                        <$type as $crate::control::qapi::QapiObject>::take(members)?,
                    ),)*
                };
                Ok(Self { base, branch })
            }

            fn put(self, to: &mut serde_json::Map<String, serde_json::Value>) {
                $crate::control::qapi::QapiObject::put(self.base, to);
                match self.branch {
                    $($branches::$variant(branch) => {
                        to.insert($tag.to_owned(), $case.into());
                        $crate::control::qapi::QapiObject::put(branch, to);
                    })*
                }
            }
        }
    };
}

/// One of several types of different kinds in JSON: the first that fits.
macro_rules! qapi_alternate {
    (
        $(#[$meta:meta])*
        $vis:vis alternate $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident($type:ty),)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant($type),)*
        }

        impl $crate::control::qapi::QapiType for $name {
            fn schema(schema: &mut $crate::control::qapi::Schema) -> String {
                schema.define::<Self>(stringify!($name), |schema| {
                    let types = [$(<$type as $crate::control::qapi::QapiType>::schema(schema),)*];
                    $crate::control::qapi::alternate(&types)
                })
            }

            fn parse(
                value: serde_json::Value,
                at: &$crate::control::qapi::Place<'_>,
            ) -> $crate::control::error::QmpResult<Self> {
                $(if <$type as $crate::control::qapi::QapiType>::is_kind(&value) {
                    let parsed = <$type as $crate::control::qapi::QapiType>::parse(value, at)?;
                    return Ok(Self::$variant(parsed));
                })*
                Err(at.expected(stringify!($name)))
            }

            fn emit(self) -> Option<serde_json::Value> {
                match self {
                    $(Self::$variant(value) => {
                        $crate::control::qapi::QapiType::emit(value)
                    })*
                }
            }

            fn is_kind(value: &serde_json::Value) -> bool {
                $(<$type as $crate::control::qapi::QapiType>::is_kind(value))||*
            }
        }
    };
}

/// A field's name in the protocol: at compile time, so that it costs nothing.
pub(crate) const fn with_dashes<const LEN: usize>(name: &str) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut at = 0;
    while at < LEN {
        let byte = name.as_bytes()[at];
        bytes[at] = if byte == b'_' { b'-' } else { byte };
        at += 1;
    }
    bytes
}

pub(crate) use {qapi_alternate, qapi_enum, qapi_event, qapi_struct, qapi_union, wire_name};
