//! Decode in nanoseconds per packet (criterion's "elements"), and checksums in bytes per second.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowgate::packet::decode::{Depth, decode};
use flowgate::packet::frame::Heap;
use flowgate::packet::steer::{Key, steer};
use flowgate::packet::{BATCH, bits};
use flowgate::testkit::packets::{self, Packet};
use flowgate::wire::checksum;

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(BATCH as u64));
    let cases = [
        ("udp4", Packet::udp("10.0.0.1:1000", "192.0.2.1:53").payload(&[0; 18])),
        ("tcp4", Packet::tcp("10.0.0.1:1000", "192.0.2.1:443").payload(&[0; 6])),
        ("udp6", Packet::udp("[2001:db8::1]:1000", "[2001:db8::2]:53").payload(&[0; 18])),
        ("vlan", Packet::udp("10.0.0.1:1000", "192.0.2.1:53").payload(&[0; 18]).vlan(5)),
        ("icmp4", Packet::echo_request("10.0.0.1", "192.0.2.1", 1, 1).payload(&[0; 18])),
    ];
    for (name, packet) in &cases {
        let mut heap = Heap::new(BATCH, 2048);
        let mut batch = packets::batch(&mut heap, (0..BATCH).map(|_| packet.bytes()));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                batch.begin(BATCH);
                decode(black_box(&mut batch), black_box(Depth::L4));
                assert_eq!(batch.live, u64::MAX);
            });
        });
        packets::give_back(&mut heap, &mut batch);
    }
    let mut heap = Heap::new(BATCH, 2048);
    let mut batch = packets::batch(&mut heap, (0..BATCH).map(|_| cases[0].1.bytes()));
    decode(&mut batch, Depth::L4);
    let key = Key::seeded(1);
    group.bench_function("steer-udp4", |bencher| {
        bencher.iter(|| {
            let batch = black_box(&mut *batch);
            for i in bits(batch.live) {
                steer(&mut batch.metas[i], &batch.frames[i], key);
            }
        });
    });
    packets::give_back(&mut heap, &mut batch);
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20usize, 64, 1500] {
        let bytes = vec![0xa5u8; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |bencher| bencher.iter(|| checksum::checksum(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, decoding, checksums);
criterion_main!(benches);
