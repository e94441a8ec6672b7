//! Bytes to tokens.
//!
//! As QEMU's: strings may stand in single quotes, too; words of lower-case letters are tokens, right or not.

/// A token. Strings are as they stand in the input, without their quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    Colon,
    Comma,
    String(Vec<u8>),
    Integer(String),
    Fraction(String),
    Word(String),
    /// What no token begins with, or goes on with.
    Stray(Vec<u8>),
    /// Longer than a whole value may be.
    TooLong,
}

impl Token {
    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::String(bytes) | Self::Stray(bytes) => bytes.len() + 2,
            Self::Integer(text) | Self::Fraction(text) | Self::Word(text) => text.len(),
            _ => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    String {
        quote: u8,
        is_escaped: bool,
    },
    Word,
    Minus,
    Zero,
    Digits,
    Point,
    PointDigits,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// After what is stray, until something that cannot be in the midst of a token.
    Recovery,
}

/// What came of a byte.
pub(super) struct Fed {
    pub(super) token: Option<Token>,
    /// Otherwise it ended a token and is to be fed again.
    pub(super) is_taken: bool,
}

/// See the module.
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
    max_bytes: usize,
}

const TAKEN: Fed = Fed { token: None, is_taken: true };

impl Lexer {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { state: State::Start, text: Vec::new(), max_bytes }
    }

    pub(super) fn feed(&mut self, byte: u8) -> Fed {
        if self.text.len() >= self.max_bytes {
            self.text = Vec::new();
            self.state = State::Start;
            return Fed { token: Some(Token::TooLong), is_taken: false };
        }
        match self.state {
            State::Start => self.start(byte),
            State::String { quote, is_escaped } => self.string(byte, quote, is_escaped),
            State::Word if byte.is_ascii_lowercase() => self.go_on(State::Word, byte),
            State::Word => self.end(Token::Word),
            State::Recovery => self.recover(byte),
            _ => self.number(byte),
        }
    }

    fn start(&mut self, byte: u8) -> Fed {
        let token = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return TAKEN,
            b'{' => Token::OpenBrace,
            b'}' => Token::CloseBrace,
            b'[' => Token::OpenBracket,
            b']' => Token::CloseBracket,
            b':' => Token::Colon,
            b',' => Token::Comma,
            b'"' | b'\'' => {
                self.state = State::String { quote: byte, is_escaped: false };
                return TAKEN;
            }
            b'-' => return self.go_on(State::Minus, byte),
            b'0' => return self.go_on(State::Zero, byte),
            b'1'..=b'9' => return self.go_on(State::Digits, byte),
            b'a'..=b'z' => return self.go_on(State::Word, byte),
            _ => return self.stray(byte),
        };
        Fed { token: Some(token), is_taken: true }
    }

    fn string(&mut self, byte: u8, quote: u8, is_escaped: bool) -> Fed {
        match byte {
            // No control character stands in a string, and these never in UTF-8.
            0..0x20 | 0xfe.. => {
                self.text.insert(0, quote);
                self.stray(byte)
            }
            _ if is_escaped => self.go_on(State::String { quote, is_escaped: false }, byte),
            b'\\' => self.go_on(State::String { quote, is_escaped: true }, byte),
            _ if byte == quote => {
                self.state = State::Start;
                let token = Token::String(std::mem::take(&mut self.text));
                Fed { token: Some(token), is_taken: true }
            }
            _ => self.go_on(State::String { quote, is_escaped: false }, byte),
        }
    }

    fn number(&mut self, byte: u8) -> Fed {
        let is_whole = matches!(self.state, State::Zero | State::Digits);
        let next = match (self.state, byte) {
            (State::Minus, b'0') => State::Zero,
            (State::Minus, b'1'..=b'9') | (State::Digits, b'0'..=b'9') => State::Digits,
            (State::Zero | State::Digits, b'.') => State::Point,
            (State::Point | State::PointDigits, b'0'..=b'9') => State::PointDigits,
            (State::Zero | State::Digits | State::PointDigits, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::ExponentSign,
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => {
                State::ExponentDigits
            }
            (State::Zero, b'0'..=b'9') => return self.stray(byte),
            _ if is_whole => return self.end(Token::Integer),
            (State::PointDigits | State::ExponentDigits, _) => return self.end(Token::Fraction),
            _ => return self.stray(byte),
        };
        self.go_on(next, byte)
    }

    fn recover(&mut self, byte: u8) -> Fed {
        let ends = matches!(byte, 0..0x20 | 0xfe.. | b'{' | b'}' | b'[' | b']' | b':' | b',');
        if !ends {
            return TAKEN;
        }
        self.state = State::Start;
        Fed { token: None, is_taken: false }
    }

    fn go_on(&mut self, state: State, byte: u8) -> Fed {
        self.state = state;
        self.text.push(byte);
        TAKEN
    }

    /// A token ended before this byte.
    fn end(&mut self, token: impl Fn(String) -> Token) -> Fed {
        self.state = State::Start;
        // Words and numbers are ASCII.
        let text = String::from_utf8_lossy(&self.text).into_owned();
        self.text.clear();
        Fed { token: Some(token(text)), is_taken: false }
    }

    fn stray(&mut self, byte: u8) -> Fed {
        self.state = State::Recovery;
        self.text.push(byte);
        let token = Token::Stray(std::mem::take(&mut self.text));
        Fed { token: Some(token), is_taken: true }
    }
}
