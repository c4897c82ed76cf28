//! Bonds of devices, through the real binary: a member takes over from another; LACP with a peer of the test's own and
//! between two bonds; members that refuse frames.

mod common;

use std::collections::BTreeSet;

use common::appliance::{Flowgate, cpus, unique, wait_for, workers};
use common::frames::*;
use common::host::{Lab, Tap, dpdk_end, run};
use common::skip;

const CROSS: &str = "[pipeline]\nstages = [\"cross\"]\n[cross]\nwire = [{ ports = [\"lan\", \"uplink\"] }]\n";

fn lab(name: &str) -> Option<Lab> {
    Lab::new().map_err(|why| skip(name, &why)).ok()
}

/// Port `lan` on an interface, `uplink` on a bond.
fn ports(lan: &str, mode: &str, members: &[String]) -> String {
    format!(
        "[[port]]\nname = \"lan\"\ndevice = \"net_af_packet0,iface={lan}\"\n\
         [[port]]\nname = \"uplink\"\nbond = {{ mode = {mode:?}, members = {members:?} }}\n"
    )
}

/// Frames of so many flows.
fn flows(count: u16) -> Vec<Frame> {
    (0..count).map(|i| udp(ip("10.0.0.1"), 1000 + i, ip("10.0.0.2"), 53, &[i as u8; 40])).collect()
}

/// A frame that comes back by a member.
fn back(member: usize) -> Frame {
    udp(ip("10.0.0.2"), 53, ip("10.0.0.1"), 1000 + member as u16, b"back")
}

/// Plugs the cable of a tap, or pulls it: one that is set down may be set up again by net_tap, which writes back flags that it
/// read before.
fn cable(tap: &Tap, plugged: bool) {
    run(&format!("ip link set {} carrier {}", tap.name, if plugged { "on" } else { "off" }));
}

/// A running flowgate with a bond of two taps, and the far ends of its ports.
struct Taps {
    flowgate: Flowgate,
    client: Tap,
    far: [Tap; 2],
    _lab: Lab,
}

impl Taps {
    fn start(mut lab: Lab, mode: &str, workers: &str) -> Taps {
        let (lan, client) = lab.wire();
        let taps = [0, 1].map(|i| format!("fgb{}x{}x{i}", std::process::id() % 100_000, unique()));
        let members: Vec<String> = (0..2).map(|i| format!("net_tap{i},iface={}", taps[i])).collect();
        let flowgate = Flowgate::start(lab.dir.path(), &[&ports(&lan, mode, &members), CROSS, workers].concat());
        taps.iter().for_each(|tap| dpdk_end(None, tap));
        let far = taps.each_ref().map(|tap| Tap::open(tap));
        Taps { flowgate, client, far, _lab: lab }
    }

    /// What the members do.
    fn states(&self) -> [String; 2] {
        let port = self.flowgate.port("uplink");
        [0, 1].map(|at| port["members"][at]["state"].as_str().expect("two members").to_owned())
    }
}

#[test]
fn another_member_takes_over_when_a_link_goes_down() {
    let Some(lab) = lab("bond-failover") else { return };
    let mut taps = Taps::start(lab, "active-backup", "");
    taps.flowgate.wait_for_link("uplink", "up");
    wait_for("both links are up", || !taps.states().contains(&"down".to_owned()));
    let frame = &flows(1)[0];
    let used = taps.states().iter().position(|state| state == "active").expect("one of them is in use");
    for (round, at) in [used, 1 - used, used].into_iter().enumerate() {
        wait_for("a frame by the member in use", || {
            taps.client.send(frame);
            taps.far[at].waiting().contains(frame)
        });
        wait_for("a frame back by the member in use", || {
            taps.far[at].send(&back(at));
            taps.client.waiting().contains(&back(at))
        });
        assert_eq!(taps.states()[at], "active");
        assert_eq!(taps.flowgate.port("uplink")["link"], "up");
        if round == 1 {
            // The first one's link comes back, and nothing changes until the other is lost.
            cable(&taps.far[used], true);
            wait_for("the first one stands by", || taps.states()[used] == "standby");
            assert_eq!(taps.states()[at], "active");
        }
        cable(&taps.far[at], false);
        wait_for("the bond has noticed", || taps.states()[at] == "down");
    }
    taps.flowgate.wait_for_link("uplink", "down");
    taps.flowgate.stop();
}

/// States of a port in LACP (IEEE 802.1AX-2014 section 6.4.2.3).
const COLLECTING: u8 = 0x10;
/// Active, with the short timeout, and ready to aggregate.
const SPEAKING: u8 = 0x07;
/// In sync, collecting and distributing besides.
const WILLING: u8 = 0x3f;

/// The other side of a link, as IEEE 802.1AX has it: says who it is, and what it has heard.
struct Peer {
    port: u8,
    state: u8,
    /// The last the bond said of itself: system to port, and state.
    heard: Option<([u8; 14], u8)>,
}

impl Peer {
    const SYSTEM: [u8; 6] = [0x02, 0, 0, 0, 0xcc, 1];

    /// LACPDUs of the bond taken out of what has arrived, and an answer to each.
    fn answer(&mut self, tap: &mut Tap) -> Vec<Frame> {
        let (slow, data): (Vec<Frame>, Vec<Frame>) =
            tap.waiting().into_iter().partition(|frame| frame[12..14] == [0x88, 0x09]);
        for pdu in slow {
            assert_eq!(pdu[..6], [1, 0x80, 0xc2, 0, 0, 2], "the group of slow protocols");
            assert_eq!(pdu[14..18], [1, 1, 1, 20], "LACP, version 1, actor");
            assert_eq!(pdu[36..38], [2, 20], "partner");
            self.heard = Some((pdu[18..32].try_into().expect("14 bytes"), pdu[32]));
            tap.send(&self.pdu());
        }
        data
    }

    fn pdu(&self) -> Frame {
        let me = [&[0x80, 0][..], &Peer::SYSTEM, &[0, 7, 0x80, 0, 0, self.port]].concat();
        let (partner, state) = self.heard.unwrap_or_default();
        let head = [&[1, 0x80, 0xc2, 0, 0, 2][..], &[2, 0, 0, 0, 0xcc, 0x10 + self.port], &[0x88, 9, 1, 1]].concat();
        let actor = [&[1, 20][..], &me, &[self.state, 0, 0, 0]].concat();
        let partner = [&[2, 20][..], &partner, &[state, 0, 0, 0]].concat();
        let rest = [&[3, 16][..], &[0; 14 + 2 + 50]].concat();
        [head, actor, partner, rest].concat()
    }
}

/// A bond of two taps and a peer behind each.
struct Spoken {
    taps: Taps,
    peers: [Peer; 2],
}

impl Spoken {
    /// Lets the peers answer until the members do what they should.
    fn until(&mut self, states: [&str; 2]) {
        let since = std::time::Instant::now();
        wait_for(&format!("members are {states:?}"), || {
            self.arrived();
            let now = self.taps.states();
            assert!(since.elapsed().as_secs() < 55, "members are {now:?}: {:#}", self.taps.flowgate.port("uplink"));
            now == states
        });
    }

    /// What has arrived by each member beside LACP, which is answered.
    fn arrived(&mut self) -> [Vec<Frame>; 2] {
        let Spoken { taps, peers } = self;
        [0, 1].map(|at| peers[at].answer(&mut taps.far[at]))
    }

    /// Sends flows, each of which arrives once; which of them by each member.
    fn carry(&mut self, frames: &[Frame]) -> [BTreeSet<Frame>; 2] {
        self.arrived();
        frames.iter().for_each(|frame| self.taps.client.send(frame));
        let mut got = [Vec::new(), Vec::new()];
        wait_for("every flow on the other side", || {
            let new = self.arrived();
            got.iter_mut().zip(new).for_each(|(got, new)| got.extend(new));
            frames.iter().all(|frame| got.concat().contains(frame))
        });
        let ours = |got: &Vec<Frame>| got.iter().filter(|frame| frames.contains(frame)).count();
        assert_eq!(got.iter().map(ours).sum::<usize>(), frames.len(), "each of them once");
        got.map(|got| got.into_iter().filter(|frame| frames.contains(frame)).collect())
    }

    /// Sends a frame back by a member, which arrives.
    fn carry_back(&mut self, at: usize) {
        wait_for("a frame back", || {
            self.taps.far[at].send(&back(at));
            self.arrived();
            self.taps.client.waiting().contains(&back(at))
        });
    }
}

fn lacp(name: &str, count: usize) {
    let Some(lab) = lab(name) else { return };
    let taps = Taps::start(lab, "lacp", &workers(count));
    let mut bond = Spoken { taps, peers: [1, 2].map(|port| Peer { port, state: SPEAKING, heard: None }) };
    // Without a peer's consent nothing passes.
    bond.until(["standby", "standby"]);
    assert_eq!(bond.taps.flowgate.port("uplink")["link"], "down");
    let frames = flows(64);
    frames.iter().for_each(|frame| bond.taps.client.send(frame));
    wait_for("they are dropped", || bond.taps.flowgate.drops().values().sum::<u64>() >= 64);
    assert!(bond.arrived().concat().is_empty());
    // The peer is found, and said to be found, on both links; both are the bond's.
    wait_for("the bond has heard its peer", || {
        bond.arrived();
        let port = bond.taps.flowgate.port("uplink");
        (0..2).all(|at| port["members"][at]["lacp"]["partner_system"] == "02:00:00:00:cc:01")
    });
    let port = bond.taps.flowgate.port("uplink");
    for at in 0..2 {
        assert_eq!(port["members"][at]["lacp"]["partner_key"], 7);
        assert_eq!(port["members"][at]["lacp"]["partner_port"], 1 + at);
    }
    wait_for("both links have spoken", || {
        bond.arrived();
        bond.peers.iter().all(|peer| peer.heard.is_some())
    });
    let [one, other] = [0, 1].map(|at| bond.peers[at].heard.expect("waited for").0);
    assert_eq!(one[..10], other[..10], "one system and one key");
    assert_ne!(one[12..], other[12..], "ports have numbers");
    let mac: Vec<String> = one[2..8].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(port["mac"], mac.join(":"));
    // One link after the other.
    bond.peers[0].state = WILLING;
    bond.until(["active", "standby"]);
    let other = &flows(65)[64];
    wait_for("the workers know", || {
        bond.taps.client.send(other);
        bond.arrived().concat().contains(other)
    });
    let [first, second] = bond.carry(&frames);
    assert!(first.len() == 64 && second.is_empty());
    bond.peers[1].state = WILLING;
    bond.until(["active", "active"]);
    let [first, second] = bond.carry(&frames);
    assert!(!first.is_empty() && !second.is_empty(), "both carry flows");
    assert!(bond.peers.iter().all(|peer| peer.heard.expect("spoken").1 & COLLECTING != 0));
    (0..2).for_each(|at| bond.carry_back(at));
    // A peer takes its consent back.
    bond.peers[0].state = SPEAKING;
    let pdu = bond.peers[0].pdu();
    bond.taps.far[0].send(&pdu);
    bond.until(["standby", "active"]);
    let [first, second] = bond.carry(&frames);
    assert!(first.is_empty() && second.len() == 64);
    // A link is lost.
    bond.peers[0].state = WILLING;
    bond.until(["active", "active"]);
    cable(&bond.taps.far[1], false);
    bond.until(["active", "down"]);
    wait_for("every flow by the other link", || {
        frames.iter().for_each(|frame| bond.taps.client.send(frame));
        let got = bond.peers[0].answer(&mut bond.taps.far[0]);
        frames.iter().all(|frame| got.contains(frame))
    });
    assert_eq!(bond.taps.flowgate.port("uplink")["link"], "up");
    bond.taps.flowgate.stop();
}

#[test]
fn lacp_finds_the_members_that_carry() {
    lacp("bond-lacp", 1);
}

#[test]
fn lacp_goes_with_two_workers() {
    lacp("bond-lacp-two", 2);
}

/// Both ends of a worker's CPU, which it shares: it lets others run.
fn sharing() -> String {
    format!("[worker]\ncores = [{}]\nidle = \"yield\"\n", cpus().last().expect("a CPU"))
}

#[test]
fn two_bonds_find_each_other_by_lacp() {
    let Some(mut lab) = lab("bond-lacp-pair") else { return };
    let ((lan, mut client), (wan, mut server)) = (lab.wire(), lab.wire());
    let pairs = [lab.pair(), lab.pair()];
    let side = |end: usize| -> Vec<String> {
        (0..2).map(|i| format!("net_af_packet{},iface={}", i + 1, pairs[i][end])).collect()
    };
    let dirs = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let start = |end: usize, lan: &str| {
        Flowgate::start(dirs[end].path(), &[&ports(lan, "lacp", &side(end)), CROSS, &sharing()].concat())
    };
    let both = [start(0, &lan), start(1, &wan)];
    let active = |flowgate: &Flowgate| {
        let port = flowgate.port("uplink");
        (0..2).all(|at| port["members"][at]["state"] == "active")
    };
    wait_for("all members carry", || both.iter().all(active));
    both.iter().for_each(|flowgate| flowgate.wait_for_link("uplink", "up"));
    let mut counts = pairs.each_ref().map(|[near, _]| Tap::open(near));
    let frames = flows(64);
    for there in [true, false] {
        let (from, to) = if there { (&mut client, &mut server) } else { (&mut server, &mut client) };
        to.waiting();
        frames.iter().for_each(|frame| from.send(frame));
        let mut got = Vec::new();
        wait_for("every flow on the other side", || {
            got.extend(to.waiting());
            frames.iter().all(|frame| got.contains(frame))
        });
        assert_eq!(got.iter().filter(|frame| frames.contains(frame)).count(), 64, "each of them once");
    }
    for pair in &mut counts {
        assert!(pair.waiting().iter().any(|frame| frames.contains(frame)), "flows by {}", pair.name);
    }
    both.into_iter().for_each(|flowgate| drop(flowgate.stop()));
}

#[test]
fn a_member_that_refuses_frames_loses_no_others() {
    let Some(mut lab) = lab("bond-refusal") else { return };
    let (lan, mut client) = lab.wire();
    let mut wires = [lab.wire(), lab.wire()];
    let members: Vec<String> =
        wires.iter().enumerate().map(|(i, (near, _))| format!("net_af_packet{},iface={near}", i + 1)).collect();
    // With a stage that reads frames, these are sent one burst for several, not received and sent unread.
    let read = CROSS.replace("[\"cross\"]", "[\"guard\", \"cross\"]");
    let flowgate = Flowgate::start(lab.dir.path(), &[&ports(&lan, "balance-xor", &members), &*read].concat());
    flowgate.wait_for_link("uplink", "up");
    let frames = flows(64);
    let mut pass = |wires: &mut [(String, Tap); 2], wanted: &dyn Fn(&Frame) -> bool| -> [BTreeSet<Frame>; 2] {
        let mut got = [BTreeSet::new(), BTreeSet::new()];
        wait_for("the flows", || {
            frames.iter().for_each(|frame| client.send(frame));
            got.iter_mut().zip(&mut *wires).for_each(|(got, (_, far))| got.extend(far.waiting()));
            frames.iter().filter(|frame| wanted(frame)).all(|frame| got.iter().any(|got| got.contains(frame)))
        });
        got
    };
    wait_for("both links are up", || {
        let port = flowgate.port("uplink");
        (0..2).all(|at| port["members"][at]["state"] == "active")
    });
    let [kept, lost] = pass(&mut wires, &|_| true);
    assert!(!kept.is_empty() && !lost.is_empty(), "both carry flows");
    // net_af_packet says that its link is up in any case, and refuses frames when its ring of 512 is full.
    run(&format!("ip link set {} down", wires[1].0));
    let mut rounds = 0;
    while flowgate.drops().get("engine.tx-full").is_none_or(|n| *n < 1000) {
        rounds += 1;
        assert!(rounds < 1000, "nothing was refused: {:?}", flowgate.drops());
        pass(&mut wires, &|frame| kept.contains(frame));
    }
    flowgate.stop();
}
