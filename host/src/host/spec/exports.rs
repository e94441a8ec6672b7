//! Exports, and their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use super::super::Host;
use super::super::persist::first_stored;
use super::StartError;
use super::builder::bitmap_scope;
use crate::bitmap::BitmapName;
use crate::config::{Diagnostic, ExportSpec, GraphSpec, ListenAddr, Scope};
use crate::error::{Error, ErrorKind, Result};
use crate::export::nbd::{Export, ExportBitmap, ListenAddress};
use crate::graph::{BitmapScope, EXPORT_DRIVE, Graph};

/// An export that is being served.
#[derive(Clone, Debug)]
pub struct StartedExport {
    /// Its id in the file.
    pub id: String,
    /// What a client opens.
    pub uri: String,
}

/// The drive behind an export; that of a node has an anonymous one.
pub(super) fn drive_of(export: &ExportSpec) -> String {
    match &export.scope {
        Scope::Drive(id) => id.value.clone(),
        Scope::Node(_) => anonymous_drive(&export.id.value),
    }
}

/// The drive that stands for the node that is exported as `id`: jobs that end re-point it like any other.
pub(in crate::host) fn anonymous_drive(id: &str) -> String {
    format!("{EXPORT_DRIVE}{id}")
}

/// Begins to serve all exports of a specification; those of one address together.
///
/// # Errors
/// What cannot be served, where it is described. The others of its address, and those of the addresses before,
/// are served.
pub(super) fn serve(
    host: &Host,
    spec: &GraphSpec,
    base: &Path,
) -> Result<Vec<StartedExport>, StartError> {
    let mut listeners: Vec<(ListenAddr, Vec<&ExportSpec>)> = Vec::new();
    for export in &spec.exports {
        let address = export.listen.value.in_dir(base);
        match listeners.iter_mut().find(|(known, _)| *known == address) {
            Some((_, exports)) => exports.push(export),
            None => listeners.push((address, vec![export])),
        }
    }
    let mut started = BTreeMap::new();
    for (address, exports) in listeners {
        let address = resolve(&address)?;
        let served = exports
            .iter()
            .map(|export| Ok((export.id.value.clone(), nbd_export(host, spec, export)?)));
        let served: Vec<(String, Export)> = served.collect::<Result<_, StartError>>()?;
        let server = &host.inner.server;
        let bound = match server.listeners().contains(&address) {
            false => server.listen_as(&address, served),
            true => served
                .into_iter()
                .try_for_each(|(id, export)| server.add(&address, &id, export).map(drop))
                .map(|()| address),
        };
        let bound = bound.map_err(|error| {
            let mut found = spec.diagnostics();
            found.push(Diagnostic::error(exports[0].listen.span, error.to_string()));
            StartError::Config(Box::new(found))
        })?;
        for export in exports {
            started.insert(export.id.value.clone(), uri(&bound, &export.name.value));
        }
    }
    let started = spec.exports.iter().filter_map(|export| {
        let id = export.id.value.clone();
        started.remove(&id).map(|uri| StartedExport { id, uri })
    });
    Ok(started.collect())
}

/// Where an address is.
///
/// # Errors
/// When its name has none, or a socket's path is too long.
pub(crate) fn resolve(address: &ListenAddr) -> Result<ListenAddress> {
    match address {
        ListenAddr::Unix(path) => Ok(ListenAddress::Unix(path.clone())),
        ListenAddr::Tcp { host, port } => {
            let mut found = (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(|error| Error::os(format!("`{host}` is no address"), &error))?;
            let none = || Error::new(ErrorKind::NotFound, format!("`{host}` has no address"));
            found.next().map(ListenAddress::Tcp).ok_or_else(none)
        }
    }
}

/// # Errors
/// A bitmap that neither the file nor an image has.
fn nbd_export(host: &Host, spec: &GraphSpec, export: &ExportSpec) -> Result<Export, StartError> {
    let drive = drive_of(export);
    let mut seen = BTreeSet::new();
    let mut bitmaps = Vec::new();
    for id in export.bitmaps.iter().filter(|id| seen.insert(&id.value)) {
        bitmaps.push(match spec.bitmap(&id.value) {
            Some(bitmap) => {
                let name = bitmap.name.value.clone();
                ExportBitmap { name, scope: bitmap_scope(&bitmap.scope), is_frozen: false }
            }
            None => ExportBitmap {
                name: id.value.clone(),
                is_frozen: false,
                scope: shown_bitmap(&host.graph(), &drive, &id.value).ok_or_else(|| {
                    let (export, name) = (&export.id.value, &id.value);
                    let message = match spec.is_addition() {
                        true => format!("nothing that export `{export}` shows has a bitmap `{name}`"),
                        false => format!(
                            "no image below export `{export}` holds a bitmap `{name}`, and the file \
                             declares none"
                        ),
                    };
                    let mut found = spec.diagnostics();
                    found.push(Diagnostic::error(id.span, message));
                    StartError::Config(Box::new(found))
                })?,
            },
        });
    }
    Ok(Export {
        name: export.name.value.clone(),
        description: export.description.as_ref().map(|it| it.value.clone()).unwrap_or_default(),
        drive,
        writable: export.writable.value,
        writethrough: export.writethrough.value,
        allocation_depth: export.allocation_depth.value,
        bitmaps,
    })
}

/// What records the bitmap that somebody means by `name` who uses a drive: its own, else one of a node that shows
/// what it shows, else the first from the top that an image keeps.
pub(in crate::host) fn shown_bitmap(graph: &Graph, drive: &str, name: &str) -> Option<BitmapScope> {
    let of_drive = BitmapScope::Drive(drive.into());
    if graph.find_bitmap(&of_drive, name).is_some() {
        return Some(of_drive);
    }
    let drive = &graph.drives()[graph.find_drive(drive)?];
    let class = graph.nodes()[drive.root()?.child()].class();
    let shown = graph.bitmaps().find(|(scope, bitmap)| {
        let BitmapScope::Node(node) = scope else { return false };
        let node = graph.find_node(node).map(|at| &graph.nodes()[at]);
        bitmap.name().as_str() == name && node.is_some_and(|node| node.class() == class)
    });
    if let Some((scope, _)) = shown {
        return Some(scope.clone());
    }
    first_stored(graph, &of_drive, &BitmapName::new(name).ok()?)
}

/// The same for what a client calls by the name `of`: a drive, or a node.
pub(crate) fn bitmap_shown_by(graph: &Graph, of: &str, name: &str) -> Option<BitmapScope> {
    if graph.find_drive(of).is_some() {
        return shown_bitmap(graph, of, name);
    }
    let class = graph.nodes()[graph.find_node(of)?].class();
    let shown = graph.bitmaps().find(|(scope, bitmap)| {
        let BitmapScope::Node(node) = scope else { return false };
        let node = graph.find_node(node).map(|at| &graph.nodes()[at]);
        bitmap.name().as_str() == name && node.is_some_and(|node| node.class() == class)
    });
    let scope = BitmapScope::Node(of.into());
    let stored = || first_stored(graph, &scope, &BitmapName::new(name).ok()?);
    shown.map(|(scope, _)| scope.clone()).or_else(stored)
}

/// An NBD URI (NBD project, `doc/uri.md`).
pub(in crate::host) fn uri(address: &ListenAddress, name: &str) -> String {
    let name = percent_encode(name, b"-._~");
    match address {
        ListenAddress::Unix(path) => {
            let path = percent_encode(&path.to_string_lossy(), b"-._~/");
            format!("nbd+unix:///{name}?socket={path}")
        }
        ListenAddress::Tcp(SocketAddr::V4(address)) => format!("nbd://{address}/{name}"),
        ListenAddress::Tcp(SocketAddr::V6(address)) => format!("nbd://{address}/{name}"),
    }
}

fn percent_encode(text: &str, plain: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
