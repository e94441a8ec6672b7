//! The typed side of the contract, generated from a frozen version: see `version.rs`.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]

wasmtime::component::bindgen!({
    path: "../wit/frozen/0.1",
    world: "filter",
    imports: { default: trappable },
});
