//! Files that are no plugins, or none for this host: refused when loaded, with what they lack.

use std::sync::Arc;

use blockloom::Result;
use blockloom::plugin::{PluginModule, PluginRuntime, bundled};
use blockloom_tests::Random;

use super::guest::Guest;

fn load(bytes: &[u8]) -> Result<PluginModule> {
    PluginModule::load(&Arc::new(PluginRuntime::new()?), "evil", bytes)
}

fn check(bytes: &[u8], reason: &str) {
    let text = load(bytes).err().expect("it is refused").to_string();
    assert!(text.contains("plugin `evil`: ") && text.contains(reason), "{text}");
    assert!(!text.contains(char::is_control), "{text:?} would reach a terminal");
}

fn check_text(text: &str, reason: &str) {
    check(&wat::parse_str(text).expect("WebAssembly"), reason);
}

#[test]
fn no_webassembly() {
    for bytes in [&b""[..], b"\0", b"\0as", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01"] {
        check(bytes, "it is no WebAssembly file");
    }
    check(b"\0asm", "it does not compile");
    check(b"\0asm\x02\0\0\0", "it does not compile");
    check(b"\0asm\x0d\0\x01\0\x1b[31m", "it does not compile");
}

#[test]
fn cut_off() {
    let whole = Guest::PASS.module();
    for len in [8, 9, 40, whole.len() / 2, whole.len() - 1] {
        check(&whole[..len], "is no Blockloom filter");
    }
    load(&whole).expect("the whole is one");
}

/// No byte of a plugin can make the host do worse than refuse it.
#[test]
fn damaged() {
    let (whole, runtime) =
        (bundled("pass").expect("pass"), Arc::new(PluginRuntime::new().expect("")));
    let mut random = Random::new(7);
    for round in 0..150 {
        let mut damaged = whole.to_vec();
        for _ in 0..=random.below(4) {
            let at = 8 + random.below(whole.len() as u64 - 8) as usize;
            damaged[at] ^= 1 << random.below(8);
        }
        match PluginModule::load(&runtime, "damaged", &damaged) {
            Ok(module) => assert_eq!(module.inspection().layout, 1, "round {round}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("plugin `damaged`"), "round {round}: {text}");
                assert!(!text.contains(char::is_control), "round {round}: {text:?}");
            }
        }
    }
}

#[test]
fn a_module_that_says_nothing_of_filters() {
    let advice = "it does not export `blockloom:filter/control@0.1.0`: it is no Blockloom filter; \
        export one with blockloom_sdk::export_filter!";
    check_text("(module)", advice);
    check_text("(module (func (export \"_start\")))", advice);
    check_text("(component)", advice);
}

#[test]
fn imports_of_others() {
    check_text(
        r#"(component (import "wasi:cli/environment@0.2.3" (instance)))"#,
        "it imports `wasi:cli/environment@0.2.3`; a plugin may import \
         `blockloom:filter/host@0.1.0` and `blockloom:filter/bytes@0.1.0` alone",
    );
    let wasi = r#"(import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))"#;
    check(&Guest { imports: wasi, ..Guest::PASS }.module(), "wasi_snapshot_preview1");
    let clock = r#"(import "blockloom:filter/host@0.1.0" "clock" (func $clock (result i64)))"#;
    check(&Guest { imports: clock, ..Guest::PASS }.module(), "clock");
    let terminal = r#"(import "env\1b[31m" "red\0a" (func $red))"#;
    check(&Guest { imports: terminal, ..Guest::PASS }.module(), "env");
}

#[test]
fn another_version_of_the_contract() {
    for version in ["0.2.0", "0.1.1", "1.0.0"] {
        let reason = format!(
            "it is made for blockloom:filter@{version}; this host speaks blockloom:filter@0.1.0"
        );
        check(&Guest::PASS.module_of_version(version), &reason);
    }
}

#[test]
fn another_layout() {
    for layout in [0, 2, u32::MAX] {
        let guest = Guest { layout, ..Guest::PASS };
        check(&guest.module(), &format!("it speaks layout {layout}, this host layout 1"));
    }
}

#[test]
fn kinds_without_a_meaning() {
    let guest = Guest { kinds: 0b100_0001, ..Guest::PASS };
    check(&guest.module(), "it asks for unknown kinds of requests (0b1000001)");
}

/// Proposals that no plugin needs are off.
#[test]
fn more_of_webassembly_than_plugins_need() {
    let cases = [
        "(memory $second 1)",
        "(memory $long i64 1)",
        "(func $relaxed (param v128 v128) (result v128)
            (i32x4.relaxed_trunc_f32x4_s (local.get 0)) (return))",
        "(func $tail (return_call $tail))",
        "(memory $shared 1 2 shared)",
    ];
    for items in cases {
        let module = Guest { items, ..Guest::PASS }.try_module();
        // What the tools around do not take never gets here.
        if let Some(module) = module {
            assert!(load(&module).is_err(), "{items}");
        }
    }
}

/// What a plugin says of itself is shown to people.
#[test]
fn a_name_that_would_act_on_a_terminal() {
    let module = load(&Guest { name: "\x1b]0;title\x07\r\n", ..Guest::PASS }.module());
    let module = module.expect("a plugin");
    let name = &module.inspection().name;
    assert!(!name.contains(char::is_control), "{name:?}");
}

#[test]
fn names_that_are_no_text() {
    let items = r#"(data (i32.const 0x300) "\ff\fe\fd\fc")"#;
    let text = load(&Guest { items, ..Guest::PASS }.module()).err().expect("refused").to_string();
    assert!(text.contains("failed in `describe`"), "{text}");
}

/// A description that does not end: a million children.
#[test]
fn a_description_without_end() {
    let describe = "(i32.store (i32.const 0x21c) (i32.const 1000000)) (i32.const 0x200)";
    let guest = Guest { describe, pages: 200, ..Guest::PASS };
    let text = load(&guest.module()).err().expect("refused").to_string();
    assert!(text.contains("failed in `describe`"), "{text}");
}

#[test]
fn files_that_are_none() {
    let scratch = crate::scratch();
    let runtime = Arc::new(PluginRuntime::new().expect("a runtime"));
    let check = |path: &std::path::Path, reason: &str| {
        let error = PluginModule::load_file(&runtime, path).err().expect("refused").to_string();
        let name = path.display().to_string();
        assert!(error.contains(&name) && error.contains(reason), "{error}");
    };
    check(&scratch.image("missing.wasm"), "No such file");
    check(scratch.image("x").parent().expect("a directory"), "Is a directory");
    check(&scratch.image_of("empty.wasm", b""), "it is no WebAssembly file");
    let long = scratch.sparse_image("long.wasm", 17 << 20);
    check(&long, "it is longer than 16777216 bytes");
}
