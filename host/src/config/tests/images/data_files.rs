//! Data files of images.

use expect_test::expect;

use super::super::super::*;
use super::{Thing, check, image, over, with_data};

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
