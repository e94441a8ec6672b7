//! JSON as QMP clients send it: a stream of values, in pieces of any size.
//!
//! QMP asks for a JSON object a line; QEMU takes objects that are split over lines, or several on one, and so do
//! we: values end where their brackets do. After a syntax error the stream goes on, as QEMU's does: at the next
//! bracket, colon, comma or control character. After a broken bound it goes on with the next line.
//!
//! | file | idea |
//! |---|---|
//! | `lexer.rs` | bytes → tokens, one byte at a time |
//! | `parser.rs` | the tokens of one value → [`Value`], or QEMU's words for what is wrong |
//!
//! **Invariant**: whatever comes in, memory and stack are bounded: see [`Bounds`].

mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use serde_json::Value;

use lexer::{Fed, Lexer, Token};

use crate::limits::{CONTROL_COMMAND_BYTES_MAX, CONTROL_NESTING_MAX, CONTROL_TOKENS_MAX};

/// What one value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of all its tokens.
    pub(crate) bytes: usize,
    /// Tokens: each becomes some tens of bytes.
    pub(crate) tokens: usize,
    /// Brackets within each other.
    pub(crate) nesting: usize,
}

/// Those of a client's commands.
pub(crate) const COMMAND_BOUNDS: Bounds = Bounds {
    bytes: CONTROL_COMMAND_BYTES_MAX,
    tokens: CONTROL_TOKENS_MAX,
    nesting: CONTROL_NESTING_MAX,
};

/// Takes bytes and gives values.
pub(crate) struct Reader {
    bounds: Bounds,
    lexer: Lexer,
    tokens: Vec<Token>,
    bytes: usize,
    braces: isize,
    brackets: isize,
    /// After a broken bound: nothing counts before the next line.
    skips_line: bool,
}

/// A value, or what is wrong with what should be one.
pub(crate) type Read = Result<Value, String>;

impl Reader {
    /// At the beginning of a stream.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lexer: Lexer::new(bounds.bytes),
            tokens: Vec::new(),
            bytes: 0,
            braces: 0,
            brackets: 0,
            skips_line: false,
        }
    }

    /// Takes bytes from the front of `input` until a value has ended.
    pub(crate) fn read(&mut self, input: &mut &[u8]) -> Option<Read> {
        while let Some((&byte, rest)) = input.split_first() {
            if self.skips_line {
                self.skips_line = byte != b'\n';
                *input = rest;
                continue;
            }
            let Fed { token, is_taken } = self.lexer.feed(byte);
            if is_taken {
                *input = rest;
            }
            let read = token.and_then(|token| self.take(token));
            if read.is_some() {
                return read;
            }
        }
        None
    }

    fn take(&mut self, token: Token) -> Option<Read> {
        match &token {
            Token::OpenBrace => self.braces += 1,
            Token::CloseBrace => self.braces -= 1,
            Token::OpenBracket => self.brackets += 1,
            Token::CloseBracket => self.brackets -= 1,
            Token::Stray(bytes) => {
                let error = format!("JSON parse error, stray '{}'", shown(bytes));
                self.begin();
                return Some(Err(error));
            }
            Token::TooLong => return Some(self.bound_broken("JSON token size limit exceeded")),
            _ => {}
        }
        self.bytes = self.bytes.saturating_add(token.len_bytes());
        if self.bytes > self.bounds.bytes {
            return Some(self.bound_broken("JSON token size limit exceeded"));
        }
        if self.tokens.len() >= self.bounds.tokens {
            return Some(self.bound_broken("JSON token count limit exceeded"));
        }
        if self.braces.saturating_add(self.brackets) > self.bounds.nesting.cast_signed() {
            return Some(self.bound_broken("JSON nesting depth limit exceeded"));
        }
        self.tokens.push(token);
        let is_open = (self.braces > 0 || self.brackets > 0) && self.braces >= 0;
        if is_open && self.brackets >= 0 {
            return None;
        }
        let read = parser::parse(std::mem::take(&mut self.tokens));
        self.begin();
        Some(read.map_err(|error| format!("JSON parse error, {error}")))
    }

    fn bound_broken(&mut self, message: &str) -> Read {
        self.begin();
        self.lexer = Lexer::new(self.bounds.bytes);
        self.skips_line = true;
        Err(message.into())
    }

    fn begin(&mut self) {
        (self.bytes, self.braces, self.brackets) = (0, 0, 0);
        self.tokens = Vec::new();
    }
}

/// Bytes in a message: what is no text, or nothing at all (NUL), as QEMU shows it.
fn shown(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    const SHOWN_MAX: usize = 128;
    String::from_utf8_lossy(&bytes[..end.min(SHOWN_MAX)]).into_owned()
}
