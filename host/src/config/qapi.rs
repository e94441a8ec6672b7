//! Nodes in the words of QEMU's QAPI (`qapi/block-core.json`, `BlockdevOptions`), translated to those of TOML.
//!
//! What has another name or form here is in the tables; everything else keeps its name, so that a node may be
//! described in TOML's words, too, and a key that nobody knows is reported as it was written. A key of QEMU's
//! that says no more than what is so here is taken and dropped ([`Rule::Is`]).
//!
//! | QEMU | here |
//! |---|---|
//! | drivers `host_device`, `null-co`, `null-aio`, `copy-before-write`, `snapshot-access` | `file`, `null`, `null`, `backup`, `plugin-view` |
//! | `node-name` | the node's name; without one, one is made up (`#block…`, within a node `#PARENT.CHILD`) |
//! | `filename` | `path` |
//! | `cache.direct` of a file | `direct` |
//! | `discard`: `unmap` or `ignore`, of a file | `discard`: true or false; left out, it is true |
//! | `backing`: null | `backing`: false |
//! | `l2-cache-size` | `l2-cache` |
//! | `latency-ns` | `latency` |
//! | `throttle-group` | `instance`, with the limits of the node that has it already, or its own `config` |
//! | `file`, `target`, `bottom` of filters | `child.file`, `child.target`, `child.bottom` |
//! | `bitmap` of `copy-before-write` | `bitmap.changes`, as `NODE/NAME` |
//! | `on-cbw-error`, `cbw-timeout`, `min-cluster-size` | keys of `config`, and `config.sync` is `none` |
//! | `file` of `snapshot-access` | `of`, and `view` is `snapshot` |

use serde_json::{Map, Value};

use super::json::{Item, Shape, Wrong, below};

/// What becomes of a key.
#[derive(Clone, Copy)]
enum Rule {
    /// It has another name here.
    Name(&'static str),
    /// It is a child, under `child`.
    Child(&'static str),
    /// It is a child, and has the same name here.
    Node,
    /// It may be this, which is so here.
    Is(&'static [&'static str]),
    /// It may be any boolean: it does not matter here.
    AnyBool,
    /// It may be any number: it tunes what is tuned otherwise here.
    AnyNumber,
    /// A key of `config`.
    Config,
    /// The same, in seconds.
    ConfigSeconds,
    Backing,
    Cache,
    Discard,
    Nanoseconds,
    /// A bitmap by node and name, lent as `changes`.
    Changes,
    /// The node whose view it is.
    Of,
}

/// Names of drivers that are others here.
const DRIVERS: [(&str, &str); 5] = [
    ("host_device", "file"),
    ("null-co", "null"),
    ("null-aio", "null"),
    ("copy-before-write", "backup"),
    ("snapshot-access", "plugin-view"),
];

/// Keys of every driver.
const COMMON: &[(&str, Rule)] = &[
    ("force-share", Rule::Is(&["false"])),
    ("detect-zeroes", Rule::Is(&["\"off\""])),
    ("active", Rule::Is(&["true"])),
    ("cache", Rule::Cache),
    ("discard", Rule::Discard),
];

/// Keys by driver, in our name for it.
const BY_DRIVER: &[(&str, &[(&str, Rule)])] = &[
    (
        "file",
        &[
            ("filename", Rule::Name("path")),
            ("aio", Rule::Is(&["\"threads\"", "\"native\"", "\"io_uring\""])),
            ("aio-max-batch", Rule::AnyNumber),
            ("drop-cache", Rule::AnyBool),
            ("x-check-cache-dropped", Rule::Is(&["false"])),
        ],
    ),
    ("raw", &[("file", Rule::Node)]),
    (
        "qcow2",
        &[
            ("file", Rule::Node),
            ("data-file", Rule::Node),
            ("backing", Rule::Backing),
            ("l2-cache-size", Rule::Name("l2-cache")),
            ("l2-cache-entry-size", Rule::AnyNumber),
            ("cache-size", Rule::AnyNumber),
            ("refcount-cache-size", Rule::AnyNumber),
            ("cache-clean-interval", Rule::AnyNumber),
            ("pass-discard-request", Rule::Is(&["true"])),
            ("pass-discard-snapshot", Rule::AnyBool),
            ("pass-discard-other", Rule::AnyBool),
            ("discard-no-unref", Rule::Is(&["false"])),
            ("overlap-check", Rule::Is(&["\"cached\"", "\"constant\"", "\"none\"", "\"all\""])),
        ],
    ),
    ("null", &[("latency-ns", Rule::Nanoseconds)]),
    ("throttle", &[("throttle-group", Rule::Name("instance")), ("file", Rule::Child("file"))]),
    ("pass", &[("file", Rule::Child("file"))]),
    ("plugin", &[("file", Rule::Child("file"))]),
    ("copy-on-read", &[("file", Rule::Child("file")), ("bottom", Rule::Child("bottom"))]),
    (
        "backup",
        &[
            ("file", Rule::Child("file")),
            ("target", Rule::Child("target")),
            ("bitmap", Rule::Changes),
            ("on-cbw-error", Rule::Config),
            ("cbw-timeout", Rule::ConfigSeconds),
            ("min-cluster-size", Rule::Config),
        ],
    ),
    ("plugin-view", &[("file", Rule::Of)]),
];

fn rule_of(driver: &str, key: &str) -> Option<Rule> {
    let of_driver = BY_DRIVER.iter().filter(|(name, _)| *name == driver);
    let rules = of_driver.flat_map(|(_, rules)| rules.iter()).chain(COMMON);
    rules.into_iter().find(|(name, _)| *name == key).map(|(_, rule)| *rule)
}

/// Nodes in TOML's words.
#[derive(Default)]
pub(super) struct Translated {
    /// By name, each with its keys: those with a name of their own are beside each other.
    pub(super) nodes: Vec<(String, Item)>,
    /// Those of them that are given within another one.
    pub(super) within: Vec<String>,
    pub(super) wrong: Vec<Wrong>,
}

/// A node that is being translated.
struct Keys {
    path: String,
    driver: String,
    /// What it says of `auto-read-only`, which nodes have that are given in it.
    auto: Option<Value>,
    keys: Vec<(String, Item)>,
    children: Vec<(String, Item)>,
    config: Vec<(String, Item)>,
}

impl Translated {
    /// Adds the node that `options`, at `path`, describe, and all within it that have names; gives its name:
    /// `made_up` without one of its own.
    pub(super) fn add(
        &mut self,
        options: &Map<String, Value>,
        path: &str,
        made_up: &str,
    ) -> String {
        let name = self.name_of(options, path).unwrap_or_else(|| made_up.to_owned());
        let item = self.translate(options, path, 0);
        self.nodes.push((name.clone(), item));
        name
    }

    fn name_of(&mut self, options: &Map<String, Value>, path: &str) -> Option<String> {
        match options.get("node-name")? {
            Value::String(name) => Some(name.clone()),
            _ => {
                let path = below(path, "node-name");
                self.wrong.push(Wrong::new(&path, "`node-name` must be a string", ""));
                None
            }
        }
    }

    fn translate(&mut self, options: &Map<String, Value>, path: &str, depth: usize) -> Item {
        let said = options.get("driver").and_then(Value::as_str).unwrap_or_default();
        let ours = DRIVERS.iter().find(|(theirs, _)| *theirs == said).map(|(_, ours)| *ours);
        let mut to = Keys {
            path: path.to_owned(),
            driver: ours.unwrap_or(said).to_owned(),
            auto: options.get("auto-read-only").cloned(),
            keys: Vec::new(),
            children: Vec::new(),
            config: Vec::new(),
        };
        let is_theirs = said == "copy-before-write" || said == "snapshot-access";
        if is_theirs {
            let (key, item) = match said {
                "copy-before-write" => ("sync", Item::text(path, "none")),
                _ => ("view", Item::text(path, "snapshot")),
            };
            let keys = if key == "sync" { &mut to.config } else { &mut to.keys };
            keys.push((key.to_owned(), item));
        }
        for (key, value) in options {
            let path = below(path, key);
            match key.as_str() {
                "node-name" => {}
                "driver" if ours.is_some() => {
                    to.keys.push((key.clone(), Item::text(&path, to.driver.clone())));
                }
                _ => self.key(key, value, &path, &mut to, depth),
            }
        }
        self.finish(to)
    }

    fn finish(&mut self, to: Keys) -> Item {
        let Keys { path, mut keys, children, config, .. } = to;
        for (key, more) in [("child", children), ("config", config)] {
            if more.is_empty() {
                continue;
            }
            let at = keys.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
                keys.push((key.to_owned(), Item::new(&path, Shape::Table(Vec::new()))));
                keys.len() - 1
            });
            // If it is no table, that is reported when it is read.
            let Shape::Table(known) = &mut keys[at].1.shape else { continue };
            for (name, item) in more {
                if known.iter().any(|(other, _)| *other == name) {
                    let message = format!("`{key}.{name}` is given a second time");
                    self.wrong.push(Wrong::new(&item.path, message, "remove one of them"));
                } else {
                    known.push((name, item));
                }
            }
        }
        Item::new(&path, Shape::Table(keys))
    }

    fn key(&mut self, key: &str, value: &Value, path: &str, to: &mut Keys, depth: usize) {
        let named = |name: &str, item: Item| (name.to_owned(), item);
        let text = |text: String| Item::text(path, text);
        match rule_of(&to.driver, key) {
            None if key == "child" && value.is_object() => {
                let children = value.as_object().into_iter().flatten();
                for (name, value) in children {
                    let child = self.heir(value, &below(path, name), depth, to);
                    to.children.push((name.clone(), child));
                }
            }
            None => to.keys.extend(self.as_is(value, path).map(|item| named(key, item))),
            Some(Rule::Name(name)) => {
                to.keys.extend(self.as_is(value, path).map(|item| named(name, item)));
            }
            Some(Rule::Config) => {
                to.config.extend(self.as_is(value, path).map(|item| named(key, item)));
            }
            Some(Rule::ConfigSeconds) => match value.as_u64() {
                Some(0) => {}
                Some(seconds) => to.config.push(named(key, text(format!("{seconds}s")))),
                None => self.wrong(path, key, "must be a number of seconds"),
            },
            Some(Rule::Nanoseconds) => match value.as_u64() {
                Some(0) => {}
                Some(nanos) => to.keys.push(named("latency", text(format!("{nanos}ns")))),
                None => self.wrong(path, key, "must be a number of nanoseconds"),
            },
            Some(Rule::Changes) => self.changes(value, path, to),
            Some(Rule::Node) => {
                let child = self.heir(value, path, depth, to);
                to.keys.push(named(key, child));
            }
            Some(Rule::Child(name)) => {
                let child = self.heir(value, path, depth, to);
                to.children.push(named(name, child));
            }
            Some(Rule::Backing) => {
                let is_none = value.is_null() || value.as_str() == Some("");
                let item = match is_none {
                    true => Item::new(path, Shape::Bool(false)),
                    false => self.child(value, path, depth),
                };
                to.keys.push(named(key, item));
            }
            Some(Rule::Of) => match value {
                Value::String(node) => to.keys.push(named("of", text(node.clone()))),
                _ => self.wrong(path, key, "must be the name of the node whose view it is"),
            },
            Some(Rule::Is(possible)) => self.expect(value, path, key, possible),
            Some(Rule::AnyBool) if value.is_boolean() => {}
            Some(Rule::AnyBool) => self.wrong(path, key, "must be true or false"),
            Some(Rule::AnyNumber) if value.is_u64() => {}
            Some(Rule::AnyNumber) => self.wrong(path, key, "must be a number"),
            Some(Rule::Cache) => self.cache(value, path, to),
            Some(Rule::Discard) => self.discard(value, path, to),
        }
    }

    fn wrong(&mut self, path: &str, key: &str, what: &str) {
        self.wrong.push(Wrong::new(path, format!("`{key}` {what}"), ""));
    }

    fn as_is(&mut self, value: &Value, path: &str) -> Option<Item> {
        Item::of(value, path).map_err(|wrong| self.wrong.push(wrong)).ok()
    }

    /// A child that has `auto-read-only` from its parent, if it says nothing of that.
    fn heir(&mut self, value: &Value, path: &str, depth: usize, parent: &Keys) -> Item {
        const KEY: &str = "auto-read-only";
        match (value, &parent.auto) {
            (Value::Object(options), Some(auto)) if !options.contains_key(KEY) => {
                let mut options = options.clone();
                options.insert(KEY.to_owned(), auto.clone());
                self.child(&Value::Object(options), path, depth)
            }
            _ => self.child(value, path, depth),
        }
    }

    /// A child: a node's name, or a node, which is beside the others if it has a name of its own.
    fn child(&mut self, value: &Value, path: &str, depth: usize) -> Item {
        const DEPTH_MAX: usize = 64;
        let Value::Object(options) = value else {
            return self.as_is(value, path).unwrap_or_else(|| Item::new(path, Shape::Null));
        };
        if depth >= DEPTH_MAX {
            self.wrong.push(Wrong::new(path, "is nested too deeply", "give nodes names"));
            return Item::new(path, Shape::Null);
        }
        let node = self.translate(options, path, depth + 1);
        match self.name_of(options, path) {
            None => node,
            Some(name) => {
                self.nodes.push((name.clone(), node));
                self.within.push(name.clone());
                Item::text(&below(path, "node-name"), name)
            }
        }
    }

    /// What says no more than what is so here.
    fn expect(&mut self, value: &Value, path: &str, key: &str, possible: &[&str]) {
        let found = value.to_string();
        if possible.contains(&found.as_str()) {
            return;
        }
        let message = format!("`{key}` cannot be {}", super::render::clip(&found));
        let help = format!("possible here: {}", possible.join(", "));
        self.wrong.push(Wrong::new(path, message, help));
    }

    fn changes(&mut self, value: &Value, path: &str, to: &mut Keys) {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        if let (Some(node), Some(name)) = (text("node"), text("name")) {
            let lent = Item::text(path, format!("{node}/{name}"));
            let lent = Item::new(path, Shape::Table(vec![("changes".to_owned(), lent)]));
            to.keys.push(("bitmap".to_owned(), lent));
        } else {
            to.keys.extend(self.as_is(value, path).map(|item| ("bitmap".to_owned(), item)));
        }
    }

    fn cache(&mut self, value: &Value, path: &str, to: &mut Keys) {
        let Value::Object(cache) = value else {
            return self.wrong(path, "cache", "must be an object");
        };
        for (key, value) in cache {
            let path = below(path, key);
            match (key.as_str(), value) {
                ("direct", Value::Bool(direct)) => {
                    // Of a format it is about the file below, which says it by itself.
                    if to.driver == "file" {
                        let direct = Item::new(&path, Shape::Bool(*direct));
                        to.keys.push(("direct".to_owned(), direct));
                    }
                }
                ("direct", _) => self.wrong(&path, key, "must be true or false"),
                ("no-flush", value) => self.expect(value, &path, key, &["false"]),
                _ => self.wrong(&path, key, "is unknown in `cache`"),
            }
        }
    }

    fn discard(&mut self, value: &Value, path: &str, to: &mut Keys) {
        let frees = match value {
            Value::String(word) if word == "unmap" => Some(true),
            Value::String(word) if word == "ignore" => Some(false),
            _ => None,
        };
        if !["file", "plugin-view"].contains(&to.driver.as_str()) {
            return match frees {
                Some(true) => {}
                _ => self.expect(value, path, "discard", &["\"unmap\""]),
            };
        }
        let item = match frees {
            Some(frees) => Some(Item::new(path, Shape::Bool(frees))),
            None => self.as_is(value, path),
        };
        to.keys.extend(item.map(|item| ("discard".to_owned(), item)));
    }
}
