//! Any packet, translated and back: it stays as well formed and as good as it was, its facts are told right, and its bytes are
//! those it had, but for the two zeros of one's complement. What is refused is left alone.
//!
//! The input: 36 bytes that the addresses and ports become, then a frame.
#![no_main]

use flowgate::packet::decode::{Depth, decode};
use flowgate::packet::frame::Heap;
use flowgate::packet::meta::flag;
use flowgate::packet::translate::{Tuple, translate, translate_error};
use flowgate::packet::{Batch, Meta};
use flowgate::testkit::packets::{batch, give_back};
use flowgate::wire::checksum;
use libfuzzer_sys::fuzz_target;

/// True if the checksum of an ICMP message is right.
fn is_good(batch: &Batch) -> bool {
    let meta = &batch.metas[0];
    let message = &batch.frames[0].bytes()[meta.l4()..meta.end()];
    match meta.has(flag::IPV4) {
        true => checksum::is_good(message),
        false => {
            checksum::transport_is_good(checksum::pseudo(&meta.src, &meta.dst, meta.proto, message.len()), message)
        }
    }
}

/// Decode finds the facts that translation has told.
fn assert_told(batch: &mut Batch) {
    let told: Meta = batch.metas[0].clone();
    decode(batch, Depth::L4);
    assert_eq!((batch.live, &batch.metas[0]), (1, &told));
}

fuzz_target!(|input: &[u8]| {
    let Some((tuple, frame)) = input.split_first_chunk::<36>() else { return };
    if frame.len() > 9000 {
        return;
    }
    let mut heap = Heap::new(1, 9000);
    let mut batch = batch(&mut heap, [frame]);
    decode(&mut batch, Depth::L4);
    let first = batch.metas[0].clone();
    if batch.live == 1 && first.any(flag::IPV4 | flag::IPV6) {
        let mut to = Tuple { src: [0; 16], dst: [0; 16], sport: 0, dport: 0 };
        let len = if first.has(flag::IPV4) { 4 } else { 16 };
        to.src[..len].copy_from_slice(&tuple[..len]);
        to.dst[..len].copy_from_slice(&tuple[16..16 + len]);
        to.sport = u16::from_be_bytes([tuple[32], tuple[33]]);
        to.dport = if first.has(flag::ECHO) { to.sport } else { u16::from_be_bytes([tuple[34], tuple[35]]) };
        let back = Tuple::of(&first);
        // What is but zeros has no other sum that is zero.
        let zero = [to.src, to.dst].iter().any(|address| address.iter().all(|byte| *byte == 0));
        if first.has(flag::ICMP_ERROR) {
            let good = is_good(&batch);
            if translate_error(&mut batch.frames[0], &mut batch.metas[0], &to) {
                assert_told(&mut batch);
                assert!(!good || zero || is_good(&batch));
                assert_eq!(batch.metas[0].dst, to.dst);
            } else {
                assert_eq!(batch.frames[0].bytes(), frame);
            }
        } else if translate(&mut batch.frames[0], &mut batch.metas[0], &to) {
            assert_told(&mut batch);
            assert!(translate(&mut batch.frames[0], &mut batch.metas[0], &back), "what was done can be undone");
            assert_eq!(batch.metas[0], first);
            for (before, after) in frame[first.l3()..].chunks(2).zip(batch.frames[0].bytes()[first.l3()..].chunks(2)) {
                let zeros = |word: &[u8]| word == [0; 2] || word == [0xff; 2];
                assert!(before == after || zeros(before) && zeros(after));
            }
        } else {
            assert_eq!((batch.frames[0].bytes(), &batch.metas[0]), (frame, &first));
        }
    }
    give_back(&mut heap, &mut batch);
});
