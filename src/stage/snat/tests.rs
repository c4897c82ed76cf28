use crate::config::Config;
use crate::config::source::Source;
use crate::nat::HAIRPIN;
use crate::nat::source::{Mapping, Origin};
use crate::packet::meta::flag;
use crate::packet::{BATCH, Meta};
use crate::stage::pipeline::{Blueprint, compile};
use crate::stage::{Action, NO_SNAT, Plan};
use crate::testkit::bench::TWO_PORTS;

const STAGES: &str = "[pipeline]\nstages = ['conntrack', 'dnat', 'route', 'acl', 'snat']\n[acl]\ndefault = 'allow'\n";

fn blueprint(toml: &str, workers: usize) -> Result<Blueprint, Vec<String>> {
    let dnat = if toml.contains("[dnat") { "" } else { "[dnat]\n" };
    let text = format!("{TWO_PORTS}{STAGES}{dnat}{toml}");
    let compiled = Config::parse(&Source::new("nat.toml", &text)).and_then(|config| compile(&config, workers, &[]));
    compiled.map_err(|list| list.iter().map(ToString::to_string).collect())
}

/// What is said of the source of a TCP packet.
fn judge(blueprint: &Blueprint, src: [u8; 4], port: u8, out: u8, before: u16) -> u16 {
    let snat = blueprint.stages.iter().find(|stage| stage.instance == "snat").expect("there is one");
    let Plan::Flow(plan) = &snat.plan else { panic!("it judges flows") };
    let mut facts = [const { Meta::UNKNOWN }; BATCH];
    let mut actions = [Action::OPEN; BATCH];
    let meta = &mut facts[5];
    (meta.proto, meta.flags, meta.dport, meta.port) = (6, flag::IPV4 | flag::PORTS | flag::L4, 443, port);
    meta.src[..4].copy_from_slice(&src);
    meta.dst[..4].copy_from_slice(&[8, 8, 8, 8]);
    (actions[5].out, actions[5].snat) = (out, before);
    assert_eq!(plan.judge(1 << 5, &mut facts, &mut actions), 0);
    actions[5].snat
}

const LAN: u8 = 0;
const WAN: u8 = 1;

#[test]
fn rules_pairs_and_the_way_back() {
    let toml = "[[dnat.one_to_one]]\nzone = 'outside'\ninside = '10.0.0.0/28'\noutside = '203.0.113.0/28'\n\
                [[snat.rule]]\nsource = '10.5.0.0/16'\nto_source = 'none'\n\
                [[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nsource = '10.6.0.0/16'\n\
                to_source = ['198.51.100.1-198.51.100.3', '198.51.100.8/30']\nmapping = 'endpoint-independent'\n\
                [[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nto_source = 'masquerade'\nports = '20000-29999'\n";
    let blueprint = blueprint(toml, 1).expect("good");
    let to = |src, port, out, before| judge(&blueprint, src, port, out, before);
    assert_eq!(to([10, 0, 0, 5], LAN, WAN, NO_SNAT), 1, "a pair goes first");
    assert_eq!(to([10, 5, 0, 5], LAN, WAN, NO_SNAT), NO_SNAT);
    assert_eq!(to([10, 6, 0, 5], LAN, WAN, NO_SNAT), 2);
    assert_eq!(to([10, 7, 0, 5], LAN, WAN, NO_SNAT), 3);
    assert_eq!(to([10, 7, 0, 5], WAN, LAN, NO_SNAT), NO_SNAT);
    assert_eq!(to([10, 7, 0, 5], LAN, crate::packet::SELF_PORT, NO_SNAT), NO_SNAT, "what is for us stays as it is");
    // Back to where it came from, with a new destination.
    assert_eq!(to([10, 7, 0, 5], LAN, LAN, HAIRPIN), 0);
    assert_eq!(to([10, 6, 0, 5], LAN, LAN, HAIRPIN), 2, "by the address it has outside");
    assert_eq!(to([10, 5, 0, 5], LAN, LAN, HAIRPIN), NO_SNAT, "a rule exempts it");
    assert_eq!(to([8, 8, 4, 4], WAN, LAN, HAIRPIN), NO_SNAT);
    let outbound = blueprint.nat.as_ref().and_then(|nat| nat.outbound.as_ref()).expect("sources are translated");
    let slots = &outbound.sources.slots;
    assert!(matches!(slots[1].origin, Origin::Fixed(_)) && slots[2].mapping == Mapping::Independent);
    assert_eq!((slots[3].origin.clone(), slots[3].ports.clone()), (Origin::Masquerade, Some(20_000..=29_999)));
    let wide = |address: [u8; 4]| crate::nat::destination::wide(std::net::IpAddr::V4(address.into()));
    for (address, within) in [([198, 51, 100, 3], true), ([198, 51, 100, 4], false), ([198, 51, 100, 11], true)] {
        assert_eq!(outbound.pools.contains(&wide(address), false), within);
    }
    assert!(outbound.independent.contains(&wide([10, 6, 1, 1]), false));
    assert_eq!(outbound.masquerade.iter().collect::<Vec<u8>>(), [LAN, WAN], "a pair may lead back");
}

#[test]
fn mistakes_are_placed_and_say_what_to_do() {
    for (keys, expected) in [
        ("to_source = ['masquerade', '192.0.2.1']", "\"masquerade\" stands alone"),
        ("to_source = '192.0.2'", "expected an address, a prefix"),
        ("to_source = 'any'", "name the addresses that are"),
        ("to_source = []", "write \"none\" to leave packets as they are"),
        ("to_source = 'masquerade'\nports = '9-1'", "expected a range such as \"20000-29999\""),
        ("to_source = 'masquerade'\nports = '2000-2003'", "4 port(s) are too few for 4 workers; give 8 at least"),
        ("to_source = 'masquerade'\nmapping = 'endpoint-independent'", "needs `source`; name the inside networks"),
        ("to_source = 'masquerade'\nfiltering = 'endpoint-independent'", "set mapping = \"endpoint-independent\""),
        ("to_source = 'masquerade'\nmapping = 'endpoint-dependend'", "did you mean \"endpoint-dependent\"?"),
        ("source = '2001:db8::/64'\nto_source = '192.0.2.1'", "never matches; of different families"),
        ("destination = '198.51.100.1'\nto_source = '2001:db8::1'", "never matches; of different families"),
    ] {
        let mistakes = blueprint(&format!("[[snat.rule]]\n{keys}\n"), 4).map(|_| ()).expect_err(keys);
        let expected: Vec<&str> = expected.split("; ").collect();
        let found = mistakes.len() == 1 && expected.iter().all(|words| mistakes[0].contains(words));
        assert!(found && mistakes[0].starts_with("nat.toml:1"), "{keys}: {mistakes:#?}");
    }
    let alone = format!(
        "{TWO_PORTS}[pipeline]\nstages = ['conntrack', 'dnat', 'route']\n\
         [[dnat.one_to_one]]\nzone = 'outside'\ninside = '10.0.0.0/28'\noutside = '203.0.113.0/28'\n"
    );
    let list = Config::parse(&Source::new("nat.toml", &alone)).and_then(|config| compile(&config, 1, &[]).map(|_| ()));
    let list = list.expect_err("half a pair");
    assert!(list.len() == 1 && list[0].to_string().contains("add \"snat\""), "{list:?}");
}

#[test]
fn the_order_of_work_is_kept() {
    let rest = "[[dnat.rule]]\nfrom = 'outside'\nservice = 'tcp/80'\nto_destination = '10.0.0.5'\n[dnat.other]\n[snat.other]\n\
                [[snat.rule]]\nto = 'outside'\nto_source = 'masquerade'\n[acl]\ndefault = 'allow'\n";
    for (stages, expected) in [
        (
            "'conntrack', 'route', 'dnat', 'acl', 'snat'",
            "\"dnat\" must stand before \"route\", which asks where packets go",
        ),
        (
            "'conntrack', 'dnat', 'route', 'snat', 'acl'",
            "\"snat\" must stand behind \"acl\": a port is taken for what is allowed",
        ),
        (
            "'conntrack', 'dnat', 'snat', 'route'",
            "\"snat\" must stand behind the stage that decides where packets leave",
        ),
        (
            "'dnat', 'conntrack', 'route', 'acl', 'snat'",
            "\"conntrack\" must stand before the stages that judge flows, such as \"dnat\"",
        ),
        ("'conntrack', 'dnat', 'dnat:other', 'route', 'acl', 'snat'", "a second stage that translates destinations"),
        ("'conntrack', 'dnat', 'route', 'acl', 'snat', 'snat:other'", "a second stage that translates sources"),
    ] {
        let text = format!("{TWO_PORTS}[pipeline]\nstages = [{stages}]\n{rest}");
        let tables =
            [("dnat:other", "[dnat.other]\n"), ("snat:other", "[snat.other]\n"), ("acl", "[acl]\ndefault = 'allow'\n")];
        let unused = tables.iter().filter(|(stage, _)| !stages.contains(stage));
        let text = unused.fold(text, |text, (_, table)| text.replace(table, ""));
        let list =
            Config::parse(&Source::new("nat.toml", &text)).and_then(|config| compile(&config, 1, &[]).map(|_| ()));
        let list: Vec<String> = list.expect_err(stages).iter().map(ToString::to_string).collect();
        assert!(
            list.len() == 1 && list[0].contains(expected) && list[0].starts_with("nat.toml:"),
            "{stages}: {list:#?}"
        );
    }
}
