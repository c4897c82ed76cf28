//! FRR on flowgate's kernel interfaces, with the files that ship for it: a peer announces prefixes over BGP, and what is
//! learned is what packets are forwarded by, while they come, go, and FRR is started again.

mod common;

use std::time::{Duration, Instant};

use common::appliance::{Flowgate, PATIENCE, example, number, wait_for};
use common::echo::{Stream, ping_each};
use common::frr::{self, Frr};
use common::host::{Host, Lab, run};
use common::skip;
use serde_json::Value;

/// What the peer announces besides the untouched prefixes; of every second one the announcement is withdrawn.
const V4: usize = 100_000;
const V6: usize = 5_000;
/// Announced from the first moment to the last, and an address of each.
const UNTOUCHED: [&str; 2] = ["203.0.113.0/24", "2001:db8:3::/48"];
const ALWAYS: [&str; 2] = ["203.0.113.9", "2001:db8:3::9"];
/// As docs/bare-metal.md has it.
const ZEBRA: &str = "-s 90000000 -K 120 --v6-rr-semantics";

const PEER: &str = "
frr defaults traditional
!
ip prefix-list first permit 203.0.113.0/24
ip prefix-list kept permit 203.0.113.0/24
ip prefix-list kept permit 10.0.0.0/8 ge 25 le 25
ip prefix-list all permit any
ip prefix-list few permit 203.0.113.0/24
ip prefix-list few permit 10.0.0.0/16 ge 25 le 25
ipv6 prefix-list first permit 2001:db8:3::/48
ipv6 prefix-list kept permit 2001:db8:3::/48
ipv6 prefix-list kept permit 2001:db8:8000::/33 ge 47 le 47
ipv6 prefix-list all permit any
ipv6 prefix-list few permit 2001:db8:3::/48
!
router bgp 65002
 bgp router-id 192.0.2.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.1 remote-as 65001
 neighbor 192.0.2.1 timers connect 1
 neighbor 2001:db8:2::1 remote-as 65001
 neighbor 2001:db8:2::1 timers connect 1
 !
 address-family ipv4 unicast
  network 203.0.113.0/24
  redistribute kernel
  neighbor 192.0.2.1 prefix-list first out
  no neighbor 2001:db8:2::1 activate
 exit-address-family
 !
 address-family ipv6 unicast
  network 2001:db8:3::/48
  redistribute kernel
  neighbor 2001:db8:2::1 activate
  neighbor 2001:db8:2::1 prefix-list first out
 exit-address-family
!
";

/// The prefix of a number, and an address in it.
fn v4(at: usize) -> (String, String) {
    let [a, b, c, d] = (0x0a00_0000 + at as u32 * 128).to_be_bytes();
    (format!("{a}.{b}.{c}.{d}/{}", 25 + at % 2), format!("{a}.{b}.{c}.{}", d + 7))
}

/// Likewise for IPv6.
fn v6(at: usize) -> (String, String) {
    let net = format!("2001:db8:{:x}::", 0x8000 + at * 2);
    (format!("{net}/{}", 47 + at % 2), format!("{net}7"))
}

/// So many addresses from all over the prefixes: those that are kept, or those whose prefix is withdrawn.
fn some(count: usize, withdrawn: bool) -> Vec<String> {
    let of = |all: usize, at: usize| (at * 7_919 % (all / 2)) * 2 + usize::from(withdrawn);
    (0..count).flat_map(|at| [v4(of(V4, at)).1, v6(of(V6, at)).1]).collect()
}

struct Setting {
    lab: Lab,
    inner: Host,
    /// The peer, behind which everything is.
    outer: Host,
    /// The namespace of flowgate's kernel interfaces.
    kernel: String,
    flowgate: Flowgate,
    /// FRR of the box, and the peer's.
    own: Frr,
    peer: Frr,
    /// Routes of the kernel before FRR had any.
    before: u64,
}

impl Setting {
    fn new(test: &str) -> Option<Setting> {
        if let Some(why) = frr::missing() {
            skip(test, &why);
            return None;
        }
        let mut lab = Lab::new().inspect_err(|why| skip(test, why)).ok()?;
        let inner = lab.host(&["198.51.100.2/24", "2001:db8:1::2/64"], 1500);
        inner.does(&["ip", "route", "add", "default", "via", "198.51.100.1"]);
        inner.does(&["ip", "-6", "route", "add", "default", "via", "2001:db8:1::1"]);
        // The peer has a way back by BGP alone.
        let outer = lab.host(&["192.0.2.2/24", "2001:db8:2::2/64"], 1500);
        for local in ["10.0.0.0/8", "2001:db8:8000::/33", UNTOUCHED[0], UNTOUCHED[1]] {
            outer.does(&["ip", "route", "add", "local", local, "dev", "lo"]);
        }
        let prefixes = (0..V4).map(|at| v4(at).0).chain((0..V6).map(|at| v6(at).0));
        let batch: String = prefixes.map(|prefix| format!("route add blackhole {prefix}\n")).collect();
        let file = lab.file("prefixes");
        std::fs::write(&file, batch).expect("a writable folder");
        run(&format!("ip -n {} -batch {}", outer.name, file.display()));

        let kernel = lab.namespace();
        let mut config = example("bgp.toml").replace("1_000_000", "100_000");
        for (number, device, host) in [(0, "0000:3b:00.0", &inner), (1, "0000:3b:00.1", &outer)] {
            assert!(config.contains(device), "the file names {device}");
            config = config.replace(device, &format!("net_af_packet{number},iface={}", host.port));
        }
        let config =
            config.replace("[worker]\ncores = \"auto\"\n", "") + &format!("[kernel]\nnamespace = {kernel:?}\n");
        let flowgate = Flowgate::start(lab.dir.path(), &config);
        let own = Frr::new(&lab, &kernel, &example("frr.conf"));
        let peer = Frr::new(&lab, &outer.name, PEER);
        let mut setting = Setting { lab, inner, outer, kernel, flowgate, own, peer, before: 0 };
        setting.before = setting.routes();
        setting.peer.start(&mut setting.lab, "-s 90000000");
        setting.own.start(&mut setting.lab, ZEBRA);
        setting.reach("the session is up", UNTOUCHED.len());
        for way in ["198.51.100.0/24", "2001:db8:1::/64"] {
            let family = if way.contains(':') { "-6" } else { "-4" };
            wait_for("the peer has a way back", || {
                !setting.outer.does(&["ip", family, "route", "show", way]).is_empty()
            });
        }
        Some(setting)
    }

    /// Routes flowgate has from the kernel.
    fn routes(&self) -> u64 {
        number(&self.flowgate.show("routes")["counts"]["by_source"]["kernel"])
    }

    /// Waits, while anything moves, until so many routes were learned; returns how long that took.
    fn reach(&self, what: &str, count: usize) -> Duration {
        let (since, mut moved, mut last) = (Instant::now(), Instant::now(), 0);
        loop {
            let now = self.routes();
            if now == self.before + count as u64 {
                println!("{what}: {now} routes after {:.1} s", since.elapsed().as_secs_f64());
                return since.elapsed();
            }
            if std::mem::replace(&mut last, now) != now {
                moved = Instant::now();
            }
            assert!(
                moved.elapsed() < PATIENCE,
                "waited in vain: {what}: {now} routes, not {count} more than {}",
                self.before
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets the peer announce what a prefix list says.
    fn announce(&self, list: &str) {
        let [v4, v6] = ["192.0.2.1", "2001:db8:2::1"].map(|box_| format!("neighbor {box_} prefix-list {list} out"));
        let v6 = ["exit", "address-family ipv6 unicast", &v6];
        self.peer.configure(&[&["router bgp 65002", "address-family ipv4 unicast", &v4][..], &v6].concat());
    }

    /// Pings without a pause while something is done, and fails unless every ping is answered.
    fn without_loss(&mut self, addresses: &[String], during: impl FnOnce(&mut Setting)) {
        let stream = Stream::start(&self.lab, &self.inner, addresses);
        during(self);
        let outcome = stream.end();
        println!("{} pings meanwhile, {} answered", outcome.sent, outcome.answered);
        let drops = self.flowgate.drops();
        assert!(outcome.is_whole(), "{:?}, {:?} of {}; {drops:?}", outcome.lost, outcome.told, outcome.sent);
    }

    /// All these answer.
    fn reached(&self, addresses: &[String]) {
        let outcome = ping_each(&self.lab, &self.inner, addresses);
        assert!(outcome.is_whole(), "{outcome:?}; {:?}", self.flowgate.drops());
    }

    /// No route leads to any of these, and that is what is said.
    fn unreachable(&self, addresses: &[String]) {
        let outcome = ping_each(&self.lab, &self.inner, addresses);
        for address in addresses {
            // RFC 792, network unreachable; RFC 4443 section 3.1, no route to destination.
            let word = if address.contains(':') { "1/0" } else { "3/0" };
            assert_eq!(outcome.told.get(address).map(String::as_str), Some(word), "{address}: {outcome:?}");
        }
    }

    /// The next-hop object by which the kernel has an untouched prefix.
    fn object(&self, family: usize) -> u64 {
        let output = self.ip(&["-4", "-6"][family..=family], &["-j", "route", "show", UNTOUCHED[family]]);
        let shown: Value = serde_json::from_slice(&output).expect("JSON");
        number(&shown[0]["nhid"])
    }

    fn ip(&self, options: &[&str], words: &[&str]) -> Vec<u8> {
        let mut command = std::process::Command::new("ip");
        let output = command.args(["-n", &self.kernel]).args(options).args(words).output().expect("iproute2");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// By how many ways flowgate forwards to an address.
    fn ways(&self, address: &str) -> usize {
        let (worked, said) = self.flowgate.command(&["show", "routes", address, "--json"]);
        assert!(worked, "{said}");
        let route: Value = serde_json::from_str(&said).expect("JSON");
        route["active"]["via"].as_array().map_or(0, Vec::len)
    }
}

#[test]
fn a_full_table_comes_and_goes() {
    let Some(mut setting) = Setting::new("frr-full-table") else { return };
    let always = ALWAYS.map(str::to_owned).to_vec();
    setting.reached(&always);
    setting.unreachable(&some(3, false));

    let full = UNTOUCHED.len() + V4 + V6;
    setting.without_loss(&always, |setting| {
        setting.announce("all");
        setting.reach("announced", full);
    });
    setting.reached(&[some(500, false), some(500, true)].concat());

    let kept = [always.clone(), some(500, false)].concat();
    setting.without_loss(&kept, |setting| {
        setting.announce("kept");
        setting.reach("withdrawn", UNTOUCHED.len() + (V4 + V6) / 2);
    });
    setting.unreachable(&some(20, true));

    // A crash: the kernel keeps the routes, the peer those to the inside (RFC 4724), and each is put again.
    let old = [0, 1].map(|family| setting.object(family));
    setting.without_loss(&kept, |setting| {
        setting.own.stop(&mut setting.lab, "KILL");
        setting.own.start(&mut setting.lab, ZEBRA);
        for (family, old) in ["-4", "-6"].into_iter().zip(old) {
            let old = old.to_string();
            wait_for("all routes were put again", || {
                setting.ip(&[family], &["route", "show", "nhid", &old]).is_empty()
            });
        }
        setting.reach("started again after a crash", UNTOUCHED.len() + (V4 + V6) / 2);
    });
    setting.unreachable(&some(20, true));

    // An orderly end takes the routes along; what has changed meanwhile is learned with the rest.
    setting.own.stop(&mut setting.lab, "TERM");
    setting.reach("stopped", 0);
    setting.unreachable(&[always.clone(), some(20, false)].concat());
    setting.announce("all");
    setting.own.start(&mut setting.lab, ZEBRA);
    setting.reach("started again", full);
    setting.reached(&[always.clone(), some(500, false), some(500, true)].concat());

    setting.own.stop(&mut setting.lab, "TERM");
    setting.reach("stopped for good", 0);
    let drops = setting.flowgate.drops();
    // Hosts report their groups to the link, and the peer tries to reach a daemon that is not there.
    let expected = ["route.no-route", "acl.denied-default"];
    assert!(drops.keys().all(|reason| expected.contains(&&**reason)), "{drops:?}");
    setting.flowgate.stop();
}

#[test]
fn prefixes_by_two_ways() {
    let Some(mut setting) = Setting::new("frr-two-ways") else { return };
    // The same peer once more, by another subnet of the same link, whose address flowgate learns from the kernel.
    run(&format!("ip -n {} addr add 172.16.0.1/24 dev wan", setting.kernel));
    setting.outer.does(&["ip", "addr", "add", "172.16.0.2/24", "dev", "eth0"]);
    setting.announce("few");
    setting.peer.configure(&[
        "router bgp 65002",
        "neighbor 172.16.0.1 remote-as 65001",
        "address-family ipv4 unicast",
        "neighbor 172.16.0.1 prefix-list few out",
    ]);
    setting.own.configure(&[
        "router bgp 65001",
        "neighbor 172.16.0.2 remote-as 65002",
        "neighbor 172.16.0.2 timers connect 1",
        "address-family ipv4 unicast",
        "neighbor 172.16.0.2 prefix-list learned in",
        "neighbor 172.16.0.2 prefix-list own out",
    ]);
    let few: Vec<String> = (0..512).step_by(2).map(|at| v4(at).1).chain([ALWAYS[0].to_owned()]).collect();
    let all_by = |setting: &Setting, ways: usize| {
        wait_for("all prefixes have as many ways", || few.iter().step_by(16).all(|to| setting.ways(to) == ways));
    };
    setting.reach("few prefixes", UNTOUCHED.len() + 256);
    all_by(&setting, 2);
    setting.without_loss(&few, |setting| {
        setting.own.configure(&["router bgp 65001", "neighbor 172.16.0.2 shutdown"]);
        all_by(setting, 1);
        setting.own.configure(&["router bgp 65001", "no neighbor 172.16.0.2 shutdown"]);
        all_by(setting, 2);
    });
    setting.reached(&few);
    setting.own.stop(&mut setting.lab, "TERM");
    setting.reach("stopped", 0);
    setting.flowgate.stop();
}
