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

/// A segment on its way, with numbers that count from the ends' initial ones.
#[derive(Clone, Copy, Debug)]
struct Wire {
    from: usize,
    flags: u8,
    sequence: u64,
    acknowledgment: u64,
    len: u64,
    window: u16,
    scale: Option<u8>,
    sack_permitted: bool,
    sacked: Option<u64>,
}

impl Wire {
    fn segment(&self, first: [u32; 2]) -> Segment {
        let number = |end: usize, offset: u64| first[end].wrapping_add(offset as u32);
        let to = self.from ^ 1;
        Segment {
            sequence: number(self.from, self.sequence),
            acknowledgment: if self.flags & ACK != 0 { number(to, self.acknowledgment) } else { 0 },
            len: self.len as u32,
            window: self.window,
            flags: self.flags,
            scale: self.scale,
            sack_permitted: self.sack_permitted,
            sacked: self.sacked.map(|edge| number(to, edge)),
        }
    }
}

/// Chance (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % limit.max(1)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }
}

/// What an end has to do and can do.
#[derive(Clone, Copy, Debug)]
struct Nature {
    /// Bytes it sends before it closes.
    total: u64,
    mss: u64,
    /// Bytes it takes before its application reads.
    capacity: u64,
    scale: Option<u8>,
    sack: bool,
    /// It closes only after the other has.
    waits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Listens,
    Asks,
    Answers,
    Open,
}

/// A correct TCP end (RFC 9293 section 3.10) that does at any time any of what it may.
struct Peer {
    me: usize,
    nature: Nature,
    phase: Phase,
    una: u64,
    next: u64,
    /// Right edge of what it may send, the window, and the segment that said so (SND.WL1, SND.WL2).
    edge: u64,
    window: u64,
    said: (u64, u64),
    expected: u64,
    unread: u64,
    /// Right edge of what it offered.
    offered: u64,
    early: Vec<(u64, u64)>,
    close_at: Option<u64>,
    heard_close: bool,
    shift: [u8; 2],
    sack: bool,
}

impl Peer {
    fn new(me: usize, nature: Nature) -> Peer {
        Peer {
            me,
            nature,
            phase: if me == ORIGINAL { Phase::Asks } else { Phase::Listens },
            una: 0,
            next: 0,
            edge: 0,
            window: 0,
            said: (0, 0),
            expected: 0,
            unread: 0,
            offered: 0,
            early: Vec::new(),
            close_at: None,
            heard_close: false,
            shift: [0; 2],
            sack: false,
        }
    }

    fn has_closed(&self) -> bool {
        self.next == self.nature.total + 2
    }

    fn is_done(&self) -> bool {
        self.has_closed() && self.una == self.next && self.heard_close
    }

    /// A segment of this end as it is now.
    fn emit(&mut self, flags: u8, sequence: u64, len: u64) -> Wire {
        let is_syn = flags & SYN != 0;
        let shift = if is_syn { 0 } else { self.shift[self.me] };
        self.offered = self.offered.max(self.expected.max(1) + self.nature.capacity.saturating_sub(self.unread));
        let room = (self.offered.saturating_sub(self.expected.max(1)) >> shift).min(65_535);
        let end = sequence + u64::from(is_syn) + len + u64::from(flags & FIN != 0);
        self.next = self.next.max(end);
        Wire {
            from: self.me,
            flags,
            sequence,
            acknowledgment: self.expected,
            len,
            window: room as u16,
            scale: self.nature.scale.filter(|_| is_syn),
            sack_permitted: self.nature.sack && is_syn,
            sacked: self.early.iter().map(|(_, end)| *end).max().filter(|_| self.sack),
        }
    }

    /// `len` bytes from `sequence`, and the FIN if that is where it is.
    fn data(&mut self, sequence: u64, len: u64, close: bool) -> Wire {
        let flags = if close && sequence + len == self.nature.total + 1 { ACK | FIN } else { ACK };
        self.emit(flags, sequence, len)
    }

    /// What it sends of its own accord.
    fn act(&mut self, chance: &mut Chance) -> Option<Wire> {
        match self.phase {
            Phase::Listens => return None,
            Phase::Asks => return (self.next == 0 || chance.percent(3)).then(|| self.emit(SYN, 0, 0)),
            Phase::Answers => return chance.percent(3).then(|| self.emit(SYN | ACK, 0, 0)),
            Phase::Open => {}
        }
        if self.unread > 0 && chance.percent(40) {
            self.unread -= 1 + chance.below(self.unread);
            return chance.percent(60).then(|| self.emit(ACK, self.next, 0));
        }
        let end = self.nature.total + 1;
        match chance.below(10) {
            0 | 1 if self.una < self.next => {
                let from = if chance.percent(50) { self.una } else { self.una + chance.below(self.next - self.una) };
                let len = self.nature.mss.min(self.next.min(end).saturating_sub(from));
                let close = self.has_closed();
                Some(self.data(from, len, close))
            }
            // Keep-alive (RFC 1122 section 4.2.3.6).
            2 if self.una == self.next && !self.has_closed() => {
                let len = chance.below(2);
                Some(self.emit(ACK, self.next - 1, len))
            }
            3..=7 if self.next < end => {
                let room = self.edge.saturating_sub(self.next);
                let len = self.nature.mss.min(room).min(end - self.next).min(1 + chance.below(self.nature.mss * 2));
                let close = !self.nature.waits && chance.percent(50);
                if len > 0 {
                    return Some(self.data(self.next, len, close));
                }
                // RFC 9293 section 3.8.6.1: a closed window is probed.
                (self.window == 0 && self.una == self.next && chance.percent(20))
                    .then(|| self.data(self.next, 1, false))
            }
            _ if self.next == end && (!self.nature.waits || self.heard_close) && chance.percent(20) => {
                Some(self.emit(ACK | FIN, end, 0))
            }
            _ => None,
        }
    }

    /// What it answers.
    fn receive(&mut self, wire: &Wire, chance: &mut Chance) -> Option<Wire> {
        let is_syn = wire.flags & SYN != 0;
        match self.phase {
            Phase::Listens | Phase::Asks if is_syn => {
                if self.phase == Phase::Asks && (wire.flags & ACK == 0 || wire.acknowledgment != 1) {
                    return None;
                }
                self.expected = 1;
                self.edge = 1 + u64::from(wire.window);
                self.window = u64::from(wire.window);
                if let (Some(mine), Some(theirs)) = (self.nature.scale, wire.scale) {
                    (self.shift[self.me], self.shift[wire.from]) = (mine, theirs);
                }
                self.sack = self.nature.sack && wire.sack_permitted;
                if self.phase == Phase::Listens {
                    self.phase = Phase::Answers;
                    return Some(self.emit(SYN | ACK, 0, 0));
                }
                (self.una, self.phase) = (1, Phase::Open);
                return Some(self.emit(ACK, 1, 0));
            }
            Phase::Listens | Phase::Asks => return None,
            Phase::Answers if is_syn => return Some(self.emit(SYN | ACK, 0, 0)),
            Phase::Answers if wire.acknowledgment == 1 => (self.una, self.phase) = (1, Phase::Open),
            Phase::Answers => return None,
            // RFC 5961 section 4.2.
            Phase::Open if is_syn => return Some(self.emit(ACK, self.next, 0)),
            Phase::Open => {}
        }
        let data_end = wire.sequence + wire.len;
        let end = data_end + u64::from(wire.flags & FIN != 0);
        if end < self.expected || wire.sequence > self.offered || wire.acknowledgment > self.next {
            return Some(self.emit(ACK, self.next, 0));
        }
        self.una = self.una.max(wire.acknowledgment);
        if self.said <= (wire.sequence, wire.acknowledgment) {
            self.said = (wire.sequence, wire.acknowledgment);
            self.window = u64::from(wire.window) << self.shift[wire.from];
            self.edge = wire.acknowledgment + self.window;
        }
        let taken = data_end.min(self.offered);
        if taken > wire.sequence {
            self.early.push((wire.sequence, taken));
        }
        if end > data_end && data_end <= self.offered {
            self.close_at = Some(data_end);
        }
        while let Some(at) = self.early.iter().position(|(from, _)| *from <= self.expected) {
            let (_, to) = self.early.swap_remove(at);
            self.unread += to.saturating_sub(self.expected);
            self.expected = self.expected.max(to);
        }
        if self.close_at == Some(self.expected) && !self.heard_close {
            self.heard_close = true;
            self.expected += 1;
        }
        (end > wire.sequence && chance.percent(80)).then(|| self.emit(ACK, self.next, 0))
    }
}

/// The network between two ends, the machine in its middle.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// Of segments, on each half of the way.
    loss_percent: u64,
    twice_percent: u64,
    /// Most steps that a half of the way takes: more than one, and segments overtake each other.
    delay: u64,
}

/// Runs a connection to its end, and returns what the machine thinks of it.
fn simulate(seed: u64, first: [u32; 2], natures: [Nature; 2], path: Path, tracking: Tracking) -> (States, Tcp) {
    let mut chance = Chance(seed | 1);
    let mut peers = [Peer::new(ORIGINAL, natures[ORIGINAL]), Peer::new(REPLY, natures[REPLY])];
    // When, whether it has passed the machine, and what.
    let mut under_way: Vec<(u64, bool, Wire)> = Vec::new();
    let mut flow: Option<(States, Tcp, Class)> = None;
    let mut log = Vec::new();
    for now in 0..400_000 {
        let mut sent: Vec<(bool, Wire)> = Vec::new();
        let mut i = 0;
        while i < under_way.len() {
            if under_way[i].0 > now {
                i += 1;
                continue;
            }
            let (_, passed, wire) = under_way.swap_remove(i);
            if passed {
                sent.extend(peers[wire.from ^ 1].receive(&wire, &mut chance).map(|answer| (false, answer)));
                continue;
            }
            let segment = wire.segment(first);
            let verdict = match &mut flow {
                None => {
                    flow = Some(open(&segment, tracking).expect("the first segment opens"));
                    Verdict::Ignore
                }
                Some((states, tcp, class)) => follow(states, tcp, *class, wire.from, &segment, tracking),
            };
            log.push((wire, verdict));
            match (verdict, &mut flow) {
                (Verdict::Valid(now), Some((_, _, class))) => *class = now,
                (Verdict::Ignore, _) => {}
                // Without numbers an old SYN cannot be told from a new one.
                (Verdict::Reopen, _) if tracking == Tracking::Sloppy => {}
                _ => panic!("{flow:x?} after {:#?}", &log[log.len().saturating_sub(12)..]),
            }
            sent.push((true, wire));
        }
        for peer in &mut peers {
            sent.extend(peer.act(&mut chance).map(|wire| (false, wire)));
        }
        for (passed, wire) in sent {
            let copies = 1 + u64::from(chance.percent(path.twice_percent));
            for _ in 0..copies {
                if !chance.percent(path.loss_percent) {
                    under_way.push((now + 1 + chance.below(path.delay), passed, wire));
                }
            }
        }
        if peers.iter().all(Peer::is_done) && under_way.is_empty() {
            let (states, tcp, _) = flow.expect("it began");
            return (states, tcp);
        }
    }
    panic!(
        "the connection does not end: {:?}",
        peers.map(|p| (p.phase, p.una, p.next, p.edge, p.expected, p.heard_close))
    );
}

fn nature() -> impl Strategy<Value = Nature> {
    let scale = proptest::option::of(0u8..=14);
    let capacity = prop_oneof![1u64..3_000, 3_000u64..70_000, 70_000u64..3_000_000];
    (0u64..60_000, 1u64..4_000, capacity, scale, any::<bool>(), any::<bool>()).prop_map(
        |(total, mss, capacity, scale, sack, waits)| {
            // Windows in steps larger than the buffer are closed for good.
            let capacity = capacity.max(2 << scale.unwrap_or(0));
            Nature { total, mss: mss.max(total / 200), capacity, scale, sack, waits }
        },
    )
}

fn path() -> impl Strategy<Value = Path> {
    (0u64..25, 0u64..15, 1u64..20).prop_map(|(loss_percent, twice_percent, delay)| Path {
        loss_percent,
        twice_percent,
        delay,
    })
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0u32..100_000).prop_map(|n| 0u32.wrapping_sub(n)),
        (0u32..100_000).prop_map(|n| (1 << 31) - n)
    ]
}

fn tracking() -> impl Strategy<Value = Tracking> {
    prop_oneof![Just(Tracking::Strict), Just(Tracking::Normal), Just(Tracking::Loose), Just(Tracking::Sloppy)]
}

/// Any segment, more often than not near the numbers of a connection.
fn segment(near: [u32; 2]) -> impl Strategy<Value = Segment> {
    let around = |at: u32| {
        prop_oneof![
            3 => (-3i32..4).prop_map(move |d| at.wrapping_add(d as u32)),
            2 => (-70_000i32..70_000).prop_map(move |d| at.wrapping_add(d as u32)),
            1 => any::<u32>(),
        ]
    };
    let flags = prop_oneof![
        3 => Just(ACK), 2 => Just(SYN), 2 => Just(SYN | ACK), 2 => Just(FIN | ACK), 1 => Just(RST), 1 => Just(RST | ACK), 1 => any::<u8>(),
    ];
    let len = prop_oneof![3 => 0u32..3, 1 => 0u32..65_536];
    let window = prop_oneof![Just(0u16), any::<u16>()];
    let scale = proptest::option::of(0u8..=14);
    let sacked = proptest::option::of(around(near[1]));
    (around(near[0]), around(near[1]), len, window, flags, scale, any::<bool>(), sacked).prop_map(
        |(sequence, acknowledgment, len, window, flags, scale, sack_permitted, sacked)| Segment {
            sequence,
            acknowledgment,
            len,
            window,
            flags,
            scale,
            sack_permitted,
            sacked,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_correct_ends_send_is_refused(
        seed in any::<u64>(), first in [number(), number()], natures in [nature(), nature()], path in path(), tracking in tracking(),
    ) {
        // One of them must close first.
        let [mut a, mut b] = natures;
        a.waits &= !b.waits;
        // A hundred windows are enough to see.
        (a.total, b.total) = (a.total.min(100 * b.capacity), b.total.min(100 * a.capacity));
        let natures = [a, b];
        for tracking in [Tracking::Strict, tracking] {
            let (states, tcp) = simulate(seed, first, natures, path, tracking);
            prop_assert!(states.are_over(), "{:?} {tcp:x?}", ends(states));
            prop_assert!(!is_half_open(states));
            if tracking == Tracking::Sloppy {
                continue;
            }
            for (end, nature) in natures.iter().enumerate() {
                let last = first[end].wrapping_add(nature.total as u32 + 2);
                prop_assert_eq!(tcp.ends[end].next, last);
                prop_assert_eq!(tcp.ends[end ^ 1].acked, last);
            }
        }
    }
}

proptest! {
    #[test]
    fn who_does_not_know_the_numbers_changes_nothing(
        first in [number(), number()], direction in 0usize..2, probe in segment([0, 0]), far in 400_000u32..0xfff0_0000,
        tracking in prop_oneof![Just(Tracking::Strict), Just(Tracking::Normal), Just(Tracking::Loose)],
    ) {
        let (states, tcp, class) = opened(first, tracking);
        let probe = Segment { sequence: tcp.ends[direction].next.wrapping_add(far), ..probe };
        prop_assume!(probe.sequence.wrapping_neg().wrapping_add(tcp.ends[direction].next) > 400_000);
        let (mut states_after, mut tcp_after) = (states, tcp);
        let verdict = follow(&mut states_after, &mut tcp_after, class, direction, &probe, tracking);
        prop_assert_eq!((states_after, tcp_after), (states, tcp));
        let is_refused = matches!(verdict, Verdict::Invalid(_));
        let only_passes = verdict == Verdict::Ignore;
        if !make_sense(probe.flags) || probe.has(FIN | RST) || tracking == Tracking::Strict && !probe.has(SYN) {
            prop_assert!(is_refused, "{:?}", verdict);
        } else {
            prop_assert!(only_passes, "{:?}", verdict);
        }
    }

    #[test]
    fn anything_leaves_sense(
        near in [number(), number()],
        segments in number().prop_flat_map(|_| proptest::collection::vec((0usize..2, segment([0, 0])), 1..60)),
        tracking in tracking(),
    ) {
        let mut flow: Option<(States, Tcp, Class)> = None;
        for (direction, segment) in segments {
            // The strategy's numbers lie around zero.
            let segment = Segment {
                sequence: segment.sequence.wrapping_add(near[direction]),
                acknowledgment: segment.acknowledgment.wrapping_add(near[direction ^ 1]),
                sacked: segment.sacked.map(|edge| edge.wrapping_add(near[direction ^ 1])),
                ..segment
            };
            let Some((states, tcp, class)) = &mut flow else {
                if let Ok(opened) = open(&segment, tracking) {
                    prop_assert_eq!(opened.0.class(), opened.2);
                    flow = Some(opened);
                }
                continue;
            };
            let (states_before, tcp_before) = (*states, *tcp);
            match follow(states, tcp, *class, direction, &segment, tracking) {
                Verdict::Valid(now) => {
                    prop_assert_eq!(now, states.class());
                    *class = now;
                }
                Verdict::Reopen => {
                    flow = None;
                    continue;
                }
                Verdict::Ignore | Verdict::Invalid(_) => {
                    prop_assert_eq!(*states, states_before);
                    if ends(*states) != (State::SynSent, State::Listen) {
                        prop_assert_eq!(tcp.ends, tcp_before.ends);
                    }
                }
            }
            let (a, b) = ends(*states);
            prop_assert_eq!(States::of(a, b), *states, "a nibble that is no state");
            prop_assert!(a != State::Listen);
            prop_assert!(b != State::Listen || matches!(a, State::SynSent | State::Established | State::FinWait1));
            // An end that waits has an end that has closed.
            let waits = |x: State| matches!(x, State::CloseWait | State::LastAck | State::Closing);
            prop_assert!(!waits(a) || b.has_closed() , "{} {}", a.word(), b.word());
            prop_assert!(!waits(b) || a.has_closed() , "{} {}", a.word(), b.word());
            prop_assert_eq!(a == State::Closed && b == State::Closed, *class == Class::TcpReset);
            if tracking != Tracking::Sloppy {
                for end in 0..2 {
                    prop_assert!(tcp.scale[end] <= MAX_SCALE);
                    let known = ends(*states) != (State::SynSent, State::Listen) || end == ORIGINAL;
                    prop_assert!(!known || !after(tcp.ends[end ^ 1].acked, tcp.ends[end].next), "{tcp:x?}");
                }
            }
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Some(read) = Segment::read(&bytes) {
            prop_assert!(read.len as usize <= bytes.len() - 20);
            prop_assert!(read.scale.unwrap_or(0) <= MAX_SCALE);
        }
    }
}
