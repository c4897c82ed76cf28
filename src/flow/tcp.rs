//! The TCP machine: what a connection's two ends are known to be in, and which segments that allows.
//!
//! Owns states and numbers of both ends. It sees no frames and no time, sends nothing, and knows no rules.
//!
//! An end's state is what its segments and the answers to them prove: it is in CLOSE_WAIT once it has acknowledged the other's
//! FIN, not when that FIN was seen on its way. A segment is held to the four bounds of van Rooij ("Real Stateful TCP Packet
//! Filtering in IP Filter", 2000), against numbers that only segments within them move.
//!
//! - What the tables below do not list leaves the states as they are.
//! - A SYN in an open connection passes and changes nothing, so that the end that gets it can send its challenge ACK
//!   (RFC 5961 section 4) and the other end can abort what it has forgotten with the RST that answers that.
//! - A SYN with another number from the end whose SYN was never answered begins anew: a client that tries again from the same
//!   port. If that SYN is forged, the client's own next one begins anew in turn.
//! - A RST closes if it comes where RCV.NXT is known or may be: at the highest acknowledgment seen, or behind all that was seen
//!   sent, which an end that has all of it expects. Anywhere else in the window it passes and the connection stays: either
//!   the end that gets it closes, or its challenge ACK brings a RST with the right number.
//! - A handshake in which the server's SYN does not acknowledge (simultaneous open) is finished by the server's SYN-ACK alone.
//!   A lone ACK instead, the split handshake, is refused: an end that opened actively sends the SYN-ACK until it is answered.

use bytemuck::{Pod, Zeroable};

use super::timeout::Class;
use super::{Drops, ORIGINAL, REPLY, Tracking};
use crate::wire::tcp::{ACK, FIN, RST, SYN, URG, option, options};

/// Least span in which acknowledgments may be behind: van Rooij's bound, one window without scaling and a little.
const SKEW: u32 = 66_000;
/// Spans (of a window each, or [`SKEW`]) behind the window in which a segment counts as late: held up on its way for so many
/// round trips. It passes and changes nothing. What is older yet is none of the connection's.
const LATE: u32 = 4;
/// The largest shift (RFC 7323 section 2.3), and the one supposed where a connection was picked up in mid-stream.
const MAX_SCALE: u8 = 14;
/// The largest window there can be. Nothing that far behind is late: it could not be told from what lies ahead.
const MAX_WINDOW: u32 = 1 << 30;

/// Bits of `Tcp::flags`. Those by direction belong to ORIGINAL, and shifted by one to REPLY.
mod known {
    /// Its SYN carried a window scale.
    pub const SCALE: u16 = 1;
    /// Its SYN permitted SACK.
    pub const SACK: u16 = 1 << 2;
    /// Both ends'.
    pub const BOTH: u16 = 3;
    /// Picked up in mid-stream: what an end acknowledges it has been sent, though nobody saw it.
    pub const PICKED_UP: u16 = 1 << 4;
    /// Segments have passed whose numbers were not followed: none are known.
    pub const NUMBERLESS: u16 = 1 << 5;
    /// The end that should answer the SYN has sent an acknowledgment of something else. `limit` of that end holds it.
    pub const CHALLENGED: u16 = 1 << 6;
}

/// The state of one end (RFC 9293 section 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No connection.
    Closed,
    /// Waits for a SYN.
    Listen,
    /// Has sent a SYN.
    SynSent,
    /// Has received a SYN and sent its own.
    SynReceived,
    /// Open.
    Established,
    /// Has sent a FIN.
    FinWait1,
    /// Its FIN is acknowledged.
    FinWait2,
    /// Has received a FIN.
    CloseWait,
    /// Has sent a FIN and received one before its own was acknowledged.
    Closing,
    /// Has received a FIN and sent its own.
    LastAck,
    /// Waits for what is still under way.
    TimeWait,
}

/// What is known of one end's numbers. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct End {
    /// Behind the last sequence number it sent: SND.NXT as far as was seen.
    pub next: u32,
    /// Behind the last sequence number it may send: the highest acknowledgment and window of the other end.
    pub limit: u32,
    /// The highest acknowledgment it sent: its RCV.NXT.
    pub acked: u32,
    /// The largest window it offered, scaled.
    pub window: u32,
}

/// What is known of a connection's numbers. 36 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tcp {
    /// By direction: the end that sends that way.
    pub ends: [End; 2],
    /// By direction: the shift of the windows sent that way (RFC 7323 section 2.2).
    pub scale: [u8; 2],
    /// The machine's own.
    pub flags: u16,
}

/// Both ends' states, by direction of what they send, in a nibble each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct States(pub u8);

/// What the machine needs of a segment. Numbers in host order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Window, unscaled.
    pub window: u16,
    /// `wire::tcp::FIN` to `CWR`.
    pub flags: u8,
    /// Shift of the window scale option, if it has one.
    pub scale: Option<u8>,
    /// It has the SACK-permitted option.
    pub sack_permitted: bool,
    /// The highest edge of its SACK blocks, if it has any.
    pub sacked: Option<u32>,
}

/// What becomes of a segment of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, and the flow's life depends on this class from now on.
    Valid(Class),
    /// It passes and changes nothing, not even the flow's life.
    Ignore,
    /// It begins a new connection in place of a closed one: the flow ends, and the segment is judged as a new flow's first.
    Reopen,
    /// It does not pass.
    Invalid(Drops),
}
/// Both ends are in ESTABLISHED.
const OPEN: States = States::of(State::Established, State::Established);

/// True if `a` comes behind `b` in sequence space (RFC 9293 section 3.4).
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

impl State {
    /// All of them, by number.
    pub const ALL: [State; 11] = [
        State::Closed,
        State::Listen,
        State::SynSent,
        State::SynReceived,
        State::Established,
        State::FinWait1,
        State::FinWait2,
        State::CloseWait,
        State::Closing,
        State::LastAck,
        State::TimeWait,
    ];

    /// Its name in RFC 9293, in one word.
    pub fn word(self) -> &'static str {
        match self {
            State::Closed => "CLOSED",
            State::Listen => "LISTEN",
            State::SynSent => "SYN_SENT",
            State::SynReceived => "SYN_RECEIVED",
            State::Established => "ESTABLISHED",
            State::FinWait1 => "FIN_WAIT_1",
            State::FinWait2 => "FIN_WAIT_2",
            State::CloseWait => "CLOSE_WAIT",
            State::Closing => "CLOSING",
            State::LastAck => "LAST_ACK",
            State::TimeWait => "TIME_WAIT",
        }
    }

    /// No SYN, or one that is not known to be acknowledged.
    fn is_opening(self) -> bool {
        matches!(self, State::Listen | State::SynSent | State::SynReceived)
    }

    /// It has sent a FIN.
    fn has_closed(self) -> bool {
        use State::*;
        matches!(self, FinWait1 | FinWait2 | Closing | LastAck | TimeWait)
    }

    /// It neither sends nor expects anything new.
    fn is_over(self) -> bool {
        matches!(self, State::Closed | State::TimeWait)
    }

    /// It sends a FIN.
    fn close(self) -> State {
        match self {
            State::SynReceived | State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            other => other,
        }
    }

    /// Its FIN is acknowledged.
    fn close_acknowledged(self) -> State {
        match self {
            State::FinWait1 => State::FinWait2,
            State::Closing => State::TimeWait,
            State::LastAck => State::Closed,
            other => other,
        }
    }

    /// It acknowledges the other's FIN.
    fn acknowledge_close(self) -> State {
        match self {
            State::Established => State::CloseWait,
            State::FinWait1 => State::Closing,
            State::FinWait2 => State::TimeWait,
            other => other,
        }
    }
}

impl States {
    /// Of the end that opened and the one that answers.
    pub const fn of(original: State, reply: State) -> States {
        States(original as u8 | (reply as u8) << 4)
    }

    /// The state of the end that sends in `direction`. A number that is none is CLOSED.
    #[inline]
    pub fn end(self, direction: usize) -> State {
        let number = if direction == ORIGINAL { self.0 & 15 } else { self.0 >> 4 };
        State::ALL.get(usize::from(number)).copied().unwrap_or(State::Closed)
    }

    fn set(&mut self, direction: usize, state: State) {
        let other = self.end(direction ^ 1);
        *self = if direction == ORIGINAL { States::of(state, other) } else { States::of(other, state) };
    }

    /// Nothing is to come but what was held up.
    fn are_over(self) -> bool {
        self.end(ORIGINAL).is_over() && self.end(REPLY).is_over()
    }

    /// What the life of a connection in these states depends on.
    fn class(self) -> Class {
        let (a, b) = (self.end(ORIGINAL), self.end(REPLY));
        match (a, b) {
            (State::SynSent, State::Listen) => Class::TcpSynSent,
            _ if a.is_opening() || b.is_opening() => Class::TcpSynReceived,
            (State::Closed, State::Closed) => Class::TcpReset,
            _ if a.is_over() && b.is_over() => Class::TcpTimeWait,
            _ if a.has_closed() && b.has_closed() => Class::TcpClosing,
            _ if a.has_closed() || b.has_closed() => Class::TcpHalfClosed,
            _ => Class::TcpEstablished,
        }
    }
}

/// True for a connection that may be forgotten when room is needed: its handshake is not done, or it was picked up and the other
/// end not heard of yet, or it was reset.
pub fn is_half_open(states: States) -> bool {
    let (a, b) = (states.end(ORIGINAL), states.end(REPLY));
    a.is_opening() || b.is_opening() || (a, b) == (State::Closed, State::Closed)
}

/// True for flags that create, close or abort a connection: of such a segment the checksum must be right.
#[inline(always)]
pub fn needs_checksum(flags: u8) -> bool {
    flags & (SYN | FIN | RST) != 0
}

/// True if the sequence number of a segment that an ICMP error quotes is one that the end sending in `direction` may have under
/// way: not before what is acknowledged, not behind what it has sent (RFC 5927 section 4.1). One number more on both sides:
/// a keep-alive carries SND.UNA - 1, and a segment without data SND.NXT.
pub fn quotes(tcp: &Tcp, direction: usize, sequence: u32) -> bool {
    let (una, next) = (tcp.ends[direction ^ 1].acked, tcp.ends[direction].next);
    tcp.flags & known::NUMBERLESS != 0 || !after(una.wrapping_sub(1), sequence) && !after(sequence, next)
}

/// True for flags that make sense together; PSH, ECE and CWR aside, which go with all of them. A segment is a SYN with or without
/// ACK, a RST with or without ACK, or it has ACK, perhaps with FIN. URG needs something to point into: not with RST.
#[inline]
fn make_sense(flags: u8) -> bool {
    match flags & (SYN | FIN | RST | ACK) {
        SYN | ACK => true,
        f if f == SYN | ACK || f == FIN | ACK => true,
        f if f == RST || f == RST | ACK => flags & URG == 0,
        _ => false,
    }
}

impl Segment {
    /// Reads the segment that begins at the bytes' start and ends with them. None if its header does not fit. Options that
    /// are malformed count as absent.
    #[inline(always)]
    pub fn read(segment: &[u8]) -> Option<Segment> {
        let header = segment.first_chunk::<20>()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < 20 || header_len > segment.len() {
            return None;
        }
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut read = Segment {
            sequence: word(4),
            acknowledgment: word(8),
            len: (segment.len() - header_len) as u32,
            window: u16::from_be_bytes([header[14], header[15]]),
            flags: header[13],
            ..Segment::default()
        };
        // RFC 7323 appendix A: what a segment with timestamps alone carries.
        let alone = header_len == 32 && segment[20..].starts_with(&[1, 1, option::TIMESTAMPS, 10]);
        if read.flags & SYN != 0 || header_len > 20 && !alone {
            read.options(&segment[20..header_len]);
        }
        Some(read)
    }

    #[cold]
    fn options(&mut self, bytes: &[u8]) {
        let bare = *self;
        for found in options(bytes) {
            match found {
                // RFC 7323 section 2.2: the scale is agreed on in SYNs. Section 2.3: more than 14 counts as 14.
                Ok((option::WINDOW_SCALE, &[shift])) if self.flags & SYN != 0 => {
                    self.scale = Some(shift.min(MAX_SCALE))
                }
                Ok((option::SACK_PERMITTED, [])) if self.flags & SYN != 0 => self.sack_permitted = true,
                Ok((option::SACK, blocks)) if self.flags & ACK != 0 && blocks.len() % 8 == 0 => {
                    for block in blocks.chunks_exact(8) {
                        let edge = u32::from_be_bytes([block[4], block[5], block[6], block[7]]);
                        // RFC 2883 section 4: a first block below the acknowledgment reports a duplicate.
                        if after(edge, self.sacked.unwrap_or(self.acknowledgment)) {
                            self.sacked = Some(edge);
                        }
                    }
                }
                Ok(_) => {}
                Err(_) => return *self = bare,
            }
        }
    }

    #[inline(always)]
    fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Behind its data.
    fn data_end(&self) -> u32 {
        self.sequence.wrapping_add(u32::from(self.has(SYN))).wrapping_add(self.len)
    }

    /// Behind all that takes up sequence numbers.
    fn end(&self) -> u32 {
        self.data_end().wrapping_add(u32::from(self.has(FIN)))
    }
}

/// What is known after a flow's first segment, which goes in direction `ORIGINAL`.
///
/// A SYN begins a connection. Without one it is picked up in mid-stream where that is allowed. Anything else is
/// [`Drops::NoFlow`], and flags that contradict each other are [`Drops::BadFlags`].
pub fn open(segment: &Segment, tracking: Tracking) -> Result<(States, Tcp, Class), Drops> {
    if !make_sense(segment.flags) {
        return Err(Drops::BadFlags);
    }
    let sloppy = tracking == Tracking::Sloppy;
    let mut tcp = Tcp { flags: if sloppy { known::NUMBERLESS } else { 0 }, ..Tcp::default() };
    let states = match segment.flags & (SYN | FIN | RST | ACK) {
        SYN => {
            tcp.begin(ORIGINAL, segment);
            States::of(State::SynSent, State::Listen)
        }
        ACK if sloppy => OPEN,
        f if sloppy && f == SYN | ACK => States::of(State::SynReceived, State::SynSent),
        f if sloppy && f == FIN | ACK => States::of(State::FinWait1, State::Established),
        f if tracking == Tracking::Loose && f & (SYN | RST) == 0 => {
            tcp.pick_up(segment);
            let state = if segment.has(FIN) { State::FinWait1 } else { State::Established };
            // Nothing is known of the other end: it has not been heard.
            States::of(state, State::Listen)
        }
        _ => return Err(Drops::NoFlow),
    };
    Ok((states, tcp, states.class()))
}

/// Where an acceptable segment lies.
#[derive(PartialEq, Eq)]
enum Fit {
    /// In the window.
    Inside,
    /// Behind it, and held up on its way or sent again: nothing in it is new.
    Late,
}

impl Tcp {
    /// Takes the numbers of a SYN sent in `direction`, and of its acknowledgment if it has one.
    fn begin(&mut self, direction: usize, segment: &Segment) {
        let first = segment.sequence;
        let next = segment.end();
        let offered = self.ends[direction ^ 1].window.max(1);
        let end = &mut self.ends[direction];
        end.next = next;
        // RFC 7323 section 2.2: the window of a SYN is never scaled.
        end.window = u32::from(segment.window);
        end.limit = first.wrapping_add(1).wrapping_add(offered);
        if after(next, end.limit) {
            end.limit = next;
        }
        // SND.UNA is ISS (RFC 9293 section 3.4).
        self.ends[direction ^ 1].acked = first;
        let bits = (known::SCALE | known::SACK) << direction;
        self.flags &= !(bits | known::CHALLENGED);
        self.flags |= if segment.scale.is_some() { known::SCALE << direction } else { 0 };
        self.flags |= if segment.sack_permitted { known::SACK << direction } else { 0 };
        self.scale[direction] = segment.scale.unwrap_or(0).min(MAX_SCALE);
        if segment.has(ACK) {
            self.acknowledge(direction, segment.acknowledgment, segment.window, 0);
        }
    }

    /// Takes the numbers of a segment in mid-stream. The other end may have sent, and may be owed, up to the largest window.
    fn pick_up(&mut self, segment: &Segment) {
        self.flags = known::PICKED_UP | (known::BOTH * (known::SCALE | known::SACK));
        self.scale = [MAX_SCALE; 2];
        let (next, acked) = (segment.end(), segment.acknowledgment);
        self.ends[ORIGINAL] = End { next, limit: next.wrapping_add(MAX_WINDOW), acked, window: 0 };
        self.ends[REPLY] = End { next: acked, limit: acked, acked: segment.sequence, window: MAX_WINDOW };
        self.acknowledge(ORIGINAL, segment.acknowledgment, segment.window, MAX_SCALE);
    }

    /// Takes the acknowledgment and the window of a segment.
    #[inline(always)]
    fn acknowledge(&mut self, direction: usize, acknowledgment: u32, window: u16, scale: u8) {
        let window = u32::from(window) << (scale & 15);
        // A window of nothing is probed with one byte (RFC 9293 section 3.8.6.1).
        let limit = acknowledgment.wrapping_add(window.max(1));
        let end = &mut self.ends[direction];
        if after(acknowledgment, end.acked) {
            end.acked = acknowledgment;
        }
        end.window = end.window.max(window);
        let other = &mut self.ends[direction ^ 1];
        // A window may shrink (RFC 9293 section 3.8.6), and what was sent before that was known is no fault.
        if after(limit, other.limit) {
            other.limit = limit;
        }
    }

    /// RFC 7323 section 2.2: windows are scaled only if both SYNs carry the option.
    fn settle_scale(&mut self) {
        if !self.both(known::SCALE) {
            self.scale = [0; 2];
        }
    }

    fn both(&self, bit: u16) -> bool {
        self.flags & (bit * known::BOTH) == bit * known::BOTH
    }

    /// The highest number that a segment acknowledges, in blocks (RFC 2018) if these were agreed on.
    fn highest(&self, segment: &Segment) -> u32 {
        match segment.sacked {
            Some(edge) if self.both(known::SACK) && after(edge, segment.acknowledgment) => edge,
            _ => segment.acknowledgment,
        }
    }

    /// Holds a segment with ACK, without SYN, to the windows, of ends that have sent a FIN or not.
    fn fit(&self, direction: usize, segment: &Segment, has_closed: bool, other_has_closed: bool) -> Result<Fit, Drops> {
        let (mine, theirs) = (&self.ends[direction], &self.ends[direction ^ 1]);
        let end = segment.end();
        let is_new = after(end, mine.next);
        // A FIN needs no window, and what follows it comes behind it: also if it was lost before it was seen.
        let data_end = segment.data_end();
        let limit = mine.limit.wrapping_add(u32::from(segment.len == 0 && !segment.has(SYN | FIN | RST)));
        let is_beyond = after(data_end, limit) && data_end != mine.next && !after(mine.next, data_end);
        // Behind a FIN there is nothing, and a FIN comes behind everything.
        let is_past_close = has_closed && is_new || segment.has(FIN) && after(mine.next, end);
        if is_beyond || is_past_close {
            return Err(Drops::BadSequence);
        }
        let mut late = false;
        if after(mine.next, segment.sequence) {
            let age = u64::from(mine.next.wrapping_sub(segment.sequence));
            let window = u64::from(theirs.window);
            if age > u64::from(MAX_WINDOW).min(window + u64::from(LATE) * window.max(SKEW.into())) {
                return Err(Drops::BadSequence);
            }
            late = age > window;
        }
        let highest = self.highest(segment);
        let is_unsent = |number| {
            let may_be_unseen = self.flags & known::PICKED_UP != 0 && !other_has_closed;
            // Half the numbers away is neither before nor behind.
            let is_ahead = number != theirs.next && !after(theirs.next, number);
            is_ahead && (!may_be_unseen || after(number, theirs.limit))
        };
        let is_ancient = theirs.next.wrapping_sub(segment.acknowledgment) as i32 > MAX_WINDOW as i32;
        if is_unsent(segment.acknowledgment) || is_unsent(highest) || is_ancient {
            return Err(Drops::BadAcknowledgment);
        }
        if !after(highest, theirs.next) {
            let age = u64::from(theirs.next.wrapping_sub(highest));
            let skew = u64::from(mine.window.max(SKEW));
            if age > u64::from(MAX_WINDOW).min(skew * u64::from(1 + LATE)) {
                return Err(Drops::BadAcknowledgment);
            }
            late |= age > skew;
        }
        // What is new counts, however late: the end that gets it may take it.
        Ok(if late && !is_new { Fit::Late } else { Fit::Inside })
    }

    /// Takes the numbers of a segment that fits.
    fn take(&mut self, direction: usize, segment: &Segment) {
        let end = segment.end();
        if after(end, self.ends[direction].next) {
            self.ends[direction].next = end;
        }
        // Only where a connection was picked up.
        if after(segment.acknowledgment, self.ends[direction ^ 1].next) {
            self.ends[direction ^ 1].next = segment.acknowledgment;
        }
        self.acknowledge(direction, segment.acknowledgment, segment.window, self.scale[direction]);
    }

    /// True if an acknowledgment covers the SYN of the other end, of which nothing is acknowledged yet, and nothing it never sent.
    fn acknowledges_syn(&self, direction: usize, segment: &Segment) -> bool {
        let una = self.ends[direction].acked;
        let covered = segment.acknowledgment.wrapping_sub(una);
        segment.has(ACK) && covered > 0 && covered <= self.ends[direction ^ 1].next.wrapping_sub(una)
    }
}

/// What of a segment the most common case asks for. Passed by value, it stays in registers.
#[derive(Clone, Copy)]
struct Numbers {
    sequence: u32,
    acknowledgment: u32,
    len: u32,
    window: u16,
    flags: u8,
}

impl Numbers {
    /// Of the segment that begins at the bytes' start and ends with them, if it has no options but timestamps as RFC 7323
    /// appendix A places them.
    #[inline(always)]
    fn read(segment: &[u8]) -> Option<Numbers> {
        let header = segment.first_chunk::<20>()?;
        let header_len = match header[12] >> 4 {
            5 => 20,
            8 if segment.get(20..32)?.starts_with(&[1, 1, option::TIMESTAMPS, 10]) => 32,
            _ => return None,
        };
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Some(Numbers {
            sequence: word(4),
            acknowledgment: word(8),
            len: (segment.len() - header_len) as u32,
            window: u16::from_be_bytes([header[14], header[15]]),
            flags: header[13],
        })
    }
}

/// Follows a segment of an open connection that is neither SYN, FIN nor RST and inside of all windows. False, with nothing
/// changed, for any other.
#[inline(always)]
fn advance(states: States, tcp: &mut Tcp, direction: usize, segment: Numbers, tracking: Tracking) -> bool {
    let direction = direction & 1;
    let (mine, theirs) = (&tcp.ends[direction], &tcp.ends[direction ^ 1]);
    let end = segment.sequence.wrapping_add(segment.len);
    let is_common = states == OPEN
        && segment.flags & (SYN | FIN | RST | ACK) == ACK
        && tracking != Tracking::Sloppy
        && !after(end, mine.limit)
        && !after(mine.next.wrapping_sub(theirs.window), segment.sequence)
        && theirs.next.wrapping_sub(segment.acknowledgment) <= mine.window.max(SKEW);
    if is_common {
        if after(end, mine.next) {
            tcp.ends[direction].next = end;
        }
        tcp.acknowledge(direction, segment.acknowledgment, segment.window, tcp.scale[direction]);
    }
    is_common
}

/// Reads the segment that `bytes` are, and follows it if it is of the most common kind: its connection's class stays what it is.
/// False, with nothing changed, if it takes [`follow`] to decide.
#[inline(always)]
pub fn follow_common(states: States, tcp: &mut Tcp, direction: usize, bytes: &[u8], tracking: Tracking) -> bool {
    Numbers::read(bytes).is_some_and(|segment| advance(states, tcp, direction, segment, tracking))
}

/// Holds a segment to its connection and follows it. `class` is what the flow's life depends on so far.
pub fn follow(
    states: &mut States,
    tcp: &mut Tcp,
    class: Class,
    direction: usize,
    segment: &Segment,
    tracking: Tracking,
) -> Verdict {
    let direction = direction & 1;
    let Segment { sequence, acknowledgment, len, window, flags, .. } = *segment;
    let numbers = Numbers { sequence, acknowledgment, len, window, flags };
    if segment.sacked.is_none() && advance(*states, tcp, direction, numbers, tracking) {
        return Verdict::Valid(class);
    }
    uncommon(states, tcp, direction, segment, tracking)
}

#[cold]
#[inline(never)]
fn uncommon(states: &mut States, tcp: &mut Tcp, direction: usize, segment: &Segment, tracking: Tracking) -> Verdict {
    if !make_sense(segment.flags) {
        return Verdict::Invalid(Drops::BadFlags);
    }
    if tracking == Tracking::Sloppy || tcp.flags & known::NUMBERLESS != 0 {
        tcp.flags |= known::NUMBERLESS;
        return by_flags(states, direction, segment);
    }
    if segment.has(RST) {
        return reset(states, tcp, direction, segment);
    }
    if segment.has(SYN) {
        return synchronize(states, tcp, direction, segment);
    }
    proceed(states, tcp, direction, segment, tracking)
}

/// A SYN or a SYN-ACK.
fn synchronize(states: &mut States, tcp: &mut Tcp, direction: usize, segment: &Segment) -> Verdict {
    use State::*;
    let (mine, theirs) = (states.end(direction), states.end(direction ^ 1));
    // As long as nothing of it is acknowledged, an end's first number is its SND.UNA.
    let is_again = segment.sequence == tcp.ends[direction ^ 1].acked;
    match (mine, theirs, segment.has(ACK)) {
        // RFC 9293 section 3.6.1: who is in TIME_WAIT takes a SYN with a number behind all of the old connection.
        _ if states.are_over() && !segment.has(ACK) => {
            let is_newer = !after(tcp.ends[direction].next, segment.sequence);
            return if theirs == Closed || is_newer { Verdict::Reopen } else { Verdict::Ignore };
        }
        (SynSent, Listen, false) if !is_again => return Verdict::Reopen,
        (SynSent, Listen, true) => return Verdict::Invalid(Drops::BadState),
        // RFC 9293 section 3.5, figure 7: simultaneous open.
        (Listen, SynSent, false) => {
            tcp.begin(direction, segment);
            states.set(direction, SynSent);
        }
        // A second SYN-ACK with another number comes from a server that keeps nothing before the handshake is done.
        (Listen, SynSent, true) | (SynReceived, SynSent, true) if mine == Listen || !is_again => {
            let (una, next) = match mine {
                Listen => (tcp.ends[direction].acked, tcp.ends[direction ^ 1].next),
                _ => (tcp.ends[direction].acked.wrapping_sub(1), tcp.ends[direction].acked),
            };
            let covered = segment.acknowledgment.wrapping_sub(una);
            if covered == 0 || covered > next.wrapping_sub(una) {
                return Verdict::Invalid(Drops::BadAcknowledgment);
            }
            tcp.begin(direction, segment);
            states.set(direction, SynReceived);
        }
        (SynSent, SynSent | SynReceived | FinWait1, true) => {
            // The other end may have acknowledged it by now.
            if !is_again && segment.end() != tcp.ends[direction ^ 1].acked {
                return Verdict::Invalid(Drops::BadState);
            }
            if !tcp.acknowledges_syn(direction, segment) {
                return Verdict::Invalid(Drops::BadAcknowledgment);
            }
            tcp.acknowledge(direction, segment.acknowledgment, segment.window, 0);
            states.set(direction, if theirs == SynSent { SynReceived } else { Established });
            if theirs != SynSent {
                tcp.settle_scale();
            }
            if theirs == SynReceived {
                states.set(direction ^ 1, Established);
            }
        }
        // RFC 5961 section 4.
        _ => return Verdict::Ignore,
    }
    Verdict::Valid(states.class())
}

/// A RST (RFC 5961 section 3.2; RFC 9293 section 3.10.7.3 in SYN_SENT).
fn reset(states: &mut States, tcp: &mut Tcp, direction: usize, segment: &Segment) -> Verdict {
    use State::*;
    let (mine, theirs) = (&tcp.ends[direction], &tcp.ends[direction ^ 1]);
    let sequence = segment.sequence;
    let is_exact = sequence == theirs.acked || sequence == mine.next;
    let is_inside = is_exact || !after(theirs.acked, sequence) && after(mine.limit, sequence);
    let closes = match (states.end(direction), states.end(direction ^ 1)) {
        // RFC 1337: it does not cut TIME_WAIT short.
        _ if states.are_over() => false,
        (Listen | SynSent, SynSent) => {
            if !tcp.acknowledges_syn(direction, segment) {
                return Verdict::Invalid(Drops::BadReset);
            }
            true
        }
        // Of an end that has yet to acknowledge the SYN-ACK nobody knows whether it has it.
        (_, SynSent) => {
            let acknowledges = segment.has(ACK) && segment.acknowledgment == mine.acked;
            if !acknowledges && sequence != theirs.acked.wrapping_add(1) && sequence != mine.next {
                return Verdict::Invalid(Drops::BadReset);
            }
            true
        }
        // An answer to the challenge: the old connection ends, and this one may begin (RFC 9293 section 3.5.1, figure 9).
        (SynSent, Listen) if tcp.flags & known::CHALLENGED != 0 && sequence == theirs.limit => false,
        (SynSent, Listen) => {
            let sent = sequence.wrapping_sub(theirs.acked);
            if sent == 0 || sent > mine.next.wrapping_sub(theirs.acked) {
                return Verdict::Invalid(Drops::BadReset);
            }
            true
        }
        _ if !is_inside => return Verdict::Invalid(Drops::BadReset),
        _ => is_exact,
    };
    if !closes {
        let passes = is_inside || !states.are_over();
        return if passes { Verdict::Ignore } else { Verdict::Invalid(Drops::BadReset) };
    }
    *states = States::of(Closed, Closed);
    Verdict::Valid(Class::TcpReset)
}

/// A segment with ACK that is neither SYN nor RST.
fn proceed(states: &mut States, tcp: &mut Tcp, direction: usize, segment: &Segment, tracking: Tracking) -> Verdict {
    use State::*;
    let (mut mine, mut theirs) = (states.end(direction), states.end(direction ^ 1));
    match (mine, theirs) {
        // It cannot know what to acknowledge.
        (SynSent, Listen) if tracking == Tracking::Loose && !segment.has(FIN) => return Verdict::Ignore,
        (SynSent, Listen | SynSent) => return Verdict::Invalid(Drops::BadState),
        (SynSent, _) if direction == REPLY => return Verdict::Invalid(Drops::BadState),
        // RFC 9293 section 3.5.1, figure 9: it holds the SYN for one in an old connection that this machine does not know.
        (Listen, SynSent) => {
            if segment.len > 0 || segment.has(FIN) || tcp.acknowledges_syn(direction, segment) {
                return Verdict::Invalid(Drops::BadState);
            }
            tcp.ends[direction].limit = segment.acknowledgment;
            tcp.flags |= known::CHALLENGED;
            return Verdict::Ignore;
        }
        _ => {}
    }
    if mine.is_opening() || theirs.is_opening() {
        tcp.settle_scale();
    }
    let fit = match tcp.fit(direction, segment, mine.has_closed(), theirs.has_closed()) {
        Ok(_) if mine == SynSent && !tcp.acknowledges_syn(direction, segment) => Err(Drops::BadAcknowledgment),
        fit => fit,
    };
    match fit {
        Err(reason) if tracking == Tracking::Strict || segment.has(FIN) => return Verdict::Invalid(reason),
        Err(_) | Ok(Fit::Late) => return Verdict::Ignore,
        Ok(Fit::Inside) => {}
    }
    if states.are_over() {
        // RFC 9293 section 3.10.7.4: a FIN sent again restarts the wait.
        let restarts = segment.has(FIN) && (mine, theirs) != (Closed, Closed);
        return if restarts { Verdict::Valid(states.class()) } else { Verdict::Ignore };
    }
    tcp.take(direction, segment);
    match mine {
        SynSent => {
            mine = Established;
            theirs = if theirs == SynReceived { Established } else { theirs };
        }
        Listen => mine = Established,
        _ => {}
    }
    if theirs.has_closed() && segment.acknowledgment == tcp.ends[direction ^ 1].next {
        (mine, theirs) = (mine.acknowledge_close(), theirs.close_acknowledged());
    }
    if segment.has(FIN) {
        mine = mine.close();
    }
    states.set(direction, mine);
    states.set(direction ^ 1, theirs);
    Verdict::Valid(states.class())
}

/// A segment of which nothing but the flags counts. Any acknowledgment acknowledges whatever there is, and an end that was never
/// heard is taken to go along.
fn by_flags(states: &mut States, direction: usize, segment: &Segment) -> Verdict {
    use State::*;
    let (mut mine, mut theirs) = (states.end(direction), states.end(direction ^ 1));
    match segment.flags & (SYN | FIN | RST | ACK) {
        SYN if states.are_over() || mine.has_closed() => return Verdict::Reopen,
        SYN if mine == Listen => mine = SynSent,
        f if f == SYN | ACK && mine == Listen => mine = SynReceived,
        f if f & SYN != 0 => return Verdict::Ignore,
        f if f & RST != 0 && states.are_over() => return Verdict::Ignore,
        f if f & RST != 0 => (mine, theirs) = (Closed, Closed),
        f if states.are_over() => {
            let restarts = f & FIN != 0 && (mine, theirs) != (Closed, Closed);
            return if restarts { Verdict::Valid(states.class()) } else { Verdict::Ignore };
        }
        f => {
            mine = if mine.is_opening() { Established } else { mine };
            theirs = if theirs.is_opening() { Established } else { theirs };
            if theirs.has_closed() {
                (mine, theirs) = (mine.acknowledge_close(), theirs.close_acknowledged());
            }
            mine = if f & FIN != 0 { mine.close() } else { mine };
        }
    }
    states.set(direction, mine);
    states.set(direction ^ 1, theirs);
    Verdict::Valid(states.class())
}

#[cfg(test)]
mod tests;
