//! Between the generated bindings and an instance. Nothing here is for authors to call.

use std::cell::RefCell;
use std::{mem, panic};

use blockloom_abi::{BitmapIndex, Entry, Kinds, NodeIndex};

use crate::bindings::exports::blockloom::filter::{control, data};
use crate::exec::Instance;
use crate::text::{decimal, text};
use crate::{Bitmap, ByteAccess, Child, Filter, Grants, Level, Node};

/// The one instance of a component, as [`export_filter`](crate::export_filter) declares it.
pub trait Plugin {
    /// Its filter.
    type Filter: Filter;

    /// Where it is kept.
    fn with<R>(act: impl FnOnce(&RefCell<Option<Instance<Self::Filter>>>) -> R) -> R;
}

// Set-up is written with loops rather than with adapters, which take twice the module's bytes.

fn lower<F: Filter>(description: crate::Description, kinds: Kinds) -> control::Description {
    let mut children = Vec::with_capacity(description.children.len());
    for child in &description.children {
        children.push(control::ChildWant {
            name: child.name.to_owned(),
            required: child.required,
            wants: control::Grants::from_bits_retain(child.wants.bits()),
            exclusive: child.exclusive,
        });
    }
    let mut views = Vec::with_capacity(description.views.len());
    for view in &description.views {
        views.push((*view).to_owned());
    }
    let mut bitmaps = Vec::with_capacity(description.bitmaps.len());
    for (name, required) in &description.bitmaps {
        bitmaps.push(control::BitmapWant { name: (*name).to_owned(), required: *required });
    }
    control::Description {
        layout: description.layout,
        name: description.name.to_owned(),
        version: description.version.to_owned(),
        kinds: kinds.with(description.also_offered).bits(),
        children,
        views,
        bitmaps,
        wants_bytes: match description.bytes {
            ByteAccess::None => control::ByteAccess::None,
            ByteAccess::Read => control::ByteAccess::Read,
            ByteAccess::Transform => control::ByteAccess::Transform,
        },
        has_job: F::JOB,
        may_bypass: description.may_bypass,
    }
}

fn lift(node: control::Node) -> Node {
    let mut children = Vec::with_capacity(node.children.len());
    for child in &node.children {
        children.push(child.as_ref().map(|child| Child {
            size_bytes: child.size_bytes,
            granted: Grants::from_bits(child.granted.bits()),
        }));
    }
    let mut bitmaps = Vec::with_capacity(node.bitmaps.len());
    for bitmap in node.bitmaps {
        bitmaps.push(Bitmap {
            name: bitmap.name,
            index: BitmapIndex(bitmap.index),
            granularity_bytes: bitmap.granularity_bytes,
            owned: bitmap.owned,
        });
    }
    Node {
        index: NodeIndex(node.index),
        name: node.name,
        size_bytes: node.size_bytes,
        read_only: node.read_only,
        children,
        bitmaps,
        bytes: match node.bytes {
            control::ByteAccess::None => ByteAccess::None,
            control::ByteAccess::Read => ByteAccess::Read,
            control::ByteAccess::Transform => ByteAccess::Transform,
        },
    }
}

fn configured<P: Plugin, R>(act: impl FnOnce(&mut Instance<P::Filter>) -> R) -> R {
    P::with(|instance| match instance.try_borrow_mut() {
        Ok(mut instance) => match &mut *instance {
            Some(instance) => act(instance),
            None => unready(),
        },
        Err(_) => unready(),
    })
}

#[cold]
fn unready() -> ! {
    panic!("called before it was configured, or from within a call")
}

/// A panic is one message of the log; the trap follows.
fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        let (file, line) = panic.location().map_or(("", 0), |place| (place.file(), place.line()));
        let message = panic.payload_as_str().unwrap_or("no message");
        crate::log(
            Level::Error,
            &text(&["panicked at ", file, ":", &decimal(line), ": ", message]),
        );
    }));
}

impl<P: Plugin> control::Guest for P {
    fn describe() -> control::Description {
        report_panics();
        let kinds = P::Filter::KINDS.with(P::Filter::DECIDE).with(P::Filter::NOTIFY);
        lower::<P::Filter>(P::Filter::describe(), kinds)
    }

    fn configure(config: String) -> Result<(), control::ConfigError> {
        report_panics();
        P::with(|instance| {
            let Ok(mut instance) = instance.try_borrow_mut() else { unready() };
            match &*instance {
                Some(running) => running.filter().reload(&config),
                None => {
                    let former = instance.replace(Instance::new(P::Filter::configure(&config)?));
                    // There is none; what would drop one need not be in the module.
                    mem::forget(former);
                    Ok(())
                }
            }
        })
        .map_err(|error| control::ConfigError { path: error.path, message: error.message })
    }

    fn add_node(node: control::Node) -> Result<(), String> {
        let node = lift(node);
        configured::<P, _>(|instance| instance.filter().add_node(node))
    }

    fn remove_node(index: u16) {
        configured::<P, _>(|instance| instance.filter().remove_node(NodeIndex(index)));
    }

    fn save() -> Vec<u8> {
        configured::<P, _>(|instance| instance.filter().save())
    }

    fn restore(state: Vec<u8>) -> Result<(), String> {
        configured::<P, _>(|instance| instance.filter().restore(&state))
    }
}

impl<P: Plugin> data::Guest for P {
    #[inline]
    fn poll(now: u64, events: Vec<u64>) -> Vec<u64> {
        configured::<P, _>(|instance| instance.poll(now, events))
    }

    #[inline]
    fn poll_one(now: u64, head: u64, id: u64, offset: u64, len: u64) -> u64 {
        let event = Entry([head, id, offset, len]);
        configured::<P, _>(|instance| instance.poll_one(now, event))
    }
}
