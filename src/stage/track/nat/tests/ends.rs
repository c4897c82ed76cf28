//! What a flow takes, its end gives back, however it ends: ports, mappings, and its source's share of flows.

use std::time::Duration;

use super::*;
use crate::control::flows::Selection;
use crate::stage::visit::Task;

/// Sixteen ports for two sources of nine flows; of sixteen half-open flows the oldest goes.
fn pool(independent: bool) -> String {
    let mapping = if independent { "mapping = 'endpoint-independent'\n" } else { "" };
    format!(
        "{STATIC}[conntrack.limit]\nflows_per_source = 9\nhalf_open = 16\nsyn_proxy = 'off'\n[dnat]\n[snat]\n[[snat.rule]]\nto = 'outside'\n\
         source = '10.0.0.0/24'\nto_source = '192.0.2.50'\nports = '4000-4015'\n{mapping}"
    )
}

fn flush(bench: &mut Bench, selection: &Selection) {
    bench.visit(selection, Task::Remove, |_| ()).expect("good words");
}

/// All that there is to take is there, once.
fn takes_all(bench: &mut Bench) {
    let asks = |n: u16| {
        let host = if n < 9 { 5 } else { 6 };
        udp(&format!("10.0.0.{host}:{}", 6000 + n), "198.51.100.9:53")
    };
    let taken: HashSet<u16> = (0..16).map(|n| sport(&push(bench, "lan", &asks(n)))).collect();
    assert_eq!(taken, (4000..4016).collect());
    let reason = |bench: &mut Bench, n| end(bench, "lan", &asks(n)).reason().to_owned();
    assert_eq!(reason(bench, 17), "snat.exhausted");
    assert_eq!(reason(bench, 18), "snat.exhausted", "what got no port does not count as its source's");
    assert_eq!(end(bench, "lan", &udp("10.0.0.5:7000", "198.51.100.10:53")).reason(), "conntrack.too-many-flows");
    let logged = bench.counter("snat", "logged") + bench.counter("snat", "log-suppressed");
    assert!(logged >= 2, "those without a port are told of, the others are not its matter: {logged}");
}

#[test]
fn sources_have_limits_and_pools_an_end() {
    for independent in [false, true] {
        let mut bench = Bench::new(&pool(independent));
        takes_all(&mut bench);
        flush(&mut bench, &Selection { source: vec!["10.0.0.5".into()], ..Selection::default() });
        assert_eq!(bench.tables().expect("tracked").v4.occupancy().translated, 7);
        // Two of the ports of nine that are free.
        for n in 0..2 {
            let sent = push(&mut bench, "lan", &udp(&format!("10.0.0.5:{}", 8000 + n), "198.51.100.9:53"));
            assert!((4000..4016).contains(&sport(&sent)));
        }
        bench.pass(Duration::from_secs(130), true);
        takes_all(&mut bench);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nothing_is_lost_however_flows_end(
        independent: bool, steps in prop::collection::vec((0u8..12, 5u8..7, 0u16..12, 0u8..3), 1..80),
    ) {
        let toml = pool(independent);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("flows");
        let mut bench = Bench::new(&toml);
        for (step, host, port, server) in steps {
            let (inside, server) = (format!("10.0.0.{host}:{}", 5000 + port), format!("198.51.100.{server}:53"));
            match step {
                0..4 => {
                    if let End::Sent { bytes, .. } = end(&mut bench, "lan", &udp(&inside, &server)) && step == 0 {
                        let outside = format!("192.0.2.50:{}", sport(&bytes));
                        prop_assert_eq!(push(&mut bench, "wan", &udp(&server, &outside)), left("lan", udp(&server, &inside)));
                    }
                }
                4..8 => drop(end(&mut bench, "lan", &syn(&inside, &server))),
                8 => drop(end(&mut bench, "lan", &Packet::tcp(&inside, &server).flags(4).sequence(101))),
                9 => bench.pass(Duration::from_secs(u64::from(port) * 20), true),
                10 => flush(&mut bench, &Selection { source: vec![format!("10.0.0.{host}")], ..Selection::default() }),
                _ => {
                    let used = bench.tables().expect("tracked").v4.occupancy().used;
                    bench.save(&file);
                    let (next, restored) = Bench::resume(&toml, &file, bench.now).expect("it fits");
                    prop_assert_eq!((restored.denied, restored.strayed, restored.crowded), (0, 0, 0));
                    prop_assert_eq!(restored.flows + restored.expired, u64::from(used));
                    bench = next;
                }
            }
            let table = &bench.tables().expect("tracked").v4;
            table.check();
            prop_assert_eq!(table.occupancy().used, table.occupancy().translated);
        }
        flush(&mut bench, &Selection::default());
        prop_assert_eq!(bench.tables().expect("tracked").v4.occupancy().used, 0);
        takes_all(&mut bench);
    }
}

/// A flow that came in by a mapping goes on in another process, though nothing says there what the mapping was.
#[test]
fn calls_by_a_mapping_go_on() {
    let toml = format!("{}filtering = 'endpoint-independent'\n", pool(true));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("flows");
    let mut bench = Bench::new(&toml);
    let (inside, stranger, other) = ("10.0.0.5:4004", "203.0.113.7:9", "203.0.113.8:9");
    assert_eq!(
        push(&mut bench, "lan", &udp(inside, "198.51.100.9:53")),
        left("wan", udp("192.0.2.50:4004", "198.51.100.9:53"))
    );
    let call = |from| (udp(from, "192.0.2.50:4004"), left("lan", udp(from, inside)));
    let (packet, came) = call(stranger);
    assert_eq!(push(&mut bench, "wan", &packet), came);
    // Only the call is left.
    flush(&mut bench, &Selection { source: vec!["10.0.0.5".into()], ..Selection::default() });
    bench.save(&file);
    let (mut bench, restored) = Bench::resume(&toml, &file, bench.now).expect("it fits");
    assert_eq!((restored.flows, restored.denied), (1, 0));
    assert_eq!(push(&mut bench, "lan", &udp(inside, stranger)), left("wan", udp("192.0.2.50:4004", stranger)));
    let (packet, came) = call(other);
    assert_eq!(push(&mut bench, "wan", &packet), came, "the mapping is there for others");
    // Nobody else inside gets its port.
    let sent = push(&mut bench, "lan", &udp("10.0.0.6:4004", "198.51.100.9:53"));
    assert_ne!(sport(&sent), 4004);
}
