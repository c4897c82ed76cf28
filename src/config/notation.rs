//! A packet in one line, as people write it: `tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan`.
//!
//! Owns the words and what may stand together, and reads and prints them; knows no frame, and no names but those of protocols
//! and ICMP types. What is left out has a usual value where the line says one packet; where it says a range of them (a prefix,
//! a set, a range of ports), it may be anything.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::names::{Blocks, Detail, PROTOCOLS, Service, WITH_PORTS, Wrong};
use super::reader::{FromToml, Item, Reader};
use super::source::near_miss;
use crate::wire::{protocol, tcp};

/// The line, for messages.
pub const SYNTAX: &str = "PROTOCOL SOURCE[:PORT] > DESTINATION[:PORT] [WORDS] in PORT";

/// A byte of the text. All are alike: two notations are the same if they mean the same.
#[derive(Clone, Copy, Debug, Default, Eq)]
pub struct Offset(pub usize);

impl PartialEq for Offset {
    fn eq(&self, _: &Offset) -> bool {
        true
    }
}

/// A packet, or a range of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notation {
    /// IANA protocol number; none for any.
    pub protocol: Option<u8>,
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes to.
    pub destination: Endpoint,
    /// `wire::tcp::FIN` to `CWR`.
    pub flags: Option<u8>,
    /// TCP sequence number.
    pub sequence: Option<u32>,
    /// TCP acknowledgment number.
    pub acknowledgment: Option<u32>,
    /// TCP window.
    pub window: Option<u16>,
    /// Bytes behind the transport header.
    pub payload: Option<u16>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// ICMP type, and code if given.
    pub icmp: Option<(u8, Option<u8>)>,
    /// Identifier of an echo request or reply.
    pub id: Option<u16>,
    /// A fragment that continues a packet.
    pub fragment: bool,
    /// Its outer VLAN tag.
    pub vlan: Option<Tag>,
    /// The port it arrives on; a zone in a range.
    pub from: String,
    /// Where `from` stands.
    pub from_at: Offset,
}

/// An outer VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// None.
    Untagged,
    /// Of this id.
    Id(u16),
}

/// One side of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// An address, a prefix, a range of addresses, `@set` or `any`.
    pub addresses: String,
    /// The address, if it is one.
    pub address: Option<IpAddr>,
    /// Ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// Where it stands.
    pub at: Offset,
}

/// What is wrong with a text, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Byte of the text.
    pub at: usize,
    /// What is wrong, and what was expected.
    pub message: String,
    /// What may have been meant.
    pub help: Option<String>,
}

impl Error {
    /// An error at a byte of the text.
    pub fn new(at: usize, message: impl Into<String>) -> Error {
        Error { at, message: message.into(), help: None }
    }

    fn wrong(at: usize, wrong: Wrong) -> Error {
        Error { at, message: wrong.message, help: wrong.help }
    }

    fn or<'a>(mut self, word: &str, known: impl Iterator<Item = &'a str>) -> Error {
        self.help = near_miss(word, known).map(|near| format!("did you mean {near:?}?"));
        self
    }

    /// The text, a caret under the place, and the message: what the command line prints.
    pub fn shown(&self, text: &str) -> String {
        let before = text.get(..self.at).unwrap_or(text).chars().count();
        let help = self.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
        format!("{}{help}\n  {text}\n  {}^", self.message, " ".repeat(before))
    }
}

const FLAGS: [(&str, u8); 8] = [
    ("fin", tcp::FIN),
    ("syn", tcp::SYN),
    ("rst", tcp::RST),
    ("psh", tcp::PSH),
    ("ack", tcp::ACK),
    ("urg", tcp::URG),
    ("ece", tcp::ECE),
    ("cwr", tcp::CWR),
];
/// The words that are not flags.
const WORDS: [&str; 10] = ["seq", "win", "len", "ttl", "id", "fragment", "vlan", "untagged", "in", "none"];

impl Notation {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Notation, Error> {
        let mut words = Words { rest: split(text).into_iter().peekable(), end: text.len() };
        let (at, name) = words.next("a protocol such as \"tcp\"")?;
        let protocol = protocol_number(at, name)?;
        let source = endpoint(words.next("where the packet comes from, such as \"10.0.0.5:40000\"")?)?;
        let (at, arrow) = words.next("\">\" and where the packet goes to")?;
        if arrow != ">" {
            return Err(Error::new(at, format!("expected \">\" and where the packet goes to, found {arrow:?}")));
        }
        let destination = endpoint(words.next("where the packet goes to, such as \"192.0.2.7:443\"")?)?;
        let mut packet = Notation {
            protocol,
            source,
            destination,
            flags: None,
            sequence: None,
            acknowledgment: None,
            window: None,
            payload: None,
            ttl: None,
            icmp: None,
            id: None,
            fragment: false,
            vlan: None,
            from: String::new(),
            from_at: Offset(text.len()),
        };
        let mut exact = None;
        while let Some((at, word)) = words.rest.next() {
            let is_exact = packet.word(at, word, &mut words)?;
            exact = exact.or(is_exact.then_some(at));
        }
        if packet.from.is_empty() {
            return Err(Error::new(text.len(), "expected \"in\" and the port the packet arrives on, found the end"));
        }
        packet.check()?;
        match exact {
            Some(at) if !packet.is_single() => {
                Err(Error::new(at, "only one packet can be said so closely, and this is a range of packets"))
            }
            _ => Ok(packet),
        }
    }

    /// Takes in a word; true if it says what only one packet has.
    fn word(&mut self, at: usize, word: &str, words: &mut Words<'_>) -> Result<bool, Error> {
        let is_tcp = self.protocol == Some(protocol::TCP);
        let tcp_only = |what: &str| match is_tcp {
            true => Ok(()),
            false => Err(Error::new(at, format!("{what:?} is of TCP only"))),
        };
        match word {
            "in" => {
                let (at, name) = words.next("the port the packet arrives on")?;
                if !self.from.is_empty() {
                    return Err(Error::new(at, "a packet arrives on one port"));
                }
                (self.from, self.from_at) = (name.to_owned(), Offset(at));
                return Ok(false);
            }
            "fragment" => {
                self.fragment = true;
                return Ok(false);
            }
            "untagged" => {
                self.vlan = Some(Tag::Untagged);
                return Ok(false);
            }
            "vlan" => {
                let id = words.number("a VLAN id from 0 to 4095", 4095)?;
                self.vlan = Some(Tag::Id(id as u16));
                return Ok(false);
            }
            "seq" => {
                tcp_only("seq")?;
                self.sequence = Some(words.number("a sequence number", u32::MAX)?);
            }
            "ack" if words.has_number() => {
                tcp_only("ack")?;
                self.acknowledgment = Some(words.number("an acknowledgment number", u32::MAX)?);
                self.flags = Some(self.flags.unwrap_or(0) | tcp::ACK);
            }
            "win" => {
                tcp_only("win")?;
                self.window = Some(words.number("a window from 0 to 65535", 65535)? as u16);
            }
            "len" => self.payload = Some(words.number("bytes of payload from 0 to 9000", 9000)? as u16),
            "ttl" => self.ttl = Some(words.number("a TTL from 0 to 255", 255)? as u8),
            "id" => self.id = Some(words.number("an echo identifier from 0 to 65535", 65535)? as u16),
            "none" if is_tcp => self.flags = Some(self.flags.unwrap_or(0)),
            _ => {
                if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == word) {
                    tcp_only(word)?;
                    self.flags = Some(self.flags.unwrap_or(0) | flag);
                    return Ok(true);
                }
                let family = match self.protocol {
                    Some(protocol::ICMP) => "icmp",
                    Some(protocol::ICMPV6) => "icmpv6",
                    _ => {
                        let known = FLAGS.iter().map(|(name, _)| *name).chain(WORDS);
                        return Err(Error::new(at, format!("{word:?} says nothing here")).or(word, known));
                    }
                };
                let known = WORDS.into_iter();
                match Service::parse(&format!("{family}/{word}")) {
                    Ok(Service { detail: Detail::Icmp(kind, code), .. }) => self.icmp = Some((kind, code)),
                    Ok(_) => return Err(Error::new(at, format!("{word:?} is no ICMP type"))),
                    Err(wrong) if near_miss(word, WORDS.into_iter()).is_none() => return Err(Error::wrong(at, wrong)),
                    Err(_) => return Err(Error::new(at, format!("{word:?} says nothing here")).or(word, known)),
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What cannot stand together.
    fn check(&self) -> Result<(), Error> {
        let (source, destination) = (&self.source, &self.destination);
        if let (Some(from), Some(to)) = (source.family(), destination.family())
            && from != to
        {
            return Err(Error::new(destination.at.0, "source and destination are of different address families"));
        }
        let family = source.family().or(destination.family());
        match (self.protocol, family) {
            (Some(protocol::ICMP), Some(true)) => {
                return Err(Error::new(0, "icmp goes with IPv4; with IPv6 it is icmp6"));
            }
            (Some(protocol::ICMPV6), Some(false)) => {
                return Err(Error::new(0, "icmp6 goes with IPv6; with IPv4 it is icmp"));
            }
            _ => {}
        }
        for side in [source, destination] {
            let none = match self.protocol {
                _ if side.ports.is_none() => continue,
                Some(number) if WITH_PORTS.contains(&number) && !self.fragment => continue,
                Some(number) if WITH_PORTS.contains(&number) => {
                    "a fragment that continues a packet shows no ports".into()
                }
                Some(number) => format!("{} has no ports", protocol_name(number)),
                None => "ports need a protocol that has them, such as \"tcp\"".to_owned(),
            };
            return Err(Error::new(side.at.0, none));
        }
        if self.fragment && (self.icmp.is_some() || self.flags.is_some()) {
            return Err(Error::new(self.source.at.0, "a fragment that continues a packet shows no flags and no type"));
        }
        let echo = matches!(self.icmp_or_echo(), Some((0 | 8 | 128 | 129, _)));
        if self.id.is_some() && !echo {
            return Err(Error::new(self.source.at.0, "only echo requests and replies have an \"id\""));
        }
        Ok(())
    }

    /// Its ICMP type and code, an echo request unless it says so; none of other protocols.
    pub fn icmp_or_echo(&self) -> Option<(u8, u8)> {
        match self.protocol {
            Some(protocol::ICMP) => Some(self.icmp.map_or((8, 0), |(kind, code)| (kind, code.unwrap_or(0)))),
            Some(protocol::ICMPV6) => Some(self.icmp.map_or((128, 0), |(kind, code)| (kind, code.unwrap_or(0)))),
            _ => None,
        }
    }

    /// True if it is one packet and not a range of them: both addresses, the protocol, and the destination port are given.
    pub fn is_single(&self) -> bool {
        self.lack().is_none()
    }

    /// What it lacks to be one packet: where, and what should stand there.
    pub fn lack(&self) -> Option<Error> {
        let ports = self.protocol.is_some_and(|number| WITH_PORTS.contains(&number)) && !self.fragment;
        let one = |ports: &RangeInclusive<u16>| ports.start() == ports.end();
        let expected = |at: Offset, what: &str| Some(Error::new(at.0, format!("expected {what}, to know one packet")));
        let (source, destination) = (&self.source, &self.destination);
        match self.protocol {
            None => expected(Offset(0), "a protocol such as \"tcp\""),
            _ if source.address.is_none() => expected(source.at, "one source address"),
            _ if !source.ports.as_ref().is_none_or(one) => expected(source.at, "one source port, or none"),
            _ if destination.address.is_none() => expected(destination.at, "one destination address"),
            _ if ports && !destination.ports.as_ref().is_some_and(one) => {
                expected(destination.at, "one destination port, as in \"192.0.2.7:443\"")
            }
            _ => None,
        }
    }
}

impl Endpoint {
    /// True for IPv6, false for IPv4; none if it may be both.
    fn family(&self) -> Option<bool> {
        let mut blocks = Blocks::default();
        blocks.add(&self.addresses).ok()?;
        Some(blocks.v4.is_empty())
    }
}

/// The words of a text.
struct Words<'a> {
    rest: std::iter::Peekable<std::vec::IntoIter<(usize, &'a str)>>,
    end: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self, expected: &str) -> Result<(usize, &'a str), Error> {
        self.rest.next().ok_or_else(|| Error::new(self.end, format!("expected {expected}, found the end")))
    }

    fn has_number(&mut self) -> bool {
        self.rest.peek().is_some_and(|(_, word)| word.bytes().all(|byte| byte.is_ascii_digit()))
    }

    fn number(&mut self, expected: &str, most: u32) -> Result<u32, Error> {
        let (at, word) = self.next(expected)?;
        let number = word.parse().ok().filter(|number| *number <= most);
        number.ok_or_else(|| Error::new(at, format!("expected {expected}, found {word:?}")))
    }
}

/// Words and where they begin; ">" is one wherever it stands.
fn split(text: &str) -> Vec<(usize, &str)> {
    let (mut words, mut start) = (Vec::new(), None);
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        if c.is_whitespace() || c == '>' {
            words.extend(start.take().map(|start| (start, &text[start..at])));
            if c == '>' {
                words.push((at, ">"));
            }
        } else {
            start = start.or(Some(at));
        }
    }
    words
}

/// A protocol's number by its name; none for any.
fn protocol_number(at: usize, name: &str) -> Result<Option<u8>, Error> {
    if name == "any" {
        return Ok(None);
    }
    if let Some((_, number)) = PROTOCOLS.iter().chain(&[("icmp6", protocol::ICMPV6)]).find(|(known, _)| *known == name)
    {
        return Ok(Some(*number));
    }
    if let Some(number) = name.strip_prefix("proto/").and_then(|number| number.parse().ok()) {
        return Ok(Some(number));
    }
    let known = PROTOCOLS.iter().map(|(name, _)| *name).chain(["icmp6", "any"]);
    Err(Error::new(at, format!("expected a protocol such as \"tcp\" or \"proto/89\", found {name:?}")).or(name, known))
}

/// How a protocol is written.
pub fn protocol_name(number: u8) -> String {
    match PROTOCOLS.iter().find(|(_, known)| *known == number) {
        Some((_, protocol::ICMPV6)) => "icmp6".into(),
        Some((name, _)) => (*name).into(),
        None => format!("proto/{number}"),
    }
}

/// Reads an address with a port or without, `[...]` around an IPv6 address that has one.
fn endpoint((at, text): (usize, &str)) -> Result<Endpoint, Error> {
    let (addresses, rest, inner) = match text.strip_prefix('[') {
        Some(inside) => {
            let Some((addresses, rest)) = inside.split_once(']') else {
                return Err(Error::new(at, format!("the bracket in {text:?} is not closed")));
            };
            (addresses, rest, at + 1)
        }
        // More than one colon: an IPv6 address, which has a port only behind a bracket.
        None => match text.find(':').filter(|first| !text[first + 1..].contains(':')) {
            Some(colon) => (&text[..colon], &text[colon..], at),
            None => (text, "", at),
        },
    };
    let ports_at = at + text.len() - rest.len();
    let ports = match rest.strip_prefix(':') {
        Some(ports) => Some(port_range(ports_at + 1, ports)?),
        None if rest.is_empty() => None,
        None => {
            return Err(Error::new(ports_at, format!("expected \":\" and a port behind the bracket, found {rest:?}")));
        }
    };
    let named = addresses == "any" || addresses.starts_with('@');
    if !named {
        Blocks::default().add(addresses).map_err(|wrong| Error::wrong(inner, wrong))?;
    }
    let address = addresses.parse().ok();
    Ok(Endpoint { addresses: addresses.to_owned(), address, ports, at: Offset(inner) })
}

fn port_range(at: usize, text: &str) -> Result<RangeInclusive<u16>, Error> {
    if text == "any" {
        return Ok(0..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        (Ok(first), Ok(last)) => {
            let (first, last): (u16, u16) = (first, last);
            let help = Some(format!("did you mean \"{last}-{first}\"?"));
            Err(Error { at, message: format!("the range of ports {text:?} ends before it begins"), help })
        }
        _ => {
            Err(Error::new(at, format!("expected a port from 0 to 65535, a range of them or \"any\", found {text:?}")))
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ports {
            Some(_) if self.addresses.contains(':') => write!(f, "[{}]", self.addresses)?,
            _ => f.write_str(&self.addresses)?,
        }
        match &self.ports {
            None => Ok(()),
            Some(all) if *all == (0..=u16::MAX) => f.write_str(":any"),
            Some(one) if one.start() == one.end() => write!(f, ":{}", one.start()),
            Some(some) => write!(f, ":{}-{}", some.start(), some.end()),
        }
    }
}

impl fmt::Display for Notation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(number) => f.write_str(&protocol_name(number))?,
            None => f.write_str("any")?,
        }
        write!(f, " {} > {}", self.source, self.destination)?;
        if let Some(flags) = self.flags {
            // "ack" with its number behind would be read as one word: flags come first, and the number says the flag too.
            let shown = if self.acknowledgment.is_some() { flags & !tcp::ACK } else { flags };
            for (name, _) in FLAGS.iter().filter(|(_, flag)| shown & flag != 0) {
                write!(f, " {name}")?;
            }
            if flags == 0 {
                f.write_str(" none")?;
            }
        }
        if let Some((kind, code)) = self.icmp {
            write!(f, " {kind}")?;
            if let Some(code) = code {
                write!(f, "/{code}")?;
            }
        }
        let numbers = [
            ("seq", self.sequence),
            ("ack", self.acknowledgment),
            ("win", self.window.map(u32::from)),
            ("len", self.payload.map(u32::from)),
            ("ttl", self.ttl.map(u32::from)),
            ("id", self.id.map(u32::from)),
        ];
        for (word, number) in numbers {
            if let Some(number) = number {
                write!(f, " {word} {number}")?;
            }
        }
        if self.fragment {
            f.write_str(" fragment")?;
        }
        match self.vlan {
            Some(Tag::Id(id)) => write!(f, " vlan {id}")?,
            Some(Tag::Untagged) => f.write_str(" untagged")?,
            None => {}
        }
        write!(f, " in {}", self.from)
    }
}

impl FromToml for Notation {
    const EXPECTED: &'static str = "a packet such as \"tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan\"";

    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(text) = item.as_str() else {
            reader.expected(&item, Self::EXPECTED);
            return None;
        };
        match Notation::parse(text) {
            Ok(packet) => Some(packet),
            Err(Error { at, message, help }) => {
                // The place within the text, if it stands in the file as it is.
                let span = item.span();
                let raw = reader.source.text().get(span.start + 1..).is_some_and(|file| file.starts_with(text));
                let place = reader.source.place(if raw { span.start + 1 + at } else { span.start });
                match help {
                    Some(help) => reader.mistakes.with_help(&place, &item.path, message, help),
                    None => reader.mistakes.at(&place, &item.path, message),
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn good(text: &str) -> Notation {
        Notation::parse(text).unwrap_or_else(|error| panic!("{}", error.shown(text)))
    }

    #[test]
    fn packets() {
        let packet = good("tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan");
        assert_eq!((packet.protocol, packet.flags, packet.from.as_str()), (Some(6), Some(tcp::SYN), "lan"));
        assert_eq!(packet.source.address, Some("10.0.0.5".parse().expect("address")));
        assert_eq!((packet.source.ports, packet.destination.ports), (Some(40000..=40000), Some(443..=443)));
        let packet = good("tcp [2001:db8::1]:5>[2001:db8::2]:443 fin ack 7 seq 9 win 0 len 10 ttl 3 vlan 5 in wan");
        assert_eq!((packet.flags, packet.acknowledgment), (Some(tcp::FIN | tcp::ACK), Some(7)));
        assert_eq!((packet.sequence, packet.window, packet.payload, packet.ttl), (Some(9), Some(0), Some(10), Some(3)));
        assert_eq!(packet.vlan, Some(Tag::Id(5)));
        assert_eq!(good("icmp 10.0.0.5 > 192.0.2.7 in lan").icmp_or_echo(), Some((8, 0)));
        assert_eq!(good("icmp 10.0.0.5 > 192.0.2.7 destination-unreachable/4 in lan").icmp_or_echo(), Some((3, 4)));
        assert_eq!(good("icmp6 ::1 > 2001:db8::2 echo-reply id 7 in lan").icmp_or_echo(), Some((129, 0)));
        assert_eq!(good("proto/89 10.0.0.5 > 224.0.0.5 in lan").protocol, Some(89));
        assert!(good("udp 10.0.0.5 > 192.0.2.7 fragment in lan").is_single());
        assert!(good("udp 10.0.0.5 > 192.0.2.7:53 in lan").is_single(), "a source port has a usual value");
    }

    #[test]
    fn ranges() {
        for text in [
            "any any > @office in outside",
            "tcp any > @office:any in outside",
            "tcp 10.0.0.0/8:1024-65535 > 192.0.2.7:443 in lan",
            "tcp 10.0.0.1-10.0.0.9 > 192.0.2.7:443 untagged in lan",
            "udp 10.0.0.5 > 192.0.2.7 in lan",
            "icmp6 any > 2001:db8::/32 echo in lan",
            "tcp any > any fragment in lan",
        ] {
            let range = good(text);
            assert!(!range.is_single(), "{text}");
            assert_eq!(range.to_string().replace(" 128 ", " echo "), text);
        }
        let lack = |text| good(text).lack().expect("a range").shown(text);
        let shown = lack("tcp 10.0.0.5 > 192.0.2.7 in lan");
        assert!(shown.starts_with("expected one destination port, as in \"192.0.2.7:443\""), "{shown}");
    }

    #[test]
    fn mistakes_say_what_and_where() {
        for (text, at, message, help) in [
            ("", 0, "expected a protocol such as \"tcp\", found the end", None),
            ("tpc 10.0.0.5:1 > 192.0.2.7:2 in lan", 0, "expected a protocol", Some("\"tcp\"")),
            ("tcp 10.0.0.5:1", 14, "expected \">\" and where the packet goes to, found the end", None),
            ("tcp 10.0.0.5:1 192.0.2.7:2 in lan", 15, "expected \">\"", None),
            ("tcp 10.0.0.300:1 > 192.0.2.7:2 in lan", 4, "expected an address", None),
            ("tcp 10.0.0.1/8 > 192.0.2.7:2 in lan", 4, "has bits set behind its prefix", Some("\"10.0.0.0/8\"")),
            ("tcp 10.0.0.5:70000 > 192.0.2.7:2 in lan", 13, "expected a port from 0 to 65535", None),
            ("tcp 10.0.0.5:9-5 > 192.0.2.7:2 in lan", 13, "ends before it begins", Some("\"5-9\"")),
            ("tcp [::1 > [::2]:5 in lan", 4, "is not closed", None),
            ("tcp [::1]5 > [::2]:5 in lan", 9, "expected \":\" and a port", None),
            ("tcp 10.0.0.5:1 > [::2]:5 in lan", 18, "different address families", None),
            ("tcp 10.0.0.5:1 > 192.0.2.7:2 syn", 32, "expected \"in\" and the port the packet arrives on", None),
            ("tcp 10.0.0.5:1 > 192.0.2.7:2 in", 31, "expected the port the packet arrives on, found the end", None),
            ("tcp 10.0.0.5:1 > 192.0.2.7:2 in lan in wan", 39, "arrives on one port", None),
            ("tcp 10.0.0.5:1 > 192.0.2.7:2 sin in lan", 29, "\"sin\" says nothing here", Some("did you mean")),
            ("udp 10.0.0.5:1 > 192.0.2.7:2 syn in lan", 29, "\"syn\" is of TCP only", None),
            ("gre 10.0.0.5:1 > 192.0.2.7 in lan", 4, "gre has no ports", None),
            ("any 10.0.0.5:1 > 192.0.2.7 in lan", 4, "ports need a protocol", None),
            ("udp 10.0.0.5:1 > 192.0.2.7:2 fragment in lan", 4, "shows no ports", None),
            ("icmp 10.0.0.5 > 192.0.2.7 ecko in lan", 26, "no ICMP type", Some("icmp/echo")),
            ("icmp ::1 > ::2 in lan", 0, "with IPv6 it is icmp6", None),
            ("tcp 10.0.0.5:1 > 192.0.2.7:2 vlan 5000 in lan", 34, "expected a VLAN id from 0 to 4095", None),
            ("tcp 10.0.0.0/8 > 192.0.2.7:2 seq 1 in lan", 29, "this is a range of packets", None),
            ("icmp 10.0.0.5 > 192.0.2.7 3 id 1 in lan", 5, "only echo requests and replies", None),
        ] {
            let error = Notation::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error:?}");
            assert!(error.message.contains(message), "{text}: {error:?}");
            let given = error.help.unwrap_or_default();
            assert!(help.map_or(given.is_empty(), |help| given.contains(help)), "{text}: {given}");
        }
        let text = "tcp 10.0.0.5:1 > 192.0.2.7:x in lan";
        let shown = Notation::parse(text).expect_err("a mistake").shown(text);
        assert!(shown.ends_with(&format!("  {text}\n  {}^", " ".repeat(27))), "{shown}");
    }

    fn endpoint_of(family: bool, ports: bool) -> impl Strategy<Value = Endpoint> {
        let v4 = prop_oneof![
            any::<u32>().prop_map(|a| std::net::Ipv4Addr::from(a).to_string()),
            (any::<u32>(), 0u8..=32)
                .prop_map(|(a, len)| { ipnet::Ipv4Net::new(a.into(), len).expect("a length").trunc().to_string() }),
            Just("any".to_owned()),
            Just("@office".to_owned()),
        ];
        let v6 = prop_oneof![
            any::<u128>().prop_map(|a| std::net::Ipv6Addr::from(a).to_string()),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(a, len)| { ipnet::Ipv6Net::new(a.into(), len).expect("a length").trunc().to_string() }),
        ];
        let range = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| a.min(b)..=a.max(b));
        let port = prop_oneof![any::<u16>().prop_map(|port| port..=port), range, Just(0..=u16::MAX)];
        let addresses = if family { v6.boxed() } else { v4.boxed() };
        (addresses, prop::option::of(port)).prop_map(move |(addresses, some)| Endpoint {
            address: addresses.parse().ok(),
            addresses,
            ports: some.filter(|_| ports),
            at: Offset(0),
        })
    }

    prop_compose! {
        fn notation()(protocol in prop_oneof![Just(None), Just(Some(6)), Just(Some(17)), Just(Some(58)), any::<u8>().prop_map(Some)],
                      v6 in any::<bool>())
                     (protocol in Just(protocol),
                      source in endpoint_of(v6, protocol.is_some_and(|p| WITH_PORTS.contains(&p))),
                      destination in endpoint_of(v6, protocol.is_some_and(|p| WITH_PORTS.contains(&p))),
                      flags in prop::option::of(any::<u8>()), numbers in prop::option::of((any::<u32>(), any::<u32>(), any::<u16>())),
                      icmp in prop::option::of((any::<u8>(), prop::option::of(any::<u8>()))),
                      payload in prop::option::of(0u16..9000), ttl in prop::option::of(any::<u8>()),
                      vlan in prop_oneof![Just(None), Just(Some(Tag::Untagged)), (0u16..4096).prop_map(|id| Some(Tag::Id(id)))],
                      fragment in any::<bool>(), from in "[a-z][a-z0-9.-]{0,9}") -> Notation {
            let mut packet = Notation {
                protocol, source, destination, flags: None, sequence: None, acknowledgment: None, window: None,
                payload, ttl, icmp: None, id: None, fragment: false, vlan, from, from_at: Offset(0),
            };
            match protocol {
                Some(6) => {
                    packet.flags = flags;
                    if let (Some(flags), Some((sequence, acknowledgment, window))) = (flags, numbers) {
                        packet.flags = Some(flags | tcp::ACK);
                        (packet.sequence, packet.window) = (Some(sequence), Some(window));
                        packet.acknowledgment = Some(acknowledgment);
                    }
                }
                Some(1 | 58) => packet.icmp = icmp,
                _ => {
                    packet.fragment = fragment;
                    if fragment {
                        (packet.source.ports, packet.destination.ports) = (None, None);
                    }
                }
            }
            if !packet.is_single() {
                (packet.flags, packet.sequence, packet.acknowledgment) = (None, None, None);
                (packet.window, packet.payload, packet.ttl) = (None, None, None);
            }
            packet
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(packet in notation()) {
            let family = packet.source.family().or(packet.destination.family());
            prop_assume!(!matches!((packet.protocol, family), (Some(1), Some(true)) | (Some(58), Some(false))));
            let text = packet.to_string();
            prop_assert_eq!(Notation::parse(&text), Ok(packet), "{}", text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}", tail in "[a-z0-9.:/>\\[\\]@ -]{0,60}") {
            for text in [text, format!("tcp {tail}"), format!("icmp 10.0.0.1 > 10.0.0.2 {tail}")] {
                if let Err(error) = Notation::parse(&text) {
                    prop_assert!(error.at <= text.len() && !error.message.is_empty());
                    prop_assert!(error.shown(&text).contains('^'));
                }
            }
        }
    }
}
