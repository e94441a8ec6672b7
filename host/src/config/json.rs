//! Descriptions that come as JSON: read by the readers of TOML tables, and shown by the paths of their keys.

use toml::Spanned as TomlSpanned;
use toml::de::{DeArray, DeTable, DeValue};

use serde_json::{Map, Value};

/// Deepest nesting of a description.
const DEPTH_MAX: usize = 64;

/// A JSON value, and where it came from: the translation of names does not change that.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Dotted, as whoever wrote it would name it.
    pub(super) path: String,
    pub(super) shape: Shape,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Item>),
    Table(Vec<(String, Item)>),
}

/// What is wrong at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: String,
}

impl Wrong {
    pub(super) fn new(path: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { path: path.to_owned(), message: message.into(), help: help.into() }
    }
}

/// The path of a key below `path`.
pub(super) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Item {
    pub(super) fn new(path: &str, shape: Shape) -> Self {
        Self { path: path.to_owned(), shape }
    }

    pub(super) fn text(path: &str, text: impl Into<String>) -> Self {
        Self::new(path, Shape::Text(text.into()))
    }

    /// Of a value at `path`, as it is.
    ///
    /// # Errors
    /// One that is nested too deeply.
    pub(super) fn of(value: &Value, path: &str) -> Result<Self, Wrong> {
        Self::at_depth(value, path, 0)
    }

    fn at_depth(value: &Value, path: &str, depth: usize) -> Result<Self, Wrong> {
        if depth > DEPTH_MAX {
            let message = format!("is nested more than {DEPTH_MAX} levels deep");
            return Err(Wrong::new(path, message, "make it flatter"));
        }
        let shape = match value {
            Value::Null => Shape::Null,
            Value::Bool(value) => Shape::Bool(*value),
            Value::Number(number) => Shape::Number(number.to_string()),
            Value::String(text) => Shape::Text(text.clone()),
            Value::Array(items) => {
                let item = |(at, value)| Self::at_depth(value, &format!("{path}[{at}]"), depth + 1);
                Shape::List(items.iter().enumerate().map(item).collect::<Result<_, _>>()?)
            }
            Value::Object(keys) => Shape::Table(Self::keys(keys, path, depth)?),
        };
        Ok(Self::new(path, shape))
    }

    fn keys(
        keys: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<Vec<(String, Self)>, Wrong> {
        let item = |(key, value): (&String, &Value)| {
            Ok((key.clone(), Self::at_depth(value, &below(path, key), depth + 1)?))
        };
        keys.iter().map(item).collect()
    }
}

/// What becomes a TOML table, with the path that each of its places stands for.
#[derive(Default)]
pub(super) struct Places {
    pub(super) paths: Vec<String>,
    pub(super) wrong: Vec<Wrong>,
}

impl Places {
    /// A place of its own for `path`: the first byte of a range of that number.
    pub(super) fn place(&mut self, path: &str) -> std::ops::Range<usize> {
        self.paths.push(path.to_owned());
        self.paths.len() - 1..self.paths.len()
    }

    /// The keys as a TOML table. What TOML has no word for is noted as wrong.
    pub(super) fn table<'t>(&mut self, keys: &'t [(String, Item)]) -> DeTable<'t> {
        let mut table = DeTable::new();
        for (key, item) in keys {
            let key = TomlSpanned::new(self.place(&item.path), key.as_str().into());
            let value = self.value(item);
            table.insert(key, value);
        }
        table
    }

    fn value<'t>(&mut self, item: &'t Item) -> TomlSpanned<DeValue<'t>> {
        let place = self.place(&item.path);
        let value = match &item.shape {
            Shape::Null => self.nothing(item, "cannot be null", "leave the key out"),
            Shape::Bool(value) => DeValue::Boolean(*value),
            Shape::Text(text) => DeValue::String(text.as_str().into()),
            Shape::Number(number) => match DeValue::parse(number) {
                Ok(number) => number.into_inner(),
                Err(_) => self.nothing(item, "is a number that cannot be read", ""),
            },
            Shape::List(items) => {
                let mut list = DeArray::new();
                for item in items {
                    let value = self.value(item);
                    list.push(value);
                }
                DeValue::Array(list)
            }
            Shape::Table(keys) => DeValue::Table(self.table(keys)),
        };
        TomlSpanned::new(place, value)
    }

    fn nothing<'t>(&mut self, item: &Item, message: &str, help: &str) -> DeValue<'t> {
        self.wrong.push(Wrong::new(&item.path, message, help));
        DeValue::Boolean(false)
    }
}
