use std::path::PathBuf;

use super::*;
use crate::config::Config;
use crate::config::source::Source;
use crate::flow::entry::{Body, EntryV4};
use crate::flow::file::Writer;
use crate::flow::region::Placement;
use crate::stage::pipeline::compile;
use crate::testkit::bench::{Bench, TWO_PORTS};
use crate::testkit::packets::Packet;
use crate::wire::tcp::{ACK, PSH, SYN};

const CONFIG: &str = "\
[memory]\nflows = 1000\n\
[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
[[acl.rule]]\nname = 'web'\nfrom = 'inside'\nservice = ['tcp/443']\naction = 'allow'\n\
[[acl.rule]]\nname = 'dns'\nfrom = 'inside'\nservice = ['udp/53', 'icmp']\naction = 'allow'\n";

const CLIENT: &str = "10.0.0.1:1000";
const SERVER: &str = "192.0.2.1:443";

fn segment(from_client: bool, flags: u8, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    let packet = if from_client { Packet::tcp(CLIENT, SERVER) } else { Packet::tcp(SERVER, CLIENT) };
    packet.sequence(sequence).acknowledgment(acknowledgment).flags(flags).window(1000).bytes()
}

fn udp(n: u16) -> [Packet; 2] {
    let (a, b) = (format!("10.0.0.2:{n}"), "192.0.2.9:53");
    [Packet::udp(&a, b), Packet::udp(b, &a)]
}

/// An open TCP connection, and 150 UDP flows of which every other is answered.
fn busy() -> Bench {
    let mut bench = Bench::new(CONFIG);
    for (port, bytes) in [
        ("lan", segment(true, SYN, 99, 0)),
        ("wan", segment(false, SYN | ACK, 499, 100)),
        ("lan", segment(true, ACK, 100, 500)),
    ] {
        let end = bench.push(port, &bytes);
        assert_eq!(end.reason(), "sent", "{port} {end:?}");
    }
    for n in 0..150 {
        let [there, back] = udp(n);
        assert_eq!(bench.push("lan", &there.bytes()).reason(), "sent");
        if n % 2 == 0 {
            assert_eq!(bench.push("wan", &back.bytes()).reason(), "sent");
        }
    }
    bench
}

struct Kept {
    _folder: tempfile::TempDir,
    file: PathBuf,
    now: u64,
}

fn saved() -> Kept {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("flows");
    let mut bench = busy();
    bench.save(&file);
    Kept { file, now: bench.now, _folder: folder }
}

const SECOND: u64 = 1_000_000_000;

/// All flows by their tuples, without what belongs to a process.
fn flows(bench: &Bench) -> Vec<(crate::flow::entry::KeyV4, Body)> {
    let mut all = Vec::new();
    let table = &bench.tables().expect("tracked").v4;
    table.walk(&mut 0, usize::MAX, |_, entry| {
        all.push((*entry.key(), *entry.body()));
        true
    });
    table.check();
    all.sort_by_key(|(key, _)| (key.proto, key.sport));
    all
}

#[test]
fn flows_go_on_as_they_were() {
    let before = busy();
    let kept = saved();
    let (mut bench, restored) = Bench::resume(CONFIG, &kept.file, kept.now).expect("it fits");
    assert_eq!(restored, Restored { flows: 151, ..Restored::default() });
    assert_eq!(flows(&before), flows(&bench));
    // What no rule would allow as a flow's first packet passes, and windows are remembered.
    assert_eq!(bench.push("wan", &udp(0)[1].bytes()).reason(), "sent");
    assert_eq!(bench.push("wan", &segment(false, ACK | PSH, 500 + 5000, 100)).reason(), "conntrack.bad-sequence");
    assert_eq!(bench.push("wan", &segment(false, ACK | PSH, 500, 100)).reason(), "sent");
    assert_eq!((bench.counter("conntrack", "new"), bench.counter("conntrack", "revoked")), (0, 0));
}

#[test]
fn the_time_between_counts() {
    let kept = saved();
    let (mut bench, restored) = Bench::resume(CONFIG, &kept.file, kept.now + 200 * SECOND).expect("it fits");
    assert_eq!(
        restored,
        Restored { flows: 76, expired: 75, ..Restored::default() },
        "120 s unanswered, 300 s answered"
    );
    bench.pass(std::time::Duration::from_secs(101), true);
    assert_eq!(flows(&bench).len(), 1);
    let years = Bench::resume(CONFIG, &kept.file, kept.now + 400 * 86_400 * SECOND).expect("it fits").1;
    assert_eq!(years, Restored { expired: 151, ..Restored::default() });
}

#[test]
fn rules_and_ports_are_found_by_name() {
    let kept = saved();
    // Other ports before those, rules in another order, and one that forbids what was allowed.
    let moved = CONFIG.replace(
        "[[acl.rule]]\nname = 'web'",
        "[[acl.rule]]\nname = 'new'\nfrom = 'inside'\nservice = ['udp/53']\n\
                                source = ['10.0.0.2']\naction = 'deny'\n[[acl.rule]]\nname = 'web'",
    );
    let ports = "[[port]]\nname = 'dmz'\ndevice = 'net_null7'\n[[port]]\nname = 'mgmt'\ndevice = 'net_null8'\n";
    let wires = moved.replace("wire = [", "wire = [{ ports = ['mgmt', 'dmz'] }, ");
    let (mut bench, restored) =
        Bench::resume(&format!("{ports}{TWO_PORTS}{wires}"), &kept.file, kept.now).expect("it fits");
    assert_eq!(restored, Restored { flows: 1, denied: 150, ..Restored::default() });
    let end = bench.push("wan", &segment(false, ACK, 500, 100));
    assert_eq!((end.reason(), end.rule()), ("sent", "web"));
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let kept = saved();
    for (config, told) in [
        (CONFIG.replace("'web'", "'www'"), "rule \"acl/web\""),
        (CONFIG.replace("[pipeline]\nstages = ['conntrack', ", "[pipeline]\nstages = ["), "does not track connections"),
        (format!("{}{CONFIG}", TWO_PORTS).replace("'wan'", "'wan2'"), "port \"wan\""),
        (CONFIG.replace("flows = 1000", "flows = 64"), "more flows than fit: worker 0 has room for"),
    ] {
        let unfit = Bench::resume(&config, &kept.file, kept.now).err().expect("refused").to_string();
        assert!(unfit.contains(told) && unfit.contains("without --flows"), "{unfit}");
    }
    let bytes = std::fs::read(&kept.file).expect("there");
    std::fs::write(&kept.file, &bytes[..bytes.len() - 200]).expect("writable");
    let unfit = Bench::resume(CONFIG, &kept.file, kept.now).err().expect("refused").to_string();
    assert!(unfit.contains("ends too early"), "{unfit}");
    let missing = Bench::resume(CONFIG, &kept.file.join("not"), kept.now).err();
    assert!(matches!(missing, Some(Unfit::Io(_))));
}

#[test]
fn another_number_of_workers_with_another_key_share_the_flows() {
    let kept = saved();
    let config = Config::parse(&Source::new("test.toml", &format!("{TWO_PORTS}{CONFIG}"))).expect("good");
    let blueprint = compile(&config, 2, &[]).expect("good");
    let (key, mut tables) = (Key::seeded(9), Vec::new());
    tables.extend((0..2).map(|_| blueprint.tables(Placement::default()).expect("memory").expect("tracked")));
    let saved = Saved::check(&kept.file, &blueprint, &config.names).expect("it fits");
    assert_eq!(saved.load(&mut tables, key, kept.now).expect("it fits").flows, 151);
    for (worker, tables) in tables.iter().enumerate() {
        tables.v4.check();
        assert!(tables.v4.occupancy().used > 40);
        tables.v4.walk(&mut 0, usize::MAX, |_, entry| {
            assert_eq!(entry.body().hash, steer::hash(&entry.key().facts(), key));
            assert_eq!(owner(entry.body().hash, 2), worker);
            true
        });
    }
}

#[test]
fn of_two_with_one_tuple_the_later_goes_on_and_half_open_ones_within_the_budget() {
    let kept = saved();
    let bench = busy();
    let (key, body) = flows(&bench)[0];
    let names = file::Names {
        config: String::new(),
        rules: vec!["acl/dns".into(), "acl/web".into()],
        ports: vec!["wan".into(), "lan".into()],
        steering: None,
    };
    let own = Body { rule: NO_RULE, ingress: [1, 0], out: [0, 1], ..body };
    let earlier = Body { bytes: [7, 7], ..own };
    let mut writer = Writer::new(Vec::new(), &names, bench.now).expect("memory");
    writer.add(&[EntryV4::new(key, earlier), EntryV4::new(key, own)]).expect("memory");
    let waiting = |n: u16| {
        let key = crate::flow::entry::KeyV4 { sport: n, dport: 53, proto: 17, ..key };
        EntryV4::new(key, Body { flags: mark::USED | mark::HALF_OPEN | mark::LIMITED, class: 7, ..own })
    };
    writer.add(&(0..500).map(waiting).collect::<Vec<_>>()).expect("memory");
    std::fs::write(&kept.file, writer.finish().expect("memory")).expect("writable");
    let (bench, restored) = Bench::resume(CONFIG, &kept.file, bench.now).expect("it fits");
    let budget = u64::from(bench.tables().expect("tracked").v4.occupancy().budget);
    assert_eq!(restored, Restored { flows: 1 + budget, crowded: 500 - budget, ..Restored::default() });
    assert!(flows(&bench).iter().any(|(other, found)| *other == key && found.bytes == body.bytes));
}
