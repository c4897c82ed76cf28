use crate::config::Config;
use crate::config::source::Source;
use crate::nat::HAIRPIN;
use crate::packet::meta::flag;
use crate::packet::{BATCH, Meta};
use crate::stage::pipeline::{Blueprint, compile};
use crate::stage::{Action, NO_SNAT, Plan};
use crate::testkit::bench::TWO_PORTS;

const STAGES: &str =
    "[pipeline]\nstages = ['conntrack', 'dnat', 'route', 'acl', 'snat']\n[acl]\ndefault = 'allow'\n[snat]\n";

fn blueprint(toml: &str) -> Result<Blueprint, Vec<String>> {
    let text = format!("{TWO_PORTS}{STAGES}{toml}");
    let compiled = Config::parse(&Source::new("nat.toml", &text)).and_then(|config| compile(&config, 1, &[]));
    compiled.map_err(|list| list.iter().map(ToString::to_string).collect())
}

fn rule(keys: &str) -> String {
    format!("[[dnat.rule]]\n{keys}\n")
}

/// Where a TCP packet from 198.51.100.7 goes, and what is said of its source.
fn judge(blueprint: &Blueprint, dst: &str, dport: u16, port: u8) -> (String, u16, u16) {
    let dnat = blueprint.stages.iter().find(|stage| stage.instance == "dnat").expect("there is one");
    let Plan::Flow(plan) = &dnat.plan else { panic!("it judges flows") };
    let mut facts = [const { Meta::UNKNOWN }; BATCH];
    let mut actions = [Action::OPEN; BATCH];
    let meta = &mut facts[3];
    (meta.proto, meta.flags, meta.sport, meta.dport, meta.port) =
        (6, flag::IPV4 | flag::PORTS | flag::L4, 40_000, dport, port);
    meta.src[..4].copy_from_slice(&[198, 51, 100, 7]);
    match dst.parse().expect("an address") {
        std::net::IpAddr::V4(dst) => meta.dst[..4].copy_from_slice(&dst.octets()),
        std::net::IpAddr::V6(dst) => (meta.dst, meta.flags) = (dst.octets(), flag::IPV6 | flag::PORTS | flag::L4),
    }
    assert_eq!(plan.judge(1 << 3, &mut facts, &mut actions), 0);
    let dst = facts[3].destination().expect("IP").to_string();
    (dst, facts[3].dport, actions[3].snat)
}

const LAN: u8 = 0;
const WAN: u8 = 1;

#[test]
fn ports_ranges_prefixes_and_the_first_that_matches() {
    let forward = "from = 'outside'\ndestination = '192.0.2.2'\n";
    let toml = [
        rule("destination = '192.0.2.2'\nsource = '203.0.113.0/24'\nto_destination = 'none'"),
        rule(&format!("{forward}service = 'tcp/443'\nto_destination = '10.0.0.80:8443'")),
        rule(&format!("{forward}service = 'tcp/9000-9010'\nto_destination = '10.0.0.81:8000-8010'\nhairpin = false")),
        rule("destination = '203.0.113.16/28'\nto_destination = '10.0.1.0/28'"),
        rule("destination = '2001:db8::1'\nservice = 'tcp'\nto_destination = '[2001:db8:1::80]:80'"),
    ]
    .concat();
    let blueprint = blueprint(&toml).expect("good");
    let to = |dst: &str, dport, port| judge(&blueprint, dst, dport, port);
    let is = |dst: &str, dport, snat| (dst.to_owned(), dport, snat);
    assert_eq!(to("192.0.2.2", 443, WAN), is("10.0.0.80", 8443, HAIRPIN));
    assert_eq!(to("192.0.2.2", 443, LAN), is("10.0.0.80", 8443, HAIRPIN), "hosts beside the server too");
    assert_eq!(to("192.0.2.2", 9003, WAN), is("10.0.0.81", 8003, NO_SNAT));
    assert_eq!(to("192.0.2.2", 9003, LAN), is("192.0.2.2", 9003, NO_SNAT), "not unless hairpin says so");
    assert_eq!(to("192.0.2.2", 80, WAN), is("192.0.2.2", 80, NO_SNAT));
    assert_eq!(to("203.0.113.21", 80, WAN), is("10.0.1.5", 80, NO_SNAT));
    assert_eq!(to("2001:db8::1", 443, WAN), is("2001:db8:1::80", 80, NO_SNAT));
}

#[test]
fn own_addresses_and_pairs() {
    let pair = "[[dnat.one_to_one]]\nzone = 'outside'\ninside = '10.0.0.0/28'\noutside = '203.0.113.0/28'\n";
    let own = rule("from = 'outside'\ndestination = 'self'\nservice = 'tcp/22'\nto_destination = '10.0.0.9'");
    let blueprint = blueprint(&format!("{own}{pair}")).expect("good");
    assert_eq!(judge(&blueprint, "192.0.2.2", 22, WAN).0, "192.0.2.2", "not an address of ours yet");
    let nat = blueprint.nat.as_ref().expect("there is translation");
    let addresses = &nat.steering.addresses;
    addresses.set(WAN, Some([192, 0, 2, 2]), None);
    addresses.set(LAN, Some([10, 0, 0, 1]), None);
    assert_eq!(judge(&blueprint, "192.0.2.2", 22, WAN).0, "10.0.0.9");
    assert_eq!(judge(&blueprint, "10.0.0.1", 22, LAN).0, "10.0.0.1", "only addresses of ports in `from`");
    assert_eq!(judge(&blueprint, "203.0.113.4", 1, WAN).0, "10.0.0.4");
    assert_eq!(nat.outbound.as_ref().map(|outbound| outbound.sources.slots.len()), Some(2));
}

#[test]
fn mistakes_are_placed_and_say_what_to_do() {
    let one = |keys: &str| {
        let mistakes = blueprint(&rule(keys)).map(|_| ()).expect_err("a mistake");
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        mistakes[0].clone()
    };
    for (keys, expected) in [
        ("to_destination = '10.0.0'", "dnat.rule[0].to_destination: expected an address with or without ports"),
        ("to_destination = '10.0.0.1:80'", "a port needs services of protocols that have ports"),
        ("service = 'tcp/1-3'\nto_destination = '10.0.0.1:80-81'", "2 ports need services of 2 ports each"),
        ("to_destination = '10.0.0.0/24'", "as a prefix of the same family with 24 bits"),
        ("destination = '192.0.2.0/25'\nto_destination = '10.0.0.0/24'", "another prefix of the same length"),
        ("to_destination = ['10.0.0.1', 'none']", "stands alone, not in a list"),
        ("service = 'tcp'\nto_destination = ['10.0.0.1:1', '10.0.0.2:2']", "must have the same ports"),
        ("to_destination = '10.0.0.1'\nhairpin = true", "name the addresses in `destination`"),
        ("destination = '::1'\nto_destination = '10.0.0.1'", "of different families"),
        ("destination = ['self', '192.0.2.1']\nto_destination = '10.0.0.1'", "make two rules of it"),
    ] {
        let mistake = one(keys);
        assert!(mistake.contains(expected) && mistake.starts_with("nat.toml:1"), "{keys}: {mistake}");
    }
    let text = format!("{TWO_PORTS}{STAGES}{}", rule("to_destination = '10.0.0.1'")).replace("'conntrack', ", "");
    let list = Config::parse(&Source::new("nat.toml", &text)).and_then(|config| compile(&config, 1, &[]).map(|_| ()));
    let list = list.expect_err("flows are not tracked");
    assert!(list.iter().any(|mistake| mistake.to_string().contains("add \"conntrack\"")), "{list:?}");
}
