//! A connection to a host.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::json::{Bounds, Reader};
use crate::io::LocalStream;

/// What a host answers may be longer than what it takes.
const ANSWER_BOUNDS: Bounds = Bounds { bytes: 256 << 20, tokens: 64 << 20, nesting: 1024 };
const RECEIVE_BYTES: usize = 64 << 10;
/// Events that come before an answer, kept for whoever wants them.
const EVENTS_MAX: usize = 1024;

/// Why there is no result.
pub(in crate::cli) enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The host does not answer, or not as it should.
    Connection(String),
    /// The host refuses.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Connection(text) | Self::Refused(text) => f.write_str(text),
        }
    }
}

/// What came within a time.
pub(super) enum Next {
    Event(Value),
    Nothing,
    /// The host has ended.
    End,
}

/// See the module.
pub(super) struct Client {
    stream: LocalStream,
    reader: Reader,
    received: Vec<u8>,
    /// How much of it has been read.
    taken: usize,
    events: VecDeque<Value>,
}

impl Client {
    /// Connects and negotiates.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let stream = LocalStream::connect(path).map_err(|error| {
            Failure::Connection(format!("cannot connect to {}: {error}", path.display()))
        })?;
        let mut client = Self {
            stream,
            reader: Reader::new(ANSWER_BOUNDS),
            received: Vec::new(),
            taken: 0,
            events: VecDeque::new(),
        };
        let greeting = client.next()?.ok_or_else(gone)?;
        if let Some(desc) = greeting["error"]["desc"].as_str() {
            return Err(Failure::Refused(desc.to_owned()));
        }
        if greeting.get("QMP").is_none() {
            let message = format!("what listens at {} does not speak QMP", path.display());
            return Err(Failure::Connection(message));
        }
        client.run("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Runs a command; gives what it returns.
    pub(super) fn run(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        let sent = self.stream.send_all(line.as_bytes());
        sent.map_err(|error| Failure::Connection(format!("the host takes no command: {error}")))?;
        loop {
            let mut answer = self.next()?.ok_or_else(gone)?;
            if answer.get("event").is_some() {
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(answer);
            } else if let Some(desc) = answer["error"]["desc"].as_str() {
                return Err(Failure::Refused(desc.to_owned()));
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// The next event, if one comes within this time.
    pub(super) fn event_within(&mut self, time: Duration) -> Result<Next, Failure> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Next::Event(event));
        }
        if let Some(event) = self.taken()? {
            return Ok(Next::Event(event));
        }
        match self.stream.is_ready_within(time) {
            true => Ok(self.next()?.map_or(Next::End, Next::Event)),
            false => Ok(Next::Nothing),
        }
    }

    /// The next value of what has been received.
    fn taken(&mut self) -> Result<Option<Value>, Failure> {
        let mut input = &self.received[self.taken..];
        let read = self.reader.read(&mut input);
        self.taken = self.received.len() - input.len();
        read.transpose().map_err(Failure::Connection)
    }

    fn next(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            if let Some(value) = self.taken()? {
                return Ok(Some(value));
            }
            self.received.resize(RECEIVE_BYTES, 0);
            let count = self.stream.recv(&mut self.received);
            let count = count.map_err(|error| {
                Failure::Connection(format!("nothing comes from the host: {error}"))
            })?;
            if count == 0 {
                return Ok(None);
            }
            self.received.truncate(count);
            self.taken = 0;
        }
    }
}

fn gone() -> Failure {
    Failure::Connection("the host has ended the connection".into())
}
