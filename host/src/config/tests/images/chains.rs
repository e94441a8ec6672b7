//! Files below images, as those name them.

use std::path::Path;

use expect_test::expect;

use super::super::super::*;
use super::super::good;
use super::{FIRST, Thing, check, check_in, image, over, place};

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
