use proptest::prelude::*;

use super::*;
use crate::testkit::bench::Bench;
use crate::testkit::packets::Packet;
use crate::wire::tcp::{ACK, SYN};

const CONFIG: &str = "\
[memory]\nflows = 1000\n\
[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
[conntrack.limit]\nsyn_proxy = 'off'\n\
[set]\noffice = ['10.0.0.0/30', '2001:db8::/64']\n\
[service]\nweb = ['tcp/80', 'tcp/440-443']\n\
[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
[[acl.rule]]\nname = 'web'\nfrom = 'inside'\nservice = ['web']\naction = 'allow'\n\
[[acl.rule]]\nname = 'rest'\naction = 'allow'\n";

/// Source port, destination port, source, destination, kind of packet, from the inside, answered.
type Flow = (u16, u16, u8, u8, u8, bool, bool);

fn flow() -> impl Strategy<Value = Flow> {
    (1..5u16, 438..446u16, 0..6u8, 0..3u8, 0..4u8, any::<bool>(), any::<bool>())
}

fn packets((sport, dport, source, destination, kind, ..): Flow) -> [Packet; 2] {
    let (a, b) = (format!("10.0.0.{source}"), format!("192.0.2.{destination}"));
    let (a6, b6) = (format!("2001:db8::{source}"), format!("2001:db8:1::{destination}"));
    match kind {
        0 => {
            let (a, b) = (format!("{a}:{sport}"), format!("{b}:{dport}"));
            let answer = Packet::tcp(&b, &a).flags(SYN | ACK).sequence(5).acknowledgment(2);
            [Packet::tcp(&a, &b).flags(SYN).sequence(1), answer]
        }
        1 => {
            let (a, b) = (format!("{a}:{sport}"), format!("{b}:{dport}"));
            [Packet::udp(&a, &b), Packet::udp(&b, &a)]
        }
        2 => {
            let (a, b) = (format!("[{a6}]:{sport}"), format!("[{b6}]:{dport}"));
            [Packet::udp(&a, &b), Packet::udp(&b, &a)]
        }
        _ => [Packet::echo_request(&a, &b, sport, 1), Packet::echo_reply(&b, &a, sport, 1)],
    }
}

fn bench(flows: &[Flow]) -> Bench {
    let mut bench = Bench::new(CONFIG);
    for flow in flows {
        let [there, back] = packets(*flow);
        let ports = if flow.5 { ["lan", "wan"] } else { ["wan", "lan"] };
        assert_eq!(bench.push(ports[0], &there.bytes()).reason(), "sent");
        if flow.6 {
            assert_eq!(bench.push(ports[1], &back.bytes()).reason(), "sent");
        }
    }
    bench
}

/// Filters by number, and what they mean in plain words.
fn selection(n: usize) -> (Selection, fn(&Flow) -> bool) {
    let some = |text: &str| Some(text.to_owned());
    let list = |text: &str| vec![text.to_owned()];
    let empty = Selection::default();
    match n {
        0 => (Selection { from: list("inside"), ..empty }, |flow| flow.5),
        1 => (Selection { to: list("lan"), ..empty }, |flow| !flow.5),
        2 => {
            (Selection { source: list("10.0.0.2-10.0.0.4"), ..empty }, |flow| flow.4 != 2 && (2..=4).contains(&flow.2))
        }
        3 => (Selection { source: list("@office"), ..empty }, |flow| flow.4 == 2 || flow.2 < 4),
        4 => (Selection { destination: list("192.0.2.1"), ..empty }, |flow| flow.4 != 2 && flow.3 == 1),
        5 => (Selection { from_port: some("2-3"), ..empty }, |flow| flow.4 != 3 && (2..=3).contains(&flow.0)),
        6 => (Selection { to_port: some("443"), ..empty }, |flow| flow.4 != 3 && flow.1 == 443),
        7 => (Selection { service: list("web"), ..empty }, |flow| flow.4 == 0 && (440..=443).contains(&flow.1)),
        8 => (Selection { service: list("icmp/echo"), ..empty }, |flow| flow.4 == 3),
        9 => (Selection { protocol: some("udp"), ..empty }, |flow| matches!(flow.4, 1 | 2)),
        10 => (Selection { state: some("replied"), ..empty }, |flow| flow.4 != 0 && flow.6),
        11 => (Selection { state: some("new"), ..empty }, |flow| flow.4 != 0 && !flow.6),
        12 => (Selection { state: some("syn-received"), ..empty }, |flow| flow.4 == 0 && flow.6),
        13 => (Selection { state: some("half-open"), ..empty }, |flow| flow.4 == 0 || !flow.6),
        14 => {
            let web = |flow: &Flow| flow.5 && flow.4 == 0 && (440..=443).contains(&flow.1);
            (Selection { rule: some("web"), ..empty }, web)
        }
        _ => (Selection { state: some("udp-new"), ..empty }, |flow| matches!(flow.4, 1 | 2) && !flow.6),
    }
}

/// What tells flows apart.
fn identity(flow: &Flow) -> (u16, u16, u8, u8, u8) {
    let dport = if flow.4 == 3 { 0 } else { flow.1 };
    (flow.0, dport, flow.2, flow.3, flow.4)
}

fn identify<E: Entry>(entry: &E) -> (u16, u16, u8, u8, u8) {
    let key = entry.key();
    let ((source, destination), (sport, dport)) = (key.addresses(), key.ports());
    let kind = match (key.protocol(), source.len()) {
        (6, _) => 0,
        (17, 4) => 1,
        (17, _) => 2,
        _ => 3,
    };
    let last = |address: &[u8]| address[address.len() - 1];
    (sport, dport, last(source), last(destination), kind)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_worker_finds_what_is_meant_and_removes_no_more(
        flows in prop::collection::vec(flow(), 0..40), one in 0..16usize, other in 0..16usize,
    ) {
        // One flow of each identity, from whichever side came first.
        let mut known = std::collections::BTreeMap::new();
        for flow in flows {
            known.entry(identity(&flow)).or_insert(flow);
        }
        let flows: Vec<Flow> = known.values().copied().collect();
        let mut bench = bench(&flows);
        let ((one, means), (other, means_too)) = (selection(one), selection(other));
        let mut both = one.clone();
        both.from.extend(other.from.clone());
        both.to.extend(other.to.clone());
        let field = |a: &Option<String>, b: &Option<String>| a.clone().or(b.clone());
        both.protocol = field(&both.protocol, &other.protocol);
        both.to_port = field(&both.to_port, &other.to_port);
        both.state = field(&both.state, &other.state);
        // Two of one kind are not both in force.
        let joint = both.protocol == other.protocol || other.protocol.is_none();
        let joined = joint && [&other.source, &other.destination, &other.service].iter().all(|list| list.is_empty())
            && other.from_port.is_none() && other.rule.is_none()
            && (other.to_port.is_none() || one.to_port.is_none())
            && (other.state.is_none() || one.state.is_none());
        let (asked, expected): (_, Vec<_>) = match joined {
            true => (both, flows.iter().filter(|flow| means(flow) && means_too(flow)).map(identity).collect()),
            false => (one, flows.iter().filter(|flow| means(flow)).map(identity).collect()),
        };
        let mut found = Vec::new();
        bench.visit(&asked, Task::copy(), |visit| {
            if let Task::Copy { v4, v6 } = &mut visit.task {
                found.extend(v4.drain(..).map(|entry| identify(&entry)));
                found.extend(v6.drain(..).map(|entry| identify(&entry)));
            }
        }).expect("good words");
        found.sort_unstable();
        prop_assert_eq!(&found, &expected);
        let mut removed = 0;
        bench.visit(&asked, Task::Remove, |visit| removed = visit.removed).expect("good words");
        prop_assert_eq!(removed, expected.len() as u64);
        let tables = bench.tables().expect("tracked");
        tables.v4.check();
        tables.v6.check();
        prop_assert_eq!((tables.v4.occupancy().used + tables.v6.occupancy().used) as usize, flows.len() - expected.len());
        prop_assert_eq!(bench.counter("conntrack", "flushed"), removed);
    }
}

#[test]
fn wrong_words_are_told_with_what_was_meant() {
    let mut bench = Bench::new(CONFIG);
    let mut wrong = |selection: Selection| bench.visit(&selection, Task::Remove, |_| ()).expect_err("wrong");
    let list = |text: &str| vec![text.to_owned()];
    let some = |text: &str| Some(text.to_owned());
    let empty = Selection::default();
    for (selection, told) in [
        (
            Selection { from: list("insied"), ..empty.clone() },
            "--from: there is no zone or port \"insied\"; did you mean \"inside\"?",
        ),
        (
            Selection { source: list("@ofice"), ..empty.clone() },
            "--source: there is no set \"ofice\"; did you mean \"office\"?",
        ),
        (Selection { destination: list("10.0.0.1/8"), ..empty.clone() }, "did you mean \"10.0.0.0/8\"?"),
        (
            Selection { service: list("wbe"), ..empty.clone() },
            "--service: there is no service \"wbe\"; did you mean \"web\"?",
        ),
        (Selection { to_port: some("9-3"), ..empty.clone() }, "--to-port: expected a port or a range"),
        (Selection { protocol: some("tpc"), ..empty.clone() }, "--protocol: expected a protocol"),
        (Selection { state: some("establishd"), ..empty.clone() }, "did you mean \"established\"?"),
        (Selection { rule: some("wb"), ..empty.clone() }, "--rule: there is no rule \"wb\""),
    ] {
        let message = wrong(selection);
        assert!(message.contains(told), "{message}");
    }
}
