//! Plugins that trap, in each export, and those that use up stack or memory.

use blockloom::plugin::{InstanceError, PluginLimits};

use super::guest::Guest;
use super::scene::{Coming, Setup, check_fault};

const TRAP: &str = "unreachable";

#[test]
fn a_trap_in_poll() {
    let guest = Guest { poll: TRAP, ..Guest::PASS };
    check_fault(guest, Coming::Together, "failed in `poll`: wasm trap: wasm `unreachable`");
    check_fault(guest, Coming::Alone, "failed in `poll`: wasm trap: wasm `unreachable`");
}

#[test]
fn a_trap_in_poll_one() {
    let guest = Guest { poll_one: TRAP, ..Guest::PASS };
    check_fault(guest, Coming::Alone, "failed in `poll-one`: wasm trap: wasm `unreachable`");
}

#[test]
fn a_trap_after_answers_were_prepared_forwards_none_of_them() {
    let poll = "(call $each (local.get $now) (local.get $events) (local.get $words)) unreachable";
    check_fault(Guest { poll, ..Guest::PASS }, Coming::Together, "`unreachable`");
}

#[test]
fn a_trap_after_the_answer_was_read_forwards_none_of_it() {
    let guest = Guest { post_poll: TRAP, ..Guest::PASS };
    check_fault(guest, Coming::Together, "failed in `poll`: wasm trap: wasm `unreachable`");
}

#[test]
fn a_trap_while_memory_is_asked_for() {
    let realloc = "(if (i32.ge_u (local.get $bytes) (i32.const 256)) (then unreachable))
        (i32.const 0x40000)";
    let guest = Guest { realloc, ..Guest::PASS };
    check_fault(guest, Coming::Together, "failed in `poll`: wasm trap: wasm `unreachable`");
}

#[test]
fn memory_is_given_out_where_there_is_none() {
    for realloc in ["(i32.const -8)", "(i32.const 0x7fff0000)", "(i32.const 0x5ffff)"] {
        let realloc = format!(
            "(if (result i32) (i32.ge_u (local.get $bytes) (i32.const 256))
                (then {realloc}) (else (i32.const 0x40000)))"
        );
        let guest = Guest { realloc: &realloc, ..Guest::PASS };
        check_fault(guest, Coming::Together, "failed in `poll`: ");
    }
}

#[test]
fn a_panic_is_reported_in_its_own_words() {
    let items = r#"(data (i32.const 0x400) "panicked at src/lib.rs:7:9: no room left")
        (func $panic (call $log (i32.const 1) (i32.const 0x400) (i32.const 40)) unreachable)"#;
    let guest = Guest { event: "(call $panic)", items, ..Guest::PASS };
    let words = "failed in `poll`: panicked at src/lib.rs:7:9: no room left";
    check_fault(guest, Coming::Together, words);
    let words = "failed in `poll-one`: panicked at src/lib.rs:7:9: no room left";
    check_fault(guest, Coming::Alone, words);
}

#[test]
fn a_stack_that_overflows_is_the_guests_own() {
    let items = "(func $deeper (param $n i32) (result i32)
        (i32.add (call $deeper (i32.add (local.get $n) (i32.const 1))) (i32.const 1)))";
    let event = "(drop (call $deeper (i32.const 0)))";
    let guest = Guest { event, items, ..Guest::PASS };
    check_fault(guest, Coming::Alone, "call stack exhausted");
    check_fault(guest, Coming::Together, "call stack exhausted");
}

#[test]
fn other_traps() {
    let cases = [
        ("(drop (i64.div_u (local.get $id) (i64.const 0)))", "divide by zero"),
        ("(drop (i64.load (i32.const -8)))", "out of bounds memory access"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", "invalid conversion to integer"),
        ("(call_indirect (i32.const 3))", "uninitialized element"),
        ("(call_indirect (i32.const 99))", "out of bounds"),
        ("(memory.fill (i32.const 0x50000) (i32.const 1) (i32.const -1))", "out of bounds"),
    ];
    for (event, reason) in cases {
        let guest = Guest { event, items: "(table 8 funcref)", ..Guest::PASS };
        check_fault(guest, Coming::Together, reason);
    }
}

/// Grows until it may not, then goes on as if nothing were.
#[test]
fn memory_ends_at_the_limit() {
    let event = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (if (i32.ne (memory.size) (i32.const 32)) (then unreachable))
        (call $forward (local.get $id))";
    let limits = PluginLimits { memory_bytes: 2 << 20, ..PluginLimits::default() };
    let setup = Setup { limits, ..Setup::of(Guest { event, ..Guest::PASS }) };
    let scene = setup.start();
    scene.assert_alive();
    scene.end();
}

/// What the allocator of a real plugin does: it panics when there is no more memory.
#[test]
fn more_memory_than_the_limit_is_a_fault() {
    let event = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        unreachable";
    check_fault(Guest { event, ..Guest::PASS }, Coming::Together, "`unreachable`");
}

#[test]
fn tables_end_at_the_limit() {
    let event = "(loop $more (br_if $more (i32.ne
            (table.grow (ref.null func) (i32.const 100)) (i32.const -1))))
        (if (i32.gt_u (table.size) (i32.const 10000)) (then unreachable))
        (call $forward (local.get $id))";
    let scene = Setup::of(Guest { event, items: "(table 0 funcref)", ..Guest::PASS }).start();
    scene.assert_alive();
    scene.end();
}

/// What a plugin that fails before it serves leaves to say.
fn check_set_up(guest: Guest<'_>, reason: &str) {
    let text = match Setup::of(guest).instance() {
        Ok(_) => panic!("it was set up"),
        Err(InstanceError::Plugin(error)) => error.to_string(),
        Err(InstanceError::Config(error)) => panic!("{error}"),
    };
    assert!(text.contains("`evil`") && text.contains(reason), "{text}");
}

#[test]
fn faults_before_the_first_request() {
    let start = "(func $first unreachable) (start $first)";
    check_set_up(Guest { items: start, ..Guest::PASS }, "failed in `instantiate`");
    check_set_up(Guest { describe: TRAP, ..Guest::PASS }, "failed in `describe`");
    check_set_up(Guest { configure: TRAP, ..Guest::PASS }, "failed in `configure`");
    check_set_up(Guest { describe: "(i32.const -4)", ..Guest::PASS }, "failed in `describe`");
    check_set_up(Guest { configure: "(i32.const -4)", ..Guest::PASS }, "failed in `configure`");
    check_set_up(Guest { realloc: TRAP, ..Guest::PASS }, "failed in `configure`");
    let big = Guest { pages: 400, ..Guest::PASS };
    check_set_up(big, "memory minimum size");
    let table = Guest { items: "(table 20000 funcref)", ..Guest::PASS };
    check_set_up(table, "table minimum size");
}

#[test]
fn faults_when_a_node_is_added() {
    let cases = [(TRAP, "failed in `add-node`"), ("(i32.const -4)", "failed in `add-node`")];
    for (add_node, reason) in cases {
        let setup = Setup::of(Guest { add_node, ..Guest::PASS });
        let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
        let error = setup.start_with(&instance).err().expect("the host does not start");
        let text = error.to_string();
        assert!(text.contains("node `evil`") && text.contains(reason), "{text}");
    }
}

#[test]
fn a_node_that_is_refused() {
    let add_node = "(i32.store8 (i32.const 0x20) (i32.const 1))
        (i32.store (i32.const 0x24) (i32.const 0x400)) (i32.store (i32.const 0x28) (i32.const 18))
        (i32.const 0x20)";
    let items = r#"(data (i32.const 0x400) "no\1b[31m red\0ahere\07!!")"#;
    let setup = Setup::of(Guest { add_node, items, ..Guest::PASS });
    let instance = setup.instance().unwrap_or_else(|error| panic!("{error:?}"));
    let text = setup.start_with(&instance).err().expect("refused").to_string();
    assert!(text.contains("plugin `evil` refuses the node: no"), "{text}");
    assert!(!text.contains(char::is_control), "{text:?} would reach a terminal");
}
