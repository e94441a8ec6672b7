//! One client's conversation: greeting, negotiation, commands and their answers (QEMU,
//! `docs/interop/qmp-spec.rst`).

use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::{ErrorClass, QmpError, QmpResult};
use super::qapi::{Place, QapiType, clip, qapi_enum, qapi_struct};

/// The release of QEMU whose protocol this is.
pub(crate) const QEMU_VERSION: (u32, u32, u32) = (10, 0, 2);

const NEGOTIATE: &str = "qmp_capabilities";

qapi_struct! {
    /// What is asked for before the first command.
    pub(crate) struct Negotiation {
        enable: Option<Vec<Capability>>,
    }
}

qapi_enum! {
    /// What a client may ask for. Commands beside their turn (`oob`) are not offered, and refused.
    pub(crate) enum Capability {
        OutOfBand = "oob",
    }
}

/// What answers.
pub(crate) const PACKAGE: &str = concat!("blockloom ", env!("CARGO_PKG_VERSION"));

/// The first line that a client reads.
pub(crate) fn greeting() -> Value {
    let (major, minor, micro) = QEMU_VERSION;
    let qemu = json!({"major": major, "minor": minor, "micro": micro});
    json!({"QMP": {"version": {"qemu": qemu, "package": PACKAGE}, "capabilities": []}})
}

/// The state of a conversation.
#[derive(Default)]
pub(crate) struct Conversation {
    is_negotiated: bool,
}

/// What a client sent, checked for its form.
struct Message {
    name: String,
    arguments: Value,
}

impl Conversation {
    /// Whether commands are taken, and events told.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.is_negotiated
    }

    /// Answers what a client sent.
    pub(crate) fn answer(&mut self, context: &Context<'_>, input: Value) -> Value {
        let Value::Object(mut input) = input else {
            return QmpError::generic("QMP input must be a JSON object").answer();
        };
        let id = input.remove("id");
        let result = check(input).and_then(|message| self.run(context, message));
        let mut answer = match result {
            Ok(value) => json!({"return": value}),
            Err(error) => error.answer(),
        };
        if let Some(id) = id {
            answer["id"] = id;
        }
        answer
    }

    fn run(&mut self, context: &Context<'_>, message: Message) -> QmpResult<Value> {
        let not_now = |desc: &str| Err(QmpError::new(ErrorClass::CommandNotFound, desc));
        match (self.is_negotiated, message.name == NEGOTIATE) {
            (false, true) => {
                let wanted = Negotiation::parse(message.arguments, &Place::ROOT)?;
                if wanted.enable.is_some_and(|enable| !enable.is_empty()) {
                    return Err(QmpError::generic("Capability 'oob' not available"));
                }
                self.is_negotiated = true;
                Ok(json!({}))
            }
            (false, false) => not_now("Expecting capabilities negotiation with 'qmp_capabilities'"),
            (true, true) => {
                not_now("Capabilities negotiation is already complete, command ignored")
            }
            (true, false) => context.registry.run(context, &message.name, message.arguments),
        }
    }
}

fn check(input: Map<String, Value>) -> QmpResult<Message> {
    let (mut name, mut arguments) = (None, json!({}));
    for (key, value) in input {
        match (key.as_str(), value) {
            ("execute", Value::String(command)) => name = Some(command),
            ("execute", _) => {
                return Err(QmpError::generic("QMP input member 'execute' must be a string"));
            }
            ("arguments", value @ Value::Object(_)) => arguments = value,
            ("arguments", _) => {
                return Err(QmpError::generic("QMP input member 'arguments' must be an object"));
            }
            _ => {
                let desc = format!("QMP input member '{}' is unexpected", clip(&key));
                return Err(QmpError::generic(desc));
            }
        }
    }
    match name {
        Some(name) => Ok(Message { name, arguments }),
        None => Err(QmpError::generic("QMP input lacks member 'execute'")),
    }
}
