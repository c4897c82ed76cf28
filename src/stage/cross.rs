//! `cross`: a wire between two ports.
//!
//! What comes in on one end leaves by the other, in both directions, as it came or with other MAC addresses: a transparent
//! firewall is a cross with an `acl` behind it. An appliance may have several wires; each is a domain of its own. Alone in the
//! pipeline, a cross that rewrites nothing forwards frames without reading them.

use std::sync::Arc;

use crate::config::source::At;
use crate::flow::entry::Scope;
use crate::packet::{BATCH, Batch, Mask, Meta, NO_PORT, NO_RULE, bits};
use crate::stats::{Line, Lines, Reason};
use crate::wire::ethernet::Rewrite;

use super::ingress::Ports;
use super::{Action, Cx, Depth, FlowCommit, FlowPlan, Plan, PlanCx, Stage};

crate::lines! {
    /// Why a cross drops.
    pub enum Drops {
        /// The port is the end of no wire.
        NoWire = "no-wire",
    }
}

crate::section! {
    /// `[cross]`
    pub struct Config {
        /// The wires.
        pub wire: Vec<Wire>,
    }
}

crate::section! {
    /// `[[cross.wire]]`
    pub struct Wire {
        /// The names of its two ports.
        pub ports: At<Vec<At<String>>>,
        /// Rewrite MAC addresses: each frame leaves with the egress port's MAC as its source and, if `peer` is given, the peer's as its destination.
        pub rewrite_mac: bool = false,
        /// With `rewrite_mac`: the MACs of the stations behind the two ports, in the order of `ports`.
        pub peers: Option<At<Vec<At<String>>>>,
    }
}

/// The stage.
pub struct Cross;

impl Stage for Cross {
    const NAME: &'static str = "cross";
    const DOC: &'static str = "A wire between two ports: what comes in on one end leaves by the other, in both directions, \
                               as it came or with other MAC addresses. Several wires may share an appliance.";
    const JUDGES: bool = true;
    const DEPTH: Depth = Depth::Nothing;
    const EGRESS: bool = true;
    const REASONS: &'static [Line] = Drops::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let mut end = [Action::OPEN; 256];
        let mut good = true;
        for (number, wire) in config.wire.iter().enumerate() {
            good &= connect(wire, number, &mut end, cx).is_some();
        }
        let no_wire = cx.reasons::<Drops>().at(Drops::NoWire);
        good.then(|| Plan::Flow(Arc::new(Wires { end, no_wire })))
    }
}

/// Notes where both ends of a wire lead; `None` after noting what is wrong with it.
fn connect(wire: &Wire, number: usize, end: &mut [Action; 256], cx: &mut PlanCx<'_>) -> Option<()> {
    let key = format!("cross.wire[{number}].ports");
    let [a, b] = wire.ports.as_slice() else {
        cx.mistakes.at(&wire.ports.place, &key, format!("a wire has two ports, this one {}", wire.ports.len()));
        return None;
    };
    let mut ports = [0; 2];
    for (port, name) in ports.iter_mut().zip([a, b]) {
        let Some(index) = cx.names.port(name) else {
            cx.mistakes.unknown(&name.place, &key, "port", name, cx.names.ports.iter().map(|port| port.name.as_str()));
            return None;
        };
        if cx.names.ports[usize::from(index)].carrier.is_some() {
            let help = "name its parent: a wire carries all VLANs, and rules of `acl` tell them apart";
            let message = format!("{:?} is a VLAN of a port, and a wire joins ports with a device", name.value);
            cx.mistakes.with_help(&name.place, &key, message, help);
            return None;
        }
        *port = index;
    }
    for (port, name) in ports.iter().zip([a, b]) {
        if end[usize::from(*port)].out != NO_PORT || ports[0] == ports[1] {
            cx.mistakes.at(&name.place, &key, format!("port {:?} is already the end of a wire", name.value));
            return None;
        }
    }
    let peers = peer_macs(wire, number, cx)?;
    for (from, to) in [(0, 1), (1, 0)] {
        let source = cx.names.ports[usize::from(ports[to])].mac;
        let rewrite = match wire.rewrite_mac {
            true => Rewrite::macs(peers[to], Some(source.unwrap_or(UNKNOWN_MAC))),
            false => Rewrite::NOTHING,
        };
        end[usize::from(ports[from])] =
            Action { adjacency: cx.adjacencies.index(rewrite), domain: number as u16, out: ports[to], ..Action::OPEN };
    }
    Some(())
}

/// Stands for a port's MAC where there is no port: under `check` and `replay`. Locally administered.
const UNKNOWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0];

/// The MACs of the stations at both ends, where given.
fn peer_macs(wire: &Wire, number: usize, cx: &mut PlanCx<'_>) -> Option<[Option<[u8; 6]>; 2]> {
    let Some(peers) = &wire.peers else { return Some([None; 2]) };
    let key = format!("cross.wire[{number}].peers");
    if !wire.rewrite_mac {
        cx.mistakes.with_help(&peers.place, &key, "peers are only written with rewrite_mac", "set rewrite_mac = true");
        return None;
    }
    let [a, b] = peers.as_slice() else {
        cx.mistakes.at(&peers.place, &key, format!("expected two MAC addresses, found {}", peers.len()));
        return None;
    };
    let mut macs = [None; 2];
    for (mac, text) in macs.iter_mut().zip([a, b]) {
        *mac = parse_mac(text);
        if mac.is_none() {
            let message = format!("expected a MAC address such as \"02:00:00:00:00:01\", found {:?}", text.value);
            cx.mistakes.at(&text.place, &key, message);
        }
    }
    (macs[0].is_some() && macs[1].is_some()).then_some(macs)
}

/// A unicast MAC address in the usual notation.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

/// Where each port's frames go.
struct Wires {
    /// By port: the action of every frame that arrives there.
    end: [Action; 256],
    no_wire: Reason,
}

impl FlowPlan for Wires {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        let mut denied = 0;
        for i in bits(todo) {
            actions[i] = self.end[usize::from(facts[i].port)];
            if actions[i].out == NO_PORT {
                actions[i].deny(self.no_wire, NO_RULE);
                denied |= 1 << i;
            }
        }
        denied
    }

    fn scope(&self, port: u8) -> Option<Scope> {
        let end = &self.end[usize::from(port)];
        (end.out != NO_PORT).then(|| Scope { domain: 0, wire: end.domain as u8 + 1 })
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Nothing)
    }

    fn describe(&self) -> Vec<String> {
        let wires = self.end.iter().filter(|action| action.out != NO_PORT).count() / 2;
        let rewriting = self.end.iter().filter(|action| action.adjacency != 0).count() / 2;
        vec![format!("{wires} wire(s), MAC addresses rewritten on {rewriting}")]
    }

    fn exits(&self, port: u8) -> Option<Ports> {
        let mut exits = Ports::default();
        self.relay(port).into_iter().for_each(|action| exits.insert(action.out));
        Some(exits)
    }

    fn relay(&self, port: u8) -> Option<Action> {
        let action = self.end[usize::from(port)];
        (action.out != NO_PORT).then_some(action)
    }
}

/// A cross counts nothing of its own.
struct Nothing;

impl FlowCommit for Nothing {
    fn commit(&mut self, _judged: Mask, _batch: &Batch, _actions: &[Action; BATCH], _cx: &mut Cx<'_>) {}
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::source::Source;
    use crate::stage::pipeline::compile;
    use crate::testkit::bench::{Bench, End, TWO_PORTS};
    use crate::testkit::packets::Packet;

    const WIRE: &str = "[pipeline]\nstages = ['cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";

    fn mistakes(toml: &str) -> Vec<String> {
        let text = format!("{TWO_PORTS}{toml}");
        let listed = match Config::parse(&Source::new("cross.toml", &text)) {
            Ok(config) => compile(&config, 1, &[]).map(|_| ()).expect_err("a mistake"),
            Err(listed) => listed,
        };
        listed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn frames_leave_by_the_other_end_as_they_came() {
        let mut bench = Bench::new(WIRE);
        assert!(bench.blueprint().relay.is_some(), "nothing reads them");
        let frame = Packet::udp("10.0.0.1:5", "10.0.0.2:6").vlan(7).bytes();
        for (from, to) in [("lan", "wan"), ("wan", "lan")] {
            assert_eq!(bench.push(from, &frame), End::Sent { port: to.into(), bytes: frame.clone(), rule: None });
        }
        // Unread, whatever it is: a runt, a frame of nothing known.
        for odd in [vec![], vec![1; 5], vec![0xff; 60]] {
            assert_eq!(bench.push("lan", &odd).bytes(), Some(&odd[..]));
        }
    }

    #[test]
    fn several_wires_and_a_port_on_none() {
        let ports: String =
            ["a", "b", "c", "d", "e"].map(|n| format!("[[port]]\nname = '{n}'\ndevice = 'net_null{n}'\n")).concat();
        let ports = ports.replace("net_nulla", "net_null0").replace("net_nullb", "net_null1");
        let ports =
            ports.replace("net_nullc", "net_null2").replace("net_nulld", "net_null3").replace("net_nulle", "net_null4");
        let wires = "[cross]\nwire = [{ ports = ['a', 'b'] }, { ports = ['d', 'c'] }]\n";
        let mut bench = Bench::new(&format!("{ports}[pipeline]\nstages = ['cross']\n{wires}"));
        let frame = Packet::udp("10.0.0.1:5", "10.0.0.2:6").bytes();
        for (from, to) in [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")] {
            assert!(matches!(bench.push(from, &frame), End::Sent { port, .. } if port == to), "{from}");
        }
        assert_eq!(bench.push("e", &frame).reason(), "cross.no-wire");
    }

    #[test]
    fn macs_are_rewritten_and_nothing_else() {
        let peers = "peers = ['02:00:00:00:00:01', '02:00:00:00:00:02'], rewrite_mac = true";
        let mut bench = Bench::new(&WIRE.replace("'wan'] }", &format!("'wan'], {peers} }}")));
        let frame = Packet::tcp("10.0.0.1:5", "10.0.0.2:6").bytes();
        for (from, last) in [("lan", 2), ("wan", 1)] {
            let sent = bench.push(from, &frame);
            let sent = sent.bytes().expect("sent");
            assert_eq!(sent[..6], [2, 0, 0, 0, 0, last]);
            assert_eq!(sent[6..12], super::UNKNOWN_MAC, "a port without a device has this one");
            assert_eq!(sent[12..], frame[12..]);
        }
    }

    #[test]
    fn mistakes_are_placed() {
        let one = |wire: &str| {
            let all = mistakes(&format!("[pipeline]\nstages = ['cross']\n[cross]\nwire = [{wire}]\n"));
            assert_eq!(all.len(), 1, "{all:#?}");
            all[0].clone()
        };
        assert!(
            one("{ ports = ['lan', 'wam'] }")
                .contains("cross.toml:12:27: cross.wire[0].ports: there is no port \"wam\"")
        );
        assert!(one("{ ports = ['lan'] }").contains("a wire has two ports, this one 1"));
        assert!(one("{ ports = ['lan', 'lan'] }").contains("already the end of a wire"));
        assert!(one("{ ports = ['lan', 'wan'], peers = ['02:00:00:00:00:01'] }").contains("set rewrite_mac = true"));
        let group =
            "{ ports = ['lan', 'wan'], rewrite_mac = true, peers = ['02:00:00:00:00:01', '03:00:00:00:00:01'] }";
        assert!(one(group).contains("expected a MAC address"));
    }

    #[test]
    fn a_pipeline_needs_one_egress_before_those_who_ask() {
        let acl_first =
            mistakes("[pipeline]\nstages = ['acl', 'cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n");
        assert!(acl_first.iter().any(|m| m.contains("move it behind \"cross\"")), "{acl_first:#?}");
        let none = mistakes("[pipeline]\nstages = ['talkers']\n");
        assert!(none.iter().any(|m| m.contains("add \"cross\"")), "{none:#?}");
    }
}
