//! Flows: the per-worker table of connections, what is known of each, and the machines that follow their protocols.
//!
//! A flow's first packet is judged by the stages; what they decide is compiled into its entry, and every later packet of the
//! flow, in either direction, replays it. This room owns entries and protocol state. It sees no frames, takes no locks and
//! knows no rules: time, facts and decisions are handed in. What workers share (`shared`, `limits`) is written to by atomic
//! operations, when a flow begins or ends and never for each of its packets.

pub mod cookie;
pub mod entry;
pub mod file;
pub mod filter;
pub mod fragments;
pub mod limits;
pub mod region;
pub mod shared;
pub mod source;
pub mod table;
pub mod tcp;
pub mod timeout;

/// Index of a flow's direction: the way its first packet went.
pub const ORIGINAL: usize = 0;
/// Index of a flow's direction: the way back.
pub const REPLY: usize = 1;

crate::choice! {
    /// How closely a flow is held to its protocol.
    pub enum Tracking {
        /// What the protocol's state and windows do not allow is dropped.
        Strict = "strict",
        /// Windows are followed, but a segment outside them passes unless it could change the connection's state.
        Normal = "normal",
        /// As normal, and a connection may be picked up in mid-stream.
        Loose = "loose",
        /// No windows, and one direction may be all that is seen: for asymmetric paths.
        Sloppy = "sloppy",
    }
}

crate::lines! {
    /// Why connection tracking drops.
    pub enum Drops {
        /// It belongs to no flow and may not begin one: a TCP segment without SYN, an echo reply nobody asked for.
        NoFlow = "no-flow",
        /// Its TCP flags contradict each other.
        BadFlags = "bad-flags",
        /// Its TCP or UDP checksum is wrong, and it would begin, close or abort a flow.
        BadChecksum = "bad-checksum",
        /// Its sequence number lies outside the receiver's window.
        BadSequence = "bad-sequence",
        /// It acknowledges what was never sent, or what was acknowledged long ago.
        BadAcknowledgment = "bad-acknowledgment",
        /// A reset whose sequence number is not in the receiver's window (RFC 5961 section 3).
        BadReset = "bad-reset",
        /// It contradicts the connection's state: a SYN-ACK that answers nothing, data before the handshake is done.
        BadState = "bad-state",
        /// An ICMP error about a flow that does not exist, or that quotes what the flow never sent (RFC 5927).
        BadError = "bad-error",
        /// All entries are taken by flows that may not be evicted.
        TableFull = "table-full",
        /// The packets of its way back would be those of a flow that there is: one of the two is translated.
        Taken = "taken",
        /// It cannot be translated: a fragment of SCTP whose ports would change.
        Untranslatable = "untranslatable",
        /// Its source has as many flows as it may have.
        TooManyFlows = "too-many-flows",
        /// Its source began as many flows within a second as it may.
        TooManyNewFlows = "too-many-new-flows",
        /// The rule that allows it has as many flows as it may have, or as many of this source.
        RuleTooManyFlows = "rule-too-many-flows",
        /// The rule that allows it began as many flows within a second as it may, or as many of this source.
        RuleTooManyNewFlows = "rule-too-many-new-flows",
    }
}
