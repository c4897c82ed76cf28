//! Two workers: packets of both ways come to the one that has the flow, in this process and in the one that goes on with its
//! flows.

use std::fs::File;
use std::path::Path;

use super::*;
use crate::config::names::Names;
use crate::config::source::Source as Text;
use crate::flow::file::{Unfit, Writer};
use crate::stage::pipeline::Blueprint;
use crate::stage::restore::{Restored, Saved, saved_names};

fn compiled(rest: &str, workers: usize) -> (Names, Blueprint) {
    let toml = format!("{STATIC}{rest}");
    let config = Config::parse(&Text::new("two.toml", &toml)).unwrap_or_else(|list| panic!("{list:#?}"));
    let blueprint = compile(&config, workers, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
    (config.names, blueprint)
}

struct Two {
    names: Names,
    blueprint: Blueprint,
    key: Key,
    workers: [Worker<MemoryIo>; 2],
    now: u64,
}

impl Two {
    /// Two workers with this key, or that of the flows they go on with, if `keeps` says so.
    fn new(rest: &str, key: Key, now: u64, saved: Option<&Path>, keeps: bool) -> Result<(Two, Restored), Unfit> {
        let (names, blueprint) = compiled(rest, 2);
        let mut tables: Vec<_> =
            (0..2).map(|_| blueprint.tables(Placement::default()).expect("memory").expect("tracked")).collect();
        let saved = saved.map(|path| Saved::check(path, &blueprint, &names)).transpose()?;
        let key = saved.as_ref().filter(|_| keeps).and_then(Saved::key).unwrap_or(key);
        let restored = saved.map(|saved| saved.load(&mut tables, key, now)).transpose()?.unwrap_or_default();
        let ((to_one, from_zero), (to_zero, from_one)) = (ring(256).expect("a ring"), ring(256).expect("a ring"));
        let handoff = |me, to, from| Handoff { me, to, from: vec![from], out: vec![None, None], sends: Vec::new() };
        let io = MemoryIo::new(2, 512, 2000);
        let beside = io.beside();
        let mut start = |io: MemoryIo, index: usize, handoff: Handoff| {
            let (mtus, links) = (vec![1500, 1500], Arc::new(AtomicU64::new(u64::MAX)));
            let (blueprint, tables, handoff) = (blueprint.clone(), Some(tables.remove(0)), Some(handoff));
            let setup = Setup { blueprint, index, burst: 8, mtus, strip: 0, links, key, tables, handoff, own: None };
            Worker::new(io, (), setup)
        };
        let workers = [
            start(io, 0, handoff(0, vec![None, Some(to_one)], from_one)),
            start(beside, 1, handoff(1, vec![Some(to_zero), None], from_zero)),
        ];
        Ok((Two { names, blueprint, key, workers, now }, restored))
    }

    /// A packet that comes in at a worker, by a port, comes out once: by which port, and as what.
    fn pass(&mut self, at: u16, port: u8, packet: Packet) -> (u8, Vec<u8>) {
        let packet = packet.ttl(64);
        let bytes = if port == 0 { packet.macs(HOST, LAN) } else { packet.macs(PEER, WAN) }.bytes();
        assert!(self.workers[usize::from(at & 1)].io().push(port, &bytes, |_| {}));
        self.now += 1_000;
        for _ in 0..4 {
            for worker in &mut self.workers {
                worker.turn(self.now);
            }
        }
        let mut sent = Vec::new();
        for (worker, port) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            while let Some(bytes) = self.workers[worker].io().pull(port, |frame| frame.bytes().to_vec()) {
                sent.push((port, bytes));
            }
        }
        assert_eq!(sent.len(), 1, "it comes out once");
        sent.remove(0)
    }

    fn used(&self) -> [u32; 2] {
        let tables = |worker: &Worker<MemoryIo>| worker.pipeline().tracker().expect("tracked").tables().v4.occupancy();
        self.workers.each_ref().map(|worker| tables(worker).used)
    }

    fn save(&self, path: &Path) {
        let names = saved_names("two.toml", &self.names, &self.blueprint, self.key);
        let mut writer = Writer::new(File::create(path).expect("a file"), &names, self.now).expect("room");
        for worker in &self.workers {
            let mut all = Vec::new();
            worker.pipeline().tracker().expect("tracked").tables().v4.walk(&mut 0, usize::MAX, |_, entry| {
                all.push(*entry);
                true
            });
            writer.add(&all).expect("room");
        }
        writer.finish().expect("room");
    }
}

const KEY: Key = Key([1, 2, 3, 4]);

/// The ends of a flow: inside, as it is known outside, and the server.
fn flow(two: &mut Two, n: u16) -> [String; 3] {
    let (inside, server) = (format!("10.0.0.5:{}", 3000 + n), format!("192.0.2.2:{}", 50 + n));
    let (port, sent) = two.pass(n, 0, udp(&inside, &server));
    let outside = format!("192.0.2.1:{}", sport(&sent));
    assert_eq!((port, sent), (1, left("wan", udp(&outside, &server))));
    [inside, outside, server]
}

fn answer(two: &mut Two, at: u16, [inside, outside, server]: &[String; 3]) {
    assert_eq!(two.pass(at, 1, udp(server, outside)), (0, left("lan", udp(server, inside))));
}

#[test]
fn answers_come_to_the_worker_that_has_the_flow() {
    let (mut two, _) = Two::new(MASQUERADE, KEY, START, None, false).expect("no file");
    for n in 0..40 {
        let ends = flow(&mut two, n);
        answer(&mut two, n >> 1, &ends);
        let [inside, outside, server] = &ends;
        let error = |to: &str, about: &Packet| Packet::icmp_error("192.0.2.2", to, 3, 3, about);
        let told = two.pass(n, 1, error("192.0.2.1", &udp(outside, server)));
        assert_eq!(told, (0, left("lan", error("10.0.0.5", &udp(inside, server)))));
    }
    let used = two.used();
    assert!(used.iter().sum::<u32>() == 40 && used.iter().all(|used| *used > 5), "{used:?}");
}

#[test]
fn flows_go_on_in_another_process() {
    let forward =
        "[[dnat.rule]]\nfrom = 'outside'\ndestination = 'self'\nservice = 'tcp/8080'\nto_destination = '10.0.0.5:80'\n";
    let rest = format!("{MASQUERADE}{forward}");
    let (mut two, _) = Two::new(&rest, KEY, START, None, false).expect("no file");
    let flows: Vec<_> = (0..40).map(|n| flow(&mut two, n)).collect();
    let called = |n: u16| format!("198.51.100.9:{}", 4000 + n);
    for n in 0..10 {
        let there = two.pass(n, 1, syn(&called(n), "192.0.2.1:8080"));
        assert_eq!(there, (0, left("lan", syn(&called(n), "10.0.0.5:80"))));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows");
    two.save(&path);

    let other = Key::seeded(9);
    let (mut next, restored) = Two::new(&rest, other, two.now, Some(&path), true).expect("it fits");
    assert_eq!(restored, Restored { flows: 50, ..Restored::default() });
    assert_eq!(next.used(), two.used());
    for (n, ends) in flows.iter().enumerate() {
        answer(&mut next, n as u16, ends);
        let [inside, outside, server] = ends;
        assert_eq!(next.pass(n as u16 >> 1, 0, udp(inside, server)), (1, left("wan", udp(outside, server))));
    }
    let accepted = |from: &str, n| Packet::tcp(from, &called(n)).flags(18).sequence(7).acknowledgment(101);
    for n in 0..10 {
        let back = next.pass(n, 0, accepted("10.0.0.5:80", n));
        assert_eq!(back, (1, left("wan", accepted("192.0.2.1:8080", n))));
    }
    assert_eq!(next.used(), two.used(), "none began anew");

    // With another key, a port is still a worker's, but the way there is another's by chance: then it is none's.
    let restored = Two::new(&rest, other, two.now, Some(&path), false).expect("it fits").1;
    assert!(restored.strayed > 5 && restored.flows > 15 && restored.flows + restored.strayed == 50, "{restored:?}");
    // Another number of workers shares the ports otherwise.
    let (names, three) = compiled(&rest, 3);
    let told = Saved::check(&path, &three, &names).err().expect("refused").to_string();
    assert!(told.contains("shared by 2 worker(s), and now there are 3") && told.contains("without --flows"), "{told}");
}
