//! Tests of what protects the tables: limits on flows and the SYN proxy, over the whole datapath.

use std::time::Duration;

use crate::config::Config;
use crate::config::source::Source;
use crate::flow::region::Placement;
use crate::log::Log;
use crate::packet::decode::{Depth, decode};
use crate::packet::frame::Heap;
use crate::packet::steer::Key;
use crate::packet::{Batch, bits};
use crate::stage::Cx;
use crate::stage::pipeline::compile;
use crate::testkit::bench::{Bench, End, TWO_PORTS};
use crate::testkit::packets::{self, Packet};
use crate::wire::tcp::{ACK, FIN, PSH, RST, SYN};

/// A wire whose inside may reach everything, with a line of `[conntrack.limit]` and one for the rule.
fn rules(limit: &str, rule: &str) -> String {
    format!(
        "[memory]\nflows = 1000\n[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
         [conntrack.limit]\n{limit}\n[cross]\nwire = [{{ ports = ['lan', 'wan'] }}]\n\
         [[acl.rule]]\nname = 'out'\nfrom = 'inside'\nto = 'outside'\naction = 'allow'\n{rule}\n"
    )
}

/// A datagram of a host's `n`th flow.
fn udp(host: u8, n: u16) -> Vec<u8> {
    Packet::udp(&format!("10.0.0.{host}:{}", 1000 + n), "192.0.2.1:53").bytes()
}

fn begin(bench: &mut Bench, host: u8, flows: std::ops::Range<u16>) -> Vec<String> {
    flows.map(|n| bench.push("lan", &udp(host, n)).reason().to_owned()).collect()
}

#[test]
fn flows_of_a_source_and_of_a_rule_are_limited_and_given_back() {
    let rule = "limit = { flows = 5, flows_per_source = 4 }";
    let mut bench = Bench::new(&rules("flows_per_source = 3", rule));
    assert_eq!(begin(&mut bench, 1, 0..4), ["sent", "sent", "sent", "conntrack.too-many-flows"]);
    assert_eq!(begin(&mut bench, 1, 0..1), ["sent"], "a flow that there is goes on");
    assert_eq!(begin(&mut bench, 2, 0..3), ["sent", "sent", "conntrack.rule-too-many-flows"]);
    // By the hand, and by being looked up after their time.
    for swept in [true, false] {
        bench.pass(Duration::from_secs(121), swept);
        let again = if swept { begin(&mut bench, 1, 0..4) } else { begin(&mut bench, 1, 0..3) };
        assert_eq!(again[..3], ["sent", "sent", "sent"]);
    }
    let each = rules("", "limit = { flows_per_source = 2, new_flows = '3/s' }");
    let mut bench = Bench::new(&each);
    assert_eq!(begin(&mut bench, 1, 0..3)[1..], ["sent", "conntrack.rule-too-many-flows"]);
    // What was refused for the source has taken of the rule's rate.
    assert_eq!(begin(&mut bench, 2, 0..1), ["conntrack.rule-too-many-new-flows"]);
    bench.now += 1_000_000_000;
    assert_eq!(begin(&mut bench, 2, 0..2), ["sent", "sent"]);
}

#[test]
fn new_flows_of_a_source_are_limited_in_rate() {
    let mut bench = Bench::new(&rules("new_flows_per_source = '5/s'", ""));
    assert_eq!(
        begin(&mut bench, 1, 0..7)[4..],
        ["sent", "conntrack.too-many-new-flows", "conntrack.too-many-new-flows"]
    );
    assert_eq!(begin(&mut bench, 2, 0..1), ["sent"]);
    bench.now += 400_000_000;
    assert_eq!(begin(&mut bench, 1, 10..13)[1..], ["sent", "conntrack.too-many-new-flows"]);
}

#[test]
fn flows_that_are_evicted_count_no_longer() {
    let mut bench = Bench::new(&rules("half_open = 4\nflows_per_source = 4\nsyn_proxy = 'off'", ""));
    for host in 1..100 {
        assert_eq!(begin(&mut bench, host, 0..4), ["sent"; 4]);
    }
    assert_eq!(bench.counter("conntrack", "evicted"), 98 * 4);
    assert_eq!(begin(&mut bench, 1, 4..8), ["sent"; 4]);
}

#[test]
fn limits_are_the_appliance_s() {
    let text = format!("{TWO_PORTS}{}", rules("flows_per_source = 10", "limit = { flows = 25 }"));
    let config = Config::parse(&Source::new("t.toml", &text)).expect("good");
    let blueprint = compile(&config, 2, &[]).expect("good");
    let mut workers = [0, 1].map(|worker| {
        let tables = blueprint.tables(Placement::default()).expect("memory");
        (blueprint.start(worker, tables, Key::seeded(1), false), blueprint.layout.sheet())
    });
    let mut heap = Heap::new(64, 2048);
    let mut passed = [0; 4];
    for n in 0..30 {
        for host in 1..=3 {
            // Each flow belongs to one worker, a source's to both.
            let (pipeline, sheet) = &mut workers[usize::from(n) % 2];
            let mut batch: Box<Batch> = packets::batch(&mut heap, [udp(host, n)]);
            decode(&mut batch, Depth::L4);
            pipeline.process(&mut batch, &mut Cx { now: 1_700_000_000_000_000_000, sheet, log: &Log::NONE }, &mut ());
            passed[usize::from(host)] += bits(batch.leaving).count();
            packets::give_back(&mut heap, &mut batch);
        }
    }
    assert_eq!(passed.iter().sum::<usize>(), 25, "{passed:?}");
    assert!(passed.iter().all(|flows| *flows <= 10), "{passed:?}");
}

#[test]
fn limits_want_flows_to_be_tracked() {
    let text = rules("", "limit = { flows = 5 }").replace("'conntrack', ", "").replace("[conntrack.limit]\n", "");
    let text = format!("{TWO_PORTS}{text}");
    let config = Config::parse(&Source::new("t.toml", &text)).expect("good");
    let mistakes = compile(&config, 1, &[]).err().expect("a mistake");
    assert!(mistakes[0].to_string().contains("acl.rule[0].limit: flows are not tracked"), "{}", mistakes[0]);
}

const CLIENT: [&str; 2] = ["10.0.0.5:40000", "[2001:db8::5]:40000"];
const SERVER: [&str; 2] = ["192.0.2.7:443", "[2001:db8:1::7]:443"];
const SYN_OPTIONS: [u8; 20] = *b"\x02\x04\x05\xb4\x04\x02\x08\x0a\x00\x00\x10\x00\x00\x00\x00\x00\x01\x03\x03\x07";

/// A TCP segment that was sent: by which port, and flags, sequence, acknowledgment, payload.
#[derive(Debug, PartialEq)]
struct Out {
    port: String,
    flags: u8,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    stamps: (u32, u32),
    payload: Vec<u8>,
}

fn out(end: &End) -> Out {
    let End::Sent { port, bytes, .. } = end else { panic!("{end:?}") };
    let sliced = etherparse::SlicedPacket::from_ethernet(bytes).expect("a packet");
    let Some(etherparse::TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("TCP") };
    let sum = match &sliced.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
        Some(etherparse::NetSlice::Ipv6(ip)) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
        _ => panic!("IP"),
    };
    assert_eq!(sum.expect("short"), tcp.checksum());
    let stamps = tcp.options_iterator().flatten().find_map(|option| match option {
        etherparse::TcpOptionElement::Timestamp(value, echo) => Some((value, echo)),
        _ => None,
    });
    Out {
        port: port.clone(),
        flags: tcp.slice()[13],
        sequence: tcp.sequence_number(),
        acknowledgment: tcp.acknowledgment_number(),
        window: tcp.window_size(),
        stamps: stamps.unwrap_or_default(),
        payload: tcp.payload().to_vec(),
    }
}

fn stamps(value: u32, echo: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// One connection through a bench.
struct Talk<'a> {
    bench: &'a mut Bench,
    client: &'a str,
    server: &'a str,
}

impl Talk<'_> {
    fn client(&mut self, flags: u8, sequence: u32, acknowledgment: u32, options: &[u8], payload: &[u8]) -> Vec<End> {
        let packet = Packet::tcp(self.client, self.server).acknowledgment(acknowledgment).flags(flags);
        let packet = packet.sequence(sequence).window(500).tcp_options(options).payload(payload);
        self.bench.push_all("lan", &[packet.bytes()])
    }

    fn server(&mut self, flags: u8, sequence: u32, acknowledgment: u32, options: &[u8], payload: &[u8]) -> Vec<End> {
        let packet = Packet::tcp(self.server, self.client).acknowledgment(acknowledgment).flags(flags);
        let packet = packet.sequence(sequence).window(8000).tcp_options(options).payload(payload);
        self.bench.push_all("wan", &[packet.bytes()])
    }

    /// A SYN with the number 1000; the number and timestamp of the answer.
    fn challenge(&mut self) -> (u32, u32) {
        let ends = self.client(SYN, 1000, 0, &SYN_OPTIONS, &[]);
        let answer = out(&ends[0]);
        assert_eq!((answer.port.as_str(), answer.flags, answer.acknowledgment), ("lan", SYN | ACK, 1001));
        assert_eq!((answer.window, answer.stamps.1), (0, 0x1000));
        (answer.sequence, answer.stamps.0)
    }
}

#[test]
fn a_proxied_connection_from_its_first_segment_to_its_last() {
    for (client, server) in CLIENT.into_iter().zip(SERVER) {
        let mut bench = Bench::new(&rules("syn_proxy = 'always'", ""));
        let mut talk = Talk { bench: &mut bench, client, server };
        let (cookie, stamp) = talk.challenge();
        assert_eq!(talk.bench.counter("conntrack", "new"), 0, "nothing is remembered");
        let theirs = 0xffff_fff0u32;
        // The acknowledgment, and a probe of the closed window: each brings the SYN to the server.
        for sequence in [1001, 1000] {
            let ends = talk.client(ACK, sequence, cookie.wrapping_add(1), &stamps(0x1001, stamp), &[]);
            let syn = out(&ends[0]);
            assert_eq!((syn.port.as_str(), syn.flags, syn.sequence, syn.stamps), ("wan", SYN, 1000, (0x1001, 0)));
        }
        assert_eq!(talk.client(ACK, 1001, cookie, &stamps(0x1001, stamp), &[])[0].reason(), "conntrack.bad-state");
        let options = [&SYN_OPTIONS[..6], &stamps(77, 0x1001)[2..], &[1, 3, 3, 7]].concat();
        let ends = talk.server(SYN | ACK, theirs, 1001, &options, &[]);
        let mut both: Vec<Out> = ends.iter().map(out).collect();
        both.sort_by(|a, b| a.port.cmp(&b.port));
        let [update, done] = &both[..] else { panic!("{both:?}") };
        assert_eq!((update.port.as_str(), update.flags, update.window), ("lan", ACK, 8000 >> 7));
        assert_eq!((update.sequence, update.acknowledgment), (cookie.wrapping_add(1), 1001));
        assert_eq!(update.stamps, (stamp, 0x1001));
        assert_eq!((done.port.as_str(), done.flags, done.stamps), ("wan", ACK, (0x1001, 77)));
        assert_eq!((done.sequence, done.acknowledgment), (1001, theirs.wrapping_add(1)));
        // The server did not get it.
        let again = talk.server(SYN | ACK, theirs, 1001, &options, &[]);
        assert_eq!(out(&again[0]).port, "wan");
        assert_eq!((again.len(), out(&again[0]).acknowledgment), (1, theirs.wrapping_add(1)));

        // A request, an answer that wraps, and its end.
        let seen = |ends: Vec<End>| out(&ends[0]);
        let request = seen(talk.client(ACK | PSH, 1001, cookie.wrapping_add(1), &stamps(0x1002, stamp), b"get"));
        assert_eq!((request.sequence, request.acknowledgment), (1001, theirs.wrapping_add(1)));
        assert_eq!((request.stamps, &request.payload[..]), ((0x1002, 77), &b"get"[..]));
        let answer = seen(talk.server(ACK, theirs.wrapping_add(1), 1004, &stamps(80, 0x1002), &[7; 100]));
        assert_eq!((answer.sequence, answer.acknowledgment), (cookie.wrapping_add(1), 1004));
        assert_eq!((answer.stamps, answer.window), ((stamp.wrapping_add(3), 0x1002), 8000));
        let last = seen(talk.server(ACK | FIN, theirs.wrapping_add(101), 1004, &stamps(81, 0x1002), &[]));
        assert_eq!(last.sequence, cookie.wrapping_add(101));
        let end = seen(talk.client(ACK | FIN, 1004, cookie.wrapping_add(102), &stamps(0x1003, stamp), &[]));
        assert_eq!((end.sequence, end.acknowledgment), (1004, theirs.wrapping_add(102)));
        let done = seen(talk.server(ACK, theirs.wrapping_add(102), 1005, &stamps(82, 0x1003), &[]));
        assert_eq!(done.sequence, cookie.wrapping_add(102));
        for (counter, count) in [("challenged", 1), ("proven", 1), ("new", 1)] {
            assert_eq!(talk.bench.counter("conntrack", counter), count, "{counter}");
        }
    }
}

#[test]
fn an_error_about_a_proxied_connection_quotes_the_server_s_numbers() {
    let mut bench = Bench::new(&rules("syn_proxy = 'always'", ""));
    let mut talk = Talk { bench: &mut bench, client: CLIENT[0], server: SERVER[0] };
    let (cookie, stamp) = talk.challenge();
    talk.client(ACK, 1001, cookie.wrapping_add(1), &stamps(0x1001, stamp), &[]);
    talk.server(SYN | ACK, 5000, 1001, &stamps(1, 0x1001), &[]);
    talk.server(ACK, 5001, 1001, &stamps(2, 0x1001), &[1; 50]);
    let error = |sequence: u32| {
        let quoted = Packet::tcp(SERVER[0], CLIENT[0]).acknowledgment(1001).flags(ACK).sequence(sequence);
        Packet::icmp_error("10.0.0.5", "192.0.2.7", 3, 4, &quoted.payload(&[1; 50])).bytes()
    };
    let told = error(cookie.wrapping_add(1));
    let sent = talk.bench.push("lan", &told);
    let bytes = sent.bytes().expect("it belongs to the connection");
    assert_eq!(bytes[66..70], 5001u32.to_be_bytes(), "behind Ethernet, IP, ICMP, the quoted IP and ports");
    assert!(crate::wire::checksum::is_good(&bytes[34..]));
    assert_eq!((&bytes[..36], &bytes[38..66], &bytes[70..]), (&told[..36], &told[38..66], &told[70..]));
    assert_eq!(talk.bench.push("lan", &error(5001)).reason(), "conntrack.bad-error", "these it was never told");
}

#[test]
fn a_server_s_refusal_reaches_the_client() {
    let mut bench = Bench::new(&rules("syn_proxy = 'always'", ""));
    let mut talk = Talk { bench: &mut bench, client: CLIENT[0], server: SERVER[0] };
    let (cookie, stamp) = talk.challenge();
    talk.client(ACK, 1001, cookie.wrapping_add(1), &stamps(0x1001, stamp), &[]);
    let reset = out(&talk.server(RST | ACK, 0, 1001, &[], &[])[0]);
    assert_eq!((reset.port.as_str(), reset.flags), ("lan", RST | ACK));
    assert_eq!((reset.sequence, reset.acknowledgment), (cookie.wrapping_add(1), 1001));
}

#[test]
fn cookies_only_while_the_budget_is_nearly_spent() {
    let mut bench = Bench::new(&rules("half_open = 10", ""));
    let syn = |n: u32| Packet::tcp(&format!("10.1.{}.{}:5", n >> 8, n & 255), SERVER[0]).flags(SYN).bytes();
    let ports: Vec<String> = (0..1000).map(|n| out(&bench.push("lan", &syn(n))).port).collect();
    // More than eight half-open flows are nearly ten.
    assert!(ports[..9].iter().all(|port| port == "wan") && ports[9..].iter().all(|port| port == "lan"));
    assert_eq!(bench.counter("conntrack", "evicted"), 0);
    // A clean source connects, and its flow is none of those that may have to go.
    let mut talk = Talk { bench: &mut bench, client: CLIENT[0], server: SERVER[0] };
    let (cookie, stamp) = talk.challenge();
    // Somebody who did not see the answer does not.
    for guess in [cookie, cookie.wrapping_add(2), 1, 0] {
        assert_eq!(talk.client(ACK, 1001, guess, &[], &[])[0].reason(), "conntrack.no-flow");
    }
    assert_eq!(out(&talk.client(ACK, 1001, cookie.wrapping_add(1), &stamps(1, stamp), &[])[0]).port, "wan");
    assert_eq!(out(&talk.server(SYN | ACK, 1, 1001, &stamps(1, 1), &[])[0]).port, "lan");
    assert_eq!(out(&talk.client(ACK, 1001, cookie.wrapping_add(1), &stamps(1, stamp), b"hi")[0]).payload, b"hi");
    // What no rule allows is not answered either.
    let denied = Packet::tcp(SERVER[0], "10.0.0.5:40001").flags(SYN).sequence(9).bytes();
    assert_eq!(bench.push("wan", &denied).reason(), "acl.denied-default");
    // The flood is over: the server hears of SYNs at once, and old cookies are worth nothing.
    bench.pass(Duration::from_secs(200), true);
    assert_eq!(out(&bench.push("lan", &syn(5000))).port, "wan");
    let mut talk = Talk { bench: &mut bench, client: "10.0.0.6:1", server: SERVER[0] };
    assert_eq!(talk.client(ACK, 1001, cookie.wrapping_add(1), &[], &[])[0].reason(), "conntrack.no-flow");
}
