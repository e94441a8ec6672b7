//! The tokens of one value to the value.

use serde_json::{Map, Number, Value};

use super::lexer::Token;

type Parsed<T> = Result<T, String>;

struct Tokens {
    rest: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

/// Parses a value; tokens behind it do not count. Recursion is bounded by the reader's bound of nesting.
///
/// # Errors
/// In QEMU's words.
pub(super) fn parse(tokens: Vec<Token>) -> Parsed<Value> {
    Tokens { rest: tokens.into_iter().peekable() }.value()
}

impl Tokens {
    fn next(&mut self) -> Parsed<Token> {
        self.rest.next().ok_or_else(|| "premature EOI".to_owned())
    }

    /// Takes the next token if it is this one.
    fn skip(&mut self, token: &Token) -> bool {
        self.rest.next_if(|next| next == token).is_some()
    }

    fn value(&mut self) -> Parsed<Value> {
        match self.next()? {
            Token::OpenBrace => self.object(),
            Token::OpenBracket => self.array(),
            Token::String(raw) => string(&raw).map(Value::String),
            Token::Integer(text) => integer(&text),
            Token::Fraction(text) => fraction(&text),
            Token::Word(word) => match word.as_str() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                "null" => Ok(Value::Null),
                _ => Err(format!("invalid keyword '{}'", super::shown(word.as_bytes()))),
            },
            _ => Err("expecting value".into()),
        }
    }

    fn object(&mut self) -> Parsed<Value> {
        let mut members = Map::new();
        if self.skip(&Token::CloseBrace) {
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(name) = self.value()? else {
                return Err("key is not a string in object".into());
            };
            if self.next()? != Token::Colon {
                return Err("missing : in object pair".into());
            }
            let value = self.value()?;
            if members.insert(name, value).is_some() {
                return Err("duplicate key".into());
            }
            match self.next()? {
                Token::CloseBrace => return Ok(Value::Object(members)),
                Token::Comma => {}
                _ => return Err("expected separator in dict".into()),
            }
        }
    }

    fn array(&mut self) -> Parsed<Value> {
        let mut elements = Vec::new();
        if self.skip(&Token::CloseBracket) {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value()?);
            match self.next()? {
                Token::CloseBracket => return Ok(Value::Array(elements)),
                Token::Comma => {}
                _ => return Err("expected separator in list".into()),
            }
        }
    }
}

/// What does not fit 64 bits is a fraction, as for QEMU.
fn integer(text: &str) -> Parsed<Value> {
    let number = match text.parse::<i64>() {
        Ok(number) => Number::from(number),
        Err(_) => match text.parse::<u64>() {
            Ok(number) => Number::from(number),
            Err(_) => return fraction(text),
        },
    };
    Ok(Value::Number(number))
}

/// QEMU takes what no number can hold as infinite, and answers with it what is no JSON.
fn fraction(text: &str) -> Parsed<Value> {
    let number = text.parse().ok().and_then(Number::from_f64);
    let shown = super::shown(text.as_bytes());
    number.map(Value::Number).ok_or_else(|| format!("number '{shown}' out of range"))
}

fn string(raw: &[u8]) -> Parsed<String> {
    let raw = std::str::from_utf8(raw).map_err(|_| "invalid UTF-8 sequence in string")?;
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        text.push(match rest.next() {
            Some(c @ ('"' | '\'' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => unicode(&mut rest)?,
            _ => return Err("invalid escape sequence in string".into()),
        });
    }
    Ok(text)
}

/// What follows `\u`: four digits; of two surrogates the other one.
fn unicode(rest: &mut std::str::Chars<'_>) -> Parsed<char> {
    // QEMU shows what may be the string's end, too.
    let shown: String = rest.as_str().chars().chain(['"']).take(4).collect();
    let not_valid = || format!("\\u{shown} is not a valid Unicode character");
    let mut code = hex(rest).ok_or_else(not_valid)?;
    if (0xd800..0xdc00).contains(&code) {
        let mut ahead = rest.clone();
        let is_escape = ahead.next() == Some('\\') && ahead.next() == Some('u');
        let low = hex(&mut ahead).filter(|low| is_escape && (0xdc00..0xe000).contains(low));
        if let Some(low) = low {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            *rest = ahead;
        }
    }
    char::from_u32(code).ok_or_else(not_valid)
}

fn hex(rest: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |code, _| Some(code << 4 | rest.next()?.to_digit(16)?))
}
