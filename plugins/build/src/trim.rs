//! Makes a module smaller without touching its code.
//!
//! - Of the names, a third of a small module, those of Blockloom's own crates stay, demangled and
//!   without hash. Traps and panics are told by them; functions of the standard library go by their
//!   number.
//! - The component type of the imports alone goes: that of the whole world holds it too.
//! - So does the list of processor features, which is for linkers.

use std::borrow::Cow;

use rustc_demangle::demangle;

const CUSTOM_SECTION: u8 = 0;
const FUNCTION_NAMES: u8 = 1;
/// The magic number and the version.
const HEADER_BYTES: usize = 8;
const OWN: &str = "blockloom";
/// How wit-bindgen ends the name of the section that a library carries for its imports.
const IMPORTS_ALONE: &[u8] = b"-with-all-of-its-exports-removed:encoded world";

/// The trimmed module; none if it is not made of sections, as every module is.
pub(crate) fn trimmed(module: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = module.split_at_checked(HEADER_BYTES)?;
    let mut short = header.to_vec();
    while let Some((&id, after)) = rest.split_first() {
        rest = after;
        let contents = take_bytes(&mut rest)?;
        let contents = match id {
            CUSTOM_SECTION => custom(contents)?,
            _ => Some(Cow::Borrowed(contents)),
        };
        if let Some(contents) = contents {
            short.push(id);
            put_bytes(&mut short, &contents);
        }
    }
    Some(short)
}

/// What stays of a custom section, if anything does; none outside if it has no name.
fn custom(contents: &[u8]) -> Option<Option<Cow<'_, [u8]>>> {
    let mut body = contents;
    let name = take_bytes(&mut body)?;
    if name == b"target_features" || name.ends_with(IMPORTS_ALONE) {
        return Some(None);
    }
    if name != b"name" {
        return Some(Some(Cow::Borrowed(contents)));
    }
    let mut names = Vec::new();
    put_bytes(&mut names, name);
    names.extend(subsections(body)?);
    Some(Some(Cow::Owned(names)))
}

fn subsections(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
    while let Some((&id, after)) = body.split_first() {
        body = after;
        let contents = take_bytes(&mut body)?;
        if id == FUNCTION_NAMES {
            kept.push(id);
            put_bytes(&mut kept, &functions(contents)?);
        }
    }
    Some(kept)
}

fn functions(mut map: &[u8]) -> Option<Vec<u8>> {
    let (mut kept, mut count) = (Vec::new(), 0);
    for _ in 0..take_number(&mut map)? {
        let index = take_number(&mut map)?;
        let name = String::from_utf8_lossy(take_bytes(&mut map)?).into_owned();
        let name = format!("{:#}", demangle(&name));
        if name.trim_start_matches(['<', '&', '_', ' ']).starts_with(OWN) {
            put_number(&mut kept, index);
            put_bytes(&mut kept, name.as_bytes());
            count += 1;
        }
    }
    let mut functions = Vec::new();
    put_number(&mut functions, count);
    functions.extend(kept);
    Some(functions)
}

/// LEB128, as all numbers of a module's structure are.
fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..u32::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Bytes after their count.
fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let count = take_number(bytes)?;
    let (taken, rest) = bytes.split_at_checked(count as usize)?;
    *bytes = rest;
    Some(taken)
}

fn put_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, contents: &[u8]) {
    put_number(bytes, contents.len() as u32);
    bytes.extend_from_slice(contents);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(names: &[(u32, &str)], others: &[&str]) -> Vec<u8> {
        let mut map = Vec::new();
        put_number(&mut map, names.len() as u32);
        for (index, name) in names {
            put_number(&mut map, *index);
            put_bytes(&mut map, name.as_bytes());
        }
        let mut section = Vec::new();
        put_bytes(&mut section, b"name");
        section.push(FUNCTION_NAMES);
        put_bytes(&mut section, &map);
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        for (id, contents) in [(1, vec![0; 300]), (CUSTOM_SECTION, section), (11, vec![0])] {
            module.push(id);
            put_bytes(&mut module, &contents);
        }
        for name in others {
            let mut section = Vec::new();
            put_bytes(&mut section, name.as_bytes());
            module.push(CUSTOM_SECTION);
            put_bytes(&mut module, &section);
        }
        module
    }

    #[test]
    fn own_functions_keep_their_names_and_what_is_needed_stays() {
        let names = [
            (0, "_ZN13blockloom_sdk6config5Table5parse17h8eef9e71a41dedc2E"),
            (200, "_ZN4core3fmt5write17h8eef9e71a41dedc2E"),
            (300, "blockloom:filter/data@0.1.0#poll"),
        ];
        let world = "component-type:wit-bindgen:1:blockloom:filter@1:filter";
        let imports = format!("{world}-with-all-of-its-exports-removed:encoded world");
        let long = module(&names, &[world, &imports, "target_features", "producers"]);
        let names =
            [(0, "blockloom_sdk::config::Table::parse"), (300, "blockloom:filter/data@0.1.0#poll")];
        let short = module(&names, &[world, "producers"]);
        assert_eq!(trimmed(&long), Some(short));
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let whole = module(&[(0, "a")], &[]);
        for end in [0, 7, 9, 12, whole.len() - 1] {
            assert_eq!(trimmed(&whole[..end]), None, "{end}");
        }
    }
}
