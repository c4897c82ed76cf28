//! Where packets are routed: what is told of routes and neighbors, and that the datapath does so.

use super::*;
use crate::packet::SELF_PORT;
use crate::testkit::packets::Packet;

const ROUTER: &str = "\
    [[port]]\nname = 'lan'\ndevice = 'net_null0'\nzone = 'inside'\naddress = ['10.0.0.1/24', '2001:db8:1::1/64']\n\
    [[port]]\nname = 'wan'\ndevice = 'net_null1'\nzone = 'outside'\naddress = ['192.0.2.1/24', '2001:db8:2::1/64']\n\
    [memory]\nflows = 1000\n[kernel]\nenabled = false\n\
    [[neighbor.static]]\nport = 'wan'\naddress = '192.0.2.2'\nmac = '02:02:02:02:02:02'\n\
    [[neighbor.static]]\nport = 'lan'\naddress = '2001:db8:1::5'\nmac = '02:01:01:01:01:01'\n\
    [route]\nrpf = 'loose'\n\
    [[route.static]]\nto = '0.0.0.0/0'\nvia = '192.0.2.2'\n\
    [[route.static]]\nto = '::/0'\nvia = '2001:db8:2::2'\n\
    [[route.static]]\nto = '203.0.113.0/25'\ntype = 'blackhole'\n\
    [[route.static]]\nto = '203.0.113.128/25'\ntype = 'unreachable'\n\
    [[acl.rule]]\nname = 'no telnet'\nservice = 'tcp/23'\naction = 'deny'\n\
    [[acl.rule]]\nname = 'to us'\nto = 'self'\nservice = ['tcp/22', 'icmp/echo', 'icmpv6/echo']\naction = 'allow'\n\
    [[acl.rule]]\nname = 'out'\nfrom = 'inside'\nto = ['inside', 'outside']\naction = 'allow'\n\
    [[acl.rule]]\nname = 'ours'\nfrom = 'self'\naction = 'allow'\n";
const PLAIN: &str = "[pipeline]\nstages = ['route', 'acl']\n";
const FLOWS: &str = "[pipeline]\nstages = ['conntrack', 'route', 'acl']\n";

fn router(stages: &str) -> String {
    format!("{ROUTER}{stages}")
}

#[test]
fn routes_and_neighbors_are_told() {
    for stages in [PLAIN, FLOWS] {
        let (config, blueprint) = compiled(&router(stages));
        let [alone, live] = [Explainer::new(&config, &blueprint), Explainer::live(&config, &blueprint)];
        let told = ask(&alone, "tcp 10.0.0.5:40000 > 198.51.100.9:443 in lan");
        let shown = text(&told);
        assert!(
            shown.contains("it leaves by wan, by route 0.0.0.0/0 (static) to 192.0.2.2 (02:02:02:02:02:02)\n"),
            "{shown}"
        );
        assert!(
            shown.ends_with("verdict    sent, leaves by wan by rule \"out\" (bench.toml:46)\n") || stages == PLAIN,
            "{shown}"
        );
        assert_eq!((&told["verdict"]["verdict"], &told["verdict"]["out"]), (&json!("sent"), &json!("wan")));

        // The same neighbor is waited for where there is a network, and taken to answer where there is none.
        for (packet, neighbor) in [
            ("udp 10.0.0.5:4 > 192.0.2.77:53 in lan", "192.0.2.77"),
            ("udp [2001:db8:1::5]:4 > [2001:db8:9::9]:53 in lan", "2001:db8:2::2"),
        ] {
            let told = ask(&live, packet);
            assert_eq!((&told["verdict"]["verdict"], &told["awaits"]["neighbor"]), (&json!("held"), &json!(neighbor)));
            assert!(text(&told).contains("held until its neighbor answers, then leaves by wan\n"), "{}", text(&told));
            let told = ask(&alone, packet);
            assert_eq!((&told["verdict"]["verdict"], &told["awaits"]["neighbor"]), (&json!("sent"), &json!(neighbor)));
            assert!(text(&told).contains(&format!("{neighbor} on wan is not known yet")), "{}", text(&told));
        }
        assert!(blueprint.ways.routed.as_ref().expect("it routes").routing.wants.is_empty(), "nobody was asked");

        let told = ask(&alone, "udp 10.0.0.5:4 > 203.0.113.200:53 in lan");
        let shown = text(&told);
        assert!(shown.contains("denies it, unreachable, by route 203.0.113.128/25 (static), unreachable"), "{shown}");
        assert!(shown.contains("; answered by lan: icmp 10.0.0.1 > 10.0.0.5 type 3 code 1"), "{shown}");
        let told = ask(&alone, "tcp 10.0.0.5:4 > 198.51.100.1:80 ttl 1 in lan");
        assert_eq!(told["verdict"]["reason"], "ttl-expired");
    }
}

#[test]
fn the_box_itself_is_an_end() {
    for stages in [PLAIN, FLOWS] {
        let explainer = explainer(&router(stages));
        let told = ask(&explainer, "tcp 10.0.0.5:40000 > 10.0.0.1:22 in lan");
        assert_eq!((&told["verdict"]["verdict"], &told["verdict"]["out"]), (&json!("self"), &json!("self")));
        let shown = text(&told);
        assert!(shown.contains("it is for the box itself, by route 10.0.0.1/32 (address), local\n"), "{shown}");
        assert!(shown.contains("verdict") && shown.contains("for the box itself by rule \"to us\""), "{shown}");
        let told = ask(&explainer, "icmp 10.0.0.5 > 192.0.2.1 in lan");
        assert_eq!((&told["verdict"]["verdict"], &told["answer"]["out"]), (&json!("self"), &json!("lan")));
        assert_eq!(ask(&explainer, "tcp 10.0.0.5:4 > 10.0.0.1:80 in lan")["verdict"]["reason"], "denied-default");

        let told = ask(&explainer, "udp 192.0.2.1:40000 > 198.51.100.9:123 in self");
        assert_eq!((&told["in"], &told["zone"]), (&json!("self"), &json!("self")));
        assert_eq!((&told["verdict"]["rule"], &told["verdict"]["out"]), (&json!("ours"), &json!("wan")), "{told:#}");
        assert_eq!(ask(&explainer, "tcp 192.0.2.1:4 > 198.51.100.9:23 in self")["verdict"]["rule"], "no telnet");
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let v4 = prop::sample::select(vec![
        "10.0.0.5",
        "10.0.0.1",
        "10.0.0.255",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.77",
        "198.51.100.9",
        "203.0.113.1",
        "203.0.113.200",
        "169.254.1.1",
        "127.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
    ]);
    let v6 = prop::sample::select(vec![
        "2001:db8:1::5",
        "2001:db8:1::1",
        "2001:db8:1::77",
        "2001:db8:2::1",
        "2001:db8:9::9",
        "fe80::5",
        "::1",
        "::",
    ]);
    let hosts = prop_oneof![(v4.clone(), v4), (v6.clone(), v6)];
    let len = prop::sample::select(vec![0, 20, 1480]);
    (hosts, 0..4, prop::sample::select(vec![1_u8, 2, 64]), len, any::<bool>()).prop_map(
        |((from, to), kind, ttl, len, whole)| {
            let at = |host: &str, port: u16| match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            };
            let packet = match kind {
                0 => Packet::udp(&at(from, 4000), &at(to, 53)),
                1 => Packet::tcp(&at(from, 4000), &at(to, 22)).flags(2),
                2 => Packet::tcp(&at(from, 4000), &at(to, 23)).flags(2),
                _ => Packet::echo_request(from, to, 7, 1),
            };
            let packet = packet.payload(&vec![7; len]).ttl(ttl);
            if whole && !from.contains(':') { packet.dont_fragment() } else { packet }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// As where packets are crossed: each packet ends alike, by the same rule, leaves by the same port, and is answered alike.
    #[test]
    fn explain_and_the_datapath_route_alike(
        packets in prop::collection::vec((packet(), 0..2_u8), 1..8),
        tracked in any::<bool>(),
    ) {
        let toml = router(if tracked { FLOWS } else { PLAIN });
        let mut datapath = Bench::new(&toml);
        let explainer = Explainer::live(&compiled(&toml).0, datapath.blueprint());
        for (packet, port) in packets {
            let frame = packet.macs([2, 9, 9, 9, 9, 9], [2, 0, 0, 0, 0, port]).bytes();
            let flow = copied(&datapath, &explainer, port, &frame);
            let told = explainer.explain(port, &frame, datapath.now, &flow);
            let ends = datapath.push_all(["lan", "wan"][usize::from(port)], &[&frame]);
            let Some(pushed) = ends.first() else {
                prop_assert_eq!(told.end, End::Held);
                continue;
            };
            prop_assert_eq!(end(&explainer, &told), (pushed.reason().to_owned(), pushed.rule().to_owned()));
            let out = |port: u8| explainer.names.port_name(port).unwrap_or("-").to_owned();
            match (pushed, &told.answer) {
                // The box answers a ping in the buffer of the question.
                (bench::End::Sent { port, .. }, Some((_, by))) if told.facts.out == SELF_PORT => {
                    prop_assert_eq!(&out(*by), port);
                }
                (bench::End::Sent { port, .. }, _) => prop_assert_eq!(&out(told.facts.out), port),
                (bench::End::Dropped { .. }, answer) => prop_assert_eq!(answer.is_some(), ends.len() > 1),
            }
        }
    }
}
