//! DPDK's environment: memory, lcores, runtime files. Started once per process, and everything else needs it.
//!
//! `rte_eal_init` cannot be tried again in the same process, so whatever can be checked before it is checked here first.
//! Owns the arguments and the life of the EAL; not which cores or how much memory.
#![allow(unsafe_code)]

use std::any::Any;
use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::error::{Errno, Error};

/// Whether DPDK's memory comes from hugepages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hugepages {
    /// If there are enough; else ordinary pages, with a note.
    Auto,
    /// Or do not start.
    Require,
    /// Ordinary pages.
    Off,
}

/// How the EAL is to be started.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// Kind of memory.
    pub hugepages: Hugepages,
    /// DPDK's memory in MB, taken at start. On hugepages it grows when needed.
    pub memory: u32,
    /// What may be needed besides, MB: without hugepages memory cannot grow, so this is set aside too, and costs nothing
    /// until it is used.
    pub spare: u32,
    /// The workers' CPUs, in the order of the workers.
    pub cores: Vec<u16>,
    /// Lets several workers share a CPU.
    pub oversubscribe: bool,
    /// Name of this instance's runtime files; unique among the live instances of this machine.
    pub prefix: String,
    /// PCI addresses DPDK may take. With none, the PCI bus is left alone.
    pub pci: Vec<String>,
    /// Lets DPDK's secondary processes (`dpdk-proc-info`, `dpdk-dumpcap`) attach. A crash then leaves its hugepages taken
    /// until the next start with the same prefix. Needs hugepages.
    pub secondary: bool,
    /// Opens DPDK's telemetry socket.
    pub telemetry: bool,
    /// DPDK's log goes to stderr as it comes; else it is kept for error messages and [`Eal::log`].
    pub verbose: bool,
    /// DPDK's log levels, as of its `--log-level` (`info`, `lib.eal:debug`).
    pub log_level: Vec<String>,
    /// Further arguments for `rte_eal_init`, last.
    pub extra: Vec<String>,
}

/// The running EAL.
#[derive(Debug)]
pub struct Eal {
    workers: Vec<u16>,
    arguments: Vec<String>,
    notes: Vec<String>,
    hugepages: bool,
    control: Affinity,
    log: Option<Capture>,
    /// The instance's runtime directory, locked; none offline.
    instance: Mutex<Option<Instance>>,
    /// lcores at work, and serializes launches.
    busy: Mutex<HashSet<usize>>,
    devices: Mutex<HashSet<String>>,
    leases: AtomicUsize,
    closed: AtomicBool,
}

static EAL: OnceLock<Result<Eal, Error>> = OnceLock::new();

impl Eal {
    /// Starts the EAL. Lcore 0 is control's, on every CPU the workers leave; worker `i` is lcore `i + 1`. The caller keeps
    /// its CPU affinity. Fails if the EAL was started before.
    pub fn start(config: &EalConfig) -> Result<&'static Eal, Error> {
        if EAL.get().is_some() {
            return Err(Error::Started);
        }
        check_version()?;
        let affinity = Affinity::current();
        check_cores(config, &affinity)?;
        for address in &config.pci {
            super::port::check_pci(address)?;
        }
        let mut notes = Vec::new();
        let hugepages = match config.hugepages {
            Hugepages::Off => false,
            Hugepages::Require => check_hugepages(config.memory).map(|()| true)?,
            Hugepages::Auto => match check_hugepages(config.memory) {
                Ok(()) => true,
                Err(error) => {
                    notes.push(format!("running without hugepages: {error}"));
                    false
                }
            },
        };
        let instance = Instance::lock(&config.prefix)?;
        // The runtime files go however the process ends, short of a crash.
        // SAFETY: a function that may run at exit: it takes no lock it would wait for, and panics nowhere.
        unsafe { libc::atexit(remove_files) };
        let control = affinity.without(&config.cores);
        let arguments = arguments(config, hugepages, &control);
        once(|| {
            init(arguments, config.verbose, affinity).map(|log| Eal {
                workers: config.cores.clone(),
                notes,
                hugepages,
                control,
                instance: Mutex::new(Some(instance)),
                ..Eal::bare(log)
            })
        })
        .ok_or(Error::Started)?
    }

    /// An EAL for work without ports (rule tables in `check` and `replay`, unit tests): no hugepages, no PCI, nothing in
    /// the file system, no privileges. `memory` in MB cannot grow later. A running EAL of whatever kind is returned as is.
    pub fn offline(memory: u32) -> Result<&'static Eal, Error> {
        let eal = EAL.get_or_init(|| {
            check_version()?;
            let affinity = Affinity::current();
            // The prefix names a directory that EAL makes although nothing is to go into it: removed at once.
            let prefix = format!("flowgate-offline-{}", std::process::id());
            let arguments = [
                "--no-huge",
                "--no-shconf",
                "--no-pci",
                "--no-telemetry",
                "--iova-mode=va",
                &format!("--file-prefix={prefix}"),
                "-m",
                &memory.to_string(),
                &format!("--lcores=0@({})", affinity.list()),
                SIMD,
            ];
            let eal = init(arguments.map(String::from).to_vec(), false, affinity)
                .map(|log| Eal { control: affinity, ..Eal::bare(log) });
            let _ = fs::remove_dir(runtime_dir(&prefix));
            eal
        });
        eal.as_ref().map_err(Error::clone)
    }

    fn bare((arguments, log): (Vec<String>, Option<Capture>)) -> Eal {
        Eal {
            workers: Vec::new(),
            arguments,
            notes: Vec::new(),
            hugepages: false,
            control: Affinity::current(),
            log,
            instance: Mutex::new(None),
            busy: Mutex::default(),
            devices: Mutex::default(),
            leases: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// CPUs of the workers.
    pub fn workers(&self) -> &[u16] {
        &self.workers
    }

    /// What `rte_eal_init` was given.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// What the operator should know about how it started.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// True if memory comes from hugepages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// Cycles of the time stamp counter in a second.
    pub fn tsc_hz(&self) -> u64 {
        // SAFETY: reads what the EAL measured at start.
        unsafe { dpdk_sys::rte_get_tsc_hz() }
    }

    /// NUMA node of a worker's CPU; node 0 where the machine does not say.
    pub fn node(&self, worker: usize) -> u32 {
        if worker >= self.workers.len() {
            return 0;
        }
        // SAFETY: a table lookup for an lcore the EAL was started with; an unknown node comes out as -1.
        let node = unsafe { dpdk_sys::rte_lcore_to_socket_id(lcore(worker)) };
        if node == u32::MAX { 0 } else { node }
    }

    /// What DPDK logged since the last call; empty if its log goes to stderr.
    pub fn log(&self) -> String {
        self.log.as_ref().map(Capture::take).unwrap_or_default()
    }

    /// Moves the calling thread off the workers' CPUs, if there are others.
    pub fn pin_control(&self) {
        self.control.apply();
    }

    /// Runs `f` on a worker's lcore. A panic ends up in [`Running::join`].
    pub fn launch<T, F>(&'static self, worker: usize, f: F) -> Result<Running<T>, Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if worker >= self.workers.len() {
            return Err(Error::Lcore { worker, why: format!("there are {} workers", self.workers.len()) });
        }
        let mut busy = lock(&self.busy);
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if busy.contains(&worker) {
            return Err(Error::Lcore { worker, why: "it is at work".into() });
        }
        let done = Arc::new(Mutex::new(None));
        let result = Arc::clone(&done);
        let job: Job = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(f));
            *lock(&result) = Some(outcome);
        });
        let job = Box::into_raw(Box::new(job)).cast::<c_void>();
        // SAFETY: `run_job` takes the box back, once; the lcore exists, and `busy` says it waits for work.
        let launched = unsafe { dpdk_sys::rte_eal_remote_launch(Some(run_job), job, lcore(worker)) };
        if let Err(errno) = Errno::check(launched) {
            // SAFETY: it was not launched, so the box is still ours.
            drop(unsafe { Box::from_raw(job.cast::<Job>()) });
            return Err(Error::Lcore { worker, why: errno.to_string() });
        }
        busy.insert(worker);
        Ok(Running { eal: self, worker, done, joined: false })
    }

    /// Keeps DPDK's memory in place while it lives: whatever owns something in it holds one.
    pub fn lease(&'static self) -> Result<Lease, Error> {
        // The lock orders this against `close`.
        let _busy = lock(&self.busy);
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.leases.fetch_add(1, Ordering::AcqRel);
        Ok(Lease { eal: self })
    }

    /// Gives everything back: memory, sockets, runtime files. What something still holds (a lease, a running worker) stays
    /// until the process ends; the files go in any case. Nothing can be made afterwards.
    pub fn close(&'static self) {
        let busy = lock(&self.busy);
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if busy.is_empty() && self.leases.load(Ordering::Acquire) == 0 {
            // SAFETY: no lcore runs, nothing owns DPDK memory (no leases), and `closed` lets nothing new begin.
            unsafe { dpdk_sys::rte_eal_cleanup() };
        }
        drop(lock(&self.instance).take());
    }

    /// Notes that a device belongs to a port; false if it did before.
    pub(super) fn take_device(&self, name: &str) -> bool {
        lock(&self.devices).insert(name.to_owned())
    }

    pub(super) fn release_device(&self, name: &str) {
        lock(&self.devices).remove(name);
    }
}

extern "C" fn remove_files() {
    if let Some(Ok(eal)) = EAL.get()
        && let Ok(mut instance) = eal.instance.try_lock()
    {
        drop(instance.take());
    }
}

/// Initializes [`EAL`]; none if it was initialized before.
fn once(start: impl FnOnce() -> Result<Eal, Error>) -> Option<Result<&'static Eal, Error>> {
    let mut started = false;
    let eal = EAL.get_or_init(|| {
        started = true;
        start()
    });
    started.then(|| eal.as_ref().map_err(Error::clone))
}

/// Keeps DPDK's memory in place.
#[derive(Debug)]
pub struct Lease {
    eal: &'static Eal,
}

impl Lease {
    /// The EAL it is of.
    pub fn eal(&self) -> &'static Eal {
        self.eal
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.eal.leases.fetch_sub(1, Ordering::AcqRel);
    }
}

type Job = Box<dyn FnOnce() + Send>;

unsafe extern "C" fn run_job(job: *mut c_void) -> c_int {
    // SAFETY: `launch` made this pointer of a boxed Job and gives it to one call of this function.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    job();
    0
}

type Outcome<T> = Arc<Mutex<Option<Result<T, Box<dyn Any + Send>>>>>;

/// A function at work on a worker's lcore. Dropping it waits for the end.
#[derive(Debug)]
pub struct Running<T> {
    eal: &'static Eal,
    worker: usize,
    done: Outcome<T>,
    joined: bool,
}

impl<T> Running<T> {
    /// True once the function has returned or panicked.
    pub fn is_finished(&self) -> bool {
        lock(&self.done).is_some()
    }

    /// Waits for the end. The error is the panic's message.
    pub fn join(mut self) -> Result<T, String> {
        self.wait();
        match lock(&self.done).take() {
            Some(Ok(value)) => Ok(value),
            Some(Err(panic)) => Err(message(panic.as_ref())),
            None => Err("the worker ended without a result".into()),
        }
    }

    fn wait(&mut self) {
        if !mem::replace(&mut self.joined, true) {
            // EAL's own wait is a busy loop: sleep through most of it.
            while !self.is_finished() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            // SAFETY: the lcore exists; returns when it is ready for the next job.
            unsafe { dpdk_sys::rte_eal_wait_lcore(lcore(self.worker)) };
            lock(&self.eal.busy).remove(&self.worker);
        }
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.wait();
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panicked").to_owned()
}

/// The lcore of a worker: 0 is control's.
fn lcore(worker: usize) -> u32 {
    worker as u32 + 1
}

const SIMD: &str = "--force-max-simd-bitwidth=512";

fn arguments(config: &EalConfig, hugepages: bool, control: &Affinity) -> Vec<String> {
    let mut lcores = format!("--lcores=0@({})", control.list());
    for (worker, cpu) in config.cores.iter().enumerate() {
        lcores += &format!(",{}@{cpu}", lcore(worker));
    }
    let mut arguments = vec![
        lcores,
        "--main-lcore=0".into(),
        "-m".into(),
        if hugepages { config.memory } else { config.memory.saturating_add(config.spare) }.to_string(),
        format!("--file-prefix={}", config.prefix),
        // Without it rte_acl never uses AVX-512.
        SIMD.into(),
    ];
    let mut flag = |on: bool, text: &str| {
        if on {
            arguments.push(text.into());
        }
    };
    flag(!hugepages, "--no-huge");
    flag(!hugepages || !config.secondary, "--no-shconf");
    flag(hugepages && !config.secondary, "--huge-unlink=always");
    flag(config.pci.is_empty(), "--no-pci");
    flag(!config.telemetry, "--no-telemetry");
    for address in &config.pci {
        arguments.extend(["-a".into(), address.clone()]);
    }
    arguments.extend(config.log_level.iter().map(|level| format!("--log-level={level}")));
    arguments.extend(config.extra.iter().cloned());
    arguments
}

/// Runs `rte_eal_init` and gives its caller the CPUs back it had before.
fn init(arguments: Vec<String>, verbose: bool, affinity: Affinity) -> Result<(Vec<String>, Option<Capture>), Error> {
    let log = if verbose { None } else { Capture::start() };
    let mut argv = vec![c"flowgate".to_owned()];
    for text in &arguments {
        argv.push(CString::new(text.as_str()).map_err(|_| Error::ZeroByte { text: text.clone() })?);
    }
    // EAL keeps pointers into its arguments and permutes the array: both are leaked, once per process.
    let argv: &'static mut [*mut c_char] = argv.into_iter().map(CString::into_raw).collect::<Vec<_>>().leak();
    // SAFETY: argv is argc C strings that live as long as the process; `EAL` lets this run once.
    let result = unsafe { dpdk_sys::rte_eal_init(argv.len() as c_int, argv.as_mut_ptr()) };
    affinity.apply();
    if result < 0 {
        return Err(Error::Init { errno: Errno::last(), log: log.as_ref().map(Capture::take).unwrap_or_default() });
    }
    Ok((arguments, log))
}

fn check_version() -> Result<(), Error> {
    // SAFETY: returns a static C string; works without an EAL.
    let running = unsafe { CStr::from_ptr(dpdk_sys::rte_version()) }.to_string_lossy();
    let (built, running) = (dpdk_sys::BUILD_VERSION, running.trim_start_matches("DPDK "));
    if release(built) == release(running) {
        return Ok(());
    }
    Err(Error::Version { built: built.into(), running: running.into() })
}

/// `22.11` of `22.11.3-rc1`.
fn release(version: &str) -> Vec<&str> {
    version.split(['.', '-']).take(2).collect()
}

fn check_cores(config: &EalConfig, affinity: &Affinity) -> Result<(), Error> {
    let max = dpdk_sys::RTE_MAX_LCORE as usize - 1;
    if config.cores.len() > max {
        return Err(Error::TooManyCores { max });
    }
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let is_online = cpu_list(&online);
    for (at, &core) in config.cores.iter().enumerate() {
        if !is_online.is_empty() && !is_online.contains(&core) {
            return Err(Error::NoCore { core, online: online.trim().into() });
        }
        if !affinity.contains(core) {
            return Err(Error::ForbiddenCore { core, allowed: affinity.list() });
        }
        if !config.oversubscribe && config.cores[..at].contains(&core) {
            return Err(Error::CoreTwice { core });
        }
    }
    Ok(())
}

/// The numbers of a kernel CPU list (`0-3,8`).
fn cpu_list(text: &str) -> Vec<u16> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

/// True to its name only if `megabytes` fit into the free hugepages of the mounted sizes.
fn check_hugepages(megabytes: u32) -> Result<(), Error> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let default = fs::read_to_string("/proc/meminfo").ok().and_then(|text| default_page(&text)).unwrap_or(2048);
    let pages: HashSet<u64> = hugetlbfs(&mounts, default)
        .filter(|(path, _)| access(path, libc::R_OK | libc::W_OK | libc::X_OK))
        .map(|(_, page)| page)
        .collect();
    let Some(&page) = pages.iter().min() else { return Err(Error::NoHugetlbfs) };
    let asked = u64::from(megabytes);
    let number = |page: u64, file: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{page}kB/{file}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let free: u64 = pages.iter().map(|&page| number(page, "free_hugepages") * page / 1024).sum();
    if free >= asked {
        return Ok(());
    }
    let pages = number(page, "nr_hugepages") + ((asked - free) * 1024).div_ceil(page);
    Err(Error::Hugepages { asked, free, page, pages })
}

/// Mount points of hugetlbfs and their page sizes in kB.
fn hugetlbfs(mounts: &str, default: u64) -> impl Iterator<Item = (&Path, u64)> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
        let size = size.map_or(Some(default), |size| {
            let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
            let factor = match unit {
                "K" => 1,
                "M" => 1024,
                "G" => 1024 * 1024,
                _ => return None,
            };
            number.parse::<u64>().ok().map(|number| number * factor)
        })?;
        (kind == "hugetlbfs").then_some((Path::new(path), size))
    })
}

/// `Hugepagesize` of /proc/meminfo, kB.
fn default_page(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:")?.trim().strip_suffix(" kB")?.parse().ok())
}

fn access(path: &Path, mode: c_int) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
    // SAFETY: a C string that lives through the call.
    unsafe { libc::access(path.as_ptr(), mode) == 0 }
}

/// Where EAL keeps the runtime files of a prefix (`eal_create_runtime_dir`).
fn runtime_dir(prefix: &str) -> PathBuf {
    // SAFETY: always succeeds.
    let root = unsafe { libc::getuid() } == 0;
    let base = match std::env::var_os("RUNTIME_DIRECTORY") {
        Some(directory) => directory.into(),
        None if root => PathBuf::from("/var/run"),
        None => std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| "/tmp".into()).into(),
    };
    base.join("dpdk").join(prefix)
}

/// The exclusive right to a file prefix. The kernel takes the lock back when the process ends, however it ends.
#[derive(Debug)]
struct Instance {
    path: PathBuf,
    _lock: File,
}

impl Instance {
    fn lock(prefix: &str) -> Result<Instance, Error> {
        let path = runtime_dir(prefix);
        let refused = |error: std::io::Error| Error::RuntimeDir { path: path.clone(), why: error.to_string() };
        loop {
            fs::create_dir_all(&path).map_err(refused)?;
            let at = path.join("flowgate.lock");
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&at).map_err(refused)?;
            // SAFETY: an open file; without blocking.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::WouldBlock {
                    return Err(refused(error));
                }
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                return Err(Error::InUse { prefix: prefix.into(), pid: pid.trim().parse().ok() });
            }
            // An instance that just ended may have removed the file between our opening and locking it.
            let same = |at: &fs::Metadata, file: &fs::Metadata| {
                use std::os::unix::fs::MetadataExt;
                (at.dev(), at.ino()) == (file.dev(), file.ino())
            };
            if !fs::metadata(&at).is_ok_and(|at| file.metadata().is_ok_and(|file| same(&at, &file))) {
                continue;
            }
            file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(refused)?;
            // A DPDK program that is not flowgate holds no such lock, but one on EAL's own configuration.
            if let Some(pid) = posix_lock_holder(&path.join("config")) {
                return Err(Error::InUse { prefix: prefix.into(), pid: Some(pid) });
            }
            return Ok(Instance { path, _lock: file });
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Ours by the lock; what cannot be removed is taken over by the next instance.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The process that holds a POSIX lock on a file.
fn posix_lock_holder(path: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    // SAFETY: all zero bytes are a valid `flock`.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    // SAFETY: an open file, and a `flock` the call may write to.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
    (result == 0 && i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid as u32)
}

/// A set of CPUs a thread may run on.
#[derive(Clone, Copy)]
pub struct Affinity(libc::cpu_set_t);

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Affinity({})", self.list())
    }
}

impl Affinity {
    /// Of the calling thread.
    pub fn current() -> Affinity {
        // SAFETY: all zero bytes are the empty set, and the call writes at most its size.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: as above.
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
        Affinity(set)
    }

    /// Makes it the calling thread's.
    pub fn apply(&self) {
        // SAFETY: reads a set of the size given. It can fail only for a set without any usable CPU, and ours were usable.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }

    /// True if `cpu` is in it.
    pub fn contains(&self, cpu: u16) -> bool {
        // SAFETY: the index is below the set's size.
        usize::from(cpu) < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(cpu.into(), &self.0) }
    }

    /// Its CPUs, ascending.
    pub fn cpus(&self) -> impl Iterator<Item = u16> + '_ {
        (0..libc::CPU_SETSIZE as u16).filter(|&cpu| self.contains(cpu))
    }

    /// Without some CPUs; the whole set if nothing would be left.
    fn without(&self, cpus: &[u16]) -> Affinity {
        let mut rest = *self;
        for &cpu in cpus {
            // SAFETY: the index is below the set's size: `check_cores` found the CPU in the set.
            unsafe { libc::CPU_CLR(cpu.into(), &mut rest.0) };
        }
        if rest.cpus().next().is_none() { *self } else { rest }
    }

    /// As a comma-separated list.
    pub fn list(&self) -> String {
        self.cpus().map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
    }
}

/// DPDK's log, in a file in memory.
#[derive(Debug)]
struct Capture(File);

impl Capture {
    fn start() -> Option<Capture> {
        // SAFETY: a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"dpdk-log".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a descriptor of our own, just made.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        // The stream gets a descriptor of its own; both share one place in the file, so it appends.
        // SAFETY: valid descriptors; results are checked. The stream is DPDK's for as long as the process lives.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3);
            if flags < 0 || copy < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_APPEND) < 0 {
                return None;
            }
            let stream = libc::fdopen(copy, c"a".as_ptr());
            if stream.is_null() {
                return None;
            }
            dpdk_sys::rte_openlog_stream(stream.cast());
        }
        Some(Capture(file))
    }

    /// What was logged since the last call.
    fn take(&self) -> String {
        let length = self.0.metadata().map_or(0, |data| data.len()) as usize;
        let mut bytes = vec![0; length];
        let read = self.0.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(read);
        let _ = self.0.set_len(0);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A lock whose data stays good when a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cores: &[u16]) -> EalConfig {
        EalConfig {
            hugepages: Hugepages::Off,
            memory: 64,
            spare: 8,
            cores: cores.to_vec(),
            oversubscribe: false,
            prefix: "flowgate-unit".into(),
            pci: Vec::new(),
            secondary: false,
            telemetry: false,
            verbose: false,
            log_level: Vec::new(),
            extra: Vec::new(),
        }
    }

    #[test]
    fn cores_are_checked_before_the_eal() {
        let mine = Affinity::current();
        let core = mine.cpus().next().expect("a thread runs somewhere");
        assert_eq!(check_cores(&config(&[core]), &mine), Ok(()));
        assert_eq!(check_cores(&config(&[core, core]), &mine), Err(Error::CoreTwice { core }));
        assert_eq!(check_cores(&EalConfig { oversubscribe: true, ..config(&[core, core]) }, &mine), Ok(()));
        assert!(matches!(check_cores(&config(&[1023]), &mine), Err(Error::NoCore { core: 1023, .. })));
        let others = mine.without(&[core]);
        if !others.contains(core) {
            assert!(matches!(check_cores(&config(&[core]), &others), Err(Error::ForbiddenCore { .. })));
        }
        assert!(matches!(check_cores(&config(&vec![0; 2000]), &mine), Err(Error::TooManyCores { .. })));
    }

    #[test]
    fn arguments_follow_the_config() {
        let mine = Affinity::current();
        let text = arguments(&config(&[1, 1]), false, &mine).join(" ");
        assert!(text.contains("1@1,2@1") && text.contains("--no-huge") && text.contains("--no-pci"), "{text}");
        let pci = EalConfig { pci: vec!["0000:01:00.0".into()], extra: vec!["-v".into()], ..config(&[]) };
        let text = arguments(&pci, true, &mine).join(" ");
        assert!(text.contains("-a 0000:01:00.0") && text.ends_with("-v") && !text.contains("--no-pci"), "{text}");
        assert!(text.contains("--huge-unlink=always") && !text.contains("--no-huge "), "{text}");
    }

    #[test]
    fn kernel_texts_are_read() {
        assert_eq!(cpu_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(default_page("MemTotal: 1 kB\nHugepagesize:       2048 kB\n"), Some(2048));
        let mounts =
            "proc /proc proc rw 0 0\nnodev /dev/hugepages hugetlbfs rw,pagesize=1G 0 0\nh /mnt/h hugetlbfs rw 0 0\n";
        let found: Vec<_> = hugetlbfs(mounts, 2048).collect();
        assert_eq!(found, [(Path::new("/dev/hugepages"), 1 << 20), (Path::new("/mnt/h"), 2048)]);
        assert_eq!(release("22.11.11"), release("22.11.0-rc1"));
        assert_ne!(release("22.11.11"), release("23.11.0"));
    }

    #[test]
    fn a_prefix_has_one_live_owner() {
        let prefix = format!("flowgate-unit-{}", std::process::id());
        let first = Instance::lock(&prefix).expect("nobody else has it");
        let path = first.path.clone();
        let pid = Some(std::process::id());
        assert_eq!(Instance::lock(&prefix).unwrap_err(), Error::InUse { prefix: prefix.clone(), pid });
        drop(first);
        assert!(!path.exists());
        // What a crash leaves is a lock file that nobody locks.
        fs::create_dir_all(&path).and_then(|()| fs::write(path.join("flowgate.lock"), "1\n")).expect("writable");
        drop(Instance::lock(&prefix).expect("a dead owner's file is taken over"));
    }

    #[test]
    fn offline_works_for_all_tests_at_once() {
        let (first, second) = (Eal::offline(64).expect("needs nothing"), Eal::offline(128).expect("the same"));
        assert!(std::ptr::eq(first, second) && !first.hugepages());
        assert_eq!(Eal::start(&config(&[])).unwrap_err(), Error::Started);
        assert!(matches!(first.launch(0, || ()), Err(Error::Lcore { .. })));
    }
}
