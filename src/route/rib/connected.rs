//! What follows from an address of a port: the address itself, its subnet, and the subnet's special addresses.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// One of these, in the order in which they prevail for one prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The box itself.
    Local,
    /// Everybody on the link.
    Broadcast,
    /// Hosts on the link.
    Subnet,
}

/// What follows from an address with the length of its subnet's prefix.
pub fn parts(address: IpNet) -> Vec<(IpNet, Part)> {
    let mut parts = vec![(IpNet::from(address.addr()), Part::Local)];
    match address {
        IpNet::V4(net) => {
            // RFC 3021: a subnet of two hosts has no other addresses. RFC 919, section 7; the one with all host bits clear
            // is an older form of the same (RFC 1812, section 5.3.5.1).
            if net.prefix_len() <= 30 {
                let broadcast =
                    [net.broadcast(), net.network()].map(|address| (Ipv4Net::from(address).into(), Part::Broadcast));
                parts.extend(broadcast);
            }
            if net.prefix_len() <= 31 {
                parts.push((net.trunc().into(), Part::Subnet));
            }
        }
        // Every link has this subnet: routes cannot tell which is meant (RFC 4291, section 2.5.6).
        IpNet::V6(net) if net.addr().is_unicast_link_local() => {}
        IpNet::V6(net) => {
            // RFC 4291, section 2.6.1: routers answer to it; but not where a subnet is a link of two (RFC 6164, section 5.1).
            if net.prefix_len() <= 126 && net.network() != Ipv6Addr::UNSPECIFIED {
                parts.push((Ipv6Net::from(net.network()).into(), Part::Local));
            }
            if net.prefix_len() <= 127 {
                parts.push((net.trunc().into(), Part::Subnet));
            }
        }
    }
    parts.sort_unstable();
    parts.dedup();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_an_address() {
        let cases: [(&str, &[&str]); 7] = [
            (
                "10.1.2.3/24",
                &["10.1.2.0/24 Subnet", "10.1.2.0/32 Broadcast", "10.1.2.3/32 Local", "10.1.2.255/32 Broadcast"],
            ),
            ("10.1.2.0/31", &["10.1.2.0/31 Subnet", "10.1.2.0/32 Local"]),
            ("10.1.2.3/32", &["10.1.2.3/32 Local"]),
            ("2001:db8::1/64", &["2001:db8::/64 Subnet", "2001:db8::/128 Local", "2001:db8::1/128 Local"]),
            ("2001:db8::1/127", &["2001:db8::/127 Subnet", "2001:db8::1/128 Local"]),
            ("2001:db8::1/128", &["2001:db8::1/128 Local"]),
            ("fe80::1/64", &["fe80::1/128 Local"]),
        ];
        for (address, expected) in cases {
            let parts = parts(address.parse().expect("an address"));
            let parts: Vec<String> = parts.iter().map(|(net, part)| format!("{net} {part:?}")).collect();
            assert_eq!(parts, expected, "{address}");
        }
    }
}
