//! TCP conversations as tables: what each segment comes to, and what both ends are known to be in after it.
//!
//! End `a` sends the first segment. Sequence numbers count from the sender's initial one, acknowledgments from the other's, so
//! that a conversation can be run at any numbers, those that wrap among them.

use crate::flow::tcp::State::{self, *};
use crate::flow::{Drops, Tracking};
use crate::wire::tcp::{ACK, FIN, PSH, RST, SYN, URG, option};

/// What a segment comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It passes and counts.
    Valid,
    /// It passes and changes nothing.
    Ignore,
    /// It does not pass.
    Invalid(Drops),
    /// It begins a new connection.
    Reopen,
}

/// A segment and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// 0 if `a` sends it, 1 if `b`.
    pub from: usize,
    /// As on the wire.
    pub flags: u8,
    /// From the sender's initial sequence number.
    pub sequence: u32,
    /// From the other's initial sequence number.
    pub acknowledgment: u32,
    /// Bytes of payload.
    pub len: u16,
    /// Unscaled.
    pub window: u16,
    /// Window scale option.
    pub scale: Option<u8>,
    /// SACK-permitted option.
    pub sack_permitted: bool,
    /// SACK blocks, counted as acknowledgments are.
    pub sack: &'static [(u32, u32)],
    /// What it comes to.
    pub kind: Kind,
    /// The states of `a` and `b` after it. Without meaning where no connection is known.
    pub after: (State, State),
}

/// Segments in their order.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// What happens.
    pub name: &'static str,
    /// The text that says so.
    pub source: &'static str,
    /// How closely it is held to its protocol.
    pub tracking: Tracking,
    /// What is sent. The last may reopen or be refused as a first.
    pub steps: &'static [Step],
}

impl Step {
    /// Header, options and payload (zeros) on the wire, from initial sequence numbers of both ends. Ports and checksum are 0.
    pub fn bytes(&self, first: [u32; 2]) -> Vec<u8> {
        let word = |end: usize, offset: u32| first[end].wrapping_add(offset).to_be_bytes();
        let acknowledgment = if self.flags & ACK != 0 { word(self.from ^ 1, self.acknowledgment) } else { [0; 4] };
        let mut options = Vec::new();
        if let Some(shift) = self.scale {
            options.extend([1, option::WINDOW_SCALE, 3, shift]);
        }
        if self.sack_permitted {
            options.extend([1, 1, option::SACK_PERMITTED, 2]);
        }
        if !self.sack.is_empty() {
            options.extend([1, 1, option::SACK, 2 + 8 * self.sack.len() as u8]);
            for (left, right) in self.sack {
                options.extend(word(self.from ^ 1, *left));
                options.extend(word(self.from ^ 1, *right));
            }
        }
        let mut bytes = vec![0; 4];
        bytes.extend(word(self.from, self.sequence));
        bytes.extend(acknowledgment);
        bytes.extend([(5 + options.len() as u8 / 4) << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(options);
        bytes.resize(bytes.len() + usize::from(self.len), 0);
        bytes
    }

    const fn window(mut self, window: u16) -> Step {
        self.window = window;
        self
    }

    const fn scale(mut self, shift: u8) -> Step {
        self.scale = Some(shift);
        self
    }

    const fn sack_permitted(mut self) -> Step {
        self.sack_permitted = true;
        self
    }

    const fn sack(mut self, blocks: &'static [(u32, u32)]) -> Step {
        self.sack = blocks;
        self
    }

    const fn valid(mut self, a: State, b: State) -> Step {
        self.after = (a, b);
        self
    }

    const fn ignored(mut self, a: State, b: State) -> Step {
        self.kind = Kind::Ignore;
        self.valid(a, b)
    }

    const fn refused(mut self, reason: Drops, a: State, b: State) -> Step {
        self.kind = Kind::Invalid(reason);
        self.valid(a, b)
    }

    const fn reopens(mut self) -> Step {
        self.kind = Kind::Reopen;
        self
    }
}

const fn step(from: usize, flags: u8, sequence: u32, acknowledgment: u32, len: u16) -> Step {
    Step {
        from,
        flags,
        sequence,
        acknowledgment,
        len,
        window: 1000,
        scale: None,
        sack_permitted: false,
        sack: &[],
        kind: Kind::Valid,
        after: (Closed, Closed),
    }
}

/// `a` sends flags, sequence, acknowledgment, length.
const fn a(flags: u8, sequence: u32, acknowledgment: u32, len: u16) -> Step {
    step(0, flags, sequence, acknowledgment, len)
}

/// `b` sends flags, sequence, acknowledgment, length.
const fn b(flags: u8, sequence: u32, acknowledgment: u32, len: u16) -> Step {
    step(1, flags, sequence, acknowledgment, len)
}

const SA: u8 = SYN | ACK;
const FA: u8 = FIN | ACK;
const RA: u8 = RST | ACK;
const PA: u8 = PSH | ACK;

/// The three segments of a handshake without options.
const OPEN: [Step; 3] = [
    a(SYN, 0, 0, 0).valid(SynSent, Listen),
    b(SA, 0, 1, 0).valid(SynSent, SynReceived),
    a(ACK, 1, 1, 0).valid(Established, Established),
];

macro_rules! conversations {
    ($($name:literal, $source:literal, $tracking:ident: [$($step:expr),* $(,)?])*) => {
        /// All of them.
        pub const ALL: &[Conversation] = &[$(
            Conversation { name: $name, source: $source, tracking: Tracking::$tracking, steps: &[$($step),*] }
        ),*];
    };
}

conversations! {
    // Opening.
    "handshake and data", "RFC 9293 section 3.5, figure 6", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 100).valid(Established, Established),
        b(ACK, 1, 101, 0).valid(Established, Established),
        b(PA | URG, 1, 101, 500).valid(Established, Established),
        a(ACK, 101, 501, 0).valid(Established, Established),
    ]
    "SYN sent again", "RFC 9293 section 3.8.1", Strict: [
        OPEN[0], a(SYN, 0, 0, 0).ignored(SynSent, Listen), OPEN[1],
        a(SYN, 0, 0, 0).ignored(SynSent, SynReceived),
        b(SA, 0, 1, 0).ignored(SynSent, SynReceived), OPEN[2],
        b(SA, 0, 1, 0).ignored(Established, Established),
    ]
    "another SYN before any answer", "RFC 9293 section 3.5, figure 8", Strict: [
        OPEN[0], a(SYN, 70_000, 0, 0).reopens(),
    ]
    "SYN with data, taken", "RFC 7413 section 3", Strict: [
        a(SYN, 0, 0, 100).valid(SynSent, Listen),
        b(SA, 0, 101, 0).valid(SynSent, SynReceived),
        b(PA, 1, 101, 300).valid(SynSent, SynReceived),
        a(ACK, 101, 301, 0).valid(Established, Established),
    ]
    "SYN with data, not taken", "RFC 7413 section 3", Strict: [
        a(SYN, 0, 0, 100).valid(SynSent, Listen),
        b(SA, 0, 1, 0).valid(SynSent, SynReceived),
        a(PA, 1, 1, 100).valid(Established, Established),
        b(ACK, 1, 101, 0).valid(Established, Established),
    ]
    "simultaneous open", "RFC 9293 section 3.5, figure 7", Strict: [
        OPEN[0],
        b(SYN, 0, 0, 0).valid(SynSent, SynSent),
        a(SA, 0, 1, 0).valid(SynReceived, SynSent),
        b(SA, 0, 1, 0).valid(Established, Established),
        a(PA, 1, 1, 10).valid(Established, Established),
    ]
    "simultaneous open, the other first", "RFC 9293 section 3.5, figure 7", Strict: [
        OPEN[0],
        b(SYN, 0, 0, 0).valid(SynSent, SynSent),
        b(SA, 0, 1, 0).valid(SynSent, SynReceived),
        a(SA, 0, 1, 0).valid(Established, Established),
    ]
    "split handshake", "RFC 9293 section 3.5", Strict: [
        OPEN[0],
        b(ACK, 500, 1, 0).refused(Drops::BadState, SynSent, Listen),
        b(SYN, 0, 0, 0).valid(SynSent, SynSent),
        a(SA, 0, 1, 0).valid(SynReceived, SynSent),
        b(ACK, 1, 1, 0).refused(Drops::BadState, SynReceived, SynSent),
    ]
    "SYN-ACK that answers nothing", "RFC 9293 section 3.10.7.3", Normal: [
        OPEN[0],
        b(SA, 0, 0, 0).refused(Drops::BadAcknowledgment, SynSent, Listen),
        b(SA, 0, 2, 0).refused(Drops::BadAcknowledgment, SynSent, Listen),
        a(SA, 0, 1, 0).refused(Drops::BadState, SynSent, Listen),
    ]
    "SYN-ACK with another number", "RFC 4987 section 3.6", Strict: [
        OPEN[0], OPEN[1],
        b(SA, 9_000, 1, 0).valid(SynSent, SynReceived),
        a(ACK, 1, 9_001, 0).valid(Established, Established),
    ]
    "SYN-ACK with another number and acknowledgment", "RFC 9293 section 3.10.7.3", Strict: [
        OPEN[0], OPEN[1],
        b(SA, 9_000, 7, 0).refused(Drops::BadAcknowledgment, SynSent, SynReceived),
        OPEN[2],
    ]
    "data before the handshake is done", "RFC 9293 section 3.5", Strict: [
        OPEN[0],
        a(PA, 1, 1, 10).refused(Drops::BadState, SynSent, Listen),
        b(PA, 1, 1, 10).refused(Drops::BadState, SynSent, Listen),
        OPEN[1],
        a(PA, 1, 0, 10).refused(Drops::BadAcknowledgment, SynSent, SynReceived),
        a(PA, 1, 2, 10).refused(Drops::BadAcknowledgment, SynSent, SynReceived),
        a(PA, 1, 1, 10).valid(Established, Established),
    ]
    "the last acknowledgment is lost", "RFC 9293 section 3.5", Strict: [
        OPEN[0], OPEN[1],
        a(PA, 1, 1, 10).valid(Established, Established),
    ]
    "FIN with the last acknowledgment", "RFC 9293 section 3.10.7.4", Strict: [
        OPEN[0], OPEN[1],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
    ]
    "FIN in SYN_RECEIVED", "RFC 9293 section 3.3.2, figure 5", Strict: [
        OPEN[0], OPEN[1],
        b(FA, 1, 1, 0).valid(SynSent, FinWait1),
        a(ACK, 1, 1, 0).valid(Established, FinWait1),
        a(ACK, 1, 2, 0).valid(CloseWait, FinWait2),
    ]
    "FIN in SYN_RECEIVED, acknowledged at once", "RFC 9293 section 3.3.2, figure 5", Strict: [
        OPEN[0], OPEN[1],
        b(FA, 1, 1, 0).valid(SynSent, FinWait1),
        a(FA, 1, 2, 0).valid(LastAck, FinWait2),
        b(ACK, 2, 2, 0).valid(Closed, TimeWait),
    ]
    "FIN in a simultaneous open", "RFC 9293 section 3.3.2, figure 5", Strict: [
        OPEN[0],
        b(SYN, 0, 0, 0).valid(SynSent, SynSent),
        a(SA, 0, 1, 0).valid(SynReceived, SynSent),
        a(FA, 1, 1, 0).valid(FinWait1, SynSent),
        b(SA, 0, 1, 0).valid(FinWait1, Established),
        b(ACK, 1, 2, 0).valid(FinWait2, CloseWait),
    ]
    "FIN before the SYN is answered", "RFC 9293 section 3.10.7.3", Loose: [
        OPEN[0],
        a(FA, 1, 1, 0).refused(Drops::BadState, SynSent, Listen),
        b(FA, 1, 1, 0).refused(Drops::BadState, SynSent, Listen),
    ]
    "half-open connection found and aborted", "RFC 9293 section 3.5.1, figure 9", Strict: [
        OPEN[0],
        b(ACK, 4_000, 80_000, 0).ignored(SynSent, Listen),
        a(RST, 79_000, 0, 0).refused(Drops::BadReset, SynSent, Listen),
        a(RST, 80_000, 0, 0).ignored(SynSent, Listen),
        a(SYN, 0, 0, 0).ignored(SynSent, Listen),
        OPEN[1],
    ]

    // Resets.
    "connection refused", "RFC 9293 section 3.10.7.3", Strict: [
        OPEN[0],
        b(RST, 0, 0, 0).refused(Drops::BadReset, SynSent, Listen),
        b(RA, 0, 0, 0).refused(Drops::BadReset, SynSent, Listen),
        b(RA, 0, 2, 0).refused(Drops::BadReset, SynSent, Listen),
        b(RA, 0, 1, 0).valid(Closed, Closed),
        a(SYN, 0, 0, 0).reopens(),
    ]
    "client gives up", "RFC 9293 section 3.10.4", Strict: [
        OPEN[0],
        a(RST, 0, 0, 0).refused(Drops::BadReset, SynSent, Listen),
        a(RST, 1, 0, 0).valid(Closed, Closed),
    ]
    "client resets the SYN-ACK", "RFC 9293 section 3.5, figure 8", Strict: [
        OPEN[0], OPEN[1],
        a(RST, 5_000, 0, 0).refused(Drops::BadReset, SynSent, SynReceived),
        a(RST, 2, 0, 0).ignored(SynSent, SynReceived),
        a(RST, 1, 0, 0).valid(Closed, Closed),
    ]
    "server resets its SYN-ACK", "RFC 5961 section 3.2", Strict: [
        OPEN[0], OPEN[1],
        b(RST, 700, 0, 0).refused(Drops::BadReset, SynSent, SynReceived),
        b(RST, 1, 0, 0).valid(Closed, Closed),
    ]
    "reset while both ends open", "RFC 9293 section 3.10.7.3", Strict: [
        OPEN[0],
        b(SYN, 0, 0, 0).valid(SynSent, SynSent),
        b(RST, 1, 0, 0).refused(Drops::BadReset, SynSent, SynSent),
        b(RA, 1, 1, 0).valid(Closed, Closed),
    ]
    "reset with the number expected", "RFC 5961 section 3.2", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(RST, 1, 0, 0).valid(Closed, Closed),
        b(RST, 1, 0, 0).ignored(Closed, Closed),
        a(PA, 1, 1, 10).ignored(Closed, Closed),
        b(RST, 5_000, 0, 0).refused(Drops::BadReset, Closed, Closed),
        a(PA, 9_000, 1, 10).refused(Drops::BadSequence, Closed, Closed),
        b(SA, 0, 1, 0).ignored(Closed, Closed),
        b(SYN, 0, 0, 0).reopens(),
    ]
    "reset behind data under way", "RFC 5961 section 3.2", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 300).valid(Established, Established),
        a(RA, 301, 1, 0).valid(Closed, Closed),
    ]
    "reset in the window, settled by a challenge", "RFC 5961 section 3.2", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(RST, 500, 0, 0).ignored(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(RST, 1, 0, 0).valid(Closed, Closed),
    ]
    "reset outside the window", "RFC 5961 section 3.2", Sloppy: [
        a(SYN, 0, 0, 0).valid(SynSent, Listen),
        b(RST, 123_456, 0, 0).valid(Closed, Closed),
        b(RST, 123_456, 0, 0).ignored(Closed, Closed),
    ]
    "resets outside the window", "RFC 5961 section 3.2", Loose: [
        OPEN[0], OPEN[1], OPEN[2],
        a(RST, 0, 0, 0).refused(Drops::BadReset, Established, Established),
        a(RST, 1_001, 0, 0).refused(Drops::BadReset, Established, Established),
        b(RST, 0x8000_0000, 0, 0).refused(Drops::BadReset, Established, Established),
        b(RST, 1_000, 0, 0).ignored(Established, Established),
    ]
    "reset of a half-closed connection", "RFC 9293 section 3.10.7.4", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(ACK, 1, 2, 0).valid(FinWait2, CloseWait),
        b(PA, 1, 2, 100).valid(FinWait2, CloseWait),
        a(RST, 2, 0, 0).valid(Closed, Closed),
    ]

    // A SYN in an open connection.
    "SYN in an open connection", "RFC 5961 section 4.2", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(SYN, 400, 0, 0).window(65_535).scale(14).ignored(Established, Established),
        b(SYN, 0x4000_0000, 0, 0).ignored(Established, Established),
        b(SA, 0x4000_0000, 1, 0).ignored(Established, Established),
        // The windows are what they were.
        a(PA, 1, 1, 1_001).refused(Drops::BadSequence, Established, Established),
        a(PA, 1, 1, 1_000).valid(Established, Established),
    ]
    "restarted client", "RFC 5961 section 4.2", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 100).valid(Established, Established),
        b(ACK, 1, 101, 0).valid(Established, Established),
        a(SYN, 0x7000_0000, 0, 0).ignored(Established, Established),
        b(ACK, 1, 101, 0).valid(Established, Established),
        a(RST, 101, 0, 0).valid(Closed, Closed),
        a(SYN, 0x7000_0000, 0, 0).reopens(),
    ]
    "client begins anew before the handshake is done", "RFC 5961 section 4.2", Strict: [
        OPEN[0], OPEN[1],
        a(SYN, 0x7000_0000, 0, 0).ignored(SynSent, SynReceived),
        b(ACK, 1, 1, 0).valid(SynSent, SynReceived),
        a(RST, 1, 0, 0).valid(Closed, Closed),
    ]

    // Closing.
    "a closes first", "RFC 9293 section 3.6, figure 12", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(ACK, 1, 2, 0).valid(FinWait2, CloseWait),
        b(FA, 1, 2, 0).valid(FinWait2, LastAck),
        a(ACK, 2, 2, 0).valid(TimeWait, Closed),
        b(FA, 1, 2, 0).valid(TimeWait, Closed),
        a(ACK, 2, 2, 0).ignored(TimeWait, Closed),
        b(RST, 2, 0, 0).ignored(TimeWait, Closed),
        b(RST, 5_000, 0, 0).refused(Drops::BadReset, TimeWait, Closed),
    ]
    "b closes first", "RFC 9293 section 3.6, figure 12", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(FA, 1, 1, 0).valid(Established, FinWait1),
        a(ACK, 1, 2, 0).valid(CloseWait, FinWait2),
        a(FA, 1, 2, 0).valid(LastAck, FinWait2),
        b(ACK, 2, 2, 0).valid(Closed, TimeWait),
    ]
    "FIN answered by FIN", "RFC 9293 section 3.6", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(FA, 1, 1, 200).valid(Established, FinWait1),
        a(FA, 1, 202, 300).valid(LastAck, FinWait2),
        b(ACK, 202, 302, 0).valid(Closed, TimeWait),
    ]
    "simultaneous close", "RFC 9293 section 3.6, figure 13", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(FA, 1, 1, 0).valid(FinWait1, FinWait1),
        a(ACK, 2, 2, 0).valid(Closing, FinWait2),
        b(ACK, 2, 2, 0).valid(TimeWait, TimeWait),
    ]
    "simultaneous close, the other first", "RFC 9293 section 3.6, figure 13", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(FA, 1, 1, 0).valid(Established, FinWait1),
        a(FA, 1, 1, 0).valid(FinWait1, FinWait1),
        b(ACK, 2, 2, 0).valid(FinWait2, Closing),
        a(ACK, 2, 2, 0).valid(TimeWait, TimeWait),
    ]
    "half-close that lives on", "RFC 1122 section 4.2.2.13", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(PA, 1, 1, 500).valid(FinWait1, Established),
        a(ACK, 2, 501, 0).valid(FinWait1, Established),
        a(FA, 1, 501, 0).valid(FinWait1, Established),
        b(PA, 501, 2, 500).valid(FinWait2, CloseWait),
        a(ACK, 2, 1_001, 0).valid(FinWait2, CloseWait),
        b(PA, 1_001, 2, 500).valid(FinWait2, CloseWait),
        a(PA, 2, 1_501, 1).refused(Drops::BadSequence, FinWait2, CloseWait),
        b(FA, 1_501, 2, 0).valid(FinWait2, LastAck),
        a(ACK, 2, 1_501, 0).valid(FinWait2, LastAck),
        a(ACK, 2, 1_502, 0).valid(TimeWait, Closed),
    ]
    "FIN sent again with data before it", "RFC 9293 section 3.8.1", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 100).valid(Established, Established),
        a(FA, 101, 1, 0).valid(FinWait1, Established),
        a(FA, 1, 1, 100).valid(FinWait1, Established),
        a(FA, 1, 1, 50).refused(Drops::BadSequence, FinWait1, Established),
        a(FA, 102, 1, 0).refused(Drops::BadSequence, FinWait1, Established),
        b(ACK, 1, 101, 0).valid(FinWait1, Established),
        b(ACK, 1, 102, 0).valid(FinWait2, CloseWait),
    ]
    "FIN before the end of what was sent", "RFC 9293 section 3.10.7.4", Normal: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 100).valid(Established, Established),
        a(FA, 50, 1, 0).refused(Drops::BadSequence, Established, Established),
        a(FA, 2_000, 1, 0).refused(Drops::BadSequence, Established, Established),
        a(FA, 101, 2, 0).refused(Drops::BadAcknowledgment, Established, Established),
        a(FA, 101, 1, 0).valid(FinWait1, Established),
    ]
    "FIN behind a full window", "RFC 9293 section 3.8.6", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 1_000).valid(Established, Established),
        a(FA, 1_001, 1, 0).valid(FinWait1, Established),
        a(ACK, 1_002, 1, 0).valid(FinWait1, Established),
        b(ACK, 1, 1_002, 0).window(0).valid(FinWait2, CloseWait),
    ]
    "TIME_WAIT and a newer SYN", "RFC 9293 section 3.6.1", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(FA, 1, 1, 0).valid(Established, FinWait1),
        a(FA, 1, 2, 0).valid(LastAck, FinWait2),
        b(ACK, 2, 2, 0).valid(Closed, TimeWait),
        a(SYN, 0, 0, 0).ignored(Closed, TimeWait),
        a(SYN, 1, 0, 0).ignored(Closed, TimeWait),
        a(SA, 9, 2, 0).ignored(Closed, TimeWait),
        a(SYN, 2, 0, 0).reopens(),
    ]
    "TIME_WAIT and a SYN to the end that is closed", "RFC 9293 section 3.6.1", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(FA, 1, 2, 0).valid(FinWait2, LastAck),
        a(SYN, 9_000, 0, 0).ignored(FinWait2, LastAck),
        a(ACK, 2, 2, 0).valid(TimeWait, Closed),
        a(SYN, 0xf000_0000, 0, 0).reopens(),
    ]
    "TIME_WAIT on both ends and a newer SYN", "RFC 9293 section 3.6.1", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(FA, 1, 1, 0).valid(FinWait1, Established),
        b(FA, 1, 1, 0).valid(FinWait1, FinWait1),
        a(ACK, 2, 2, 0).valid(Closing, FinWait2),
        b(ACK, 2, 2, 0).valid(TimeWait, TimeWait),
        b(SYN, 0, 0, 0).ignored(TimeWait, TimeWait),
        b(SYN, 70_000, 0, 0).reopens(),
    ]

    // Windows.
    "beyond the window", "RFC 9293 section 3.10.7.4", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 1_001).refused(Drops::BadSequence, Established, Established),
        a(PA, 1_001, 1, 1).refused(Drops::BadSequence, Established, Established),
        a(ACK, 0x8000_0001, 1, 0).refused(Drops::BadSequence, Established, Established),
        a(PA, 1, 1, 1_000).valid(Established, Established),
        b(ACK, 1, 1_002, 0).refused(Drops::BadAcknowledgment, Established, Established),
        b(ACK, 1, 0x8000_0000, 0).refused(Drops::BadAcknowledgment, Established, Established),
        b(ACK, 1, 1_001, 0).valid(Established, Established),
    ]
    "beyond the window, normal", "RFC 9293 section 3.10.7.4", Normal: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 1_001).ignored(Established, Established),
        b(ACK, 1, 2, 0).ignored(Established, Established),
        a(PA, 1, 1, 1_000).valid(Established, Established),
    ]
    "late and duplicate", "RFC 9293 section 3.10.7.4", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 1_000).valid(Established, Established),
        b(ACK, 1, 1_001, 0).valid(Established, Established),
        a(PA, 1_001, 1, 1_000).valid(Established, Established),
        b(ACK, 1, 2_001, 0).valid(Established, Established),
        // Sent again, and held up on its way.
        a(PA, 1_001, 1, 1_000).valid(Established, Established),
        a(PA, 1, 1, 1_000).ignored(Established, Established),
        b(ACK, 1, 1_001, 0).valid(Established, Established),
        // Nobody can have held this up for so long.
        a(ACK, 0xc000_0000, 1, 0).refused(Drops::BadSequence, Established, Established),
        b(ACK, 1, 0xc000_0000, 0).refused(Drops::BadAcknowledgment, Established, Established),
    ]
    "scaled windows", "RFC 7323 section 2.2", Strict: [
        a(SYN, 0, 0, 0).scale(2).valid(SynSent, Listen),
        b(SA, 0, 1, 0).scale(3).valid(SynSent, SynReceived),
        // The window of a SYN is not scaled.
        a(PA, 1, 1, 1_001).refused(Drops::BadSequence, SynSent, SynReceived),
        a(ACK, 1, 1, 0).valid(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(PA, 1, 1, 8_001).refused(Drops::BadSequence, Established, Established),
        a(PA, 1, 1, 8_000).valid(Established, Established),
        b(PA, 1, 1, 4_001).refused(Drops::BadSequence, Established, Established),
        b(PA, 1, 1, 4_000).valid(Established, Established),
    ]
    "scale in one SYN only", "RFC 7323 section 2.2", Strict: [
        a(SYN, 0, 0, 0).scale(7).valid(SynSent, Listen),
        OPEN[1], OPEN[2],
        b(PA, 1, 1, 1_001).refused(Drops::BadSequence, Established, Established),
        b(PA, 1, 1, 1_000).valid(Established, Established),
    ]
    "scale in the SYN-ACK only", "RFC 7323 section 2.2", Strict: [
        OPEN[0],
        b(SA, 0, 1, 0).scale(7).valid(SynSent, SynReceived),
        OPEN[2],
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(PA, 1, 1, 1_001).refused(Drops::BadSequence, Established, Established),
    ]
    "scale beyond 14", "RFC 7323 section 2.3", Strict: [
        a(SYN, 0, 0, 0).scale(255).valid(SynSent, Listen),
        b(SA, 0, 1, 0).scale(0).valid(SynSent, SynReceived),
        a(ACK, 1, 1, 0).window(1).valid(Established, Established),
        b(PA, 1, 1, 16_385).refused(Drops::BadSequence, Established, Established),
        b(PA, 1, 1, 16_384).valid(Established, Established),
    ]
    "scaled simultaneous open", "RFC 7323 section 2.2", Strict: [
        a(SYN, 0, 0, 0).scale(4).valid(SynSent, Listen),
        b(SYN, 0, 0, 0).scale(1).valid(SynSent, SynSent),
        a(SA, 0, 1, 0).scale(4).valid(SynReceived, SynSent),
        b(SA, 0, 1, 0).scale(1).valid(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(PA, 1, 1, 2_001).refused(Drops::BadSequence, Established, Established),
        a(PA, 1, 1, 2_000).valid(Established, Established),
    ]
    "selective acknowledgment", "RFC 2018 section 3", Strict: [
        a(SYN, 0, 0, 0).sack_permitted().scale(7).valid(SynSent, Listen),
        b(SA, 0, 1, 0).sack_permitted().scale(7).valid(SynSent, SynReceived),
        a(ACK, 1, 1, 0).valid(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(PA, 1, 1, 500).valid(Established, Established),
        a(PA, 501, 1, 500).valid(Established, Established),
        b(ACK, 1, 1, 0).sack(&[(501, 1_001)]).valid(Established, Established),
        // Never sent.
        b(ACK, 1, 1, 0).sack(&[(501, 1_002)]).refused(Drops::BadAcknowledgment, Established, Established),
        // A duplicate is reported by a block below the acknowledgment (RFC 2883).
        b(ACK, 1, 1_001, 0).sack(&[(1, 501)]).valid(Established, Established),
    ]
    "blocks nobody agreed on", "RFC 2018 section 2", Strict: [
        a(SYN, 0, 0, 0).sack_permitted().valid(SynSent, Listen),
        OPEN[1], OPEN[2],
        b(ACK, 1, 1, 0).sack(&[(501, 1_002)]).valid(Established, Established),
    ]
    "the highest block counts", "RFC 2018 section 3", Strict: [
        a(SYN, 0, 0, 0).sack_permitted().scale(14).valid(SynSent, Listen),
        b(SA, 0, 1, 0).sack_permitted().scale(14).valid(SynSent, SynReceived),
        a(ACK, 1, 1, 0).window(0).valid(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        // 600,000 bytes lost but for the last.
        a(PA, 540_001, 1, 60_000).valid(Established, Established),
        // A window so far behind is an old one, unless what lies above it is acknowledged.
        b(ACK, 1, 1, 0).sack(&[(100, 200), (540_001, 600_001)]).valid(Established, Established),
    ]
    "window closed and probed", "RFC 9293 section 3.8.6.1", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(PA, 1, 1, 1_000).valid(Established, Established),
        b(ACK, 1, 1_001, 0).window(0).valid(Established, Established),
        a(PA, 1_001, 1, 2).refused(Drops::BadSequence, Established, Established),
        a(ACK, 1_001, 1, 1).valid(Established, Established),
        b(ACK, 1, 1_001, 0).window(0).valid(Established, Established),
        a(ACK, 1_001, 1, 1).valid(Established, Established),
        a(ACK, 1_000, 1, 0).valid(Established, Established),
        b(ACK, 1, 1_002, 0).window(500).valid(Established, Established),
        a(PA, 1_002, 1, 500).valid(Established, Established),
    ]
    "keep-alive", "RFC 1122 section 4.2.3.6", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        a(ACK, 0, 1, 0).valid(Established, Established),
        b(ACK, 1, 1, 0).valid(Established, Established),
        a(ACK, 0, 1, 1).valid(Established, Established),
        b(ACK, 0, 1, 1).valid(Established, Established),
    ]
    "a window that shrinks", "RFC 9293 section 3.8.6", Strict: [
        OPEN[0], OPEN[1], OPEN[2],
        b(ACK, 1, 1, 0).window(100).valid(Established, Established),
        a(PA, 1, 1, 1_000).valid(Established, Established),
    ]

    // Flags.
    "contradicting flags", "RFC 9293 section 3.1", Loose: [
        OPEN[0], OPEN[1], OPEN[2],
        a(0, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(PSH, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(URG, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(FIN, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(SYN | FIN, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(SA | FIN, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(SYN | RST, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(FIN | RST, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(FA | RST, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(RA | URG, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(0xff, 1, 1, 0).refused(Drops::BadFlags, Established, Established),
        a(PA | URG | 0xc0, 1, 1, 0).valid(Established, Established),
    ]
    "christmas tree first", "RFC 9293 section 3.1", Sloppy: [a(0xff, 0, 0, 0).refused(Drops::BadFlags, Closed, Closed)]

    // In mid-stream.
    "picked up strictly", "RFC 9293 section 3.5", Strict: [a(ACK, 1, 1, 0).refused(Drops::NoFlow, Closed, Closed)]
    "picked up normally", "RFC 9293 section 3.5", Normal: [a(FA, 1, 1, 0).refused(Drops::NoFlow, Closed, Closed)]
    "SYN-ACK first", "RFC 9293 section 3.5", Loose: [a(SA, 1, 1, 0).refused(Drops::NoFlow, Closed, Closed)]
    "RST first", "RFC 9293 section 3.5", Sloppy: [a(RST, 1, 1, 0).refused(Drops::NoFlow, Closed, Closed)]
    "picked up", "RFC 9293 section 3.4", Loose: [
        a(PA, 5_000, 9_000, 100).valid(Established, Listen),
        a(PA, 5_100, 9_000, 100).valid(Established, Listen),
        b(PA, 9_000, 5_200, 1_400).valid(Established, Established),
        // What nobody saw is acknowledged.
        a(ACK, 5_200, 12_000, 0).valid(Established, Established),
        b(FA, 12_000, 5_200, 0).valid(Established, FinWait1),
        a(FA, 5_200, 12_001, 0).valid(LastAck, FinWait2),
        b(ACK, 12_001, 5_201, 0).valid(Closed, TimeWait),
    ]
    "picked up by a FIN", "RFC 9293 section 3.6", Loose: [
        a(FA, 5_000, 9_000, 0).valid(FinWait1, Listen),
        b(ACK, 9_000, 5_001, 0).valid(FinWait2, CloseWait),
        b(FA, 9_000, 5_001, 0).valid(FinWait2, LastAck),
        a(ACK, 5_001, 9_001, 0).valid(TimeWait, Closed),
    ]
    "picked up and reset", "RFC 5961 section 3.2", Loose: [
        a(ACK, 5_000, 9_000, 0).valid(Established, Listen),
        b(RST, 0x9000_0000, 0, 0).refused(Drops::BadReset, Established, Listen),
        b(RST, 9_000, 0, 0).valid(Closed, Closed),
    ]

    // One direction is all that is seen.
    "only the client's segments", "RFC 9293 section 3.5", Sloppy: [
        OPEN[0],
        a(ACK, 1, 1, 0).valid(Established, Established),
        a(PA, 70_000, 0x8000_0000, 100).valid(Established, Established),
        a(SYN, 5, 0, 0).ignored(Established, Established),
        a(FA, 3, 3, 0).valid(FinWait1, Established),
        a(ACK, 4, 4, 0).valid(FinWait1, Established),
        a(SYN, 0, 0, 0).reopens(),
    ]
    "only the server's segments", "RFC 9293 section 3.5", Sloppy: [
        a(SA, 0, 1, 0).valid(SynReceived, SynSent),
        a(PA, 1, 90, 10).valid(Established, Established),
        a(RST, 77, 0, 0).valid(Closed, Closed),
        a(SYN, 0, 0, 0).reopens(),
    ]
    "both directions without numbers", "RFC 9293 section 3.6", Sloppy: [
        OPEN[0],
        b(SA, 0, 50, 0).valid(SynSent, SynReceived),
        a(ACK, 7, 7, 0).valid(Established, Established),
        b(FA, 5, 5, 0).valid(Established, FinWait1),
        a(ACK, 5, 5, 0).valid(CloseWait, FinWait2),
        a(FA, 5, 5, 0).valid(LastAck, FinWait2),
        b(ACK, 5, 5, 0).valid(Closed, TimeWait),
        a(FA, 5, 5, 0).valid(Closed, TimeWait),
        b(ACK, 5, 5, 0).ignored(Closed, TimeWait),
    ]
    "picked up without numbers", "RFC 9293 section 3.6", Sloppy: [
        a(ACK, 0, 0, 0).valid(Established, Established),
        b(FA, 0, 0, 0).valid(Established, FinWait1),
    ]
    "picked up by a FIN without numbers", "RFC 9293 section 3.6", Sloppy: [
        a(FA, 0, 0, 0).valid(FinWait1, Established),
        b(SYN, 0, 0, 0).ignored(FinWait1, Established),
    ]
}
