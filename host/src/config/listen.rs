//! Addresses that exports listen on.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket in bytes: `sun_path` less its final zero.
const LONGEST_UNIX_PATH_BYTES: usize = 107;

/// Where an export listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddr {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Name or address, an IPv6 address without its brackets.
        host: String,
        /// Port, not zero.
        port: u16,
    },
}

/// Why a text is no [`ListenAddr`]; displays what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddrError(String);

impl fmt::Display for ListenAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ListenAddrError {}

impl ListenAddr {
    /// The address with the path of a Unix socket taken relative to `base_dir`.
    #[must_use]
    pub fn in_dir(&self, base_dir: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base_dir.join(path)),
            Self::Tcp { .. } => self.clone(),
        }
    }

    /// Whether the path of a Unix socket fits the system's limit; TCP addresses always do.
    pub(super) fn fits(&self) -> bool {
        match self {
            Self::Unix(path) => path.as_os_str().len() <= LONGEST_UNIX_PATH_BYTES,
            Self::Tcp { .. } => true,
        }
    }
}

/// What is wrong with a path of a socket that does not [fit](ListenAddr::fits).
pub(super) fn too_long() -> String {
    format!("is too long: the path of a Unix socket has at most {LONGEST_UNIX_PATH_BYTES} bytes")
}

impl std::str::FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        let wrong = |what: &str| Err(ListenAddrError(what.to_owned()));
        if let Some(path) = text.strip_prefix("unix:") {
            let addr = Self::Unix(PathBuf::from(path));
            return match addr.fits() {
                _ if path.is_empty() => wrong("has no path: write \"unix:/path/to/socket\""),
                _ if path.contains('\0') => wrong("has a zero byte in its path"),
                true => Ok(addr),
                false => Err(ListenAddrError(too_long())),
            };
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return wrong("is no address: write \"unix:PATH\" or \"tcp:HOST:PORT\"");
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return wrong(
                "has no port: write \"tcp:HOST:PORT\", for example \"tcp:127.0.0.1:10809\"",
            );
        };
        let host = host_of(host).map_err(|what| ListenAddrError(what.to_owned()))?;
        let is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse::<u16>() {
            Ok(port) if port != 0 && is_digits => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => wrong("has a wrong port: ports are 1 to 65535"),
        }
    }
}

fn host_of(text: &str) -> Result<&str, &'static str> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let is_address = inner.parse::<core::net::Ipv6Addr>().is_ok();
        return if is_address { Ok(inner) } else { Err("has no IPv6 address in its brackets") };
    }
    if text.is_empty() {
        return Err(
            "has no host: write \"tcp:127.0.0.1:PORT\", or \"tcp:[::]:PORT\" for all addresses",
        );
    }
    if text.contains(':') {
        return Err("has an IPv6 address without brackets: write \"tcp:[ADDRESS]:PORT\"");
    }
    let is_right = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_right { Ok(text) } else { Err("has a wrong host: write a name or an address") }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}
