//! The acl against the plain reading of its rules, and from TOML to counters.

use proptest::prelude::*;

use super::compile::{Action as Does, compile};
use super::*;
use crate::config::machine::LogFormat;
use crate::config::names::Service;
use crate::config::source::Source;
use crate::control::log::Scribe;
use crate::packet::SELF_PORT;
use crate::packet::decode::decode;
use crate::packet::meta::flag;
use crate::stage::classes::{Prefix, prefix_mask};
use crate::stats::Account;
use crate::testkit::bench::{Bench, End, TWO_PORTS};
use crate::testkit::packets::{Packet, batch, give_back};

fn eal() -> Result<&'static Eal, String> {
    Eal::offline(512).map_err(|error| error.to_string())
}

const PORTS: usize = 3;

/// Few distinct addresses, so that rules overlap and packets meet them.
fn v4() -> impl Strategy<Value = u128> {
    (prop::sample::select(vec![10u32, 192]), 0u32..3, 0u32..4, prop_oneof![Just(0u32), Just(1), Just(255), 0u32..256])
        .prop_map(|(a, b, c, d)| u128::from(a << 24 | b << 16 | c << 8 | d) << 96)
}

fn v6() -> impl Strategy<Value = u128> {
    (0u128..2, 0u128..3, 0u128..3, 0u128..3, 0u128..3)
        .prop_map(|(a, b, c, d, e)| 0x2001 << 112 | a << 97 | b << 80 | c << 64 | d << 32 | e)
}

fn prefixes(
    address: impl Strategy<Value = u128> + Clone + 'static,
    shortest: u8,
    longest: u8,
) -> impl Strategy<Value = Vec<Prefix>> {
    let prefix = (address, shortest..=longest).prop_map(|(bits, len)| (bits & prefix_mask(len), len)).boxed();
    prop_oneof![
        3 => Just(vec![(0, 0)]),
        4 => prop::collection::vec(prefix.clone(), 1..3),
        1 => Just(Vec::new()),
        // Long enough to become a class.
        2 => prop::collection::vec(prefix, 65..80),
    ]
}

fn addresses() -> impl Strategy<Value = Addresses> {
    (prefixes(v4().boxed(), 6, 32), prefixes(v6().boxed(), 14, 128)).prop_map(|(v4, v6)| Addresses { v4, v6 })
}

fn number() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0u16),
        Just(1),
        Just(79),
        Just(80),
        Just(81),
        Just(443),
        Just(1024),
        Just(65534),
        Just(65535),
        any::<u16>()
    ]
}

fn range() -> impl Strategy<Value = RangeInclusive<u16>> {
    prop_oneof![
        number().prop_map(|n| n..=n),
        (number(), number()).prop_map(|(a, b)| a.min(b)..=a.max(b)),
        Just(0..=65535)
    ]
}

const PROTOCOLS: [u8; 7] = [6, 17, 1, 58, 47, 132, 0];

fn service() -> impl Strategy<Value = Service> {
    prop_oneof![
        prop::sample::select(PROTOCOLS.to_vec()).prop_map(|proto| Service { proto, detail: Detail::Any }),
        (prop::sample::select(vec![6u8, 17, 132]), range())
            .prop_map(|(proto, range)| Service { proto, detail: Detail::Ports(range) }),
        (prop::sample::select(vec![1u8, 58]), prop::sample::select(vec![0u8, 8, 128]), prop::option::of(0u8..3))
            .prop_map(|(proto, kind, code)| Service { proto, detail: Detail::Icmp(kind, code) }),
    ]
}

fn some_ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        3 => Just(u8::MAX),
        2 => 1u8..16,
    ]
    .prop_map(|mask| {
        let mut ports = if mask == u8::MAX { Ports::all(PORTS) } else { Ports::default() };
        (0..PORTS as u8).filter(|port| mask >> port & 1 != 0).for_each(|port| ports.insert(port));
        if mask >> PORTS & 1 != 0 {
            ports.insert(SELF_PORT);
        }
        if mask == u8::MAX {
            ports.insert(NO_PORT);
        }
        ports
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let vlan = prop_oneof![Just(UNTAGGED..=UNTAGGED), Just(0..=4095), Just(100..=199), Just(7..=7)];
    (
        (some_ports(), some_ports()),
        (addresses(), addresses()),
        prop_oneof![1 => Just(Vec::new()), 3 => prop::collection::vec(service(), 1..3)],
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(range(), 1..3)],
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(vlan, 1..3)],
        prop_oneof![3 => Just(Does::Allow), 2 => Just(Does::Deny), 1 => Just(Does::Reject), 1 => Just(Does::Count)],
    )
        .prop_map(|((from, to), (source, destination), services, source_ports, vlans, action)| {
            let with_ports = |service: &Service| {
                PORT_PROTOCOLS.contains(&service.proto) && !matches!(service.detail, Detail::Icmp(..))
            };
            let ports_can_match = !services.is_empty() && services.iter().all(with_ports);
            let source_ports = if ports_can_match { source_ports } else { Vec::new() };
            Rule { from, to, source, destination, services, source_ports, vlans, action }
        })
}

/// Packets as decode makes them, and some as it never would.
fn packet() -> impl Strategy<Value = (Meta, u8)> {
    let flags = prop_oneof![
        6 => Just(flag::L4 | flag::PORTS),
        1 => Just(flag::LATER_FRAGMENT),
        1 => Just(flag::FIRST_FRAGMENT | flag::L4 | flag::PORTS),
        1 => Just(flag::LATER_FRAGMENT | flag::L4 | flag::PORTS),
        1 => Just(flag::LATER_FRAGMENT | flag::BORROWED | flag::PORTS),
        1 => Just(0u16),
        1 => any::<u16>(),
    ];
    (
        prop_oneof![8 => prop::bool::ANY.prop_map(|v4| if v4 { flag::IPV4 } else { flag::IPV6 }), 1 => Just(flag::IPV4 | flag::IPV6)],
        (flags, prop::bool::ANY),
        ((v4(), v4()), (v6(), v6())),
        (number(), number()),
        prop_oneof![6 => prop::sample::select(PROTOCOLS.to_vec()), 1 => any::<u8>()],
        (prop::sample::select(vec![0u8, 8, 128, 3]), 0u8..4),
        prop_oneof![Just(7u16), Just(100), Just(199), Just(200), any::<u16>()],
        (prop_oneof![8 => 0u8..PORTS as u8, 2 => Just(SELF_PORT), 1 => any::<u8>()], prop_oneof![8 => 0u8..PORTS as u8, 2 => Just(SELF_PORT), 1 => Just(NO_PORT)]),
    )
        .prop_map(|(family, (flags, tagged), ((s4, d4), (s6, d6)), (sport, dport), proto, detail, vlan, (port, out))| {
            let v4 = family & flag::IPV4 != 0;
            let flags = flags & !(flag::IPV4 | flag::IPV6 | flag::VLAN) | family | if tagged { flag::VLAN } else { 0 };
            let meta = Meta {
                src: if v4 { s4 } else { s6 }.to_be_bytes(),
                dst: if v4 { d4 } else { d6 }.to_be_bytes(),
                detail: [detail.0, detail.1],
                sport,
                dport,
                proto,
                vlan,
                flags,
                port,
                ..Meta::UNKNOWN
            };
            (meta, out)
        })
}

/// Moves a packet into what a rule asks for, or just beside it.
fn aim(meta: &mut Meta, out: &mut u8, rule: &Rule, pick: u64) {
    let family_v4 = meta.has(flag::IPV4);
    let of = |addresses: &Addresses| if family_v4 { addresses.v4.clone() } else { addresses.v6.clone() };
    for (into, list, shift) in [(&mut meta.src, of(&rule.source), 0), (&mut meta.dst, of(&rule.destination), 8)] {
        if let Some((bits, len)) = list.get((pick >> shift) as usize % list.len().max(1)).filter(|(_, len)| *len > 0) {
            let edge = match pick >> (shift + 4) & 7 {
                0 => bits.wrapping_sub(1),
                1 => (bits | !prefix_mask(*len)).wrapping_add(1),
                2 => bits | !prefix_mask(*len),
                _ => *bits,
            };
            *into = if family_v4 { edge >> 96 << 96 } else { edge }.to_be_bytes();
        }
    }
    if let Some(service) = rule.services.first() {
        meta.proto = service.proto;
        match &service.detail {
            Detail::Any => {}
            Detail::Ports(range) => {
                meta.dport = match pick >> 16 & 7 {
                    0 => range.start().wrapping_sub(1),
                    1 => range.end().wrapping_add(1),
                    2 => *range.end(),
                    _ => *range.start(),
                }
            }
            Detail::Icmp(kind, code) => meta.detail = [*kind, code.unwrap_or((pick >> 20) as u8)],
        }
    }
    if let Some(range) = rule.source_ports.first() {
        meta.sport = if pick >> 24 & 3 == 0 { range.start().wrapping_sub(1) } else { *range.end() };
    }
    if let Some(port) = (0..PORTS as u8).chain([SELF_PORT]).find(|port| rule.from.contains(*port)) {
        meta.port = port;
    }
    if let Some(port) = (0..PORTS as u8).chain([SELF_PORT]).find(|port| rule.to.contains(*port)) {
        *out = port;
    }
}

/// Compiles `rules` so that more than `few` conditions go into tables, and holds every packet against the plain reading.
fn agree(rules: &[Rule], packets: &[(Meta, u8)], few: usize) -> Result<(), TestCaseError> {
    let limits = Limits { few, memory: 256 << 20 };
    let compiled = compile(rules, PORTS, limits, &mut eal).map_err(|refusal| TestCaseError::fail(refusal.message))?;
    for packets in packets.chunks(BATCH) {
        let (mut facts, mut actions) = ([const { Meta::UNKNOWN }; BATCH], [Action::OPEN; BATCH]);
        for (i, (meta, out)) in packets.iter().enumerate() {
            (facts[i], actions[i].out) = (meta.clone(), *out);
        }
        let todo = Mask::MAX >> (BATCH - packets.len());
        let mut decided = [u32::MAX; BATCH];
        let mut counted = vec![Vec::new(); BATCH];
        let non_ip = by_program(&compiled, todo, &facts, &actions, |program, mask| {
            let (program, classes) = compiled.program(program);
            let mut found = [u32::MAX; BATCH];
            program.decide.find(mask, &facts, classes, &mut found);
            bits(mask).zip(found).for_each(|(i, found)| decided[i] = found);
            program.count.find(mask, &facts, classes, |rule, matching| {
                bits(matching).for_each(|i| counted[i].push(rule as usize));
            });
        });
        prop_assert_eq!(non_ip, 0);
        for (i, (meta, out)) in packets.iter().enumerate() {
            let (rule, counts) = linear::judge(rules, meta, *out);
            prop_assert_eq!(decided[i] as usize, rule.map_or(0, |rule| rule + 1), "{:?} to {}", meta, out);
            counted[i].retain(|count| rule.is_none_or(|rule| *count < rule));
            prop_assert_eq!(&counted[i], &counts, "{:?} to {}", meta, out);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn compiled_and_read_rules_agree(
        rules in prop::collection::vec(rule(), 0..24),
        packets in prop::collection::vec((packet(), any::<u64>()), 200..260),
        few in prop::sample::select(vec![0usize, 0, 8, usize::MAX]),
    ) {
        let packets: Vec<(Meta, u8)> = packets.into_iter().map(|((mut meta, mut out), pick)| {
            if let Some(rule) = rules.get((pick >> 32) as usize % (rules.len() + 2)) {
                aim(&mut meta, &mut out, rule, pick);
            }
            (meta, out)
        }).collect();
        agree(&rules, &packets, few)?;
    }
}

/// A small generator of repeatable numbers (splitmix64).
struct Numbered(u64);

impl Numbered {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn prefix(&mut self, shortest: u8, longest: u8) -> Prefix {
        let len = shortest + (self.next() % u64::from(longest - shortest + 1)) as u8;
        (u128::from(self.next() as u32) << 96 & prefix_mask(len), len)
    }
}

fn many_rules(count: usize, shortest: u8) -> Vec<Rule> {
    let mut random = Numbered(7);
    let mut ports = Ports::all(PORTS);
    ports.insert(NO_PORT);
    (0..count)
        .map(|n| {
            let sides = [random.prefix(shortest, 32), random.prefix(shortest, 32)];
            let [source, destination] = sides.map(|prefix| Addresses { v4: vec![prefix], v6: Vec::new() });
            let first = random.next() as u16;
            let ports_of = Detail::Ports(first..=first.saturating_add(random.next() as u16 % 1000));
            let detail = if n % 2 == 0 { Detail::Any } else { ports_of };
            let services = vec![Service { proto: if random.next().is_multiple_of(2) { 6 } else { 17 }, detail }];
            let action = if n % 3 == 0 { Does::Deny } else { Does::Allow };
            let (source_ports, vlans) = (Vec::new(), Vec::new());
            Rule { from: ports, to: ports, source, destination, services, source_ports, vlans, action }
        })
        .collect()
}

fn aimed_at(rules: &[Rule], count: usize) -> Vec<(Meta, u8)> {
    let mut random = Numbered(11);
    (0..count)
        .map(|_| {
            let mut meta = Meta { flags: flag::IPV4 | flag::L4 | flag::PORTS, proto: 6, ..Meta::UNKNOWN };
            let mut out = 1;
            let pick = random.next();
            (meta.sport, meta.dport) = (random.next() as u16, random.next() as u16);
            aim(&mut meta, &mut out, &rules[(pick >> 32) as usize % rules.len()], pick);
            (meta, out)
        })
        .collect()
}

#[test]
fn thousands_of_rules_agree() {
    for (count, shortest) in [(2000, 16), (600, 1)] {
        let rules = many_rules(count, shortest);
        agree(&rules, &aimed_at(&rules, 3200), matcher::FEW).expect("both agree");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rules = many_rules(1200, 1);
    let limits = Limits { few: 8, memory: 1 << 20 };
    let refusal = compile(&rules, PORTS, limits, &mut eal).expect_err("too small");
    assert!(refusal.message.starts_with("1200 conditions cannot be compiled in 1 MiB"), "{}", refusal.message);
}

#[test]
fn big_sets_do_not_multiply_rules() {
    let mut random = Numbered(3);
    let mut list = || Addresses { v4: (0..2000).map(|_| random.prefix(20, 32)).collect(), v6: Vec::new() };
    let mut rules = many_rules(40, 8);
    for n in 0..4 {
        (rules[n * 7].source, rules[n * 9 + 1].destination) = (list(), list());
    }
    let compiled = compile(&rules, PORTS, Limits { few: 8, memory: 64 << 20 }, &mut eal).expect("it fits");
    let lines = compiled.describe(&[(0, "a".into()), (1, "b".into())]);
    assert!(lines.iter().any(|line| line.starts_with("IPv4 sets:")), "{lines:?}");
    agree(&rules, &aimed_at(&rules, 1280), 8).expect("both agree");
}

const FIREWALL: &str = r#"
[acl]
non_ip = ["arp", "0x88cc"]

[[acl.rule]]
name = "seen"
action = "count"

[[acl.rule]]
name = "web"
from = "inside"
to = "outside"
source = "@many"
service = "tcp/443"
action = "allow"

[[acl.rule]]
name = "dropped here"
service = "tcp/23"
action = "deny"

[[acl.rule]]
name = "undecided"
service = "tcp"
action = "count"

[[acl.rule]]
name = "six"
destination = ["@six", "198.51.100.9"]
vlan = [7, "100-199"]
action = "allow"
"#;

/// The bench for rules in `acl`, on a wire between `lan` and `wan`; `dmz` is connected to nothing.
fn config(acl: &str) -> String {
    let many: Vec<String> = (0..100).map(|n| format!("'10.{}.{}.0/24'", n / 128, n * 2 % 256)).collect();
    format!(
        "{TWO_PORTS}[[port]]\nname = 'dmz'\ndevice = 'net_null2'\n\
         [set]\nmany = [{}]\nsix = ['2001:db8::/32']\n\
         [pipeline]\nstages = ['cross', 'acl']\n\
         [[cross.wire]]\nports = ['lan', 'wan']\n{acl}",
        many.join(", ")
    )
}

#[test]
fn rules_decide_in_the_order_of_the_file() {
    let mut bench = Bench::new(&config(FIREWALL));
    let mut check = |port: &str, packet: Packet, end: &str, rule: &str| {
        let got = bench.push(port, &packet.bytes());
        assert_eq!((got.reason(), got.rule()), (end, rule), "{packet:?}");
    };
    check("lan", Packet::tcp("10.0.0.5:4000", "198.51.100.9:443"), "sent", "web");
    check("lan", Packet::tcp("10.0.0.5:4000", "198.51.100.9:80"), "acl.denied-default", "");
    check("lan", Packet::tcp("10.0.1.5:4000", "198.51.100.9:443"), "acl.denied-default", "");
    check("lan", Packet::tcp("10.0.0.5:4000", "198.51.100.9:23"), "acl.denied", "dropped here");
    check("wan", Packet::tcp("10.0.0.5:4000", "198.51.100.9:443"), "acl.denied-default", "");
    check("lan", Packet::udp("10.0.0.5:4000", "198.51.100.9:443"), "acl.denied-default", "");
    check(
        "lan",
        Packet::tcp("10.0.0.5:443", "198.51.100.9:443").payload(&[1; 64]).fragment(8, false),
        "acl.denied-default",
        "",
    );
    check("lan", Packet::tcp("[2001:db8:1::1]:4000", "[2001:db8::1]:9").vlan(0xe007), "sent", "six");
    check("lan", Packet::tcp("[2001:db8:1::1]:4000", "[2001:db8::1]:9"), "acl.denied-default", "");
    check("lan", Packet::echo_request("10.0.0.5", "198.51.100.9", 443, 1), "acl.denied-default", "");
    check("lan", Packet::arp(1, "10.0.0.5", "10.0.0.1"), "sent", "");
    check("lan", Packet::ethernet(0x88cc, &[0; 46]), "sent", "");
    check("lan", Packet::ethernet(0x0026, &[0; 46]), "acl.denied-non-ip", "");
    check("dmz", Packet::tcp("10.0.0.5:4000", "198.51.100.9:443"), "cross.no-wire", "");
    let hits: Vec<(String, u64)> = ["seen", "web", "dropped here", "undecided", "six"]
        .map(|name| (name.into(), bench.counter("acl/rule", name)))
        .into();
    let expected = [("seen", 10), ("web", 1), ("dropped here", 1), ("undecided", 6), ("six", 1)];
    assert_eq!(hits, expected.map(|(name, hits)| (name.to_owned(), hits)));
    let web = &bench.blueprint().rules.all()[1];
    let frame = Packet::tcp("10.0.0.5:4000", "198.51.100.9:443").bytes().len() as u64;
    assert_eq!(bench.sheet().counters[web.counters + rule_counter::BYTES], frame);
    assert!(bench.sheet().counters[web.counters + rule_counter::LAST_HIT] >= 1_700_000_000_000_000_000);
    let lines = bench.blueprint().describe();
    assert!(lines.iter().any(|line| line.starts_with("acl: lan > wan, IPv4: 4 conditions")), "{lines:#?}");
}

#[test]
fn without_rules_the_default_decides() {
    let mut bench = Bench::new(&config("[acl]\ndefault = 'allow'\nnon_ip = ['!arp']"));
    assert_eq!(bench.push("wan", &Packet::udp("192.0.2.1:1", "192.0.2.2:2").bytes()).reason(), "sent");
    assert_eq!(bench.push("wan", &Packet::arp(1, "192.0.2.1", "192.0.2.2").bytes()).reason(), "acl.denied-non-ip");
    assert_eq!(bench.push("wan", &Packet::ethernet(0x88cc, &[0; 46]).bytes()).reason(), "sent");
}

/// The mistakes in rules, each with its place counted from the first line of `acl`.
fn mistakes(acl: &str) -> Vec<String> {
    let text = config("");
    let before = text.lines().count() as u32;
    let list = match crate::config::Config::parse(&Source::new("t.toml", &(text + acl))) {
        Ok(config) => crate::stage::pipeline::compile(&config, 1, &[]).err().expect("mistakes"),
        Err(list) => list,
    };
    let shifted = list.into_iter().map(|mut mistake| {
        mistake.place.iter_mut().for_each(|place| place.line -= before);
        mistake.to_string()
    });
    shifted.collect()
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let mistakes = mistakes(
        r#"[acl]
non_ip = ["apr", "0x800"]
[[acl.rule]]
from = "insde"
source = "@mani"
action = "allow"
[[acl.rule]]
source = "10.0.0.1"
destination = "2001:db8::1"
action = "deny"
[[acl.rule]]
source_port = 53
action = "deny"
[[acl.rule]]
vlan = 4096
action = "deny"
"#,
    );
    let has = |text: &str| mistakes.iter().any(|mistake| mistake.contains(text));
    assert!(has("t.toml:2:11: acl.non_ip") && has("did you mean \"arp\"?"), "{mistakes:#?}");
    assert!(has("rules decide of IPv4 and IPv6"), "{mistakes:#?}");
    assert!(has("t.toml:4:8: acl.rule[0].from") && has("did you mean \"inside\"?"), "{mistakes:#?}");
    assert!(has("acl.rule[0].source") && has("did you mean \"many\"?"), "{mistakes:#?}");
    assert!(has("acl.rule[1]: never matches"), "{mistakes:#?}");
    assert!(has("acl.rule[2].source_port: source ports need a service"), "{mistakes:#?}");
    assert!(has("acl.rule[3].vlan: expected numbers from 0 to 4095"), "{mistakes:#?}");
    assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
}

#[test]
fn keys_of_the_wrong_kind_are_told() {
    let mistakes =
        mistakes("[acl]\ndefault = 'dney'\n[[acl.rule]]\nvlan = '9-3'\nsource_port = true\naction = 'alow'\n");
    assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    assert!(mistakes[1].contains("write \"3-9\""), "{mistakes:#?}");
}

const REJECTING: &str = r#"
[acl]
reject_rate = "100/s"
log_rate = "200/s"
log_default = true
[[acl.rule]]
name = "web server"
service = "tcp/443"
action = "allow"
log = true
[[acl.rule]]
name = "closed"
service = ["tcp", "udp", "icmp", "icmpv6"]
to = "outside"
action = "reject"
log = true
[[acl.rule]]
name = "quiet"
service = "tcp"
action = "reject"
[[acl.rule]]
name = "silent"
service = "proto/47"
action = "deny"
"#;

fn log_lines(bench: &Bench, format: LogFormat) -> Vec<String> {
    let names = &crate::config::Config::parse(&Source::new("t.toml", &config(REJECTING))).expect("good").names;
    Scribe::new(bench.blueprint(), names, format).take().lines().map(str::to_owned).collect()
}

#[test]
fn rejected_requests_are_answered_by_the_port_they_came_from() {
    let mut bench = Bench::new(&config(REJECTING));
    let (a, b) = ("10.0.0.5:40000", "192.0.2.7:80");
    let (c, d) = ("[2001:db8::5]:40000", "[2001:db8::7]:80");
    // Protocol, ports and detail of the reply.
    let cases = [
        (Packet::tcp(a, b), 6, [0x14, 0]),
        (Packet::tcp(a, b).acknowledgment(9).vlan(7).payload(&[1; 1400]), 6, [0x04, 0]),
        (Packet::tcp(c, d), 6, [0x14, 0]),
        (Packet::udp(a, b), 1, [3, 13]),
        (Packet::udp(c, d).payload(&[9; 1400]), 58, [1, 1]),
        (Packet::echo_request("10.0.0.5", "192.0.2.7", 1, 1), 1, [3, 13]),
        (Packet::echo_request("2001:db8::5", "2001:db8::7", 1, 1), 58, [1, 1]),
    ];
    let answered = cases.len() as u64;
    for (packet, proto, detail) in cases {
        let bytes = packet.bytes();
        let ends = bench.push_all("lan", &[&bytes]);
        let [dropped, End::Sent { port, bytes: reply, rule }] = &ends[..] else { panic!("{packet:?}: {ends:?}") };
        assert_eq!((dropped.reason(), dropped.rule()), ("acl.rejected", "closed"));
        assert_eq!((port.as_str(), rule.as_deref()), ("lan", Some("closed")));
        let facts = decoded(reply);
        assert_eq!((facts.proto, facts.detail), (proto, detail), "{packet:?}");
        let request = decoded(&bytes);
        assert_eq!((facts.src, facts.dst, facts.vlan), (request.dst, request.src, request.vlan));
        assert_eq!((&reply[..6], &reply[6..12]), (&bytes[6..12], &bytes[..6]));
    }
    // Other ends in the same batch are not disturbed, and what must not be answered is not.
    let batch = [
        Packet::tcp(a, "192.0.2.7:443"),
        Packet::tcp(a, b).flags(crate::wire::tcp::RST),
        Packet::udp(a, b),
        Packet::ip("10.0.0.5", "192.0.2.7", 47).payload(&[0; 4]),
        Packet::udp(a, b).macs([2; 6], [0xff; 6]),
        Packet::tcp(a, "192.0.2.8:443"),
    ];
    let ends: Vec<String> = bench
        .push_all("lan", &batch.map(|packet| packet.bytes()))
        .iter()
        .map(|end| match end {
            End::Sent { port, .. } => format!("sent by {port}"),
            End::Dropped { reason, .. } => reason.clone(),
        })
        .collect();
    let expected =
        ["acl.rejected", "sent by wan", "sent by lan", "sent by wan", "acl.rejected", "acl.denied", "acl.rejected"];
    assert_eq!(ends, expected);
    assert_eq!(bench.counter("acl", "unanswerable"), 2);
    assert_eq!(bench.counter("acl", "answered"), answered + 1);
    assert_eq!(bench.sheet().of(Account::Created), answered + 1);
    assert_eq!(bench.counter("port:lan", "tx-packets"), answered + 1);
}

#[test]
fn a_stripped_tag_stays_out_of_the_answer() {
    let text = config(REJECTING).replacen("name = 'lan'", "name = 'lan'\nvlan_strip = true", 1);
    let mut bench = Bench::new(&text);
    let packet = Packet::tcp("10.0.0.5:40000", "192.0.2.7:80");
    let ends = bench.push_all("lan", &[packet.clone().vlan(7).bytes()]);
    let plain = Bench::new(&config(REJECTING)).push_all("lan", &[packet.bytes()]);
    assert_eq!(ends, plain, "as a frame that goes on would be sent");
}

#[test]
fn answers_have_a_rate() {
    let mut bench = Bench::new(&config(REJECTING));
    // A tenth of a second's worth at once.
    let flood = vec![Packet::tcp("192.0.2.7:1", "10.0.0.5:22").bytes(); 40];
    let sent = |ends: &[End]| ends.iter().filter(|end| end.reason() == "sent").count();
    assert_eq!(sent(&bench.push_all("wan", &flood)), 10);
    bench.now += 20_000_000;
    let ends = bench.push_all("wan", &flood);
    assert_eq!((sent(&ends), ends.len()), (2, 42));
    assert_eq!((bench.counter("acl", "answered"), bench.counter("acl", "answers-limited")), (12, 68));
    assert_eq!(bench.counter("acl/rule", "quiet"), 80);
    let mut none = Bench::new(&config(&REJECTING.replace("100/s", "0/s")));
    assert_eq!(sent(&none.push_all("wan", &flood)), 0);
    assert_eq!(none.counter("acl", "answers-limited"), 40);
}

#[test]
fn what_rules_ask_for_is_logged_in_words() {
    let mut bench = Bench::new(&config(REJECTING));
    let push = |bench: &mut Bench, port: &str, packet: Packet| {
        bench.push_all(port, &[packet.bytes()]);
    };
    push(&mut bench, "lan", Packet::tcp("10.0.0.5:40000", "192.0.2.7:443"));
    push(&mut bench, "lan", Packet::udp("10.0.0.5:40000", "192.0.2.7:53").vlan(9));
    push(&mut bench, "wan", Packet::tcp("192.0.2.7:1", "10.0.0.5:22"));
    push(&mut bench, "wan", Packet::udp("[2001:db8::7]:1", "[2001:db8::5]:53"));
    push(&mut bench, "lan", Packet::ip("10.0.0.5", "192.0.2.7", 47).payload(&[0; 4]));
    push(&mut bench, "lan", Packet::ethernet(0x88cc, &[0; 46]));
    push(&mut bench, "lan", Packet::arp(1, "10.0.0.5", "10.0.0.1"));
    let expected = [
        "flowgate: 1700000000.000000000 allowed rule=\"web server\" tcp 10.0.0.5:40000 > 192.0.2.7:443 [S] in lan out wan",
        "flowgate: 1700000000.000001000 denied acl.rejected rule=\"closed\" vlan 9 udp 10.0.0.5:40000 > 192.0.2.7:53 \
         in lan out wan",
        "flowgate: 1700000000.000003000 denied acl.denied-default udp [2001:db8::7]:1 > [2001:db8::5]:53 in wan out lan",
        "flowgate: 1700000000.000005000 denied acl.denied-non-ip ethertype 0x88cc in lan out wan",
    ];
    assert_eq!(log_lines(&bench, LogFormat::Human), expected);
    push(&mut bench, "lan", Packet::udp("10.0.0.5:40000", "192.0.2.7:53"));
    let line = log_lines(&bench, LogFormat::Json).remove(0);
    let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let place = config(REJECTING).lines().position(|line| line.contains("closed")).expect("the rule");
    assert_eq!(
        json,
        serde_json::json!({
            "time": "1700000000.000007000", "event": "denied", "stage": "acl", "reason": "rejected", "rule": "closed",
            "file": "bench.toml", "line": place, "in": "lan", "out": "wan",
            "packet": "udp 10.0.0.5:40000 > 192.0.2.7:53",
        })
    );
    // 20 at once; five were taken 7 us ago.
    bench.push_all("wan", &vec![Packet::udp("192.0.2.7:1", "10.0.0.5:22").bytes(); 40]);
    assert_eq!(bench.counter("acl", "logged"), 20);
    assert_eq!(bench.counter("acl", "log-suppressed"), 25);
    assert_eq!(log_lines(&bench, LogFormat::Human).len(), 15);
}

#[test]
fn a_full_log_loses_entries_and_counts_them() {
    let mut bench = Bench::new(&config(&REJECTING.replace("200/s", "1M/s")));
    let packets = vec![Packet::udp("192.0.2.7:1", "10.0.0.5:22").bytes(); 2_500];
    (0..2).for_each(|_| drop(bench.push_all("wan", &packets)));
    let counted = ["logged", "log-lost", "log-suppressed"].map(|name| bench.counter("acl", name));
    assert_eq!(counted, [4_096, 904, 0]);
    assert_eq!(log_lines(&bench, LogFormat::Human).len(), 4_096);
}

#[test]
fn rules_that_ask_for_nothing_cost_nothing() {
    let bench = Bench::new(&config(FIREWALL));
    assert!(bench.blueprint().stages.iter().all(|stage| !stage.plan.concludes()));
    assert!(bench.blueprint().logs.iter().all(|log| log.take().count() == 0));
}

#[test]
fn keys_that_an_action_cannot_keep_are_told() {
    let mistakes = mistakes(
        r#"[acl]
reject_rate = "10MB/s"
log_rate = "2M/s"
[[acl.rule]]
action = "count"
log = true
[[acl.rule]]
action = "reject"
tracking = "strict"
[[acl.rule]]
action = "allow"
tracking = "loose"
"#,
    );
    let has = |text: &str| mistakes.iter().any(|mistake| mistake.contains(text));
    assert!(has("t.toml:2:15: acl.reject_rate: expected a number a second"), "{mistakes:#?}");
    assert!(has("t.toml:3:12: acl.log_rate: expected a number a second"), "{mistakes:#?}");
    assert!(has("acl.rule[0].log: a rule that counts decides nothing to log"), "{mistakes:#?}");
    assert!(has("t.toml:9:12: acl.rule[1].tracking: only flows that a rule allows are tracked"), "{mistakes:#?}");
    assert!(has("t.toml:12:12: acl.rule[2].tracking: flows are not tracked; add \"conntrack\""), "{mistakes:#?}");
    assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
}

/// The facts of a frame, as deep as they go.
fn decoded(bytes: &[u8]) -> Meta {
    let mut heap = crate::packet::frame::Heap::new(1, 2_000);
    let mut batch = batch(&mut heap, [bytes]);
    decode(&mut batch, Depth::L4);
    assert_eq!(batch.live, 1);
    let facts = batch.metas[0].clone();
    give_back(&mut heap, &mut batch);
    facts
}

/// The rules of [`REJECTING`] on a wire whose flows are tracked.
fn tracked(acl: &str) -> String {
    config(acl).replace("'cross', 'acl'", "'conntrack', 'cross', 'acl'")
}

#[test]
fn flows_are_logged_once_and_refused_ones_answered() {
    let mut bench = Bench::new(&tracked(&REJECTING.replace("tcp/443", "udp/443")));
    let (a, b) = ("10.0.0.5:40000", "192.0.2.7:443");
    for (port, packet) in [("lan", Packet::udp(a, b)), ("wan", Packet::udp(b, a)), ("lan", Packet::udp(a, b))] {
        assert_eq!(bench.push(port, &packet.bytes()).reason(), "sent");
    }
    // Twice in a batch, and neither has an entry.
    let closed = vec![Packet::tcp("10.0.0.5:40001", "192.0.2.7:25").bytes(); 2];
    let ends = bench.push_all("lan", &closed);
    let ends: Vec<&str> = ends.iter().map(End::reason).collect();
    assert_eq!(ends, ["acl.rejected", "acl.rejected", "sent", "sent"]);
    let rejected = "denied acl.rejected rule=\"closed\" tcp 10.0.0.5:40001 > 192.0.2.7:25 [S] in lan out wan";
    assert_eq!(
        log_lines(&bench, LogFormat::Human),
        [
            format!("flowgate: 1700000000.000000000 new rule=\"web server\" udp {a} > {b} in lan out wan"),
            format!("flowgate: 1700000000.000003000 {rejected}"),
            format!("flowgate: 1700000000.000003000 {rejected}"),
        ]
    );
}

#[test]
fn a_rule_says_how_closely_its_flows_are_tracked() {
    let loose = "[[acl.rule]]\nname = 'loose'\ndestination = '192.0.2.7'\naction = 'allow'\ntracking = 'loose'\n\
                 [[acl.rule]]\nname = 'as said'\naction = 'allow'\n";
    let mut bench = Bench::new(&tracked(loose));
    // Nobody has asked for them.
    let mut answer =
        |to: &str| bench.push("lan", &Packet::echo_reply("10.0.0.5", to, 1, 1).bytes()).reason().to_owned();
    assert_eq!((answer("192.0.2.7").as_str(), answer("192.0.2.8").as_str()), ("sent", "conntrack.no-flow"));
}
