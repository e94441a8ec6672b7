//! About the protocol itself, and the end.

use serde_json::Value;

use crate::control::context::Context;
use crate::control::error::{ErrorClass, QmpError, QmpResult};
use crate::control::protocol::{Negotiation, PACKAGE, QEMU_VERSION};
use crate::control::qapi::{QapiType, Schema, qapi_struct};
use crate::control::registry::{Empty, Registry};

qapi_struct! {
    /// Three parts of a version.
    pub(crate) struct VersionTriple {
        major: u32,
        minor: u32,
        micro: u32,
    }
}

qapi_struct! {
    /// The release of QEMU whose protocol this is, and what answers.
    pub(crate) struct VersionInfo {
        qemu: VersionTriple,
        package: String,
    }
}

qapi_struct! {
    /// A command.
    pub(crate) struct CommandInfo {
        name: String,
    }
}

/// An entry of the schema. Of its own type it says only that it is an object: QEMU's tools know the rest.
#[derive(Clone)]
pub(crate) struct SchemaInfo(Value);

impl QapiType for SchemaInfo {
    fn schema(schema: &mut Schema) -> String {
        Value::schema(schema)
    }

    fn parse(value: Value, _: &crate::control::qapi::Place<'_>) -> QmpResult<Self> {
        Ok(Self(value))
    }

    fn emit(self) -> Option<Value> {
        Some(self.0)
    }

    fn is_kind(value: &Value) -> bool {
        value.is_object()
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("qmp_capabilities", negotiate);
    to.command("query-version", query_version);
    to.command("query-commands", query_commands);
    to.command("query-qmp-schema", query_qmp_schema);
    to.command("quit", quit);
}

/// Before the first command it is the conversation's business.
fn negotiate(_: &Context<'_>, _: Negotiation) -> QmpResult<Empty> {
    let desc = "Capabilities negotiation is already complete, command ignored";
    Err(QmpError::new(ErrorClass::CommandNotFound, desc))
}

fn query_version(_: &Context<'_>, _: Empty) -> QmpResult<VersionInfo> {
    let (major, minor, micro) = QEMU_VERSION;
    Ok(VersionInfo { qemu: VersionTriple { major, minor, micro }, package: PACKAGE.into() })
}

fn query_commands(context: &Context<'_>, _: Empty) -> QmpResult<Vec<CommandInfo>> {
    let names = context.registry.command_names();
    Ok(names.map(|name| CommandInfo { name: name.into() }).collect())
}

fn query_qmp_schema(context: &Context<'_>, _: Empty) -> QmpResult<Vec<SchemaInfo>> {
    let entries = context.registry.schema().into_entries();
    Ok(entries.into_iter().map(SchemaInfo).collect())
}

fn quit(context: &Context<'_>, _: Empty) -> QmpResult<Empty> {
    (context.quit)();
    Ok(Empty {})
}
