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
}

/// A loaded program. It is never written after loading.
#[derive(Debug)]
struct Program {
    raw: NonNull<sys::rte_bpf>,
    jit: Option<Jit>,
    jit_bytes: usize,
}

// SAFETY: rte_bpf makes the program read-only memory before rte_bpf_load returns; running it only reads it.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: `raw` came from rte_bpf_load and is destroyed once, here.
        unsafe { sys::rte_bpf_destroy(self.raw.as_ptr()) }
    }
}

impl Program {
    /// Verifies and compiles; the error is what rte_bpf had to say.
    fn load(parameters: &sys::rte_bpf_prm) -> Result<Program, String> {
        // SAFETY: the caller's parameters refer to live instructions, which rte_bpf_load copies.
        let (raw, words) = logged(|| unsafe { sys::rte_bpf_load(parameters) });
        let Some(raw) = NonNull::new(raw) else {
            return Err(if words.is_empty() { "rte_bpf refused it without a word".into() } else { words });
        };
        let mut jit = sys::rte_bpf_jit::default();
        // SAFETY: `raw` is a loaded program, `jit` is written by the call.
        unsafe { sys::rte_bpf_get_jit(raw.as_ptr(), &mut jit) };
        // Without a function (a system that refuses memory which is first written and then executed) it is interpreted.
        Ok(Program { raw, jit: jit.func, jit_bytes: if jit.func.is_some() { jit.sz } else { 0 } })
    }

    /// How it runs, for people.
    fn form(&self) -> String {
        match self.jit {
            Some(_) => format!("{} bytes of machine code", self.jit_bytes),
            None => "interpreted: the system refuses memory that is first written and then executed".into(),
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
    /// Converts what libpcap compiled. An EAL must have been started; the error is DPDK's reason.
    pub fn new(classic: &BpfProgram) -> Result<Filter, String> {
        // SAFETY: BpfProgram is a transparent wrapper of libpcap's struct bpf_program, which is what rte_bpf_convert reads.
        let convert = || unsafe { sys::rte_bpf_convert(std::ptr::from_ref(classic).cast()) };
        let (parameters, words) = logged(convert);
        let Some(parameters) = NonNull::new(parameters) else {
            let why = std::io::Error::from_raw_os_error(errno());
            return Err(if words.is_empty() { format!("rte_bpf cannot convert it: {why}") } else { words });
        };
        // SAFETY: rte_bpf_convert returned one initialised rte_bpf_prm, which lives until rte_free below.
        let (program, instructions) = unsafe { (Program::load(parameters.as_ref()), parameters.as_ref().nb_ins) };
        // SAFETY: the block is rte_bpf_convert's, from rte_zmalloc; the program holds a copy.
        unsafe { sys::rte_free(parameters.as_ptr().cast()) };
        Ok(Filter { program: program?, classic: classic.get_instructions().len(), instructions: instructions as usize })
    }

    /// Those frames of `mask` that it matches.
    #[inline]
    pub fn matches(&self, frames: &[Frame; BATCH], mask: Mask) -> Mask {
        let bpf = self.program.raw.as_ptr().cast();
        // SAFETY: Frame has fg_frame's layout, a mask names no frame beyond BATCH, and the program was verified for an mbuf
        // argument: it reads the bytes the call's own mbuf header describes, which are the frame's, and writes nothing but
        // that header and its stack.
        unsafe { sys::fg_bpf_exec_burst(self.program.jit, bpf, frames.as_ptr().cast(), mask) }
    }

    /// How it runs, for people.
    pub fn form(&self) -> String {
        self.program.form()
    }
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
    Instruction { code: 0x69, registers: 0x12, offset: 0, immediate: 0 },
    // r1 += HEAD
    Instruction { code: 0x07, registers: 0x01, offset: 0, immediate: HEAD as i32 },
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
            let argument =
                sys::rte_bpf_arg { type_: sys::RTE_BPF_ARG_PTR, size: HEAD + reach, ..sys::rte_bpf_arg::default() };
            Program::load(&sys::rte_bpf_prm {
                ins: all.as_ptr().cast(),
                nb_ins: all.len() as u32,
                prog_arg: argument,
                ..sys::rte_bpf_prm::default()
            })
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
                match program.jit {
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

/// Why the last call into DPDK failed on this thread.
fn errno() -> i32 {
    // SAFETY: reads a thread-local variable.
    unsafe { sys::fg_errno() }
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
