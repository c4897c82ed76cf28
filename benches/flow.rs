//! What connection tracking costs: a worker's whole turn (decode, lookup, replay, send) over frames that never leave the
//! cache, of flows chosen at random or new each time; and the upkeep of the table.
//!
//! Each figure is the time of a batch of 64; criterion's throughput line gives packets per second. Beside it stands the share
//! of an empty turn: the rate divided by that of a worker that passes the same frames unread, both measured in turns, so that
//! what else the machine does falls on both. Ten million flows take 1.5 GB, on huge pages if there are enough.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flowgate::config::Config;
use flowgate::config::source::Source;
use flowgate::flow::entry::{Entry, EntryV4, EntryV6, Key as _, Scope};
use flowgate::flow::region::Placement;
use flowgate::flow::table::Table;
use flowgate::io::Io;
use flowgate::packet::frame::Heap;
use flowgate::packet::steer::Key;
use flowgate::packet::{BATCH, Frame};
use flowgate::stage::pipeline::compile;
use flowgate::stats::{Account, Sheet};
use flowgate::testkit::bench::TWO_PORTS;
use flowgate::worker::{Setup, Worker};

use common::{Kind, Numbered, Stamp, multiply, rules};

mod common;

/// Buffers in use, as many as stay in a core's cache.
const BUFFERS: usize = 512;
const KEY: Key = Key([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89]);
const PLACEMENT: Placement = Placement { huge: true, present: true, node: None };
const NOW: u64 = 1_700_000_000_000_000_000;

/// Which flows come.
#[derive(Clone, Copy)]
enum Choice {
    /// What was put in with `Recycled::offer`.
    Offered,
    /// One of so many, at random.
    Among(u32),
    /// A new one each time.
    New,
}

/// Port 0 receives frames of a template with another flow's number in each; what any port sends, or is freed, comes again.
struct Recycled {
    heap: Heap,
    /// A ring: frames are taken at `at` and come back at `back`.
    ring: Box<[Frame]>,
    at: usize,
    back: usize,
    offered: VecDeque<(u8, Vec<u8>)>,
    stamp: Stamp,
    choice: Choice,
    random: Numbered,
    next: u32,
}

impl Recycled {
    fn new(kind: Kind, template: &[u8], choice: Choice) -> Recycled {
        let mut heap = Heap::new(BUFFERS, 256);
        let ring = (0..BUFFERS).map(|_| heap.frame(template).expect("a buffer")).collect();
        let (stamp, random) = (Stamp::new(kind, template), Numbered(3));
        Recycled { heap, ring, at: 0, back: 0, offered: VecDeque::new(), stamp, choice, random, next: 0 }
    }

    #[inline]
    fn take(&mut self) -> Frame {
        self.at = (self.at + 1) % BUFFERS;
        self.ring[self.at].take()
    }

    fn recycle(&mut self, frames: &mut [Frame]) {
        for frame in frames {
            self.back = (self.back + 1) % BUFFERS;
            self.ring[self.back] = frame.take();
        }
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        self.ring.iter_mut().for_each(|frame| self.heap.give_back(frame.take()));
    }
}

impl Io for Recycled {
    #[inline(never)]
    fn rx(&mut self, port: u8, burst: usize, frames: &mut [Frame; BATCH]) -> usize {
        if self.offered.front().is_some_and(|(to, _)| *to == port)
            && let Some((_, bytes)) = self.offered.pop_front()
        {
            // The template's length stays: what is behind a packet is padding.
            let mut frame = self.take();
            frame.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
            frames[0] = frame;
            return 1;
        }
        if port != 0 || matches!(self.choice, Choice::Offered) {
            return 0;
        }
        for slot in &mut frames[..burst] {
            let flow = match self.choice {
                Choice::Among(flows) => self.random.below(flows.into()) as u32,
                _ => {
                    self.next = self.next.wrapping_add(1);
                    self.next
                }
            };
            let mut frame = self.take();
            self.stamp.write(frame.bytes_mut(), flow);
            *slot = frame;
        }
        burst
    }

    #[inline(never)]
    fn tx(&mut self, _port: u8, frames: &mut [Frame]) -> usize {
        self.recycle(frames);
        frames.len()
    }

    fn free(&mut self, frames: &mut [Frame]) {
        self.recycle(frames);
    }

    fn create(&mut self) -> Option<Frame> {
        None
    }

    fn receives(&self, _port: u8) -> bool {
        true
    }

    fn transmits(&self, _port: u8) -> bool {
        true
    }
}

/// A worker and its clock.
struct Subject {
    worker: Worker<Recycled>,
    now: u64,
}

impl Subject {
    fn new(toml: &str, kind: Kind, template: &[u8], choice: Choice) -> Subject {
        let source = Source::new("bench.toml", &format!("{TWO_PORTS}{toml}"));
        let config = Config::parse(&source).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let blueprint = compile(&config, 1, &[]).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let setup = Setup {
            tables: blueprint.tables(PLACEMENT).expect("memory for flow tables"),
            blueprint,
            index: 0,
            burst: BATCH,
            mtus: vec![1500; 2],
            strip: 0,
            links: Arc::new(AtomicU64::new(u64::MAX)),
            key: KEY,
            handoff: None,
            own: None,
        };
        Subject { worker: Worker::new(Recycled::new(kind, template, choice), (), setup), now: NOW }
    }

    /// `flows` flows that are open at both ends, behind so many rules.
    fn stateful(kind: Kind, flows: u32, rule_count: usize) -> Subject {
        let template = kind.packet();
        let toml = format!("{}{}", tracked(flows), rules(rule_count, kind, "allow"));
        let mut subject = Subject::new(&toml, kind, &template, Choice::Offered);
        for (reply, mut bytes) in kind.opening() {
            bytes.resize(bytes.len().max(template.len()), 0);
            bytes.truncate(template.len());
            subject.worker.io().offered.push_back((u8::from(reply), bytes));
            assert_eq!(subject.worker.turn(subject.now), 1);
        }
        assert_eq!(subject.sheet().of(Account::Dropped), 0, "the flow opens: {:?}", subject.sheet().reasons);
        for frame in &mut subject.worker.io().ring {
            frame.bytes_mut().copy_from_slice(&template);
        }
        let tables = subject.worker.pipeline_mut().tracker_mut().expect("conntrack").tables_mut();
        if kind.is_v4() {
            multiply(&mut tables.v4, kind, flows, KEY);
        } else {
            multiply(&mut tables.v6, kind, flows, KEY);
        }
        subject.worker.io().choice = Choice::Among(flows);
        subject
    }

    fn sheet(&self) -> &Sheet {
        self.worker.sheet()
    }

    /// How long so many turns take.
    fn turns(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            self.now += 1_000;
            black_box(self.worker.turn(self.now));
        }
        start.elapsed()
    }

    /// What became of all packets so far: none of an open flow may have been dropped or judged.
    fn tell(&self) {
        let of = |account| self.sheet().of(account);
        println!("received {}, sent {}, dropped {}", of(Account::Received), of(Account::Sent), of(Account::Dropped));
    }
}

/// The pipeline with tables of so many flows of either family.
fn tracked(flows: u32) -> String {
    let flows = flows.max(64);
    let wire = "[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";
    format!("[memory]\nflows = {flows}\nflows_v6 = {flows}\n[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n{wire}")
}

/// A worker that passes frames of a template unread.
fn empty(kind: Kind, template: &[u8]) -> Subject {
    let wire = "[pipeline]\nstages = ['cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";
    Subject::new(wire, kind, template, Choice::Among(1 << 20))
}

/// Measures turns of a worker and of an empty one alternately.
fn compare(
    criterion: &mut Criterion,
    group: &str,
    name: impl std::fmt::Display,
    mut subject: Subject,
    mut empty: Subject,
) {
    let (mut times, mut of_empty) = (Duration::ZERO, Duration::ZERO);
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::from_parameter(&name), |bencher| {
        bencher.iter_custom(|count| {
            of_empty += empty.turns(count);
            let time = subject.turns(count);
            times += time;
            time
        });
    });
    group.finish();
    if !times.is_zero() {
        println!("share of an empty turn: {:.3}", of_empty.as_secs_f64() / times.as_secs_f64());
        subject.tell();
    }
}

fn established(criterion: &mut Criterion) {
    let cases = [
        (Kind::Udp, &[1_000, 1 << 16, 1_000_000, 10_000_000][..]),
        (Kind::Tcp, &[1_000, 1 << 16, 1_000_000, 10_000_000]),
        (Kind::Udp6, &[1_000, 1 << 16, 1_000_000]),
        (Kind::Tcp6, &[1_000, 1 << 16, 1_000_000]),
    ];
    for (kind, sizes) in cases {
        for flows in sizes {
            for rule_count in if *flows == 1_000 { &[10, 1_000, 10_000][..] } else { &[1_000] } {
                if !wanted(&format!("{kind:?}/{flows}-flows-{rule_count}-rules")) {
                    continue;
                }
                let subject = Subject::stateful(kind, *flows, *rule_count);
                let empty = empty(kind, &kind.packet());
                let name = format!("{flows}-flows-{rule_count}-rules");
                compare(criterion, &format!("{kind:?}"), name, subject, empty);
            }
        }
    }
}

/// Making a table takes longer than measuring it: only those are made that the command line's filter names.
fn wanted(name: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    filters.peek().is_none() || filters.any(|filter| name.contains(&filter) || filter.parse::<f64>().is_ok())
}

/// Every packet the first of a flow: allowed ones make entries, of which half-open ones must go; denied ones make none.
fn first_packets(criterion: &mut Criterion) {
    for (group, action) in [("new-flows", "allow"), ("denied-flood", "deny")] {
        for kind in [Kind::Udp, Kind::Tcp] {
            if !wanted(&format!("{group}/{kind:?}")) {
                continue;
            }
            let template = kind.first();
            // SYNs are to begin flows, and not to be answered.
            let limit = "[conntrack.limit]\nsyn_proxy = 'off'\n";
            let toml = format!("{}{limit}{}", tracked(1_000_000), rules(1_000, kind, action));
            let subject = Subject::new(&toml, kind, &template, Choice::New);
            compare(criterion, group, format!("{kind:?}"), subject, empty(kind, &template));
        }
    }
}

/// The hand over a million entries: none of which has to go, and all of which have.
fn expiry(criterion: &mut Criterion) {
    const FLOWS: u32 = 1_000_000;
    let mut group = criterion.benchmark_group("expiry");
    group.throughput(Throughput::Elements(FLOWS.into()));
    let model = {
        let mut subject = Subject::stateful(Kind::Udp, 64, 1);
        let tables = subject.worker.pipeline_mut().tracker_mut().expect("conntrack").tables();
        let mut model: Option<EntryV4> = None;
        tables.v4.walk(&mut 0, 1, |_, entry| {
            model = Some(*entry);
            true
        });
        model.expect("an entry")
    };
    let filled = || {
        let mut table = Table::<EntryV4>::new(FLOWS as usize, FLOWS as usize, PLACEMENT).expect("memory");
        let scope: Scope = model.key().scope();
        let key = flowgate::flow::entry::KeyV4::of(&Kind::Udp.facts(0), scope);
        table.insert(key, *model.body(), |_| ()).expect("room");
        multiply(&mut table, Kind::Udp, FLOWS, KEY);
        table
    };
    let now = model.body().expires;
    if wanted("expiry/idle") {
        let mut table = filled();
        group.bench_function("idle", |bencher| {
            bencher.iter(|| assert_eq!(table.expire(now - 1, FLOWS as usize, |_| ()), 0));
        });
    }
    if wanted("expiry/removal") {
        group.bench_function("removal", |bencher| {
            bencher.iter_custom(|count| {
                let mut total = Duration::ZERO;
                for _ in 0..count {
                    let mut table = filled();
                    let start = Instant::now();
                    assert_eq!(table.expire(now, FLOWS as usize, |_| ()), FLOWS as usize);
                    total += start.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

fn memory(_: &mut Criterion) {
    let entries = 10_000_000;
    let (v4, v6) = (Table::<EntryV4>::bytes_per_flow(entries, 0), Table::<EntryV6>::bytes_per_flow(entries, 0));
    println!("bytes a flow, index included: {v4} (IPv4), {v6} (IPv6)");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = established, first_packets, expiry, memory
}
criterion_main!(benches);
