//! What the forwarding table costs: lookups of a batch of 64 over one prefix and over a table of the Internet's shape, and changes
//! to it. First it says how long loading took and how large the table came to be; and the same of all of control's side of it:
//! a million routes through the RIB, one change among them until workers see it, and 100,000.
//!
//! Destinations are random: any unicast address (`random`), or an address of a random prefix (`hit`).

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowgate::memory::allow_hugepages;
use flowgate::packet::{BATCH, Mask, Meta};
use flowgate::route::epoch::Epochs;
use flowgate::route::fib::{Capacity, Fib, FibWriter};
use flowgate::route::router::{Port, Router};
use flowgate::route::{Gateway, Route, Source, Target};
use flowgate::testkit::routes::{self, Numbered};
use ipnet::IpNet;

/// Batches of destinations: many more than any cache holds lines for.
const BATCHES: usize = 4096;
const HOPS: usize = 1000;

fn metas(mut address: impl FnMut() -> IpAddr) -> Vec<Meta> {
    let meta = |address| {
        let mut meta = Meta::UNKNOWN;
        match address {
            IpAddr::V4(address) => meta.dst[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => meta.dst = address.octets(),
        }
        meta
    };
    (0..BATCHES * BATCH).map(|_| meta(address())).collect()
}

fn lookups(criterion: &mut Criterion, name: &str, fib: &Fib, metas: &[Meta]) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (mut at, mut hops) = (0, [0; BATCH]);
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            at = (at + 1) % (metas.len() / BATCH);
            let batch = &metas[at * BATCH..][..BATCH];
            if name.starts_with("v4") {
                fib.lookup_batch_v4(Mask::MAX, |i| Some(&batch[i].dst), &mut hops);
            } else {
                fib.lookup_batch_v6(Mask::MAX, |i| Some(&batch[i].dst), &mut hops);
            }
            black_box(&hops);
        });
    });
}

fn loaded(name: &str, prefixes: &[IpNet]) -> FibWriter {
    let mut random = Numbered(9);
    let began = Instant::now();
    let mut writer = FibWriter::new(Capacity::default(), &Epochs::new(2)).expect("memory");
    for prefix in prefixes {
        writer.insert(*prefix, 1 + random.below(HOPS) as u32).expect("room");
    }
    eprintln!("{name}: {} prefixes in {:?}, {:?}", prefixes.len(), began.elapsed(), writer.occupancy());
    writer
}

fn changes(criterion: &mut Criterion, name: &str, writer: &mut FibWriter, mut change: impl FnMut(&mut FibWriter, u32)) {
    let mut group = criterion.benchmark_group("change");
    group.throughput(Throughput::Elements(1));
    let mut turn = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            turn += 1;
            change(writer, turn);
        });
    });
}

/// Megabytes of memory the process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_ascii_whitespace().nth(1).expect("a number").parse::<usize>().expect("a number") / 1024
}

/// Loads routes to these prefixes by 16 gateways, and changes some.
fn routed(prefixes: &[IpNet]) {
    let port = Port {
        name: "out".into(),
        mac: [2; 6],
        mtu: 1500,
        tags: [[0; 4]; 2],
        addresses: vec!["203.0.113.1/24".parse().expect("an address")],
        virtuals: Vec::new(),
        advertises: None,
    };
    let before = resident();
    let mut router = Router::new(1, Capacity::default(), &Default::default(), vec![port]).expect("memory");
    router.start(u64::MAX, &[0], 1);
    for n in 2..18 {
        router.add_static(0, IpAddr::from([203, 0, 113, n]), [2, 0, 0, 0, 0, n], 1);
    }
    let route = |to: IpNet, n: usize| {
        let via = Some(IpAddr::from([203, 0, 113, 2 + (n % 16) as u8]));
        Route { to, target: Target::Via(vec![Gateway { via, port: None, weight: 1 }]), metric: 0 }
    };
    let mut now = 1;
    let mut settle = |router: &mut Router| {
        // Workers are told of changes after a pause at the earliest: the clock is a made-up one.
        now += 1_000_000_000;
        router.serve(now);
        while router.has_news() {
            now += 20_000_000;
            router.serve(now);
        }
    };
    let began = Instant::now();
    for (n, prefix) in prefixes.iter().enumerate() {
        router.route(Source::Kernel, &route(*prefix, n), true);
    }
    settle(&mut router);
    eprintln!("{} routes in {:?}, {} MB", prefixes.len(), began.elapsed(), resident() - before);
    for (what, changes) in [("one", 1), ("100,000", 100_000)] {
        let mut random = Numbered(5);
        let began = Instant::now();
        for n in 0..changes {
            let to = prefixes[random.below(prefixes.len())];
            router.route(Source::Kernel, &route(to, n), n % 2 == 0);
        }
        settle(&mut router);
        eprintln!("{what} of them changed in {:?}, {} MB", began.elapsed(), resident() - before);
    }
    let to: IpNet = "0.0.0.0/0".parse().expect("a prefix");
    let began = Instant::now();
    router.route(Source::Kernel, &route(to, 3), true);
    settle(&mut router);
    eprintln!("a default route in {:?}", began.elapsed());
}

fn route(criterion: &mut Criterion) {
    allow_hugepages();
    let v4 = routes::v4(1_000_000, &mut Numbered(1));
    routed(&v4);
    let v6 = routes::v6(250_000, &mut Numbered(1));
    for (family, prefixes, all) in [("v4", &v4, "0.0.0.0/0"), ("v6", &v6, "2000::/3")] {
        let all: IpNet = all.parse().expect("a prefix");
        let mut random = Numbered(3);
        let anywhere = metas(|| random.within(all));
        let one = loaded(&format!("{family}, one"), &[all]).fib();
        lookups(criterion, &format!("{family}, 1 prefix, random"), &one, &anywhere);
        let mut writer = loaded(family, prefixes);
        let fib = writer.fib();
        lookups(criterion, &format!("{family}, {} prefixes, random", prefixes.len()), &fib, &anywhere);
        let hit = metas(|| {
            let prefix = prefixes[random.below(prefixes.len())];
            random.within(prefix)
        });
        lookups(criterion, &format!("{family}, {} prefixes, hit", prefixes.len()), &fib, &hit);

        let mut pick = |_| prefixes[random.below(prefixes.len())];
        changes(criterion, &format!("{family}, hop of any prefix"), &mut writer, |writer, turn| {
            writer.insert(pick(turn), 1 + turn % 999).expect("room");
        });
        changes(criterion, &format!("{family}, any prefix removed and added"), &mut writer, |writer, turn| {
            let prefix = pick(turn);
            writer.remove(prefix);
            writer.insert(prefix, 1 + turn % 999).expect("room");
        });
        let first = all.network();
        changes(criterion, &format!("{family}, short covering prefix"), &mut writer, |writer, turn| {
            let prefix = IpNet::new(first, [0, 1, 4, 8, 9, 12, 16][turn as usize % 7]).expect("a length");
            match turn / 7 % 2 {
                0 => _ = writer.insert(prefix, 1 + turn % 999).expect("room"),
                _ => _ = writer.remove(prefix),
            }
        });
        eprintln!("{family} after changes: {:?}", writer.occupancy());
    }
}

criterion_group!(benches, route);
criterion_main!(benches);
