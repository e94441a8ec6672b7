//! Images that are made at start.

use std::path::Path;

use expect_test::expect;

use super::super::super::*;
use super::super::good;
use super::{FIRST, Thing, check, check_in, image, over, place, with_data};

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
