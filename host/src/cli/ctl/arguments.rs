//! `key=value` words to a command's arguments.
//!
//! As qmp-shell reads them, but for one thing: where the host's schema says that something is a string, a size or
//! a truth value, it is read as one. So a bitmap may be called `5`, and a size be `10GiB`.

use serde_json::{Map, Value};

use super::schema::Schema;
use crate::config::parse_size;

/// The arguments that words say.
pub(super) fn read(words: &[String], schema: &Schema, command: &str) -> Result<Value, String> {
    if let [only] = words
        && only.trim_start().starts_with('{')
    {
        return serde_json::from_str(only).map_err(|error| format!("`{only}` is no JSON: {error}"));
    }
    let mut arguments = Map::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("`{word}` is neither `key=value` nor a JSON object"))?;
        let wanted = schema.arguments_of(command).and_then(|of| schema.type_at(of, key));
        put(&mut arguments, key, value_of(value, wanted, schema)?, word)?;
    }
    Ok(Value::Object(arguments))
}

fn put(to: &mut Map<String, Value>, key: &str, value: Value, word: &str) -> Result<(), String> {
    match key.split_once('.') {
        None => match to.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("`{word}`: `{key}` is given twice")),
        },
        Some((first, rest)) => {
            let inner = to.entry(first).or_insert_with(|| Value::Object(Map::new()));
            match inner {
                Value::Object(inner) => put(inner, rest, value, word),
                _ => Err(format!("`{word}`: `{first}` has a value of its own already")),
            }
        }
    }
}

fn value_of(text: &str, wanted: Option<&str>, schema: &Schema) -> Result<Value, String> {
    let kind = wanted.map(|name| schema.kind_of(name));
    match (wanted, kind) {
        (Some("str"), _) | (_, Some("enum")) => Ok(Value::String(text.to_owned())),
        (Some("int"), _) => match text.parse::<i64>() {
            Ok(number) => Ok(number.into()),
            Err(_) => {
                let size = parse_size(text).map(Value::from);
                size.map_err(|error| format!("`{text}` {error}"))
            }
        },
        (Some("bool"), _) => match text {
            "true" | "on" | "yes" => Ok(true.into()),
            "false" | "off" | "no" => Ok(false.into()),
            _ => Err(format!("`{text}` is neither `true` nor `false`")),
        },
        _ => guess(text),
    }
}

/// JSON where it looks like some, else a string.
fn guess(text: &str) -> Result<Value, String> {
    if text.starts_with(['{', '[', '"']) {
        return serde_json::from_str(text).map_err(|error| format!("`{text}` is no JSON: {error}"));
    }
    Ok(match text {
        "true" => true.into(),
        "false" => false.into(),
        "null" => Value::Null,
        _ => match text.parse::<i64>() {
            Ok(number) => number.into(),
            Err(_) => text.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::schema::tests::schema;
    use super::*;

    fn read_words(words: &[&str]) -> Result<Value, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        read(&words, &schema(), "paint")
    }

    #[test]
    fn words_are_read_as_the_schema_says() {
        let check = |words: &[&str], expect: Value| assert_eq!(read_words(words), Ok(expect));
        check(&[], json!({}));
        check(&["name=5", "size=10GiB"], json!({"name": "5", "size": 10_737_418_240_u64}));
        check(&["size=-7", "wet=on"], json!({"size": -7, "wet": true}));
        check(
            &["colour=red", "inner.name=true"],
            json!({"colour": "red", "inner": {"name": "true"}}),
        );
        check(&["list=[1,\"a\"]", "list2=a=b"], json!({"list": [1, "a"], "list2": "a=b"}));
        check(
            &["unknown=5", "more.deep=true", "none=null"],
            json!({
                "unknown": 5, "more": {"deep": true}, "none": null,
            }),
        );
        check(&[" {\"a\": [1]}"], json!({"a": [1]}));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |words: &[&str], expect: &str| {
            let error = read_words(words).expect_err("wrong");
            assert!(error.contains(expect), "{error}");
        };
        check(&["name"], "neither `key=value` nor a JSON object");
        check(&["name=a", "name=b"], "given twice");
        check(&["name=a", "name.b=c"], "a value of its own");
        check(&["size=many"], "many");
        check(&["wet=maybe"], "neither `true` nor `false`");
        check(&["list=[1"], "no JSON");
        check(&["{"], "no JSON");
    }
}
