//! Kernel interfaces and what is learned from the kernel, in a namespace of each test's own, against iproute2.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::appliance::wait_for;
use common::host::{Lab, run};
use common::skip;
use flowgate::kernel::follow::Follower;
use flowgate::kernel::namespace::Namespace;
use flowgate::kernel::tables::Tables;
use flowgate::kernel::tap::Tap;
use flowgate::kernel::{Event, Kernel, Port, poll};
use flowgate::route::{Gateway, Route, Target};
use ipnet::IpNet;
use serde_json::Value;

/// What the events so far amount to; an event that contradicts those before it fails the test.
#[derive(Default)]
struct Model {
    addresses: BTreeSet<(u8, IpNet)>,
    routes: BTreeMap<(IpNet, u32), Target>,
    links: BTreeMap<u8, (bool, u32)>,
    lost: Vec<u8>,
    synced: usize,
}

impl Model {
    fn take(&mut self, event: Event) {
        match event {
            Event::Address { port, net, added: true } => assert!(self.addresses.insert((port, net)), "{net} twice"),
            Event::Address { port, net, added: false } => assert!(self.addresses.remove(&(port, net)), "no {net}"),
            Event::Route { route: Route { to, target, metric }, added: true } => {
                assert_ne!(self.routes.insert((to, metric), target.clone()), Some(target), "{to} twice");
            }
            Event::Route { route: Route { to, target, metric }, added: false } => {
                assert_eq!(self.routes.remove(&(to, metric)), Some(target), "{to}");
            }
            Event::Link { port, admin_up, mtu, .. } => drop(self.links.insert(port, (admin_up, mtu))),
            Event::Lost { port } => self.lost.push(port),
            Event::Synced => self.synced += 1,
        }
    }

    /// Takes all that can be known by now.
    fn catch_up(&mut self, kernel: &mut Kernel) {
        wait_for("all news are read", || {
            let more = kernel.poll(Instant::now(), 500, &mut |event| self.take(event)).expect("the kernel answers");
            !more && kernel.follower().rest(Instant::now()).is_none()
        });
    }

    fn has(&self, port: u8, net: &str) -> bool {
        self.addresses.contains(&(port, net.parse().expect("a prefix")))
    }

    fn target(&self, to: &str, metric: u32) -> Option<&Target> {
        self.routes.get(&(to.parse().expect("a prefix"), metric))
    }
}

fn port(name: &str, number: u8) -> Port {
    let addresses = [format!("10.{number}.0.1/24"), format!("2001:db8:{number}::1/64")];
    Port {
        name: name.into(),
        mac: [2, 0, 0, 0, 0, number],
        mtu: 1400,
        addresses: addresses.iter().map(|net| net.parse().expect("a prefix")).collect(),
        accept_ra: false,
        link: true,
    }
}

struct Setting {
    _lab: Lab,
    namespace: String,
    kernel: Kernel,
    model: Model,
}

impl Setting {
    /// Ports `a` and `b`, and an interface `other` that is none.
    fn new(test: &str) -> Option<Setting> {
        let mut lab = Lab::new().inspect_err(|why| skip(test, why)).ok()?;
        let namespace = lab.namespace();
        let space = Namespace::new(Some(&namespace));
        let mut kernel = Kernel::start(space, vec![port("a", 1), port("b", 2)], true).expect("interfaces");
        let mut model = Model::default();
        model.catch_up(&mut kernel);
        assert_eq!(model.synced, 1);
        let setting = Setting { _lab: lab, namespace, kernel, model };
        setting.ip("link add other type veth peer name far");
        setting.ip("link set far up");
        setting.ip("link set other up");
        setting.ip("addr add 10.3.0.1/24 dev other");
        Some(setting)
    }

    fn ip(&self, command: &str) {
        run(&format!("ip -n {} {command}", self.namespace));
    }

    /// Runs many commands; those that fail do nothing.
    fn batch(&self, commands: &str) {
        let mut ip = Command::new("ip")
            .args(["-n", &self.namespace, "-force", "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("iproute2");
        ip.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("it reads");
        ip.wait().expect("it ends");
    }

    fn show(&self, what: &str) -> Vec<Value> {
        let output = Command::new("ip").args(["-n", &self.namespace, "-j"]).args(what.split(' ')).output();
        let output = output.expect("iproute2");
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn catch_up(&mut self) {
        self.model.catch_up(&mut self.kernel);
    }

    /// Another one that follows the kernel, with so many bytes of room for news.
    fn another(&self, room: usize) -> Follower {
        let indices = ["a", "b"].map(|name| self.show(&format!("link show dev {name}"))[0]["ifindex"].as_u64());
        let follow = || {
            let mut tables = Tables::default();
            (0..).zip(indices).for_each(|(port, index)| tables.add_port(port, index.expect("an index") as u32));
            Follower::with_room(tables, true, room)
        };
        Namespace::new(Some(&self.namespace)).enter(follow).expect("a namespace").expect("sockets")
    }

    /// The routes by `a` and `b` as iproute2 shows them: the first of each prefix and metric.
    fn shown(&self) -> BTreeMap<(IpNet, u32), Target> {
        let mut routes = BTreeMap::new();
        for (family, any) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            for route in self.show(&format!("{family} route show table main")) {
                let to = match route["dst"].as_str().expect("a destination") {
                    "default" => any.parse().expect("a prefix"),
                    to => to.parse().unwrap_or_else(|_| IpNet::from(to.parse::<IpAddr>().expect("an address"))),
                };
                let metric = route["metric"].as_u64().unwrap_or_default() as u32;
                if route["protocol"] != "kernel"
                    && let Some(target) = target(&route)
                {
                    routes.entry((to, metric)).or_insert(target);
                }
            }
        }
        routes
    }

    fn agrees(&mut self, after: &str) {
        self.catch_up();
        let (shown, known) = (self.shown(), &self.model.routes);
        for (place, target) in &shown {
            assert_eq!(known.get(place), Some(target), "{place:?} after {after}");
        }
        for (place, target) in known {
            assert_eq!(shown.get(place), Some(target), "{place:?} after {after}");
        }
    }
}

fn target(route: &Value) -> Option<Target> {
    match route["type"].as_str() {
        Some("blackhole") => return Some(Target::Blackhole),
        Some("unreachable") => return Some(Target::Unreachable),
        Some("prohibit") => return Some(Target::Prohibit),
        _ => {}
    }
    let hops = route["nexthops"].as_array();
    let mut ways: Vec<Gateway> =
        hops.map_or(vec![route], |hops| hops.iter().collect()).into_iter().filter_map(way).collect();
    if let [one] = &mut ways[..] {
        one.weight = 1;
    }
    ways.sort_unstable_by_key(|way| (way.via, way.port));
    (!ways.is_empty()).then_some(Target::Via(ways))
}

fn way(hop: &Value) -> Option<Gateway> {
    let port = ["a", "b"].iter().position(|name| hop["dev"] == *name)? as u8;
    let dead = hop["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "dead"));
    let via = hop["gateway"].as_str().or(hop["via"]["host"].as_str()).map(|via| via.parse().expect("an address"));
    (!dead).then(|| Gateway { via, port: Some(port), weight: hop["weight"].as_u64().unwrap_or(1) as u16 })
}

#[test]
fn an_interface_for_each_port() {
    let Some(mut setting) = Setting::new("an_interface_for_each_port") else { return };
    let link = setting.show("link show dev a").remove(0);
    assert_eq!((&link["address"], &link["mtu"]), (&"02:00:00:00:00:01".into(), &1400.into()));
    assert_eq!(setting.model.links.get(&0), Some(&(true, 1400)));
    let shown = setting.show("addr show dev b").remove(0)["addr_info"].to_string();
    assert!(shown.contains("10.2.0.1") && shown.contains("2001:db8:2::1"), "{shown}");
    assert!(!setting.model.has(1, "10.2.0.1/24"), "flowgate's own addresses are no news");

    let carrier = |setting: &Setting| setting.show("link show dev a")[0]["flags"].to_string().contains("LOWER_UP");
    assert!(carrier(&setting));
    setting.kernel.set_link(0, false).expect("a carrier");
    assert!(!carrier(&setting));
    setting.kernel.set_link(0, true).expect("a carrier");
    assert!(carrier(&setting));

    let again = Kernel::start(Namespace::new(Some(&setting.namespace)), vec![port("other", 3)], true);
    let error = again.err().expect("the name is taken");
    assert!(error.contains("\"other\" exists already") && error.contains("ip link del other"), "{error}");
    let error = Kernel::start(Namespace::new(Some("fg-none")), Vec::new(), true).err().expect("no such namespace");
    assert!(error.contains("/run/netns/fg-none") && error.contains("ip netns add"), "{error}");

    let namespace = setting.namespace.clone();
    drop(setting.kernel);
    let gone = Command::new("ip").args(["-n", &namespace, "link", "show", "a"]).output().expect("iproute2");
    assert!(!gone.status.success(), "interfaces go with their process");
}

#[test]
fn frames_to_and_from_the_kernel() {
    let Some(setting) = Setting::new("frames_to_and_from_the_kernel") else { return };
    let tap = setting.kernel.tap(0).expect("an interface");
    // RFC 826: who has 10.1.0.1, tell 10.1.0.9.
    let mut request = vec![0xff; 6];
    request.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 1, 0, 9]);
    request.extend([0, 0, 0, 0, 0, 0, 10, 1, 0, 1]);
    tap.send(&request).expect("the interface is up");
    let (mut buffer, mut reply) = (vec![0; 2000], Vec::new());
    let sign = poll::Sign::new().expect("an eventfd");
    wait_for("a reply", || {
        let taps = [(0, std::os::fd::AsFd::as_fd(tap))];
        let long = Some(std::time::Duration::from_secs(1));
        poll::wait(taps.into_iter(), setting.kernel.follower().sockets(), &sign, long).expect("a wait");
        while let Some(length) = tap.receive(&mut buffer).expect("a frame or none") {
            if buffer[12..14] == [8, 6] && buffer[..6] == [2, 0, 0, 0, 0, 9] {
                reply = buffer[..length].to_vec();
            }
        }
        !reply.is_empty()
    });
    assert_eq!(reply[20..32], [0, 2, 2, 0, 0, 0, 0, 1, 10, 1, 0, 1]);
    sign.give();
    let none = std::iter::empty();
    assert!(poll::wait(none, setting.kernel.follower().sockets(), &sign, None).expect("a wait").sign);
}

#[test]
fn a_lost_interface_is_made_again() {
    let Some(mut setting) = Setting::new("a_lost_interface_is_made_again") else { return };
    setting.ip("route add 10.50.0.0/16 via 10.1.0.7");
    setting.ip("addr add 10.99.0.1/24 dev a");
    setting.catch_up();
    assert!(setting.model.has(0, "10.99.0.1/24") && setting.model.target("10.50.0.0/16", 0).is_some());
    setting.ip("link del dev a");
    let error = setting.kernel.tap(0).expect("not known yet").send(&[0; 60]).expect_err("it is gone");
    assert!(Tap::is_lost(&error), "{error}");
    setting.agrees("the interface was deleted");
    assert_eq!(setting.model.lost, [0]);
    assert!(setting.model.addresses.iter().all(|(port, _)| *port != 0) && setting.kernel.tap(0).is_none());
    assert_eq!(setting.kernel.retry(), Vec::<String>::new());
    setting.ip("route add 10.51.0.0/16 via 10.1.0.7");
    setting.agrees("it was made again");
    assert!(setting.model.target("10.51.0.0/16", 0).is_some());
}

#[test]
fn addresses_of_others() {
    let Some(mut setting) = Setting::new("addresses_of_others") else { return };
    setting.ip("addr add 10.9.0.1/24 dev a");
    setting.ip("addr add 10.8.0.1/24 dev a noprefixroute");
    setting.ip("addr add 10.7.0.1 peer 10.7.0.2/32 dev b");
    setting.ip("addr add 2001:db8:9::1/64 dev a nodad");
    setting.ip("addr add 10.6.0.1/24 dev other");
    // The kernel says of an address of IPv6 a moment later that it may be used.
    wait_for("an IPv6 address", || {
        setting.catch_up();
        setting.model.has(0, "2001:db8:9::1/64")
    });
    assert!(setting.model.has(0, "10.9.0.1/24") && setting.model.has(0, "2001:db8:9::1/64"));
    assert!(setting.model.has(0, "10.8.0.1/32") && setting.model.has(1, "10.7.0.1/32"));
    assert!(setting.model.target("10.9.0.0/24", 0).is_none(), "it is connected");
    // What is at the other end follows from no address flowgate has.
    let link = Target::Via(vec![Gateway { via: None, port: Some(1), weight: 1 }]);
    assert_eq!(setting.model.target("10.7.0.2/32", 0), Some(&link));
    setting.ip("addr del 10.9.0.1/24 dev a");
    setting.ip("addr del 2001:db8:9::1/64 dev a");
    setting.ip("addr del 10.1.0.1/24 dev a");
    setting.catch_up();
    assert!(!setting.model.has(0, "10.9.0.1/24") && !setting.model.has(0, "2001:db8:9::1/64"));
    assert_eq!(setting.kernel.retry(), Vec::<String>::new());
    let shown = setting.show("addr show dev a").remove(0)["addr_info"].to_string();
    assert!(shown.contains("10.1.0.1"), "what the file gives comes back");
}

#[test]
fn routes_of_all_kinds() {
    let Some(mut setting) = Setting::new("routes_of_all_kinds") else { return };
    let via = |ways: &[(&str, u8, u16)]| {
        let way = |(via, port, weight): &(&str, u8, u16)| Gateway {
            via: Some(via.parse().expect("an address")),
            port: Some(*port),
            weight: *weight,
        };
        Target::Via(ways.iter().map(way).collect())
    };
    for command in [
        "nexthop add id 1 via 10.1.0.2 dev a",
        "nexthop add id 2 via 10.2.0.2 dev b",
        "nexthop add id 3 blackhole",
        "nexthop add id 10 group 1,3/2,5",
        "route add default via 10.1.0.5",
        "route add 10.20.0.0/16 metric 7 nexthop via 10.1.0.3 weight 2 nexthop via 10.2.0.3 weight 5",
        "route add 10.21.0.0/16 nhid 10",
        "route add 10.22.0.0/16 nhid 3",
        "route add 10.23.0.0/16 via inet6 2001:db8:1::9 dev a",
        "route add blackhole 10.24.0.0/16",
        "route add unreachable 10.25.0.0/16",
        "route add prohibit 2001:db8:25::/48",
        "route add 2001:db8:26::/48 via 2001:db8:1::9",
        "route append 2001:db8:26::/48 via 2001:db8:2::9",
        "route add 10.26.0.0/16 via 10.3.0.9",
        "route add 10.27.0.0/16 via 10.1.0.9 table 100",
        "route add 10.28.0.0/16 via 10.1.0.9 tos 0x10",
        "route add 10.29.0.0/16 via 10.1.0.2",
        "route append 10.29.0.0/16 via 10.1.0.3",
    ] {
        setting.ip(command);
    }
    setting.catch_up();
    let known = |setting: &Setting, to: &str, metric: u32| setting.model.target(to, metric).cloned();
    assert_eq!(known(&setting, "0.0.0.0/0", 0), Some(via(&[("10.1.0.5", 0, 1)])));
    assert_eq!(known(&setting, "10.20.0.0/16", 7), Some(via(&[("10.1.0.3", 0, 2), ("10.2.0.3", 1, 5)])));
    assert_eq!(known(&setting, "10.21.0.0/16", 0), Some(via(&[("10.1.0.2", 0, 3), ("10.2.0.2", 1, 5)])));
    assert_eq!(known(&setting, "10.22.0.0/16", 0), Some(Target::Blackhole));
    assert_eq!(known(&setting, "10.23.0.0/16", 0), Some(via(&[("2001:db8:1::9", 0, 1)])));
    assert_eq!(known(&setting, "10.24.0.0/16", 0), Some(Target::Blackhole));
    assert_eq!(known(&setting, "10.25.0.0/16", 0), Some(Target::Unreachable));
    assert_eq!(known(&setting, "2001:db8:25::/48", 1024), Some(Target::Prohibit));
    let both = via(&[("2001:db8:1::9", 0, 1), ("2001:db8:2::9", 1, 1)]);
    assert_eq!(known(&setting, "2001:db8:26::/48", 1024), Some(both));
    for absent in ["10.26.0.0/16", "10.27.0.0/16", "10.28.0.0/16", "10.1.0.0/24"] {
        assert_eq!(known(&setting, absent, 0), None, "{absent}");
    }
    let census = setting.kernel.follower().census();
    assert!(census.foreign >= 2 && census.unsupported == 1, "{census:?}");
    setting.ip("route del 2001:db8:26::/48 via 2001:db8:1::9");
    setting.ip("route del 10.29.0.0/16 via 10.1.0.2");
    setting.ip("nexthop replace id 2 via 10.2.0.8 dev b");
    setting.catch_up();
    assert_eq!(known(&setting, "10.21.0.0/16", 0), Some(via(&[("10.1.0.2", 0, 3), ("10.2.0.8", 1, 5)])));
    setting.ip("nexthop del id 1");
    setting.ip("nexthop del id 3");
    setting.catch_up();
    assert_eq!(known(&setting, "10.21.0.0/16", 0), Some(via(&[("10.2.0.8", 1, 1)])));
    assert_eq!(known(&setting, "10.22.0.0/16", 0), None);
    assert_eq!(known(&setting, "2001:db8:26::/48", 1024), Some(via(&[("2001:db8:2::9", 1, 1)])));
    assert_eq!(known(&setting, "10.29.0.0/16", 0), Some(via(&[("10.1.0.3", 0, 1)])));
    assert!(setting.kernel.notes().iter().any(|note| note.contains("no ports")));
}

/// A generator of numbers below a bound, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn command(&mut self) -> String {
        let v6 = self.roll(2) == 1;
        let to = if v6 { ["2001:db8:a::/48", "2001:db8:b::/48"] } else { ["10.100.0.0/16", "10.101.0.0/16"] };
        let to = format!("{} metric {}", to[self.roll(2)], [10, 20][self.roll(2)]);
        let deeds: &[&str] = if v6 {
            &["add", "append", "replace", "del", "append"]
        } else {
            &["add", "append", "replace", "del", "prepend", "append"]
        };
        let deed = self.pick(deeds);
        let router = |dice: &mut Dice| {
            let (net, host) = (dice.roll(3) + 1, dice.roll(3) + 7);
            if v6 && net < 3 { format!("2001:db8:{net}::{host}") } else { format!("10.{net}.0.{host}") }
        };

        let (one, other) = (router(self), router(self));
        let form = self.roll(14);
        // Of IPv6 routes of one prefix and metric that are no ways of one another, a dump leaves some out (fib6_dump_node()),
        // and replacing one may make two that are the same: forms have metrics of their own, and what has no router is not
        // replaced by what may be there already.
        let (to, deed) = match form {
            5 if v6 => (to.replace("metric ", "metric 1"), deed),
            6 | 7 if v6 => (to.replace("metric ", "metric 2"), deed),
            10 if v6 => (to.replace("metric ", "metric 3"), if deed == "replace" { "append" } else { deed }),
            _ => (to, deed),
        };
        match form {
            0 => format!("nexthop replace id {} via 10.1.0.{} dev a", self.roll(3) + 1, self.roll(3) + 2),
            1 => format!("nexthop replace id {} via 10.2.0.{} dev b", self.roll(3) + 1, self.roll(3) + 2),
            2 => format!("nexthop replace id {} via 2001:db8:1::{} dev a", self.roll(2) + 4, self.roll(3) + 2),
            3 => format!("nexthop del id {}", self.roll(5) + 1),
            4 => format!("nexthop replace id 10 group {}/{},{}", self.roll(2) + 1, 3, self.roll(9) + 1),
            5 => {
                format!("route {deed} {to} nhid {}", if v6 { 4 } else { self.pick(&["1", "10"]).parse().unwrap_or(1) })
            }
            6 if self.roll(4) == 0 => format!("link set b {}", self.pick(&["up", "down", "up"])),
            6 | 7 => format!("route {deed} {} {to}", self.pick(&["blackhole", "unreachable", "prohibit"])),
            8 | 9 => format!("route {deed} {to} nexthop via {one} weight 3 nexthop via {other}"),
            10 => format!("route {deed} {to} dev {}", self.pick(&["a", "b"])),
            11 => format!("route del {to}"),
            _ => format!("route {deed} {to} via {one}"),
        }
    }
}

#[test]
fn whatever_is_done_to_routes_is_seen() {
    let Some(mut setting) = Setting::new("whatever_is_done_to_routes_is_seen") else { return };
    let mut compared = [0; 2];
    for seed in 0..12 {
        let mut dice = Dice(seed);
        for round in 0..15 {
            let commands: Vec<String> = (0..10).map(|_| dice.command()).collect();
            let commands = commands.join("\n");
            setting.batch(&commands);
            setting.agrees(&format!("seed {seed}, round {round}:\n{commands}"));
            for (to, _) in setting.model.routes.keys() {
                compared[usize::from(matches!(to, IpNet::V6(_)))] += 1;
            }
        }
        setting.batch("link set b up");
    }
    assert!(compared.iter().all(|routes| *routes > 200), "{compared:?}");
}

#[test]
fn a_burst_of_routes() {
    let Some(mut setting) = Setting::new("a_burst_of_routes") else { return };
    let to = |at: usize| format!("10.{}.{}.0/24", 128 + at / 256, at % 256);
    let all: String = (0..20_000).map(|at| format!("route add {} via 10.1.0.{}\n", to(at), 2 + at % 50)).collect();
    setting.batch(&all);
    setting.catch_up();
    assert_eq!(setting.model.routes.len(), 20_000);
    let half: String = (0..20_000).step_by(2).map(|at| format!("route del {}\n", to(at))).collect();
    setting.batch(&half);
    setting.agrees("half of them were removed");
    assert_eq!(setting.model.routes.len(), 10_000);
    assert_eq!(setting.kernel.follower().mishaps().overruns, 0);
}

#[test]
fn much_is_told_in_portions_while_it_changes() {
    let Some(mut setting) = Setting::new("much_is_told_in_portions_while_it_changes") else { return };
    let to = |at: usize| format!("10.{}.{}.0/24", 128 + at / 256, at % 256);
    let all: String = (0..6000).map(|at| format!("route add {} via 10.1.0.{}\n", to(at), 2 + at % 50)).collect();
    setting.batch(&all);
    let (mut follower, mut model, mut rounds) = (setting.another(1 << 20), Model::default(), 0);
    wait_for("all is told", || {
        let mut told = 0;
        let more = follower.poll(Instant::now(), 100, &mut |event| {
            told += 1;
            model.take(event);
        });
        // As many of news, as many of what a dump has brought, and what little there is of links and addresses.
        assert!(told < 220, "{told} events at once");
        rounds += 1;
        if (20..60).contains(&rounds) {
            // What has been told by now, and what has not.
            setting.batch(&format!(
                "route replace {} via 10.2.0.9\nroute del {}\nroute replace {} via 10.2.0.9\nroute del {}\nroute add {} via 10.2.0.9\n",
                to(rounds), to(100 + rounds), to(5900 + rounds), to(5800 + rounds), to(6000 + rounds)
            ));
        }
        !more.expect("the kernel answers") && follower.rest(Instant::now()).is_none() && rounds > 60
    });
    setting.catch_up();
    assert_eq!(model.routes.len(), 6000 - 40);
    assert_eq!(model.routes, setting.model.routes);
}

#[test]
fn lost_news_are_made_up_for() {
    let Some(mut setting) = Setting::new("lost_news_are_made_up_for") else { return };
    let (mut follower, mut model) = (setting.another(4096), Model::default());
    let mut catch_up = |model: &mut Model| {
        wait_for("all news are read", || {
            let more = follower.poll(Instant::now(), 100, &mut |event| model.take(event)).expect("the kernel answers");
            !more && follower.rest(Instant::now()).is_none()
        });
        follower.mishaps().overruns
    };
    assert_eq!(catch_up(&mut model), 0);
    let add: String =
        (0..500).map(|at| format!("route add 10.140.{}.{}/32 via 10.1.0.9\n", at / 250, at % 250)).collect();
    setting.batch(&add);
    assert!(catch_up(&mut model) > 0, "there was no room for all");
    assert_eq!((model.routes.len(), model.synced >= 2), (500, true));
    let change: String = (0..500)
        .map(|at| {
            let deed = if at % 3 == 0 { "del" } else { "replace" };
            format!("route {deed} 10.140.{}.{}/32 via 10.1.0.{}\n", at / 250, at % 250, if at % 3 == 0 { 9 } else { 8 })
        })
        .collect();
    setting.batch(&change);
    catch_up(&mut model);
    setting.catch_up();
    assert_eq!(model.routes, setting.model.routes);
    assert_eq!(model.routes.len(), 333);
}
