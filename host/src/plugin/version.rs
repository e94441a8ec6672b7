//! Versions of the contract, and what becomes of requests of which a plugin's version knows nothing.
//!
//! Each released version is frozen in `wit/frozen/VERSION`: its interfaces, its layout. Here is what the host has to
//! know to serve plugins of that version; there is one so far, from whose files `bindings.rs` is generated. A version
//! that comes later gets a module of bindings of its own, and plugins of the earlier ones go on as they are: their
//! binaries are kept with the tests.
//!
//! A request of a kind that came later never goes round a plugin that does not know it ([`offers_as`]).

use blockloom_abi::{Kind, Kinds, LAYOUT_VERSION};

/// What a plugin exports whatever its version.
const CONTROL: &str = "blockloom:filter/control";

/// A version of the contract.
#[derive(Debug)]
pub(super) struct AbiVersion {
    /// The package with its version, as plugins name it.
    pub(super) package: &'static str,
    /// Its control interface.
    control: &'static str,
    /// The interfaces that a plugin may import.
    imports: &'static [&'static str],
    /// The number of its layout.
    pub(super) layout: u32,
    /// The kinds of requests that it knows.
    pub(super) kinds: Kinds,
}

/// Those that this host speaks, the oldest first.
static VERSIONS: [AbiVersion; 1] = [AbiVersion {
    package: "blockloom:filter@0.1.0",
    control: "blockloom:filter/control@0.1.0",
    imports: &["blockloom:filter/host@0.1.0", "blockloom:filter/bytes@0.1.0"],
    layout: LAYOUT_VERSION,
    kinds: Kinds::ALL,
}];

impl AbiVersion {
    /// The version of a plugin with these imports and exports.
    ///
    /// # Errors
    /// Both versions, if the plugin's is not spoken here; what it imports that no plugin may; that it is no plugin.
    pub(super) fn of(imports: &[String], exports: &[String]) -> Result<&'static Self, String> {
        let spoken = || VERSIONS.each_ref().map(|version| version.package).join(", ");
        let is_it = |version: &&AbiVersion| exports.iter().any(|name| name == version.control);
        let version = VERSIONS.iter().find(is_it);
        let other = exports.iter().find_map(|name| name.strip_prefix(CONTROL));
        if let (None, Some(number)) = (version, other) {
            return Err(format!(
                "it is made for blockloom:filter{number}; this host speaks {}: use a newer host or rebuild it",
                spoken()
            ));
        }
        let allowed = version.unwrap_or(&VERSIONS[VERSIONS.len() - 1]).imports;
        if let Some(foreign) = imports.iter().find(|name| !allowed.contains(&name.as_str())) {
            return Err(format!(
                "it imports `{foreign}`; a plugin may import `{}` alone: build it for \
                 wasm32-unknown-unknown, not for a WASI target",
                allowed.join("` and `")
            ));
        }
        version.ok_or_else(|| {
            format!(
                "it does not export `{}`: it is no Blockloom filter; export one with \
                 blockloom_sdk::export_filter!",
                VERSIONS[VERSIONS.len() - 1].control
            )
        })
    }
}

/// As what a request is offered to a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfferedAs {
    /// A request of this kind.
    Kind(Kind),
    /// Not at all: it is advice, which nobody has to follow.
    Nothing,
    /// Not at all: it fails.
    Refused,
}

/// As what a request of a kind is offered to a plugin that knows the kinds `known`: as it is; lowered to one that
/// means no less to whoever watches requests; or not at all, and then it is not done either.
pub(super) const fn offers_as(known: Kinds, kind: Kind) -> OfferedAs {
    if known.contains(kind) {
        return OfferedAs::Kind(kind);
    }
    match kind {
        // It writes zeros.
        Kind::Zero if known.contains(Kind::Write) => OfferedAs::Kind(Kind::Write),
        Kind::Discard => OfferedAs::Nothing,
        // Nothing else asks for what is written to be durable, or for another size.
        Kind::Read | Kind::Write | Kind::Zero | Kind::Flush | Kind::Resize => OfferedAs::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds of which one is not known.
    fn without(kind: Kind) -> Kinds {
        Kinds::from_bits(Kinds::ALL.bits() & !(1 << kind as u32)).expect("kinds")
    }

    #[test]
    fn a_kind_that_is_not_known_is_lowered_or_refused() {
        for &kind in Kind::ALL {
            let expect = match kind {
                Kind::Zero => OfferedAs::Kind(Kind::Write),
                Kind::Discard => OfferedAs::Nothing,
                Kind::Read | Kind::Write | Kind::Flush | Kind::Resize => OfferedAs::Refused,
            };
            assert_eq!(offers_as(without(kind), kind), expect, "{kind:?}");
            for &other in Kind::ALL.iter().filter(|other| **other != kind) {
                assert_eq!(offers_as(without(kind), other), OfferedAs::Kind(other));
            }
        }
        assert_eq!(offers_as(Kinds::READ, Kind::Zero), OfferedAs::Refused);
    }

    #[test]
    fn every_version_knows_reads_and_writes() {
        for version in &VERSIONS {
            assert!(version.kinds.contains(Kind::Read) && version.kinds.contains(Kind::Write));
            assert!(version.package.starts_with("blockloom:filter@"));
            assert!(version.control.starts_with(CONTROL));
        }
    }
}
