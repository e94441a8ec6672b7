//! Commands with arguments that are missing, too many, of the wrong kind, or hostile: each is answered, and the
//! host goes on. What a command takes comes from the schema.
//!
//! `BLOCKLOOM_CONTROL_CASES` says how many there are for each command; 1,000 take a minute.

use std::collections::BTreeMap;

use blockloom_tests::Random;
use blockloom_tests::qmp::Qmp;
use serde_json::{Map, Value, json};

use super::Controlled;

const CASES_DEFAULT: u64 = 60;

struct Mutator {
    random: Random,
    schema: BTreeMap<String, Value>,
    /// What it makes has the right types, and nothing that may be left out.
    is_tame: bool,
}

impl Mutator {
    fn chance(&mut self, in_100: u64) -> bool {
        self.random.below(100) < in_100
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize].clone()
    }

    fn of_type(&mut self, name: &str, depth: u32) -> Value {
        if depth > 8 || !self.is_tame && self.chance(8) {
            return self.hostile();
        }
        let entry = self.schema[name].clone();
        match entry["meta-type"].as_str().expect("a kind") {
            "builtin" => self.builtin(entry["json-type"].as_str().expect("a kind")),
            "enum" if !self.is_tame && self.chance(10) => json!("no-such-word"),
            "enum" => self.pick(entry["values"].as_array().expect("words")),
            "array" => {
                let count = self.random.below(4);
                let element = entry["element-type"].as_str().expect("a type").to_owned();
                (0..count).map(|_| self.of_type(&element, depth + 1)).collect()
            }
            "alternate" => {
                let member = self.pick(entry["members"].as_array().expect("types"));
                self.of_type(member["type"].as_str().expect("a type"), depth + 1)
            }
            "object" => self.object(&entry, depth),
            other => panic!("{other}"),
        }
    }

    fn object(&mut self, entry: &Value, depth: u32) -> Value {
        let (members, mut object) = self.members(entry);
        for member in members {
            let is_there = match (member.get("default").is_some(), self.is_tame) {
                (is_optional, true) => !is_optional,
                (true, false) => self.chance(40),
                (false, false) => self.chance(93),
            };
            if is_there {
                let value = self.of_type(member["type"].as_str().expect("a type"), depth + 1);
                object.insert(member["name"].as_str().expect("a name").to_owned(), value);
            }
        }
        if !self.is_tame && self.chance(8) {
            let key = self.pick(&["x".to_owned(), String::new(), "é".repeat(3000)]);
            let value = self.hostile();
            object.insert(key, value);
        }
        Value::Object(object)
    }

    /// The members of an object, and what says which they are, if something does.
    fn members(&mut self, entry: &Value) -> (Vec<Value>, Map<String, Value>) {
        let mut members: Vec<Value> = entry["members"].as_array().expect("members").clone();
        let mut object = Map::new();
        if let Some(tag) = entry["tag"].as_str() {
            let variant = self.pick(entry["variants"].as_array().expect("variants"));
            let branch = &self.schema[variant["type"].as_str().expect("a type")];
            members.retain(|member| member["name"] != tag);
            members.extend(branch["members"].as_array().expect("members").clone());
            object.insert(tag.to_owned(), variant["case"].clone());
        }
        (members, object)
    }

    /// What is not of a type, if there is anything.
    fn wrong(&self, name: &str) -> Option<Value> {
        let kind = &self.schema[name];
        Some(match (kind["meta-type"].as_str(), kind["json-type"].as_str()) {
            (Some("builtin"), Some("value")) => return None,
            (Some("builtin"), Some("string")) | (Some("enum" | "array" | "object"), _) => json!(7),
            (Some("builtin"), Some("int" | "boolean" | "number")) => json!("x"),
            // Of some that may be of several types, nothing that is a list.
            _ => json!([[]]),
        })
    }

    fn builtin(&mut self, kind: &str) -> Value {
        match kind {
            "int" if self.is_tame => json!(1),
            "string" => {
                let known = ["vda", "disk", "b", "daily", "idle", "new", "vdb", "none"];
                json!(self.pick(&known))
            }
            "int" => self.pick(&[
                json!(0),
                json!(1),
                json!(512),
                json!(4096),
                json!(65536),
                json!(1 << 20),
                json!(-1),
                json!(i64::MIN),
                json!(i64::MAX),
                json!(u64::MAX),
                json!(u32::MAX),
            ]),
            "boolean" => json!(self.chance(50)),
            "number" => json!(0.5),
            "null" => Value::Null,
            _ => self.hostile(),
        }
    }

    fn hostile(&mut self) -> Value {
        let deep = (0..300).fold(json!(1), |inner, level| match level % 2 {
            0 => json!([inner]),
            _ => json!({"a": inner}),
        });
        let all = [
            Value::Null,
            json!(true),
            json!(-1),
            json!(1.5),
            json!(1e300),
            json!(u64::MAX),
            json!(""),
            json!("a\u{1}b\u{7f}\u{202e}\u{1f600}"),
            json!("../../etc/passwd"),
            json!("x".repeat(100_000)),
            json!([]),
            json!({}),
            json!(vec![json!({}); 1000]),
            deep,
        ];
        self.pick(&all)
    }
}

fn cases() -> u64 {
    let wanted = std::env::var("BLOCKLOOM_CONTROL_CASES").ok();
    wanted.map_or(CASES_DEFAULT, |text| text.parse().expect("a number of cases"))
}

/// A host, with a client of it and what that may ask: by name, with the type of the arguments.
fn begin(is_tame: bool) -> (Controlled, Qmp, Mutator, Vec<(String, String)>) {
    let graph = "[node.disk]\ndriver = \"memory\"\nsize = \"1MiB\"\n\
        [node.idle]\ndriver = \"pass\"\nchild.file = \"disk\"\n\
        [drive.vda]\nroot = \"idle\"\nwritable = true\n[bitmap.b]\ndrive = \"vda\"\n\
        [node.other]\ndriver = \"null\"\nsize = \"1MiB\"\n[drive.vdb]\nroot = \"other\"\n";
    let host = Controlled::start(graph, &[]);
    let mut client = host.client();
    let schema = client.run("query-qmp-schema", json!({}));
    let entries = schema.as_array().expect("a list").iter();
    let named = entries.map(|it| (it["name"].as_str().expect("a name").to_owned(), it.clone()));
    let mutator = Mutator { random: Random::new(7), schema: named.collect(), is_tame };
    let commands = mutator
        .schema
        .iter()
        .filter(|(name, entry)| entry["meta-type"] == "command" && *name != "quit")
        .map(|(name, entry)| (name.clone(), entry["arg-type"].as_str().expect("a type").into()))
        .collect();
    (host, client, mutator, commands)
}

/// Arguments that are right but for one: it is named, and nothing is done.
#[test]
fn every_argument_is_checked() {
    let (host, mut client, mut mutator, commands) = begin(true);
    let mut wrong = Vec::new();
    // What each client says first is not looked at later.
    for (command, arguments) in commands.iter().filter(|(name, _)| name != "qmp_capabilities") {
        let entry = mutator.schema[arguments].clone();
        let right = mutator.object(&entry, 0);
        let right = right.as_object().expect("an object").clone();
        let mut check = |member: &str, value: Option<Value>, expect: String| {
            let mut arguments = right.clone();
            match value {
                Some(value) => drop(arguments.insert(member.to_owned(), value)),
                None => drop(arguments.remove(member)),
            }
            let answer = client.ask(command, Value::Object(arguments.clone()));
            let desc = answer["error"]["desc"].as_str().unwrap_or_default();
            if !desc.starts_with(&expect) {
                wrong.push(format!("{command} {arguments:?}: {answer}, not {expect}"));
            }
        };
        check("no-such", Some(json!(1)), "Parameter 'no-such' is unexpected".into());
        for member in right.keys() {
            check(member, None, format!("Parameter '{member}' is missing"));
        }
        for member in entry["members"].as_array().expect("members") {
            let name = member["name"].as_str().expect("a name");
            if let Some(other) = mutator.wrong(member["type"].as_str().expect("a type")) {
                check(name, Some(other), format!("Invalid parameter type for '{name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    host.finish();
}

#[test]
fn every_command_answers_whatever_it_is_given() {
    let (host, mut client, mut mutator, commands) = begin(false);
    let (mut done, mut refused) = (0, 0);
    for _ in 0..cases() {
        for (name, arguments) in &commands {
            let arguments = match mutator.chance(5) {
                true => mutator.hostile(),
                false => mutator.of_type(arguments, 0),
            };
            check(&mut client, name, arguments, (&mut done, &mut refused));
        }
    }
    assert!(done > refused / 20 && refused > done / 20, "{done} done, {refused} refused");
    host.client().run("query-graph", json!({}));
    host.finish();
}

fn check(client: &mut Qmp, name: &str, arguments: Value, (done, refused): (&mut u64, &mut u64)) {
    let shown = arguments.to_string();
    let shown: String = shown.chars().take(300).collect();
    let answer = client.ask(name, arguments);
    match answer["error"]["class"].as_str() {
        None => {
            assert!(answer.get("return").is_some(), "{name} {shown}: {answer}");
            *done += 1;
        }
        Some(class) => {
            let classes = ["GenericError", "CommandNotFound", "DeviceNotFound", "DeviceNotActive"];
            let desc = answer["error"]["desc"].as_str().expect("a description");
            assert!(classes.contains(&class) && !desc.is_empty(), "{name} {shown}: {answer}");
            assert!(desc.len() < 10_000, "{name} {shown}: {} bytes", desc.len());
            *refused += 1;
        }
    }
}
