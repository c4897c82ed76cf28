//! `[api]`: the API over TCP, beside the control socket. Form only; whether files and addresses are good is found out at start.

use std::net::SocketAddr;
use std::time::Duration;

use super::reader::{FromToml, Item, Reader};
use super::source::{At, Mistakes};
use super::units::{Size, Within};

crate::choice! {
    /// What a caller may do.
    pub enum Role {
        /// Ask.
        Read = "read",
        /// Ask, and change what runs.
        Write = "write",
    }
}

crate::serde_key! {
    SocketAddr: "an address and a port such as \"0.0.0.0:8443\" or \"[::]:8443\"",
}

crate::section! {
    /// `[api]`
    pub struct Api {
        /// Where the API answers over TCP beside the control socket, such as `["0.0.0.0:8443", "[::]:8443"]`; an IPv6 address takes no IPv4. Changed by a restart only.
        pub listen: Vec<At<SocketAddr>> = Vec::new(),
        /// False: plain HTTP, on loopback addresses only.
        pub tls: bool = true,
        /// PEM file with the certificate, and those between it and its root. Read again when it changes.
        pub certificate: Option<String>,
        /// PEM file with the certificate's key. Read again when it changes.
        pub key: Option<String>,
        /// PEM file with the roots of clients' certificates. Read again when it changes.
        pub client_ca: Option<String>,
        /// What clients with such a certificate may do: `"read"`, or `"write"`. One whose fingerprint is in `tokens` may do what is said there.
        pub client_role: Role = Role::Read,
        /// File with the callers, as `flowgate token` writes them: `NAME read|write sha256:HASH` for a bearer token, `NAME read|write certificate:SHA-256` for a client's certificate. Read again when it changes.
        pub tokens: Option<String>,
        /// What anybody may read who can connect, such as `["/metrics"]`.
        pub open: Vec<At<OpenPath>> = Vec::new(),
        /// Connections at a time over TCP. The control socket has as many of its own.
        pub max_connections: Within<1, 4096> = Within(256),
        /// Connections at a time from one IPv4 address or IPv6 /64.
        pub max_connections_per_peer: Within<1, 4096> = Within(32),
        /// How long a client may take for the TLS handshake, for a request's head, and between requests.
        pub header_timeout: Duration = Duration::from_secs(15),
        /// How long a client may take to send a request's body.
        pub body_timeout: Duration = Duration::from_secs(15),
        /// How long a client may take for each 64 KiB of an answer.
        pub write_timeout: Duration = Duration::from_secs(30),
        /// The largest body of a request.
        pub max_body: Size = Size(16 << 20),
    }
}

/// What anybody may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPath(pub String);

impl FromToml for OpenPath {
    const EXPECTED: &'static str = "a path such as \"/metrics\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        super::reader::parsed(&item, Self::EXPECTED, reader, |text| {
            let good = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
            good.then(|| OpenPath(text.to_owned()))
        })
    }
}

impl Api {
    /// What the file alone shows to be wrong.
    pub(super) fn check(&self, mistakes: &mut Mistakes) {
        let Some(first) = self.listen.first() else { return };
        let mut wrong = |place: &At<SocketAddr>, key: &str, message: &str, help: &str| {
            mistakes.with_help(&place.place, key, message, help);
        };
        for (at, address) in self.listen.iter().enumerate() {
            if self.listen[..at].iter().any(|earlier| earlier.value == address.value) {
                wrong(address, "api.listen", &format!("{} stands twice", address.value), "remove one");
            }
            if !self.tls && !address.ip().is_loopback() {
                let message = format!("plain HTTP on {} would show tokens to the network", address.value);
                wrong(address, "api.listen", &message, "set tls = true, or listen on 127.0.0.1 or [::1]");
            }
        }
        if self.tls && (self.certificate.is_none() || self.key.is_none()) {
            let help = "set api.certificate and api.key to PEM files";
            wrong(first, "api.certificate", "TLS wants a certificate and its key", help);
        }
        if !self.tls && self.client_ca.is_some() {
            wrong(first, "api.client_ca", "plain HTTP knows no certificates", "set tls = true, or remove client_ca");
        }
        if self.tokens.is_none() && self.client_ca.is_none() && self.open.is_empty() {
            let help = "set api.tokens or api.client_ca, or api.open to what anybody may read";
            wrong(first, "api.listen", "nobody may ask anything here", help);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::source::Source;

    fn mistakes(api: &str) -> Vec<String> {
        let text = format!(
            "[[port]]\nname = 'lan'\ndevice = 'net_null0'\n[[port]]\nname = 'wan'\ndevice = 'net_null1'\n\
             [pipeline]\nstages = ['cross']\n[cross]\nwire = [{{ ports = ['lan', 'wan'] }}]\n[api]\n{api}"
        );
        let (_, mistakes) = Config::read(&Source::new("t", &text));
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_api_that_nobody_may_use_or_anybody_overhear_is_a_mistake() {
        let tls = "certificate = 'a'\nkey = 'b'\ntokens = 'c'\n";
        for good in [
            "".to_owned(),
            format!("listen = ['0.0.0.0:8443', '[::]:8443']\n{tls}"),
            "listen = ['[::1]:80', '127.0.0.2:80']\ntls = false\nopen = ['/metrics']".into(),
        ] {
            assert_eq!(mistakes(&good), Vec::<String>::new(), "{good}");
        }
        for (bad, what) in [
            (format!("listen = ['[::]:1', '[::]:1']\n{tls}"), "stands twice"),
            ("listen = ['[::]:1']\ntls = false\ntokens = 'c'".into(), "plain HTTP on [::]:1"),
            ("listen = ['[::]:1']\ntokens = 'c'".into(), "TLS wants a certificate"),
            ("listen = ['[::1]:1']\ntls = false\nclient_ca = 'c'".into(), "knows no certificates"),
            ("listen = ['[::1]:1']\ntls = false".into(), "nobody may ask"),
            ("listen = ['localhost:1']".into(), "expected an address and a port"),
            ("open = ['metrics']".into(), "expected a path"),
        ] {
            let found = mistakes(&bad);
            assert!(found.len() == 1 && found[0].contains(what), "{bad}: {found:?}");
        }
    }
}
