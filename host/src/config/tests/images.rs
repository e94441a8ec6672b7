//! Images that name other files, as a made-up world has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use serde_json::Value;

use super::super::*;
use super::{good, tree};

/// What is at a path.
#[derive(Clone)]
enum Thing {
    Dir,
    /// A file of so many bytes that is no image.
    File(u64),
    Image(ImageFacts),
    /// An image with an error in its header.
    Broken(&'static str),
    Device,
    Pipe,
    /// A symbolic link to a path.
    Link(&'static str),
}

struct Place(BTreeMap<PathBuf, Thing>);

impl Place {
    /// What is at `path`, and its real path; of links, one in a path is followed.
    fn find(&self, path: &Path) -> (PathBuf, Option<&Thing>) {
        let mut real = PathBuf::new();
        for part in path.components() {
            match part {
                std::path::Component::ParentDir => drop(real.pop()),
                part => real.push(part),
            }
            if let Some(Thing::Link(target)) = self.0.get(&real) {
                real = PathBuf::from(target);
            }
        }
        let thing = self.0.get(&real);
        (real, thing)
    }
}

impl Surroundings for Place {
    fn file(&self, path: &Path) -> Result<FileFacts, String> {
        let facts = FileFacts { exists: true, writable: true, ..FileFacts::default() };
        Ok(match self.find(path).1 {
            None | Some(Thing::Link(_)) => FileFacts::default(),
            Some(Thing::Dir) => FileFacts { is_dir: true, ..facts },
            Some(Thing::File(size_bytes)) => FileFacts { size_bytes: *size_bytes, ..facts },
            Some(Thing::Image(_) | Thing::Broken(_)) => FileFacts { size_bytes: 196_608, ..facts },
            Some(Thing::Device) => {
                FileFacts { size_bytes: 1 << 30, is_block_device: true, ..facts }
            }
            Some(Thing::Pipe) => FileFacts { is_special: true, ..facts },
        })
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, String> {
        match self.find(path) {
            (real, Some(_)) => Ok(real),
            (_, None) => Err("no such file or directory".to_owned()),
        }
    }

    fn image(&self, path: &Path) -> Result<Option<ImageFacts>, String> {
        match self.find(path).1 {
            Some(Thing::Image(facts)) => Ok(Some(facts.clone())),
            Some(Thing::Broken(why)) => Err((*why).to_owned()),
            Some(Thing::File(_)) => Ok(None),
            _ => panic!("{} is looked into", path.display()),
        }
    }

    fn listen_in_use(&self, _: &ListenAddr) -> Option<String> {
        None
    }

    fn bundled_plugins(&self) -> Vec<String> {
        Vec::new()
    }

    fn plugin(&self, _: &PluginSource) -> Result<(), String> {
        Ok(())
    }

    fn plugin_exclusive(&self, _: &PluginSource) -> Vec<String> {
        Vec::new()
    }

    fn may_bypass(&self, _: &PluginSource) -> bool {
        true
    }

    fn plugin_config(&self, _: &PluginSource, _: &Value) -> Vec<ConfigError> {
        Vec::new()
    }

    fn plugin_views(&self, _: &PluginSource) -> Vec<String> {
        Vec::new()
    }

    fn filter_config(&self, _: FilterKind, _: &Value) -> Vec<ConfigError> {
        Vec::new()
    }
}

fn image() -> ImageFacts {
    ImageFacts {
        size_bytes: 1 << 30,
        backing: None,
        data_file: DataFileSpec::None,
        data_file_name: None,
        is_dirty: false,
        is_left_open: false,
    }
}

/// An image whose backing is `name`, of `format`.
fn over(name: &str, format: Option<&str>) -> Thing {
    let backing = BackingReference { name: name.to_owned(), format: format.map(str::to_owned) };
    Thing::Image(ImageFacts { backing: Some(backing), ..image() })
}

fn with_data(name: Option<&str>, data_file: DataFileSpec) -> Thing {
    Thing::Image(ImageFacts { data_file, data_file_name: name.map(str::to_owned), ..image() })
}

/// The configuration is in `/vm`.
fn place<'a>(things: impl IntoIterator<Item = (&'a str, Thing)>) -> Place {
    let dirs = ["/vm", "/vm/below", "/store", "/etc"].map(|dir| (dir, Thing::Dir));
    let things = dirs.into_iter().chain(things);
    Place(things.map(|(path, thing)| (PathBuf::from(path), thing)).collect())
}

/// Checks `text` in `place`: what is wrong, else the drawing of what it becomes.
fn check_in(place: &Place, text: &str, expected: &Expect) {
    let mut spec = good(text);
    let found = check_surroundings(&mut spec, place, Path::new("/vm"));
    let drawn = tree(&spec);
    expected.assert_eq(&if found.is_empty() { drawn } else { found.to_string() });
}

/// A node whose image is `/vm/a.qcow2`.
const FIRST: &str =
    "[node.a]\ndriver = \"qcow2\"\nfile = { driver = \"file\", path = \"a.qcow2\" }\n";

/// Checks one `qcow2` node `a` on `a.qcow2`, with `more` keys.
fn check<'a>(things: impl IntoIterator<Item = (&'a str, Thing)>, more: &str, expected: &Expect) {
    let text = format!("{FIRST}{more}\n[drive.vda]\nroot = \"a\"\nwritable = true\n");
    check_in(&place(things), &text, expected);
}

#[test]
fn chain_of_images() {
    check(
        [
            ("/vm/a.qcow2", over("below/b.qcow2", Some("qcow2"))),
            ("/vm/below/b.qcow2", over("file:/vm/below/c.qcow2", None)),
            ("/vm/below/c.qcow2", over("../d.raw", Some("raw"))),
            ("/vm/d.raw", Thing::File(1 << 30)),
        ],
        "",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (qcow2 1GiB, read-only) [backing, uses cr, shares cr+wu]
                    ├── file: #a.backing/file (file /vm/below/b.qcow2, read-only) [storage, uses cr, shares cr+wu]
                    └── backing: #a.backing/backing (qcow2 1GiB, read-only) [backing, uses cr, shares cr+wu]
                        ├── file: #a.backing/backing/file (file /vm/below/c.qcow2, read-only) [storage, uses cr, shares cr+wu]
                        └── backing: #a.backing/backing/backing (file /vm/d.raw, read-only) [backing, uses cr, shares cr+wu]
        "#]],
    );
    // An explicit backing, or none, wins over what the image says.
    check(
        [("/vm/a.qcow2", over("nowhere", None))],
        "backing = false",
        &expect![[r#"
        drive vda
        └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
            └── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
    "#]],
    );
    check(
        [("/vm/a.qcow2", over("nowhere", None)), ("/vm/b.qcow2", Thing::Image(image()))],
        "backing = { driver = \"qcow2\", file = { driver = \"file\", path = \"b.qcow2\" } }",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (qcow2 1GiB) [backing, uses cr, shares cr+wu]
                    └── file: #a.backing/file (file b.qcow2) [storage, uses cr, shares cr+wu]
        "#]],
    );
}

#[test]
fn json_names() {
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/vm/b.qcow2"},"backing":null}"#;
    check(
        [("/vm/a.qcow2", over(json, None)), ("/vm/b.qcow2", over("/vm/c", None))],
        "",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (qcow2 1GiB, read-only) [backing, uses cr, shares cr+wu]
                    └── file: #a.backing/file (file /vm/b.qcow2, read-only) [storage, uses cr, shares cr+wu]
        "#]],
    );
    let flat = r#"json:{"driver":"raw","file.filename":"/vm/b.raw","read-only":true}"#;
    check(
        [("/vm/a.qcow2", over(flat, None)), ("/vm/b.raw", Thing::File(5))],
        "",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (file /vm/b.raw, read-only) [backing, uses cr, shares cr+wu]
        "#]],
    );
}

#[test]
fn names_that_lead_to_no_file() {
    let wrong = |name: &str, format: Option<&str>, expected: &str| {
        let mut spec = good(FIRST);
        let place = place([("/vm/a.qcow2", over(name, format))]);
        let found = check_surroundings(&mut spec, &place, Path::new("/vm"));
        let message = found.iter().next().map(|it| it.message.as_str()).unwrap_or_default();
        let rest = message.split_once(" file, which ").map_or(message, |(_, rest)| rest);
        assert_eq!(rest, expected, "{name}");
    };
    wrong("nbd:unix:/x", None, "has the protocol `nbd`: images lead to files only");
    wrong("http://host/x", None, "has the protocol `http`: images lead to files only");
    wrong(
        "json:{",
        None,
        "is no JSON after `json:`: EOF while parsing an object at line 1 column 1",
    );
    let json = |text: &str, expected: &str| wrong(&format!("json:{text}"), None, expected);
    json(r#"{"driver":"qcow2"}"#, "has no file name");
    json(
        r#"{"driver":"vmdk","file.filename":"/x"}"#,
        "has the format `vmdk`: `raw` and `qcow2` are possible",
    );
    json(
        r#"{"driver":"raw","file":{"driver":"nbd","host":"x"}}"#,
        "has the key `file.host`, which is not understood in `json:`",
    );
    json(
        r#"{"driver":"raw","file":{"driver":"nbd"}}"#,
        "has the protocol `nbd`: images lead to files only",
    );
    json(
        r#"{"driver":"raw","file":"node"}"#,
        "has the key `file`, which is not understood in `json:`",
    );
    json(r#"{"driver":"raw","file.filename":5}"#, "has a `file.filename` that is no string");
    json(
        r#"{"driver":"raw","offset":512,"file.filename":"/x"}"#,
        "has the key `offset`, which is not understood in `json:`",
    );
    json(
        r#"{"driver":"file","filename":"x"}"#,
        "has a relative path in `json:`, which leads nowhere in particular",
    );
    json(
        r#"{"driver":"file","filename":"/x","file.filename":"/y"}"#,
        "has two file names in `json:`",
    );
    wrong("file:b", None, "has a relative path in `file:`, which leads nowhere in particular");
    wrong("", None, "is no path: it is empty or has a zero byte");
    wrong("b\0", None, "is no path: it is empty or has a zero byte");
    wrong("b", Some("vmdk"), "has the format `vmdk`: `raw` and `qcow2` are possible");
}

#[test]
fn gate() {
    let secret = ("/etc/shadow", Thing::File(1000));
    check(
        [("/vm/a.qcow2", over("/etc/shadow", Some("raw"))), secret.clone()],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `/etc/shadow` as its backing file, which is in `/etc`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/etc"]` to node `a`; or write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
    check(
        [("/vm/a.qcow2", over("../etc/shadow", Some("raw"))), secret.clone()],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `../etc/shadow` as its backing file, which is in `/etc`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/etc"]` to node `a`; or write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
    // A link in the image's own directory leads elsewhere all the same.
    check(
        [
            ("/vm/a.qcow2", over("b", Some("raw"))),
            ("/vm/b", Thing::Link("/etc/shadow")),
            secret.clone(),
        ],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `b` as its backing file, which is in `/etc`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/etc"]` to node `a`; or write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
    // A name that only begins like the directory's.
    check(
        [("/vm/a.qcow2", over("/vm-other/b", Some("raw"))), ("/vm-other/b", Thing::File(5))],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `/vm-other/b` as its backing file, which is in `/vm-other`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/vm-other"]` to node `a`; or write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
    // The next image of the chain is bound by its own directory.
    check(
        [
            ("/vm/a.qcow2", over("/store/b.qcow2", None)),
            ("/store/b.qcow2", over("/etc/shadow", Some("raw"))),
            secret,
        ],
        "backing-dirs = [\"/store\", \"nowhere\", \"a.qcow2\"]",
        &expect![[r#"
            error: image `/store/b.qcow2` in the chain of node `a` names `/etc/shadow` as its backing file, which is in `/etc`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/etc"]` to node `a`; or spell the chain out: `backing = { driver = "qcow2", … }` in node `a`

            error: directory `nowhere` does not exist
              --> graph.toml:4:27
               |
             4 | backing-dirs = ["/store", "nowhere", "a.qcow2"]
               |                           ^^^^^^^^^

            error: `a.qcow2` is no directory
              --> graph.toml:4:38
               |
             4 | backing-dirs = ["/store", "nowhere", "a.qcow2"]
               |                                      ^^^^^^^^^

            3 errors in graph.toml"#]],
    );
}

#[test]
fn gate_lets_through() {
    check(
        [("/vm/a.qcow2", over("/store/b.qcow2", None)), ("/store/b.qcow2", Thing::Image(image()))],
        "backing-dirs = [\"../store\"]",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (qcow2 1GiB, read-only) [backing, uses cr, shares cr+wu]
                    └── file: #a.backing/file (file /store/b.qcow2, read-only) [storage, uses cr, shares cr+wu]
        "#]],
    );
    // The first image by a link: both directories are its own, and relative names begin at the link.
    check_in(
        &place([
            ("/links", Thing::Dir),
            ("/links/a.qcow2", Thing::Link("/store/a.qcow2")),
            ("/store/a.qcow2", over("b.qcow2", None)),
            ("/links/b.qcow2", over("/store/c.qcow2", None)),
            ("/store/c.qcow2", Thing::Image(image())),
        ]),
        "[node.a]\ndriver = \"qcow2\"\nfile = { driver = \"file\", path = \"/links/a.qcow2\" }\n",
        &expect![[r#"
            error: image `/links/b.qcow2` in the chain of node `a` names `/store/c.qcow2` as its backing file, which is in `/store`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "/links/a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/store"]` to node `a`; or spell the chain out: `backing = { driver = "qcow2", … }` in node `a`

            1 error in graph.toml"#]],
    );
}

#[test]
fn what_is_no_backing_file() {
    let refused = |thing: Option<Thing>, expected: &str| {
        let image = ("/vm/a.qcow2", over("b", Some("raw")));
        let place = place([Some(image), thing.map(|thing| ("/vm/b", thing))].into_iter().flatten());
        let mut spec = good(FIRST);
        let found = check_surroundings(&mut spec, &place, Path::new("/vm"));
        let messages: Vec<&str> = found.iter().map(|it| it.message.as_str()).collect();
        let names = "image `a.qcow2` of node `a` names `b` as its backing file, ";
        assert_eq!(messages, [format!("{names}{expected}")]);
        assert_eq!(spec.nodes.len(), 2, "nothing is added");
    };
    refused(None, "and there is no `/vm/b`");
    refused(Some(Thing::Dir), "which is a directory");
    refused(Some(Thing::Device), "which is a block device");
    refused(Some(Thing::Pipe), "which is no file");
    check(
        [("/vm/a.qcow2", over("b.raw", None)), ("/vm/b.raw", Thing::File(5))],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` does not say which format its backing file `/vm/b.raw` has
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it is raw, write `backing = { driver = "file", path = … }`, or have the image say so: `qemu-img rebase -u -F raw -b /vm/b.raw a.qcow2`

            1 error in graph.toml"#]],
    );
    check(
        [("/vm/a.qcow2", over("b.raw", Some("qcow2"))), ("/vm/b.raw", Thing::File(5))],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` has a backing file `/vm/b.raw` that cannot be used: it is no qcow2 image
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
    check(
        [
            ("/vm/a.qcow2", over("b.qcow2", Some("qcow2"))),
            ("/vm/b.qcow2", Thing::Broken("clusters of 4 bytes")),
        ],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` has a backing file `/vm/b.qcow2` that cannot be used: clusters of 4 bytes
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: write `backing = "NODE"` or `backing = { driver = …, file = … }`

            1 error in graph.toml"#]],
    );
}

#[test]
fn loops_and_depth() {
    check(
        [("/vm/a.qcow2", over("b.qcow2", None)), ("/vm/b.qcow2", over("below/../a.qcow2", None))],
        "",
        &expect![[r#"
            error: the images of node `a` are below themselves: a.qcow2 → /vm/b.qcow2 → /vm/a.qcow2
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: give one of them another backing file: `qemu-img rebase -u -b BACKING IMAGE`

            1 error in graph.toml"#]],
    );
    let name = |index: usize| match index {
        0 => "a.qcow2".to_owned(),
        _ => format!("{index}.qcow2"),
    };
    let chain = |length: usize| {
        let mut things = place([]);
        for index in 0..=length {
            let thing = match index == length {
                true => Thing::Image(image()),
                false => over(&name(index + 1), Some("qcow2")),
            };
            things.0.insert(Path::new("/vm").join(name(index)), thing);
        }
        things
    };
    check_in(
        &chain(201),
        FIRST,
        &expect![[r#"
        error: the images of node `a` have a chain of more than 200 backing files: a.qcow2 → /vm/1.qcow2 → /vm/2.qcow2 → /vm/3.qcow2 → … → /vm/198.qcow2 → /vm/199.qcow2 → /vm/200.qcow2 → /vm/201.qcow2
          --> graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: make the chain shorter: `qemu-img commit`, or `qemu-img rebase`

        1 error in graph.toml"#]],
    );
    let mut spec = good(FIRST);
    assert!(check_surroundings(&mut spec, &chain(200), Path::new("/vm")).is_empty());
    // A node and its file for each.
    assert_eq!(spec.nodes.len(), 402);
    // Three such chains are more nodes than a file may have.
    let mut spec =
        good(&["a", "b", "c"].map(|name| FIRST.replace(".a", &format!(".{name}"))).concat());
    let found = check_surroundings(&mut spec, &chain(200), Path::new("/vm")).to_string();
    assert!(found.contains("have more than 1024 nodes"), "{found}");
}

#[test]
fn data_files() {
    check(
        [
            ("/vm/a.qcow2", with_data(Some("a.raw"), DataFileSpec::Raw)),
            ("/vm/a.raw", Thing::File(1 << 30)),
        ],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `a.raw` as its data file, which would be written: what is written is not for an image to choose
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: write `data-file = { driver = "file", path = … }`, or add `backing-dirs = ["/vm"]` to node `a`

            1 error in graph.toml"#]],
    );
    check(
        [
            ("/vm", Thing::Dir),
            ("/vm/a.qcow2", with_data(Some("a.raw"), DataFileSpec::Raw)),
            ("/vm/a.raw", Thing::File(1 << 30)),
        ],
        "backing-dirs = [\"/vm\"]",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── data-file: #a.data-file (file /vm/a.raw) [data, uses cr+w, shares cr+wu]
        "#]],
    );
    check(
        [
            ("/vm/a.qcow2", over("b.qcow2", None)),
            ("/vm/b.qcow2", with_data(Some("b.data"), DataFileSpec::Mapped)),
            ("/vm/b.data", Thing::File(1 << 30)),
        ],
        "",
        &expect![[r#"
            drive vda
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: #a.backing (qcow2 1GiB, read-only) [backing, uses cr, shares cr+wu]
                    ├── file: #a.backing/file (file /vm/b.qcow2, read-only) [storage, uses cr, shares cr+wu]
                    └── data-file: #a.backing/data-file (file /vm/b.data, read-only) [storage, uses cr, shares cr+wu]
        "#]],
    );
    check(
        [("/vm/a.qcow2", with_data(None, DataFileSpec::Raw))],
        "",
        &expect![[r#"
        error: image `a.qcow2` of node `a` keeps its bytes in a data file and names none
          --> graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: write `data-file = { driver = "file", path = … }`

        1 error in graph.toml"#]],
    );
    check(
        [
            ("/vm/a.qcow2", with_data(Some("/etc/data"), DataFileSpec::Raw)),
            ("/etc/data", Thing::File(5)),
        ],
        "",
        &expect![[r#"
            error: image `a.qcow2` of node `a` names `/etc/data` as its data file, which is in `/etc`, where an image may not lead to
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: if it may, add `backing-dirs = ["/etc"]` to node `a`; or write `data-file = { driver = "file", path = … }`

            1 error in graph.toml"#]],
    );
    check(
        [("/vm/a.qcow2", Thing::Image(image())), ("/vm/a.raw", Thing::File(5))],
        "data-file = { driver = \"file\", path = \"a.raw\" }",
        &expect![[r#"
            error: node `a` has a `data-file`, but its image keeps its bytes itself
              --> graph.toml:4:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ---- the image
             4 | data-file = { driver = "file", path = "a.raw" }
               | ^^^^^^^^^
               = help: remove `data-file`, or use another image

            1 error in graph.toml"#]],
    );
    let mut both = with_data(Some("a.raw"), DataFileSpec::Raw);
    if let (Thing::Image(both), Thing::Image(over)) = (&mut both, over("b", Some("raw"))) {
        both.backing = over.backing;
    }
    check(
        [("/vm/a.qcow2", both), ("/vm/a.raw", Thing::File(5)), ("/vm/b", Thing::File(5))],
        "",
        &expect![[r#"
            error: all bytes of node `a` are those of its raw data file: it can have no backing
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: write `backing = false`

            error: image `a.qcow2` of node `a` names `a.raw` as its data file, which would be written: what is written is not for an image to choose
              --> graph.toml:3:1
               |
             3 | file = { driver = "file", path = "a.qcow2" }
               | ^^^^
               = help: write `data-file = { driver = "file", path = … }`, or add `backing-dirs = ["/vm"]` to node `a`

            2 errors in graph.toml"#]],
    );
}

#[test]
fn first_images() {
    let text = r#"
[node.new]
driver = "qcow2"
file = { driver = "file", path = "new.qcow2" }
create = { size = "1MiB" }
[node.beyond]
driver = "raw"
file = "new"
size = "2MiB"
[node.filled]
driver = "qcow2"
file = { driver = "file", path = "empty.qcow2" }
create = { size = "1MiB" }
[node.empty]
driver = "qcow2"
read-only = true
file = { driver = "file", path = "empty.qcow2" }
[node.missing]
driver = "qcow2"
file = { driver = "file", path = "missing.qcow2" }
[node.raw]
driver = "qcow2"
file = { driver = "file", path = "raw.img" }
[node.broken]
driver = "qcow2"
read-only = true
file = { driver = "file", path = "broken.qcow2" }
[node.through]
driver = "qcow2"
read-only = true
file = { driver = "pass", child.file = { driver = "file", path = "broken.qcow2" } }
[node.through-is-fine]
driver = "qcow2"
read-only = true
file = { driver = "pass", child.file = { driver = "file", path = "broken.qcow2" } }
backing = false
"#;
    let place = place([
        ("/vm/empty.qcow2", Thing::File(0)),
        ("/vm/raw.img", Thing::File(512)),
        ("/vm/broken.qcow2", Thing::Broken("it is encrypted")),
    ]);
    check_in(
        &place,
        text,
        &expect![[r#"
            error: the section of node `beyond` ends at 2MiB of node `new`, which has 1MiB
              --> graph.toml:9:8
               |
             8 | file = "new"
               |        ----- the child
             9 | size = "2MiB"
               |        ^^^^^^
               = help: make the section smaller, or the child larger

            error: file `empty.qcow2` is empty: there is no image in it
               --> graph.toml:17:34
                |
             17 | file = { driver = "file", path = "empty.qcow2" }
                |                                  ^^^^^^^^^^^^^
                = help: to have one made, add `create = { size = "10GiB" }` to node `empty`

            error: nodes `#filled.file` and `#empty.file` are the same file, and `#filled.file` writes it
               --> graph.toml:17:34
                |
             10 | [node.filled]
                |       ------ node `filled` may be written by who uses it
               ...
             12 | file = { driver = "file", path = "empty.qcow2" }
                |                                  ------------- the same file
               ...
             17 | file = { driver = "file", path = "empty.qcow2" }
                |                                  ^^^^^^^^^^^^^
                = help: use one node for both

            error: file `missing.qcow2` does not exist
               --> graph.toml:20:34
                |
             20 | file = { driver = "file", path = "missing.qcow2" }
                |                                  ^^^^^^^^^^^^^^^
                = help: to have an image made, add `create = { size = "10GiB" }` to node `missing`

            error: `raw.img` is no qcow2 image
               --> graph.toml:23:34
                |
             23 | file = { driver = "file", path = "raw.img" }
                |                                  ^^^^^^^^^
                = help: for a raw image write `driver = "raw"`

            error: image `broken.qcow2` cannot be used: it is encrypted
               --> graph.toml:27:34
                |
             27 | file = { driver = "file", path = "broken.qcow2" }
                |                                  ^^^^^^^^^^^^^^

            error: node `through` has no `backing`, and its image cannot be looked into: its file is node `#through.file`, whose driver is `pass`
               --> graph.toml:31:1
                |
             31 | file = { driver = "pass", child.file = { driver = "file", path = "broken.qcow2" } }
                | ^^^^
                = help: write `backing = "NODE"`, or `backing = false` if there is none

            7 errors in graph.toml"#]],
    );
}

#[test]
fn images_beside_nodes() {
    // A node writes what the image of another one leads to.
    let text = r#"
[node.a]
driver = "qcow2"
file = { driver = "file", path = "a.qcow2" }
[node.b]
driver = "qcow2"
file = { driver = "file", path = "below/../b.qcow2" }
[export.b]
type = "nbd"
node = "b"
listen = "unix:b"
writable = true
"#;
    let place =
        place([("/vm/a.qcow2", over("b.qcow2", None)), ("/vm/b.qcow2", Thing::Image(image()))]);
    check_in(
        &place,
        text,
        &expect![[r#"
        error: nodes `#b.file` and `#a.backing/file` are the same file, and `#b.file` writes it
           --> graph.toml:4:1
            |
          4 | file = { driver = "file", path = "a.qcow2" }
            | ^^^^
           ...
          7 | file = { driver = "file", path = "below/../b.qcow2" }
            |                                  ------------------ the same file
           ...
         12 | writable = true
            |            ---- export `b` is writable
            = help: use one node for both: write `backing = …` where an image names it

        1 error in graph.toml"#]],
    );
}

#[test]
fn metadata_images() {
    check(
        [
            ("/vm/a.qcow2", with_data(Some("a.data"), DataFileSpec::Mapped)),
            ("/vm/a.data", Thing::File(5)),
        ],
        "data-file = { driver = \"file\", path = \"a.data\" }\n[bitmap.b]\ndrive = \"vda\"\npersist = \"meta\"",
        &expect![[r#"
            error: `persist = "meta"` of bitmap `b`: the data file of node `a` is not raw
              --> graph.toml:7:11
               |
             1 | [node.a]
               |       - the image
              ...
             7 | persist = "meta"
               |           ^^^^^^
               = help: make the image with `create.data-file-raw = true`, or write `persist = "root"`

            1 error in graph.toml"#]],
    );
    check(
        [
            ("/vm/a.qcow2", with_data(Some("a.data"), DataFileSpec::Raw)),
            ("/vm/a.data", Thing::File(5)),
        ],
        "data-file = { driver = \"file\", path = \"a.data\" }\n[bitmap.b]\ndrive = \"vda\"\npersist = \"meta\"",
        &expect![[r#"
            drive vda
            ├── bitmap b: granularity 64KiB, kept in the metadata image
            └── root: a (qcow2 1GiB) [root, uses cr+w, shares cr+wu]
                ├── file: #a.file (file a.qcow2) [storage, uses cr+w, shares cr+wu]
                └── data-file: #a.data-file (file a.data) [data, uses cr+w, shares cr+wu]
        "#]],
    );
}

#[test]
fn sizes_of_images() {
    let text = format!("{FIRST}[node.part]\ndriver = \"raw\"\nfile = \"a\"\noffset = \"2GiB\"\n");
    check_in(
        &place([("/vm/a.qcow2", Thing::Image(image()))]),
        &text,
        &expect![[r#"
        error: the section of node `part` begins at 2GiB of node `a`, which has 1GiB
          --> graph.toml:7:10
           |
         6 | file = "a"
           |        --- the child
         7 | offset = "2GiB"
           |          ^^^^^^
           = help: make the section smaller, or the child larger

        1 error in graph.toml"#]],
    );
}

#[test]
fn names_in_new_images() {
    let text = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
[node.slow]
driver = "throttle"
child.file = "base"
[node.elsewhere]
driver = "file"
path = "below/x:y.raw"
[node.a]
driver = "qcow2"
file = { driver = "file", path = "a.qcow2" }
backing = "slow"
create = { size = "1MiB" }
[node.b]
driver = "qcow2"
file = { driver = "file", path = "b.qcow2" }
backing = { driver = "raw", file = "elsewhere" }
create = { size = "1MiB" }
[node.c]
driver = "qcow2"
file = { driver = "file", path = "below/c.qcow2" }
backing = "elsewhere"
data-file = { driver = "file", path = "below/c.data" }
create = { size = "1MiB" }
[node.d]
driver = "qcow2"
file = { driver = "file", path = "d.qcow2" }
backing = { driver = "null", size = 512 }
create = { size = "1MiB" }
[node.e]
driver = "qcow2"
file = { driver = "file", path = "e.qcow2" }
backing = { driver = "null", size = 512 }
create = { size = "1MiB", backing-file = "x", backing-format = "raw" }
"#;
    let spec = good(text);
    let reference = |name: &str| {
        let node = spec.node(name).expect("the node");
        let backing = spec.backing_reference(node, Path::new("/vm"));
        let backing = backing.map(|it| format!("{} ({})", it.name, it.format.unwrap_or_default()));
        let data = spec.data_file_name(node, Path::new("/vm"));
        let none = || "-".to_owned();
        format!("{name}: {}, {}", backing.unwrap_or_else(none), data.unwrap_or_else(none))
    };
    let all = ["a", "b", "c", "d", "e"].map(reference).join("\n");
    expect![[r#"
        a: base.qcow2 (qcow2), -
        b: /vm/below/x:y.raw (raw), -
        c: ./x:y.raw (raw), c.data
        d: -, -
        e: x (raw), -"#]]
    .assert_eq(&all);
}
