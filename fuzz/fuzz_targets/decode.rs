//! Decode and steer never panic, whatever a frame holds; what passes keeps decode's promises; and the quick way through decode
//! finds what the full walk finds. A reply made of such a packet is itself well formed.
//!
//! The first byte of the input chooses depth and receive flags, the rest is the frame.
#![no_main]

use std::cell::RefCell;

use flowgate::packet::decode::{Depth, decode};
use flowgate::packet::frame::{Heap, rx};
use flowgate::packet::meta::flag;
use flowgate::packet::reply::reject;
use flowgate::packet::steer::{Key, steer};
use flowgate::packet::{Batch, Meta};
use flowgate::stats::Reason;
use flowgate::testkit::packets::{assert_sound, batch, give_back};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static HEAP: RefCell<Heap> = RefCell::new(Heap::new(1, 65_535 - Heap::HEADROOM));
}

fn read(bytes: &[u8], depth: Depth, flags: u16) -> Result<Meta, Reason> {
    HEAP.with_borrow_mut(|heap| {
        let mut batch = batch(heap, [bytes]);
        batch.frames[0].flags = flags;
        decode(&mut batch, depth);
        let result = if batch.live == 1 { Ok(batch.metas[0].clone()) } else { Err(batch.reasons[0]) };
        if let Ok(meta) = &result {
            assert_sound(meta, bytes.len());
            let Batch { frames: [frame, ..], metas: [meta, ..], .. } = &mut *batch;
            steer(meta, frame, Key::seeded(1));
            if reject(frame, meta) {
                let reply = frame.bytes().to_vec();
                batch.begin(1);
                decode(&mut batch, Depth::L4);
                assert_eq!(batch.live, 1, "{reply:02x?}");
                assert_sound(&batch.metas[0], reply.len());
            }
        }
        give_back(heap, &mut batch);
        result
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    if bytes.len() > 65_535 - Heap::HEADROOM {
        return;
    }
    let depth = [Depth::L4, Depth::L3, Depth::L2, Depth::Nothing][usize::from(choice & 3)];
    let flags = u16::from(choice >> 2) & (rx::L3_SUM_GOOD | rx::L3_SUM_BAD | rx::L4_SUM_GOOD | rx::L4_SUM_BAD);
    let quick = read(bytes, depth, flags);
    // A stripped tag sends the packet the long way; apart from the tag nothing may differ, unless it was one too many.
    let long = read(bytes, depth, flags | rx::VLAN_STRIPPED);
    if let (Ok(quick), Ok(mut long)) = (quick, long)
        && depth >= Depth::L2
    {
        assert!(long.has(flag::VLAN));
        long.flags = long.flags & !flag::VLAN | quick.flags & flag::VLAN;
        long.vlan = quick.vlan;
        assert_eq!(quick, long);
    }
});
