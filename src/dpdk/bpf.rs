//! Programs that judge frames, verified and compiled to machine code by rte_bpf.
//!
//! Owns the programs and how a frame is presented to them; what they are for is a stage's matter. A classic filter reads
//! the frame in place, through loads that rte_bpf bounds by the frame's length. A user's eBPF program is only bounded by what
//! rte_bpf's verifier can prove before it runs, and nothing keeps it from writing: it therefore runs on a private copy of
//! the part of the frame that it can reach, so that whatever it does, the packet stays as it was.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use dpdk_sys as sys;
use pcap::BpfProgram;

use crate::packet::{BATCH, Frame, Mask, bits};

use super::{Eal, Errno};

type Jit = unsafe extern "C" fn(*mut c_void) -> u64;

/// An eBPF instruction, as the ELF object and rte_bpf have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Offset of a jump or a memory access.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == size_of::<sys::ebpf_insn>());

impl Instruction {
    /// Bytes of one instruction.
    pub const SIZE: usize = 8;

    /// An instruction, part by part.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction { code, registers: destination | source << 4, offset, immediate }
    }

    /// An instruction of a little-endian object.
    pub fn from_le_bytes(bytes: [u8; Instruction::SIZE]) -> Instruction {
        let [code, registers, o0, o1, i0, i1, i2, i3] = bytes;
        let (offset, immediate) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
        Instruction { code, registers, offset, immediate }
    }

    /// The destination register.
    pub fn destination(self) -> u8 {
        self.registers & 0x0f
    }

    /// The source register.
    pub fn source(self) -> u8 {
        self.registers >> 4
    }

    /// True if it goes on elsewhere, always or on a condition.
    pub fn is_jump(self) -> bool {
        self.code & 0x07 == 0x05 && !matches!(self.code, 0x85 | 0x95)
    }

    /// True if rte_bpf's compiler for x86 gets it wrong (seen in 22.11, still there in 2026).
    fn is_miscompiled(self) -> bool {
        match self.code {
            // A test of bits against a number of one byte: it writes one byte where the processor reads four.
            JUMP_IF_SET => i8::try_from(self.immediate).is_ok(),
            // 32-bit division by a register: it clears the upper half of r0.
            0x3c | 0x9c => true,
            // Division of a register by itself: it divides by something else if that is r0 or r3.
            0x3f | 0x9f => self.destination() == self.source(),
            _ => false,
        }
    }
}

/// Puts what `with` returns in the place of each instruction, jumps following. For a jump, the last of what is returned
/// carries it. Also returns, for each new instruction, the old one.
pub fn splice(
    instructions: &[Instruction],
    mut with: impl FnMut(usize, Instruction) -> Vec<Instruction>,
) -> (Vec<Instruction>, Vec<usize>) {
    let (mut spliced, mut origin, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for (at, &instruction) in instructions.iter().enumerate() {
        starts.push(spliced.len());
        spliced.extend(with(at, instruction));
        origin.resize(spliced.len(), at);
    }
    starts.push(spliced.len());
    for (at, instruction) in instructions.iter().enumerate().filter(|(_, instruction)| instruction.is_jump()) {
        let from = starts[at + 1] - 1;
        let to = at.checked_add_signed(1 + isize::from(instruction.offset)).and_then(|to| starts.get(to));
        // A jump that has become too long leads outside, and the program is refused.
        let offset = to.and_then(|to| i16::try_from(*to as isize - from as isize - 1).ok());
        spliced[from].offset = offset.unwrap_or(i16::MAX);
    }
    (spliced, origin)
}

/// A loaded program. It is never written after loading.
#[derive(Debug)]
struct Program {
    raw: NonNull<sys::rte_bpf>,
    form: Form,
}

/// How a program runs.
#[derive(Debug)]
enum Form {
    /// As machine code.
    Machine { run: Jit, bytes: usize },
    /// Interpreted: rte_bpf could not get executable memory.
    Refused,
    /// Interpreted: it has an instruction that rte_bpf compiles wrongly.
    Distrusted,
}

// SAFETY: rte_bpf makes the program read-only memory before rte_bpf_load returns; running it only reads it.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: `raw` came from rte_bpf_load and is destroyed once, here. Program and machine code are mappings of their own
        // (bpf_load.c, bpf_jit_x86.c), not of the EAL's memory, so that the EAL may have been closed.
        unsafe { sys::rte_bpf_destroy(self.raw.as_ptr()) }
    }
}

impl Program {
    /// Verifies and compiles; the error is what rte_bpf had to say.
    fn load(instructions: &[Instruction], argument: sys::rte_bpf_arg) -> Result<Program, String> {
        let parameters = sys::rte_bpf_prm {
            ins: instructions.as_ptr().cast(),
            nb_ins: u32::try_from(instructions.len()).map_err(|_| "it is too long".to_owned())?,
            prog_arg: argument,
            ..sys::rte_bpf_prm::default()
        };
        // SAFETY: the parameters refer to nb_ins live instructions, which rte_bpf_load copies.
        let (raw, words) = logged(|| unsafe { sys::rte_bpf_load(&parameters) });
        let Some(raw) = NonNull::new(raw) else {
            return Err(if words.is_empty() { "rte_bpf refused it without a word".into() } else { words });
        };
        let mut jit = sys::rte_bpf_jit::default();
        // SAFETY: `raw` is a loaded program, `jit` is written by the call.
        unsafe { sys::rte_bpf_get_jit(raw.as_ptr(), &mut jit) };
        let form = if instructions.iter().any(|instruction| instruction.is_miscompiled()) {
            Form::Distrusted
        } else {
            jit.func.map_or(Form::Refused, |run| Form::Machine { run, bytes: jit.sz })
        };
        Ok(Program { raw, form })
    }

    /// Its machine code, if it has any.
    fn jit(&self) -> Option<Jit> {
        match self.form {
            Form::Machine { run, .. } => Some(run),
            Form::Refused | Form::Distrusted => None,
        }
    }

    /// How it runs, for people.
    fn form(&self) -> String {
        match self.form {
            Form::Machine { bytes, .. } => format!("{bytes} bytes of machine code"),
            Form::Refused => "interpreted: the system refuses memory that is first written and then executed".into(),
            Form::Distrusted => "interpreted: DPDK compiles one of its instructions wrongly".into(),
        }
    }
}

/// A classic filter (tcpdump's), which sees frames in place.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    /// Classic instructions.
    pub classic: usize,
    /// eBPF instructions they became.
    pub instructions: usize,
}

impl Filter {
    /// Converts what libpcap compiled, in the memory of a started EAL; the error is DPDK's reason.
    pub fn new(_eal: &Eal, classic: &BpfProgram) -> Result<Filter, String> {
        // SAFETY: BpfProgram is a transparent wrapper of libpcap's struct bpf_program, which is what rte_bpf_convert reads.
        let convert = || unsafe { sys::rte_bpf_convert(std::ptr::from_ref(classic).cast()) };
        let (parameters, words) = logged(convert);
        let Some(parameters) = NonNull::new(parameters) else {
            return Err(if words.is_empty() { format!("rte_bpf cannot convert it: {}", Errno::last()) } else { words });
        };
        // SAFETY: rte_bpf_convert returned one initialised rte_bpf_prm, which refers to nb_ins instructions in the same
        // block; it lives until rte_free below.
        let (instructions, argument) = unsafe {
            let parameters = parameters.as_ref();
            (
                std::slice::from_raw_parts(parameters.ins.cast(), parameters.nb_ins as usize).to_vec(),
                parameters.prog_arg,
            )
        };
        // SAFETY: the block is rte_bpf_convert's, from rte_zmalloc, and nothing refers to it any more.
        unsafe { sys::rte_free(parameters.as_ptr().cast()) };
        let instructions = mend(&instructions);
        let program = Program::load(&instructions, argument)?;
        Ok(Filter { program, classic: classic.get_instructions().len(), instructions: instructions.len() })
    }

    /// Those frames of `mask` that it matches.
    #[inline]
    pub fn matches(&self, frames: &[Frame; BATCH], mask: Mask) -> Mask {
        let bpf = self.program.raw.as_ptr().cast();
        // SAFETY: Frame has fg_frame's layout, a mask names no frame beyond BATCH, and the program was verified for an mbuf
        // argument: it reads the bytes the call's own mbuf header describes, which are the frame's, and writes nothing but
        // that header and its stack.
        unsafe { sys::fg_bpf_exec_burst(self.program.jit(), bpf, frames.as_ptr().cast(), mask) }
    }

    /// How it runs, for people.
    pub fn form(&self) -> String {
        self.program.form()
    }
}

const JUMP_IF_SET: u8 = 0x45;
const JUMP_IF_SET_REGISTER: u8 = 0x4d;
const JUMP_IF_GREATER: u8 = 0x25;
const MOVE_32: u8 = 0xb4;
const EXIT: u8 = 0x95;
/// The register that holds a converted filter's X, and one that it does not use.
const X: u8 = 7;
const SPARE: u8 = 9;

/// Sets right what rte_bpf_convert and what runs its result get wrong (in 22.11 at least):
/// - loads of a byte or a word at `[x + k]` are converted to loads at `[a + k]`;
/// - a load that begins less than four bytes below 2^32 wraps around and reads outside the packet: libpcap's filters end with
///   "no match" at every load outside it, and no frame is longer than 65,535 bytes;
/// - tests that are miscompiled ([`Instruction::is_miscompiled`]).
fn mend(converted: &[Instruction]) -> Vec<Instruction> {
    const LONGEST: i32 = u16::MAX as i32;
    /// Jumps here are pointed at the end below.
    const NO_MATCH: i16 = i16::MIN;
    let (mut mended, _) = splice(converted, |_, instruction| match instruction.code {
        0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 if !(0..=LONGEST).contains(&instruction.immediate) => {
            // On a condition that is always true, so that what follows stays reachable for the verifier.
            vec![Instruction::new(MOVE_32, SPARE, 0, 0, 1), Instruction::new(JUMP_IF_GREATER, SPARE, 0, NO_MATCH, 0)]
        }
        0x40 | 0x48 | 0x50 => vec![
            Instruction::new(JUMP_IF_GREATER, X, 0, NO_MATCH, LONGEST),
            Instruction::new(instruction.code, instruction.destination(), X, 0, instruction.immediate),
        ],
        JUMP_IF_SET if instruction.is_miscompiled() => vec![
            Instruction::new(MOVE_32, SPARE, 0, 0, instruction.immediate),
            Instruction::new(JUMP_IF_SET_REGISTER, instruction.destination(), SPARE, 0, 0),
        ],
        _ => vec![instruction],
    });
    let end = mended.len();
    let mut used = false;
    for (at, instruction) in mended.iter_mut().enumerate().filter(|(_, i)| i.is_jump() && i.offset == NO_MATCH) {
        // Too far for a jump: leads outside, and the filter is refused.
        instruction.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        used = true;
    }
    if used {
        mended.extend([Instruction::new(MOVE_32, 0, 0, 0, 0), Instruction::new(EXIT, 0, 0, 0, 0)]);
    }
    mended
}

/// A user's eBPF program: first argument the frame's bytes, second their number, non-zero to pass.
#[derive(Debug)]
pub struct Object {
    program: Program,
    reach: usize,
    writes: bool,
}

/// Where the length stands before the bytes.
const HEAD: usize = 8;

/// rte_bpf hands over one argument: a pointer to the length, with the bytes behind it. These make two of it.
const PROLOGUE: [Instruction; 2] = [
    // r2 = *(u16 *)(r1 + 0)
    Instruction::new(0x69, 2, 1, 0, 0),
    // r1 += HEAD
    Instruction::new(0x07, 1, 0, 0, HEAD as i32),
];

impl Object {
    /// The furthest byte of a frame that a program may look at, plus one.
    pub const REACH: usize = 16 * 1024;
    /// Instructions that are put before the program: what the verifier says of `pc: N` is about the program's `N - LEAD`.
    pub const LEAD: usize = PROLOGUE.len();

    /// Verifies and compiles a program that has been found to be self-contained (no maps, no calls, every jump within it).
    /// The error is the verifier's, program counters included.
    pub fn new(instructions: &[Instruction]) -> Result<Object, String> {
        let all = [&PROLOGUE, instructions].concat();
        let load = |reach: usize| {
            let argument = sys::rte_bpf_arg { type_: sys::RTE_BPF_ARG_PTR, size: HEAD + reach, ..Default::default() };
            Program::load(&all, argument)
        };
        let (mut program, mut reach) = (load(Object::REACH)?, Object::REACH);
        // What the verifier accepts for a size it accepts for any larger one, so the least accepted size is what the program
        // can reach, and all that has to be copied for it.
        let mut refused = None;
        while refused.map_or(reach > 0, |low| low + 1 < reach) {
            let size = refused.map_or(0, |low| (low + reach) / 2);
            match load(size) {
                Ok(smaller) => (program, reach) = (smaller, size),
                Err(_) => refused = Some(size),
            }
        }
        // Stores through the frame pointer r10 go to the stack; through another register they may go anywhere it points.
        let writes = instructions.iter().any(|i| matches!(i.code & 0x07, 0x02 | 0x03) && i.destination() != 10);
        Ok(Object { program, reach, writes })
    }

    /// Bytes of a frame that it can look at.
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// True if it may write to the bytes it is given.
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// How it runs, for people.
    pub fn form(&self) -> String {
        self.program.form()
    }
}

/// A program in one worker, with its copy of the frame that it looks at: the frame's length, then its bytes, then zeros.
#[derive(Debug)]
pub struct Runner {
    object: Arc<Object>,
    words: Box<[u64]>,
    filled: usize,
}

impl Runner {
    /// Room for a program and its copies.
    pub fn new(object: Arc<Object>) -> Runner {
        let words = vec![0; (HEAD + object.reach).div_ceil(size_of::<u64>())].into();
        Runner { object, words, filled: 0 }
    }

    /// Those frames of `mask` for which the program returns non-zero.
    #[inline]
    pub fn passes(&mut self, frames: &[Frame; BATCH], mask: Mask) -> Mask {
        let mut passed = 0;
        for i in bits(mask) {
            let argument = self.fill(frames[i].bytes());
            let program = &self.object.program;
            // SAFETY: the program was verified for HEAD + reach bytes at its argument, which `words` holds.
            let verdict = unsafe {
                match program.jit() {
                    Some(jit) => jit(argument),
                    None => sys::rte_bpf_exec(program.raw.as_ptr(), argument),
                }
            };
            passed |= Mask::from(verdict != 0) << i;
        }
        passed
    }

    /// Copies what the program can reach of a frame; whatever an earlier frame (or the program itself, if it writes) has
    /// left behind it becomes zero, so that the same frame always gets the same verdict.
    #[inline]
    fn fill(&mut self, frame: &[u8]) -> *mut c_void {
        let reach = self.object.reach;
        let length = frame.len().min(reach);
        let dirty = if self.object.writes { reach } else { self.filled };
        self.words[0] = frame.len() as u64;
        let start = self.words.as_mut_ptr().cast::<u8>();
        // SAFETY: `words` holds HEAD + reach bytes, length and dirty are at most reach, and the frame is another buffer.
        unsafe {
            let bytes = start.add(HEAD);
            std::ptr::copy_nonoverlapping(frame.as_ptr(), bytes, length);
            if dirty > length {
                std::ptr::write_bytes(bytes.add(length), 0, dirty - length);
            }
        }
        self.filled = length;
        start.cast()
    }
}

/// A file in memory that DPDK's log is turned to for the length of a call. It is never closed: another thread may hold the
/// stream for a moment longer.
struct Log {
    stream: *mut libc::FILE,
    file: File,
}

// SAFETY: used under the mutex only; stdio locks the stream itself.
unsafe impl Send for Log {}

static LOG: LazyLock<Option<Mutex<Log>>> = LazyLock::new(|| {
    // SAFETY: plain calls on a name and on descriptors that are checked; each descriptor has one owner.
    unsafe {
        let ours = libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC);
        let streams = if ours < 0 { -1 } else { libc::fcntl(ours, libc::F_DUPFD_CLOEXEC, 0) };
        if streams < 0 {
            return None;
        }
        let stream = libc::fdopen(streams, c"a".as_ptr());
        (!stream.is_null()).then(|| Mutex::new(Log { stream, file: File::from_raw_fd(ours) }))
    }
});

/// Runs `call` and returns, besides its result, what DPDK logged meanwhile: one line, its parts joined by `; `.
fn logged<T>(call: impl FnOnce() -> T) -> (T, String) {
    let Some(log) = LOG.as_ref() else {
        return (call(), String::new());
    };
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the stream is never closed, and the one before is put back.
    let result = unsafe {
        let before = sys::rte_log_get_stream();
        sys::rte_openlog_stream(log.stream.cast());
        let result = call();
        sys::rte_openlog_stream(before);
        libc::fflush(log.stream);
        result
    };
    let mut text = String::new();
    let read = log.file.rewind().and_then(|()| log.file.read_to_string(&mut text)).and_then(|_| log.file.set_len(0));
    if read.is_err() {
        text.clear();
    }
    let words: Vec<&str> = text
        .lines()
        .map(|line| line.trim_start_matches("BPF: ").trim().trim_end_matches(';'))
        .filter(|line| !line.is_empty())
        .collect();
    (result, words.join("; "))
}

#[cfg(test)]
mod tests {
    use pcap::{Capture, Linktype};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::frame::Heap;

    fn converted(classic: &BpfProgram) -> Filter {
        let eal = Eal::offline(1024).expect("an EAL");
        Filter::new(eal, classic).expect("converted")
    }

    fn classic(expression: &str) -> BpfProgram {
        Capture::dead(Linktype::ETHERNET).and_then(|dead| dead.compile(expression, true)).expect("an expression")
    }

    fn matches(filter: &Filter, packets: &[Vec<u8>]) -> Mask {
        let mut heap = Heap::new(BATCH, 2000);
        let mut frames = [const { Frame::EMPTY }; BATCH];
        for (slot, packet) in frames.iter_mut().zip(packets) {
            *slot = heap.frame(packet).expect("room");
        }
        let mask = if packets.len() == BATCH { Mask::MAX } else { (1 << packets.len()) - 1 };
        let result = filter.matches(&frames, mask);
        frames[..packets.len()].iter_mut().for_each(|frame| heap.give_back(frame.take()));
        result
    }

    const EXPRESSIONS: &[&str] = &[
        "tcp port 80",
        "udp port 1900 or udp port 5353",
        "ip6 and not icmp6",
        "host 10.0.0.1 or host 2001:db8::1",
        "less 60",
        "greater 200",
        "ip[0] & 0xf > 5",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "vlan and ip",
        "ether broadcast",
        "ip[2:2] > 576 and ip[6:2] & 0x1fff = 0",
        "udp[8:4] = 0x01020304",
        "ether[len - 1] = 0",
        "ip proto 47 or arp",
        "tcp portrange 1000-2000",
        "ip[8] * 3 / 2 - 7 > 90",
        "ether[14] << (ether[15] & 7) > 300",
        "ip[8] / ip[9] > 2 or ether[14] % ether[15] = 3",
        "tcp[13] & 2 != 0 and tcp[4:4] & 1 = 0",
        "ether[ether[14:4]] = 0 or ether[ether[14:4]:4] & 8 != 0",
        "ether[ether[16:1]:2] > 100 and udp[1] & 64 = 64",
        "ether[4294967295] = 0 or ether[0] = 2",
        "ether[ether[14] + 4294967295] & 127 != 0",
    ];

    /// Bytes that look like packets often enough to get past an expression's first tests.
    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let ether = prop_oneof![
            4 => Just(vec![0x08, 0x00]),
            2 => Just(vec![0x86, 0xdd]),
            1 => Just(vec![0x08, 0x06]),
            2 => Just(vec![0x81, 0x00, 0, 5, 0x08, 0x00]),
            1 => proptest::collection::vec(any::<u8>(), 2),
        ];
        let l3 = (0x44u8..0x48, prop_oneof![Just(1u8), Just(6), Just(17), Just(47), any::<u8>()], any::<bool>());
        let port = prop_oneof![Just(80u16), Just(1900), Just(5353), Just(1500), any::<u16>()];
        let rest = proptest::collection::vec(any::<u8>(), 0..300);
        (any::<bool>(), ether, l3, port.clone(), port, rest, 0usize..400).prop_map(
            |(broadcast, ether, (first, proto, fragment), sport, dport, rest, cut)| {
                let mut bytes = vec![if broadcast { 0xff } else { 2 }; 12];
                bytes.extend(&ether);
                let ip = bytes.len();
                bytes.extend([first, 0, 2, 0x41, 0, 0, u8::from(fragment) << 5, 0, 64, proto, 0, 0]);
                bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
                if ether == [0x86, 0xdd] {
                    bytes[ip] = 0x60;
                    bytes[ip + 6] = proto;
                    bytes.resize(ip + 40, 0);
                }
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(rest);
                bytes.truncate(cut);
                bytes
            },
        )
    }

    proptest! {
        /// libpcap's own interpreter is the other opinion on every filter, machine code and interpreted.
        #[test]
        fn agrees_with_libpcap(packets in proptest::collection::vec(packet(), 1..=BATCH), which in 0..EXPRESSIONS.len()) {
            let classic = classic(EXPRESSIONS[which]);
            let mut filter = converted(&classic);
            let expected = packets.iter().enumerate().fold(0, |mask, (i, p)| mask | Mask::from(classic.filter(p)) << i);
            prop_assert_eq!(matches(&filter, &packets), expected, "{}", EXPRESSIONS[which]);
            filter.program.form = Form::Refused;
            prop_assert_eq!(matches(&filter, &packets), expected, "{} interpreted", EXPRESSIONS[which]);
        }
    }

    #[test]
    fn a_filter_sees_only_the_mask() {
        let filter = converted(&classic("greater 0"));
        assert!(filter.classic > 0 && filter.instructions > 0 && filter.form().contains("machine code"));
        let frames = [const { Frame::EMPTY }; BATCH];
        assert_eq!(filter.matches(&frames, 0), 0);
        assert_eq!(filter.matches(&frames, 1 << 63 | 1), 1 << 63 | 1);
    }

    /// r0 = *(u8 *)(r1 + at); exit
    fn byte_at(at: i16) -> [Instruction; 2] {
        [Instruction::new(0x71, 0, 1, at, 0), Instruction::new(EXIT, 0, 0, 0, 0)]
    }

    #[test]
    fn reach_is_what_the_program_can_see() {
        for at in [0, 1, 53, 1499, Object::REACH as i16 - 1] {
            let object = Object::new(&byte_at(at)).expect("verified");
            assert_eq!((object.reach, object.writes), (at as usize + 1, false));
        }
        let nothing = Instruction::new(0xbf, 0, 2, 0, 0);
        assert_eq!(Object::new(&[nothing, byte_at(0)[1]]).expect("verified").reach, 0, "r0 = r2");
        let words = Object::new(&byte_at(Object::REACH as i16)).expect_err("beyond");
        assert!(words.contains("memory boundary violation at pc: 2"), "{words}");
    }

    /// One instruction on registers r0 to r5: arithmetic of both widths, byte order, or a jump over the next one to three.
    fn anything() -> impl Strategy<Value = Instruction> {
        let alu =
            proptest::sample::select(&[0x00u8, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0, 0xb0, 0xc0][..]);
        let jump = proptest::sample::select(&[0x10u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0][..]);
        let number = prop_oneof![-200i32..200, any::<i32>(), Just(i32::MIN), Just(i32::MAX)];
        let registers = (0u8..6, 0u8..6);
        let arithmetic = (alu, any::<(bool, bool)>(), registers.clone(), number.clone()).prop_map(
            |(operation, (wide, by_register), (to, from), number)| {
                let class = if wide { 0x07 } else { 0x04 };
                match (operation, by_register) {
                    // Shifts by more than the width mean nothing; division by the number zero is refused.
                    (0x60 | 0x70 | 0xc0, _) => Instruction::new(class | operation, to, 0, 0, number & 31),
                    (0x30 | 0x90, false) => Instruction::new(class | operation, to, 0, 0, number | 1),
                    (_, true) => Instruction::new(class | 0x08 | operation, to, from, 0, 0),
                    (_, false) => Instruction::new(class | operation, to, 0, 0, number),
                }
            },
        );
        // To little-endian is not among them: there the interpreter is wrong, and the loader replaces it.
        let order = (0u8..6, proptest::sample::select(&[16, 32, 64][..]))
            .prop_map(|(to, width)| Instruction::new(0xdc, to, 0, 0, width));
        let jumps =
            (jump, any::<bool>(), registers, 1i16..4, number).prop_map(|(test, by, (to, from), over, number)| {
                if by {
                    Instruction::new(0x0d | test, to, from, over, 0)
                } else {
                    Instruction::new(0x05 | test, to, 0, over, number)
                }
            });
        prop_oneof![6 => arithmetic, 1 => order, 3 => jumps]
    }

    proptest! {
        /// The interpreter is the other opinion on rte_bpf's compiler, for what users' programs are made of.
        #[test]
        fn machine_code_agrees_with_the_interpreter(
            body in proptest::collection::vec(anything(), 1..40),
            frame in proptest::collection::vec(any::<u8>(), 48..60),
        ) {
            let mut program: Vec<_> = [0u8, 2, 3, 4, 5, 1]
                .map(|register| Instruction::new(if register % 2 == 0 { 0x79 } else { 0x61 }, register, 1, i16::from(register) * 8, 0))
                .to_vec();
            let end = program.len() + body.len();
            program.extend(body);
            for (at, instruction) in program.iter_mut().enumerate() {
                if instruction.is_jump() {
                    instruction.offset = instruction.offset.min((end - at - 1) as i16);
                }
            }
            program.push(Instruction::new(EXIT, 0, 0, 0, 0));
            let Ok(object) = Object::new(&program) else { return Ok(()) };
            let mut runner = Runner::new(Arc::new(object));
            let argument = runner.fill(&frame);
            let loaded = &runner.object.program;
            if let Some(jit) = loaded.jit() {
                // SAFETY: as in `passes`.
                let (compiled, interpreted) = unsafe { (jit(argument), sys::rte_bpf_exec(loaded.raw.as_ptr(), argument)) };
                prop_assert_eq!(compiled, interpreted);
            }
        }
    }

    #[test]
    fn what_is_compiled_wrongly_is_interpreted() {
        // if (r2 & 1) goto exit
        let test = [Instruction::new(0xbf, 0, 2, 0, 0), Instruction::new(JUMP_IF_SET, 2, 0, 0, 1), byte_at(0)[1]];
        let object = Object::new(&test).expect("verified");
        assert!(matches!(object.program.form, Form::Distrusted), "{}", object.form());
    }

    #[test]
    fn interpreted_objects_decide_alike() {
        let mut object = Object::new(&byte_at(5)).expect("verified");
        for interpreted in [false, true] {
            if interpreted {
                object.program.form = Form::Refused;
                assert!(object.form().starts_with("interpreted"));
            }
            let mut heap = Heap::new(3, 64);
            let mut frames = [const { Frame::EMPTY }; BATCH];
            for (slot, bytes) in frames.iter_mut().zip([&[9u8; 6][..], &[9; 5], &[0; 6]]) {
                *slot = heap.frame(bytes).expect("room");
            }
            let shared = Arc::new(object);
            let mut runner = Runner::new(shared.clone());
            assert_eq!(runner.passes(&frames, 0b111), 0b001, "behind a frame's end is zero, whatever came before");
            drop(runner);
            object = Arc::into_inner(shared).expect("the last");
            frames[..3].iter_mut().for_each(|frame| heap.give_back(frame.take()));
        }
    }
}
