use std::time::Duration;

use super::*;
use crate::testkit::bench::{Bench, End};
use crate::testkit::packets::Packet;
use crate::wire::tcp::RST;

/// The inside may reach everything by UDP, ICMP and TCP, and is reached by nobody.
const RULES: &str = "\
[memory]\nflows = 1000\n\
[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
[[acl.rule]]\nname = 'out'\nfrom = 'inside'\nto = 'outside'\naction = 'allow'\n";

const A: &str = "10.0.0.1:1000";
const B: &str = "192.0.2.1:53";
const C: &str = "[2001:db8::1]:1000";
const D: &str = "[2001:db8::2]:53";

fn sent(end: &End, port: &str) -> bool {
    matches!(end, End::Sent { port: by, rule: Some(rule), .. } if by == port && rule == "out")
}

#[test]
fn return_traffic_needs_no_rule() {
    for (a, b) in [(A, B), (C, D)] {
        let mut bench = Bench::new(RULES);
        let (there, back) = (Packet::udp(a, b).bytes(), Packet::udp(b, a).bytes());
        assert_eq!(bench.push("wan", &back).reason(), "acl.denied-default");
        assert!(sent(&bench.push("lan", &there), "wan"));
        assert!(sent(&bench.push("wan", &back), "lan"));
        assert!(sent(&bench.push("lan", &there), "wan"));
        // Another port of the same hosts is another flow, and so is another VLAN.
        let other = Packet::udp(b, &a.replace("1000", "1001")).bytes();
        assert_eq!(bench.push("wan", &other).reason(), "acl.denied-default");
        assert_eq!(bench.push("wan", &Packet::udp(b, a).vlan(7).bytes()).reason(), "acl.denied-default");
        assert_eq!(bench.counter("conntrack", "new"), 1);
        let rule = bench.blueprint().rules.all()[0].counters;
        let counters = &bench.sheet().counters[rule..rule + rule_counter::COUNT];
        assert_eq!((counters[rule_counter::PACKETS], counters[rule_counter::FLOWS]), (3, 1));
        assert_eq!(counters[rule_counter::BYTES], (2 * there.len() + back.len()) as u64);
    }
}

#[test]
fn of_a_flow_that_is_over_many_packets_may_come_at_once() {
    let mut bench = Bench::new(RULES);
    let there = Packet::udp(A, B).bytes();
    bench.push("lan", &there);
    bench.pass(Duration::from_secs(121), false);
    assert!(bench.push_all("lan", &[&there; 3]).iter().all(|end| sent(end, "wan")));
    assert_eq!((bench.counter("conntrack", "new"), bench.counter("conntrack", "expired")), (2, 1));

    let client = Packet::tcp(A, B);
    let answer = Packet::tcp(B, A).flags(SYN | ACK).sequence(900).acknowledgment(101);
    let syn = client.clone().sequence(100);
    let last = client.clone().flags(ACK).sequence(101).acknowledgment(901);
    let reset = client.clone().flags(RST).sequence(101);
    for (port, packet) in [("lan", &syn), ("wan", &answer), ("lan", &last), ("lan", &reset)] {
        assert_eq!(bench.push(port, &packet.bytes()).reason(), "sent");
    }
    let again = client.sequence(5000).bytes();
    assert!(bench.push_all("lan", &[&again; 3]).iter().all(|end| sent(end, "wan")));
    assert_eq!(bench.counter("conntrack", "new"), 4);
    let tables = bench.tables().expect("flows");
    tables.v4.check();
    assert_eq!(tables.v4.occupancy().used, 2);
}

#[test]
fn a_flow_is_forgotten_after_its_time_and_no_sooner() {
    for swept in [false, true] {
        let mut bench = Bench::new(RULES);
        let (there, back) = (Packet::udp(A, B).bytes(), Packet::udp(B, A).bytes());
        bench.push("lan", &there);
        bench.pass(Duration::from_secs(119), swept);
        assert!(sent(&bench.push("wan", &back), "lan"), "within 2 minutes");
        bench.pass(Duration::from_secs(299), swept);
        assert!(sent(&bench.push("wan", &back), "lan"), "an answered flow has 5 minutes");
        bench.pass(Duration::from_secs(301), swept);
        assert_eq!(bench.push("wan", &back).reason(), "acl.denied-default");
        assert_eq!(bench.counter("conntrack", "expired"), 1);
    }
}

#[test]
fn several_packets_of_a_new_flow_make_one_flow() {
    let mut bench = Bench::new(RULES);
    let (one, other) = (Packet::udp(A, B).bytes(), Packet::udp("10.0.0.2:1000", B).bytes());
    let ends = bench.push_all("lan", &[&one, &other, &one, &one, &other]);
    assert!(ends.iter().all(|end| sent(end, "wan")));
    assert_eq!(bench.counter("conntrack", "new"), 2);
    let ends = bench.push_all("wan", &[&Packet::udp(B, "10.0.0.9:1").bytes(), &Packet::udp(B, "10.0.0.9:1").bytes()]);
    assert!(ends.iter().all(|end| end.reason() == "acl.denied-default"), "denied packets take no entry");
    assert_eq!(bench.counter("conntrack", "new"), 2);
}

#[test]
fn echoes_are_answered_once_asked_for() {
    let mut bench = Bench::new(RULES);
    let (ask, answer) = (
        Packet::echo_request("10.0.0.1", "192.0.2.1", 5, 1).bytes(),
        Packet::echo_reply("192.0.2.1", "10.0.0.1", 5, 1).bytes(),
    );
    assert_eq!(bench.push("wan", &answer).reason(), "conntrack.no-flow");
    assert_eq!(
        bench.push("lan", &Packet::echo_reply("10.0.0.1", "192.0.2.1", 5, 1).bytes()).reason(),
        "conntrack.no-flow"
    );
    assert!(sent(&bench.push("lan", &ask), "wan"));
    assert!(sent(&bench.push("wan", &answer), "lan"));
    // The other end asking with the same identifier is no answer.
    let asks_back = Packet::echo_request("192.0.2.1", "10.0.0.1", 5, 1).bytes();
    assert_eq!(bench.push("wan", &asks_back).reason(), "acl.denied-default");
    assert_eq!(
        bench.push("wan", &Packet::echo_reply("192.0.2.1", "10.0.0.1", 6, 1).bytes()).reason(),
        "conntrack.no-flow"
    );
}

#[test]
fn an_error_passes_with_the_flow_it_quotes_and_with_no_other() {
    let mut bench = Bench::new(RULES);
    let there = Packet::udp(A, B);
    let error = |about: &Packet, to: &str| Packet::icmp_error("198.51.100.1", to, 3, 3, about).bytes();
    assert_eq!(bench.push("wan", &error(&there, "10.0.0.1")).reason(), "conntrack.bad-error");
    bench.push("lan", &there.bytes());
    assert!(sent(&bench.push("wan", &error(&there, "10.0.0.1")), "lan"));
    assert_eq!(bench.push("wan", &error(&there, "10.0.0.2")).reason(), "conntrack.bad-error", "not to its source");
    assert_eq!(bench.push("lan", &error(&there, "10.0.0.1")).reason(), "conntrack.bad-error", "from the wrong side");
    let other = Packet::udp(A, "192.0.2.1:54");
    assert_eq!(bench.push("wan", &error(&other, "10.0.0.1")).reason(), "conntrack.bad-error");
    let mut broken = error(&there, "10.0.0.1");
    broken[36] ^= 1;
    assert_eq!(bench.push("wan", &broken).reason(), "conntrack.bad-checksum");
    // About an answer, from the inside.
    let back = Packet::udp(B, A);
    bench.push("wan", &back.bytes());
    assert!(sent(&bench.push("lan", &error(&back, "192.0.2.1")), "wan"));
    // IPv6, a packet too big.
    let there = Packet::udp(C, D).payload(&[7; 1000]);
    bench.push("lan", &there.bytes());
    let error = Packet::icmp_error("2001:db8:9::1", "2001:db8::1", 2, 0, &there).bytes();
    assert!(sent(&bench.push("wan", &error), "lan"));
    assert_eq!(bench.counter("conntrack", "errors"), 3);
}

#[test]
fn a_full_table_refuses_by_name_and_harms_no_flow_that_is_open() {
    let mut bench = Bench::new(
        &RULES
            .replace("flows = 1000", "flows = 64")
            .replace("[cross]", "[conntrack]\nlimit = { half_open = 16 }\n[cross]"),
    );
    let there = |n: u8| Packet::udp(&format!("10.0.0.{n}:1000"), B).bytes();
    let back = |n: u8| Packet::udp(B, &format!("10.0.0.{n}:1000")).bytes();
    for n in 1..=60 {
        assert!(sent(&bench.push("lan", &there(n)), "wan"));
        assert!(sent(&bench.push("wan", &back(n)), "lan"));
    }
    for n in 61..=200 {
        assert!(sent(&bench.push("lan", &there(n)), "wan"), "half-open flows make room for each other");
    }
    assert_eq!(bench.counter("conntrack", "evicted"), 136);
    assert!((1..=60).all(|n| sent(&bench.push("wan", &back(n)), "lan")), "open flows are never evicted");
    for n in 197..=200 {
        assert!(sent(&bench.push("wan", &back(n)), "lan"));
    }
    assert_eq!(bench.push("lan", &there(201)).reason(), "conntrack.table-full");
    assert!((1..=60).all(|n| sent(&bench.push("wan", &back(n)), "lan")));
}

#[test]
fn a_packet_on_another_port_is_judged_for_its_direction() {
    let mut bench = Bench::new(RULES);
    let there = Packet::udp(A, B).bytes();
    bench.push("lan", &there);
    assert_eq!(bench.push("wan", &there).reason(), "acl.denied-default", "forged from the outside");
    assert!(sent(&bench.push("lan", &there), "wan"));
}

#[test]
fn neighbors_find_each_other_without_a_rule() {
    let solicitation = Packet::icmp("fe80::1", "ff02::1:ff00:2", 135, 0, [0; 4]).payload(&[0; 16]);
    let mut bench = Bench::new(RULES);
    assert_eq!(bench.push("wan", &solicitation.clone().ttl(255).bytes()).reason(), "sent");
    assert_eq!(bench.push("wan", &solicitation.clone().ttl(254).bytes()).reason(), "acl.denied-default");
    let redirect = Packet::icmp("fe80::1", "fe80::2", 137, 0, [0; 4]).payload(&[0; 32]).ttl(255);
    assert_eq!(bench.push("wan", &redirect.bytes()).reason(), "acl.denied-default");
    let mut bench = Bench::new(&RULES.replace("[cross]", "[conntrack]\nneighbor_discovery = false\n[cross]"));
    assert_eq!(bench.push("wan", &solicitation.ttl(255).bytes()).reason(), "acl.denied-default");
}

#[test]
fn checksums_of_first_packets_are_verified() {
    let mut bench = Bench::new(RULES);
    let mut broken = Packet::udp(A, B).payload(b"hello").bytes();
    *broken.last_mut().expect("bytes") ^= 1;
    assert_eq!(bench.push("lan", &broken).reason(), "conntrack.bad-checksum");
    assert!(sent(&bench.push("lan", &Packet::udp(A, B).payload(b"hello").no_checksum().bytes()), "wan"), "RFC 768");
    // Later packets are the hosts' matter.
    assert!(sent(&bench.push("lan", &broken), "wan"));
}

#[test]
fn conntrack_stands_before_what_judges() {
    let text = RULES.replace("'conntrack', 'cross', 'acl'", "'cross', 'conntrack', 'acl'");
    let text = format!("{}{text}", crate::testkit::bench::TWO_PORTS);
    let config = crate::config::Config::parse(&crate::config::source::Source::new("t.toml", &text)).expect("a config");
    let mistakes = crate::stage::pipeline::compile(&config, 1, &[]).err().expect("a mistake");
    assert!(mistakes[0].message.contains("must stand before"), "{mistakes:?}");
}
