//! The command line of `blockloom image bitmap`: what is to be done, in the order in which it was written.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::failure::{Failure, Result};

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Action {
    /// Makes it, recording and clean.
    Add,
    /// Takes it away.
    Remove,
    /// Makes all of it clean.
    Clear,
    /// Has it record.
    Enable,
    /// Has it record no more.
    Disable,
    /// Adds what this one has dirty.
    Merge(String),
    /// Gives it this name.
    Rename(String),
    /// Makes an inconsistent one good again: all of it is dirty.
    Repair,
}

impl Action {
    /// The option that asks for it.
    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::Add => "--add",
            Self::Remove => "--remove",
            Self::Clear => "--clear",
            Self::Enable => "--enable",
            Self::Disable => "--disable",
            Self::Merge(_) => "--merge",
            Self::Rename(_) => "--rename",
            Self::Repair => "--repair",
        }
    }
}

/// Options without a value.
const PLAIN: [(&str, Action, &str); 6] = [
    ("add", Action::Add, "Makes the bitmap, clean and recording"),
    ("remove", Action::Remove, "Removes the bitmap, whatever it is"),
    ("clear", Action::Clear, "Makes all of it clean"),
    ("enable", Action::Enable, "Has it record changes from now on"),
    ("disable", Action::Disable, "Has it record no more changes"),
    ("repair", Action::Repair, "Makes an inconsistent one good again: all of it is dirty then"),
];

/// Options with the name of a bitmap.
type Named = (&'static str, &'static str, fn(String) -> Action, &'static str);
const NAMED: [Named; 2] = [
    ("merge", "SOURCE", Action::Merge, "Adds what the bitmap SOURCE has dirty"),
    ("rename", "NAME", Action::Rename, "Gives it another name, which the actions behind this use"),
];

/// The actions of a command line, in its order.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Actions(pub(super) Vec<Action>);

impl Args for Actions {
    fn augment_args(mut command: Command) -> Command {
        for (name, _, help) in PLAIN {
            let argument = Arg::new(name).long(name).help(help).num_args(0);
            let argument = argument.action(ArgAction::Append).default_missing_value("on");
            command = command.arg(argument);
        }
        for (name, value, _, help) in NAMED {
            let argument = Arg::new(name).long(name).help(help).value_name(value);
            command = command.arg(argument.action(ArgAction::Append));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut actions: Vec<(usize, Action)> = Vec::new();
        for (name, action, _) in PLAIN {
            let places = matches.indices_of(name).into_iter().flatten();
            actions.extend(places.map(|place| (place, action.clone())));
        }
        for (name, _, action, _) in NAMED {
            let places = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            actions.extend(places.zip(values).map(|(place, value)| (place, action(value.clone()))));
        }
        actions.sort_by_key(|(place, _)| *place);
        Ok(Self(actions.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What else a command line says.
#[derive(Debug, Default)]
pub(super) struct Extras {
    pub(super) source_file: Option<std::path::PathBuf>,
    pub(super) source_format: Option<super::layer::Format>,
    pub(super) granularity_bytes: Option<u64>,
}

impl Actions {
    /// Whether everything goes together.
    pub(super) fn check(&self, extras: &Extras) -> Result<()> {
        let fail = |message: &str| Err(Failure::usage(message));
        let has = |option: &str| self.0.iter().any(|action| action.option() == option);
        if self.0.is_empty() {
            return fail(
                "say what to do with the bitmap: --add, --remove, --clear, --enable, --disable, \
                 --merge SOURCE, --rename NAME, --repair, or --list",
            );
        }
        if extras.granularity_bytes.is_some() && !has("--add") {
            return fail("--granularity: only a new bitmap takes one, with --add");
        }
        if extras.source_file.is_some() && !has("--merge") {
            return fail("--source-file: names the image of --merge SOURCE, which is missing");
        }
        if extras.source_format.is_some() && extras.source_file.is_none() {
            return fail("--source-format: needs --source-file FILE");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(line: &str) -> Vec<Action> {
        let command = Actions::augment_args(Command::new("bitmap"));
        let words = ["bitmap"].into_iter().chain(line.split_whitespace());
        let matches = command.try_get_matches_from(words).expect(line);
        Actions::from_arg_matches(&matches).expect(line).0
    }

    #[test]
    fn actions_keep_their_order() {
        let merge = |name: &str| Action::Merge(name.into());
        let check = |line: &str, expect: &[Action]| assert_eq!(actions(line), expect, "{line}");
        check("", &[]);
        check("--add --merge a --merge b", &[Action::Add, merge("a"), merge("b")]);
        check("--merge a --clear --merge=b", &[merge("a"), Action::Clear, merge("b")]);
        check("--clear --disable --clear", &[Action::Clear, Action::Disable, Action::Clear]);
        let renamed = Action::Rename("x".into());
        check("--remove --rename x --add", &[Action::Remove, renamed, Action::Add]);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let check = |line: &str, extras: Extras, expect: &str| {
            let failure = Actions(actions(line)).check(&extras).expect_err(line);
            assert!(failure.code == 2 && failure.message.contains(expect), "{}", failure.message);
        };
        check("", Extras::default(), "--merge SOURCE");
        let granularity = Extras { granularity_bytes: Some(4096), ..Extras::default() };
        check("--clear", granularity, "--add");
        let source = Extras { source_file: Some("a".into()), ..Extras::default() };
        check("--add", source, "--merge");
    }
}
