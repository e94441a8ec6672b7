//! Which commands, actions of transactions, and events there are: each declared once.
//!
//! ```text
//! registry.command("query-version", query_version)      a function of typed arguments to a typed result
//! registry.action("block-dirty-bitmap-clear", clear)    plans a change: a command, and an action of `transaction`
//! registry.event::<PluginFault>()                       what may come unasked
//! ```
//!
//! From the declaration come the reading of arguments, `query-commands` and `query-qmp-schema`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::context::Context;
use super::error::{ErrorClass, QmpError, QmpResult};
use super::plan::Plan;
use super::qapi::{
    Members, Place, QapiEvent, QapiObject, QapiType, Schema, clip, qapi_struct, words,
};

qapi_struct! {
    /// No members: the result of most commands, the arguments of many.
    pub(crate) struct Empty {}
}

/// What the schema calls the union of all actions.
pub(crate) const ACTION_TYPE: &str = "TransactionAction";

/// How often a command is tried again for what others have changed meanwhile.
const OUTDATED_MAX: usize = 8;

type Run = Box<dyn Fn(&Context<'_>, Value) -> QmpResult<Value> + Send + Sync>;
type Describe = fn(&mut Schema) -> String;
/// An action whose arguments have been read.
pub(crate) type Step = Box<dyn FnOnce(&mut Plan<'_>) -> QmpResult<()>>;
type Read = Box<dyn Fn(Value, &Place<'_>) -> QmpResult<Step> + Send + Sync>;

struct Command {
    run: Run,
    arguments: Describe,
    returns: Describe,
    /// There is another one for the same.
    is_deprecated: bool,
}

struct ActionKind {
    read: Read,
    data: Describe,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Registry {
    commands: BTreeMap<&'static str, Command>,
    actions: BTreeMap<&'static str, ActionKind>,
    events: BTreeMap<&'static str, Describe>,
}

/// Does something. What a name stood for may have gone since that was looked up, as somebody else has changed the
/// graph: then it is looked up anew. An error that says that something is missing says that nothing has been begun.
///
/// # Errors
/// Of `act`.
pub(crate) fn again_if_outdated<T>(
    context: &Context<'_>,
    act: impl Fn() -> QmpResult<T>,
) -> QmpResult<T> {
    let mut left = OUTDATED_MAX;
    loop {
        let before = context.host.graph().generation();
        let done = act();
        let is_outdated = || context.host.graph().generation() != before;
        match done {
            Err(error) if error.is_missing && left > 0 && is_outdated() => left -= 1,
            done => return done,
        }
    }
}

impl Registry {
    /// Declares a command.
    pub(crate) fn command<A: QapiObject, R: QapiType>(
        &mut self,
        name: &'static str,
        run: fn(&Context<'_>, A) -> QmpResult<R>,
    ) {
        let run: Run = Box::new(move |context, arguments| {
            let arguments = A::parse(arguments, &Place::ROOT)?;
            // A result that is nothing at all does not occur: it is no `Option`.
            Ok(run(context, arguments)?.emit().unwrap_or(Value::Null))
        });
        let (arguments, returns) = (A::schema, R::schema);
        let command = Command { run, arguments, returns, is_deprecated: false };
        let known = self.commands.insert(name, command);
        debug_assert!(known.is_none(), "`{name}` is declared twice");
    }

    /// Whoever asks what there is, is told of a command that it is there for old clients.
    pub(crate) fn deprecate(&mut self, name: &str) {
        let command = self.commands.get_mut(name);
        debug_assert!(command.is_some(), "`{name}` is not declared");
        command.into_iter().for_each(|command| command.is_deprecated = true);
    }

    /// Declares a change that may stand in a transaction, and be a command of its own.
    pub(crate) fn action<A: QapiObject>(
        &mut self,
        name: &'static str,
        plan: fn(&mut Plan<'_>, A) -> QmpResult<()>,
    ) {
        self.action_only(name, plan);
        let run: Run = Box::new(move |context, arguments| {
            again_if_outdated(context, || {
                let arguments = A::parse(arguments.clone(), &Place::ROOT)?;
                let mut one = Plan::new(context);
                let planned = plan(&mut one, arguments);
                one.commit_if(planned)
            })?;
            Ok(json!({}))
        });
        let (arguments, returns) = (A::schema, Empty::schema);
        let command = Command { run, arguments, returns, is_deprecated: false };
        let known = self.commands.insert(name, command);
        debug_assert!(known.is_none(), "`{name}` is declared twice");
    }

    /// Declares what makes sense in a transaction alone.
    pub(crate) fn action_only<A: QapiObject>(
        &mut self,
        name: &'static str,
        plan: fn(&mut Plan<'_>, A) -> QmpResult<()>,
    ) {
        let read: Read = Box::new(move |data, at| {
            let data = A::parse(data, at)?;
            Ok(Box::new(move |to: &mut Plan<'_>| plan(to, data)))
        });
        let known = self.actions.insert(name, ActionKind { read, data: A::schema });
        debug_assert!(known.is_none(), "`{name}` is declared twice");
    }

    /// Declares an event.
    pub(crate) fn event<E: QapiEvent>(&mut self) {
        self.events.insert(E::NAME, E::schema);
    }

    /// The names of all commands.
    pub(crate) fn command_names(&self) -> impl Iterator<Item = &'static str> {
        self.commands.keys().copied()
    }

    /// Runs a command.
    pub(crate) fn run(
        &self,
        context: &Context<'_>,
        name: &str,
        arguments: Value,
    ) -> QmpResult<Value> {
        let Some(command) = self.commands.get(name) else {
            let desc = format!("The command {} has not been found", clip(name));
            return Err(QmpError::new(ErrorClass::CommandNotFound, desc));
        };
        (command.run)(context, arguments)
    }

    /// Reads an action of a transaction: `{"type": …, "data": {…}}`.
    pub(crate) fn read_action(&self, value: Value, at: &Place<'_>) -> QmpResult<Step> {
        let mut members = Members::of(value, at)?;
        let name: String = members.take("type")?;
        let Some(kind) = self.actions.get(name.as_str()) else {
            return Err(at.member("type").not_accepted(&name));
        };
        let missing = format!("Parameter '{}' is missing", at.member("data"));
        let data: Option<Value> = members.take("data")?;
        let data = data.ok_or_else(|| QmpError::generic(missing))?;
        let step = (kind.read)(data, &at.member("data"))?;
        members.finish()?;
        Ok(step)
    }

    /// What `query-qmp-schema` says.
    pub(crate) fn schema(&self) -> Schema {
        let mut schema = Schema::default();
        self.describe_actions(&mut schema);
        for (name, command) in &self.commands {
            let arguments = (command.arguments)(&mut schema);
            let returns = (command.returns)(&mut schema);
            let mut entry =
                json!({"meta-type": "command", "arg-type": arguments, "ret-type": returns});
            if command.is_deprecated {
                entry["features"] = json!(["deprecated"]);
            }
            schema.insert(name, entry);
        }
        for (name, data) in &self.events {
            let data = data(&mut schema);
            schema.insert(name, json!({"meta-type": "event", "arg-type": data}));
        }
        schema
    }

    /// Describes the union of all actions: each has its data in a member `data`.
    fn describe_actions(&self, schema: &mut Schema) {
        let names: Vec<&str> = self.actions.keys().copied().collect();
        schema.insert("TransactionActionKind", words(&names));
        let variants: Vec<Value> = self
            .actions
            .iter()
            .map(|(case, kind)| {
                let data = (kind.data)(schema);
                let wrapper = format!("{data}-wrapper");
                let members = json!([{"name": "data", "type": data}]);
                schema.insert_same(&wrapper, json!({"meta-type": "object", "members": members}));
                json!({"case": case, "type": wrapper})
            })
            .collect();
        let members = json!([{"name": "type", "type": "TransactionActionKind"}]);
        let entry = json!({
            "meta-type": "object", "members": members, "tag": "type", "variants": variants,
        });
        schema.insert(ACTION_TYPE, entry);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::commands;
    use super::*;

    /// Every type that is spoken of is described, once, and described types are spoken of.
    #[test]
    fn the_schema_is_closed() {
        let schema = commands::registry().schema();
        assert_eq!(schema.clashes(), [""; 0]);
        let entries = schema.into_entries();
        let names: BTreeSet<&str> =
            entries.iter().map(|it| it["name"].as_str().expect("a name")).collect();
        assert_eq!(names.len(), entries.len());
        let mut spoken_of = BTreeSet::new();
        for entry in &entries {
            let mut speak = |value: &Value| {
                if let Some(name) = value.as_str() {
                    assert!(names.contains(name), "{name} of {entry}");
                    spoken_of.insert(name.to_owned());
                }
            };
            ["arg-type", "ret-type", "element-type"].iter().for_each(|key| speak(&entry[key]));
            for key in ["members", "variants"] {
                let all = entry[key].as_array().into_iter().flatten();
                all.for_each(|member| speak(&member["type"]));
            }
            let kind = entry["meta-type"].as_str().expect("a kind");
            let kinds = ["command", "event", "object", "enum", "array", "alternate", "builtin"];
            assert!(kinds.contains(&kind), "{entry}");
            if matches!(kind, "command" | "event") {
                spoken_of.insert(entry["name"].as_str().expect("a name").to_owned());
            }
        }
        let spoken_of: BTreeSet<&str> = spoken_of.iter().map(String::as_str).collect();
        assert_eq!(names, spoken_of);
    }
}
