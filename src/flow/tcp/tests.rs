//! The machine against tables of conversations, against a simulated network between two correct ends, and against anything.

use proptest::prelude::*;

use super::*;
use crate::testkit::conversations::{self, Kind};

const NUMBERS: [[u32; 2]; 4] = [[0, 0], [u32::MAX, u32::MAX - 600], [0x7fff_ff00, 0x8000_0000], [12_345, 0xffff_f000]];

#[test]
fn conversations_go_as_their_tables_say() {
    for conversation in conversations::ALL {
        for first in NUMBERS {
            let mut flow: Option<(States, Tcp, Class)> = None;
            for (i, step) in conversation.steps.iter().enumerate() {
                let at = format!("{} ({}), segment {i}, from {first:x?}", conversation.name, conversation.source);
                let segment = Segment::read(&step.bytes(first)).expect(&at);
                let Some((states, tcp, class)) = &mut flow else {
                    match open(&segment, conversation.tracking) {
                        Ok(opened) => flow = Some(opened),
                        Err(reason) => assert_eq!(step.kind, Kind::Invalid(reason), "{at}"),
                    }
                    if let Some((states, _, class)) = flow {
                        assert_eq!((step.kind, step.after), (Kind::Valid, ends(states)), "{at}");
                        assert_eq!(class, states.class(), "{at}");
                    }
                    continue;
                };
                let kind = match follow(states, tcp, *class, step.from, &segment, conversation.tracking) {
                    Verdict::Valid(now) => {
                        assert_eq!(now, states.class(), "{at}");
                        *class = now;
                        Kind::Valid
                    }
                    Verdict::Ignore => Kind::Ignore,
                    Verdict::Invalid(reason) => Kind::Invalid(reason),
                    Verdict::Reopen => Kind::Reopen,
                };
                assert_eq!(kind, step.kind, "{at}: {tcp:x?}");
                if kind != Kind::Reopen {
                    assert_eq!(ends(*states), step.after, "{at}");
                }
            }
        }
    }
}

#[test]
fn conversations_leave_no_state_out() {
    let seen = |state: State, end: usize| {
        let steps = conversations::ALL.iter().flat_map(|c| c.steps);
        steps.filter(|step| matches!(step.kind, Kind::Valid)).any(|step| [step.after.0, step.after.1][end] == state)
    };
    for state in State::ALL {
        // The end that opens does not listen.
        assert!(seen(state, 0) || state == State::Listen, "{}", state.word());
        assert!(seen(state, 1), "{}", state.word());
    }
}

fn ends(states: States) -> (State, State) {
    (states.end(ORIGINAL), states.end(REPLY))
}

#[test]
fn states_fit_into_nibbles() {
    for a in State::ALL {
        for b in State::ALL {
            let mut states = States::of(a, b);
            assert_eq!(ends(states), (a, b));
            states.set(REPLY, a);
            assert_eq!(ends(states), (a, a));
        }
    }
    assert_eq!(ends(States(0xbf)), (State::Closed, State::Closed));
    assert_eq!(size_of::<Tcp>(), 36);
    assert!(is_half_open(States::of(State::SynSent, State::SynReceived)) && !is_half_open(OPEN));
    assert!(is_half_open(States::of(State::Closed, State::Closed)));
    assert!(!is_half_open(States::of(State::TimeWait, State::Closed)));
}

#[test]
fn classes_of_states() {
    use State::*;
    for (a, b, class) in [
        (SynSent, Listen, Class::TcpSynSent),
        (SynSent, SynReceived, Class::TcpSynReceived),
        (SynSent, FinWait1, Class::TcpSynReceived),
        (Established, Established, Class::TcpEstablished),
        (FinWait1, Established, Class::TcpHalfClosed),
        (CloseWait, FinWait2, Class::TcpHalfClosed),
        (LastAck, FinWait2, Class::TcpClosing),
        (Closing, FinWait2, Class::TcpClosing),
        (TimeWait, Closed, Class::TcpTimeWait),
        (Closed, Closed, Class::TcpReset),
    ] {
        assert_eq!(States::of(a, b).class(), class, "{} {}", a.word(), b.word());
    }
}

#[test]
fn options_are_read_or_absent() {
    let syn = |options: &[u8]| {
        let mut bytes = vec![0; 20];
        (bytes[12], bytes[13]) = (((20 + options.len()) as u8 / 4) << 4, SYN);
        bytes.extend(options);
        Segment::read(&bytes).unwrap()
    };
    let whole = syn(&[2, 4, 5, 0xb4, 4, 2, 1, 1, 3, 3, 15, 0]);
    assert_eq!((whole.scale, whole.sack_permitted, whole.len), (Some(14), true, 0));
    // The last option runs over the header's end: none counts.
    let torn = syn(&[3, 3, 7, 1, 4, 2, 2, 9]);
    assert_eq!((torn.scale, torn.sack_permitted), (None, false));
    let mut bytes = vec![0; 32];
    (bytes[12], bytes[13]) = (0x80, ACK);
    bytes[20..24].copy_from_slice(&[1, 1, 8, 10]);
    assert_eq!(Segment::read(&bytes).unwrap().sacked, None);
    bytes[20..24].copy_from_slice(&[1, 1, 5, 10]);
    bytes[31] = 9;
    assert_eq!(Segment::read(&bytes).unwrap().sacked, Some(9));
    for (offset, len) in [(0x40, 32), (0x90, 32), (0x50, 19)] {
        bytes[12] = offset;
        assert!(Segment::read(&bytes[..len]).is_none());
    }
}

/// A connection in which `a` has 1,000 bytes under way, from the numbers given.
fn opened(first: [u32; 2], tracking: Tracking) -> (States, Tcp, Class) {
    let steps = conversations::ALL.iter().find(|c| c.name == "handshake and data").unwrap().steps;
    let (mut states, mut tcp, mut class) = open(&Segment::read(&steps[0].bytes(first)).unwrap(), tracking).unwrap();
    for step in &steps[1..] {
        let segment = Segment::read(&step.bytes(first)).unwrap();
        match follow(&mut states, &mut tcp, class, step.from, &segment, tracking) {
            Verdict::Valid(now) => class = now,
            other => panic!("{other:?}"),
        }
    }
    (states, tcp, class)
}

#[test]
fn errors_quote_what_is_under_way() {
    let (mut states, mut tcp, class) = opened([u32::MAX - 50, 9], Tracking::Strict);
    let una = tcp.ends[REPLY].acked;
    let data = Segment {
        sequence: una,
        acknowledgment: tcp.ends[ORIGINAL].acked,
        len: 500,
        flags: ACK,
        window: 1000,
        ..Segment::default()
    };
    let verdict = follow(&mut states, &mut tcp, class, ORIGINAL, &data, Tracking::Strict);
    assert_eq!(verdict, Verdict::Valid(Class::TcpEstablished));
    for (offset, good) in [(-2, false), (-1, true), (0, true), (499, true), (500, true), (501, false), (1 << 31, false)]
    {
        assert_eq!(quotes(&tcp, ORIGINAL, una.wrapping_add(offset as u32)), good, "{offset}");
    }
    let (_, tcp, _) = open(&Segment { flags: ACK, ..Segment::default() }, Tracking::Sloppy).unwrap();
    assert!(quotes(&tcp, REPLY, 1 << 30), "nothing is known");
}

#[test]
fn numbers_that_were_not_followed_are_not_held_against_anyone() {
    let (mut states, mut tcp, class) = opened([1, 2], Tracking::Strict);
    let far = Segment { sequence: 1 << 30, acknowledgment: 1 << 29, flags: ACK, ..Segment::default() };
    let mut with = |tracking| follow(&mut states, &mut tcp, class, REPLY, &far, tracking);
    assert_eq!(with(Tracking::Strict), Verdict::Invalid(Drops::BadSequence));
    assert_eq!(with(Tracking::Sloppy), Verdict::Valid(class));
    assert_eq!(with(Tracking::Strict), Verdict::Valid(class));
}

#[test]
fn checksums_matter_where_flags_do() {
    assert!(needs_checksum(SYN | ACK) && needs_checksum(FIN | ACK) && needs_checksum(RST) && !needs_checksum(ACK));
}
