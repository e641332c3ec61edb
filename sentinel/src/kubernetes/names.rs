//! Identities and names as the API gives them: parsed once, bounded, and free of anything that a log or a terminal could
//! obey. What does not parse does not get in.

use std::fmt;

use crate::terminal::push_printable;

/// RFC 1123 label: namespaces and containers (apimachinery validation.IsDNS1123Label).
const LABEL_MAX: usize = 63;
/// RFC 1123 subdomain: pods and nodes (validation.IsDNS1123Subdomain).
const SUBDOMAIN_MAX: usize = 253;
/// A UUID has 36; the kubelet names a static pod by 32 hexadecimal digits of a hash.
const UID_MAX: usize = 64;
/// Every runtime of today writes 64 hexadecimal digits.
const CONTAINER_ID_MAX: usize = 128;

/// `metadata.uid` of a pod, which is also in the path of its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Box<str>);

impl PodUid {
    /// Of the API, or of a cgroup: the systemd driver writes `_` for each `-` there, and no uid has one of its own.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=UID_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        fits.then(|| Self(text.replace('_', "-").into()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The container runtime's name of a container, which is also in the path of its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(Box<str>);

impl ContainerId {
    /// Of a cgroup, or of the API, which puts the runtime before it: `containerd://0123…`.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.split_once("://").map_or(text, |(_, id)| id);
        let fits =
            (1..=CONTAINER_ID_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
        fits.then(|| Self(id.into()))
    }
}

/// A name of a namespace, pod, container or node: lower-case letters, digits, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

impl Name {
    /// Of a namespace or a container.
    pub fn label(text: &str) -> Option<Self> {
        Self::of(text, LABEL_MAX).filter(|name| !name.0.contains('.'))
    }

    /// Of a pod or a node.
    pub fn subdomain(text: &str) -> Option<Self> {
        Self::of(text, SUBDOMAIN_MAX)
    }

    fn of(text: &str, max: usize) -> Option<Self> {
        let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| end(Some(b)) || matches!(b, b'-' | b'.');
        let fits = text.len() <= max
            && end(text.bytes().next())
            && end(text.bytes().next_back())
            && text.bytes().all(inner);
        fits.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `text` of others on one line: at most `max` bytes of it, and with everything escaped that a terminal would obey.
pub fn bounded(text: &str, max: usize) -> String {
    const CUT: &str = "…";
    let mut out = String::with_capacity(text.len().min(max));
    // Where the text ends if what follows does not fit.
    let mut room_for_cut = 0;
    for c in text.chars() {
        push_printable(&mut out, c);
        if out.len() > max {
            out.truncate(room_for_cut);
            out.push_str(CUT);
            return out;
        }
        if out.len() + CUT.len() <= max {
            room_for_cut = out.len();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_uid_is_the_same_from_the_api_and_from_either_cgroup_driver() {
        let uid = PodUid::parse("6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11");
        assert!(uid.is_some());
        assert_eq!(uid, PodUid::parse("6f0f2e2a_0b5e_4a57_9d6e_1f6b0e0f7a11"));
        for wrong in ["", "a/b", "..", "a b", "é", &"a".repeat(65)] {
            assert_eq!(PodUid::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_container_is_the_same_with_its_runtime_and_without() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(
            ContainerId::parse(&format!("containerd://{id}")),
            ContainerId::parse(&id)
        );
        for wrong in ["", "containerd://", "containerd://../x", "a\nb"] {
            assert_eq!(ContainerId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_are_those_that_the_api_server_lets_in() {
        assert!(Name::label("mail-0").is_some());
        assert!(Name::subdomain("mail.0").is_some());
        for wrong in ["", "-a", "a-", "A", "a.b", "a_b", "a/b", "a,b=c", "a\u{1b}"] {
            assert_eq!(Name::label(wrong), None, "{wrong}");
        }
        assert!(Name::label(&"a".repeat(63)).is_some());
        assert_eq!(Name::label(&"a".repeat(64)), None);
        assert_eq!(Name::subdomain(&"a".repeat(254)), None);
    }

    proptest! {
        #[test]
        fn bounded_text_is_bounded_and_plain(text in "(?s).{0,400}", max in 3_usize..300) {
            let out = bounded(&text, max);
            prop_assert!(out.len() <= max, "{} > {max}", out.len());
            prop_assert!(!out.chars().any(char::is_control));
            let plain = text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
            if plain && text.len() <= max {
                prop_assert_eq!(out, text);
            }
        }
    }
}
