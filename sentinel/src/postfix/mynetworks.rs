//! The clients that a Postfix trusts: mynetworks, loopback, and the machine itself.

use std::net::IpAddr;

use ipnet::IpNet;

/// Who is never shed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    networks: Vec<IpNet>,
    /// Elements of mynetworks that only Postfix itself can look into (tables, files, exceptions).
    pub unread: Vec<String>,
}

impl Trusted {
    /// Of the value of mynetworks, expanded: addresses and networks between blanks or commas, IPv6 in brackets
    /// (Postfix src/util/match_ops.c). An exception (`!`) is left out: to trust one client too many sheds one too few.
    pub fn of(mynetworks: &str) -> Self {
        let mut trusted = Self::default();
        let words = mynetworks
            .split(|c: char| c.is_whitespace() || c == ',')
            .filter(|word| !word.is_empty());
        for word in words {
            match network(word) {
                Some(network) => trusted.networks.push(network),
                None => trusted.unread.push(word.to_owned()),
            }
        }
        trusted
    }

    /// Whether a client at `remote`, connected to our address `local`, is one of them.
    pub fn has(&self, remote: IpAddr, local: IpAddr) -> bool {
        let (remote, local) = (remote.to_canonical(), local.to_canonical());
        remote.is_loopback()
            || remote == local
            || self.networks.iter().any(|network| network.contains(&remote))
    }
}

fn network(word: &str) -> Option<IpNet> {
    let plain = word.replace(['[', ']'], "");
    plain
        .parse()
        .ok()
        .or_else(|| plain.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(trusted: &Trusted, remote: &str) -> bool {
        trusted.has(remote.parse().unwrap(), "192.0.2.1".parse().unwrap())
    }

    #[test]
    fn networks_addresses_and_what_cannot_be_read() {
        let trusted =
            Trusted::of("10.0.0.0/8, [2001:db8::]/32 198.51.100.7\tcidr:/etc/postfix/nets !10.1.1.1");
        assert_eq!(trusted.unread, ["cidr:/etc/postfix/nets", "!10.1.1.1"]);
        for inside in [
            "10.9.9.9",
            "::ffff:10.9.9.9",
            "2001:db8::25",
            "198.51.100.7",
            "127.0.0.1",
            "::1",
            "192.0.2.1",
        ] {
            assert!(trusts(&trusted, inside), "{inside}");
        }
        for outside in ["11.0.0.1", "2001:db9::1", "198.51.100.8"] {
            assert!(!trusts(&trusted, outside), "{outside}");
        }
    }
}
