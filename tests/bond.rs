//! Bonds of devices, through the real binary: two taps, of which one carries all.

mod common;

use common::appliance::{Flowgate, wait_for};
use common::frames::*;
use common::host::{Lab, Tap, dpdk_end};
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
fn one_member_carries_all() {
    let Some(mut lab) = lab("bond-tap") else { return };
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
    flowgate.stop();
}
