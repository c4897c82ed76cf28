//! The same rules, read one after the other as the file says: what the compiled form must agree with.

use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::names::Detail;
use crate::packet::Meta;
use crate::packet::meta::flag;

use super::compile::{Action, Rule};
use crate::stage::classes::Prefix;

/// The rule that decides a packet leaving by `out`, and the rules that count it.
pub fn judge(rules: &[Rule], meta: &Meta, out: u8) -> (Option<usize>, Vec<usize>) {
    let mut counted = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        if matches(rule, meta, out) {
            match rule.action {
                Action::Count => counted.push(at),
                Action::Allow | Action::Deny | Action::Reject => return (Some(at), counted),
            }
        }
    }
    (None, counted)
}

fn matches(rule: &Rule, meta: &Meta, out: u8) -> bool {
    let (source, destination) = if meta.has(flag::IPV4) {
        let address = |bytes: &[u8; 16]| IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
        (address(&meta.src), address(&meta.dst))
    } else {
        (IpAddr::V6(meta.src.into()), IpAddr::V6(meta.dst.into()))
    };
    let vlan = if meta.has(flag::VLAN) { meta.vlan % 4096 } else { 4096 };
    rule.from.contains(meta.port)
        && rule.to.contains(out)
        && covers(&rule.source.v4, &rule.source.v6, source)
        && covers(&rule.destination.v4, &rule.destination.v6, destination)
        && (rule.vlans.is_empty() || rule.vlans.iter().any(|range| range.contains(&vlan)))
        && serves(rule, meta)
}

fn covers(v4: &[Prefix], v6: &[Prefix], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => v4.iter().any(|(bits, len)| {
            Ipv4Net::new(Ipv4Addr::from((bits >> 96) as u32), *len).is_ok_and(|net| net.contains(&address))
        }),
        IpAddr::V6(address) => v6
            .iter()
            .any(|(bits, len)| Ipv6Net::new(Ipv6Addr::from(*bits), *len).is_ok_and(|net| net.contains(&address))),
    }
}

/// The part of a rule about protocol and ports. A later fragment shows neither ports nor an ICMP type, unless it has them of
/// its first.
fn serves(rule: &Rule, meta: &Meta) -> bool {
    let icmp = matches!(meta.proto, 1 | 58);
    let whole = !meta.has(flag::LATER_FRAGMENT) || meta.has(flag::BORROWED);
    let ports = whole && !icmp && meta.has(flag::PORTS);
    let sport =
        rule.source_ports.is_empty() || ports && rule.source_ports.iter().any(|range| range.contains(&meta.sport));
    let service = rule.services.iter().any(|service| {
        service.proto == meta.proto
            && match &service.detail {
                Detail::Any => true,
                Detail::Ports(range) => ports && range.contains(&meta.dport),
                Detail::Icmp(kind, code) => {
                    let told = whole && icmp && meta.any(flag::L4 | flag::BORROWED);
                    told && meta.detail[0] == *kind && code.is_none_or(|code| code == meta.detail[1])
                }
            }
    });
    sport && (rule.services.is_empty() || service)
}
