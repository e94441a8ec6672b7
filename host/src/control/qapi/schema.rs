//! What `query-qmp-schema` says (QEMU, `qapi/introspect.json`: `SchemaInfo`).
//!
//! QEMU hides names of types behind numbers; here they keep their names, which promise no more.

use std::any::TypeId;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::QapiType;

/// A member of an object type.
pub(crate) struct MemberInfo {
    name: &'static str,
    type_name: String,
    is_optional: bool,
}

impl MemberInfo {
    /// One of type `T`.
    pub(crate) fn new<T: QapiType>(name: &'static str, schema: &mut Schema) -> Self {
        Self { name, type_name: T::schema(schema), is_optional: T::absent().is_some() }
    }

    fn to_json(&self) -> Value {
        match self.is_optional {
            true => json!({"name": self.name, "type": self.type_name, "default": null}),
            false => json!({"name": self.name, "type": self.type_name}),
        }
    }
}

/// Collects descriptions, each once.
#[derive(Default)]
pub(crate) struct Schema {
    entries: BTreeMap<String, Value>,
    /// Which type has a name: two of one name would hide each other.
    owners: BTreeMap<String, TypeId>,
    clashes: Vec<String>,
}

impl Schema {
    /// All descriptions, by name.
    pub(crate) fn into_entries(self) -> Vec<Value> {
        self.entries.into_values().collect()
    }

    /// Names that two types have.
    #[cfg(test)]
    pub(crate) fn clashes(&self) -> &[String] {
        &self.clashes
    }

    /// Describes `T` under a name, unless that has been done, or is being done (it holds itself).
    pub(crate) fn define<T: 'static>(
        &mut self,
        name: &str,
        describe: impl FnOnce(&mut Self) -> Value,
    ) -> String {
        let owner = TypeId::of::<T>();
        match self.owners.insert(name.to_owned(), owner) {
            Some(before) if before == owner => {}
            Some(_) => self.clashes.push(name.to_owned()),
            None => {
                let mut entry = describe(self);
                entry["name"] = name.into();
                self.entries.insert(name.to_owned(), entry);
            }
        }
        name.to_owned()
    }

    /// Describes what is no type of Rust: a command, an event, a union of them.
    pub(crate) fn insert(&mut self, name: &str, mut entry: Value) {
        entry["name"] = name.into();
        if self.entries.insert(name.to_owned(), entry).is_some() {
            self.clashes.push(name.to_owned());
        }
    }

    /// Describes what several may describe in the same words.
    pub(crate) fn insert_same(&mut self, name: &str, mut entry: Value) {
        entry["name"] = name.into();
        match self.entries.get(name) {
            Some(known) if *known == entry => {}
            _ => self.insert(name, entry),
        }
    }

    pub(super) fn builtin(&mut self, name: &str, json_type: &str) -> String {
        let entry = json!({"name": name, "meta-type": "builtin", "json-type": json_type});
        self.entries.entry(name.to_owned()).or_insert(entry);
        name.to_owned()
    }

    /// A list of what has this name.
    pub(crate) fn array(&mut self, element: &str) -> String {
        let name = format!("[{element}]");
        let entry = json!({"name": name, "meta-type": "array", "element-type": element});
        self.entries.entry(name.clone()).or_insert(entry);
        name
    }
}

/// The description of a struct.
pub(crate) fn object(members: &[MemberInfo]) -> Value {
    let members: Vec<Value> = members.iter().map(MemberInfo::to_json).collect();
    json!({"meta-type": "object", "members": members})
}

/// The description of a union.
pub(crate) fn union(members: &[MemberInfo], tag: &str, branches: &[(&str, String)]) -> Value {
    let branch = |(case, name): &(&str, String)| json!({"case": case, "type": name});
    let variants: Vec<Value> = branches.iter().map(branch).collect();
    let mut entry = object(members);
    entry["tag"] = tag.into();
    entry["variants"] = variants.into();
    entry
}

/// The description of a list of words.
pub(crate) fn words(words: &[&str]) -> Value {
    let members: Vec<Value> = words.iter().map(|word| json!({"name": word})).collect();
    json!({"meta-type": "enum", "members": members, "values": words})
}

/// The description of an alternate.
pub(crate) fn alternate(types: &[String]) -> Value {
    let members: Vec<Value> = types.iter().map(|name| json!({"type": name})).collect();
    json!({"meta-type": "alternate", "members": members})
}
