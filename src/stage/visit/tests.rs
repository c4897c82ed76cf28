use bytemuck::Zeroable;

use super::*;
use crate::flow::entry::{Body, KeyV4, KeyV6};
use crate::flow::filter::Ranges;
use crate::flow::region::Placement;

/// `v4` and `v6` flows to ports from 0 on.
fn tables(v4: u16, v6: u16) -> Tables {
    let table = |n: u16| Table::new(n.into(), 1, Placement::default()).expect("memory");
    let sixes = Table::new(v6.into(), 1, Placement::default()).expect("memory");
    let mut tables = Tables { v4: table(v4), v6: sixes };
    let body = |n: u16| Body { hash: u32::from(n).wrapping_mul(0x9e37_79b9), rule: n % 4, ..Body::zeroed() };
    for n in 0..v4 {
        let key = KeyV4 { src: [1; 4], dst: [2; 4], sport: 7, dport: n, domain: 0, proto: 17, wire: 0 };
        tables.v4.insert(key, body(n), |_| ()).expect("room");
    }
    for n in 0..v6 {
        let key = KeyV6 { src: [1; 16], dst: [2; 16], sport: 7, dport: n, domain: 0, proto: 17, wire: 0 };
        tables.v6.insert(key, body(n), |_| ()).expect("room");
    }
    tables
}

fn low_ports() -> Arc<Filter> {
    Arc::new(Filter { to_port: Some(Ranges::new([0..=4999])), ..Filter::default() })
}

#[test]
fn all_are_seen_once_and_a_bounded_number_at_a_time() {
    let mut tables = tables(10_000, 6_000);
    let mut visit = Visit::new(low_ports(), Task::copy());
    let (mut copied, mut rounds) = (Vec::new(), 0);
    loop {
        let done = visit.go_on(&mut tables);
        rounds += 1;
        let Task::Copy { v4, v6 } = &mut visit.task else { panic!("the same task") };
        assert!(v4.len() + v6.len() <= SEEN && v4.capacity() == SEEN && v6.capacity() == SEEN);
        copied.extend(v4.drain(..).map(|entry| (4, entry.key().dport)));
        copied.extend(v6.drain(..).map(|entry| (6, entry.key().dport)));
        if done {
            break;
        }
    }
    assert_eq!(rounds, 16_000usize.div_ceil(SEEN));
    assert_eq!(copied, (0..5000).map(|n| (4, n)).chain((0..5000).map(|n| (6, n))).collect::<Vec<_>>());
    assert_eq!(visit.occupancy.map(|table| table.used), [10_000, 6_000]);

    let mut visit = Visit::new(low_ports(), Task::Count(Counts::new(4)));
    while !visit.go_on(&mut tables) {}
    let Task::Count(counts) = &visit.task else { panic!("the same task") };
    assert_eq!(counts.rules, [2500, 2500, 2500, 2500, 0]);
    assert_eq!(counts.states().collect::<Vec<_>>(), [(17, "new".to_owned(), 10_000)]);
}

#[test]
fn what_is_meant_is_removed_and_nothing_else() {
    let mut tables = tables(10_000, 6_000);
    let mut visit = Visit::new(low_ports(), Task::Remove);
    let mut before = 0;
    while !visit.go_on(&mut tables) {
        assert!(visit.removed - before <= REMOVED as u64);
        before = visit.removed;
    }
    assert_eq!(visit.removed, 10_000);
    assert_eq!((tables.v4.occupancy().used, tables.v6.occupancy().used), (5_000, 1_000));
    tables.v4.check();
    tables.v6.check();
    let mut cursor = 0;
    while !tables.v4.walk(&mut cursor, 100, |_, entry| entry.key().dport >= 5000) {}
    assert_eq!(cursor, 10_000, "none of them is left");
}
