//! `guard`: what no packet may be, whatever the rules for its flow say: addresses that make no sense on a port, blocklists,
//! impossible TCP flags, and rules on fields that change within a flow.
//!
//! It looks at every packet, before all state, and remembers nothing.
//!
//! Addresses that make no sense (`martians`), and what passes all the same:
//!
//! | address | dropped as | except |
//! |---|---|---|
//! | Ethernet source with the group bit | source | |
//! | 127.0.0.0/8, ::1 | source, destination | |
//! | 0.0.0.0/8 | source, destination | 0.0.0.0 as the source of DHCP requests and of IGMP |
//! | 224.0.0.0/4, ff00::/8 | source | |
//! | 240.0.0.0/4, 255.255.255.255 | source | |
//! | :: | source, destination | as the source of ICMPv6 neighbor and router solicitations (DAD) and of MLD |
//! | ::ffff:0:0/96 | source, destination | |
//! | the source's own, with its own port | destination | |
//! | ARP: group, broadcast, loopback | sender | 0.0.0.0 is the sender of probes |
//!
//! Link-local addresses (169.254.0.0/16, RFC 3927; fe80::/10) are good on a wire: that they are not forwarded between
//! networks is routing's matter. The documentation prefixes of RFC 6890 pass, too.

use std::sync::Arc;

use crate::config::names::{Detail, Service};
use crate::config::reader::{FromToml, Item, Reader};
use crate::config::source::{At, Place};
use crate::packet::meta::flag;
use crate::packet::{Batch, Frame, Meta, bits};
use crate::stats::{Line, Lines, ReasonBase};

use super::ingress::Ports;
use super::prefix_set::PrefixSet;
use super::{Cx, Depth, PacketPlan, PacketStage, Plan, PlanCx, Stage, rule_counter};

crate::lines! {
    /// Why guard drops.
    pub enum Drops {
        /// The Ethernet source is a group address (IEEE 802.3, 3.2.3).
        SourceGroupMac = "source-group-mac",
        /// The source is a loopback address (RFC 1122, 3.2.1.3 (g); RFC 4291, 2.5.3).
        SourceLoopback = "source-loopback",
        /// The source is of "this network", or unspecified where that is not allowed (RFC 1122, 3.2.1.3 (a, b); RFC 4291, 2.5.2).
        SourceUnspecified = "source-unspecified",
        /// The source is a multicast address (RFC 1122, 3.2.1.3; RFC 4291, 2.7).
        SourceMulticast = "source-multicast",
        /// The source is the limited broadcast address (RFC 1122, 3.2.1.3 (c)).
        SourceBroadcast = "source-broadcast",
        /// The source is in 240.0.0.0/4, which is reserved (RFC 1112, 4; RFC 6890, 2.2.2).
        SourceReserved = "source-reserved",
        /// The destination is a loopback address (RFC 1812, 5.3.7; RFC 4291, 2.5.3).
        DestinationLoopback = "destination-loopback",
        /// The destination is of "this network" or unspecified (RFC 1812, 5.3.7; RFC 4291, 2.5.2).
        DestinationUnspecified = "destination-unspecified",
        /// An IPv4-mapped IPv6 address, which is for sockets and not for packets (RFC 6890, 2.2.3).
        Mapped = "mapped-address",
        /// Source and destination are the same address and port.
        Land = "land",
        /// The sender of an ARP message is a multicast, broadcast or loopback address (RFC 1812, 3.3.2).
        ArpSender = "arp-sender",
        /// A TCP segment without any flag (RFC 9293, 3.10.7: no state expects one).
        TcpNull = "tcp-null",
        /// A TCP segment that opens and closes (SYN and FIN).
        TcpSynFin = "tcp-syn-fin",
        /// A TCP segment that opens and aborts (SYN and RST).
        TcpSynRst = "tcp-syn-rst",
        /// FIN, PSH and URG without ACK: a scanner's "christmas tree".
        TcpXmas = "tcp-xmas",
        /// FIN without ACK (RFC 9293, 3.10.7.4: segments without ACK are dropped once a connection is open).
        TcpFinNoAck = "tcp-fin-no-ack",
        /// A fragment that would overwrite the flags of a TCP header (RFC 1858, 3 and 4).
        TinyFragment = "tiny-fragment",
        /// The source is in `drop`.
        BlockedSource = "blocked-source",
        /// The destination is in `drop_destination`.
        BlockedDestination = "blocked-destination",
        /// A rule drops it.
        Rule = "rule",
    }
}

crate::choice! {
    /// What becomes of a packet.
    pub enum Fate {
        /// It ends here.
        Drop = "drop",
        /// It goes on.
        Pass = "pass"
    }
}

crate::choice! {
    /// Which fragments a rule is about.
    pub enum Fragment {
        /// All of them.
        Any = "any",
        /// Those that begin a packet.
        First = "first",
        /// Those that continue one.
        Later = "later"
    }
}

/// Differentiated services code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp(pub u8);

impl Dscp {
    /// A name of RFC 2474 (cs), RFC 2597 (af), RFC 3246 (ef), RFC 5865 (va), RFC 8622 (le) or a number.
    fn parse(text: &str) -> Option<Dscp> {
        let digit = |at: usize, from: u8, to: u8| {
            let digit = text.as_bytes().get(at)?.checked_sub(b'0')?;
            (from..=to).contains(&digit).then_some(digit)
        };
        let code = match (text, text.len()) {
            ("ef", _) => 46,
            ("va", _) => 44,
            ("le", _) => 1,
            ("be" | "default", _) => 0,
            (_, 3) if text.starts_with("cs") => digit(2, 0, 7)? << 3,
            (_, 4) if text.starts_with("af") => digit(2, 1, 4)? << 3 | digit(3, 1, 3)? << 1,
            _ => return None,
        };
        Some(Dscp(code))
    }
}

impl FromToml for Dscp {
    const EXPECTED: &'static str = "a DSCP from 0 to 63 or a name such as \"ef\", \"af41\", \"cs1\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if item.as_str().is_some() {
            return crate::config::reader::parsed(&item, Self::EXPECTED, reader, Dscp::parse);
        }
        let (place, path) = (reader.place(&item), item.path.clone());
        let number: u64 = crate::config::reader::deserialize(item, Self::EXPECTED, reader)?;
        if number > 63 {
            reader.mistakes.at(&place, &path, format!("expected {}, found {number}", Self::EXPECTED));
            return None;
        }
        Some(Dscp(number as u8))
    }
}

/// TCP flags to be looked at, and how they must be: `"syn/syn,ack"` is SYN set and ACK not, as nft writes it; `"syn,fin"` is
/// both set and the others whatever they are; `"none"` is none of them set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    set: u8,
    mask: u8,
}

const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;
/// ECE and CWR (RFC 3168) say nothing of the connection.
const CONTROL: u8 = FIN | SYN | RST | PSH | ACK | URG;

impl Flags {
    fn parse(text: &str) -> Option<Flags> {
        let list = |text: &str| {
            text.split(',').try_fold(0, |flags, name| {
                Some(flags | 1 << FLAGS.iter().position(|flag| name.trim().eq_ignore_ascii_case(flag))?)
            })
        };
        let some = |text: &str| if text.trim() == "none" { Some(0) } else { list(text) };
        let (set, mask) = match text.split_once('/') {
            Some((set, mask)) => (some(set)?, list(mask)?),
            None if text.trim() == "none" => (0, CONTROL),
            None => (list(text)?, list(text)?),
        };
        (set & !mask == 0).then_some(Flags { set, mask })
    }
}

impl FromToml for Flags {
    const EXPECTED: &'static str =
        "TCP flags such as \"syn,fin\" (all set), \"syn/syn,ack\" (of SYN and ACK only SYN set) or \"none\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        crate::config::reader::parsed(&item, Self::EXPECTED, reader, Flags::parse)
    }
}

crate::section! {
    /// `[guard]`
    pub struct Config {
        /// What happens to packets whose addresses make no sense on a port (loopback, group addresses as source, ...). What DHCP, IGMP, MLD, duplicate address detection and ARP probes need passes in any case.
        pub martians: Fate = Fate::Drop,
        /// What happens to TCP segments whose flags no connection has (none, SYN with FIN or RST, FIN without ACK), and to fragments that would overwrite a TCP header.
        pub tcp_flags: Fate = Fate::Drop,
        /// Drop packets from these sources: addresses, prefixes, `@sets`. Of ARP the sender counts.
        pub drop: Vec<At<String>> = vec![],
        /// Drop packets to these destinations.
        pub drop_destination: Vec<At<String>> = vec![],
        /// Rules, tried in file order behind all of the above; the first that matches decides.
        pub rule: Vec<Rule> = vec![],
    }
}

crate::section! {
    /// `[[guard.rule]]`: all keys that are given must match.
    pub struct Rule {
        /// Its name, for counters and messages.
        pub name: Option<String>,
        /// Ports or zones the packet came from.
        pub from: Vec<At<String>> = vec![],
        /// Services or protocols, as in `acl`. A service with ports or ICMP types matches a later fragment only with `conntrack`.
        pub service: Vec<At<String>> = vec![],
        /// TCP flags: "syn,fin" matches if all are set, "syn/syn,ack" if of SYN and ACK only SYN is, "none" if no flag is.
        pub flags: Option<Flags>,
        /// Only fragments: "any", "first" or "later".
        pub fragment: Option<Fragment>,
        /// Differentiated services code points, as numbers or names ("ef", "af41", "cs1").
        pub dscp: Vec<Dscp> = vec![],
        /// True: only packets with IPv4 options or IPv6 extension headers (fragmentation does not count); false: only those without.
        pub options: Option<bool>,
        /// What happens: "drop", or "pass" to skip the other rules.
        pub action: At<Fate>,
    }
}

/// The stage.
pub struct Guard;

impl Stage for Guard {
    const NAME: &'static str = "guard";
    const DOC: &'static str = "Judges every packet by itself, before all state: addresses that make no sense on a port, \
                               blocklists, impossible TCP flags, and rules on flags, fragments, DSCP and options. Of \
                               senseless addresses these pass: 0.0.0.0 as the source of DHCP requests (port 68 to 67 of \
                               255.255.255.255) and of IGMP to a group; :: as the source of ICMPv6 neighbor and router \
                               solicitations and of MLD; 0.0.0.0 as the sender of ARP probes; link-local addresses.";
    const DEPTH: Depth = Depth::L4;
    const REASONS: &'static [Line] = Drops::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let reasons = cx.reasons::<Drops>();
        let before = cx.mistakes.len();
        let mut blocklist = |list: &[At<String>], key: &str| {
            let key = format!("{}.{key}", cx.instance);
            let addresses = cx.names.resolve_addresses(list, &key, cx.mistakes)?;
            PrefixSet::new(&addresses, cx.names)
        };
        let drop = blocklist(&config.drop, "drop");
        let drop_destination = blocklist(&config.drop_destination, "drop_destination");
        let rules: Vec<Matcher> =
            config.rule.iter().enumerate().filter_map(|(i, rule)| plan_rule(i, rule, cx)).collect();
        (cx.mistakes.len() == before).then(|| {
            Plan::Packet(Arc::new(Compiled(Arc::new(Checks {
                martians: config.martians == Fate::Drop,
                tcp_flags: config.tcp_flags == Fate::Drop,
                drop,
                drop_destination,
                rules,
                reasons,
            }))))
        })
    }
}

fn plan_rule(i: usize, rule: &Rule, cx: &mut PlanCx<'_>) -> Option<Matcher> {
    let key = format!("{}.rule[{i}]", cx.instance);
    let place: &Place = &rule.action.place;
    let from = Ports::resolve(&rule.from, cx.names, &format!("{key}.from"), cx.mistakes);
    let services = cx.names.resolve_services(&rule.service, &format!("{key}.service"), cx.mistakes);
    let tcp_or_any =
        services.as_ref().is_none_or(|all| all.is_empty() || all.iter().any(|service| service.proto == TCP));
    if rule.flags.is_some() && !tcp_or_any {
        cx.mistakes.at(place, &format!("{key}.flags"), "only TCP has flags, and no service of the rule is TCP");
    }
    if rule.flags.is_some() && rule.fragment == Some(Fragment::Later) {
        cx.mistakes.at(place, &format!("{key}.flags"), "a later fragment has no TCP header, so the rule never matches");
    }
    let name = rule.name.clone().unwrap_or_else(|| format!("rule[{i}]"));
    let slot = cx.rule(&name, place, rule.action.word())?;
    Some(Matcher {
        from: from?,
        services: services?.into(),
        flags: rule.flags,
        fragments: match rule.fragment {
            None => 0,
            Some(Fragment::Any) => flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT,
            Some(Fragment::First) => flag::FIRST_FRAGMENT,
            Some(Fragment::Later) => flag::LATER_FRAGMENT,
        },
        dscp: rule.dscp.iter().fold(0, |set, dscp| set | 1 << dscp.0),
        options: rule.options,
        drop: rule.action.value == Fate::Drop,
        slot,
        counters: cx.rules.slot(slot)?.counters,
    })
}

/// A rule, compiled.
#[derive(Debug)]
struct Matcher {
    from: Ports,
    services: Box<[Service]>,
    flags: Option<Flags>,
    /// `Meta::flags` of which one must be set; 0 asks for nothing.
    fragments: u16,
    /// Bit per code point; 0 asks for nothing.
    dscp: u64,
    options: Option<bool>,
    drop: bool,
    slot: u16,
    counters: usize,
}

const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

impl Matcher {
    #[inline]
    fn matches(&self, meta: &Meta, dscp: Option<u8>) -> bool {
        self.from.contains(meta.port)
            && (self.fragments == 0 || meta.any(self.fragments))
            && self.options.is_none_or(|wanted| meta.any(flag::IPV4 | flag::IPV6) && wanted == meta.has(flag::OPTIONS))
            && self.flags.is_none_or(|flags| tcp_flags(meta).is_some_and(|set| set & flags.mask == flags.set))
            && (self.dscp == 0 || dscp.is_some_and(|dscp| self.dscp >> (dscp & 63) & 1 != 0))
            && (self.services.is_empty() || self.services.iter().any(|service| serves(service, meta)))
    }
}

fn serves(service: &Service, meta: &Meta) -> bool {
    meta.any(flag::IPV4 | flag::IPV6)
        && meta.proto == service.proto
        && match &service.detail {
            Detail::Any => true,
            Detail::Ports(ports) => meta.has(flag::PORTS) && !meta.has(flag::ECHO) && ports.contains(&meta.dport),
            Detail::Icmp(kind, code) => {
                meta.any(flag::L4 | flag::BORROWED)
                    && meta.detail[0] == *kind
                    && code.is_none_or(|code| meta.detail[1] == code)
            }
        }
}

/// The flags of a TCP segment whose header was decoded.
#[inline]
fn tcp_flags(meta: &Meta) -> Option<u8> {
    (meta.proto == TCP && meta.has(flag::L4) && meta.any(flag::IPV4 | flag::IPV6)).then_some(meta.detail[0])
}

/// The code point (RFC 2474, 3): six bits of IPv4's second byte, or of IPv6's bits 4 to 11.
#[inline]
fn dscp(frame: &Frame, meta: &Meta) -> Option<u8> {
    let header = frame.bytes().get(meta.l3()..)?.first_chunk::<2>()?;
    if meta.has(flag::IPV4) {
        Some(header[1] >> 2)
    } else if meta.has(flag::IPV6) {
        Some((header[0] & 0x0f) << 2 | header[1] >> 6)
    } else {
        None
    }
}

/// True for a fragment of TCP that begins eight bytes into the packet: it would overwrite the flags (RFC 1858, 4: no honest
/// sender makes one).
#[inline]
fn is_tiny(frame: &Frame, meta: &Meta) -> bool {
    if !meta.has(flag::LATER_FRAGMENT) || meta.proto != TCP {
        return false;
    }
    let offset = |at: usize| {
        let field = frame.bytes().get(at..)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*field))
    };
    if meta.has(flag::IPV4) {
        offset(meta.l3() + 6).is_some_and(|field| field & 0x1fff == 1)
    } else {
        // The fragment header is the last before the data; its offset stands in the upper 13 bits (RFC 8200, 4.5).
        meta.l4().checked_sub(6).and_then(offset).is_some_and(|field| field >> 3 == 1)
    }
}

/// What is wrong with a packet's addresses.
#[inline]
fn martian(frame: &Frame, meta: &Meta) -> Option<Drops> {
    if frame.bytes().get(6).is_some_and(|first| first & 1 != 0) {
        return Some(Drops::SourceGroupMac);
    }
    if meta.has(flag::IPV4) {
        martian_v4(meta)
    } else if meta.has(flag::IPV6) {
        martian_v6(meta)
    } else if meta.has(flag::ARP) {
        // 0.0.0.0 is the sender of probes (RFC 5227, 2.1.1).
        matches!(meta.src[0], 127 | 224..).then_some(Drops::ArpSender)
    } else {
        None
    }
}

#[inline]
fn martian_v4(meta: &Meta) -> Option<Drops> {
    let [s, d] = [&meta.src, &meta.dst].map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    // Nearly all packets: 1.0.0.0 to 126.255.255.255 or 128.0.0.0 to 223.255.255.255.
    match s >> 24 {
        0 => {
            // RFC 2131, 4.1: a client without an address asks from 0.0.0.0; RFC 3376, 4.2.13: so may an IGMP host.
            let dhcp =
                meta.proto == UDP && meta.has(flag::PORTS) && (meta.sport, meta.dport) == (68, 67) && d == u32::MAX;
            let igmp = meta.proto == IGMP && d >> 28 == 0xe;
            if s != 0 || !(dhcp || igmp) {
                return Some(Drops::SourceUnspecified);
            }
        }
        127 => return Some(Drops::SourceLoopback),
        224..=239 => return Some(Drops::SourceMulticast),
        240.. if s == u32::MAX => return Some(Drops::SourceBroadcast),
        240.. => return Some(Drops::SourceReserved),
        _ => {}
    }
    match d >> 24 {
        0 => Some(Drops::DestinationUnspecified),
        127 => Some(Drops::DestinationLoopback),
        _ => is_land(meta),
    }
}

#[inline]
fn martian_v6(meta: &Meta) -> Option<Drops> {
    let [s, d] = [&meta.src, &meta.dst].map(|bytes| u128::from_be_bytes(*bytes));
    if s >> 120 == 0xff {
        return Some(Drops::SourceMulticast);
    }
    // ::, ::1 and ::ffff:0:0/96 all begin with 80 zero bits.
    if s >> 48 == 0 {
        match s {
            0 => {
                // RFC 4862, 5.4.2 (neighbor solicitation, 135); RFC 4861, 4.1 (router solicitation, 133); RFC 3590 and
                // RFC 3810, 5.2.13 (MLD reports and done, 131, 132, 143).
                let kind = meta.detail[0];
                let asks = meta.proto == ICMPV6 && meta.has(flag::L4) && matches!(kind, 131..=133 | 135 | 143);
                if !asks {
                    return Some(Drops::SourceUnspecified);
                }
            }
            1 => return Some(Drops::SourceLoopback),
            _ if s >> 32 == 0xffff => return Some(Drops::Mapped),
            _ => {}
        }
    }
    if d >> 48 == 0 {
        match d {
            0 => return Some(Drops::DestinationUnspecified),
            1 => return Some(Drops::DestinationLoopback),
            _ if d >> 32 == 0xffff => return Some(Drops::Mapped),
            _ => {}
        }
    }
    is_land(meta)
}

#[inline]
fn is_land(meta: &Meta) -> Option<Drops> {
    (meta.src == meta.dst && meta.sport == meta.dport).then_some(Drops::Land)
}

#[inline]
fn senseless_flags(frame: &Frame, meta: &Meta) -> Option<Drops> {
    let Some(flags) = tcp_flags(meta) else {
        return is_tiny(frame, meta).then_some(Drops::TinyFragment);
    };
    if flags & (SYN | FIN) == SYN | FIN {
        Some(Drops::TcpSynFin)
    } else if flags & (SYN | RST) == SYN | RST {
        Some(Drops::TcpSynRst)
    } else if flags & CONTROL == 0 {
        Some(Drops::TcpNull)
    } else if flags & (FIN | PSH | URG | ACK) == FIN | PSH | URG {
        Some(Drops::TcpXmas)
    } else if flags & (FIN | ACK) == FIN {
        Some(Drops::TcpFinNoAck)
    } else {
        None
    }
}

/// Everything a packet is checked for.
#[derive(Debug)]
struct Checks {
    martians: bool,
    tcp_flags: bool,
    drop: Option<PrefixSet>,
    drop_destination: Option<PrefixSet>,
    rules: Vec<Matcher>,
    reasons: ReasonBase,
}

impl Checks {
    #[inline]
    fn refused(&self, frame: &Frame, meta: &Meta) -> Option<Drops> {
        if self.martians
            && let Some(martian) = martian(frame, meta)
        {
            return Some(martian);
        }
        if self.tcp_flags
            && let Some(senseless) = senseless_flags(frame, meta)
        {
            return Some(senseless);
        }
        if self.drop.as_ref().is_some_and(|list| list.contains(meta, &meta.src)) {
            return Some(Drops::BlockedSource);
        }
        if self.drop_destination.as_ref().is_some_and(|list| list.contains(meta, &meta.dst)) {
            return Some(Drops::BlockedDestination);
        }
        None
    }
}

struct Compiled(Arc<Checks>);

impl PacketPlan for Compiled {
    fn start(&self, _worker: usize) -> Box<dyn PacketStage> {
        Box::new(Guarding(self.0.clone()))
    }

    fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, list) in [("drop", &self.0.drop), ("drop_destination", &self.0.drop_destination)] {
            if let Some(list) = list {
                lines.push(format!("{key}: {}", list.describe()));
            }
        }
        if !self.0.rules.is_empty() {
            lines.push(format!("{} rules, tried one by one", self.0.rules.len()));
        }
        lines
    }
}

struct Guarding(Arc<Checks>);

impl PacketStage for Guarding {
    fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>) {
        let checks = &*self.0;
        for i in bits(batch.live) {
            let (frame, meta) = (&batch.frames[i], &batch.metas[i]);
            if let Some(reason) = checks.refused(frame, meta) {
                batch.drop(i, checks.reasons.at(reason));
                continue;
            }
            if checks.rules.is_empty() {
                continue;
            }
            let dscp = dscp(frame, meta);
            if let Some(rule) = checks.rules.iter().find(|rule| rule.matches(meta, dscp)) {
                let counters = &mut cx.sheet.counters[rule.counters..rule.counters + rule_counter::COUNT];
                counters[rule_counter::PACKETS] += 1;
                counters[rule_counter::BYTES] += frame.len() as u64;
                counters[rule_counter::LAST_HIT] = cx.now;
                if rule.drop {
                    batch.metas[i].rule = rule.slot;
                    batch.drop(i, checks.reasons.at(Drops::Rule));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::bench::Bench;
    use crate::testkit::packets::Packet;

    const CROSS: &str = "[pipeline]\nstages = ['guard', 'cross']\n[[cross.wire]]\nports = ['lan', 'wan']\n";

    fn bench(guard: &str) -> Bench {
        Bench::new(&format!("{CROSS}{guard}"))
    }

    /// What becomes of a packet that comes from `lan`: `sent`, or the reason without `guard.`.
    fn end(bench: &mut Bench, packet: &Packet) -> String {
        let end = bench.push("lan", &packet.bytes());
        end.reason().trim_start_matches("guard.").to_owned()
    }

    #[test]
    fn martians_and_their_exceptions() {
        let udp = |source, destination| Packet::udp(source, destination);
        let solicit = |kind| Packet::icmp("::", "ff02::1:ff00:1", kind, 0, [0; 4]);
        let cases = [
            ("sent", udp("10.0.0.1:1", "192.0.2.1:2")),
            ("sent", udp("169.254.3.4:1", "169.254.9.9:2")),
            ("sent", udp("10.0.0.1:1", "224.0.0.251:5353")),
            ("sent", udp("10.0.0.1:1", "255.255.255.255:9")),
            ("sent", udp("[fe80::1]:1", "[ff02::fb]:5353")),
            ("sent", udp("[2001:db8::1]:1", "[2001:db8::2]:2")),
            ("source-loopback", udp("127.0.0.1:1", "192.0.2.1:2")),
            ("source-loopback", udp("[::1]:1", "[2001:db8::2]:2")),
            ("destination-loopback", udp("10.0.0.1:1", "127.3.2.1:2")),
            ("destination-loopback", udp("[2001:db8::2]:1", "[::1]:2")),
            ("source-multicast", udp("224.0.0.1:1", "192.0.2.1:2")),
            ("source-multicast", udp("239.255.255.255:1", "192.0.2.1:2")),
            ("source-multicast", udp("[ff02::1]:1", "[2001:db8::2]:2")),
            ("source-reserved", udp("240.0.0.1:1", "192.0.2.1:2")),
            ("source-broadcast", udp("255.255.255.255:1", "192.0.2.1:2")),
            ("source-unspecified", udp("0.1.2.3:1", "192.0.2.1:2")),
            ("source-unspecified", udp("0.0.0.0:1", "192.0.2.1:2")),
            ("source-unspecified", udp("[::]:1", "[2001:db8::2]:2")),
            ("destination-unspecified", udp("10.0.0.1:1", "0.0.0.0:2")),
            ("destination-unspecified", udp("[2001:db8::2]:1", "[::]:2")),
            ("mapped-address", udp("[::ffff:10.0.0.1]:1", "[2001:db8::2]:2")),
            ("mapped-address", udp("[2001:db8::2]:1", "[::ffff:10.0.0.1]:2")),
            ("land", udp("192.0.2.1:7", "192.0.2.1:7")),
            ("sent", udp("192.0.2.1:7", "192.0.2.1:8")),
            ("land", udp("[2001:db8::2]:7", "[2001:db8::2]:7")),
            // DHCP asks from 0.0.0.0, to everybody and from its own port only.
            ("sent", udp("0.0.0.0:68", "255.255.255.255:67")),
            ("source-unspecified", udp("0.0.0.0:68", "192.0.2.1:67")),
            ("source-unspecified", udp("0.0.0.0:67", "255.255.255.255:68")),
            ("source-unspecified", udp("0.0.0.1:68", "255.255.255.255:67")),
            ("sent", Packet::ip("0.0.0.0", "224.0.0.22", 2).payload(&[0x22, 0, 0, 0, 0, 0, 0, 0])),
            ("source-unspecified", Packet::ip("0.0.0.0", "192.0.2.1", 2).payload(&[0x22; 8])),
            // Duplicate address detection, router solicitation, MLD.
            ("sent", solicit(135)),
            ("sent", solicit(133)),
            ("sent", solicit(143)),
            ("sent", solicit(131)),
            ("source-unspecified", solicit(128)),
            ("source-unspecified", solicit(136)),
            ("sent", Packet::arp(1, "10.0.0.1", "10.0.0.2")),
            ("sent", Packet::arp(1, "0.0.0.0", "10.0.0.2")),
            ("sent", Packet::arp(1, "10.0.0.1", "10.0.0.1")),
            ("arp-sender", Packet::arp(1, "224.0.0.1", "10.0.0.2")),
            ("arp-sender", Packet::arp(1, "255.255.255.255", "10.0.0.2")),
            ("arp-sender", Packet::arp(2, "127.0.0.1", "10.0.0.2")),
            ("source-group-mac", udp("10.0.0.1:1", "192.0.2.1:2").macs([1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 1])),
        ];
        let mut dropping = bench("");
        let mut passing = bench("[guard]\nmartians = 'pass'\n");
        for (expected, packet) in cases {
            assert_eq!(end(&mut dropping, &packet), expected, "{packet:?}");
            assert_eq!(end(&mut passing, &packet), "sent", "{packet:?}");
        }
    }

    #[test]
    fn tcp_flags_and_tiny_fragments() {
        let tcp = |flags| Packet::tcp("10.0.0.1:1000", "192.0.2.1:80").flags(flags);
        let cases = [
            ("sent", tcp(SYN)),
            ("sent", tcp(SYN | ACK)),
            ("sent", tcp(SYN | 0xc0)),
            ("sent", tcp(RST)),
            ("sent", tcp(FIN | ACK)),
            ("sent", tcp(FIN | PSH | URG | ACK)),
            ("tcp-null", tcp(0)),
            ("tcp-null", tcp(0xc0)),
            ("tcp-syn-fin", tcp(SYN | FIN | ACK)),
            ("tcp-syn-rst", tcp(SYN | RST)),
            ("tcp-xmas", tcp(FIN | PSH | URG)),
            ("tcp-fin-no-ack", tcp(FIN)),
            ("tiny-fragment", Packet::ip("10.0.0.1", "192.0.2.1", 6).payload(&[0; 24]).fragment(8, false)),
            ("tiny-fragment", Packet::ip("2001:db8::1", "2001:db8::2", 6).payload(&[0; 24]).fragment(8, true)),
            ("sent", Packet::ip("10.0.0.1", "192.0.2.1", 6).payload(&[0; 24]).fragment(16, false)),
            ("sent", Packet::ip("2001:db8::1", "2001:db8::2", 6).payload(&[0; 24]).fragment(16, true)),
            ("sent", Packet::ip("10.0.0.1", "192.0.2.1", 17).payload(&[0; 24]).fragment(8, false)),
        ];
        let mut dropping = bench("");
        let mut passing = bench("[guard]\ntcp_flags = 'pass'\n");
        for (expected, packet) in cases {
            assert_eq!(end(&mut dropping, &packet), expected, "{packet:?}");
            assert_eq!(end(&mut passing, &packet), "sent", "{packet:?}");
        }
    }

    #[test]
    fn blocklists() {
        let mut bench = bench(
            "[guard]\ndrop = ['@bad', '198.51.100.0/24']\ndrop_destination = '2001:db8:bad::/48'\n\
             [set]\nbad = ['203.0.113.7', '2001:db8:f::/48']\n",
        );
        for (expected, packet) in [
            ("blocked-source", Packet::udp("203.0.113.7:1", "10.0.0.1:2")),
            ("sent", Packet::udp("203.0.113.8:1", "10.0.0.1:2")),
            ("sent", Packet::udp("10.0.0.1:1", "203.0.113.7:2")),
            ("blocked-source", Packet::udp("198.51.100.255:1", "10.0.0.1:2")),
            ("blocked-source", Packet::arp(1, "198.51.100.3", "10.0.0.1")),
            ("blocked-source", Packet::udp("[2001:db8:f::1]:1", "[2001:db8::1]:2")),
            ("blocked-destination", Packet::udp("[2001:db8::1]:1", "[2001:db8:bad::1]:2")),
        ] {
            assert_eq!(end(&mut bench, &packet), expected, "{packet:?}");
        }
        let described = bench.blueprint().describe().join("\n");
        assert!(described.contains("guard: drop: 3 prefixes"), "{described}");
    }

    #[test]
    fn rules_in_file_order() {
        let mut bench = bench(
            "[[guard.rule]]\nname = 'our pings'\nfrom = 'inside'\nservice = 'icmp'\naction = 'pass'\n\
             [[guard.rule]]\nname = 'opening'\nflags = 'syn/syn,ack'\nservice = 'tcp/25'\naction = 'drop'\n\
             [[guard.rule]]\nname = 'voice'\ndscp = ['ef', 10]\naction = 'drop'\n\
             [[guard.rule]]\nname = 'pieces'\nfragment = 'later'\naction = 'drop'\n\
             [[guard.rule]]\nname = 'starts'\nfragment = 'first'\nfrom = 'wan'\naction = 'drop'\n\
             [[guard.rule]]\nname = 'options'\noptions = true\naction = 'drop'\n\
             [[guard.rule]]\naction = 'drop'\nservice = 'icmp'\n",
        );
        let tcp = |port: u16, flags| Packet::tcp("10.0.0.1:1000", &format!("192.0.2.1:{port}")).flags(flags);
        let udp = || Packet::udp("10.0.0.1:1", "192.0.2.1:2");
        let udp6 = || Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2");
        for (port, rule, packet) in [
            ("lan", "", Packet::echo_request("10.0.0.1", "192.0.2.1", 1, 1)),
            ("wan", "rule[6]", Packet::echo_request("10.0.0.1", "192.0.2.1", 1, 1)),
            ("lan", "opening", tcp(25, SYN)),
            ("lan", "", tcp(25, SYN | ACK)),
            ("lan", "", tcp(26, SYN)),
            ("lan", "voice", udp().tos(46 << 2 | 1)),
            ("lan", "voice", udp6().tos(46 << 2)),
            ("lan", "voice", udp6().tos(10 << 2).tag(0x8100, 5)),
            ("lan", "", udp().tos(45 << 2)),
            ("lan", "pieces", udp().payload(&[0; 64]).fragment(24, true)),
            ("lan", "", udp().payload(&[0; 64]).fragment(0, true)),
            ("wan", "starts", udp6().payload(&[0; 64]).fragment(0, true)),
            ("lan", "options", udp().ip_options(&[1, 1, 1, 0])),
            ("lan", "options", udp6().extension(60, &[1, 4, 0, 0, 0, 0])),
        ] {
            let end = bench.push(port, &packet.bytes());
            assert_eq!(end.rule(), rule, "{packet:?}");
            assert_eq!(end.reason(), if rule.is_empty() { "sent" } else { "guard.rule" }, "{packet:?}");
        }
        assert_eq!(bench.counter("guard/rule", "our pings"), 1);
        assert_eq!(bench.counter("guard/rule", "voice"), 3);
        let slot = bench.blueprint().rules.all().iter().find(|rule| rule.name == "voice").expect("declared").counters;
        assert!(bench.sheet().counters[slot + rule_counter::BYTES] >= 3 * 42);
        assert!(bench.sheet().counters[slot + rule_counter::LAST_HIT] > 1_700_000_000_000_000_000);
    }

    #[test]
    fn words_of_rules() {
        assert_eq!(Flags::parse("syn, FIN"), Some(Flags { set: 3, mask: 3 }));
        assert_eq!(Flags::parse("syn/syn,ack"), Some(Flags { set: 2, mask: 18 }));
        assert_eq!(Flags::parse("none"), Some(Flags { set: 0, mask: 63 }));
        assert_eq!(Flags::parse("none/ack"), Some(Flags { set: 0, mask: 16 }));
        for wrong in ["", "syn,", "sin", "syn/ack", "syn/", "/", "syn/none"] {
            assert_eq!(Flags::parse(wrong), None, "{wrong:?}");
        }
        let codes = ["ef", "cs1", "af41", "af13", "le", "be", "va"].map(|name| Dscp::parse(name).map(|dscp| dscp.0));
        assert_eq!(codes, [46, 8, 34, 14, 1, 0, 44].map(Some));
        for wrong in ["cs8", "af51", "af40", "af4", "ef1", "é1"] {
            assert_eq!(Dscp::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn mistakes_are_placed() {
        use crate::config::Config;
        use crate::config::source::Source;
        let text = format!(
            "{}{CROSS}[guard]\ndrop = ['@nosuch', '10.0.0.300']\n\
             [[guard.rule]]\nfrom = 'insid'\naction = 'drop'\n\
             [[guard.rule]]\nflags = 'syn'\nservice = 'udp/53'\naction = 'drop'\n\
             [[guard.rule]]\nflags = 'syn'\nfragment = 'later'\naction = 'drop'\n",
            crate::testkit::bench::TWO_PORTS
        );
        let config = Config::parse(&Source::new("t.toml", &text)).unwrap_or_else(|list| panic!("{list:?}"));
        let mistakes = crate::stage::pipeline::compile(&config, 1, &[]).err().expect("mistakes");
        let mistakes: Vec<String> = mistakes.iter().map(|mistake| mistake.to_string()).collect();
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        assert!(mistakes.iter().any(|m| m.contains("guard.rule[0].from") && m.contains("\"inside\"")), "{mistakes:#?}");
        let (_, mistakes) =
            Config::read(&Source::new("t.toml", &text.replace("'syn'", "'sin'").replace("'udp/53'", "[]\ndscp = 64")));
        assert!(mistakes.iter().any(|m| m.to_string().contains("guard.rule[1].dscp")), "{mistakes:#?}");
    }
}
