//! Plugins as WebAssembly text: a template with a hole for each export.
//!
//! Left alone, a guest forwards every request. Its memory:
//!
//! ```text
//!   0x0_0010  what `poll` returns: pointer and length of the actions
//!   0x0_0100  zeros: a result without an error
//!   0x0_0200  the description; names and other texts follow
//!   0x1_0000  actions, put there by $emit
//!   0x4_0000  what cabi_realloc gives out, from here on; taken back by each $take
//! ```

use blockloom::plugin::Grants;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A plugin; each text is the body of a function.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    /// What its description says of the layout.
    pub(super) layout: u32,
    /// The kinds of requests that it wants to be offered.
    pub(super) kinds: u32,
    /// What it wants to do with data: 0 nothing, 1 read, 2 transform.
    pub(super) wants_bytes: u32,
    /// Whether it says that it may be bypassed.
    pub(super) may_bypass: bool,
    /// Its name.
    pub(super) name: &'a str,
    /// Pages of memory at the start.
    pub(super) pages: u32,
    /// `$event $now $head $id $offset $len`: called for each event; answers with `$emit` and its like.
    pub(super) event: &'a str,
    /// `$now $events $words → i32`: pointer to pointer and length of the actions.
    pub(super) poll: &'a str,
    /// `$now $head $id $offset $len → i64`: the verdict.
    pub(super) poll_one: &'a str,
    /// `→ i32`: pointer to the description.
    pub(super) describe: &'a str,
    /// `$config $bytes → i32`: pointer to the result.
    pub(super) configure: &'a str,
    /// Ten parameters, of which the first is `$index` `→ i32`: pointer to the result.
    pub(super) add_node: &'a str,
    /// `$index`.
    pub(super) remove_node: &'a str,
    /// `→ i32`: pointer to pointer and length of the state.
    pub(super) save: &'a str,
    /// `$state $bytes → i32`: pointer to the result.
    pub(super) restore: &'a str,
    /// `$old $old_bytes $align $bytes → i32`.
    pub(super) realloc: &'a str,
    /// Called when the host has read what `poll` returned.
    pub(super) post_poll: &'a str,
    /// More functions, tables, data.
    pub(super) items: &'a str,
    /// More imports.
    pub(super) imports: &'a str,
    /// What it wants to do to its child `file`.
    pub(super) wants: Grants,
    /// A second child, `target`.
    pub(super) target: Option<Target>,
    /// Whether it says that it has work of its own.
    pub(super) has_job: bool,
    /// A point-in-time view that it offers.
    pub(super) view: Option<&'a str>,
    /// A bitmap that it needs, by at most 16 bytes; its index is 0.
    pub(super) lent: Option<&'a str>,
}

/// A second child.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// What the plugin wants to do to it.
    pub(super) wants: Grants,
}

/// As the contract packs them.
fn bits(grants: Grants) -> u32 {
    let all = ["read", "write-unchanged", "write", "discard", "resize"];
    let has = |name: &str| grants.names().any(|it| it == name);
    all.iter().enumerate().map(|(at, name)| u32::from(has(name)) << at).sum()
}

impl Guest<'_> {
    /// Forwards everything.
    pub(super) const PASS: Guest<'static> = Guest {
        layout: 1,
        kinds: 0b11_1111,
        wants_bytes: 0,
        may_bypass: false,
        name: "evil",
        pages: 6,
        event: "(call $forward (local.get $id))",
        poll: "(call $each (local.get $now) (local.get $events) (local.get $words)) (call $take)",
        poll_one: "(call $event (local.get $now) (local.get $head) (local.get $id)
            (local.get $offset) (local.get $len)) (i64.const 0)",
        describe: "(i32.const 0x200)",
        configure: "(i32.const 0x100)",
        add_node: "(i32.const 0x100)",
        remove_node: "",
        save: "(i32.const 0x100)",
        restore: "(i32.const 0x100)",
        realloc: "(global.set $heap (i32.and
                (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
            (global.get $heap)
            (global.set $heap (i32.add (global.get $heap) (local.get $bytes)))",
        post_poll: "",
        items: "",
        imports: "",
        wants: Grants::NONE,
        target: None,
        has_job: false,
        view: None,
        lent: None,
    };

    /// The plugin as a core module that carries the type of a filter.
    pub(super) fn module(&self) -> Vec<u8> {
        let text = self.text();
        typed(&text, WIT).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// The same, if the tools around WebAssembly take it.
    pub(super) fn try_module(&self) -> Option<Vec<u8>> {
        typed(&self.text(), WIT).ok()
    }

    /// The same for another version of the contract.
    pub(super) fn module_of_version(&self, version: &str) -> Vec<u8> {
        let renamed = |text: &str| text.replace("@0.1.0", &format!("@{version}"));
        typed(&renamed(&self.text()), &renamed(WIT)).expect("a filter of another version")
    }

    fn text(&self) -> String {
        let Self { pages, event, poll, poll_one, describe, configure, add_node, .. } = self;
        let Self { realloc, post_poll, items, imports, remove_node, save, restore, .. } = self;
        let description = self.description();
        format!(
            r#"(module
            (import "blockloom:filter/host@0.1.0" "log"
                (func $log (param i32 i32 i32)))
            {imports}
            (memory (export "memory") {pages})
            (global $heap (mut i32) (i32.const 0x40000))
            (global $count (mut i32) (i32.const 0))
            {LIBRARY}
            {description}
            {items}
            (func $event (param $now i64) (param $head i64) (param $id i64) (param $offset i64)
                (param $len i64) {event})
            (func (export "blockloom:filter/data@0.1.0#poll")
                (param $now i64) (param $events i32) (param $words i32) (result i32) {poll})
            (func (export "cabi_post_blockloom:filter/data@0.1.0#poll")
                (param $area i32) {post_poll})
            (func (export "blockloom:filter/data@0.1.0#poll-one")
                (param $now i64) (param $head i64) (param $id i64) (param $offset i64)
                (param $len i64) (result i64) {poll_one})
            (func (export "blockloom:filter/control@0.1.0#describe") (result i32) {describe})
            (func (export "blockloom:filter/control@0.1.0#configure")
                (param $config i32) (param $bytes i32) (result i32) {configure})
            (func (export "blockloom:filter/control@0.1.0#add-node")
                (param $index i32) (param i32 i32 i64 i32 i32 i32 i32 i32 i32) (result i32)
                {add_node})
            (func (export "blockloom:filter/control@0.1.0#remove-node")
                (param $index i32) {remove_node})
            (func (export "blockloom:filter/control@0.1.0#save") (result i32) {save})
            (func (export "blockloom:filter/control@0.1.0#restore")
                (param $state i32) (param $bytes i32) (result i32) {restore})
            (func (export "cabi_realloc") (param $old i32) (param $old_bytes i32)
                (param $align i32) (param $bytes i32) (result i32) {realloc})
            )"#
        )
    }

    /// The record `description`, with the child `file`, and perhaps `target`.
    fn description(&self) -> String {
        let (name, file, target) = (0x300, 0x2f0, 0x2e0);
        let (views, view, bitmaps, lent) = (0x2a0, 0x2b8, 0x2a8, 0x2d0);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let (view_name, lent_name) = (text(self.view), text(self.lent));
        let words = [
            self.layout,
            name,
            u32::try_from(self.name.len()).expect("a short name"),
            file,
            0,
            self.kinds,
            0x280,
            1 + u32::from(self.target.is_some()),
            views,
            u32::from(self.view.is_some()),
            bitmaps,
            u32::from(self.lent.is_some()),
            self.wants_bytes | u32::from(self.has_job) << 8 | u32::from(self.may_bypass) << 16,
        ];
        let length = |text: &str| u32::try_from(text.len()).expect("a short name");
        let view_want = [view, length(&view_name)];
        let bitmap_want = [lent, length(&lent_name), 1];
        let second = self.target.map_or(Grants::NONE, |target| target.wants);
        let children = [file, 4, 1 | bits(self.wants) << 8, target, 6, 1 | bits(second) << 8];
        let bytes = |words: &[u32]| -> String {
            words.iter().flat_map(|word| word.to_le_bytes()).map(escaped).collect()
        };
        format!(
            r#"(data (i32.const 0x200) "{}") (data (i32.const 0x280) "{}")
            (data (i32.const {views}) "{}") (data (i32.const {bitmaps}) "{}")
            (data (i32.const {view}) "{view_name}") (data (i32.const {lent}) "{lent_name}")
            (data (i32.const {target}) "target") (data (i32.const {file}) "file") (data (i32.const {name}) "{}")"#,
            bytes(&words),
            bytes(&children),
            bytes(&view_want),
            bytes(&bitmap_want),
            self.name.bytes().map(escaped).collect::<String>()
        )
    }
}

fn escaped(byte: u8) -> String {
    format!("\\{byte:02x}")
}

/// The contract.
const WIT: &str = include_str!("../../../../wit/filter.wit");

/// A core module that carries the type of the world `filter`.
fn typed(text: &str, wit: &str) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut module = wat::parse_str(text)?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("filter.wit", wit)?;
    let world = resolve.select_world(&[package], Some("filter"))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}

/// What guests answer with.
const LIBRARY: &str = r#"
    (func $emit (param $w0 i64) (param $w1 i64) (param $w2 i64) (param $w3 i64) (local $at i32)
        (local.set $at (i32.add (i32.const 0x10000) (i32.shl (global.get $count) (i32.const 5))))
        (i64.store (local.get $at) (local.get $w0))
        (i64.store offset=8 (local.get $at) (local.get $w1))
        (i64.store offset=16 (local.get $at) (local.get $w2))
        (i64.store offset=24 (local.get $at) (local.get $w3))
        (global.set $count (i32.add (global.get $count) (i32.const 1))))
    (func $forward (param $id i64)
        (call $emit (i64.const 1) (local.get $id) (i64.const 0) (i64.const 0)))
    (func $forward_at (param $id i64) (param $time i64)
        (call $emit (i64.const 1) (local.get $id) (local.get $time) (i64.const 0)))
    (func $forward_notify (param $id i64)
        (call $emit (i64.const 0x1000001) (local.get $id) (i64.const 0) (i64.const 0)))
    (func $complete (param $id i64) (param $errno i64)
        (call $emit (i64.or (i64.const 2) (i64.shl (local.get $errno) (i64.const 32)))
            (local.get $id) (i64.const 0) (i64.const 0)))
    (func $tag (param $head i64) (result i32)
        (i32.wrap_i64 (i64.and (local.get $head) (i64.const 0xff))))
    (func $kind (param $head i64) (result i32)
        (i32.wrap_i64 (i64.and (i64.shr_u (local.get $head) (i64.const 8)) (i64.const 0xff))))
    (func $errno (param $head i64) (result i64)
        (i64.shr_u (local.get $head) (i64.const 32)))
    (func $each (param $now i64) (param $events i32) (param $words i32)
        (block $done (loop $next
            (br_if $done (i32.lt_u (local.get $words) (i32.const 4)))
            (call $event (local.get $now) (i64.load (local.get $events))
                (i64.load offset=8 (local.get $events)) (i64.load offset=16 (local.get $events))
                (i64.load offset=24 (local.get $events)))
            (local.set $events (i32.add (local.get $events) (i32.const 32)))
            (local.set $words (i32.sub (local.get $words) (i32.const 4)))
            (br $next))))
    (func $take (result i32)
        (i32.store (i32.const 0x10) (i32.const 0x10000))
        (i32.store (i32.const 0x14) (i32.shl (global.get $count) (i32.const 2)))
        (global.set $count (i32.const 0))
        (global.set $heap (i32.const 0x40000))
        (i32.const 0x10))
    (func $forever (loop $again (br $again)))"#;
