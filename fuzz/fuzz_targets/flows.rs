//! A stream of packets against the flow tables: whatever arrives, in whatever order and time, the tables' invariants hold, every
//! packet is accounted for, and nobody reaches the inside who was not asked.
//!
//! Each eight bytes of the input are one packet (or a step of time): of few hosts and ports, so that flows meet, with any
//! flags and numbers near those that went before.
#![no_main]

use std::time::Duration;

use flowgate::testkit::bench::Bench;
use flowgate::testkit::packets::Packet;
use libfuzzer_sys::fuzz_target;

const RULES: &str = "\
[memory]\nflows = 64\nflows_v6 = 64\n\
[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
[conntrack]\nlimit = { half_open = 8, syn_proxy = 'off' }\n\
[[acl.rule]]\nname = 'strict'\nfrom = 'inside'\nservice = ['udp', 'icmp', 'icmpv6/echo', 'tcp/80']\naction = 'allow'\n";

/// The frame that a step asks for.
fn frame(step: &[u8; 8], inside: bool, base: &mut [u32; 2]) -> Vec<u8> {
    let [kind, host, port, flags, near, window, len, more] = *step;
    let v6 = kind & 0x40 != 0;
    let address = |inner: bool, n: u8| match (v6, inner) {
        (false, true) => format!("10.0.0.{}", n % 8 + 1),
        (false, false) => format!("192.0.2.{}", n % 2 + 1),
        (true, true) => format!("2001:db8::{}", n % 8 + 1),
        (true, false) => format!("2001:db8:1::{}", n % 2 + 1),
    };
    let ends = |number: u16, inner: bool, n: u8| {
        let address = address(inner, n);
        if v6 { format!("[{address}]:{number}") } else { format!("{address}:{number}") }
    };
    let (near_port, far_port) = (1000 + u16::from(port % 4), 80 + u16::from(port >> 7));
    let (a, b) = match inside {
        true => (ends(near_port, true, host), ends(far_port, false, host >> 4)),
        false => (ends(far_port, false, host >> 4), ends(near_port, true, host)),
    };
    let (from, to) = (
        address(inside, if inside { host } else { host >> 4 }),
        address(!inside, if inside { host >> 4 } else { host }),
    );
    let payload = vec![7; usize::from(len % 64)];
    let mine = usize::from(!inside);
    let tcp = |flags: u8, base: &[u32; 2]| {
        let sequence = base[mine].wrapping_add(u32::from(near & 0x0f)).wrapping_sub(u32::from(near >> 7) * 70_000);
        let acknowledgment =
            base[1 - mine].wrapping_add(u32::from(near >> 4 & 7)).wrapping_add(u32::from(more & 1) << 20);
        Packet::tcp(&a, &b)
            .flags(flags)
            .sequence(sequence)
            .acknowledgment(acknowledgment)
            .window(u16::from(window) << 8)
            .payload(&payload)
    };
    match kind % 8 {
        0..=3 => {
            let packet = tcp(flags, base);
            base[mine] = base[mine].wrapping_add(payload.len() as u32 + u32::from(flags & 3 != 0));
            packet.bytes()
        }
        4 => Packet::udp(&a, &b).payload(&payload).bytes(),
        5 => Packet::echo_request(&from, &to, u16::from(port % 4), 1).bytes(),
        6 => Packet::echo_reply(&from, &to, u16::from(port % 4), 1).bytes(),
        _ if v6 => Packet::icmp_error(&from, &to, 1, 4, &Packet::udp(&b, &a)).bytes(),
        _ if more & 2 != 0 => Packet::icmp_error(&from, &to, 3, 1, &Packet::udp(&b, &a)).bytes(),
        _ => Packet::icmp_error(&from, &to, 3, 3, &Packet::tcp(&b, &a).sequence(base[1 - mine])).bytes(),
    }
}

fuzz_target!(|input: &[u8]| {
    let mut bench = Bench::new(RULES);
    let mut base = [u32::MAX - 40, 17];
    let (mut asked, mut answered) = (false, false);
    for step in input.as_chunks::<8>().0 {
        if step[0] & 0x80 != 0 {
            bench.pass(Duration::from_millis(u64::from(step[1]) << (step[2] % 12)), step[3] & 1 != 0);
            continue;
        }
        let inside = step[0] & 0x20 != 0;
        let frame = frame(step, inside, &mut base);
        let passed = bench.push(if inside { "lan" } else { "wan" }, &frame).reason() == "sent";
        asked |= inside && passed;
        answered |= !inside && passed;
        let tables = bench.tables().expect("flow tables");
        tables.v4.check();
        tables.v6.check();
        assert!(tables.v4.occupancy().half_open <= 8 && tables.v6.occupancy().half_open <= 8);
    }
    assert!(asked || !answered, "the outside came in unasked");
});
