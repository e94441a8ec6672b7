//! JSON as text: checked once, then read where it stands, without making values of it.

use crate::text::{decimal, text};

/// Tables and arrays within each other, at most.
const MAX_DEPTH: usize = 32;

/// Checks that a text is one JSON value, and returns that value's text. Escapes in strings are
/// judged where a string is wanted.
pub(super) fn check(json: &str) -> Result<&str, String> {
    let mut scanner = Scanner { json, at: 0 };
    scanner.space();
    let from = scanner.at;
    scanner.value(0)?;
    let value = scanner.since(from);
    scanner.space();
    if scanner.at == json.len() { Ok(value) } else { Err(scanner.error("the end")) }
}

/// The keys and values of a checked object, as they are written, quotes and all.
pub(super) fn entries(object: &str) -> Entries<'_> {
    Entries(Scanner { json: object, at: 1 })
}

pub(super) struct Entries<'a>(Scanner<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let scanner = &mut self.0;
        scanner.take(b',');
        scanner.space();
        let from = scanner.at;
        scanner.string().ok()?;
        let key = scanner.since(from);
        scanner.take(b':');
        scanner.space();
        let from = scanner.at;
        scanner.value(0).ok()?;
        Some((key, scanner.since(from)))
    }
}

/// The values of a checked array, as they are written.
pub(super) fn items(array: &str) -> impl Iterator<Item = &str> {
    let mut scanner = Scanner { json: array, at: 1 };
    std::iter::from_fn(move || {
        scanner.take(b',');
        scanner.space();
        let from = scanner.at;
        scanner.value(0).ok()?;
        Some(scanner.since(from))
    })
}

/// What a string's text stands for; none if the text is no string.
pub(super) fn unquoted(string: &str) -> Option<String> {
    let inner = string.strip_prefix('"')?.strip_suffix('"')?;
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => match unit(&mut characters)? {
                    high @ 0xd800..0xdc00 => {
                        let low = (characters.next()? == '\\' && characters.next()? == 'u')
                            .then(|| unit(&mut characters))??;
                        let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                        char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + low)?
                    }
                    unit => char::from_u32(unit)?,
                },
                other => other,
            },
            other => other,
        });
    }
    Some(plain)
}

/// Four hexadecimal digits.
fn unit(characters: &mut std::str::Chars<'_>) -> Option<u32> {
    let mut unit = 0;
    for _ in 0..4 {
        unit = unit << 4 | characters.next()?.to_digit(16)?;
    }
    Some(unit)
}

struct Scanner<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn error(&self, wanted: &str) -> String {
        text(&["not JSON: expected ", wanted, " at byte ", &decimal(self.at as u32)])
    }

    fn byte(&self) -> u8 {
        // No JSON token begins with a zero byte, which stands for the end here.
        self.json.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn since(&self, from: usize) -> &'a str {
        self.json.get(from..self.at).unwrap_or("")
    }

    fn space(&mut self) {
        while matches!(self.byte(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.byte() == byte;
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(self.error("less deeply nested tables"));
        }
        self.space();
        match self.byte() {
            b'{' => self.list(b'}', depth),
            b'[' => self.list(b']', depth),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => {
                while matches!(self.byte(), b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') {
                    self.at += 1;
                }
                Ok(())
            }
            _ => {
                let from = self.at;
                while self.byte().is_ascii_lowercase() {
                    self.at += 1;
                }
                if matches!(self.since(from), "true" | "false" | "null") {
                    return Ok(());
                }
                self.at = from;
                Err(self.error("a value"))
            }
        }
    }

    /// A table or an array, from its opening to its closing mark.
    fn list(&mut self, close: u8, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.take(close) {
            return Ok(());
        }
        loop {
            if close == b'}' {
                self.space();
                self.string()?;
                if !self.take(b':') {
                    return Err(self.error("a colon"));
                }
            }
            self.value(depth + 1)?;
            if self.take(close) {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.error("a comma or the end of the list"));
            }
        }
    }

    fn string(&mut self) -> Result<(), String> {
        if self.byte() != b'"' {
            return Err(self.error("a string"));
        }
        self.at += 1;
        loop {
            match self.byte() {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
            if self.at >= self.json.len() {
                return Err(self.error("a closing quote"));
            }
        }
        self.at += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_as_they_are_written() {
        let json = r#" {"a" : [1, {"b": 2}] ,"c\"d":"x,}y", "e":{ } , "f" :-1.5e3,"g":null} "#;
        let object = check(json).expect("valid");
        let found: Vec<_> = entries(object).collect();
        assert_eq!(
            found,
            [
                (r#""a""#, r#"[1, {"b": 2}]"#),
                (r#""c\"d""#, r#""x,}y""#),
                (r#""e""#, "{ }"),
                (r#""f""#, "-1.5e3"),
                (r#""g""#, "null"),
            ]
        );
        assert_eq!(entries("{}").count(), 0);
        let found: Vec<_> = items(r#"[ 1,"a]" ,[2, 3],{"b":[]} ]"#).collect();
        assert_eq!(found, ["1", r#""a]""#, "[2, 3]", r#"{"b":[]}"#]);
        assert_eq!(items("[]").count() + items("[ ]").count(), 0);
    }

    #[test]
    fn strings_are_unquoted() {
        let unquoted = |text| unquoted(text);
        assert_eq!(unquoted(r#""a\n\"\u00e4\ud83d\ude00\/""#).as_deref(), Some("a\n\"ä😀/"));
        for wrong in [r#""\u12""#, r#""\u12é""#, r#""\ud800""#, r#""\ud800\u0041""#, r#""\udc00""#]
        {
            assert_eq!(unquoted(wrong), None, "{wrong}");
        }
        assert_eq!(unquoted("1"), None);
        assert_eq!(unquoted("\""), None);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(100_000);
        for json in [
            "",
            "tru",
            "{",
            "[",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "\"",
            "\"\\",
            "\"\\\"",
            "1 2",
            "{\"a\":1,}",
            "\0",
            "{\"a\":1 \"b\":2}",
            "\"é",
            &deep,
        ] {
            assert!(check(json).is_err(), "{json:.20}");
        }
    }
}
