//! The laws of the datapath, on two workers over ports of memory with every stage in the pipeline:
//! every packet is accounted for, and a worker's turn allocates and frees nothing, upkeep and publishing included.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytemuck::Zeroable;
use flowgate::config::Config;
use flowgate::config::source::Source;
use flowgate::dpdk::eal::Eal;
use flowgate::dpdk::ring::ring;
use flowgate::flow::entry::{Body, EntryV4, KeyV4, mark};
use flowgate::flow::filter::{Addresses, Counts, Filter, Ranges};
use flowgate::flow::region::Placement;
use flowgate::flow::table::Table;
use flowgate::io::memory::MemoryIo;
use flowgate::packet::steer::Key;
use flowgate::stage::conntrack::Tables;
use flowgate::stage::pipeline::compile;
use flowgate::stage::visit::{Task, Visit};
use flowgate::stats::Account;
use flowgate::testkit::packets::Packet;
use flowgate::worker::{Ask, Handoff, Mailbox, Question, Setup, Worker};

/// Counts what the calling thread allocates and frees.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing (a const thread-local of a Cell).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(memory) }
    }
    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: as above.
        unsafe { System.dealloc(at, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pieces and bytes that are allocated in DPDK's heap.
fn dpdk_heap() -> (u32, usize) {
    let mut stats = dpdk_sys::rte_malloc_socket_stats::default();
    // SAFETY: the EAL runs, and the structure is ours.
    unsafe { dpdk_sys::rte_malloc_get_socket_stats(0, &mut stats) };
    (stats.alloc_count, stats.heap_allocsz_bytes)
}

fn calls() -> u64 {
    CALLS.with(Cell::get)
}

const EVERYTHING: &str = r#"
[[port]]
name = "lan"
device = "net_null0"
zone = "inside"
[[port]]
name = "wan"
device = "net_null1"
zone = "outside"
[set]
bad = ["203.0.113.0/24", "2001:db8:bad::/48"]
[pipeline]
stages = ["guard", "bpf", "talkers", "cross", "acl", "police"]
[guard]
drop = ["@bad"]
[bpf]
deny = "udp port 1900"
[cross]
wire = [{ ports = ["lan", "wan"], rewrite_mac = true }]
[acl]
default = "deny"
log_default = true
[[acl.rule]]
name = "tally"
action = "count"
[[acl.rule]]
name = "dns"
service = "udp/53"
action = "allow"
[[acl.rule]]
name = "back"
service = ["udp", "icmp"]
from = "outside"
action = "allow"
[[acl.rule]]
name = "closed"
service = "tcp/22"
action = "reject"
log = true
[[police.limit]]
name = "each source"
by = "source"
rate = "5000pps"
"#;

/// Frames of every fate: allowed, denied, blocked, limited, malformed, fragments, errors that quote, not IP.
fn traffic() -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    for n in 0..200u16 {
        let client = format!("10.0.{}.{}:{}", n % 3, n % 200 + 1, 1024 + n);
        let ask = Packet::udp(&client, "192.0.2.1:53").payload(b"question");
        let answer = Packet::udp("192.0.2.1:53", &client).payload(b"answer");
        frames.push((0, ask.bytes()));
        frames.push((1, answer.bytes()));
        frames
            .push((1, Packet::icmp_error("192.0.2.9", &format!("10.0.{}.{}", n % 3, n % 200 + 1), 3, 3, &ask).bytes()));
        frames.push((0, Packet::udp(&client, "192.0.2.1:1900").bytes()));
        frames.push((0, Packet::tcp(&client, "192.0.2.1:22").bytes()));
        frames.push((0, Packet::udp("203.0.113.7:1", "192.0.2.1:53").bytes()));
        let mut short = ask.bytes();
        short.truncate(usize::from(n % 60));
        frames.push((0, short));
        let server = if n % 4 == 0 { "192.0.2.1:54" } else { "192.0.2.1:53" };
        let mut parts = Packet::udp(&client, server).payload(&[7; 3000]).fragments(1480);
        match n % 4 {
            0 => {} // all denied
            1 => parts.reverse(),
            // The others wait for the first in vain.
            2 => drop(parts.remove(0)),
            _ => parts.push(parts[1].clone()),
        }
        frames.extend(parts.into_iter().map(|part| (0, part)));
    }
    frames
}

#[test]
fn two_workers_keep_the_laws() {
    Eal::offline(256).expect("an EAL without hugepages");
    let config = Config::parse(&Source::new("laws.toml", EVERYTHING)).unwrap_or_else(|list| panic!("{list:#?}"));
    let mut blueprint = compile(&config, 2, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
    blueprint.follows = true;
    let (to_one, from_zero) = ring(1024).expect("a ring");
    let (to_zero, from_one) = ring(1024).expect("a ring");
    let links = Arc::new(AtomicU64::new(u64::MAX));
    let io = MemoryIo::new(2, 8192, 3100);
    let worker = |me: usize, to, from, io| {
        let handoff = Handoff {
            me,
            to: if me == 0 { vec![None, Some(to)] } else { vec![Some(to), None] },
            from: vec![from],
            out: vec![None, None],
            sends: Vec::new(),
        };
        let setup = Setup {
            blueprint: blueprint.clone(),
            index: me,
            burst: 32,
            mtus: vec![1500, 1500],
            strip: 0,
            links: links.clone(),
            key: Key::seeded(7),
            tables: blueprint.tables(Placement::default()).expect("memory for flow tables"),
            handoff: Some(handoff),
            own: None,
        };
        Worker::new(io, (), setup)
    };
    let beside = io.beside();
    let mut workers = [worker(0, to_one, from_one, io), worker(1, to_zero, from_zero, beside)];
    let mailboxes = [Mailbox::default(), Mailbox::default()];
    let published = [blueprint.layout.published(), blueprint.layout.published()];
    let frames = traffic();
    let mut now = 1_700_000_000_000_000_000;
    for round in 0..3 {
        for (n, (port, bytes)) in frames.iter().enumerate() {
            assert!(workers[n % 2].io().push(*port, bytes, |_| {}), "round {round}: the memory ports hold it");
        }
        for mailbox in &mailboxes {
            for stage in 0..blueprint.stages.len() {
                let question = Question::Stage { position: stage, cursor: 0, rows: Vec::with_capacity(64) };
                let ask = Ask { number: 0, question, done: false };
                let _ = mailbox.asks.push(Box::new(ask));
            }
        }
        let before = (calls(), dpdk_heap());
        for _ in 0..400 {
            for (at, worker) in workers.iter_mut().enumerate() {
                worker.turn(now);
                worker.housekeep(now, &mailboxes[at]);
                published[at].publish(worker.sheet());
            }
            now += 50_000;
        }
        assert_eq!((calls(), dpdk_heap()), before, "round {round}: a turn allocates and frees nothing");
        for worker in &mut workers {
            for port in 0..2 {
                while worker.io().pull(port, |_| ()).is_some() {}
            }
        }
        for mailbox in &mailboxes {
            while mailbox.answers.pop().is_some() {}
        }
        assert!(blueprint.logs.iter().all(|log| log.take().count() > 0), "round {round}: both workers have logged");
    }
    let mut total = blueprint.layout.sheet();
    for (at, worker) in workers.iter_mut().enumerate() {
        assert!(worker.sheet().of(Account::Held) > 0, "fragments wait for their first");
        worker.sheet().check_law(0).unwrap_or_else(|why| panic!("worker {at}: {why}"));
        assert_eq!(&published[at].read(&blueprint.layout), worker.sheet());
        total.merge(worker.sheet(), &blueprint.layout);
    }
    assert_eq!(total.of(Account::Received), 3 * frames.len() as u64);
    assert_eq!(total.of(Account::HandedOut), total.of(Account::HandedIn));
    assert!(total.of(Account::HandedOut) > 0 && total.of(Account::Sent) > 0);
    assert!(total.of(Account::Created) > 0, "rejected packets were answered");
    for reason in [
        "acl.denied-default",
        "acl.rejected",
        "guard.blocked-source",
        "bpf.denied",
        "police.over-limit",
        "decode.short-frame",
        "fragment.duplicate",
    ] {
        let at = blueprint.layout.reason(reason).unwrap_or_else(|| panic!("there is a reason {reason}"));
        assert!(total.reasons[usize::from(at.0)] > 0, "{reason} was met");
    }
}

#[test]
fn visits_to_flows_allocate_nothing() {
    let table = || Table::<EntryV4>::new(6000, 6000, Placement::default()).expect("memory");
    let mut tables = Tables { v4: table(), v6: Table::new(64, 64, Placement::default()).expect("memory") };
    for n in 0..6000u16 {
        let key = KeyV4 { src: [1; 4], dst: [2; 4], sport: n, dport: 53, domain: 0, proto: 17, wire: 0 };
        let body = Body { hash: u32::from(n).wrapping_mul(0x9e37_79b9), flags: mark::HALF_OPEN, ..Body::zeroed() };
        tables.v4.insert(key, body, |_| ()).expect("room");
    }
    let wanted = Ranges::new([0..=2999]);
    let filter = Arc::new(Filter { from_port: Some(wanted), source: Some(Addresses::default()), ..Filter::default() });
    let all = Arc::new(Filter { source: None, ..(*filter).clone() });
    for filter in [filter, all] {
        for task in [Task::copy(), Task::Count(Counts::new(3)), Task::Remove] {
            let mut visit = Visit::new(filter.clone(), task);
            let before = calls();
            while !visit.go_on(&mut tables) {}
            assert_eq!(calls(), before);
        }
    }
    assert_eq!(tables.v4.occupancy().used, 3000);
}
