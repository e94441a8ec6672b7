//! A plugin's configuration: a JSON object, read by key with the units of the host's TOML.

mod json;
mod unit;

use std::fmt;
use std::time::Duration;

use blockloom_abi::Kinds;

use crate::text::{decimal, text};

const KINDS: [(&str, Kinds); 6] = [
    ("read", Kinds::READ),
    ("write", Kinds::WRITE),
    ("zero", Kinds::ZERO),
    ("discard", Kinds::DISCARD),
    ("flush", Kinds::FLUSH),
    ("resize", Kinds::RESIZE),
];

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The keys from the outermost, joined by dots; empty for the configuration as a whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigError {
    /// An error at a key.
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// What was read, or else what stands for it: then the error goes to `wrong`. For whoever tells all that is
    /// wrong with a configuration.
    ///
    /// ```
    /// use blockloom_sdk::{ConfigError, Table};
    ///
    /// let mut wrong = Vec::new();
    /// let mut table = Table::parse(r#"{ "iops": "fast", "burst": 1, "iosp": 1 }"#)?;
    /// ConfigError::note(table.integer("iops"), &mut wrong);
    /// ConfigError::note(table.duration("burst"), &mut wrong);
    /// table.finish_noting(&mut wrong);
    /// let paths: Vec<&str> = wrong.iter().map(|error| error.path.as_str()).collect();
    /// assert_eq!(paths, ["iops", "burst", "iosp"]);
    /// # Ok::<(), ConfigError>(())
    /// ```
    pub fn note<T: Default>(result: Result<T, Self>, wrong: &mut Vec<Self>) -> T {
        result.unwrap_or_else(|error| {
            wrong.push(error);
            T::default()
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A table of a configuration. Keys are asked for by type; [`finish`](Self::finish) refuses those
/// that nobody asked for.
///
/// ```
/// use blockloom_sdk::Table;
///
/// let mut table = Table::parse(r#"{ "bps": "400MiB", "burst": "1s", "iops": 20000 }"#)?;
/// assert_eq!(table.rate("bps")?, Some(400 << 20));
/// assert_eq!(table.duration("burst")?, Some(std::time::Duration::from_secs(1)));
/// assert_eq!(table.integer("iops")?, Some(20_000));
/// assert_eq!(table.boolean("strict")?, None);
/// table.finish()?;
///
/// let mut table = Table::parse(r#"{ "iosp": 1 }"#)?;
/// table.integer("iops")?;
/// let error = table.finish().unwrap_err();
/// assert_eq!(error.to_string(), "iosp: unknown key; known are: iops");
/// # Ok::<(), blockloom_sdk::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Table<'a> {
    path: String,
    /// The object's text, checked.
    object: &'a str,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// Reads a JSON object; an empty text is an empty one.
    ///
    /// # Errors
    ///
    /// Where the text is not JSON, that it is not an object, or that a key is there twice.
    pub fn parse(json: &'a str) -> Result<Self, ConfigError> {
        let json = if json.trim_ascii().is_empty() { "{}" } else { json };
        match json::check(json) {
            Ok(value) => Self::within(String::new(), value),
            Err(message) => Err(ConfigError { path: String::new(), message }),
        }
    }

    fn within(path: String, object: &'a str) -> Result<Self, ConfigError> {
        if !object.starts_with('{') {
            return Err(ConfigError { path, message: expected("a table", object) });
        }
        let table = Self { path, object, known: Vec::new() };
        for (index, (key, _)) in json::entries(object).enumerate() {
            if json::entries(object).take(index).any(|(earlier, _)| earlier == key) {
                return Err(table.error(inner(key), "is given twice"));
            }
        }
        Ok(table)
    }

    /// A number without unit.
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn integer(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.number(key, "a whole number", unit::integer)
    }

    /// Bytes: a number, or one with a unit (`"64KiB"`).
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn size(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.number(key, "a size such as 512 or \"64KiB\"", |value| unit::size(inner(value)))
    }

    /// Bytes a second, written like a size (`"400MiB"`).
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn rate(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.number(key, "bytes a second such as \"100MiB\"", |value| unit::size(inner(value)))
    }

    /// A duration (`"250ms"`).
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let nanos = self
            .number(key, "a time such as \"250ms\" or \"1s\"", |value| unit::nanos(inner(value)));
        nanos.map(|nanos| nanos.map(Duration::from_nanos))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let number = self.number(key, "true or false", |value| match value {
            "true" => Some(1),
            "false" => Some(0),
            _ => None,
        });
        number.map(|number| number.map(|number| number != 0))
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn string(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match json::unquoted(value) {
            Some(string) => Ok(Some(string)),
            None => Err(self.error(key, expected("a string", value))),
        }
    }

    /// A table within this one.
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn table(&mut self, key: &'static str) -> Result<Option<Self>, ConfigError> {
        match self.value(key) {
            Some(value) => Self::within(self.path_of(key), value).map(Some),
            None => Ok(None),
        }
    }

    /// A list of strings.
    ///
    /// # Errors
    ///
    /// That the value, or one of the list, is something else.
    pub fn strings(&mut self, key: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(items) = self.items(key, "a list of strings")? else { return Ok(None) };
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match json::unquoted(item) {
                Some(string) => strings.push(string),
                None => {
                    let message = expected("a string", item);
                    return Err(ConfigError { path: self.path_in(key, index), message });
                }
            }
        }
        Ok(Some(strings))
    }

    /// A list of tables.
    ///
    /// # Errors
    ///
    /// That the value, or one of the list, is something else.
    pub fn tables(&mut self, key: &'static str) -> Result<Option<Vec<Self>>, ConfigError> {
        let Some(items) = self.items(key, "a list of tables")? else { return Ok(None) };
        let mut tables = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            tables.push(Self::within(self.path_in(key, index), item)?);
        }
        Ok(Some(tables))
    }

    /// Kinds of requests: a list of `"read"`, `"write"`, `"zero"`, `"discard"`, `"flush"` and `"resize"`.
    ///
    /// ```
    /// use blockloom_sdk::{Kinds, Table};
    ///
    /// let mut table = Table::parse(r#"{ "kinds": ["read", "flush"] }"#)?;
    /// assert_eq!(table.kinds("kinds")?, Some(Kinds::READ.with(Kinds::FLUSH)));
    /// # Ok::<(), blockloom_sdk::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// That the value, or one of the list, is something else.
    pub fn kinds(&mut self, key: &'static str) -> Result<Option<Kinds>, ConfigError> {
        let Some(names) = self.strings(key)? else { return Ok(None) };
        let mut kinds = Kinds::NONE;
        for (index, name) in names.iter().enumerate() {
            let Some((_, of)) = KINDS.iter().find(|(known, _)| known == name) else {
                let message = text(&[
                    "there is no kind `",
                    name,
                    "`; there is: read, write, zero, discard, flush, resize",
                ]);
                return Err(ConfigError { path: self.path_in(key, index), message });
            };
            kinds = kinds.with(*of);
        }
        Ok(Some(kinds))
    }

    /// A number from 0 to 1 (`0.25`), exact to 9 digits, in parts of 10^9.
    ///
    /// # Errors
    ///
    /// That the value is something else.
    pub fn billionths(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.number(key, "a number from 0 to 1 such as 0.25", unit::billionths)
    }

    /// An error at a key of this table, for what only the plugin knows to be wrong.
    #[must_use]
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError { path: self.path_of(key), message: message.into() }
    }

    /// No more keys will be asked for.
    ///
    /// # Errors
    ///
    /// The first key that is there but was not asked for, with those that were.
    pub fn finish(self) -> Result<(), ConfigError> {
        match self.unknown().next() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The same, of each key that was not asked for.
    pub fn finish_noting(self, wrong: &mut Vec<ConfigError>) {
        wrong.extend(self.unknown());
    }

    fn unknown(&self) -> impl Iterator<Item = ConfigError> {
        let keys = json::entries(self.object).map(|(key, _)| inner(key));
        let unknown = keys.filter(move |key| !self.known.contains(key));
        unknown.map(move |key| {
            let mut message = "unknown key; known are".to_owned();
            let mut before = ": ";
            for known in &self.known {
                message.push_str(before);
                message.push_str(known);
                before = ", ";
            }
            let none = self.known.is_empty();
            let message = if none { "unknown key; none is known here".to_owned() } else { message };
            self.error(key, message)
        })
    }

    /// The text of a key's value, and that the key is known.
    fn value(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        json::entries(self.object).find(|(name, _)| inner(name) == key).map(|(_, value)| value)
    }

    fn number(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: fn(&str) -> Option<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(key, expected(wanted, value))),
        }
    }

    fn items(
        &mut self,
        key: &'static str,
        wanted: &str,
    ) -> Result<Option<Vec<&'a str>>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        if !value.starts_with('[') {
            return Err(self.error(key, expected(wanted, value)));
        }
        Ok(Some(json::items(value).collect()))
    }

    fn path_in(&self, key: &str, index: usize) -> String {
        text(&[&self.path_of(key), ".", &decimal(index as u32)])
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => text(&[path, ".", key]),
        }
    }
}

/// What stands between the quotes of a string that needs no escapes, as keys and units do.
fn inner(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value)
}

fn expected(wanted: &str, found: &str) -> String {
    let found = match found.as_bytes().first() {
        Some(b'[') => "an array",
        Some(b'{') => "a table",
        _ => found,
    };
    text(&["expected ", wanted, ", found ", found])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(
        json: &str,
        read: impl FnOnce(&mut Table<'_>) -> Result<Option<T>, ConfigError>,
        expect: &str,
    ) {
        let mut table = Table::parse(json).expect("an object");
        let error = read(&mut table).map(|_| ()).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn a_wrong_type_is_named_with_what_would_be_right() {
        let integer = |table: &mut Table<'_>| table.integer("n");
        check(r#"{"n":1.5}"#, integer, "n: expected a whole number, found 1.5");
        check(r#"{"n":-1}"#, integer, "n: expected a whole number, found -1");
        check(r#"{"n":"1"}"#, integer, "n: expected a whole number, found \"1\"");
        let wanted = "s: expected a size such as 512 or \"64KiB\", found";
        check(r#"{"s":"4QiB"}"#, |table| table.size("s"), &format!("{wanted} \"4QiB\""));
        check(r#"{"s":[]}"#, |table| table.size("s"), &format!("{wanted} an array"));
        check(
            r#"{"t":7}"#,
            |table| table.duration("t"),
            "t: expected a time such as \"250ms\" or \"1s\", found 7",
        );
        check(r#"{"b":null}"#, |table| table.boolean("b"), "b: expected true or false, found null");
    }

    #[test]
    fn paths_lead_through_tables() {
        let mut outer = Table::parse(r#"{"read":{"iops":"many","burts":1}}"#).expect("an object");
        let mut inner = outer.table("read").expect("a table").expect("present");
        let error = inner.integer("iops").expect_err("refused");
        assert_eq!(error.to_string(), "read.iops: expected a whole number, found \"many\"");
        let error = inner.finish().expect_err("refused");
        assert_eq!(error.to_string(), "read.burts: unknown key; known are: iops");
        outer.finish().expect("all known");
    }

    #[test]
    fn lists_are_read_and_their_parts_are_named() {
        let json = r#"{"k":["read","trim"],"r":[{"at":1},7],"s":["a",null],"n":"read","f":2}"#;
        let mut table = Table::parse(json).expect("an object");
        for (error, expect) in [
            (
                table.kinds("k").err(),
                "k.1: there is no kind `trim`; there is: read, write, zero, discard, flush, resize",
            ),
            (table.tables("r").err(), "r.1: expected a table, found 7"),
            (table.strings("s").err(), "s.1: expected a string, found null"),
            (table.kinds("n").err(), "n: expected a list of strings, found \"read\""),
            (table.billionths("f").err(), "f: expected a number from 0 to 1 such as 0.25, found 2"),
        ] {
            assert_eq!(error.expect("refused").to_string(), expect);
        }
        let mut table = Table::parse(r#"{"r":[{"at":1},{"ta":2}]}"#).expect("an object");
        let mut found = table.tables("r").expect("a list").expect("there");
        assert_eq!(found[0].integer("at"), Ok(Some(1)));
        let error = found.remove(1).finish().expect_err("unknown");
        assert_eq!(error.path, "r.1.ta");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (json, expect) in [
            ("7", "expected a table, found 7"),
            ("{", "not JSON: expected a string at byte 1"),
            (r#"{"a":1,"a":2}"#, "a: is given twice"),
            (r#"{"a":1} x"#, "not JSON: expected the end at byte 8"),
        ] {
            assert_eq!(Table::parse(json).expect_err("refused").to_string(), expect);
        }
        Table::parse("").expect("empty").finish().expect("nothing unknown");
    }
}
