//! The committed bindings are those that the committed WIT gives.
//!
//! After a change of `wit/filter.wit`: `BLOCKLOOM_REGENERATE=1 cargo test -p blockloom-sdk --test bindings`.

use std::{env, fs, path::Path};

use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::Opts;

#[test]
fn bindings_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/bindings.rs");
    let generated = generate(&root.join("../wit/filter.wit"));
    if env::var_os("BLOCKLOOM_REGENERATE").is_some() {
        fs::write(&committed, &generated).expect("the bindings can be written");
    }
    let committed = fs::read_to_string(committed).expect("the bindings can be read");
    assert!(squeezed(&committed).eq(squeezed(&generated)), "stale: see the head of this test");
}

fn generate(wit: &Path) -> String {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the WIT parses");
    let world = resolve.select_world(&[package], Some("filter")).expect("it has that world");
    let options = Opts {
        format: true,
        generate_all: true,
        generate_unused_types: true,
        // No constructors are linked in: looking for them at every call is not needed.
        disable_run_ctors_once_workaround: true,
        // The exports carry the component type; a plugin has nothing without them.
        disable_custom_section_link_helpers: true,
        pub_export_macro: true,
        runtime_path: Some("crate::runtime".to_owned()),
        bitflags_path: Some("::bitflags".to_owned()),
        default_bindings_module: Some("blockloom_sdk::bindings".to_owned()),
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).expect("bindings can be generated");
    let (_, text) = files.iter().next().expect("one file");
    String::from_utf8(text.to_vec()).expect("text")
}

/// The text without white space, so that a formatter makes no difference.
fn squeezed(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|character| !character.is_whitespace())
}
