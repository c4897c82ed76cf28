//! Capture files: packets read from pcap and pcapng, several files merged by time, and packets written as pcap.
//!
//! Owns the form of the files and nothing of what is in a packet. Reading streams: a file of any size takes a buffer of
//! [`CHUNK`] bytes, more only for a packet that is longer.
//!
//! Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::Path;

use pcap_file::pcap::{
    PcapHeader, PcapParseError, PcapParser, PcapTsResolution, PcapValidationError, PcapWriteError, PcapWriter,
    RawPcapPacket,
};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::{ENHANCED_PACKET_BLOCK, PACKET_BLOCK, SIMPLE_PACKET_BLOCK};
use pcap_file::pcapng::{Block, PcapNgParseError, PcapNgParser};
use pcap_file::{DataLink, Endianness};

/// Bytes read from a file at a time.
const CHUNK: usize = 1 << 18;
/// The longest packet or block taken for real; a longer one means that the file is corrupt.
const LONGEST: usize = 1 << 24;
const NANOS: u64 = 1_000_000_000;

/// A packet as a file holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// When it was captured: Unix time in nanoseconds.
    pub time: u64,
    /// Its bytes, without the frame check sequence.
    pub bytes: Vec<u8>,
    /// Bytes it had on the wire that were not captured.
    pub cut: u32,
}

/// Why a file, or the rest of it, cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The file's name as the user gave it.
    pub file: String,
    /// The packet where reading ended, from 1; none if it did not come so far.
    pub packet: Option<u64>,
    /// What is wrong, and what to do if that is not obvious.
    pub message: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packet {
            Some(packet) => write!(f, "{}: packet {packet}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Bytes of a stream, as many as a parser asks for.
struct Bytes {
    source: Box<dyn Read>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    taken: u64,
}

impl Bytes {
    /// What is next in the stream: `n` bytes at least, fewer only if it ends.
    fn at_least(&mut self, n: usize) -> io::Result<&[u8]> {
        if self.end - self.start < n {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() < n {
                self.buffer.resize(n.next_multiple_of(CHUNK), 0);
            }
            while self.end < n {
                match self.source.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(read) => self.end += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn take(&mut self, n: usize) {
        self.start += n;
        self.taken += n as u64;
    }
}

/// Why a parser did not find what it looked for.
enum Failure {
    /// It needs to see more bytes, so many at most.
    More(usize),
    /// What it sees makes no sense.
    Wrong(String),
}

impl From<PcapParseError> for Failure {
    fn from(error: PcapParseError) -> Failure {
        match error {
            // The number leaves out the header of a packet.
            PcapParseError::IncompleteBuffer(need, _) => Failure::More(need + 16),
            PcapParseError::Validation(error) => Failure::Wrong(error.to_string()),
        }
    }
}

impl From<PcapNgParseError> for Failure {
    fn from(error: PcapNgParseError) -> Failure {
        match error {
            // The number leaves out the type and the length of a block.
            PcapNgParseError::IncompleteBuffer(need, _) => Failure::More(need + 8),
            other => Failure::Wrong(chain(&other)),
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

enum Format {
    Pcap { parser: PcapParser, fcs: usize },
    PcapNg(PcapNgParser),
}

impl Format {
    /// Reads the beginning of a file; returns the number of bytes it took.
    fn begin(seen: &[u8]) -> Result<(usize, Format), Failure> {
        /// Block type of a pcapng section header, the same in both byte orders.
        const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
        match seen.first_chunk() {
            None => Err(Failure::More(4)),
            Some(&SECTION) => {
                let (rest, parser) = PcapNgParser::new(seen)?;
                Ok((seen.len() - rest.len(), Format::PcapNg(parser)))
            }
            Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', b'z', b'X']) => {
                Err(Failure::Wrong("is compressed: unpack it first".into()))
            }
            Some(_) => {
                let (rest, parser) = PcapParser::new(seen).map_err(|error| match error {
                    PcapParseError::Validation(PcapValidationError::InvalidMagicNumber(_)) => {
                        Failure::Wrong("is neither a pcap nor a pcapng file".into())
                    }
                    other => other.into(),
                })?;
                // Section 4 of the pcap draft: the upper half of the link type tells of a frame check sequence, in units
                // of two bytes, if its bit 26 is set.
                let field = u32::from(parser.header().datalink);
                let fcs = if field & 1 << 26 != 0 { (field >> 28) as usize * 2 } else { 0 };
                ethernet(DataLink::from(field & 0xffff)).map_err(Failure::Wrong)?;
                Ok((seen.len() - rest.len(), Format::Pcap { parser, fcs }))
            }
        }
    }

    /// Reads what comes next; returns the number of bytes it took, and true if it was a packet.
    fn next(&mut self, seen: &[u8], into: &mut Packet) -> Result<(usize, bool), Failure> {
        match self {
            Format::Pcap { parser, fcs } => {
                let (rest, raw) = parser.next_raw_packet(seen)?;
                let unit = match parser.header().ts_resolution {
                    PcapTsResolution::MicroSecond => 1000,
                    PcapTsResolution::NanoSecond => 1,
                };
                into.time = u64::from(raw.ts_sec) * NANOS + u64::from(raw.ts_frac) * unit;
                into.fill(&raw.data, raw.orig_len, *fcs);
                Ok((seen.len() - rest.len(), true))
            }
            Format::PcapNg(parser) => {
                let (rest, raw) = parser.next_raw_block(seen)?;
                let used = seen.len() - rest.len();
                if !matches!(raw.type_, ENHANCED_PACKET_BLOCK | SIMPLE_PACKET_BLOCK | PACKET_BLOCK) {
                    return Ok((used, false));
                }
                let block = raw.try_into_block(parser.state()).map_err(|error| Failure::Wrong(chain(&error)))?;
                let (interface, time, data, original) = match block {
                    Block::EnhancedPacket(b) => (b.interface_id as usize, Some(b.timestamp), b.data, b.original_len),
                    Block::Packet(b) => (usize::from(b.interface_id), Some(b.timestamp), b.data, b.original_len),
                    // It has no time of its own: the one of the packet before it stays.
                    Block::SimplePacket(b) => (0, None, b.data, b.original_len),
                    _ => return Ok((used, false)),
                };
                let Some(description) = parser.interfaces().get(interface) else {
                    return Err(Failure::Wrong(format!(
                        "was captured on interface {interface}, which is not described"
                    )));
                };
                ethernet(description.linktype)
                    .map_err(|error| Failure::Wrong(format!("interface {interface} {error}")))?;
                if let Some(time) = time {
                    // Half of what a u64 holds, so that no sum of a time and a duration overflows.
                    let time = i64::try_from(time.as_nanos());
                    into.time = time.map_err(|_| Failure::Wrong("its time is beyond the year 2262".into()))? as u64;
                }
                into.fill(&data, original, frame_check(description));
                Ok((used, true))
            }
        }
    }
}

/// Bytes of frame check sequence behind each frame of an interface.
fn frame_check(description: &InterfaceDescriptionBlock<'_>) -> usize {
    let bits = description.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfFcsLen(bits) => Some(*bits),
        _ => None,
    });
    usize::from(bits.unwrap_or(0) / 8)
}

fn ethernet(link: DataLink) -> Result<(), String> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => Err(format!("has link type {other:?} ({}): only Ethernet (1) can be replayed", u32::from(other))),
    }
}

impl Packet {
    fn fill(&mut self, data: &[u8], original: u32, fcs: usize) {
        let captured = data.len() as u32;
        // Some writers leave the original length zero.
        self.cut = original.saturating_sub(captured);
        // Of a packet that was cut, the frame check sequence went first.
        let keep = data.len().saturating_sub(fcs.saturating_sub(self.cut as usize));
        self.cut = self.cut.saturating_sub(fcs as u32);
        self.bytes.clear();
        self.bytes.extend_from_slice(&data[..keep]);
    }
}

/// A capture file being read, in the order it was written.
pub struct Reader {
    name: String,
    bytes: Bytes,
    format: Format,
    packets: u64,
}

impl Reader {
    /// Opens a file, `-` being the standard input, and checks that it is a capture of Ethernet frames.
    pub fn open(path: &Path) -> Result<Reader, Unreadable> {
        if path == Path::new("-") {
            return Reader::new("-".into(), Box::new(io::stdin()));
        }
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Reader::new(name, Box::new(file)),
            Err(error) => Err(Unreadable { file: name, packet: None, message: format!("cannot be opened: {error}") }),
        }
    }

    /// Reads from any stream of bytes, called `name` in messages.
    pub fn new(name: String, source: Box<dyn Read>) -> Result<Reader, Unreadable> {
        let mut bytes = Bytes { source, buffer: vec![0; CHUNK], start: 0, end: 0, taken: 0 };
        let outcome = step(&mut bytes, Format::begin, "ends within its header");
        match outcome {
            Ok(Some(format)) => Ok(Reader { name, bytes, format, packets: 0 }),
            Ok(None) => Err(Unreadable { file: name, packet: None, message: "is empty".into() }),
            Err(message) => Err(Unreadable { file: name, packet: None, message }),
        }
    }

    /// Reads the next packet; false at the end of the file. After an error there is no more to read.
    pub fn next(&mut self, into: &mut Packet) -> Result<bool, Unreadable> {
        loop {
            let format = &mut self.format;
            match step(&mut self.bytes, |seen| format.next(seen, into), "the file ends in the middle of it") {
                Ok(None) => return Ok(false),
                Ok(Some(false)) => {}
                Ok(Some(true)) => {
                    self.packets += 1;
                    return Ok(true);
                }
                Err(message) => {
                    return Err(Unreadable { file: self.name.clone(), packet: Some(self.packets + 1), message });
                }
            }
        }
    }

    /// The file's name as the user gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Packets read so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes of the file used up so far.
    pub fn taken(&self) -> u64 {
        self.bytes.taken
    }
}

/// Shows a parser as many bytes as it needs; `None` at the end of the stream.
fn step<T>(
    bytes: &mut Bytes,
    mut parse: impl FnMut(&[u8]) -> Result<(usize, T), Failure>,
    truncated: &str,
) -> Result<Option<T>, String> {
    let mut need = 1;
    loop {
        let seen = bytes.at_least(need).map_err(|error| format!("cannot be read: {error}"))?;
        if seen.is_empty() {
            return Ok(None);
        }
        match parse(seen) {
            Ok((used, what)) => {
                bytes.take(used);
                return Ok(Some(what));
            }
            Err(Failure::Wrong(message)) => return Err(message),
            Err(Failure::More(more)) if more > LONGEST => {
                return Err(format!("claims to be {more} bytes long: the file is corrupt"));
            }
            Err(Failure::More(_)) if seen.len() < need => return Err(truncated.to_owned()),
            Err(Failure::More(more)) => need = more.max(seen.len() + 1),
        }
    }
}

/// Several captures as one stream of packets in the order of their times; at the same time, in the order the captures were
/// given in. Within a capture the order stays as it is, even where its times run backwards.
pub struct Merge {
    inputs: Vec<Input>,
}

struct Input {
    reader: Reader,
    next: Packet,
    more: bool,
    failure: Option<Unreadable>,
}

impl Input {
    fn advance(&mut self) {
        self.more = self.reader.next(&mut self.next).unwrap_or_else(|error| {
            self.failure = Some(error);
            false
        });
    }
}

impl Merge {
    /// Merges captures.
    pub fn new(readers: impl IntoIterator<Item = Reader>) -> Merge {
        let start = |reader| {
            let mut input = Input { reader, next: Packet::default(), more: false, failure: None };
            input.advance();
            input
        };
        Merge { inputs: readers.into_iter().map(start).collect() }
    }

    /// The next packet, and which capture it is from.
    pub fn peek(&self) -> Option<(usize, &Packet)> {
        let waiting = self.inputs.iter().enumerate().filter(|(_, input)| input.more);
        waiting.min_by_key(|(_, input)| input.next.time).map(|(at, input)| (at, &input.next))
    }

    /// Goes on to the packet after the one that `peek` shows of capture `at`.
    pub fn advance(&mut self, at: usize) {
        self.inputs[at].advance();
    }

    /// The captures, as far as they are read, and why reading one ended before its end.
    pub fn readers(&self) -> impl Iterator<Item = (&Reader, Option<&Unreadable>)> {
        self.inputs.iter().map(|input| (&input.reader, input.failure.as_ref()))
    }
}

/// A pcap file being written, with times in nanoseconds.
pub struct Writer {
    name: String,
    file: PcapWriter<BufWriter<File>>,
    packets: u64,
}

impl Writer {
    /// Creates a file, or replaces what is there.
    pub fn create(path: &Path) -> io::Result<Writer> {
        let header = PcapHeader {
            ts_resolution: PcapTsResolution::NanoSecond,
            endianness: Endianness::native(),
            ..PcapHeader::default()
        };
        let file = PcapWriter::with_header(BufWriter::with_capacity(CHUNK, File::create(path)?), header);
        Ok(Writer { name: path.display().to_string(), file: file.map_err(io_error)?, packets: 0 })
    }

    /// Appends a packet, `cut` bytes of which are missing.
    pub fn write(&mut self, time: u64, bytes: &[u8], cut: u32) -> io::Result<()> {
        let Ok(ts_sec) = u32::try_from(time / NANOS) else {
            return Err(io::Error::other("a pcap file cannot hold times beyond the year 2106"));
        };
        let packet = RawPcapPacket {
            ts_sec,
            ts_frac: (time % NANOS) as u32,
            incl_len: bytes.len() as u32,
            orig_len: (bytes.len() as u32).saturating_add(cut),
            data: bytes.into(),
        };
        self.file.write_raw_packet(&packet).map_err(io_error)?;
        self.packets += 1;
        Ok(())
    }

    /// Writes out what is still in memory.
    pub fn finish(&mut self) -> io::Result<()> {
        self.file.flush().map_err(io_error)
    }

    /// The file's name as the user gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Packets written so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }
}

fn io_error(error: PcapWriteError) -> io::Error {
    match error {
        PcapWriteError::Io(error) | PcapWriteError::FieldWriteFailed(_, error) => error,
        PcapWriteError::Validation(error) => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::PcapNgBlock;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceTsResolution;
    use pcap_file::pcapng::blocks::section_header::SectionHeaderBlock;
    use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Endianness; 2] = [Endianness::Big, Endianness::Little];

    fn pcap(
        endianness: Endianness,
        ts_resolution: PcapTsResolution,
        link: u32,
        packets: &[(u64, &[u8], u32)],
    ) -> Vec<u8> {
        let header = PcapHeader { endianness, ts_resolution, datalink: DataLink::from(link), ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).expect("header");
        let unit = if ts_resolution == PcapTsResolution::NanoSecond { 1 } else { 1000 };
        for (time, data, orig_len) in packets {
            let packet = RawPcapPacket {
                ts_sec: (time / NANOS) as u32,
                ts_frac: (time % NANOS / unit) as u32,
                incl_len: data.len() as u32,
                orig_len: *orig_len,
                data: (*data).into(),
            };
            writer.write_raw_packet(&packet).expect("packet");
        }
        writer.into_inner()
    }

    fn open(bytes: &[u8]) -> Result<Reader, Unreadable> {
        Reader::new("t".into(), Box::new(io::Cursor::new(bytes.to_vec())))
    }

    /// All packets, and what ended the reading if it was not the end of the file.
    fn read(bytes: &[u8]) -> (Vec<Packet>, Option<String>) {
        let mut reader = match open(bytes) {
            Ok(reader) => reader,
            Err(error) => return (Vec::new(), Some(error.to_string())),
        };
        let (mut packets, mut packet) = (Vec::new(), Packet::default());
        loop {
            match reader.next(&mut packet) {
                Ok(true) => packets.push(packet.clone()),
                Ok(false) => return (packets, None),
                Err(error) => return (packets, Some(error.to_string())),
            }
        }
    }

    fn packet(time: u64, bytes: &[u8], cut: u32) -> Packet {
        Packet { time, bytes: bytes.to_vec(), cut }
    }

    #[test]
    fn pcap_of_both_byte_orders_and_resolutions() {
        for endianness in BOTH {
            for resolution in [PcapTsResolution::MicroSecond, PcapTsResolution::NanoSecond] {
                let nanos = if resolution == PcapTsResolution::NanoSecond { 7 } else { 0 };
                let time = 1_700_000_000 * NANOS + 123_456_000 + nanos;
                let file = pcap(endianness, resolution, 1, &[(time, &[1; 60], 60), (5, &[2; 40], 1500)]);
                let expected =
                    vec![packet(time, &[1; 60], 0), packet(5 - 5 % if nanos == 0 { 1000 } else { 1 }, &[2; 40], 1460)];
                assert_eq!(read(&file), (expected, None), "{endianness:?} {resolution:?}");
            }
        }
    }

    #[test]
    fn a_frame_check_sequence_is_not_part_of_the_frame() {
        // Bit 26: there is one; bits 28 to 31: it has 2 units of 2 bytes.
        let link = 1 | 1 << 26 | 2 << 28;
        let packets: &[(u64, &[u8], u32)] = &[(0, &[1; 64], 64), (0, &[1; 62], 64), (0, &[1; 40], 64), (0, &[1; 2], 2)];
        let (read, error) = read(&pcap(Endianness::Little, PcapTsResolution::NanoSecond, link, packets));
        assert_eq!(error, None);
        assert_eq!(read, [packet(0, &[1; 60], 0), packet(0, &[1; 60], 0), packet(0, &[1; 40], 20), packet(0, &[], 0)]);
    }

    fn interface(link: DataLink, resolution: Option<InterfaceTsResolution>) -> InterfaceDescriptionBlock<'static> {
        let mut description = InterfaceDescriptionBlock::new(link, 0);
        description.options.extend(resolution.map(InterfaceDescriptionOption::IfTsResol));
        description
    }

    fn enhanced(interface_id: u32, nanos: u64, data: &[u8]) -> EnhancedPacketBlock<'_> {
        EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(nanos),
            original_len: data.len() as u32 + 3,
            data: data.into(),
            options: vec![],
        }
    }

    /// A section with interfaces that count microseconds, nanoseconds and 2^-20 seconds, and one that is not Ethernet.
    fn section(endianness: Endianness, foreign: bool) -> Vec<u8> {
        let header = SectionHeaderBlock { endianness, ..SectionHeaderBlock::default() };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), header).expect("section");
        let mut write = |block: Block<'_>| writer.write_block(&block).map(|_| ()).expect("block");
        write(interface(DataLink::ETHERNET, None).into_block());
        write(interface(DataLink::ETHERNET, Some(InterfaceTsResolution::NANO)).into_block());
        write(interface(DataLink::ETHERNET, Some(InterfaceTsResolution::new(true, 20).expect("2^-20"))).into_block());
        write(interface(DataLink::LINUX_SLL, None).into_block());
        write(enhanced(0, 1_000_001_000, &[1; 61]).into_block());
        write(enhanced(1, 1_000_001_001, &[2; 62]).into_block());
        write(enhanced(2, 1_500_000_000, &[3; 63]).into_block());
        write(SimplePacketBlock { original_len: 20, data: (&[4; 20][..]).into() }.into_block());
        if foreign {
            write(enhanced(3, 0, &[5; 64]).into_block());
        }
        writer.into_inner()
    }

    #[test]
    fn pcapng_with_several_interfaces_and_sections() {
        let expected = [
            packet(1_000_001_000, &[1; 61], 3),
            packet(1_000_001_001, &[2; 62], 3),
            packet(1_500_000_000, &[3; 63], 3),
            packet(1_500_000_000, &[4; 20], 0),
        ];
        let file = BOTH.map(|endianness| section(endianness, false)).concat();
        assert_eq!(read(&file), ([expected.clone(), expected.clone()].concat(), None));
        let (packets, error) = read(&section(Endianness::Big, true));
        assert_eq!(packets, expected);
        assert_eq!(
            error.as_deref(),
            Some("t: packet 5: interface 3 has link type LINUX_SLL (113): only Ethernet (1) can be replayed")
        );
    }

    #[test]
    fn what_is_no_capture_is_said_so() {
        let error = |bytes: &[u8]| open(bytes).err().expect("an error").to_string();
        assert_eq!(error(b""), "t: is empty");
        assert_eq!(error(b"\xd4\xc3\xb2\xa1\x02"), "t: ends within its header");
        assert_eq!(error(b"\x0a\x0d\x0d\x0a\x1c\0\0\0"), "t: ends within its header");
        assert_eq!(error(&[b'#'; 100]), "t: is neither a pcap nor a pcapng file");
        assert_eq!(error(&[0x1f, 0x8b, 8, 0]), "t: is compressed: unpack it first");
        assert_eq!(
            error(&pcap(Endianness::Big, PcapTsResolution::MicroSecond, 113, &[])),
            "t: has link type LINUX_SLL (113): only Ethernet (1) can be replayed"
        );
        let missing = Reader::open(Path::new("/nonexistent/a.pcap")).err().expect("an error").to_string();
        assert!(missing.starts_with("/nonexistent/a.pcap: cannot be opened: "), "{missing}");
    }

    #[test]
    fn every_truncation_gives_the_packets_before_it() {
        let pcap = pcap(Endianness::Little, PcapTsResolution::NanoSecond, 1, &[(1, &[1; 60], 60), (2, &[2; 60], 60)]);
        for file in [pcap, section(Endianness::Little, false)] {
            let (all, error) = read(&file);
            assert_eq!(error, None);
            let mut whole = 0;
            for len in 1..file.len() {
                let (packets, error) = read(&file[..len]);
                assert!(all.starts_with(&packets), "{len}");
                if let Some(error) = error {
                    let packet = format!("t: packet {}: the file ends in the middle of it", packets.len() + 1);
                    assert!(error == packet || error == "t: ends within its header", "{len}: {error}");
                } else {
                    whole += 1;
                }
            }
            assert!((1..=9).contains(&whole), "only cuts between blocks go unnoticed: {whole}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_not_believed() {
        let mut file = pcap(Endianness::Little, PcapTsResolution::NanoSecond, 1, &[(1, &[1; 60], 60)]);
        file[24 + 8..24 + 12].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        let (packets, error) = read(&file);
        assert!(packets.is_empty());
        let error = error.expect("an error");
        assert!(error.starts_with("t: packet 1: claims to be") && error.ends_with("the file is corrupt"), "{error}");
    }

    #[test]
    fn packets_longer_than_the_buffer_are_read() {
        let long = vec![9; CHUNK + 1000];
        let packets: &[(u64, &[u8], u32)] = &[(1, &[1; 60], 60), (2, &long, 0), (3, &[3; 60], 60)];
        let file = pcap(Endianness::Little, PcapTsResolution::NanoSecond, 1, packets);
        let (packets, error) = read(&file);
        assert_eq!((packets.len(), error), (3, None));
        assert_eq!((packets[1].bytes.len(), packets[1].cut, packets[2].time), (CHUNK + 1000, 0, 3));
    }

    #[test]
    fn merging_keeps_times_in_order_and_ties_as_given() {
        let file = |times: &[u64], mark: u8| {
            let bytes = [mark; 14];
            let packets: Vec<(u64, &[u8], u32)> = times.iter().map(|time| (*time, &bytes[..], 14)).collect();
            open(&pcap(Endianness::Little, PcapTsResolution::NanoSecond, 1, &packets)).expect("a capture")
        };
        let mut merge = Merge::new([file(&[10, 20, 5, 30], 0), file(&[10, 10, 25], 1), file(&[], 2)]);
        let mut order = Vec::new();
        while let Some((at, packet)) = merge.peek() {
            order.push((at, packet.time));
            assert_eq!(usize::from(packet.bytes[0]), at);
            merge.advance(at);
        }
        assert_eq!(order, [(0, 10), (1, 10), (1, 10), (0, 20), (0, 5), (1, 25), (0, 30)]);
        let read: Vec<u64> = merge.readers().map(|(reader, _)| reader.packets()).collect();
        assert_eq!(read, [4, 3, 0]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let packets = [packet(1_700_000_000 * NANOS + 1, &[1; 60], 0), packet(3, &[2; 1514], 40)];
        let mut writer = Writer::create(&path).expect("created");
        for packet in &packets {
            writer.write(packet.time, &packet.bytes, packet.cut).expect("written");
        }
        assert!(writer.write(u64::MAX, &[], 0).is_err());
        writer.finish().expect("flushed");
        assert_eq!(writer.packets(), 2);
        assert_eq!(read(&std::fs::read(&path).expect("read")), (packets.to_vec(), None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_in_packets_or_a_message(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            ng in any::<bool>(),
            at in 0usize..400,
        ) {
            let mut file = if ng { section(Endianness::Little, true) } else {
                pcap(Endianness::Big, PcapTsResolution::MicroSecond, 1, &[(1, &[1; 60], 60), (2, &[2; 60], 60)])
            };
            let at = at.min(file.len());
            file.truncate(at);
            file.extend(bytes);
            let (packets, _) = read(&file);
            prop_assert!(packets.iter().map(|packet| packet.bytes.len()).sum::<usize>() <= file.len());
        }
    }
}
