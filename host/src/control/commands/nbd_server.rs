//! The NBD server, and exports by the commands that were for it alone.

use std::time::Duration;

use super::bitmaps::BlockDirtyBitmapOrStr;
use super::exports::{
    BlockExportBase, BlockExportBranch, BlockExportDel, BlockExportOptions, BlockExportOptionsNbd,
    BlockExportRemoveMode, add, refuse, remove,
};
use super::nodes::find_node;
use crate::config::ListenAddr;
use crate::control::context::Context;
use crate::control::error::QmpResult;
use crate::control::plan::Plan;
use crate::control::qapi::{clip, qapi_struct, qapi_union};
use crate::control::registry::{Empty, Registry};
use crate::limits::NBD_HANDSHAKE_TIME;
use crate::{block_on, host};

qapi_struct! {
    pub(crate) struct InetSocketAddress {
        host: String,
        port: String,
        numeric: Option<bool>,
        /// Not supported.
        to: Option<u16>,
        /// Not supported.
        ipv4: Option<bool>,
        /// Not supported.
        ipv6: Option<bool>,
        keep_alive: Option<bool>,
    }
}

qapi_struct! {
    pub(crate) struct UnixSocketAddress {
        path: String,
    }
}

qapi_struct! {
    pub(crate) struct InetSocketAddressWrapper {
        data: InetSocketAddress,
    }
}

qapi_struct! {
    pub(crate) struct UnixSocketAddressWrapper {
        data: UnixSocketAddress,
    }
}

qapi_union! {
    /// Where to listen.
    pub(crate) union SocketAddressLegacy by "type": SocketAddressType {
        base: Empty,
        /// By kind.
        branches: SocketAddressBranch {
            Inet(InetSocketAddressWrapper) = "inet",
            Unix(UnixSocketAddressWrapper) = "unix",
        }
    }
}

qapi_struct! {
    pub(crate) struct NbdServerOptions {
        addr: SocketAddressLegacy,
        /// Seconds that a client has for the handshake: ten unless said, 0 for as long as it takes.
        handshake_max_seconds: Option<u32>,
        /// Not supported.
        tls_creds: Option<String>,
        /// Not supported.
        tls_authz: Option<String>,
        /// Clients at once, beyond which others wait; 0 for as many as the host takes.
        max_connections: Option<u32>,
    }
}

qapi_struct! {
    /// An export that is to be, where the NBD server listens.
    pub(crate) struct NbdServerAddOptions {
        /// A drive, or a node.
        device: String,
        /// Its id, and what clients call it; `device` unless said.
        name: Option<String>,
        description: Option<String>,
        /// What is read-only is exported so, whatever is said.
        writable: Option<bool>,
        /// Shown as `qemu:dirty-bitmap:NAME`.
        bitmap: Option<String>,
    }
}

qapi_struct! {
    pub(crate) struct NbdServerRemove {
        /// The export's id.
        name: String,
        /// `safe` unless said.
        mode: Option<BlockExportRemoveMode>,
    }
}

pub(super) fn register(to: &mut Registry) {
    to.command("nbd-server-start", start);
    to.command("nbd-server-stop", stop);
    to.command("nbd-server-add", add_there);
    to.command("nbd-server-remove", remove_there);
    to.deprecate("nbd-server-add");
    to.deprecate("nbd-server-remove");
}

fn start(context: &Context<'_>, options: NbdServerOptions) -> QmpResult<Empty> {
    let NbdServerOptions { addr, handshake_max_seconds, tls_creds, tls_authz, max_connections } =
        options;
    if context.host.nbd_server_address().is_some() {
        return refuse("NBD server already running");
    }
    if let Some(id) = tls_creds {
        return refuse(format!("No TLS credentials with id '{}'", clip(&id)));
    }
    if tls_authz.is_some() {
        return refuse("TLS authorization is not permitted without TLS creds");
    }
    let address = match addr.branch {
        SocketAddressBranch::Unix(it) => ListenAddr::Unix(it.data.path.into()),
        SocketAddressBranch::Inet(it) => {
            let InetSocketAddress { host, port, to, ipv4, ipv6, .. } = it.data;
            if to.is_some() || ipv4.is_some() || ipv6.is_some() {
                return refuse("of 'to', 'ipv4' and 'ipv6' none is supported: 'host' says which");
            }
            let Ok(number) = port.parse() else {
                let desc = format!(
                    "address resolution failed for {}:{}: it is no port",
                    clip(&host),
                    clip(&port)
                );
                return refuse(desc);
            };
            ListenAddr::Tcp { host, port: number }
        }
    };
    let address = host::resolve(&address.in_dir(&context.host.base_dir()))?;
    let most = max_connections.filter(|most| *most > 0);
    let most = most.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
    let seconds = match handshake_max_seconds {
        None => NBD_HANDSHAKE_TIME,
        Some(0) => Duration::from_secs(u64::from(u32::MAX)),
        Some(seconds) => Duration::from_secs(seconds.into()),
    };
    context.host.nbd_server_start_within(&address, most, seconds)?;
    Ok(Empty {})
}

fn stop(context: &Context<'_>, _: Empty) -> QmpResult<Empty> {
    if context.host.nbd_server_address().is_none() {
        return refuse("NBD server not running");
    }
    block_on(context.host.nbd_server_stop())?;
    Ok(Empty {})
}

/// As `block-export-add`, but what is read-only is not written, with no complaint.
fn add_there(context: &Context<'_>, options: NbdServerAddOptions) -> QmpResult<Empty> {
    let NbdServerAddOptions { device, name, description, writable, bitmap } = options;
    let graph = context.host.graph();
    let is_read_only = find_node(&graph, Some(&device), Some(&device))?.info().read_only;
    let drive = graph.find_drive(&device).map(|at| &graph.drives()[at]);
    let can_write = !is_read_only && drive.is_none_or(|drive| drive.is_writable());
    let name = name.unwrap_or_else(|| device.clone());
    let base = BlockExportBase {
        id: name.clone(),
        fixed_iothread: None,
        iothread: None,
        node_name: device,
        writable: Some(writable == Some(true) && can_write),
        writethrough: None,
        allow_inactive: None,
    };
    let nbd = BlockExportOptionsNbd {
        name: Some(name),
        description,
        bitmaps: bitmap.map(|name| vec![BlockDirtyBitmapOrStr::Local(name)]),
        allocation_depth: None,
        frozen: None,
        listen: None,
    };
    let mut plan = Plan::new(context);
    add(&mut plan, BlockExportOptions { base, branch: BlockExportBranch::Nbd(nbd) })?;
    plan.commit()?;
    Ok(Empty {})
}

fn remove_there(context: &Context<'_>, options: NbdServerRemove) -> QmpResult<Empty> {
    let NbdServerRemove { name, mode } = options;
    remove(context, BlockExportDel { id: name, mode })
}
