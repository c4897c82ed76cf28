//! The SYN proxy: handshakes that are finished with the client before the server hears of them, so that a flood of forged SYNs
//! reaches neither the server nor the flow table.
//!
//! Owns the bytes of such a handshake and the translation of numbers afterwards; when to do it is the tracker's to decide.
//!
//! 1. A SYN the rules allow is answered by a cookie (`challenge`), made of its own frame. Nothing is remembered. The window
//!    offered is zero, so that the client sends no data before there is a server to take them.
//! 2. A segment that acknowledges a cookie (`prove`) becomes the SYN to the server (`open`). So does each that comes while the
//!    server has not answered: the client's own retransmissions and probes are the clock of ours. A client that has nothing to
//!    send repeats nothing; then one lost SYN to the server loses the connection.
//! 3. The server's SYN-ACK becomes the client's window update (`welcome`), and a copy of it, where there is a buffer, our
//!    acknowledgment to the server (`acknowledge`). Either may get lost: the client's first data acknowledge too, a SYN-ACK
//!    that comes again is answered again, and a client's probe is answered with the window by the server itself.
//!    A reset becomes one that the client believes (`refuse`).
//! 4. From then on the server's sequence numbers, their acknowledgments and SACK blocks, and the server's timestamps and their
//!    echoes are moved by a constant each (`translate`), and the server's windows from its scale to the one the client was
//!    told. The tracker sees the server's numbers on both sides.
//!
//! What the client may be told before the server is known: a segment size from the configuration; window scale and SACK only
//! where its timestamps remember them. A server that then refuses timestamps or SACK gets options it ignores; of one that
//! refuses window scaling the client's windows appear smaller than they are. ECN is refused.

use crate::flow::cookie::{Cookies, Offer};
use crate::flow::{ORIGINAL, REPLY};
use crate::packet::meta::flag;
use crate::packet::reply::{Head, Options, can_answer, replace, respond};
use crate::packet::{Frame, Meta};
use crate::wire::checksum::Update;
use crate::wire::tcp::{self, ACK, RST, SYN, Tcp, TcpMut, option};

/// The shift of windows that clients are told: 8 MB.
pub const SCALE: u8 = 7;

/// What a connection's numbers are moved by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Added to the server's sequence numbers.
    pub sequence: u32,
    /// Added to the server's timestamps.
    pub stamp: u32,
    /// The server's shift of windows, if the client was told `SCALE`.
    pub scale: Option<u8>,
}

/// Makes a SYN the SYN-ACK with a cookie. `domain` says where its addresses are valid, `mss` is the segment size to offer.
/// False, and nothing changed, if it is no SYN that may be answered.
pub fn challenge(frame: &mut Frame, meta: &mut Meta, cookies: &Cookies, domain: u32, mss: u16, now: u64) -> bool {
    if meta.detail[0] & (SYN | ACK | RST | tcp::FIN) != SYN || !can_answer(frame, meta) {
        return false;
    }
    let Some(segment) = frame.bytes().get(meta.l4()..meta.end()) else { return false };
    let Some(header) = Tcp::parse(segment) else { return false };
    let (sequence, offered) = (header.sequence(), Options::read(segment));
    // RFC 9293 section 3.7.1, and RFC 8200 section 8.3 for the sizes that hold without the option.
    let size = offered.mss.unwrap_or(if meta.has(flag::IPV4) { 536 } else { 1220 });
    let mut options = Options { mss: Some(mss), ..Options::default() };
    if let Some((stamp, _)) = offered.stamps {
        let offer = Offer { scale: offered.scale, sack: offered.sack };
        options.stamps = Some((offer.stamp(now), stamp));
        options.scale = offer.scale.map(|_| SCALE);
        options.sack = offer.sack;
    }
    let cookie = cookies.make(meta, domain, sequence, size, now);
    let acknowledgment = sequence.wrapping_add(1);
    respond(frame, meta, &Head { sequence: cookie, acknowledgment, flags: SYN | ACK, window: 0, options })
}

/// What a client's segment shows of the handshake that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The number of the client's SYN.
    pub sequence: u32,
    /// The cookie: the number of our SYN-ACK.
    pub cookie: u32,
    /// The client's segment size.
    pub mss: u16,
    /// What else the client had offered.
    pub offer: Offer,
    /// The client's timestamp, and ours that it echoes.
    pub stamps: Option<(u32, u32)>,
    /// The client's window, as it stands in the header.
    pub window: u16,
}

/// What a segment proves; `None` if it does not acknowledge a cookie of ours.
pub fn prove(frame: &Frame, meta: &Meta, cookies: &Cookies, domain: u32, now: u64) -> Option<Proof> {
    if meta.detail[0] & (SYN | ACK | RST) != ACK {
        return None;
    }
    let segment = frame.bytes().get(meta.l4()..meta.end())?;
    let header = Tcp::parse(segment)?;
    let cookie = header.acknowledgment().wrapping_sub(1);
    // A probe of a closed window has the number before (RFC 9293 section 3.8.6.1 leaves it open, hosts do so).
    let sequences = [header.sequence().wrapping_sub(1), header.sequence()].into_iter();
    let (sequence, mss) = sequences
        .filter_map(|sequence| Some((sequence, cookies.check(meta, domain, sequence, cookie, now)?)))
        .next()?;
    if !can_answer(frame, meta) {
        return None;
    }
    let stamps = Options::read(segment).stamps;
    let offer = stamps.map_or(Offer::default(), |(_, ours)| Offer::of_stamp(ours));
    Some(Proof { sequence, cookie, mss, offer, stamps, window: header.window() })
}

/// Makes the segment that proved a handshake the SYN to the server, which is what the client had sent, as far as is known.
/// False, and nothing changed, if there is no room for it.
pub fn open(frame: &mut Frame, meta: &mut Meta, proof: &Proof) -> bool {
    // RFC 7323 section 2.2: the window of a SYN is not scaled.
    let window = u32::from(proof.window) << proof.offer.scale.unwrap_or(0);
    let options = Options {
        mss: Some(proof.mss),
        scale: proof.offer.scale,
        sack: proof.offer.sack,
        stamps: proof.stamps.map(|(client, _)| (client, 0)),
    };
    let head = Head { sequence: proof.sequence, flags: SYN, window: narrow(window), options, acknowledgment: 0 };
    replace(frame, meta, &head)
}

/// By what numbers move, from the server's SYN-ACK: `cookie` and `stamp` are our own number and timestamp, `scaled` tells
/// whether the client was told of window scaling. `None` if it is no whole SYN-ACK.
pub fn shift(frame: &Frame, meta: &Meta, cookie: u32, stamp: u32, scaled: bool) -> Option<Shift> {
    let segment = frame.bytes().get(meta.l4()..meta.end())?;
    let header = Tcp::parse(segment)?;
    let theirs = Options::read(segment);
    (header.flags() & (SYN | ACK | RST) == SYN | ACK).then(|| Shift {
        sequence: cookie.wrapping_sub(header.sequence()),
        stamp: theirs.stamps.map_or(0, |(value, _)| stamp.wrapping_sub(value)),
        scale: scaled.then(|| theirs.scale.unwrap_or(0)),
    })
}

/// Makes the server's SYN-ACK the segment that opens the window to the client. False, and nothing changed, if it is none.
pub fn welcome(frame: &mut Frame, meta: &mut Meta, shift: &Shift) -> bool {
    let Some((header, options)) = read(frame, meta) else { return false };
    // RFC 7323 section 2.2: the window of a SYN-ACK is not scaled, that of what it becomes is.
    let window = header.window >> if shift.scale.is_some() { SCALE } else { 0 };
    let stamps = options.stamps.map(|(value, echo)| (value.wrapping_add(shift.stamp), echo));
    let sequence = header.sequence.wrapping_add(1).wrapping_add(shift.sequence);
    replace(
        frame,
        meta,
        &Head { sequence, flags: ACK, window, options: Options { stamps, ..Options::default() }, ..header },
    )
}

/// Makes the server's SYN-ACK, or a copy of it, the acknowledgment that finishes the server's handshake. `window` is the
/// client's, as it stands in a header. False, and nothing changed, if it is none.
pub fn acknowledge(frame: &mut Frame, meta: &mut Meta, window: u16) -> bool {
    let Some((header, options)) = read(frame, meta) else { return false };
    let stamps = options.stamps.map(|(value, echo)| (echo, value));
    respond(
        frame,
        meta,
        &Head {
            sequence: header.acknowledgment,
            acknowledgment: header.sequence.wrapping_add(1),
            flags: ACK,
            window,
            options: Options { stamps, ..Options::default() },
        },
    )
}

/// Makes the reset with which the server answers our SYN the one that the client believes (RFC 5961 section 3.2: with the
/// number it expects). False, and nothing changed, if it is none.
pub fn refuse(frame: &mut Frame, meta: &mut Meta, cookie: u32) -> bool {
    let Some((header, _)) = read(frame, meta) else { return false };
    if header.flags & RST == 0 {
        return false;
    }
    let acknowledgment = header.acknowledgment;
    let head = Head { sequence: cookie.wrapping_add(1), acknowledgment, flags: RST | ACK, ..Head::default() };
    replace(frame, meta, &head)
}

fn read(frame: &Frame, meta: &Meta) -> Option<(Head, Options)> {
    let segment = frame.bytes().get(meta.l4()..meta.end())?;
    let header = Tcp::parse(segment)?;
    let head = Head {
        sequence: header.sequence(),
        acknowledgment: header.acknowledgment(),
        flags: header.flags(),
        window: header.window(),
        options: Options::default(),
    };
    Some((head, Options::read(segment)))
}

/// A window in a header's 16 bits.
fn narrow(window: u32) -> u16 {
    window.min(0xffff) as u16
}

/// Moves the numbers of a segment that passes in `direction`, and brings its checksum up to date. `segment` begins with the
/// TCP header; what of it is not there is left alone.
pub fn translate(segment: &mut [u8], direction: usize, shift: &Shift) {
    let Some(mut header) = TcpMut::parse(segment) else { return };
    let (flags, end) = (header.view().flags(), header.view().header_len());
    let mut sum = Update::of(header.view().checksum());
    if direction == REPLY {
        let from = header.view().sequence();
        let to = from.wrapping_add(shift.sequence);
        header.set_sequence(to);
        sum = sum.long(from, to);
        if let Some(scale) = shift.scale.filter(|_| flags & SYN == 0) {
            let from = header.view().window();
            let to = narrow((u32::from(from) << scale.min(14)) >> SCALE);
            header.set_window(to);
            sum = sum.word(from, to);
        }
    } else if flags & ACK != 0 {
        let from = header.view().acknowledgment();
        let to = from.wrapping_sub(shift.sequence);
        header.set_acknowledgment(to);
        sum = sum.long(from, to);
    }
    if end > Tcp::LEN && end <= segment.len() {
        sum = translate_options(&mut segment[..end], flags, direction, shift, sum);
    }
    if let Some(mut header) = TcpMut::parse(segment) {
        header.set_checksum(sum.finish());
    }
}

/// Likewise for the options of a whole header.
fn translate_options(header: &mut [u8], flags: u8, direction: usize, shift: &Shift, mut sum: Update) -> Update {
    let mut at = Tcp::LEN;
    while let Some(kind) = header.get(at).copied() {
        if kind == option::NO_OPERATION {
            at += 1;
            continue;
        }
        // The end of the list, or a malformed option (RFC 9293 section 3.1).
        let len = header.get(at + 1).copied().map_or(0, usize::from);
        if kind == 0 || len < 2 || at + len > header.len() {
            break;
        }
        match (kind, len, direction) {
            (option::TIMESTAMPS, 10, REPLY) => sum = add(header, at + 2, shift.stamp, sum),
            (option::TIMESTAMPS, 10, ORIGINAL) if flags & ACK != 0 => {
                sum = add(header, at + 6, shift.stamp.wrapping_neg(), sum);
            }
            (option::SACK, _, ORIGINAL) => {
                for edge in (at + 2..at + len).step_by(4).filter(|edge| edge + 4 <= at + len) {
                    sum = add(header, edge, shift.sequence.wrapping_neg(), sum);
                }
            }
            _ => {}
        }
        at += len;
    }
    sum
}

/// Moves the sequence number at a place in the quote of an ICMP error about a segment of the server, back to the server's.
/// `message` begins with the ICMP header.
pub fn requote(message: &mut [u8], at: usize, shift: u32) {
    let Some(checksum) = message.get(2..4).map(|sum| u16::from_be_bytes([sum[0], sum[1]])) else { return };
    if at >= 4 && at + 5 <= message.len() {
        let sum = add(message, at, shift.wrapping_neg(), Update::of(checksum)).finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A packet to be sent besides those that came.
#[derive(Clone, Debug)]
pub struct Note {
    bytes: [u8; Note::ROOM],
    len: usize,
    /// Its facts.
    pub meta: Meta,
}

impl Note {
    /// Bytes it has room for: tags, IPv6 with some extensions, TCP with all options.
    const ROOM: usize = 192;

    fn of(frame: &Frame, meta: &Meta) -> Option<Note> {
        let mut bytes = [0; Note::ROOM];
        bytes.get_mut(..frame.len())?.copy_from_slice(frame.bytes());
        Some(Note { bytes, len: frame.len(), meta: meta.clone() })
    }

    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Writes it into a frame; false if it does not fit.
    pub fn write(&self, frame: &mut Frame) -> bool {
        let fits = frame.set_len(self.len);
        if fits {
            frame.bytes_mut().copy_from_slice(self.bytes());
        }
        fits
    }
}

/// Packets to be sent besides those that came, until the worker has buffers for them. What finds no room is not sent: the
/// ends repeat what needs it.
#[derive(Debug, Default)]
pub struct Notes {
    notes: [Option<Note>; 8],
    len: usize,
}

impl Notes {
    /// The next, in no order.
    #[inline]
    pub fn take(&mut self) -> Option<Note> {
        self.len = self.len.checked_sub(1)?;
        self.notes[self.len].take()
    }

    /// Notes what `make` makes of the frame, and leaves the frame and its facts as they are.
    pub fn put(&mut self, frame: &mut Frame, meta: &mut Meta, make: impl FnOnce(&mut Frame, &mut Meta) -> bool) {
        let Some(before) = Note::of(frame, meta).filter(|_| self.len < self.notes.len()) else { return };
        if make(frame, meta) {
            self.notes[self.len] = Note::of(frame, meta);
            self.len += usize::from(self.notes[self.len].is_some());
        }
        let fits = before.write(frame);
        debug_assert!(fits, "it was in there");
        *meta = before.meta;
    }
}

/// Adds to the number at a place, which may be odd, of a header of an even length.
fn add(header: &mut [u8], at: usize, shift: u32, sum: Update) -> Update {
    // The 16-bit words that the number has a part in.
    let words = at & !1..(at + 5) & !1;
    let (mut before, len) = ([0; 6], words.len());
    before[..len].copy_from_slice(&header[words.clone()]);
    if let Some(number) = header[at..].first_chunk_mut::<4>() {
        *number = u32::from_be_bytes(*number).wrapping_add(shift).to_be_bytes();
    }
    sum.bytes(&before[..len], &header[words])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, walk};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::Packet;
    use crate::wire::checksum;

    const NOW: u64 = 1_700_000_000_000_000_000;
    const MSS: u16 = 1460;

    /// A frame with its facts, for as long as `with` looks at it; the bytes it then has.
    fn on<T>(bytes: &[u8], with: impl FnOnce(&mut Frame, &mut Meta) -> T) -> (T, Vec<u8>, Meta) {
        let mut heap = Heap::new(1, 2048);
        let mut frame = heap.frame(bytes).expect("room");
        let mut meta = Meta::UNKNOWN;
        walk(&frame, Depth::L4, &mut meta).expect("well formed");
        let result = with(&mut frame, &mut meta);
        let after = frame.bytes().to_vec();
        heap.give_back(frame);
        (result, after, meta)
    }

    /// A segment as its receiver reads it; its checksums are right.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Seen {
        head: Head,
        options: Options,
        sack: Vec<(u32, u32)>,
        payload: Vec<u8>,
        ports: (u16, u16),
        meta: Meta,
    }

    fn see(bytes: &[u8]) -> Seen {
        on(bytes, |frame, meta| {
            let segment = &frame.bytes()[meta.l4()..meta.end()];
            let n = if meta.has(flag::IPV4) { 4 } else { 16 };
            let pseudo = checksum::pseudo(&meta.src[..n], &meta.dst[..n], 6, segment.len());
            assert!(checksum::transport_is_good(pseudo, segment), "checksum");
            let (head, options) = read(frame, meta).expect("TCP");
            let end = Tcp::parse(segment).expect("TCP").header_len();
            let sack = tcp::options(&segment[Tcp::LEN..end]).flatten().filter(|(kind, _)| *kind == option::SACK);
            let word = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let blocks = |(_, body): (u8, &[u8])| -> Vec<(u32, u32)> {
                body.as_chunks::<8>().0.iter().map(|block| (word(&block[..4]), word(&block[4..]))).collect()
            };
            Seen {
                head,
                options,
                sack: sack.flat_map(blocks).collect(),
                payload: segment[end..].to_vec(),
                ports: (meta.sport, meta.dport),
                meta: meta.clone(),
            }
        })
        .0
    }

    const FULL: [u8; 20] = *b"\x02\x04\x05\xb4\x04\x02\x08\x0a\x00\x00\x10\x00\x00\x00\x00\x00\x01\x03\x03\x09";

    fn client(v6: bool) -> Packet {
        match v6 {
            false => Packet::tcp("10.0.0.5:40000", "192.0.2.7:443").flags(0),
            true => Packet::tcp("[2001:db8::5]:40000", "[2001:db8:1::7]:443").flags(0),
        }
    }

    fn server(v6: bool) -> Packet {
        match v6 {
            false => Packet::tcp("192.0.2.7:443", "10.0.0.5:40000").flags(0),
            true => Packet::tcp("[2001:db8:1::7]:443", "[2001:db8::5]:40000").flags(0),
        }
    }

    /// Both ends of one connection through the proxy, and what the proxy keeps in the entry.
    struct Path {
        cookies: Cookies,
        entry: Option<(u32, u32, bool)>,
        shift: Option<Shift>,
    }

    impl Path {
        fn new() -> Path {
            Path { cookies: Cookies::keyed([1, 2]), entry: None, shift: None }
        }

        fn challenge(&self, syn: &Packet) -> Seen {
            let (done, bytes, meta) = on(&syn.bytes(), |frame, meta| {
                meta.port = 3;
                challenge(frame, meta, &self.cookies, 9, MSS, NOW)
            });
            assert!(done && meta.out == 3, "it leaves by its ingress");
            see(&bytes)
        }

        /// What the server gets of a client's segment.
        fn client_sends(&mut self, segment: &Packet) -> Option<Seen> {
            let (kept, bytes, _) = on(&segment.bytes(), |frame, meta| {
                if let Some(shift) = &self.shift {
                    let (l4, end) = (meta.l4(), meta.end());
                    translate(&mut frame.bytes_mut()[l4..end], ORIGINAL, shift);
                    return true;
                }
                let Some(proof) = prove(frame, meta, &self.cookies, 9, NOW + 1) else { return false };
                let ours = proof.stamps.map_or(0, |(_, ours)| ours);
                self.entry = Some((proof.cookie, ours, proof.offer.scale.is_some()));
                open(frame, meta, &proof)
            });
            kept.then(|| see(&bytes))
        }

        /// What client and server get of a server's segment.
        fn server_sends(&mut self, segment: &Packet) -> (Option<Seen>, Option<Seen>) {
            let bytes = segment.bytes();
            let (cookie, stamp, scaled) = self.entry.expect("a SYN came before");
            let is_syn = see(&bytes).head.flags & SYN != 0;
            match &self.shift {
                Some(_) if is_syn => {
                    let (done, bytes, _) = on(&bytes, |frame, meta| acknowledge(frame, meta, 1000));
                    (None, done.then(|| see(&bytes)))
                }
                Some(shift) => {
                    let ((), bytes, _) = on(&bytes, |frame, meta| {
                        let (l4, end) = (meta.l4(), meta.end());
                        translate(&mut frame.bytes_mut()[l4..end], REPLY, shift);
                    });
                    (Some(see(&bytes)), None)
                }
                None if !is_syn => {
                    let (done, bytes, _) = on(&bytes, |frame, meta| refuse(frame, meta, cookie));
                    (done.then(|| see(&bytes)), None)
                }
                None => {
                    let (made, there, _) = on(&bytes, |frame, meta| {
                        let made = shift(frame, meta, cookie, stamp, scaled).expect("a SYN-ACK");
                        assert!(welcome(frame, meta, &made));
                        made
                    });
                    self.shift = Some(made);
                    let (done, back, _) = on(&bytes, |frame, meta| acknowledge(frame, meta, 1000));
                    (Some(see(&there)), done.then(|| see(&back)))
                }
            }
        }
    }

    #[test]
    fn a_connection_with_every_option() {
        // The client's numbers and the server's both wrap.
        let (isn, theirs) = (u32::MAX, u32::MAX - 2);
        for v6 in [false, true] {
            let mut path = Path::new();
            let syn = client(v6).vlan(7).flags(SYN).sequence(isn).window(64240).tcp_options(&FULL);
            let challenge = path.challenge(&syn);
            assert_eq!(challenge.ports, (443, 40000));
            assert_eq!((challenge.head.flags, challenge.head.window), (SYN | ACK, 0));
            assert_eq!((challenge.head.acknowledgment, challenge.meta.vlan), (0, 7));
            let cookie = challenge.head.sequence;
            let (stamp, echo) = challenge.options.stamps.expect("offered");
            assert_eq!((challenge.options.mss, challenge.options.scale), (Some(MSS), Some(SCALE)));
            assert!(challenge.options.sack && echo == 0x1000);

            let stamps = |value: u32, echo: u32| {
                let mut options = b"\x01\x01\x08\x0a".to_vec();
                options.extend(value.to_be_bytes());
                options.extend(echo.to_be_bytes());
                options
            };
            let first = cookie.wrapping_add(1);
            let ack = client(v6).sequence(0).acknowledgment(first).window(502).tcp_options(&stamps(0x1005, stamp));
            // The acknowledgment, the same again, and a probe of the closed window, all come to the same SYN.
            let probe = client(v6).sequence(isn).acknowledgment(first).window(502).tcp_options(&stamps(0x1005, stamp));
            for segment in [&ack, &ack, &probe] {
                let syn = path.client_sends(segment).expect("proof");
                assert_eq!((syn.head.sequence, syn.head.acknowledgment, syn.head.flags), (isn, 0, SYN));
                assert_eq!(syn.head.window, u16::MAX, "502 << 9 is more than a SYN can say");
                assert_eq!(
                    syn.options,
                    Options { mss: Some(1460), scale: Some(9), sack: true, stamps: Some((0x1005, 0)) }
                );
                assert!(syn.payload.is_empty() && syn.ports == (40000, 443));
            }
            let options = b"\x02\x04\x05\xb4\x04\x02\x08\x0a\xff\xff\xff\xf0\x00\x00\x10\x05\x01\x03\x03\x05";
            let syn_ack = server(v6).flags(SYN).sequence(theirs).acknowledgment(0).window(64000).tcp_options(options);
            let (update, done) = path.server_sends(&syn_ack);
            let update = update.expect("for the client");
            assert_eq!((update.head.sequence, update.head.acknowledgment), (first, 0));
            assert_eq!((update.head.flags, update.head.window), (ACK, 64000 >> 7));
            assert_eq!(update.options.stamps, Some((stamp, 0x1005)));
            let done = done.expect("for the server");
            assert_eq!((done.head.sequence, done.head.acknowledgment), (0, theirs.wrapping_add(1)));
            assert_eq!((done.head.flags, done.options.stamps), (ACK, Some((0x1005, 0xffff_fff0))));
            // A SYN-ACK that comes again is answered again.
            assert_eq!(path.server_sends(&syn_ack), (None, Some(done)));

            // Data from the server, past the wrap.
            let data = server(v6).flags(ACK).sequence(theirs.wrapping_add(1)).acknowledgment(0).window(8000);
            let data = data.tcp_options(&stamps(0x10, 0x1005)).payload(b"hello");
            let seen = path.server_sends(&data).0.expect("for the client");
            assert_eq!((seen.head.sequence, seen.head.acknowledgment), (first, 0));
            assert_eq!((seen.head.window, &seen.payload[..]), (8000 >> 2, &b"hello"[..]), "from scale 5 to scale 7");
            assert_eq!(seen.options.stamps, Some((stamp.wrapping_add(0x20), 0x1005)));
            // Its acknowledgment, with SACK blocks at an odd place.
            let mut sack = stamps(0x1009, stamp.wrapping_add(0x20));
            sack.extend([1, 5, 18]);
            let blocks = [(10u32, 20u32), (30, 40)].map(|(l, r)| (first.wrapping_add(l), first.wrapping_add(r)));
            blocks.iter().for_each(|(l, r)| sack.extend([l.to_be_bytes(), r.to_be_bytes()].concat()));
            sack.extend([1; 1]);
            let ack = client(v6).sequence(0).acknowledgment(first.wrapping_add(5)).tcp_options(&sack).payload(b"x");
            let seen = path.client_sends(&ack).expect("passes");
            assert_eq!((seen.head.sequence, seen.head.acknowledgment), (0, theirs.wrapping_add(6)));
            assert_eq!(seen.options.stamps, Some((0x1009, 0x10)));
            let base = theirs.wrapping_add(1);
            assert_eq!(seen.sack, [(10, 20), (30, 40)].map(|(l, r)| (base.wrapping_add(l), base.wrapping_add(r))));
            // A reset of either end.
            let reset = path.client_sends(&client(v6).flags(RST).sequence(1)).expect("passes");
            assert_eq!((reset.head.sequence, reset.head.acknowledgment), (1, 0));
            let reset = path.server_sends(&server(v6).flags(RST).sequence(base)).0.expect("passes");
            assert_eq!(reset.head.sequence, first);
        }
    }

    #[test]
    fn a_client_without_timestamps_gets_its_segment_size_alone() {
        let mut path = Path::new();
        let challenge =
            path.challenge(&client(false).flags(SYN).sequence(5).tcp_options(b"\x02\x04\x02\x18\x04\x02\x01\x01"));
        assert_eq!(challenge.options, Options { mss: Some(MSS), ..Options::default() });
        let ack = client(false).sequence(6).acknowledgment(challenge.head.sequence.wrapping_add(1)).window(500);
        let syn = path.client_sends(&ack).expect("proof");
        assert_eq!((syn.options, syn.head.window), (Options { mss: Some(536), ..Options::default() }, 500));
        let syn_ack = server(false).flags(SYN).sequence(1000).acknowledgment(6).window(300);
        let (update, _) = path.server_sends(&syn_ack);
        assert_eq!(update.expect("for the client").head.window, 300);
    }

    #[test]
    fn a_server_that_refuses_is_believed() {
        let mut path = Path::new();
        let cookie = path.challenge(&client(true).flags(SYN).sequence(5)).head.sequence;
        path.client_sends(&client(true).sequence(6).acknowledgment(cookie.wrapping_add(1))).expect("proof");
        let (reset, none) = path.server_sends(&server(true).flags(RST).sequence(0).acknowledgment(6));
        let reset = reset.expect("for the client");
        assert_eq!((reset.head.sequence, reset.head.acknowledgment), (cookie.wrapping_add(1), 6));
        assert_eq!((reset.head.flags, none), (RST | ACK, None));
    }

    #[test]
    fn what_is_not_answered_and_what_proves_nothing() {
        let path = Path::new();
        let refused = |packet: &Packet| {
            let bytes = packet.bytes();
            let (done, after, _) = on(&bytes, |frame, meta| challenge(frame, meta, &path.cookies, 9, MSS, NOW));
            !done && after == bytes
        };
        assert!(refused(&client(false).flags(SYN | ACK)));
        assert!(refused(&client(false).flags(SYN | RST)));
        assert!(refused(&client(false).flags(SYN | tcp::FIN)));
        assert!(refused(&client(false).flags(SYN).patch(50, &[1, 2])), "bad checksum");
        assert!(refused(&Packet::tcp("224.0.0.1:1", "10.0.0.1:2").flags(SYN)));
        let cookie = path.challenge(&client(false).flags(SYN).sequence(5)).head.sequence;
        let proves = |packet: &Packet, domain, now| {
            on(&packet.bytes(), |frame, meta| prove(frame, meta, &path.cookies, domain, now)).0.is_some()
        };
        let ack = client(false).sequence(6).acknowledgment(cookie.wrapping_add(1));
        assert!(proves(&ack, 9, NOW) && !proves(&ack, 8, NOW) && !proves(&ack, 9, NOW + 200_000_000_000));
        assert!(!proves(&client(false).sequence(6).acknowledgment(cookie), 9, NOW));
        assert!(!proves(&client(false).sequence(7).acknowledgment(cookie.wrapping_add(1)), 9, NOW));
        assert!(!proves(&ack.flags(ACK | RST), 9, NOW));
    }

    proptest! {
        // Whatever the header, the checksum stays right, and the other direction's translation of the same numbers undoes it.
        #[test]
        fn translation_keeps_checksums(
            v6 in any::<bool>(), flags in any::<u8>(), numbers in any::<(u32, u32, u16)>(),
            options in prop::collection::vec(prop_oneof![
                Just(vec![1u8]), any::<[u8; 8]>().prop_map(|b| [&[8, 10][..], &b].concat()),
                any::<[u8; 8]>().prop_map(|b| [&[5, 10][..], &b].concat()), any::<u8>().prop_map(|b| vec![b]),
            ], 0..5),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            sequence in any::<u32>(), stamp in any::<u32>(), scale in prop::option::of(0u8..20), reply in any::<bool>(),
        ) {
            let mut options = options.concat();
            options.truncate(40);
            options.resize(options.len().next_multiple_of(4), 0);
            let packet = client(v6).acknowledgment(numbers.1).flags(flags).sequence(numbers.0).window(numbers.2);
            let bytes = packet.tcp_options(&options).payload(&payload).bytes();
            let shift = Shift { sequence, stamp, scale };
            let direction = if reply { REPLY } else { ORIGINAL };
            let ((), after, _) = on(&bytes, |frame, meta| {
                let (l4, end) = (meta.l4(), meta.end());
                translate(&mut frame.bytes_mut()[l4..end], direction, &shift);
            });
            let (before, seen) = (see(&bytes), see(&after));
            prop_assert_eq!(&seen.payload, &before.payload);
            if reply {
                prop_assert_eq!(seen.head.sequence, before.head.sequence.wrapping_add(sequence));
                prop_assert_eq!(seen.head.acknowledgment, before.head.acknowledgment);
            } else {
                let moved = if flags & ACK != 0 { sequence } else { 0 };
                prop_assert_eq!(seen.head.sequence, before.head.sequence);
                prop_assert_eq!(seen.head.acknowledgment, before.head.acknowledgment.wrapping_sub(moved));
                prop_assert_eq!(seen.head.window, before.head.window);
            }
        }

        #[test]
        fn arbitrary_segments_are_no_danger(mut bytes in prop::collection::vec(any::<u8>(), 0..80), reply in any::<bool>()) {
            translate(&mut bytes, usize::from(reply), &Shift { sequence: 7, stamp: 9, scale: Some(255) });
        }
    }
}
