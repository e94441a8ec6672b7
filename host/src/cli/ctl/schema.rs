//! What a host says of its commands, looked up.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::client::{Client, Failure};

/// The answer to `query-qmp-schema`, by name.
pub(super) struct Schema {
    entries: BTreeMap<String, Value>,
}

impl Schema {
    pub(super) fn of(client: &mut Client) -> Result<Self, Failure> {
        Ok(Self::new(client.run("query-qmp-schema", json!({}))?))
    }

    pub(super) fn new(value: Value) -> Self {
        let Value::Array(entries) = value else { return Self { entries: BTreeMap::new() } };
        let entries = entries.into_iter();
        let named = entries.filter_map(|entry| Some((entry["name"].as_str()?.to_owned(), entry)));
        Self { entries: named.collect() }
    }

    /// The names of all commands.
    pub(super) fn commands(&self) -> impl Iterator<Item = &str> {
        let all = self.entries.iter();
        all.filter(|(_, entry)| entry["meta-type"] == "command").map(|(name, _)| name.as_str())
    }

    pub(super) fn has_command(&self, name: &str) -> bool {
        self.commands().any(|command| command == name)
    }

    /// The type of a command's arguments.
    pub(super) fn arguments_of(&self, command: &str) -> Option<&str> {
        self.entries.get(command)?["arg-type"].as_str()
    }

    /// The members of an object type, those of a union's branches among them, with their types.
    pub(super) fn members_of(&self, of: &str) -> impl Iterator<Item = (&str, &str)> {
        let entry = self.entries.get(of);
        let variants = entry.and_then(|entry| entry["variants"].as_array());
        let branches = variants.into_iter().flatten();
        let branches = branches.filter_map(|it| self.entries.get(it["type"].as_str()?));
        let all = entry.into_iter().chain(branches);
        let members = all.filter_map(|entry| entry["members"].as_array()).flatten();
        members.filter_map(|member| Some((member["name"].as_str()?, member["type"].as_str()?)))
    }

    /// The type at a dotted path of an object type.
    pub(super) fn type_at(&self, of: &str, path: &str) -> Option<&str> {
        let mut at = self.entries.get_key_value(of)?.0.as_str();
        for part in path.split('.') {
            at = self.members_of(at).find(|(name, _)| *name == part)?.1;
        }
        Some(at)
    }

    /// The words of an enumeration.
    pub(super) fn words_of(&self, of: &str) -> impl Iterator<Item = &str> {
        let words = self.entries.get(of).and_then(|entry| entry["values"].as_array());
        words.into_iter().flatten().filter_map(Value::as_str)
    }

    /// What kind of type it is.
    pub(super) fn kind_of(&self, of: &str) -> &str {
        self.entries.get(of).and_then(|entry| entry["meta-type"].as_str()).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One command, with members of every kind.
    pub(in super::super) fn schema() -> Schema {
        Schema::new(json!([
            {"name": "paint", "meta-type": "command", "arg-type": "Paint", "ret-type": "Paint"},
            {"name": "Paint", "meta-type": "object", "members": [
                {"name": "name", "type": "str"}, {"name": "size", "type": "int"},
                {"name": "wet", "type": "bool", "default": null},
                {"name": "colour", "type": "Colour"}, {"name": "inner", "type": "Paint"},
                {"name": "list", "type": "[int]"}, {"name": "node", "type": "str"},
            ]},
            {"name": "Colour", "meta-type": "enum", "values": ["red", "blue"]},
            {"name": "str", "meta-type": "builtin"},
        ]))
    }

    #[test]
    fn types_are_found_by_path() {
        let schema = schema();
        assert_eq!(schema.type_at("Paint", "inner.inner.size"), Some("int"));
        assert_eq!(schema.type_at("Paint", "inner.none"), None);
        assert_eq!(schema.type_at("None", "size"), None);
        assert_eq!((schema.kind_of("Colour"), schema.kind_of("none")), ("enum", ""));
    }
}
