//! Chains of images that qemu-img has made, on this machine.

use std::path::Path;
use std::process::Command;

use expect_test::{Expect, expect};
use tempfile::TempDir;

use super::super::{BackingFormat, GraphSpec};
use super::tree;
use crate::host::StartError;

/// Whether qemu-img is there; if not, that is said, or fails where `BLOCKLOOM_REQUIRE_TOOLS=1`.
fn has_qemu_img() -> bool {
    if Command::new("qemu-img").arg("--version").output().is_ok_and(|it| it.status.success()) {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let required = std::env::var("BLOCKLOOM_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!required, "{test} needs qemu-img");
    // Past the capture of the test's output: a skip must be seen.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test} needs qemu-img");
    false
}

/// A directory with a configuration in which node `a` has the image `a.qcow2`.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `qemu-img` in the directory.
    fn qemu_img(&self, arguments: &str) {
        let arguments = arguments.split(' ');
        let run = Command::new("qemu-img").args(arguments).current_dir(self.path()).output();
        let output = run.expect("run qemu-img");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make it");
        std::fs::write(path, bytes).expect("write a file");
    }

    /// The configuration, with `more` keys, checked on this machine.
    fn checked(&self, more: &str) -> Result<GraphSpec, StartError> {
        let text = format!(
            "[node.a]\ndriver = \"qcow2\"\nfile = {{ driver = \"file\", path = \"a.qcow2\" }}\n{more}"
        );
        self.file("graph.toml", text.as_bytes());
        crate::host::check(&self.path().join("graph.toml"))
    }

    /// Checks its drawing, or what is wrong.
    fn check(&self, more: &str, expected: &Expect) {
        let found = match self.checked(more) {
            Ok(spec) => tree(&spec),
            Err(error) => error.to_string(),
        };
        let real = self.path().canonicalize().expect("the real path");
        let real = real.display().to_string();
        expected.assert_eq(&found.replace(&real, "DIR"));
    }
}

#[test]
fn chain_of_formats() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    place.file("images/base.raw", &[0; 1 << 20]);
    place.qemu_img("create -q -f qcow2 -b base.raw -F raw images/one.qcow2");
    // Clusters larger than what is read at first.
    place.qemu_img("create -q -f qcow2 -o cluster_size=2M -b one.qcow2 -F qcow2 images/two.qcow2");
    let two = format!("file:{}/images/two.qcow2", place.path().display());
    let options = "-o compat=0.10,cluster_size=512";
    place.qemu_img(&format!("create -q -f qcow2 {options} -b {two} -F qcow2 images/three.qcow2"));
    place
        .qemu_img("create -q -f qcow2 -o extended_l2=on -b images/three.qcow2 -F qcow2 a.qcow2 2M");
    place.check("", &expect![[r#"
        a (qcow2 2MiB), not used
        ├── file: #a.file (file a.qcow2) [storage, uses -, shares cr+wu]
        └── backing: #a.backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
            ├── file: #a.backing/file (file DIR/images/three.qcow2, read-only) [storage, uses -, shares cr+wu]
            └── backing: #a.backing/backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
                ├── file: #a.backing/backing/file (file DIR/images/two.qcow2, read-only) [storage, uses -, shares cr+wu]
                └── backing: #a.backing/backing/backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
                    ├── file: #a.backing/backing/backing/file (file DIR/images/one.qcow2, read-only) [storage, uses -, shares cr+wu]
                    └── backing: #a.backing/backing/backing/backing (file DIR/images/base.raw, read-only) [backing, uses -, shares cr+w+wu+r]
    "#]]);
}

#[test]
fn json_name() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 base.qcow2 1M");
    let base = place.path().join("base.qcow2");
    let json = format!("json:{{\"driver\":\"qcow2\",\"file.filename\":\"{}\"}}", base.display());
    place.qemu_img(&format!("create -q -f qcow2 -b {json} -F qcow2 a.qcow2"));
    place.check("", &expect![[r#"
        a (qcow2 1MiB), not used
        ├── file: #a.file (file a.qcow2) [storage, uses -, shares cr+wu]
        └── backing: #a.backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
            └── file: #a.backing/file (file DIR/base.qcow2, read-only) [storage, uses -, shares cr+wu]
    "#]]);
}

#[test]
fn data_files() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 -o data_file=base.data base.qcow2 1M");
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    place.check("", &expect![[r#"
        a (qcow2 1MiB), not used
        ├── file: #a.file (file a.qcow2) [storage, uses -, shares cr+wu]
        └── backing: #a.backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
            ├── file: #a.backing/file (file DIR/base.qcow2, read-only) [storage, uses -, shares cr+wu]
            └── data-file: #a.backing/data-file (file DIR/base.data, read-only) [storage, uses -, shares cr+wu]
    "#]]);
    place.qemu_img("create -q -f qcow2 -o data_file=a.raw,data_file_raw=on a.qcow2 1M");
    place.check(
        "read-only = true",
        &expect![[r#"
            a (qcow2 1MiB, read-only), not used
            ├── file: #a.file (file a.qcow2) [storage, uses -, shares cr+wu]
            └── data-file: #a.data-file (file DIR/a.raw, read-only) [data, uses -, shares cr+wu]
        "#]],
    );
}

#[test]
fn refused_images() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    // QEMU itself asks for a format nowadays, but opens images of earlier ones.
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 -u a.qcow2 1M");
    place.qemu_img("create -q -f qcow2 -b a.qcow2 -F qcow2 -u base.qcow2 1M");
    place.check(
        "",
        &expect![[r#"
        error: the images of node `a` are below themselves: a.qcow2 → DIR/base.qcow2 → DIR/a.qcow2
          --> DIR/graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: give one of them another backing file: `qemu-img rebase -u -b BACKING IMAGE`

        1 error in DIR/graph.toml"#]],
    );
    place.qemu_img("create -q -f qcow2 -b /dev/null -F raw -u a.qcow2 1M");
    place.check("", &expect![[r#"
        error: image `a.qcow2` of node `a` names `/dev/null` as its backing file, which is in `/dev`, where an image may not lead to
          --> DIR/graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: if it may, add `backing-dirs = ["/dev"]` to node `a`; or write `backing = "NODE"` or `backing = { driver = …, file = … }`

        1 error in DIR/graph.toml"#]]);
    place.qemu_img("create -q -f qcow2 -b /dev/null -F raw -u a.qcow2 1M");
    place.check(
        "backing-dirs = [\"/dev\"]",
        &expect![[r#"
        error: image `a.qcow2` of node `a` names `/dev/null` as its backing file, which is no file
          --> DIR/graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: write `backing = "NODE"` or `backing = { driver = …, file = … }`

        1 error in DIR/graph.toml"#]],
    );
    place.qemu_img("create -q -f qcow2 -b nbd://localhost/x -F raw -u a.qcow2 1M");
    place.check("", &expect![[r#"
        error: image `a.qcow2` of node `a` names `nbd://localhost/x` as its backing file, which has the protocol `nbd`: images lead to files only
          --> DIR/graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: write `backing = "NODE"` or `backing = { driver = …, file = … }`

        1 error in DIR/graph.toml"#]]);
    place.qemu_img("create -q --object secret,id=s,data=x -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a.qcow2 1M");
    place.check(
        "",
        &expect![[r#"
        error: image `a.qcow2` cannot be used: an encrypted image (LUKS) is not supported
          --> DIR/graph.toml:3:34
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           |                                  ^^^^^^^^^

        1 error in DIR/graph.toml"#]],
    );
    place.qemu_img("create -q -f raw a.qcow2 1M");
    place.check(
        "",
        &expect![[r#"
        error: `a.qcow2` is no qcow2 image
          --> DIR/graph.toml:3:34
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           |                                  ^^^^^^^^^
           = help: for a raw image write `driver = "raw"`

        1 error in DIR/graph.toml"#]],
    );
    place.qemu_img("create -q -f vmdk base.vmdk 1M");
    place.qemu_img("create -q -f qcow2 -b base.vmdk -F vmdk a.qcow2 1M");
    place.check("", &expect![[r#"
        error: image `a.qcow2` of node `a` names `base.vmdk` as its backing file, which has the format `vmdk`: `raw` and `qcow2` are possible
          --> DIR/graph.toml:3:1
           |
         3 | file = { driver = "file", path = "a.qcow2" }
           | ^^^^
           = help: write `backing = "NODE"` or `backing = { driver = …, file = … }`

        1 error in DIR/graph.toml"#]]);
}

/// A link out of the image's directory is no way round the gate.
#[test]
fn links() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    let elsewhere = Place::new();
    elsewhere.file("secret", &[0; 512]);
    let link = place.path().join("base");
    std::os::unix::fs::symlink(elsewhere.path().join("secret"), link).expect("a link");
    place.qemu_img("create -q -f qcow2 -b base -F raw -u a.qcow2 1M");
    let dir = elsewhere.path().canonicalize().expect("the real path");
    let found = match place.checked("") {
        Ok(_) => panic!("the secret is shown"),
        Err(error) => error.to_string(),
    };
    let expected = format!("which is in `{}`, where an image may not lead to", dir.display());
    assert!(found.contains(&expected), "{found}");
    let dirs = format!("backing-dirs = [\"{}\"]", dir.display());
    assert!(place.checked(&dirs).is_ok());
}

/// What a new image would be told is what another one is told by qemu-img.
#[test]
fn names_in_new_images_lead_back() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    place.qemu_img("create -q -f qcow2 images.qcow2 1M");
    let spec = place
        .checked("backing = { driver = \"qcow2\", file = { driver = \"file\", path = \"images.qcow2\" } }\ncreate = {}\n")
        .expect("a good configuration");
    let node = spec.node("a").expect("the node");
    let backing = spec.backing_reference(node, place.path()).expect("a plain backing");
    assert_eq!(backing.format.as_deref(), Some(BackingFormat::Qcow2.name()));
    place.qemu_img(&format!("create -q -f qcow2 -b {} -F qcow2 a.qcow2", backing.name));
    place.check("", &expect![[r#"
        a (qcow2 1MiB), not used
        ├── file: #a.file (file a.qcow2) [storage, uses -, shares cr+wu]
        └── backing: #a.backing (qcow2 1MiB, read-only) [backing, uses -, shares cr+w+wu+r]
            └── file: #a.backing/file (file DIR/images.qcow2, read-only) [storage, uses -, shares cr+wu]
    "#]]);
}

/// Drawing shows what the images lead to, and says so where they lead nowhere.
#[test]
fn drawn_without_a_check() {
    if !has_qemu_img() {
        return;
    }
    let place = Place::new();
    let drawn = || {
        let spec = crate::host::read_spec(&place.path().join("graph.toml"));
        tree(&spec.expect("a good configuration")).lines().next().unwrap_or_default().to_owned()
    };
    place.qemu_img("create -q -f qcow2 base.qcow2 1M");
    place.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    assert!(place.checked("").is_ok());
    assert_eq!(drawn(), "a (qcow2 1MiB), not used");
    std::fs::remove_file(place.path().join("base.qcow2")).expect("remove it");
    assert!(place.checked("").is_err());
    assert_eq!(drawn(), "a (qcow2, backing as its image says), not used");
}
