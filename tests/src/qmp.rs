//! A QMP client: of the program under test, or of qemu-storage-daemon. It sends what it is told, right or not.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::{DEADLINE, eventually};

/// A connection. Events that come between answers wait for [`Qmp::event`].
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    greeting: Value,
    events: VecDeque<Value>,
    /// It may come again before the first answer.
    is_greeted_again: bool,
}

impl Qmp {
    /// Connects, and reads the greeting.
    ///
    /// # Panics
    /// When nobody listens, or the greeting does not come.
    pub fn connect(path: &Path) -> Self {
        let stream = eventually("somebody listens", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        let lines = BufReader::new(stream.try_clone().expect("a second handle"));
        let (greeting, events) = (Value::Null, VecDeque::new());
        let mut client = Self { stream, lines, greeting, events, is_greeted_again: false };
        client.greeting = client.line().expect("a greeting");
        client
    }

    /// Connects to qemu-storage-daemon, which may greet twice who comes while it sets up its monitor.
    ///
    /// # Panics
    /// As [`Qmp::connect`].
    pub fn connect_peer(path: &Path) -> Self {
        Self { is_greeted_again: true, ..Self::connect(path) }
    }

    /// As [`Qmp::connect_peer`], and negotiates.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn open_peer(path: &Path) -> Self {
        let mut client = Self::connect_peer(path);
        assert_eq!(client.run("qmp_capabilities", json!({})), json!({}));
        client
    }

    /// Connects, and negotiates.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn open(path: &Path) -> Self {
        let mut client = Self::connect(path);
        assert_eq!(client.run("qmp_capabilities", json!({})), json!({}));
        client
    }

    /// The first line that came.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When the server has gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// Sends bytes, as far as the server takes them; whether it took all.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next line; `None` at the end of the stream.
    ///
    /// # Panics
    /// When it is no JSON, or does not come.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line comes: {error}"),
        }
    }

    /// The next whole line of a connection that may have been cut off; `None` at its end.
    pub fn try_line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).unwrap_or(0);
        if count == 0 { None } else { serde_json::from_str(&line).ok() }
    }

    /// A second handle of the connection.
    ///
    /// # Panics
    /// When there are too many handles.
    pub fn second(&self) -> UnixStream {
        self.stream.try_clone().expect("a second handle")
    }

    /// The next answer as it was sent: it may be deeper than a value can be.
    ///
    /// # Panics
    /// When it does not come.
    pub fn answer_text(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line
    }

    /// The next answer.
    ///
    /// # Panics
    /// When the stream ends before it.
    pub fn answer(&mut self) -> Value {
        loop {
            let line = self.line().expect("an answer");
            if line.get("event").is_some() {
                self.events.push_back(line);
            } else if !(std::mem::take(&mut self.is_greeted_again) && line == self.greeting) {
                return line;
            }
        }
    }

    /// Sends a command; gives its answer.
    ///
    /// # Panics
    /// When the stream ends before it.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        self.send(format!("{}\n", json!({"execute": command, "arguments": arguments})));
        self.answer()
    }

    /// Runs a command that must succeed; gives what it returns.
    ///
    /// # Panics
    /// When it does not.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let shown = arguments.to_string();
        let answer = self.ask(command, arguments);
        let result = answer.get("return").cloned();
        result.unwrap_or_else(|| panic!("{command} {shown}: {answer}"))
    }

    /// Runs a command that must fail; gives class and description.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn fail(&mut self, command: &str, arguments: Value) -> (String, String) {
        let shown = arguments.to_string();
        let answer = self.ask(command, arguments);
        let text = |key: &str| {
            let text = answer["error"][key].as_str();
            text.unwrap_or_else(|| panic!("{command} {shown}: {answer}")).to_owned()
        };
        (text("class"), text("desc"))
    }

    /// The next event of this name; those before it are forgotten.
    ///
    /// # Panics
    /// When it does not come.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let event = self.any_event();
            if event["event"] == name {
                return event;
            }
        }
    }

    /// The next event.
    ///
    /// # Panics
    /// When it does not come.
    pub fn any_event(&mut self) -> Value {
        let next = self.events.pop_front();
        next.unwrap_or_else(|| self.line().expect("an event"))
    }
}
