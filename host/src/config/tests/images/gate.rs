//! Images that name what their user may not have meant.

use expect_test::expect;

use super::{Thing, check, check_in, image, over, place};

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
