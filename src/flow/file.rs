//! Saved flows: the entries of all tables in a file, from which another process goes on.
//!
//! Owns the format, and says what is wrong with a file. Whether the flows fit the config is decided where the config is known.
//!
//! In this order, all numbers little-endian, everything packed:
//!
//! - [`Head`], 64 bytes, then `Head::names` bytes of JSON: `{"config": "gate.toml", "rules": ["acl/web"], "ports": ["lan"],
//!   "steering": {"workers": 2, "key": [1, 2, 3, 4]}}`. `Body::rule` is an index into these rules (or `NO_RULE`), `ingress` and
//!   `out` are indices into these ports (or `SELF_PORT` or `NO_PORT`).
//! - Chunks: bytes of an address (4 or 16) and a count, 32 bits each; so many entries, as they are in memory.
//! - A chunk of 0 addresses and 0 entries; IPv4 and IPv6 entries, 64 bits each; the CRC-32 of everything before it.
//!
//! Of an entry, `adjacency`, `hash` and `generation` mean something to the process alone that wrote them and are not read.
//! `expires` and `created` are absolute, so that the time between is counted.

use std::io::{self, Read, Write};

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use crate::packet::{NO_RULE, SELF_PORT};

use super::entry::{Entry, EntryV4, EntryV6, Key, mark};
use super::table::LAYOUT;
use super::tcp::State;

const MAGIC: [u8; 16] = *b"flowgate flows\n\0";
/// Entries of a chunk at most.
pub const CHUNK: usize = 4096;
/// Bytes that the names may take.
const NAMES: u32 = 64 << 20;

/// How a file begins.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Head {
    magic: [u8; 16],
    /// `table::LAYOUT`.
    layout: u32,
    /// Bytes of an IPv4 entry.
    v4: u32,
    /// Bytes of an IPv6 entry.
    v6: u32,
    /// Bytes of the names.
    names: u32,
    /// When it was saved, Unix nanoseconds.
    saved: u64,
    _rest: [u64; 3],
}

const _: () = assert!(size_of::<Head>() == 64);
const _: () = assert!(cfg!(target_endian = "little"), "entries are written as they are in memory");

/// What entries refer to by index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The config file, for whoever looks at the file.
    pub config: String,
    /// Rules, as `stage/name`.
    pub rules: Vec<String>,
    /// Ports.
    pub ports: Vec<String>,
    /// How packets were given to workers, if whoever wrote the file says so.
    #[serde(default)]
    pub steering: Option<Steering>,
}

/// How packets were given to workers. The two ways of a translated flow have two tuples, which meet in one worker because its
/// port was chosen so: elsewhere they would not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steering {
    /// How many there were.
    pub workers: usize,
    /// The key of the hash, which is as secret as the flows are.
    pub key: [u64; 4],
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum Unfit {
    /// It cannot be read.
    Io(io::Error),
    /// What is wrong with what is in it, and what to do.
    Content(String),
}

impl Unfit {
    fn damaged(what: impl std::fmt::Display) -> Unfit {
        Unfit::Content(format!("it is damaged: {what}; save it anew, or start without --flows"))
    }
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Unfit {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Unfit::damaged("it ends too early"),
            _ => Unfit::Io(error),
        }
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unfit::Io(error) => write!(f, "cannot be read: {error}"),
            Unfit::Content(message) => f.write_str(message),
        }
    }
}

/// Writes a file, or a stream that becomes one.
///
/// ```
/// use flowgate::flow::entry::{Body, Entry, EntryV4, KeyV4, mark};
/// use flowgate::flow::file::{Names, Writer};
/// # use bytemuck::Zeroable;
/// let (rules, ports) = (vec!["acl/web".into()], vec!["lan".into(), "wan".into()]);
/// let names = Names { config: "gate.toml".into(), rules, ports, steering: None };
/// let saved: u64 = 1_700_000_000_000_000_000;
/// let key = KeyV4 { src: [10, 0, 0, 1], dst: [192, 0, 2, 7], sport: 40000, dport: 53, domain: 0, proto: 17, wire: 1 };
/// let expires = flowgate::flow::timeout::ticks(saved + 3_600_000_000_000);
/// let body = Body { ingress: [0, 1], out: [1, 0], rule: 0, flags: mark::USED | mark::REPLIED, expires, ..Body::zeroed() };
/// let mut writer = Writer::new(Vec::new(), &names, saved)?;
/// writer.add(&[EntryV4::new(key, body)])?;
/// let bytes = writer.finish()?;
/// # assert!(bytes.len() > 192);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Writer<W> {
    out: W,
    sum: crc32fast::Hasher,
    counts: [u64; 2],
}

impl<W: Write> Writer<W> {
    /// Begins a file of flows as they are at `saved` (Unix nanoseconds).
    pub fn new(out: W, names: &Names, saved: u64) -> io::Result<Writer<W>> {
        let names = serde_json::to_vec(names)?;
        let len = u32::try_from(names.len()).ok().filter(|len| *len <= NAMES);
        let head = Head {
            magic: MAGIC,
            layout: LAYOUT,
            v4: size_of::<EntryV4>() as u32,
            v6: size_of::<EntryV6>() as u32,
            names: len.ok_or_else(|| io::Error::other("the names of rules and ports are too long"))?,
            saved,
            _rest: [0; 3],
        };
        let mut writer = Writer { out, sum: crc32fast::Hasher::new(), counts: [0; 2] };
        writer.put(bytemuck::bytes_of(&head))?;
        writer.put(&names)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    /// Adds flows.
    pub fn add<E: Entry>(&mut self, entries: &[E]) -> io::Result<()> {
        for chunk in entries.chunks(CHUNK) {
            self.put(bytemuck::bytes_of(&[E::Key::ADDRESS as u32, chunk.len() as u32]))?;
            self.put(bytemuck::cast_slice(chunk))?;
            self.counts[usize::from(E::Key::ADDRESS != 4)] += chunk.len() as u64;
        }
        Ok(())
    }

    /// Ends it. A file without this is refused.
    pub fn finish(mut self) -> io::Result<W> {
        self.put(bytemuck::bytes_of(&[0u32; 2]))?;
        self.put(bytemuck::bytes_of(&self.counts.clone()))?;
        let sum = self.sum.clone().finalize();
        self.out.write_all(&sum.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Flows of a file, of one family.
#[derive(Debug)]
pub enum Chunk<'a> {
    /// IPv4 flows.
    V4(&'a [EntryV4]),
    /// IPv6 flows.
    V6(&'a [EntryV6]),
}

/// Reads a file front to back.
pub struct Reader<R> {
    input: R,
    sum: crc32fast::Hasher,
    counts: [u64; 2],
    names: Names,
    saved: u64,
    v4: Vec<EntryV4>,
    v6: Vec<EntryV6>,
}

impl<R: Read> Reader<R> {
    /// Reads as far as the names. `input` need not be buffered.
    pub fn new(mut input: R) -> Result<Reader<R>, Unfit> {
        let mut sum = crc32fast::Hasher::new();
        let mut head = Head::zeroed();
        let foreign = || Unfit::Content("it is not a file of saved flows; \"flowgate flows save\" writes one".into());
        input.read_exact(bytemuck::bytes_of_mut(&mut head)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => foreign(),
            _ => Unfit::Io(error),
        })?;
        if head.magic != MAGIC {
            return Err(foreign());
        }
        let ours = (LAYOUT, size_of::<EntryV4>() as u32, size_of::<EntryV6>() as u32);
        if (head.layout, head.v4, head.v6) != ours {
            let of = |(layout, v4, v6)| format!("layout {layout} with entries of {v4} and {v6} bytes");
            let (theirs, ours) = (of((head.layout, head.v4, head.v6)), of(ours));
            return Err(Unfit::Content(format!(
                "it was saved by another version of flowgate: it has {theirs}, this one has {ours}; start without --flows"
            )));
        }
        if head.names > NAMES {
            return Err(Unfit::damaged("its names are too long"));
        }
        let mut names = vec![0; head.names as usize];
        input.read_exact(&mut names)?;
        sum.update(bytemuck::bytes_of(&head));
        sum.update(&names);
        let names =
            serde_json::from_slice(&names).map_err(|error| Unfit::damaged(format_args!("its names: {error}")))?;
        Ok(Reader { input, sum, counts: [0; 2], names, saved: head.saved, v4: Vec::new(), v6: Vec::new() })
    }

    /// What its entries refer to.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// When it was saved, Unix nanoseconds.
    pub fn saved(&self) -> u64 {
        self.saved
    }

    /// The next flows; none at the end, when all of the file has proved to be whole. Indices of rules and ports are those of
    /// names.
    pub fn chunk(&mut self) -> Result<Option<Chunk<'_>>, Unfit> {
        let mut head = [0u32; 2];
        self.take(bytemuck::bytes_of_mut(&mut head))?;
        let count = head[1] as usize;
        if count > CHUNK {
            return Err(Unfit::damaged("a chunk is too long"));
        }
        match head[0] {
            4 => {
                self.v4.resize(count, EntryV4::zeroed());
                read(&mut self.input, &mut self.sum, bytemuck::cast_slice_mut(&mut self.v4))?;
                self.counts[0] += count as u64;
                check(&self.v4, &self.names)?;
                Ok(Some(Chunk::V4(&self.v4)))
            }
            16 => {
                self.v6.resize(count, EntryV6::zeroed());
                read(&mut self.input, &mut self.sum, bytemuck::cast_slice_mut(&mut self.v6))?;
                self.counts[1] += count as u64;
                check(&self.v6, &self.names)?;
                Ok(Some(Chunk::V6(&self.v6)))
            }
            0 if count == 0 => self.end().map(|()| None),
            _ => Err(Unfit::damaged("a chunk is of no known family")),
        }
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<(), Unfit> {
        read(&mut self.input, &mut self.sum, bytes)
    }

    fn end(&mut self) -> Result<(), Unfit> {
        let mut counts = [0u64; 2];
        self.take(bytemuck::bytes_of_mut(&mut counts))?;
        let expected = self.sum.clone().finalize();
        let mut sum = [0; 4];
        self.input.read_exact(&mut sum)?;
        if u32::from_le_bytes(sum) != expected {
            return Err(Unfit::damaged("its checksum is wrong"));
        }
        if counts != self.counts {
            return Err(Unfit::damaged("it does not hold as many flows as it says"));
        }
        match self.input.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(Unfit::damaged("something stands behind its end")),
        }
    }
}

fn read(input: &mut impl Read, sum: &mut crc32fast::Hasher, bytes: &mut [u8]) -> Result<(), Unfit> {
    input.read_exact(bytes)?;
    sum.update(bytes);
    Ok(())
}

/// What must hold of every entry: it is in use, what it refers to has a name, its states are states, and its two ways have two
/// tuples.
fn check<E: Entry>(entries: &[E], names: &Names) -> Result<(), Unfit> {
    for entry in entries {
        let body = entry.body();
        let named = |port: u8| usize::from(port) < names.ports.len() || port >= SELF_PORT;
        let states = body.states.0;
        let good = body.has(mark::USED)
            && body.ingress.into_iter().chain(body.out).all(named)
            && (body.rule == NO_RULE || usize::from(body.rule) < names.rules.len())
            && (states & 0xf).max(states >> 4) <= State::TimeWait as u8
            && !(body.has(mark::TRANSLATED) && entry.key().is(&entry.reply_key()));
        if !good {
            return Err(Unfit::damaged("an entry refers to a rule, port, state or way back that there is not"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Body, KeyV4, KeyV6};
    use super::super::tcp::{End, States, Tcp};
    use super::*;

    fn names() -> Names {
        let steering = Some(Steering { workers: 2, key: [u64::MAX, 1, 2, 3] });
        let (rules, ports) = (vec!["acl/web".into()], vec!["lan".into(), "wan".into()]);
        Names { config: "gate.toml".into(), rules, ports, steering }
    }

    fn body(n: u32) -> Body {
        let end = |n| End { next: n, limit: n + 1, acked: n + 2, window: n + 3 };
        Body {
            ingress: [0, 1],
            out: [1, 0],
            flags: mark::USED,
            states: States(0x44),
            tcp: Tcp { ends: [end(n), end(n + 9)], scale: [7, 8], flags: 3 },
            bytes: [n.into(), 5],
            packets: [n, 1],
            packets_high: [1, 0],
            delta: n,
            expires: n,
            ..Body::zeroed()
        }
    }

    fn v4(n: u32) -> EntryV4 {
        let key = KeyV4 { src: n.to_be_bytes(), dst: [1; 4], sport: 5, dport: 6, domain: 7, proto: 6, wire: 1 };
        EntryV4::new(key, body(n))
    }

    fn v6(n: u32) -> EntryV6 {
        let key = KeyV6 { src: [n as u8; 16], dst: [1; 16], sport: 5, dport: 6, domain: 7, proto: 6, wire: 1 };
        let mut entry = EntryV6::new(key, body(n));
        entry.set_translation(KeyV6 { src: [0x77; 16], ..key });
        entry
    }

    fn file(v4s: u32, v6s: u32) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &names(), 77).expect("memory");
        writer.add(&(0..v4s).map(v4).collect::<Vec<_>>()).expect("memory");
        writer.add(&(0..v6s).map(v6).collect::<Vec<_>>()).expect("memory");
        writer.finish().expect("memory")
    }

    /// All entries as bytes.
    fn load(mut bytes: &[u8]) -> Result<(Names, u64, Vec<u8>), Unfit> {
        let mut reader = Reader::new(&mut bytes)?;
        let mut all = Vec::new();
        loop {
            match reader.chunk()? {
                Some(Chunk::V4(entries)) => all.extend_from_slice(bytemuck::cast_slice(entries)),
                Some(Chunk::V6(entries)) => all.extend_from_slice(bytemuck::cast_slice(entries)),
                None => return Ok((reader.names().clone(), reader.saved(), all)),
            }
        }
    }

    #[test]
    fn what_was_written_comes_back() {
        let (names_back, saved, all) = load(&file(5000, 10)).expect("whole");
        assert_eq!((names_back, saved), (names(), 77));
        let mut expected: Vec<u8> = (0..5000).flat_map(|n| bytemuck::bytes_of(&v4(n)).to_vec()).collect();
        expected.extend((0..10).flat_map(|n| bytemuck::bytes_of(&v6(n)).to_vec()));
        assert!(all == expected);
        assert!(load(&file(0, 0)).expect("whole").2.is_empty());
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let refusal = |bytes: &[u8]| load(bytes).expect_err("refused").to_string();
        let good = file(3, 2);
        for len in 0..good.len() {
            let why = refusal(&good[..len]);
            assert!(
                why.contains(if len < 64 { "not a file of saved flows" } else { "ends too early" }),
                "{len}: {why}"
            );
        }
        assert!(refusal(&[&good[..], b"x"].concat()).contains("behind its end"));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            refusal(&bad);
        }
        let changed = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            refusal(&bad)
        };
        assert!(changed(0).contains("not a file of saved flows"));
        for at in [16, 20, 24] {
            assert!(changed(at).contains("another version of flowgate"), "{}", changed(at));
        }
        assert!(changed(good.len() - 1).contains("checksum"));
    }

    #[test]
    fn entries_that_refer_to_nothing_are_refused() {
        for wrong in [
            Body { rule: 1, ..body(1) },
            Body { ingress: [2, 0], ..body(1) },
            Body { out: [0, 2], ..body(1) },
            Body { flags: 0, ..body(1) },
            Body { states: States(0xb0), ..body(1) },
        ] {
            let mut writer = Writer::new(Vec::new(), &names(), 0).expect("memory");
            writer.add(&[EntryV4::new(*v4(1).key(), wrong)]).expect("memory");
            let why = load(&writer.finish().expect("memory")).expect_err("refused").to_string();
            assert!(why.contains("refers to"), "{why}");
        }
        let mut circular = v4(1);
        circular.set_translation(circular.key().reversed());
        let mut writer = Writer::new(Vec::new(), &names(), 0).expect("memory");
        writer.add(&[circular]).expect("memory");
        let why = load(&writer.finish().expect("memory")).expect_err("refused").to_string();
        assert!(why.contains("way back"), "{why}");
    }
}
