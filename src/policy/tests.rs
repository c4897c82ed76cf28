use proptest::prelude::*;

use super::*;
use crate::config::source::Source;
use crate::stage::pipeline::compile;
use crate::testkit::bench::{Bench as Datapath, End, TWO_PORTS};

const WIRE: &str = "[pipeline]\nstages = ['cross', 'acl']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
                    [set]\noffice = ['10.0.0.0/24', '2001:db8:1::/64']\n";
const RULES: &str = "[acl]\n\
    [[acl.rule]]\nname = 'no telnet'\nservice = 'tcp/23'\naction = 'deny'\n\
    [[acl.rule]]\nname = 'mail'\nfrom = 'outside'\ndestination = '10.0.0.25'\nservice = 'tcp/25'\naction = 'allow'\n\
    [[acl.rule]]\nname = 'out'\nfrom = 'inside'\nsource = '@office'\naction = 'allow'\n";

fn read(toml: &str) -> (Config, Vec<String>) {
    let (config, mistakes) = Config::read(&Source::new("policy.toml", &format!("{TWO_PORTS}{toml}")));
    (config, mistakes.iter().map(ToString::to_string).collect())
}

fn outcomes(toml: &str) -> Vec<Outcome> {
    let (config, mistakes) = read(toml);
    assert_eq!(mistakes, [""; 0]);
    let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
    run(&config, &blueprint).unwrap_or_else(|list| panic!("{list:#?}"))
}

/// Runs one test; nothing if it holds, else what is the case.
fn one(test: &str) -> Option<String> {
    let outcome = outcomes(&format!("{WIRE}{RULES}[[test]]\nname = 't'\n{test}\n")).remove(0);
    assert_eq!(outcome.is_good(), outcome.got.is_none());
    outcome.got.map(|got| format!("{}: {got}", outcome.result))
}

#[track_caller]
fn holds(test: &str) {
    assert_eq!(one(test), None, "{test}");
}

#[track_caller]
fn fails(test: &str, said: &str) {
    let got = one(test).expect("it does not hold");
    assert_eq!(got, format!("failed: got {said}"), "{test}");
}

#[test]
fn single_packets() {
    holds("packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'\nexpect = 'allow'\nrule = 'out'\nout = 'wan'");
    holds("packet = 'tcp 10.0.0.5 > 192.0.2.7:23 in lan'\nexpect = 'deny'\nrule = 'no telnet'");
    holds("packet = 'udp 192.0.2.7 > 10.0.0.5:53 in outside'\nexpect = 'deny'");
    fails(
        "packet = ['udp 10.0.0.5 > 192.0.2.7:53 in inside', 'udp 10.0.1.5 > 192.0.2.7:53 in inside']\nexpect = 'allow'",
        "deny (acl.denied-default), for udp 10.0.1.5 > 192.0.2.7:53 in lan",
    );
    fails(
        "packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'\nexpect = 'deny'",
        "allow by rule \"out\" (policy.toml:26), leaving by wan, for tcp 10.0.0.5 > 192.0.2.7:443 in lan",
    );
    fails(
        "packet = 'tcp 10.0.0.5 > 192.0.2.7:23 in lan'\nexpect = 'deny'\nrule = 'out'",
        "deny by rule \"no telnet\" (policy.toml:16), for tcp 10.0.0.5 > 192.0.2.7:23 in lan",
    );
    fails(
        "packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'\nexpect = 'allow'\nout = 'lan'",
        "allow by rule \"out\" (policy.toml:26), leaving by wan, for tcp 10.0.0.5 > 192.0.2.7:443 in lan",
    );
}

#[test]
fn ranges() {
    holds("packet = 'any any > @office in outside'\nexpect = 'deny'\nexcept = 'mail'");
    fails(
        "packet = 'any any > @office in outside'\nexpect = 'deny'",
        "allow by rule \"mail\" (policy.toml:20), leaving by lan, for tcp 198.51.100.5:40000 > 10.0.0.25:25 in wan",
    );
    holds("packet = 'tcp any > any:23 in inside'\nexpect = 'deny'\nrule = 'no telnet'");
    holds("packet = 'tcp any > any:20-24 in outside'\nexpect = 'deny'");
    holds("packet = 'udp 10.0.0.0/25 > any in lan'\nexpect = 'allow'\nrule = 'out'\nout = 'wan'");
    holds("packet = 'icmp6 2001:db8:1::/64 > any echo in lan'\nexpect = 'allow'");
    fails(
        "packet = 'tcp 10.0.0.0/25 > any in lan'\nexpect = 'allow'",
        "deny by rule \"no telnet\" (policy.toml:16), for tcp 10.0.0.5:40000 > 198.51.100.5:23 in lan",
    );
    fails(
        "packet = 'udp 10.0.0.0/23 > 192.0.2.7:53 vlan 5 in lan'\nexpect = 'allow'",
        "deny (denied by default), for udp 10.0.1.1:40000 > 192.0.2.7:53 vlan 5 in lan",
    );
    // A rule that asks for ports says nothing of the fragments that continue a packet.
    let fragments = "packet = 'tcp any > 10.0.0.25 fragment in wan'\nexpect =";
    holds(&format!("{fragments} 'deny'"));
    fails(
        &format!("{fragments} 'allow'"),
        "deny (denied by default), for tcp 198.51.100.5 > 10.0.0.25 fragment in wan",
    );
}

#[test]
fn mistakes_are_placed() {
    let test = |line: &str| read(&format!("{WIRE}{RULES}[[test]]\nname = 't'\nexpect = 'deny'\n{line}\n")).1;
    for (line, said) in [
        (
            "packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lam'",
            "policy.toml:34:43: test[0].packet: there is no zone or port \"lam\"",
        ),
        ("packet = 'tpc 10.0.0.5 > 192.0.2.7:443 in lan'", "policy.toml:34:11: test[0].packet: expected a protocol"),
        (
            "packet = ['tcp @ofice > 192.0.2.7:443 in lan']",
            "policy.toml:34:16: test[0].packet: there is no set \"ofice\"",
        ),
        (
            "packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'\nout = 'wam'",
            "policy.toml:35:7: test[0].out: there is no port \"wam\"",
        ),
        (
            "packet = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'\nexcept = 'out'",
            "policy.toml:35:10: test[0].except: is for ranges",
        ),
        ("packt = 'tcp 10.0.0.5 > 192.0.2.7:443 in lan'", "did you mean \"packet\"?"),
    ] {
        let mistakes = test(line);
        assert!(mistakes.len() == 1 && mistakes[0].contains(said), "{line}: {mistakes:#?}");
    }
    let (config, _) = read(&format!(
        "{WIRE}{RULES}[[test]]\nname = 't'\nexpect = 'deny'\nrule = 'otu'\npacket = 'udp any > any in lan'\n"
    ));
    let findings = findings(&config, &compile(&config, 1, &[]).expect("good"));
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0]
            .to_string()
            .contains("policy.toml:34:8: test[0].rule: there is no rule \"otu\"; did you mean \"out\"?")
    );
}

#[test]
fn what_does_not_hold_is_a_finding_with_what_to_ask() {
    let (config, _) = read(&format!(
        "{WIRE}{RULES}[[test]]\nname = 'closed'\nexpect = 'deny'\npacket = 'udp 10.0.0.5 > 192.0.2.7:53 in lan'\n"
    ));
    let findings = findings(&config, &compile(&config, 1, &[]).expect("good"));
    assert_eq!(findings[0].place.as_ref().expect("a place").to_string(), "policy.toml:32:8");
    assert_eq!(findings[0].help.as_deref(), Some("flowgate explain policy.toml 'udp 10.0.0.5 > 192.0.2.7:53 in lan'"));
}

#[test]
fn a_rule_that_rejects() {
    let rule = "[acl]\n[[acl.rule]]\nname = 'refused'\nservice = 'tcp/25'\naction = 'reject'\n";
    for packet in ["tcp 10.0.0.5 > 192.0.2.7:25 in lan", "tcp any > any:25 in lan"] {
        for (expect, good) in [("reject", true), ("deny", true), ("allow", false)] {
            let test = format!("[[test]]\nname = 't'\npacket = '{packet}'\nexpect = '{expect}'\nrule = 'refused'\n");
            let outcome = outcomes(&format!("{WIRE}{rule}{test}")).remove(0);
            assert_eq!(outcome.is_good(), good, "{outcome:?}");
        }
    }
    let denied = "[[test]]\nname = 't'\npacket = 'tcp any > any:24-25 in lan'\nexpect = 'reject'\n";
    assert!(!outcomes(&format!("{WIRE}{rule}{denied}"))[0].is_good(), "port 24 is denied without an answer");
}

fn rule() -> impl Strategy<Value = String> {
    let key = |name: &'static str, values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values))
            .prop_map(move |value| value.map_or(String::new(), |value| format!("{name} = {value}\n")))
    };
    let services =
        &["'tcp/22-23'", "'tcp/24'", "['tcp', 'udp/22']", "'icmp/echo'", "['icmp/3/4', 'gre']", "'proto/89'", "'udp'"];
    let ported =
        &["", "service = 'tcp'\nsource_port = 1000\n", "service = ['tcp/22', 'udp']\nsource_port = '1000-1999'\n"];
    (
        key("from", &["'lan'", "'outside'"]),
        key("source", &["'10.0.0.0/31'", "'10.0.0.2'", "['10.0.0.1', '10.0.0.3']", "'2001:db8::/32'"]),
        key("destination", &["'192.0.2.0'", "'192.0.2.0/24'"]),
        key("vlan", &["5", "'untagged'", "['6-4095', 'untagged']"]),
        prop::sample::select(ported),
        key("service", services),
        prop::sample::select(vec!["allow", "deny", "count"]),
    )
        .prop_filter_map("families meet", |(from, source, destination, vlan, ported, service, action)| {
            let service = if ported.is_empty() { service } else { ported.to_owned() };
            let meet = !source.contains(':') || destination.is_empty();
            meet.then(|| format!("{from}{source}{destination}{vlan}{service}action = '{action}'\n"))
        })
}

/// One packet of every kind that the rules above can tell from others, as far as it is in the range that is tested.
static UNIVERSE: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(universe);

fn universe() -> Vec<Vec<u8>> {
    let mut kinds = Vec::new();
    for (protocol, sport, dport) in ["tcp", "udp", "sctp"].into_iter().flat_map(|protocol| {
        [999, 1000, 1500, 2000]
            .into_iter()
            .flat_map(move |sport| [21, 22, 23, 24, 25].map(|dport| (protocol, sport, dport)))
    }) {
        kinds.push((protocol.to_owned(), format!(":{sport}"), format!(":{dport}"), ""));
    }
    for kind in ["8", "8/1", "3/4", "3/5", "13"] {
        kinds.push(("icmp".into(), String::new(), String::new(), kind));
    }
    for protocol in ["gre", "proto/89", "proto/200", "icmp6"] {
        // ICMPv6 in IPv4 is a protocol like any other, and has no notation of its own.
        kinds.push((if protocol == "icmp6" { "proto/201" } else { protocol }.into(), String::new(), String::new(), ""));
    }
    for protocol in ["tcp", "udp", "icmp", "gre"] {
        kinds.push((protocol.into(), String::new(), String::new(), "fragment"));
    }
    let mut frames = Vec::new();
    for (protocol, sport, dport, word) in &kinds {
        for (source, destination) in (0..4).flat_map(|source| (0..2).map(move |destination| (source, destination))) {
            for tag in ["untagged", "vlan 4", "vlan 5", "vlan 6"] {
                let text =
                    format!("{protocol} 10.0.0.{source}{sport} > 192.0.2.{destination}{dport} {word} {tag} in lan");
                let notation = Notation::parse(&text).unwrap_or_else(|error| panic!("{}", error.shown(&text)));
                frames.push(frame(&notation).expect("one packet"));
            }
        }
    }
    frames
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A test of a range holds exactly if it does for every packet in it; and where it does not, the packet it shows is one.
    #[test]
    fn ranges_agree_with_the_datapath(
        rules in prop::collection::vec(rule(), 0..6),
        default in prop::sample::select(vec!["allow", "deny"]),
        expect in prop::sample::select(vec![Expect::Allow, Expect::Deny]),
        except in prop::collection::vec(0usize..6, 0..3),
    ) {
        let except: Vec<String> =
            except.into_iter().filter(|at| *at < rules.len()).map(|at| format!("'rule[{at}]'")).collect();
        let listed: String = rules.iter().map(|rule| format!("[[acl.rule]]\n{rule}")).collect();
        let toml = format!("{WIRE}[acl]\ndefault = '{default}'\n{listed}");
        let range = "any 10.0.0.0/30 > 192.0.2.0/31 in lan";
        let test = format!("[[test]]\nname = 't'\npacket = '{range}'\nexpect = '{}'\nexcept = [{}]\n", expect.word(), except.join(", "));
        let outcome = outcomes(&format!("{toml}{test}")).remove(0);

        let mut datapath = Datapath::new(&toml);
        let mut meets = |frames: &[Vec<u8>]| {
            datapath.push_all("lan", frames).iter().all(|end| {
                let excepted = except.contains(&format!("'{}'", end.rule()));
                excepted || matches!(end, End::Sent { .. }) == (expect == Expect::Allow)
            })
        };
        prop_assert_eq!(outcome.is_good(), meets(&UNIVERSE), "{}\n{:?}", toml, outcome);
        if let Some(packet) = &outcome.packet {
            let notation = Notation::parse(packet).unwrap_or_else(|error| panic!("{}", error.shown(packet)));
            prop_assert!(!meets(&[frame(&notation).expect("one packet")]), "{}\n{:?}", toml, outcome);
        }
    }
}

#[test]
fn ranges_go_where_destinations_are_translated_to() {
    let router = include_str!("../../config/router.toml");
    let one = |test: &str| {
        let text = format!("{router}\n[[test]]\nname = 'last'\n{test}\n");
        let config = Config::parse(&Source::new("router.toml", &text)).unwrap_or_else(|list| panic!("{list:#?}"));
        let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
        let outcomes = run(&config, &blueprint).unwrap_or_else(|list| panic!("{list:#?}"));
        assert!(outcomes[..outcomes.len() - 1].iter().all(Outcome::is_good), "{outcomes:#?}");
        let last = outcomes.last().expect("a test");
        last.got.as_ref().map(|got| format!("{}: {got}", last.result))
    };
    let forwarded = one("packet = 'tcp any > 192.0.2.2:400-500 in wan'\nexpect = 'deny'").expect("one is forwarded");
    assert!(forwarded.starts_with("failed: got allow by rule \"web server\""), "{forwarded}");
    assert!(forwarded.contains("> 192.0.2.2:443"), "as it comes: {forwarded}");
    for holds in [
        "packet = ['tcp any > 192.0.2.2:1-442 in wan', 'tcp any > 192.0.2.2:444-65535 in wan', 'udp any > 192.0.2.2 in wan']\nexpect = 'deny'",
        "packet = 'any any > any in wan'\nexpect = 'deny'\nexcept = ['web server', 'pings']",
    ] {
        assert_eq!(one(holds), None, "{holds}");
    }
}

/// Whatever a packet is, the part of a range that it belongs to says where it goes.
#[test]
fn parts_of_ranges_are_what_packets_become() {
    let pairs = "[[dnat.one_to_one]]\nzone = 'outside'\ninside = '10.0.1.0/28'\noutside = '203.0.113.0/28'\n";
    let toml = format!(
        "{TWO_PORTS}[pipeline]\nstages = ['conntrack', 'dnat', 'route', 'acl', 'snat']\n[acl]\ndefault = 'allow'\n[snat]\n\
         [[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.0/30'\nservice = ['tcp/80', 'udp/9000-9010']\nto_destination = 'none'\n\
         [[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.0/29'\nservice = ['tcp/80-90', 'udp/9000-9010']\n\
         to_destination = '10.0.0.5:8000-8010'\n\
         [[dnat.rule]]\nfrom = 'outside'\nservice = 'tcp/85'\nto_destination = ['10.0.0.7:99', '[2001:db8::7]:99']\n{pairs}"
    );
    let config = Config::parse(&Source::new("t.toml", &toml)).unwrap_or_else(|list| panic!("{list:#?}"));
    let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
    let destinations = &blueprint.nat.as_ref().expect("translation").steering.destinations;
    let ranges = acl::range::Wanted { fragment: Some(false), ..Default::default() };
    let anything = acl::range::Wanted {
        source: [vec![(0, 0)], vec![(0, 0)]],
        destination: [vec![(0, 0)], vec![(0, 0)]],
        ..ranges
    };
    for range in anything.ranges().into_iter().filter(|range| range.transport) {
        for port in 0..2 {
            let parts = translated::parts(Some(destinations), range.clone(), port);
            for (proto, dst, dport) in (0..40u8).flat_map(|n| {
                (0..14u16).map(move |at| {
                    let net = [[192, 0, 2], [203, 0, 113], [224, 0, 0], [8, 8, 8]][usize::from(n % 4)];
                    let dport = [79, 80, 81, 85, 90, 91, 99, 8999, 9000, 9005, 9010, 9011, 1, 443][usize::from(at)];
                    (if n & 4 == 0 { 6 } else { 17 }, [net[0], net[1], net[2], n / 4], dport)
                })
            }) {
                use crate::packet::meta::flag;
                let mut meta = crate::packet::Meta { proto, dport, port, ..crate::packet::Meta::UNKNOWN };
                meta.flags = flag::L4 | flag::PORTS | if range.v6 { flag::IPV6 } else { flag::IPV4 };
                meta.dst[..4].copy_from_slice(&dst);
                let number = |bytes: &[u8; 16]| u128::from_be_bytes(*bytes);
                let holds = |range: &Range, dst: u128, dport: u16| {
                    let of = |dimension: usize| &range.sets[dimension];
                    of(dimension::PROTOCOL).contains(proto.into())
                        && of(dimension::DESTINATION).contains(dst)
                        && of(dimension::DPORT).contains(dport.into())
                };
                let its: Vec<_> =
                    parts.iter().filter(|part| holds(&part.before(&part.judged), number(&meta.dst), dport)).collect();
                assert_eq!(its.len(), 1, "each packet is of one part: {meta:?}");
                let (to, to_port) = destinations.find(&meta).and_then(|found| found.to).unwrap_or((meta.dst, dport));
                assert!(
                    holds(&its[0].judged, number(&to), to_port),
                    "{meta:?} becomes {to:?} {to_port}: {:?}",
                    its[0].judged
                );
            }
        }
    }
}
