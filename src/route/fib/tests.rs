//! The table against its twin, and against readers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use proptest::prelude::*;

use super::twin::Twin;
use super::*;
use crate::packet::bits;
use crate::testkit::routes::{self, Numbered};

const SMALL: Capacity = Capacity { v4: 10_000, v6: 10_000 };

fn table(capacity: Capacity) -> FibWriter {
    FibWriter::new(capacity, &Epochs::new(0)).expect("memory")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// A prefix of any length, in a small part of the address space, so that prefixes meet.
fn prefixes() -> impl Strategy<Value = IpNet> {
    let v4 = (0u32..=32, prop::sample::select(vec![0u32, 0x0a00_0000, 0x0a01_0000, 0xffff_ff00]), any::<u32>())
        .prop_map(|(len, base, noise)| {
            IpNet::new(Ipv4Addr::from(base ^ noise & 0x8003_0383).into(), len as u8).expect("a length")
        });
    let few = 0x8000_0003_0000_0101_8000_0000_0000_0003;
    let v6 = (0u32..=128, any::<u128>(), any::<bool>()).prop_map(move |(len, noise, near)| {
        let bits = if near { noise & few } else { noise & few << 5 };
        IpNet::new(Ipv6Addr::from(bits).into(), len as u8).expect("a length")
    });
    prop_oneof![v4, v6]
}

/// The ends of a prefix, and what lies just outside.
fn around(prefix: IpNet) -> [IpAddr; 4] {
    match prefix {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| Ipv4Addr::from(bits).into())
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| Ipv6Addr::from(bits).into())
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => key(IpNet::from(IpAddr::V4(address))).0,
        IpAddr::V6(address) => address.octets(),
    }
}

/// Lookups one by one and in batches, get and iter, all as the twin says.
fn assert_same(writer: &FibWriter, twin: &Twin, addresses: &[IpAddr]) {
    let fib = writer.fib();
    for address in addresses {
        assert_eq!(fib.lookup(*address), twin.lookup(*address), "{address}");
    }
    for v4 in [true, false] {
        let of_family: Vec<IpAddr> = addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
        for batch in of_family.chunks(BATCH) {
            let bytes: Vec<[u8; 16]> = batch.iter().map(|address| octets(*address)).collect();
            let mut hops = [u32::MAX; BATCH];
            // Every third is not asked for.
            let mask = 0x6db6_db6d_b6db_6db6 & (Mask::MAX >> (BATCH - batch.len()));
            let address = |i: usize| Some(&bytes[i]);
            if v4 {
                fib.lookup_batch_v4(mask, address, &mut hops);
            } else {
                fib.lookup_batch_v6(mask, address, &mut hops);
            }
            assert!(bits(mask).all(|i| hops[i] == twin.lookup(batch[i])));
            assert!(bits(!mask).all(|i| hops[i] == u32::MAX));
        }
    }
    let listed: HashMap<IpNet, u32> = writer.iter().collect();
    assert_eq!(listed.len(), writer.iter().count(), "each once");
    assert_eq!(listed, twin.iter().collect());
    assert!(listed.iter().all(|(prefix, hop)| writer.get(*prefix) == Some(*hop)));
    let (v4, v6) = writer.occupancy();
    assert_eq!(v4.prefixes + v6.prefixes, listed.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn agrees_with_its_twin_under_any_changes(
        steps in prop::collection::vec((prefixes(), 1u32..=3, any::<bool>()), 1..250),
        noise in prop::collection::vec(prefixes(), 20),
    ) {
        let (mut writer, mut twin) = (table(SMALL), Twin::default());
        let addresses: Vec<IpAddr> =
            steps.iter().map(|(prefix, ..)| *prefix).chain(noise).flat_map(around).collect();
        for (at, (prefix, hop, insert)) in steps.iter().enumerate() {
            if *insert || at % 4 == 0 {
                prop_assert_eq!(writer.insert(*prefix, *hop), Ok(twin.insert(*prefix, *hop)));
            } else {
                // One that is there, as a rule.
                let prefix = steps[at / 2].0;
                prop_assert_eq!(writer.remove(prefix), twin.remove(prefix));
                prop_assert_eq!(writer.get(prefix), None);
            }
            if at % 16 == 0 {
                assert_same(&writer, &twin, &addresses);
            }
        }
        assert_same(&writer, &twin, &addresses);
        for (prefix, ..) in &steps {
            prop_assert_eq!(writer.remove(*prefix), twin.remove(*prefix));
        }
        assert_same(&writer, &twin, &addresses);
        let (v4, v6) = writer.occupancy();
        prop_assert_eq!((v4.used, v6.used), (0, 0));
    }
}

#[test]
fn agrees_with_its_twin_on_sets_like_the_internets() {
    let mut random = Numbered(7);
    for prefixes in [routes::v4(30_000, &mut random), routes::v6(10_000, &mut random)] {
        let (mut writer, mut twin) = (table(Capacity { v4: 100_000, v6: 50_000 }), Twin::default());
        let hop = |random: &mut Numbered| 1 + random.below(20) as u32;
        for prefix in &prefixes {
            let hop = hop(&mut random);
            assert_eq!(writer.insert(*prefix, hop), Ok(twin.insert(*prefix, hop)));
        }
        let addresses: Vec<IpAddr> = (0..20_000)
            .map(|at| {
                let prefix = prefixes[random.below(prefixes.len())];
                if at % 2 == 0 { random.within(prefix) } else { around(prefix)[at / 2 % 4] }
            })
            .collect();
        assert_same(&writer, &twin, &addresses);
        for _ in 0..20_000 {
            let prefix = prefixes[random.below(prefixes.len())];
            if random.below(2) == 0 {
                let hop = hop(&mut random);
                assert_eq!(writer.insert(prefix, hop), Ok(twin.insert(prefix, hop)));
            } else {
                assert_eq!(writer.remove(prefix), twin.remove(prefix));
            }
        }
        assert_same(&writer, &twin, &addresses);
    }
}

#[test]
fn the_longest_prefix_counts_and_what_it_covered_comes_back() {
    let mut writer = table(SMALL);
    let fib = writer.fib();
    let address = IpAddr::from([10, 1, 2, 3]);
    assert_eq!(fib.lookup(address), NO_ROUTE);
    let nested = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.0/24", "10.1.2.3/32"];
    for (hop, prefix) in (1..).zip(nested) {
        assert_eq!(writer.insert(net(prefix), hop), Ok(None));
        assert_eq!(fib.lookup(address), hop, "{prefix}");
    }
    assert_eq!(writer.insert(net("10.1.2.99/24"), 60), Ok(Some(6)), "bits behind the prefix do not matter");
    assert_eq!(fib.lookup(IpAddr::from([10, 1, 2, 4])), 60);
    for prefix in ["10.0.0.0/9", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.0/23", "10.1.0.0/16"] {
        assert!(writer.remove(net(prefix)).is_some());
    }
    assert_eq!((fib.lookup(address), fib.lookup(IpAddr::from([11, 0, 0, 0]))), (2, 1));
    assert_eq!(fib.lookup("::".parse().expect("an address")), NO_ROUTE, "the families do not mix");
}

/// A table with very little room, filled until it is full.
fn filled(v6: bool) -> (FibWriter, Twin, IpNet) {
    let (mut writer, mut twin) = (table(Capacity { v4: 0, v6: 0 }), Twin::default());
    let mut random = Numbered(4);
    loop {
        let address: IpAddr = match v6 {
            true => Ipv6Addr::from(u128::from(random.next()) << 64).into(),
            false => Ipv4Addr::from(random.next() as u32).into(),
        };
        let prefix = IpNet::new(address, if v6 { 60 } else { 28 }).expect("a length").trunc();
        match writer.insert(prefix, 1) {
            Ok(old) => assert_eq!(old, twin.insert(prefix, 1)),
            Err(Full) => return (writer, twin, prefix),
        }
    }
}

#[test]
fn a_full_table_is_as_it_was_and_takes_replacements_and_removals() {
    for v6 in [false, true] {
        let (mut writer, mut twin, refused) = filled(v6);
        let before = writer.occupancy();
        let addresses: Vec<IpAddr> = twin.iter().map(|(prefix, _)| prefix).chain([refused]).flat_map(around).collect();
        assert_same(&writer, &twin, &addresses);
        assert_eq!(writer.insert(refused, 1), Err(Full));
        assert_eq!(writer.occupancy(), before);
        let known: Vec<IpNet> = twin.iter().map(|(prefix, _)| prefix).collect();
        for prefix in known.iter().step_by(3) {
            assert_eq!(writer.insert(*prefix, 2), Ok(twin.insert(*prefix, 2)));
        }
        for prefix in known.iter().step_by(2) {
            assert_eq!(writer.remove(*prefix), twin.remove(*prefix));
        }
        assert_same(&writer, &twin, &addresses);
        assert_eq!(writer.insert(refused, 1), Ok(None), "there is room again");
    }
}

#[test]
fn a_worker_in_the_midst_of_a_turn_keeps_memory_from_use_but_not_removals_from_working() {
    let epochs = Epochs::new(1);
    let worker = epochs.presence(0);
    worker.enter();
    let mut writer = FibWriter::new(Capacity { v4: 0, v6: 0 }, &epochs).expect("memory");
    let prefixes: Vec<IpNet> = (0..2_000u32)
        .map(|n| IpNet::new(Ipv4Addr::from(0x0a00_0000 + (n << 12)).into(), 24).expect("a length"))
        .collect();
    let loaded = prefixes.iter().take_while(|prefix| writer.insert(**prefix, 1).is_ok()).count();
    let before = writer.occupancy().0;
    assert!(before.waiting > 0 && loaded < prefixes.len(), "what was replaced waits: {before:?}");
    let (gone, kept) = prefixes[..loaded].split_at(loaded / 2);
    for prefix in gone {
        assert_eq!(writer.remove(*prefix), Some(1));
    }
    let fib = writer.fib();
    assert!(gone.iter().all(|prefix| fib.lookup(prefix.addr()) == NO_ROUTE));
    assert!(kept.iter().all(|prefix| fib.lookup(prefix.addr()) == 1));
    writer.reclaim();
    worker.pass();
    writer.reclaim();
    let after = writer.occupancy().0;
    assert!(after.waiting == 0 && after.used < before.used, "{after:?}");
    assert_eq!(writer.insert(gone[0], 2), Ok(None));
}

#[test]
fn memory_does_not_grow_under_change() {
    let mut random = Numbered(11);
    for prefixes in [routes::v4(8_000, &mut random), routes::v6(4_000, &mut random)] {
        let mut writer = table(SMALL);
        for prefix in &prefixes {
            writer.insert(*prefix, 1).expect("room");
        }
        let of =
            |writer: &FibWriter| if prefixes[0].addr().is_ipv4() { writer.occupancy().0 } else { writer.occupancy().1 };
        let before = of(&writer);
        // Each change turns over a node or more: ten times as many lines as there are.
        for _ in 0..10 * before.total / 64 {
            let prefix = prefixes[random.below(prefixes.len())];
            writer.remove(prefix).expect("there");
            writer.insert(prefix, 1 + random.below(9) as u32).expect("room");
        }
        writer.reclaim();
        let after = of(&writer);
        assert_eq!((after.prefixes, after.used, after.waiting), (before.prefixes, before.used, 0));
        assert!(after.book <= 2 * before.book, "{before:?} {after:?}");
        for prefix in &prefixes {
            writer.remove(*prefix);
        }
        writer.reclaim();
        assert_eq!(of(&writer).used, 0);
    }
}

#[test]
fn readers_never_miss_what_stays() {
    let mut random = Numbered(23);
    let prefixes: Vec<IpNet> =
        routes::v4(6_000, &mut random).into_iter().chain(routes::v6(3_000, &mut random)).collect();
    // Half of them stay, and have even hops; the others come and go with odd ones, and may hide them.
    let stable: Vec<IpNet> = prefixes.iter().copied().step_by(2).collect();
    let churned: Vec<IpNet> = prefixes.into_iter().skip(1).step_by(2).collect();
    let epochs = Epochs::new(2);
    let mut writer = FibWriter::new(Capacity { v4: 6_000, v6: 6_000 }, &epochs).expect("memory");
    let mut twin = Twin::default();
    for (at, prefix) in (1..).zip(&stable) {
        writer.insert(*prefix, 2 * at).expect("room");
        twin.insert(*prefix, 2 * at);
    }
    let addresses: Vec<(IpAddr, u32)> =
        stable.iter().map(|prefix| random.within(*prefix)).map(|address| (address, twin.lookup(address))).collect();
    let covering =
        ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "64.0.0.0/2", "0.0.0.0/4", "::/0", "2000::/3", "2000::/12"];
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (fib, presence, addresses, done) = (writer.fib(), epochs.presence(worker), &addresses, done.clone());
            scope.spawn(move || {
                presence.enter();
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) || rounds < 2 {
                    for batch in addresses.chunks(BATCH) {
                        let bytes: Vec<[u8; 16]> = batch.iter().map(|(address, _)| octets(*address)).collect();
                        let v4 = bits(Mask::MAX >> (BATCH - batch.len()))
                            .filter(|i| batch[*i].0.is_ipv4())
                            .fold(0, |mask, i| mask | 1u64 << i);
                        let v6 = !v4 & Mask::MAX >> (BATCH - batch.len());
                        let mut hops = [0; BATCH];
                        fib.lookup_batch_v4(v4, |i| Some(&bytes[i]), &mut hops);
                        fib.lookup_batch_v6(v6, |i| Some(&bytes[i]), &mut hops);
                        for (i, (address, hop)) in batch.iter().enumerate() {
                            let found = hops[i];
                            assert!(found == *hop || found & 1 != 0, "{address} led to {found}, not {hop}");
                        }
                        presence.pass();
                    }
                    rounds += 1;
                    if worker == 1 {
                        presence.leave();
                        std::thread::yield_now();
                        presence.enter();
                    }
                }
            });
        }
        for turn in 0..60_000u32 {
            let prefix = match turn % 16 {
                0 => net(covering[random.below(covering.len())]),
                _ => churned[random.below(churned.len())],
            };
            if random.below(2) == 0 {
                writer.insert(prefix, random.next() as u32 >> 4 | 1).expect("room");
            } else {
                writer.remove(prefix);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    for prefix in churned.into_iter().chain(covering.map(net)) {
        writer.remove(prefix);
    }
    writer.reclaim();
    assert!(addresses.iter().all(|(address, hop)| writer.fib().lookup(*address) == *hop));
    assert_eq!((writer.occupancy().0.waiting, writer.occupancy().1.waiting), (0, 0));
}
