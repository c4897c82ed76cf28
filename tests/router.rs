//! The router between network namespaces with real hosts, each in a subnet of its own with flowgate as its gateway: what
//! arrives, what is told to those whose packets do not, and the kernel that stands beside the datapath.

mod common;

use common::appliance::{Flowgate, number, wait_for, workers};
use common::frames::{ends, ip, tagged, udp};
use common::host::{Host, Lab, inside, run};
use common::skip;

const INSIDE: [&str; 2] = ["10.77.1.2", "2001:db8:71::2"];
const OUTSIDE: [&str; 2] = ["10.77.2.2", "2001:db8:72::2"];
/// Flowgate's own addresses on either side.
const LAN: [&str; 2] = ["10.77.1.1", "2001:db8:71::1"];
const WAN: [&str; 2] = ["10.77.2.1", "2001:db8:72::1"];

const PLAIN: &str = "[pipeline]\nstages = ['route']\n";

/// What hosts inside begin is allowed, to the outside and to the box; and what the box itself begins.
const FIREWALL: &str = "
    [pipeline]
    stages = ['guard', 'conntrack', 'route', 'acl']
    [conntrack]
    tracking = 'strict'
    [[acl.rule]]
    name = 'begun inside'
    from = 'inside'
    to = 'outside'
    service = ['tcp', 'udp', 'icmp/echo', 'icmpv6/echo']
    action = 'allow'
    [[acl.rule]]
    name = 'to the box'
    from = 'inside'
    to = 'self'
    service = ['tcp/8080', 'icmp/echo', 'icmpv6/echo']
    action = 'allow'
    [[acl.rule]]
    name = 'from the box'
    from = 'self'
    action = 'allow'
";

struct Setting {
    lab: Lab,
    inner: Host,
    outer: Host,
    /// Where flowgate's kernel interfaces are.
    kernel: Host,
    flowgate: Flowgate,
}

impl Setting {
    /// A host behind `lan`, one behind `wan`, flowgate between them; none (and the test is skipped) where there can be no
    /// namespaces. `mtu` is what `wan` takes.
    fn new(name: &str, count: usize, mtu: u16, policy: &str) -> Option<Setting> {
        let mut lab = Lab::new().map_err(|why| skip(name, &why)).ok()?;
        let [inner, outer] = [(INSIDE, LAN), (OUTSIDE, WAN)].map(|([v4, v6], [via4, via6])| {
            let host = lab.host(&[&format!("{v4}/24"), &format!("{v6}/64")], 1500);
            host.does(&["ip", "route", "add", "default", "via", via4]);
            host.does(&["ip", "-6", "route", "add", "default", "via", via6]);
            host
        });
        let namespace = lab.namespace();
        let port = |number: usize, name: &str, zone: &str, host: &Host, [v4, v6]: [&str; 2], mtu: u16| {
            let device = format!("net_af_packet{number},iface={}", host.port);
            format!(
                "[[port]]\nname = {name:?}\ndevice = {device:?}\nzone = {zone:?}\nmtu = {mtu}\n\
                 address = [\"{v4}/24\", \"{v6}/64\"]\n"
            )
        };
        let ports = port(0, "lan", "inside", &inner, LAN, 1500) + &port(1, "wan", "outside", &outer, WAN, mtu);
        let kernel = format!("[kernel]\nnamespace = {namespace:?}\n");
        let config = [&ports, &kernel, &workers(count), &policy.to_owned()].map(String::as_str).join("\n");
        let flowgate = Flowgate::start(lab.dir.path(), &config);
        // Flowgate has set its end of the pair to what it sends; what it is sent may be longer, as on any shared link.
        run(&format!("ip link set {} mtu 1500", outer.port));
        let kernel = Host { name: namespace, port: String::new(), interface: "lan".into() };
        Some(Setting { lab, inner, outer, kernel, flowgate })
    }

    /// Serves a folder with a large and a small file; returns the large file's bytes.
    fn web(&mut self, namespace: &str, port: u16, size: u32) -> Vec<u8> {
        let folder = self.lab.file("www");
        std::fs::create_dir_all(&folder).expect("a writable folder");
        let large: Vec<u8> = (0..size).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(folder.join("large"), &large).expect("room");
        self.lab.web(namespace, &folder, port);
        large
    }

    fn fetch(&self, host: &Host, address: &str, port: u16) -> Vec<u8> {
        let got = self.lab.file("got");
        let file = got.to_str().expect("a name");
        host.does(&["curl", "-sS", "-m", "120", "-o", file, &url(address, port)]);
        std::fs::read(got).expect("fetched")
    }

    /// Ends the run: nothing may have been dropped but for these reasons and full queues.
    fn end(self, expected: &[&str]) {
        let drops = self.flowgate.drops();
        let full = ["engine.tx-full", "engine.handoff-full"];
        let strange = drops.keys().any(|reason| !full.contains(&&**reason) && !expected.contains(&&**reason));
        assert!(!strange, "{drops:?}");
        self.flowgate.stop();
    }
}

fn url(address: &str, port: u16) -> String {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("http://{address}:{port}/large")
}

/// What a program printed, whether it worked or not.
fn said(host: &Host, program: &[&str]) -> String {
    let output = host.output(program);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Pings once in vain, and fails unless `from` says why, in one of these words.
fn is_told(host: &Host, options: &[&str], to: &str, from: &str, words: [&str; 2]) {
    let text = said(host, &[&["ping", "-n", "-c", "1", "-W", "10"], options, &[to]].concat());
    let from = format!("From {from} ");
    let told =
        |line: &str| line.to_lowercase().starts_with(&from.to_lowercase()) && words.iter().any(|w| line.contains(w));
    assert!(text.lines().any(told), "{to} {options:?}: {words:?} expected from {from}: {text}");
}

/// Pings and errors between two subnets, from the first packet on.
fn hosts(name: &str, count: usize) {
    let Some(setting) = Setting::new(name, count, 1500, PLAIN) else { return };
    let Setting { inner, outer, .. } = &setting;
    for family in 0..2 {
        // Nobody knows anybody's MAC yet; nothing is lost for that.
        inner.pings(OUTSIDE[family], 3, 56);
        for size in [0, 1452, 1472, 1473, 1800] {
            inner.pings(OUTSIDE[family], 3, size);
        }
        // Its addresses answer, those of the other side too.
        for (host, own) in [(inner, LAN), (inner, WAN), (outer, LAN)] {
            host.pings(own[family], 3, 56);
            host.pings(own[family], 3, 1473);
        }
        let nobody = ["10.77.2.99", "2001:db8:72::99"][family];
        is_told(inner, &[], nobody, LAN[family], ["Destination Host Unreachable", "Address unreachable"]);
        let nowhere = ["192.0.2.1", "2001:db8:ff::1"][family];
        is_told(inner, &[], nowhere, LAN[family], ["Destination Net Unreachable", "No route"]);
        is_told(
            inner,
            &["-t", "1"],
            OUTSIDE[family],
            LAN[family],
            ["Time to live exceeded", "Time exceeded: Hop limit"],
        );
        is_told(
            outer,
            &["-t", "1"],
            INSIDE[family],
            WAN[family],
            ["Time to live exceeded", "Time exceeded: Hop limit"],
        );
        for kind in ["-U", "-I", "-T"] {
            let text = inner.does(&["traceroute", "-n", "-N", "1", "-q", "1", "-w", "10", kind, OUTSIDE[family]]);
            let hops: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(hops, [LAN[family], OUTSIDE[family]], "{kind}: {text}");
        }
    }
    // What is longer than IPv6 sends in one piece is for the hosts to put together.
    inner.pings(OUTSIDE[1], 3, 20_000);
    inner.pings(LAN[1], 3, 20_000);
    setting.end(&["route.host-unreachable", "route.unanswered", "route.no-route", "route.ttl-expired"]);
}

#[test]
fn hosts_reach_each_other_with_one_worker() {
    hosts("router-one-worker", 1);
}

#[test]
fn hosts_reach_each_other_with_two_workers() {
    hosts("router-two-workers", 2);
}

/// Transfers both ways through the firewall.
fn transfers(name: &str, count: usize) {
    let Some(mut setting) = Setting::new(name, count, 1500, FIREWALL) else { return };
    let server = setting.outer.name.clone();
    let large = setting.web(&server, 80, 5_000_000);
    setting.lab.serve(&server, 5201, &["iperf3", "-s"]);
    for (family, to) in OUTSIDE.into_iter().enumerate() {
        setting.inner.pings(to, 3, 56);
        assert!(setting.fetch(&setting.inner, to, 80) == large, "5 MB came out different");
        for back in [&[][..], &["-R"]] {
            let report = setting.inner.does(&[&["iperf3", "-J", "-n", "4M", "-c", to], back].concat());
            let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
            assert!(number(&report["end"]["sum_received"]["bytes"]) > 0, "{}", report["end"]);
        }
        // The other way round nothing is allowed.
        setting.outer.fails(&["ping", "-n", "-c", "1", "-W", "1", INSIDE[family]]);
    }
    setting.end(&["acl.denied-default"]);
}

#[test]
fn transfers_through_the_firewall_with_one_worker() {
    transfers("router-firewall-one-worker", 1);
}

#[test]
fn transfers_through_the_firewall_with_two_workers() {
    transfers("router-firewall-two-workers", 2);
}

#[test]
fn senders_learn_what_a_path_takes() {
    let Some(mut setting) = Setting::new("router-path-mtu", 1, 1300, FIREWALL) else { return };
    setting.lab.serve(&setting.outer.name.clone(), 5201, &["iperf3", "-s"]);
    let inner = &setting.inner;
    for (family, to) in OUTSIDE.into_iter().enumerate() {
        // Segments of full size find out first.
        inner.does(&["iperf3", "-n", "2M", "-c", to]);
        let route = inner.does(&["ip", ["-4", "-6"][family], "route", "get", to]);
        assert!(route.contains("mtu 1300"), "the sender was told: {route}");
        inner.does(&["ip", ["-4", "-6"][family], "route", "flush", "cache"]);
        let text = inner.does(&["tracepath", ["-4", "-6"][family], "-n", "-m", "5", to]);
        assert!(text.contains("pmtu 1300") && text.contains("Resume: pmtu 1300 hops 2"), "{text}");
        inner.does(&["ip", ["-4", "-6"][family], "route", "flush", "cache"]);
        let text = said(inner, &["ping", "-n", "-c", "1", "-W", "10", "-M", "do", "-s", "1400", to]);
        let told = [format!("From {} icmp_seq=1 Frag needed and DF set (mtu = 1300)", LAN[0]), "mtu".into()];
        assert!(text.contains(&told[family]), "{text}");
        // What may be cut is cut: IPv4 here, IPv6 at its source.
        inner.pings(to, 3, 1400);
    }
    let drops = setting.flowgate.drops();
    assert!(drops.get("route.too-big").is_some_and(|count| *count >= 4), "{drops:?}");
    // Hosts report their groups to the link, and no rule allows that.
    setting.end(&["route.too-big", "route.ttl-expired", "acl.denied-default"]);
}

#[test]
fn the_mss_of_handshakes_is_clamped() {
    let policy = format!("{PLAIN}[route]\nclamp_mss = true\n");
    let Some(mut setting) = Setting::new("router-mss", 1, 1300, &policy) else { return };
    let log = setting.lab.file("syns");
    let dump = format!("exec tcpdump -Ulnvi eth0 dst port 80 > {} 2>&1", log.display());
    setting.lab.spawn(&setting.outer.name.clone(), &["sh", "-c", &dump]);
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("tcpdump listens", || text().contains("listening on"));
    for (to, mss) in OUTSIDE.into_iter().zip(["mss 1260", "mss 1240"]) {
        // Nobody listens there: the SYN is what matters.
        setting.inner.fails(&["curl", "-sS", "-m", "20", &url(to, 80)]);
        wait_for(mss, || text().contains(mss));
    }
    assert!(!text().contains("mss 1460") && !text().contains("mss 1440"), "{}", text());
    setting.end(&[]);
}

#[test]
fn the_kernel_stands_beside() {
    let Some(mut setting) = Setting::new("router-kernel", 2, 1400, FIREWALL) else { return };
    let (box_name, outer_name) = (setting.kernel.name.clone(), setting.outer.name.clone());
    let large = setting.web(&box_name, 8080, 1_000_000);
    setting.web(&outer_name, 80, 1_000_000);
    let log = setting.lab.file("frames");
    let dump = format!("exec tcpdump -Ulni lan > {} 2>&1", log.display());
    setting.lab.spawn(&box_name, &["sh", "-c", &dump]);
    wait_for("tcpdump listens", || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on")));
    let Setting { inner, outer, kernel, flowgate, .. } = &setting;

    for (name, host, mtu, [v4, v6]) in [("lan", inner, 1500, LAN), ("wan", outer, 1400, WAN)] {
        let link = kernel.does(&["ip", "addr", "show", name]);
        let mac = flowgate.port(name)["mac"].as_str().expect("a MAC").to_owned();
        assert_eq!(
            mac,
            std::fs::read_to_string(format!("/sys/class/net/{}/address", host.port)).expect("a MAC").trim()
        );
        for words in [&mac, &format!("mtu {mtu} "), "LOWER_UP", &format!(" {v4}/24 "), &format!(" {v6}/64 ")] {
            assert!(link.contains(words), "{words}: {link}");
        }
    }
    for family in 0..2 {
        // In: what a rule allows.
        for own in [LAN[family], WAN[family]] {
            assert!(setting.fetch(inner, own, 8080) == large, "1 MB came out different");
        }
        outer.fails(&["curl", "-sS", "-m", "1", &url(WAN[family], 8080)]);
        // Out: to either side.
        kernel.pings(INSIDE[family], 3, 56);
        kernel.pings(OUTSIDE[family], 3, 1300);
        assert!(setting.fetch(kernel, OUTSIDE[family], 80) == large, "1 MB came out different");
    }
    wait_for("tcpdump sees packets", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains(&format!("IP {}.8080 > {}", LAN[0], INSIDE[0]))
    });

    // Routes and addresses that the kernel is given are flowgate's.
    for (family, far) in ["10.99.0.1", "2001:db8:99::1"].into_iter().enumerate() {
        let (v, to) = (["-4", "-6"][family], ["10.99.0.0/16", "2001:db8:99::/48"][family]);
        outer.does(&["ip", "addr", "add", far, "dev", "lo"]);
        is_told(inner, &[], far, LAN[family], ["Destination Net Unreachable", "No route"]);
        kernel.does(&["ip", v, "route", "add", to, "via", OUTSIDE[family]]);
        wait_for("the route is there", || inner.output(&["ping", "-c", "1", "-W", "1", far]).status.success());
        inner.pings(far, 3, 56);
        kernel.does(&["ip", v, "route", "del", to]);
        wait_for("the route is gone", || said(inner, &["ping", "-c", "1", "-W", "1", far]).contains("nreachable"));
        is_told(inner, &[], far, LAN[family], ["Destination Net Unreachable", "No route"]);

        let own = ["10.77.1.77", "2001:db8:71::77"][family];
        let net = format!("{own}{}", ["/24", "/64"][family]);
        inner.fails(&["ping", "-c", "1", "-W", "1", own]);
        kernel.does(&["ip", "addr", "add", &net, "dev", "lan"]);
        wait_for("the address answers", || inner.output(&["ping", "-c", "1", "-W", "1", own]).status.success());
        kernel.does(&["ip", "addr", "del", &net, "dev", "lan"]);
        wait_for("the address is silent", || !inner.output(&["ping", "-c", "1", "-W", "1", own]).status.success());
    }
    setting.end(&["acl.denied-default", "route.no-route", "route.host-unreachable", "route.unanswered"]);
}

/// The box gets its addresses on `lan` from there, by DHCP and by router advertisement, and with them its default routes.
#[test]
fn addresses_and_routes_are_learned() {
    let mut lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return skip("router-lease", &why),
    };
    let [server, outer] = [INSIDE, OUTSIDE].map(|[v4, v6]| lab.host(&[&format!("{v4}/24"), &format!("{v6}/64")], 1500));
    let namespace = lab.namespace();
    let config = format!(
        "[kernel]\nnamespace = {namespace:?}\naccept_ra = true\n{FIREWALL}\
         [[acl.rule]]\nname = 'lease'\nfrom = 'inside'\nto = 'self'\nservice = 'udp/68'\naction = 'allow'\n\
         [[acl.rule]]\nname = 'far'\nto = 'inside'\nservice = ['icmp/echo', 'icmpv6/echo']\naction = 'allow'\n\
         [[port]]\nname = 'lan'\ndevice = 'net_af_packet0,iface={}'\nzone = 'inside'\n\
         [[port]]\nname = 'wan'\ndevice = 'net_af_packet1,iface={}'\nzone = 'outside'\n\
         address = ['{}/24', '{}/64']\n",
        server.port, outer.port, WAN[0], WAN[1]
    );
    let [leases, script] = ["leases", "bound"].map(|name| lab.file(name).to_str().expect("a name").to_owned());
    let dnsmasq = format!(
        "dnsmasq -k -C /dev/null --port=0 --user=root --pid-file= --no-ping --interface=eth0 --dhcp-authoritative \
         --dhcp-leasefile={leases} --dhcp-range=10.77.1.100,10.77.1.100,255.255.255.0,1h \
         --enable-ra --dhcp-range=2001:db8:71::,ra-only,64"
    );
    lab.spawn(&server.name, &dnsmasq.split_whitespace().collect::<Vec<_>>());
    let flowgate = Flowgate::start(lab.dir.path(), &config);
    let kernel = Host { name: namespace, port: String::new(), interface: "lan".into() };

    // The server tells the address itself, which nobody has yet, what it leases.
    let bound = "#!/bin/sh\n[ $1 = bound ] || exit 0\n\
                 ip addr add $ip/$mask dev $interface && ip route add default via $router dev $interface\n";
    std::fs::write(&script, bound).expect("a writable folder");
    run(&format!("chmod 755 {script}"));
    kernel.does(&["busybox", "udhcpc", "-i", "lan", "-f", "-q", "-n", "-t", "20", "-T", "2", "-s", &script]);
    let mut own = Vec::new();
    wait_for("flowgate has the addresses", || {
        let port = flowgate.port("lan");
        let all = port["addresses"].as_array().expect("a list").iter();
        own = all.filter_map(|net| Some(net["address"].as_str()?.split_once('/')?.0.to_owned())).collect();
        own.retain(|address| address == "10.77.1.100" || address.starts_with("2001:db8:71:"));
        own.sort();
        own.len() == 2
    });
    for (family, far) in ["10.99.0.1", "2001:db8:99::1"].into_iter().enumerate() {
        let v = ["-4", "-6"][family];
        server.does(&["ip", "addr", "add", far, "dev", "lo"]);
        server.does(&["ip", v, "route", "add", ["10.77.2.0/24", "2001:db8:72::/64"][family], "via", &own[family]]);
        outer.does(&["ip", v, "route", "add", "default", "via", WAN[family]]);
        wait_for("the address answers", || {
            server.output(&["ping", "-c", "1", "-W", "1", &own[family]]).status.success()
        });
        server.pings(&own[family], 3, 56);
        kernel.pings(INSIDE[family], 3, 56);
        // By the default route that came with the address.
        wait_for("the route is there", || outer.output(&["ping", "-c", "1", "-W", "1", far]).status.success());
        outer.pings(far, 3, 56);
    }
    flowgate.stop();
}

#[test]
fn vlans_are_ports() {
    let mut lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return skip("router-vlan", &why),
    };
    let ((lan, mut inner), (wan, mut outer)) = (lab.wire(), lab.wire());
    let namespace = lab.namespace();
    let mac = |name: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/address")).expect("an interface");
    let config = format!(
        "[kernel]\nnamespace = {namespace:?}\n{PLAIN}\
         [[port]]\nname = 'lan'\ndevice = 'net_af_packet0,iface={lan}'\n\
         [[port]]\nname = 'lan.100'\nparent = 'lan'\nvlan = 100\naddress = ['10.77.1.1/24', '2001:db8:71::1/64']\n\
         [[port]]\nname = 'wan'\ndevice = 'net_af_packet1,iface={wan}'\naddress = ['10.77.2.1/24', '2001:db8:72::1/64']\n\
         [[port]]\nname = 'wan.7.8'\nparent = 'wan'\nvlan = [7, 8]\naddress = ['10.77.3.1/24', '2001:db8:73::1/64']\n"
    );
    let neighbors: String = [
        ("lan.100", INSIDE, "02:00:00:00:00:0a"),
        ("wan", OUTSIDE, "02:00:00:00:00:0b"),
        ("wan.7.8", ["10.77.3.2", "2001:db8:73::2"], "02:00:00:00:00:0c"),
    ]
    .iter()
    .flat_map(|(port, addresses, mac)| addresses.iter().map(move |address| (port, address, mac)))
    .map(|(port, ip, mac)| format!("[[neighbor.static]]\nport = '{port}'\naddress = '{ip}'\nmac = '{mac}'\n"))
    .collect();
    let flowgate = Flowgate::start(lab.dir.path(), &(config + &neighbors));
    let to = |name: &str| -> Vec<u8> {
        mac(name).trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
    };
    let (lan_mac, wan_mac) = (to(&lan), to(&wan));
    let mut ident = 0;
    for family in 0..2 {
        let [a, b, c] = [INSIDE, OUTSIDE, ["10.77.3.2", "2001:db8:73::2"]].map(|host| ip(host[family]));
        type Tags<'a> = &'a [(u16, u16)];
        let ways: [(bool, _, Tags<'_>, _, bool, Tags<'_>, u8); 4] = [
            (true, a, &[(0x8100, 100)], b, false, &[], 0x0b),
            (false, b, &[], a, true, &[(0x8100, 100)], 0x0a),
            (true, a, &[(0x8100, 100)], c, false, &[(0x8100, 7), (0x8100, 8)], 0x0c),
            (false, c, &[(0x8100, 7), (0x8100, 8)], b, false, &[], 0x0b),
        ];
        for (from_lan, src, tags, dst, to_lan, tags_out, last) in ways {
            ident += 1;
            let mut frame = udp(src, 4000, dst, ident, b"through a VLAN, and out of it");
            frame[..6].copy_from_slice(if from_lan { &lan_mac } else { &wan_mac });
            let sender = if from_lan { &mut inner } else { &mut outer };
            sender.send(&tagged(&frame, tags));
            let receiver = if to_lan { &mut inner } else { &mut outer };
            let mut want = frame.clone();
            want[..6].copy_from_slice(&[2, 0, 0, 0, 0, last]);
            want[6..12].copy_from_slice(if to_lan { &lan_mac } else { &wan_mac });
            // One hop less; what that does to the checksum is the header's own concern.
            if family == 0 {
                want[22] -= 1
            } else {
                want[21] -= 1
            }
            let want = tagged(&want, tags_out);
            let l4 = 14 + 4 * tags_out.len() + [20, 40][family];
            let mut got = Vec::new();
            wait_for(&format!("{src} to {dst}"), || {
                got.extend(receiver.waiting());
                let found = got.iter().find(|got| got.get(l4..l4 + 8) == want.get(l4..l4 + 8));
                found.is_some_and(|got| {
                    let mut got = got.clone();
                    if family == 0 {
                        let sum = 14 + 4 * tags_out.len() + 10;
                        got[sum..sum + 2].copy_from_slice(&want[sum..sum + 2]);
                    }
                    assert_eq!(got, want, "{src} to {dst}");
                    assert_eq!(ends(&frame), (src, dst));
                    true
                })
            });
        }
    }
    // A VLAN nobody knows.
    let mut frame = udp(ip(INSIDE[0]), 4000, ip(OUTSIDE[0]), 99, b"nowhere");
    frame[..6].copy_from_slice(&lan_mac);
    inner.send(&tagged(&frame, &[(0x8100, 101)]));
    wait_for("it is dropped", || flowgate.drops().get("engine.unknown-vlan") == Some(&1));
    let mut show = inside(&namespace, &["ip", "-br", "link"]);
    let links = String::from_utf8_lossy(&show.output().expect("ip").stdout).into_owned();
    assert!(links.contains("lan.100") && links.contains("wan.7.8"), "{links}");
    flowgate.stop();
}

/// The inside is hidden behind flowgate's address on `wan`, and its web server is reached by that address.
fn translating() -> String {
    let forward = |name: &str, own: &str, to: &str| {
        format!(
            "[[dnat.rule]]\nname = {name:?}\nfrom = 'outside'\ndestination = {own:?}\nservice = 'tcp/8443'\nto_destination = {to:?}\n"
        )
    };
    let server = |name: &str, to: &str| {
        format!(
            "[[acl.rule]]\nname = {name:?}\nto = 'inside'\ndestination = {to:?}\nservice = 'tcp/80'\naction = 'allow'\n"
        )
    };
    FIREWALL.replace("'conntrack', 'route', 'acl'", "'conntrack', 'dnat', 'route', 'acl', 'snat'")
        + &server("web server", INSIDE[0])
        + &server("web server 6", INSIDE[1])
        + &forward("forward", WAN[0], &format!("{}:80", INSIDE[0]))
        + &forward("forward 6", WAN[1], &format!("[{}]:80", INSIDE[1]))
        + "[[snat.rule]]\nname = 'hide'\nfrom = 'inside'\nto = 'outside'\nto_source = 'masquerade'\n"
}

/// Clients behind the translation, a path that takes less, a server that is reached through it, from either side.
fn translated(name: &str, count: usize) {
    let Some(mut setting) = Setting::new(name, count, 1400, &translating()) else { return };
    let (inner_name, outer_name) = (setting.inner.name.clone(), setting.outer.name.clone());
    let large = setting.web(&outer_name, 80, 2_000_000);
    setting.web(&inner_name, 80, 2_000_000);
    setting.lab.serve(&outer_name, 5201, &["iperf3", "-s"]);
    for family in 0..2 {
        let v = ["-4", "-6"][family];
        let Setting { inner, outer, .. } = &setting;
        // Nobody outside knows a way to the inside.
        outer.does(&["ip", v, "route", "del", "default"]);
        let to = OUTSIDE[family];
        for size in [56, 1300] {
            inner.pings(to, 5, size);
        }
        assert!(setting.fetch(inner, to, 80) == large, "2 MB came out different");
        for back in [&[][..], &["-R"]] {
            let report = inner.does(&[&["iperf3", "-J", "-n", "2M", "-c", to], back].concat());
            let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
            assert!(number(&report["end"]["sum_received"]["bytes"]) > 0, "{}", report["end"]);
        }
        let route = inner.does(&["ip", v, "route", "get", to]);
        assert!(route.contains("mtu 1400"), "the sender was told through the translation: {route}");
        for kind in ["-U", "-I", "-T"] {
            let text = inner.does(&["traceroute", "-n", "-N", "1", "-q", "1", "-w", "10", kind, to]);
            let hops: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(hops, [LAN[family], to], "{kind}: {text}{:?}", setting.flowgate.drops());
        }
        // An error about a translated datagram finds its sender. Hosts limit how many they send.
        inner.python(
            "import socket, sys\n\
             at = socket.getaddrinfo(sys.argv[1], 9)[0]\n\
             s = socket.socket(at[0], socket.SOCK_DGRAM)\n\
             s.settimeout(1)\n\
             s.connect(at[4][:2])\n\
             for _ in range(20):\n\
             \x20   try:\n\
             \x20       s.send(b'?')\n\
             \x20       s.recv(10)\n\
             \x20   except ConnectionRefusedError:\n\
             \x20       sys.exit()\n\
             \x20   except TimeoutError:\n\
             \x20       pass\n\
             sys.exit('nobody said that it is refused')\n",
            &[to],
        );
        // From outside by the address of the box, from inside too.
        for host in [outer, inner] {
            assert!(setting.fetch(host, WAN[family], 8443) == large, "2 MB came out different");
        }
        outer.fails(&["curl", "-sS", "-m", "1", &url(WAN[family], 8444)]);
    }
    let flows = setting.flowgate.show("flows");
    assert!(flows.to_string().contains("\"translated\""), "{flows}");
    setting.end(&["acl.denied-default", "route.too-big", "route.ttl-expired"]);
}

#[test]
fn translation_with_one_worker() {
    translated("router-nat-one-worker", 1);
}

#[test]
fn translation_with_two_workers() {
    translated("router-nat-two-workers", 2);
}
