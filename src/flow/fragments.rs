//! Datagrams in fragments: which of their bytes were seen, and what becomes of each fragment.
//!
//! A later fragment has no ports; it follows the first fragment of its datagram, whose facts it gets, and is held until that
//! one has come. Nothing is reassembled: the fragments pass one by one, and what the receiver could put together in more
//! than one way does not pass. This file keeps the books and sees no frames: who holds a frame does so under a number it is
//! given here, and asks afterwards what has been decided about it (`Fragments::decided`).
//!
//! Everything is allocated at the start and bounded. Datagrams whose first fragment is missing and the others stand in two
//! queues, each ordered by age. When all records are taken, the oldest of the *others* is forgotten; when all room for
//! frames is, the oldest datagram that waits. So whoever floods one kind displaces only that kind, and what comes in order, or
//! nearly, has long passed by then.

use std::collections::VecDeque;

use crate::packet::fragment::{Facts, Piece};
use crate::packet::{BATCH, Meta, meta::flag};
use crate::stats::{FRAGMENT_REASONS, Reason};
use crate::wire::protocol;

crate::lines! {
    /// Why a fragment is dropped where fragments are followed.
    pub enum Drops {
        /// Bytes of its datagram came in two fragments that are not the same: none of it passes any more (RFC 5722).
        Overlap = "overlap",
        /// Its datagram has two ends, or bytes behind its end: none of it passes any more.
        BadEnd = "bad-end",
        /// Its datagram came in more than 64 fragments: none of it passes any more.
        TooMany = "too-many",
        /// The same fragment came before (RFC 8200 section 4.5).
        Duplicate = "duplicate",
        /// It would overwrite the flags of a TCP header (RFC 1858 section 4, RFC 3128).
        Tiny = "tiny",
        /// The first fragment of its datagram did not come in time.
        Timeout = "timeout",
        /// The first fragment of its datagram did not come before others needed the room.
        HoldFull = "hold-full",
    }
}

impl From<Drops> for Reason {
    #[inline]
    fn from(reason: Drops) -> Reason {
        Reason(FRAGMENT_REASONS + reason as u16)
    }
}

/// How long a datagram waits for its first fragment, and after that for the others, in nanoseconds: as long as Linux waits
/// for all (`ipfrag_time`), and both together no longer than RFC 8200 section 4.5 allows.
pub const LIFE: u64 = 30_000_000_000;
/// Datagrams of which something is known.
const DATAGRAMS: usize = 4096;
/// Fragments of one datagram: 64 KB in the smallest packets of IPv6 are 54.
const PIECES: usize = 64;
/// Frames held.
pub const HELD: usize = 256;
/// Frames held of one datagram.
const HELD_EACH: usize = 16;
/// Numbers of held frames: a batch may bring this many more while what was decided is still to be fetched.
pub const SLOTS: usize = HELD + BATCH;
/// Datagrams that a call of `expire` looks at.
const EXPIRE: usize = 256;

/// What all fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Key {
    src: [u8; 16],
    dst: [u8; 16],
    id: u32,
    /// The protocol of IPv4 (RFC 791 section 3.2). It is no part of the key in IPv6, where later fragments may name another.
    kind: u16,
    /// Outer VLAN id and whether there is one.
    vlan: u16,
    port: u8,
}

const NO_VLAN: u16 = u16::MAX;
const IPV6: u16 = 0x100;

impl Key {
    fn of(meta: &Meta, id: u32) -> Key {
        Key {
            src: meta.src,
            dst: meta.dst,
            id,
            kind: if meta.has(flag::IPV6) { IPV6 } else { meta.proto.into() },
            vlan: if meta.has(flag::VLAN) { meta.vlan } else { NO_VLAN },
            port: meta.port,
        }
    }
}

/// Part of a datagram in units of eight bytes: from the first up to behind the last.
type Range = (u16, u16);

/// Which parts of a datagram were seen.
#[derive(Clone, Debug)]
struct Seen {
    /// In order, none touching bytes of another.
    ranges: [Range; PIECES],
    len: usize,
    /// Units in all ranges.
    covered: u16,
    /// Bytes of the whole, once the last fragment came.
    total: Option<u32>,
}

impl Seen {
    const NOTHING: Seen = Seen { ranges: [(0, 0); PIECES], len: 0, covered: 0, total: None };

    fn add(&mut self, piece: &Piece) -> Result<(), Drops> {
        let end = piece.end as u32;
        let behind = match self.total {
            Some(total) if piece.more => end >= total,
            Some(total) => end != total,
            None => !piece.more && self.ranges[..self.len].last().is_some_and(|last| u32::from(last.1) * 8 >= end),
        };
        if behind {
            return Err(Drops::BadEnd);
        }
        let range = ((piece.start / 8) as u16, piece.end.div_ceil(8) as u16);
        let at = self.ranges[..self.len].partition_point(|seen| seen.1 <= range.0);
        match self.ranges[..self.len].get(at) {
            Some(seen) if *seen == range => return Err(Drops::Duplicate),
            Some(seen) if seen.0 < range.1 => return Err(Drops::Overlap),
            _ if self.len == PIECES => return Err(Drops::TooMany),
            _ => {}
        }
        self.ranges.copy_within(at..self.len, at + 1);
        self.ranges[at] = range;
        self.len += 1;
        self.covered += range.1 - range.0;
        if !piece.more {
            self.total = Some(end);
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.total.is_some_and(|total| u32::from(self.covered) == total.div_ceil(8))
    }
}

/// What is known of a datagram.
#[derive(Clone, Debug)]
struct Datagram {
    key: Key,
    hash: u32,
    /// The next one in the same bucket.
    next: u16,
    state: State,
    seen: Seen,
    /// Nanoseconds.
    deadline: u64,
    /// The first and the last frame held of it.
    held: (u16, u16),
    holds: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Its first fragment is missing.
    Waiting,
    /// Its first fragment said this.
    Known(Facts),
    /// None of it passes any more.
    Spoilt(Drops),
}

/// No record, no frame.
const NONE: u16 = u16::MAX;

/// The queues a record can stand in, oldest first: rings through `links`, each with an end of its own.
const FREE: u16 = DATAGRAMS as u16;
const WAITING: u16 = FREE + 1;
const OTHERS: u16 = FREE + 2;

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes as part of a datagram of which this is known.
    Pass(Facts),
    /// It is held under this number until `decided` returns it.
    Hold(usize),
    /// It does not pass.
    Drop(Drops),
}

/// One worker's datagrams in fragments.
pub struct Fragments {
    records: Box<[Datagram]>,
    buckets: Box<[u16]>,
    /// By record, then by queue: those before and behind it.
    links: Box<[(u16, u16)]>,
    /// By number of a held frame: the next one held of the same datagram.
    behind: Box<[u16]>,
    /// Numbers no frame is held under.
    numbers: Vec<u16>,
    /// Frames held of datagrams that wait.
    held: usize,
    decided: VecDeque<(u16, Result<Facts, Drops>)>,
}

impl Default for Fragments {
    fn default() -> Self {
        Fragments::new()
    }
}

impl Fragments {
    /// No datagram yet; allocates all there will ever be.
    pub fn new() -> Fragments {
        let nothing = Datagram {
            key: Key::default(),
            hash: 0,
            next: NONE,
            state: State::Waiting,
            seen: Seen::NOTHING,
            deadline: 0,
            held: (NONE, NONE),
            holds: 0,
        };
        let mut fragments = Fragments {
            records: vec![nothing; DATAGRAMS].into(),
            buckets: vec![NONE; 2 * DATAGRAMS].into(),
            links: (0..=OTHERS).map(|at| (at, at)).collect(),
            behind: vec![NONE; SLOTS].into(),
            numbers: (0..SLOTS as u16).rev().collect(),
            held: 0,
            decided: VecDeque::with_capacity(SLOTS),
        };
        (0..DATAGRAMS as u16).for_each(|at| fragments.queue(at, FREE));
        fragments
    }

    /// What becomes of a fragment. `hash` is equal for all fragments of a datagram; `first` is what a first fragment says.
    /// After at most [`BATCH`] calls everything that was decided must be fetched.
    pub fn judge(&mut self, meta: &Meta, piece: &Piece, hash: u32, first: Option<Facts>, now: u64) -> Fate {
        // No honest sender cuts a TCP header: one offset of eight is enough to know (RFC 3128 section 3).
        if piece.start == 8 && meta.proto == protocol::TCP {
            return Fate::Drop(Drops::Tiny);
        }
        let key = Key::of(meta, piece.id);
        let at = match self.find(&key, hash) {
            Some(at) if self.records[usize::from(at)].deadline <= now => {
                self.forget(at, Drops::Timeout);
                self.begin(key, hash, now)
            }
            Some(at) => at,
            None => self.begin(key, hash, now),
        };
        let datagram = &mut self.records[usize::from(at)];
        match datagram.state {
            State::Spoilt(why) => return Fate::Drop(why),
            State::Waiting if first.is_none() && datagram.holds == HELD_EACH => return Fate::Drop(Drops::HoldFull),
            _ => {}
        }
        match datagram.seen.add(piece) {
            Ok(()) => {}
            Err(Drops::Duplicate) => return Fate::Drop(Drops::Duplicate),
            Err(why) => {
                self.settle(at, State::Spoilt(why), now);
                return Fate::Drop(why);
            }
        }
        match (datagram.state, first) {
            (_, Some(facts)) => {
                self.settle(at, State::Known(facts), now);
                self.pass(at, facts)
            }
            (State::Known(facts), None) => self.pass(at, facts),
            _ => self.hold(at),
        }
    }

    /// True if `decided` has something to return.
    #[inline]
    pub fn has_decided(&self) -> bool {
        !self.decided.is_empty()
    }

    /// A held frame of which something was decided: its number, free from now on, and whether it passes.
    pub fn decided(&mut self) -> Option<(usize, Result<Facts, Drops>)> {
        let (number, fate) = self.decided.pop_front()?;
        self.numbers.push(number);
        Some((number.into(), fate))
    }

    /// Gives up datagrams whose time is over: a bounded number.
    pub fn expire(&mut self, now: u64) {
        for queue in [WAITING, OTHERS] {
            for _ in 0..EXPIRE {
                let oldest = self.links[usize::from(queue)].1;
                if oldest == queue || self.records[usize::from(oldest)].deadline > now {
                    break;
                }
                self.forget(oldest, Drops::Timeout);
            }
        }
    }

    /// Gives up every datagram that waits.
    pub fn stop(&mut self) {
        while self.links[usize::from(WAITING)].1 != WAITING {
            self.forget(self.links[usize::from(WAITING)].1, Drops::Timeout);
        }
    }

    fn find(&self, key: &Key, hash: u32) -> Option<u16> {
        let mut at = self.buckets[bucket(hash)];
        while at != NONE {
            let datagram = &self.records[usize::from(at)];
            if datagram.hash == hash && datagram.key == *key {
                return Some(at);
            }
            at = datagram.next;
        }
        None
    }

    /// A record for a new datagram, which waits for its first fragment.
    fn begin(&mut self, key: Key, hash: u32, now: u64) -> u16 {
        if self.links[usize::from(FREE)].1 == FREE {
            // There is one: each that waits holds a frame, and there are fewer frames than records.
            self.forget(self.links[usize::from(OTHERS)].1, Drops::Timeout);
        }
        let at = self.links[usize::from(FREE)].1;
        let datagram = &mut self.records[usize::from(at)];
        // The ranges stay what they are: `len` of them count.
        (datagram.seen.len, datagram.seen.covered, datagram.seen.total) = (0, 0, None);
        (datagram.key, datagram.hash, datagram.state) = (key, hash, State::Waiting);
        datagram.deadline = now.saturating_add(LIFE);
        (datagram.held, datagram.holds) = ((NONE, NONE), 0);
        datagram.next = self.buckets[bucket(hash)];
        self.buckets[bucket(hash)] = at;
        self.queue(at, WAITING);
        at
    }

    fn forget(&mut self, at: u16, why: Drops) {
        self.decide(at, Err(why));
        let datagram = &self.records[usize::from(at)];
        let (next, mut link) = (datagram.next, self.buckets[bucket(datagram.hash)]);
        if link == at {
            self.buckets[bucket(datagram.hash)] = next;
        } else {
            while self.records[usize::from(link)].next != at {
                link = self.records[usize::from(link)].next;
            }
            self.records[usize::from(link)].next = next;
        }
        self.queue(at, FREE);
    }

    /// The datagram waits no longer.
    fn settle(&mut self, at: u16, state: State, now: u64) {
        let datagram = &mut self.records[usize::from(at)];
        datagram.state = state;
        datagram.deadline = now.saturating_add(LIFE);
        match state {
            State::Known(facts) => self.decide(at, Ok(facts)),
            State::Spoilt(why) => self.decide(at, Err(why)),
            State::Waiting => {}
        }
        self.queue(at, OTHERS);
    }

    fn pass(&mut self, at: u16, facts: Facts) -> Fate {
        if self.records[usize::from(at)].seen.is_whole() {
            self.forget(at, Drops::Timeout);
        }
        Fate::Pass(facts)
    }

    fn hold(&mut self, at: u16) -> Fate {
        if self.held == HELD {
            let oldest = self.links[usize::from(WAITING)].1;
            let other = if oldest == at { self.links[usize::from(at)].1 } else { oldest };
            self.forget(other, Drops::HoldFull);
        }
        let datagram = &mut self.records[usize::from(at)];
        let Some(number) = self.numbers.pop() else {
            // Not everything was fetched.
            if datagram.holds == 0 {
                self.forget(at, Drops::HoldFull);
            }
            return Fate::Drop(Drops::HoldFull);
        };
        match datagram.held.1 {
            NONE => datagram.held.0 = number,
            last => self.behind[usize::from(last)] = number,
        }
        datagram.held.1 = number;
        datagram.holds += 1;
        self.behind[usize::from(number)] = NONE;
        self.held += 1;
        Fate::Hold(number.into())
    }

    /// Decides about all frames held of a datagram.
    fn decide(&mut self, at: u16, fate: Result<Facts, Drops>) {
        let datagram = &mut self.records[usize::from(at)];
        self.held -= datagram.holds;
        datagram.holds = 0;
        let (mut number, _) = std::mem::replace(&mut datagram.held, (NONE, NONE));
        while number != NONE {
            self.decided.push_back((number, fate));
            number = self.behind[usize::from(number)];
        }
    }

    /// Moves a record to the young end of a queue.
    fn queue(&mut self, at: u16, queue: u16) {
        let (before, behind) = self.links[usize::from(at)];
        self.links[usize::from(before)].1 = behind;
        self.links[usize::from(behind)].0 = before;
        let youngest = self.links[usize::from(queue)].0;
        self.links[usize::from(at)] = (youngest, queue);
        self.links[usize::from(youngest)].1 = at;
        self.links[usize::from(queue)].0 = at;
    }
}

#[inline]
fn bucket(hash: u32) -> usize {
    hash as usize & (2 * DATAGRAMS - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::NO_FLOW;

    /// A fragment of the datagram `id`; the facts of its first are made of the id too.
    fn meta(id: u32) -> Meta {
        Meta { proto: protocol::UDP, flags: flag::IPV4, sport: id as u16, hash: id, flow: NO_FLOW, ..Meta::UNKNOWN }
    }

    fn piece(id: u32, start: usize, end: usize, more: bool) -> Piece {
        Piece { id, start, end, more }
    }

    fn facts(id: u32) -> Facts {
        Facts::of(&Meta { flags: flag::PORTS | flag::L4, ..meta(id) }, id)
    }

    /// The fate of a piece whose datagram collides with every other in the table.
    fn put(fragments: &mut Fragments, piece: Piece, now: u64) -> Fate {
        let first = (piece.start == 0).then(|| facts(piece.id));
        fragments.judge(&meta(piece.id), &piece, 0, first, now)
    }

    fn all_decided(fragments: &mut Fragments) -> Vec<(usize, Result<Facts, Drops>)> {
        std::iter::from_fn(|| fragments.decided()).collect()
    }

    #[test]
    fn later_fragments_follow_the_first() {
        let mut table = Fragments::new();
        assert_eq!(put(&mut table, piece(7, 16, 24, true), 1), Fate::Hold(0));
        assert_eq!(put(&mut table, piece(7, 24, 27, false), 1), Fate::Hold(1));
        assert_eq!(put(&mut table, piece(8, 24, 27, false), 1), Fate::Hold(2));
        assert!(!table.has_decided());
        assert_eq!(put(&mut table, piece(7, 0, 8, true), 1), Fate::Pass(facts(7)));
        assert_eq!(all_decided(&mut table), [(0, Ok(facts(7))), (1, Ok(facts(7)))]);
        assert_eq!(put(&mut table, piece(7, 8, 16, true), 1), Fate::Pass(facts(7)));
        // The datagram is whole and forgotten: the identification may be used again.
        assert_eq!(put(&mut table, piece(7, 0, 8, true), 1), Fate::Pass(facts(7)));
        table.stop();
        assert_eq!(all_decided(&mut table), [(2, Err(Drops::Timeout))]);
        assert_eq!(table.held, 0);
    }

    #[test]
    fn identifications_are_of_a_pair_a_protocol_a_port_and_a_tag() {
        let mut table = Fragments::new();
        let first = Meta { flags: flag::IPV4, ..meta(1) };
        assert!(matches!(table.judge(&first, &piece(1, 0, 8, true), 0, Some(facts(1)), 0), Fate::Pass(_)));
        let later = piece(1, 8, 16, true);
        let held = |fate| matches!(fate, Fate::Hold(_));
        for other in [
            Meta { src: [9; 16], ..first.clone() },
            Meta { dst: [9; 16], ..first.clone() },
            Meta { proto: 89, ..first.clone() },
            Meta { port: 1, ..first.clone() },
            Meta { vlan: 0, flags: flag::IPV4 | flag::VLAN, ..first.clone() },
            Meta { flags: flag::IPV6, ..first.clone() },
        ] {
            assert!(held(table.judge(&other, &later, 0, None, 0)), "{other:?}");
        }
        assert!(held(table.judge(&first, &piece(2, 8, 16, true), 0, None, 0)));
        assert_eq!(table.judge(&first, &later, 0, None, 0), Fate::Pass(facts(1)));
        // In IPv6 the protocol says nothing.
        let (six, other) = (Meta { flags: flag::IPV6, ..meta(5) }, Meta { flags: flag::IPV6, proto: 60, ..meta(5) });
        assert_eq!(table.judge(&six, &piece(5, 0, 8, true), 0, Some(facts(5)), 0), Fate::Pass(facts(5)));
        assert_eq!(table.judge(&other, &piece(5, 8, 16, true), 0, None, 0), Fate::Pass(facts(5)));
    }

    #[test]
    fn what_could_be_put_together_in_two_ways_does_not_pass() {
        use Drops::*;
        // Pieces (start, end, more) and what becomes of the last one and of the first.
        type Pieces = [(usize, usize, bool)];
        let cases: &[(&Pieces, Drops)] = &[
            (&[(0, 16, true), (8, 24, true)], Overlap),
            (&[(8, 24, true), (0, 16, true)], Overlap),
            (&[(8, 16, true), (24, 32, true), (16, 40, true)], Overlap),
            (&[(8, 16, true), (8, 24, true)], Overlap),
            (&[(0, 16, true), (0, 8, true)], Overlap),
            (&[(8, 16, false), (16, 24, false)], BadEnd),
            (&[(8, 16, false), (8, 15, false)], BadEnd),
            (&[(8, 16, false), (8, 16, true)], BadEnd),
            (&[(8, 16, true), (8, 16, false)], BadEnd),
            (&[(16, 24, true), (8, 13, false)], BadEnd),
            (&[(8, 13, false), (16, 24, true)], BadEnd),
            (&[(8, 13, false), (8, 16, true)], BadEnd),
            (&[(0, 8, true), (0, 8, true)], Duplicate),
            (&[(8, 13, false), (8, 13, false)], Duplicate),
            (&[(16, 24, true), (8, 16, true), (16, 24, true)], Duplicate),
        ];
        for (pieces, expected) in cases {
            let mut table = Fragments::new();
            let fates: Vec<Fate> =
                pieces.iter().map(|(start, end, more)| put(&mut table, piece(1, *start, *end, *more), 0)).collect();
            assert_eq!(fates.last(), Some(&Fate::Drop(*expected)), "{pieces:?}");
            assert!(fates[..fates.len() - 1].iter().all(|fate| !matches!(fate, Fate::Drop(_))), "{pieces:?}");
            let spoilt = *expected != Duplicate;
            // What was held is dropped with it, and what is still to come as well.
            let held = fates.iter().filter(|fate| matches!(fate, Fate::Hold(_))).count();
            let decided = all_decided(&mut table);
            assert_eq!(decided.len(), if spoilt { held } else { 0 });
            assert!(decided.iter().all(|(_, fate)| *fate == Err(*expected)));
            let next = put(&mut table, piece(1, 80, 88, true), 0);
            assert_eq!(next == Fate::Drop(*expected), spoilt, "{pieces:?}");
            assert!(matches!(put(&mut table, piece(1, 80, 88, true), LIFE + 1), Fate::Hold(_)));
        }
    }

    #[test]
    fn tcp_headers_are_not_overwritten() {
        let mut table = Fragments::new();
        let tcp = Meta { proto: protocol::TCP, ..meta(1) };
        assert_eq!(table.judge(&tcp, &piece(1, 8, 16, true), 0, None, 0), Fate::Drop(Drops::Tiny));
        assert_eq!(table.judge(&tcp, &piece(1, 16, 24, true), 0, None, 0), Fate::Hold(0));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut table = Fragments::new();
        assert_eq!(put(&mut table, piece(1, 8, 16, true), 5), Fate::Hold(0));
        assert_eq!(put(&mut table, piece(2, 8, 16, true), 5), Fate::Hold(1));
        assert_eq!(put(&mut table, piece(2, 0, 8, true), 10), Fate::Pass(facts(2)));
        assert_eq!(all_decided(&mut table), [(1, Ok(facts(2)))]);
        table.expire(LIFE + 4);
        assert!(!table.has_decided());
        table.expire(LIFE + 5);
        assert_eq!(all_decided(&mut table), [(0, Err(Drops::Timeout))]);
        assert_eq!(put(&mut table, piece(2, 16, 24, true), LIFE + 9), Fate::Pass(facts(2)));
        // Known for its time, whether or not somebody has looked after it since.
        assert!(matches!(put(&mut table, piece(2, 24, 32, true), LIFE + 10), Fate::Hold(_)));
        table.expire(3 * LIFE);
        assert_eq!(all_decided(&mut table).len(), 1);
        assert_eq!((table.held, table.numbers.len()), (0, SLOTS));
    }

    #[test]
    fn floods_displace_their_own_kind() {
        let mut table = Fragments::new();
        assert_eq!(put(&mut table, piece(1, 0, 8, true), 0), Fate::Pass(facts(1)));
        let mut dropped = Vec::new();
        // Later fragments whose first never comes: the oldest go, and the known one stays.
        for id in 0..1000u32 {
            assert!(matches!(put(&mut table, piece(1000 + id, 8, 16, true), 0), Fate::Hold(_)), "{id}");
            for (_, fate) in all_decided(&mut table) {
                assert_eq!(fate, Err(Drops::HoldFull));
                dropped.push(id);
            }
        }
        assert_eq!(dropped, (HELD as u32..1000).collect::<Vec<_>>());
        assert_eq!(put(&mut table, piece(1, 8, 16, true), 0), Fate::Pass(facts(1)));
        // First fragments whose others never come: again the oldest, and those that wait stay.
        for id in 0..2 * DATAGRAMS as u32 {
            assert!(matches!(put(&mut table, piece(10_000 + id, 0, 8, true), 0), Fate::Pass(_)));
        }
        assert_eq!((table.held, table.has_decided()), (HELD, false));
        assert_eq!(put(&mut table, piece(1999, 0, 8, true), 0), Fate::Pass(facts(1999)));
        assert_eq!(all_decided(&mut table).len(), 1);
        assert!(matches!(put(&mut table, piece(1, 16, 24, true), 0), Fate::Hold(_)), "forgotten");
        // One datagram holds no more than its share, and has no more pieces.
        table.stop();
        all_decided(&mut table);
        for n in 1..=PIECES {
            let fate = put(&mut table, piece(3, n * 8, n * 8 + 8, true), 0);
            assert_eq!(fate == Fate::Drop(Drops::HoldFull), n > HELD_EACH, "{n}");
        }
        for n in 0..PIECES {
            assert!(matches!(put(&mut table, piece(4, n * 8, n * 8 + 8, true), 0), Fate::Pass(_)));
        }
        assert_eq!(put(&mut table, piece(4, 8000, 8008, true), 0), Fate::Drop(Drops::TooMany));
    }

    #[test]
    fn a_batch_of_fragments_always_finds_a_number() {
        let mut table = Fragments::new();
        for round in 0..20 {
            for n in 0..BATCH as u32 {
                // Datagrams of several pieces, so that one that goes gives several numbers back, but only after the batch.
                let (id, start) = (round * 10 + n / 7, 8 + 8 * (n as usize % 7));
                assert!(matches!(put(&mut table, piece(id, start, start + 8, true), 0), Fate::Hold(_)));
            }
            all_decided(&mut table);
            assert_eq!(table.numbers.len() + table.held, SLOTS);
            assert!(table.held <= HELD);
        }
    }

    /// A datagram as a bitmap of its bytes: the second opinion.
    #[derive(Default)]
    struct Bytes {
        seen: HashSet<usize>,
        pieces: Vec<Piece>,
        total: Option<usize>,
        spoilt: bool,
        known: bool,
        held: Vec<usize>,
    }

    #[derive(Debug, PartialEq)]
    enum Opinion {
        Pass,
        Hold,
        Duplicate,
        Spoilt,
        Full,
    }

    impl Bytes {
        fn put(&mut self, piece: &Piece) -> Opinion {
            if self.spoilt {
                return Opinion::Spoilt;
            }
            if !self.known && piece.start > 0 && self.held.len() == HELD_EACH {
                return Opinion::Full;
            }
            if self.pieces.contains(piece) {
                return Opinion::Duplicate;
            }
            let total = if piece.more { self.total } else { Some(piece.end) };
            let all: Vec<Piece> = self.pieces.iter().chain([piece]).copied().collect();
            let ends: HashSet<_> = all.iter().filter(|piece| !piece.more).map(|piece| piece.end).collect();
            let beyond = all.iter().any(|piece| piece.more && total.is_some_and(|total| piece.end >= total));
            let overlap = (piece.start..piece.end).any(|byte| self.seen.contains(&byte));
            if ends.len() > 1 || beyond || overlap || self.pieces.len() == PIECES {
                self.spoilt = true;
                return Opinion::Spoilt;
            }
            self.seen.extend(piece.start..piece.end);
            self.pieces.push(*piece);
            self.total = total;
            self.known |= piece.start == 0;
            if self.known { Opinion::Pass } else { Opinion::Hold }
        }

        fn is_whole(&self) -> bool {
            !self.spoilt && self.total.is_some_and(|total| (0..total).all(|byte| self.seen.contains(&byte)))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn ranges_agree_with_a_bitmap_of_bytes(
            pieces in prop::collection::vec((0u32..3, 0usize..12, 1usize..4, 0usize..8, prop::bool::weighted(0.8)), 1..80)
        ) {
            let mut table = Fragments::new();
            let mut naive: [Bytes; 3] = Default::default();
            for (id, start, len, short, more) in pieces {
                let end = (start + len) * 8 - if more { 0 } else { short };
                let piece = piece(id, start * 8, end, more);
                let fate = put(&mut table, piece, 0);
                let bytes = &mut naive[id as usize];
                let opinion = bytes.put(&piece);
                let same = match fate {
                    Fate::Pass(told) => told == facts(id) && opinion == Opinion::Pass,
                    Fate::Hold(number) => {
                        bytes.held.push(number);
                        opinion == Opinion::Hold
                    }
                    Fate::Drop(Drops::Duplicate) => opinion == Opinion::Duplicate,
                    Fate::Drop(Drops::HoldFull) => opinion == Opinion::Full,
                    Fate::Drop(_) => opinion == Opinion::Spoilt,
                };
                prop_assert!(same, "{piece:?}: {fate:?}, and bytes say {opinion:?}");
                let decided = all_decided(&mut table);
                let wanted = if bytes.known || bytes.spoilt { std::mem::take(&mut bytes.held) } else { Vec::new() };
                prop_assert_eq!(decided.iter().map(|(number, _)| *number).collect::<Vec<_>>(), wanted);
                prop_assert!(decided.iter().all(|(_, fate)| fate.is_ok() != bytes.spoilt));
                if bytes.is_whole() {
                    naive[id as usize] = Bytes::default();
                }
            }
        }
    }
}
