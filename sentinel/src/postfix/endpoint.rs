//! Names of inet services: `smtp`, `25`, `127.0.0.1:smtp`, `[::1]:25`, `host.example:25`, and which of them are the
//! same socket to master(8). Also the little name service that this needs; it never asks the network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use super::ServiceId;

/// Ports that Postfix itself knows by name (known_tcp_ports in Postfix 3.6 and later), whatever /etc/services says.
const KNOWN_PORTS: [(&str, u16); 5] = [
    ("lmtp", 24),
    ("smtp", 25),
    ("smtps", 465),
    ("submissions", 465),
    ("submission", 587),
];

/// Names of ports and hosts that can be resolved without asking the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    ports: HashMap<String, u16>,
    hosts: HashMap<String, Vec<IpAddr>>,
}

impl Names {
    /// Only what Postfix knows by itself, and `localhost`.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// With the text of an /etc/services and an /etc/hosts beside the built-in names.
    pub fn from_files(services: &str, hosts: &str) -> Self {
        let mut names = Self::default();
        for line in services.lines() {
            let mut words = without_comment(line);
            let Some(name) = words.next() else { continue };
            let port = words
                .next()
                .and_then(|w| w.strip_suffix("/tcp"))
                .and_then(|p| p.parse().ok());
            if let Some(port) = port {
                for alias in std::iter::once(name).chain(words) {
                    names.ports.entry(alias.to_owned()).or_insert(port);
                }
            }
        }
        for line in hosts.lines() {
            let mut words = without_comment(line);
            if let Some(address) = words.next().and_then(|a| a.parse::<IpAddr>().ok()) {
                for name in words {
                    names
                        .hosts
                        .entry(name.to_ascii_lowercase())
                        .or_default()
                        .push(address);
                }
            }
        }
        names
    }

    /// The number of a port given by number or name.
    pub fn port(&self, port: &str) -> Option<u16> {
        if port.bytes().all(|b| b.is_ascii_digit()) {
            return port.parse().ok().filter(|&p| p != 0);
        }
        let known = KNOWN_PORTS
            .iter()
            .find(|(name, _)| *name == port)
            .map(|&(_, number)| number);
        known.or_else(|| self.ports.get(port).copied())
    }

    /// Whether a port is one to every Postfix. Before 3.6 it asked /etc/services alone, which has the names that Postfix
    /// now brings itself, but not `lmtp`.
    pub(super) fn has_port_for_sure(&self, port: &str) -> bool {
        self.port(port).is_some() && (port != "lmtp" || self.ports.contains_key(port))
    }

    /// The addresses of a host given by address or name; empty when the name is not known here.
    pub fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(address) = host.parse() {
            return vec![address];
        }
        let host = host.to_ascii_lowercase();
        match self.hosts.get(&host) {
            Some(addresses) => addresses.clone(),
            None if host == "localhost" => {
                vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)]
            }
            None => Vec::new(),
        }
    }
}

fn without_comment(line: &str) -> impl Iterator<Item = &str> {
    line.split('#')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
}

/// The two halves of an inet service name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Without brackets; `None` listens where inet_interfaces says.
    pub host: Option<&'a str>,
    /// Number or name.
    pub port: &'a str,
}

impl<'a> Endpoint<'a> {
    /// Takes a name apart the way host_port() of Postfix src/global/host_port.c does, with its error texts.
    pub fn parse(name: &'a str) -> Result<Self, &'static str> {
        let (host, port) = if let Some(rest) = name.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or("missing \"]\"")?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port,
                None if rest.is_empty() => "",
                None => return Err("garbage after \"]\""),
            };
            match host.get(..5) {
                Some(prefix) if prefix.eq_ignore_ascii_case("ipv6:") => {
                    let host = &host[5..];
                    host.parse::<Ipv6Addr>().map_err(|_| "malformed IPv6 address")?;
                    (Some(host), port)
                }
                _ => (Some(host), port),
            }
        } else {
            match name.rsplit_once(':') {
                Some((host, port)) => (Some(host).filter(|h| !h.is_empty()), port),
                None => (None, name),
            }
        };
        if port.is_empty() {
            return Err("missing service information");
        }
        if host.is_some_and(|h| h.parse::<IpAddr>().is_err() && !is_hostname(h)) {
            return Err("valid hostname or network address required");
        }
        if port.starts_with(|c: char| c.is_ascii_digit()) && !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err("garbage after numerical service");
        }
        Ok(Self { host, port })
    }

    /// The name by which master(8) tells inet services apart (Postfix src/master/master_ent.c get_master_ent()):
    /// `25` or `[127.0.0.1]:25`.
    pub fn canonical(&self, names: &Names) -> String {
        let port = names
            .port(self.port)
            .map_or_else(|| self.port.to_owned(), |p| p.to_string());
        match self.host.map(|h| (h, h.parse::<IpAddr>())) {
            None => port,
            Some((_, Ok(address))) => format!("[{address}]:{port}"),
            Some((name, Err(_))) => format!("[{name}]:{port}"),
        }
    }
}

/// Letters, digits, hyphens and underscores between dots: what valid_hostname() of Postfix lets through, or less.
fn is_hostname(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    // All digits and dots, yet no address: Postfix takes that for a mistyped address.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    host.len() <= 255 && !numeric && host.split('.').all(label)
}

/// The port that an inet service listens on; `None` for other types, and for a name that only /etc/services knows.
pub fn port(id: &ServiceId) -> Option<u16> {
    if id.kind != "inet" {
        return None;
    }
    Endpoint::parse(&id.name)
        .ok()
        .and_then(|e| Names::built_in().port(e.port))
}

/// Whether two ids name the same service to master(8): the same type and the same canonical name.
pub fn same_service(a: &ServiceId, b: &ServiceId) -> bool {
    a.kind == b.kind && canonical_name(a) == canonical_name(b)
}

/// The canonical name of an inet service, the plain name of any other.
pub fn canonical_name(id: &ServiceId) -> String {
    match Endpoint::parse(&id.name) {
        Ok(endpoint) if id.kind == "inet" => endpoint.canonical(&Names::built_in()),
        _ => id.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(name: &str) -> String {
        canonical_name(&ServiceId {
            name: name.into(),
            kind: "inet".into(),
        })
    }

    #[test]
    fn one_socket_has_one_canonical_name() {
        for name in ["smtp", "25", ":25", ":smtp", "025"] {
            assert_eq!(canonical(name), "25", "{name}");
        }
        for name in ["127.0.0.1:smtp", "127.0.0.1:25", "[127.0.0.1]:25"] {
            assert_eq!(canonical(name), "[127.0.0.1]:25", "{name}");
        }
        for name in ["::1:smtp", "[::1]:25", "[IPv6:::1]:25", "[0:0:0:0:0:0:0:1]:smtp"] {
            assert_eq!(canonical(name), "[::1]:25", "{name}");
        }
        assert_eq!(canonical("mail.example:10025"), "[mail.example]:10025");
        assert_eq!(canonical("smtps"), canonical("submissions"));
        assert_ne!(canonical("smtp"), canonical("127.0.0.1:smtp"));
        assert_eq!(
            canonical_name(&ServiceId {
                name: "smtp".into(),
                kind: "pass".into()
            }),
            "smtp"
        );
    }

    #[test]
    fn broken_names_are_refused_as_master_does() {
        for (name, error) in [
            ("[::1", "missing \"]\""),
            ("[::1]25", "garbage after \"]\""),
            ("[::1]", "missing service information"),
            ("127.0.0.1:", "missing service information"),
            ("25x", "garbage after numerical service"),
            ("300.1.1.1:25", "valid hostname or network address required"),
            ("[ipv6:zz]:25", "malformed IPv6 address"),
        ] {
            assert_eq!(Endpoint::parse(name), Err(error), "{name}");
        }
    }

    #[test]
    fn files_add_names_and_never_change_the_built_in_ones() {
        let names = Names::from_files(
            "smtp 2525/tcp mail\nqmqp\t628/tcp # queue\nfoo 9/udp\n",
            "127.0.0.1 localhost\n192.0.2.1 MX1.example mx1 # first\n::1 localhost\n",
        );
        assert_eq!(names.port("smtp"), Some(25));
        assert_eq!(names.port("qmqp"), Some(628));
        assert_eq!(names.port("foo"), None);
        assert_eq!(names.port("0"), None);
        assert_eq!(names.port("65536"), None);
        assert_eq!(
            names.addresses("mx1.EXAMPLE"),
            ["192.0.2.1".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(names.addresses("localhost").len(), 2);
        assert!(names.addresses("elsewhere.example").is_empty());
    }

    #[test]
    fn ports_of_services() {
        let of = |name: &str, kind: &str| {
            port(&ServiceId {
                name: name.into(),
                kind: kind.into(),
            })
        };
        assert_eq!(of("smtp", "inet"), Some(25));
        assert_eq!(of("[::1]:10025", "inet"), Some(10025));
        assert_eq!(of("submissions", "inet"), Some(465));
        assert_eq!(of("smtp", "unix"), None);
        assert_eq!(of("no-such-port", "inet"), None);
    }
}
