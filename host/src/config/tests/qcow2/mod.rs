//! Driver `qcow2`: its options, its children, and bitmaps that images keep.

mod bitmaps;
mod options;

use expect_test::expect;

use super::super::{BackingSpec, DriverSpec, Qcow2Spec};
use super::{check, good, tree};

/// A base, an overlay that is made, and one whose bytes are in another file.
pub(super) const CHAIN: &str = r#"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
backing = false
read-only = true

[node.overlay]
driver = "qcow2"
file = { driver = "file", path = "overlay.qcow2" }
backing = "base"
create = { size = "10GiB", cluster-size = "64KiB", extended-l2 = true, preallocation = "metadata" }
l2-cache = "1MiB"
lazy-refcounts = false
backing-dirs = ["images", "/srv/images"]

[node.meta]
driver = "qcow2"
file = { driver = "file", path = "meta.qcow2" }
data-file = "overlay"
[node.meta.create]
size = "10GiB"
data-file-raw = true
lazy-refcounts = true
refcount-bits = 64
compat = "1.1"
compression-type = "zstd"

[drive.vda]
root = "meta"

[bitmap.daily]
drive = "vda"
persist = "meta"
[bitmap.weekly]
drive = "vda"
persist = "root"
[bitmap.below]
node = "overlay"
persist = { node = "overlay" }

[export.vda]
type = "nbd"
drive = "vda"
listen = "unix:a"
writable = true
bitmaps = ["daily", "below", "of-the-image"]
"#;

fn image<'a>(spec: &'a super::super::GraphSpec, node: &str) -> &'a Qcow2Spec {
    match &spec.node(node).expect("the node").driver {
        DriverSpec::Qcow2(image) => image,
        other => panic!("{other:?}"),
    }
}

#[test]
fn chain() {
    let spec = good(CHAIN);
    expect![[r#"
        drive vda
        ├── export vda: nbd on unix:a, writable, bitmaps daily, below, of-the-image
        ├── bitmap daily: granularity 64KiB, kept in the metadata image
        ├── bitmap weekly: granularity 64KiB, kept at the root
        └── root: meta (qcow2, backing as its image says) [root, uses cr+w, shares cr+wu]
            ├── file: #meta.file (file meta.qcow2) [storage, uses cr+w, shares cr+wu]
            └── data-file: overlay (qcow2) [data, uses cr+w, shares cr+wu]
                ├── bitmap below: granularity 64KiB, kept in overlay
                ├── file: #overlay.file (file overlay.qcow2) [storage, uses cr+w, shares cr+wu]
                └── backing: base (qcow2, read-only) [backing, uses cr, shares cr+wu]
                    └── file: #base.file (file base.qcow2) [storage, uses cr, shares cr+wu]
    "#]]
    .assert_eq(&tree(&spec));
    assert_eq!(image(&spec, "base").backing.value, BackingSpec::None);
    assert_eq!(image(&spec, "overlay").backing.value, BackingSpec::Node);
    assert_eq!(image(&spec, "overlay").l2_cache_bytes.value, 1 << 20);
    assert_eq!(image(&spec, "base").l2_cache_bytes.value, 32 << 20);
    let lazy = |node: &str| image(&spec, node).lazy_refcounts.map(|it| it.value);
    assert_eq!((lazy("overlay"), lazy("base")), (Some(false), None));
    assert_eq!(image(&spec, "meta").backing.value, BackingSpec::AsImage);
    // The file of an image that is to be made is made empty.
    let made = |node: &str| match &spec.node(node).expect("the file").driver {
        DriverSpec::File(file) => file.create_bytes.as_ref().map(|it| it.value),
        other => panic!("{other:?}"),
    };
    assert_eq!(made("#overlay.file"), Some(0));
    assert_eq!(made("#base.file"), None);
}

#[test]
fn sharing() {
    check(
        r#"
[node.file]
driver = "file"
path = "a.qcow2"
[node.a]
driver = "qcow2"
file = "file"
backing = "base"
[node.base]
driver = "qcow2"
file = { driver = "file", path = "base.qcow2" }
[export.a]
type = "nbd"
node = "a"
listen = "unix:a"
writable = true
[export.base]
type = "nbd"
node = "base"
listen = "unix:b"
writable = true
[export.container]
type = "nbd"
node = "file"
listen = "unix:c"
writable = true
"#,
        &expect![[r#"
            error: node `a` (edge `backing`) cannot share node `base` with export `base` (edge `node`), which writes it
               --> graph.toml:19:8
                |
              8 | backing = "base"
                |           ------ node `a` uses it here
               ...
             19 | node = "base"
                |        ^^^^^^
               ...
             21 | writable = true
                |            ---- export `base` is writable
                = help: give export `base` a node of its own, or make export `base` `writable = false`

            error: export `container` (edge `node`) and node `a` (edge `file`) both write node `file`
               --> graph.toml:24:8
                |
              7 | file = "file"
                |        ------ node `a` uses it here
               ...
             16 | writable = true
                |            ---- export `a` is writable
               ...
             24 | node = "file"
                |        ^^^^^^
               ...
             26 | writable = true
                |            ---- export `container` is writable
                = help: give export `container` a node of its own, or make export `container` `writable = false`

            2 errors in graph.toml"#]],
    );
    check(
        r#"
[node.a]
driver = "qcow2"
file = { driver = "file", path = "a.qcow2", read-only = true }
[export.a]
type = "nbd"
node = "a"
listen = "unix:a"
writable = true
"#,
        &expect![[r#"
            error: export `a` is writable, but node `#a.file` is read-only
              --> graph.toml:9:12
               |
             4 | file = { driver = "file", path = "a.qcow2", read-only = true }
               |                                                         ---- read-only here
              ...
             9 | writable = true
               |            ^^^^
               = help: remove `read-only = true` from node `#a.file`, or make export `a` `writable = false`

            1 error in graph.toml"#]],
    );
}
