//! Bonds of devices, through the real binary: one that fails over between two taps, and two that find each other by LACP over
//! veth pairs.

mod common;

use common::appliance::{Flowgate, wait_for, workers};
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

#[test]
fn another_member_takes_over_when_a_link_goes_down() {
    let Some(mut lab) = lab("bond-failover") else { return };
    let (lan, mut client) = lab.wire();
    let taps = [0, 1].map(|i| format!("fgb{}x{i}", std::process::id() % 1_000_000));
    let members: Vec<String> = (0..2).map(|i| format!("net_tap{i},iface={}", taps[i])).collect();
    let toml = [&ports(&lan, "active-backup", &members), CROSS].concat();
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    for tap in &taps {
        dpdk_end(None, tap);
    }
    let mut far: Vec<Tap> = taps.iter().map(|tap| Tap::open(tap)).collect();
    flowgate.wait_for_link("uplink", "up");
    let (here, frame) = (flows(1), &flows(1)[0]);
    let mut used = None;
    wait_for("a member in use", || {
        client.send(frame);
        used = (0..2).find(|at| far[*at].waiting().contains(&here[0]));
        used.is_some()
    });
    let used = used.expect("waited for");
    // The way back.
    let back = udp(ip("10.0.0.2"), 53, ip("10.0.0.1"), 1000, b"back");
    wait_for("a frame from the member in use", || {
        far[used].send(&back);
        client.waiting().contains(&back)
    });
    run(&format!("ip link set {} down", taps[used]));
    let other = 1 - used;
    wait_for("the other member in use", || {
        client.send(frame);
        far[other].waiting().contains(frame)
    });
    wait_for("a frame from the other member", || {
        far[other].send(&back);
        client.waiting().contains(&back)
    });
    assert_eq!(flowgate.port("uplink")["link"], "up");
    run(&format!("ip link set {} down", taps[other]));
    flowgate.wait_for_link("uplink", "down");
    flowgate.stop();
}

/// Sends frames, each of which arrives once.
fn cross(from: &mut Tap, to: &mut Tap, frames: &[Frame]) {
    to.waiting();
    frames.iter().for_each(|frame| from.send(frame));
    let mut got = Vec::new();
    wait_for("every flow on the other side", || {
        got.extend(to.waiting());
        frames.iter().all(|frame| got.contains(frame))
    });
    assert_eq!(got.iter().filter(|frame| frames.contains(frame)).count(), frames.len(), "each of them once");
}

#[test]
fn two_bonds_find_each_other_by_lacp() {
    let Some(mut lab) = lab("bond-lacp") else { return };
    let ((lan, mut client), (wan, mut server)) = (lab.wire(), lab.wire());
    let pairs = [lab.pair(), lab.pair()];
    let side = |end: usize| -> Vec<String> {
        (0..2).map(|i| format!("net_af_packet{},iface={}", i + 1, pairs[i][end])).collect()
    };
    let dirs = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let start = |end: usize, lan: &str| {
        let toml = [&ports(lan, "lacp", &side(end)), CROSS, &workers(1)].concat();
        Flowgate::start(dirs[end].path(), &toml)
    };
    let both = [start(0, &lan), start(1, &wan)];
    both.iter().for_each(|flowgate| flowgate.wait_for_link("uplink", "up"));
    let mut counts = pairs.each_ref().map(|[near, _]| Tap::open(near));
    // Until the two have agreed, nothing passes.
    let frames = flows(64);
    let mut arrived = Vec::new();
    wait_for("the two have agreed", || {
        client.send(&frames[0]);
        arrived = server.waiting();
        arrived.contains(&frames[0])
    });
    std::thread::sleep(std::time::Duration::from_secs(4));
    server.waiting();
    cross(&mut client, &mut server, &frames);
    cross(&mut server, &mut client, &frames);
    // What came in by each of the pairs: both carry flows, and LACP speaks on both (IEEE 802.1AX section 6.4.2).
    for pair in &mut counts {
        let seen = pair.waiting();
        assert!(seen.iter().any(|frame| frames.contains(frame)), "flows by {}", pair.name);
        assert!(seen.iter().any(|frame| frame[..6] == [1, 0x80, 0xc2, 0, 0, 2] && frame[12..15] == [0x88, 9, 1]));
    }
    both.into_iter().for_each(|flowgate| drop(flowgate.stop()));
}
