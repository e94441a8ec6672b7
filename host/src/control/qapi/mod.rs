//! Types of commands, their results, and events: from one declaration come reading, writing, and the schema.
//!
//! ```text
//! qapi_struct! { pub struct BlockResize { device: Option<String>, node_name: Option<String>, size: i64 } }
//!     ├─ parse   {"node-name": "disk", "size": 512} → BlockResize, or "Parameter 'size' is missing"
//!     ├─ emit    the other way
//!     └─ schema  what `query-qmp-schema` says of it
//! ```
//!
//! A member is called as its field, with `-` for `_`, unless `as "name"` says otherwise; an `Option` may be
//! absent. [`qapi_enum!`] is a list of words, [`qapi_union!`] has members that depend on one of them,
//! [`qapi_alternate!`] is one of several types that differ in JSON, [`qapi_event!`] is a struct that is sent as
//! an event. Errors are in the words of QEMU's visitors (`qapi/qapi-visit-core.c`).

mod macros;
mod place;
mod primitives;
mod schema;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub(crate) use macros::{
    qapi_alternate, qapi_enum, qapi_event, qapi_struct, qapi_union, wire_name, with_dashes,
};
pub(crate) use place::{Place, clip};
pub(crate) use primitives::Null;
pub(crate) use schema::{MemberInfo, Schema, alternate, object, union, words};

use super::error::{QmpError, QmpResult};

/// A type of the protocol.
pub(crate) trait QapiType: Sized + 'static {
    /// Describes it in the schema; gives its name there.
    fn schema(schema: &mut Schema) -> String;

    /// Reads it; `at` is where it stands among a command's arguments.
    fn parse(value: Value, at: &Place<'_>) -> QmpResult<Self>;

    /// Writes it; `None` leaves the member out that it stands for.
    fn emit(self) -> Option<Value>;

    /// What stands for a member that is absent, if it may be.
    fn absent() -> Option<Self> {
        None
    }

    /// Whether it can be read from this JSON, as far as its kind goes: by that alternates are told apart.
    fn is_kind(value: &Value) -> bool;
}

/// A type with members: the arguments of a command, a part of a union.
pub(crate) trait QapiObject: QapiType {
    /// Describes its members, but for those of a union's branches.
    fn members(schema: &mut Schema) -> Vec<MemberInfo>;

    /// Reads its members, and leaves others.
    fn take(members: &mut Members<'_>) -> QmpResult<Self>;

    /// Writes its members.
    fn put(self, to: &mut Map<String, Value>);
}

/// A type of which there is a list of words.
pub(crate) trait QapiEnum: QapiType {
    /// The words.
    const WORDS: &'static [&'static str];
}

/// What is sent to clients unasked.
pub(crate) trait QapiEvent: QapiObject {
    /// Its name.
    const NAME: &'static str;
}

/// The members of an object that have not been read yet.
pub(crate) struct Members<'a> {
    map: Map<String, Value>,
    at: &'a Place<'a>,
}

impl<'a> Members<'a> {
    /// Of a value that must be an object.
    pub(crate) fn of(value: Value, at: &'a Place<'a>) -> QmpResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, at }),
            _ => Err(at.expected("object")),
        }
    }

    /// Reads one.
    pub(crate) fn take<T: QapiType>(&mut self, name: &str) -> QmpResult<T> {
        let at = self.at.member(name);
        match self.map.remove(name) {
            Some(value) => T::parse(value, &at),
            None => {
                T::absent().ok_or_else(|| QmpError::generic(format!("Parameter '{at}' is missing")))
            }
        }
    }

    /// Refuses what has not been read.
    pub(crate) fn finish(self) -> QmpResult<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let name = self.at.member(name);
                Err(QmpError::generic(format!("Parameter '{name}' is unexpected")))
            }
        }
    }
}

/// Members and elements within each other. A graph can be deeper: nodes that are there are named.
const DEPTH_MAX: usize = 64;

/// Reads an object: all that it has must be its members.
pub(crate) fn parse_object<T: QapiObject>(value: Value, at: &Place<'_>) -> QmpResult<T> {
    if at.is_deeper_than(DEPTH_MAX) {
        let desc = format!("arguments are nested more than {DEPTH_MAX} deep: give nodes names");
        return Err(QmpError::generic(desc));
    }
    let mut members = Members::of(value, at)?;
    let parsed = T::take(&mut members)?;
    members.finish()?;
    Ok(parsed)
}

/// Writes an object.
pub(crate) fn emit_object(object: impl QapiObject) -> Value {
    let mut map = Map::new();
    object.put(&mut map);
    Value::Object(map)
}
