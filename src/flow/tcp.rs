//! The TCP machine: what a connection's two ends are known to be in, and which segments that allows.

use bytemuck::{Pod, Zeroable};

use super::timeout::Class;
use super::{Drops, Tracking};

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
// TEMPORARY
impl Segment {
    pub fn read(_: &[u8]) -> Option<Segment> {
        None
    }
}
pub fn open(_: &Segment, _: Tracking) -> Result<(States, Tcp, Class), Drops> {
    Err(Drops::NoFlow)
}
pub fn follow(_: &mut States, _: &mut Tcp, _: Class, _: usize, _: &Segment, _: Tracking) -> Verdict {
    Verdict::Ignore
}
pub fn is_half_open(_: States) -> bool {
    false
}
pub fn needs_checksum(_: u8) -> bool {
    false
}
pub fn quotes(_: &Tcp, _: usize, _: u32) -> bool {
    false
}
