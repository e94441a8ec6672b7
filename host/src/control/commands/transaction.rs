//! `transaction`: actions that happen at one instant, or not at all.

use serde_json::Value;

use crate::control::context::Context;
use crate::control::error::{QmpError, QmpResult};
use crate::control::plan::Plan;
use crate::control::qapi::{Place, QapiType, Schema, qapi_enum, qapi_struct};
use crate::control::registry::{ACTION_TYPE, Empty, Registry, Step, again_if_outdated};

/// Actions of one transaction.
const ACTIONS_MAX: usize = 4096;

/// An action that has not been read: which there are, the registry knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ActionValue(Value);

impl QapiType for ActionValue {
    fn schema(_: &mut Schema) -> String {
        ACTION_TYPE.into()
    }

    fn parse(value: Value, _: &Place<'_>) -> QmpResult<Self> {
        Ok(Self(value))
    }

    fn emit(self) -> Option<Value> {
        Some(self.0)
    }

    fn is_kind(value: &Value) -> bool {
        value.is_object()
    }
}

qapi_enum! {
    /// What becomes of a transaction's jobs when one of them fails.
    pub(crate) enum ActionCompletionMode {
        Individual = "individual",
        Grouped = "grouped",
    }
}

qapi_struct! {
    pub(crate) struct TransactionProperties {
        completion_mode: Option<ActionCompletionMode>,
    }
}

qapi_struct! {
    pub(crate) struct TransactionArguments {
        actions: Vec<ActionValue>,
        properties: Option<TransactionProperties>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("transaction", transaction);
    to.action_only("abort", abort);
}

fn transaction(context: &Context<'_>, arguments: TransactionArguments) -> QmpResult<Empty> {
    let TransactionArguments { actions, properties } = arguments;
    let mode = properties.and_then(|properties| properties.completion_mode);
    let count = actions.len();
    if count > ACTIONS_MAX {
        let desc = format!("one transaction has at most {ACTIONS_MAX} actions, not {count}");
        return Err(QmpError::generic(desc));
    }
    let at = Place::ROOT;
    let at = at.member("actions");
    let actions = actions.into_iter().enumerate();
    let read = |(index, action): (usize, ActionValue)| {
        context.registry.read_action(action.0, &at.element(index))
    };
    again_if_outdated(context, || {
        let steps = actions.clone().map(read).collect::<QmpResult<Vec<Step>>>()?;
        let mut plan = Plan::new(context);
        plan.completes_together = mode == Some(ActionCompletionMode::Grouped);
        let planned = steps.into_iter().try_for_each(|step| step(&mut plan));
        plan.commit_if(planned)
    })?;
    Ok(Empty {})
}

fn abort(_: &mut Plan<'_>, _: Empty) -> QmpResult<()> {
    Err(QmpError::generic("Transaction aborted using Abort action"))
}
