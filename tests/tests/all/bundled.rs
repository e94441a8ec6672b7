//! The plugins that come with the host, and what `blockloom plugin inspect` says of a plugin.

use std::process::Command;

use blockloom::plugin::{bundled, bundled_names};
use expect_test::{Expect, expect};

use crate::program;

/// Larger ones would make the start slow: compiling takes time in proportion.
const LARGEST_BYTES: usize = 88 << 10;

#[test]
fn bundled_modules_are_small_core_modules() {
    let names: Vec<_> = bundled_names().collect();
    let expect = [
        "backup",
        "copy-on-read",
        "delay",
        "error",
        "log",
        "pass",
        "protect",
        "stats",
        "throttle",
        "xor",
    ];
    assert_eq!(names, expect);
    for name in names {
        let module = bundled(name).expect("a bundled plugin");
        assert!(module.starts_with(b"\0asm\x01\0\0\0"), "{name} is no core module");
        assert!(module.len() <= LARGEST_BYTES, "{name} has {} bytes", module.len());
    }
    assert_eq!(bundled("Pass"), None);
}

fn inspect(plugin: &str) -> (Option<i32>, String, String) {
    let output = Command::new(program()).args(["plugin", "inspect", plugin]).output();
    let output = output.expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn check(plugin: &str, expect: &Expect) {
    let (code, stdout, stderr) = inspect(plugin);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    // The size changes with the compiler.
    let size = stdout.split_whitespace().nth(4).expect("a size");
    expect.assert_eq(&stdout.replacen(size, "N", 1));
}

#[test]
fn inspecting_bundled_plugins() {
    check(
        "copy-on-read",
        &expect![[r#"
        plugin    copy-on-read 0.1.0
        file      N bytes, core module
        abi       blockloom:filter@0.1.0, layout 1
        kinds     read
        bytes     none
        child     file, required; wants read, write-unchanged
        child     bottom, optional; wants nothing of its own
        bypass    allowed
        import    blockloom:filter/host@0.1.0
        export    blockloom:filter/control@0.1.0
        export    blockloom:filter/data@0.1.0
    "#]],
    );
    check(
        "pass",
        &expect![[r#"
        plugin    pass 0.1.0
        file      N bytes, core module
        abi       blockloom:filter@0.1.0, layout 1
        kinds     read, write, zero, discard, flush, resize
        bytes     none
        child     file, required; wants nothing of its own
        bypass    allowed
        import    blockloom:filter/host@0.1.0
        export    blockloom:filter/control@0.1.0
        export    blockloom:filter/data@0.1.0
    "#]],
    );
    check(
        "throttle",
        &expect![[r#"
        plugin    throttle 0.1.0
        file      N bytes, core module
        abi       blockloom:filter@0.1.0, layout 1
        kinds     read, write, zero, discard
        bytes     none
        child     file, required; wants nothing of its own
        bypass    allowed
        import    blockloom:filter/host@0.1.0
        export    blockloom:filter/control@0.1.0
        export    blockloom:filter/data@0.1.0
    "#]],
    );
}

/// Only who uses data imports it.
#[test]
fn inspecting_a_plugin_that_changes_data() {
    check(
        "xor",
        &expect![[r#"
        plugin    xor 0.1.0
        file      N bytes, core module
        abi       blockloom:filter@0.1.0, layout 1
        kinds     read, write
        bytes     transform
        child     file, required; wants nothing of its own
        import    blockloom:filter/host@0.1.0
        import    blockloom:filter/bytes@0.1.0
        export    blockloom:filter/control@0.1.0
        export    blockloom:filter/data@0.1.0
    "#]],
    );
    for name in bundled_names().filter(|name| *name != "xor") {
        let (_, shown, _) = inspect(name);
        assert!(!shown.contains("filter/bytes"), "{shown}");
    }
}

#[test]
fn inspecting_a_file() {
    let scratch = crate::scratch();
    let path = scratch.image_of("copy.wasm", bundled("pass").expect("pass"));
    check(
        &path.display().to_string(),
        &expect![[r#"
        plugin    pass 0.1.0
        file      N bytes, core module
        abi       blockloom:filter@0.1.0, layout 1
        kinds     read, write, zero, discard, flush, resize
        bytes     none
        child     file, required; wants nothing of its own
        bypass    allowed
        import    blockloom:filter/host@0.1.0
        export    blockloom:filter/control@0.1.0
        export    blockloom:filter/data@0.1.0
    "#]],
    );
}

#[test]
fn inspecting_what_is_no_plugin() {
    let scratch = crate::scratch();
    let (code, stdout, stderr) = inspect("passs");
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    expect![[r#"
        error: there is no bundled plugin `passs` (there is: backup, copy-on-read, delay, error, log, pass, protect, stats, throttle, xor); give a path that ends in .wasm
    "#]].assert_eq(&stderr);
    let path = scratch.image_of("text.wasm", b"hello");
    let (code, _, stderr) = inspect(&path.display().to_string());
    assert_eq!(code, Some(1));
    expect![[r#"
        error: plugin `PATH`: it is no WebAssembly file
    "#]]
    .assert_eq(&stderr.replace(&path.display().to_string(), "PATH"));
}
