//! What the acl costs: full batches judged against 1 to 10,000 rules, and against none that a lookup could find.
//!
//! Each figure is the time of a batch of 64; criterion's throughput line gives packets per second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flowgate::config::names::{Names, PortName};
use flowgate::config::reader::{FromToml, Reader, Table};
use flowgate::config::source::{Mistakes, Source};
use flowgate::packet::meta::flag;
use flowgate::packet::{BATCH, Mask, Meta};
use flowgate::stage::acl::{Acl, Config};
use flowgate::stage::apply::Adjacencies;
use flowgate::stage::{Action, FlowPlan, Plan, PlanCx, Rules, Stage};
use flowgate::stats::Layout;
use std::sync::Arc;
use toml::de::DeTable;

/// A small generator of repeatable numbers (splitmix64).
struct Numbered(u64);

impl Numbered {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Rules, and packets of which each matches some rule and every second one the last.
struct Case {
    toml: String,
    packets: Vec<Meta>,
}

/// How rules look.
#[derive(Clone, Copy)]
enum Style {
    /// Source and destination prefixes of /16 to /32, every second rule with a port range.
    Plain,
    /// Prefixes of /1 to /32, so that rules overlap widely, all with a port range.
    Nasty,
    /// As `Plain`, IPv6, /32 to /64.
    V6,
}

fn case(style: Style, rules: usize) -> Case {
    let mut random = Numbered(1);
    let mut case = Case { toml: "[acl]\n".into(), packets: Vec::new() };
    for n in 0..rules {
        let mut prefix = || match style {
            Style::V6 => {
                let (bits, len) = (u128::from(random.next()) << 61 >> 3 | 0x2000 << 112, 32 + random.below(33) as u32);
                let bits = bits >> (128 - len) << (128 - len);
                (bits, format!("{}/{len}", std::net::Ipv6Addr::from(bits)))
            }
            _ => {
                let shortest: u32 = if matches!(style, Style::Nasty) { 1 } else { 16 };
                let len = shortest + random.below(u64::from(33 - shortest)) as u32;
                let bits = (random.next() as u32) >> (32 - len) << (32 - len);
                (u128::from(bits) << 96, format!("{}/{len}", std::net::Ipv4Addr::from(bits)))
            }
        };
        let ((src, source), (dst, destination)) = (prefix(), prefix());
        let proto = if random.below(2) == 0 { "tcp" } else { "udp" };
        let ported = n % 2 == 1 || matches!(style, Style::Nasty);
        let first = random.below(60_000);
        let last = first + random.below(5_000);
        let service = if ported { format!("{proto}/{first}-{last}") } else { proto.into() };
        case.toml += &format!(
            "[[acl.rule]]\nsource = '{source}'\ndestination = '{destination}'\nservice = '{service}'\naction = 'allow'\n"
        );
        let family = if matches!(style, Style::V6) { flag::IPV6 } else { flag::IPV4 };
        case.packets.push(Meta {
            src: src.to_be_bytes(),
            dst: dst.to_be_bytes(),
            proto: if proto == "tcp" { 6 } else { 17 },
            sport: 40_000,
            dport: first as u16,
            flags: family | flag::L4 | flag::PORTS,
            out: 1,
            ..Meta::UNKNOWN
        });
    }
    case
}

fn plan(text: &str) -> Arc<dyn FlowPlan> {
    let source = Source::new("bench.toml", text);
    let place = source.place(0);
    let port = |name: &str| PortName { name: name.into(), zone: None, mac: None, carrier: None, place: place.clone() };
    let names = Names { ports: vec![port("lan"), port("wan")], ..Names::default() };
    let (mut layout, mut rules, mut adjacencies) = (Layout::new(), Rules::default(), Adjacencies::default());
    let mut mistakes = Mistakes::default();
    let mut root = Table::root(DeTable::parse(source.text()).expect("TOML"));
    let mut reader = Reader { source: &source, mistakes: &mut mistakes };
    let config = root.take("acl").and_then(|item| Config::from_toml(item, &mut reader)).expect("a config");
    let mut cx = PlanCx {
        instance: "acl".into(),
        names: &names,
        layout: &mut layout,
        rules: &mut rules,
        adjacencies: &mut adjacencies,
        mistakes: &mut mistakes,
        workers: 1,
        conntrack: false,
        flows: (64, 64),
        routing: None,
        routed: &mut None,
        statics: &mut Vec::new(),
        nat: &mut Default::default(),
    };
    let Some(Plan::Flow(plan)) = Acl::plan(&config, &mut cx) else { panic!("{:#?}", mistakes.into_sorted()) };
    plan
}

fn classify(criterion: &mut Criterion) {
    let cases = [
        ("ipv4", Style::Plain, &[0, 1, 4, 8, 16, 100, 1000, 10_000][..]),
        ("ipv4-nasty", Style::Nasty, &[1000, 10_000]),
        ("ipv6", Style::V6, &[1, 1000, 10_000]),
    ];
    for (name, style, sizes) in cases {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(BATCH as u64));
        for rules in sizes {
            let case = case(style, *rules);
            let start = std::time::Instant::now();
            let plan = plan(&case.toml);
            println!("{name}/{rules}: compiled in {:?}: {}", start.elapsed(), plan.describe().join("; "));
            // 1,024 packets, half of them for the last rule.
            let mut random = Numbered(5);
            let mut packets: Vec<[Meta; BATCH]> = (0..16)
                .map(|_| {
                    std::array::from_fn(|i| match case.packets.as_slice() {
                        [] => Meta { flags: flag::IPV4 | flag::L4 | flag::PORTS, proto: 6, out: 1, ..Meta::UNKNOWN },
                        [.., last] if i % 2 == 0 => last.clone(),
                        all => all[random.below(all.len() as u64) as usize].clone(),
                    })
                })
                .collect();
            let mut actions = [Action { out: 1, ..Action::OPEN }; BATCH];
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
                bencher.iter(|| {
                    next = (next + 1) % packets.len();
                    plan.judge(black_box(Mask::MAX), &mut packets[next], &mut actions)
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(1));
    targets = classify
}
criterion_main!(benches);
