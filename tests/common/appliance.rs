//! The real binary as a test runs it: started from a TOML text, asked over its socket, stopped by a signal, and held to the
//! laws at every stop.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that normally takes a moment. Long, since machines are busy; no test measures time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary.
pub const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate");

/// Number in the names of what a test makes, so that tests, and several runs of them, never meet.
pub fn unique() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Asks until the answer is yes; fails with `what` if it never is.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let since = Instant::now();
    while !ready() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One of the configurations that ship with flowgate.
pub fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The CPUs this process may use.
pub fn cpus() -> Vec<usize> {
    let mut cpus: Vec<usize> =
        core_affinity::get_core_ids().expect("a list of CPUs").iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    cpus
}

/// The CPU for everything but the worker: testpmd, clients.
pub fn client_cpu() -> usize {
    cpus()[0]
}

/// The `[worker]` table for a number of workers, from the last CPU down, sharing CPUs where there are too few.
pub fn workers(count: usize) -> String {
    let cpus = cpus();
    let cores: Vec<usize> = (0..count).map(|i| cpus[(cpus.len() - 1 + i * (cpus.len() - 1)) % cpus.len()]).collect();
    let shared = (0..count).any(|i| cores[..i].contains(&cores[i]));
    // Where no CPU is left for the clients, workers let them run.
    let idle = if count < cpus.len() { "poll" } else { "yield" };
    format!("[worker]\ncores = {cores:?}\noversubscribe = {shared}\nidle = {idle:?}\n")
}

/// Memory in ordinary pages, so that tests need none set aside.
pub const SMALL: &str = "[memory]\nhugepages = \"off\"\npackets = 8192\n";

/// A running flowgate.
pub struct Flowgate {
    command: Command,
    child: Child,
    /// Its control socket.
    pub socket: PathBuf,
    output: [PathBuf; 2],
    runtime: PathBuf,
    stopped: bool,
}

/// What flowgate said of itself when it had stopped.
pub struct Stopped {
    /// All workers' accounts added up.
    pub total: Account,
    /// Standard error.
    pub log: String,
}

/// Sends a signal, by name, to a process.
pub fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill");
    assert!(status.success(), "kill -{name} {pid}");
}

/// Writes a config with a socket of its own: its path and the socket's.
pub fn config(dir: &Path, toml: &str) -> (PathBuf, PathBuf) {
    let number = unique();
    let (file, socket) = (dir.join(format!("fg{number}.toml")), dir.join(format!("fg{number}.sock")));
    let with = |table: &str, text: &str| if toml.contains(table) { String::new() } else { text.to_owned() };
    let control = format!("[control]\nsocket = {socket:?}\n");
    let text = [toml, &with("[worker]", &workers(1)), &with("[memory]", SMALL), &control].join("\n");
    std::fs::write(&file, text).expect("a writable folder");
    (file, socket)
}

/// Runs flowgate with a config that it should refuse, to its end.
pub fn run_to_end(file: &Path) -> Output {
    Command::new("timeout").args(["-s", "KILL", "60", FLOWGATE, "run"]).arg(file).output().expect("flowgate starts")
}

impl Flowgate {
    /// Starts flowgate and waits until it answers. `toml` is the config; what it does not say of worker, memory and socket
    /// is added.
    pub fn start(dir: &Path, toml: &str) -> Flowgate {
        let (file, socket) = config(dir, toml);
        Flowgate::start_file(&file, &socket)
    }

    /// Starts flowgate from a file as it is.
    pub fn start_file(file: &Path, socket: &Path) -> Flowgate {
        Flowgate::spawn(file, socket).answering()
    }

    fn answering(mut self) -> Flowgate {
        let mut tries = 0;
        wait_for("flowgate answers", || {
            if let Some(status) = self.child.try_wait().expect("its own child") {
                // net_af_packet of DPDK 22.11 names its fanout group by process and interface, sixteen bits in all: two
                // processes may choose the same.
                if self.log().contains("could not set PACKET_FANOUT") && tries < 5 {
                    tries += 1;
                    self.output.iter().for_each(|path| std::fs::write(path, "").expect("writable"));
                    self.child = self.command.spawn().expect("flowgate starts");
                    return false;
                }
                self.stopped = true;
                panic!("flowgate did not start ({status}):\n{}", self.log());
            }
            self.socket.exists() && self.ask("workers").is_ok()
        });
        self
    }

    /// Starts flowgate and waits for nothing.
    pub fn spawn(file: &Path, socket: &Path) -> Flowgate {
        Flowgate::spawn_by(Command::new(FLOWGATE), file, socket, None)
    }

    /// As `start`, going on with saved flows.
    pub fn start_with_flows(dir: &Path, toml: &str, flows: &Path) -> Flowgate {
        let (file, socket) = config(dir, toml);
        Flowgate::spawn_by(Command::new(FLOWGATE), &file, &socket, Some(flows)).answering()
    }

    /// Starts flowgate by a command that has it as its last word, and waits until it answers.
    pub fn start_by(command: Command, dir: &Path, toml: &str) -> Flowgate {
        let (file, socket) = config(dir, toml);
        Flowgate::spawn_by(command, &file, &socket, None).answering()
    }

    fn spawn_by(mut command: Command, file: &Path, socket: &Path, flows: Option<&Path>) -> Flowgate {
        let number = unique();
        // Where DPDK's runtime files go: one folder for all that a test starts, as it is on a real machine.
        let runtime = file.with_file_name("run");
        std::fs::create_dir_all(&runtime).expect("a writable folder");
        let output = ["out", "err"].map(|kind| file.with_extension(format!("{number}.{kind}")));
        let [out, err] = output.each_ref().map(|path| File::create(path).expect("a writable folder"));
        command
            .args(["run", "--json"])
            .args(flows.iter().flat_map(|flows| ["--flows".as_ref(), flows.as_os_str()]))
            .arg(file)
            .env("RUNTIME_DIRECTORY", &runtime)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let child = command.spawn().expect("flowgate starts");
        Flowgate { command, child, socket: socket.to_owned(), output, runtime, stopped: false }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, standard output and error.
    pub fn log(&self) -> String {
        self.output.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Runs a command with this one's socket, and returns whether it succeeded and all that it printed.
    pub fn command(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new(FLOWGATE).args(words).arg("--socket").arg(&self.socket).output().expect("it starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn ask(&self, what: &str) -> Result<Value, String> {
        let mut command = Command::new(FLOWGATE);
        command.args(["show", what, "--json", "--socket"]).arg(&self.socket);
        let output = command.output().expect("flowgate show starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("show {what}: {error}"))
    }

    /// `flowgate show WHAT --json`.
    pub fn show(&self, what: &str) -> Value {
        self.ask(what).unwrap_or_else(|error| panic!("flowgate show {what}: {error}\n{}", self.log()))
    }

    /// One row of `show ports`.
    pub fn port(&self, name: &str) -> Value {
        let ports = self.show("ports");
        let found = ports.as_array().into_iter().flatten().find(|port| port["name"] == name);
        found.unwrap_or_else(|| panic!("no port {name} in {ports:#}")).clone()
    }

    /// Waits until a port's link is `up` or `down`.
    pub fn wait_for_link(&self, port: &str, state: &str) {
        wait_for(&format!("port {port} is {state}"), || self.port(port)["link"] == state);
    }

    /// Drops by reason, those that were counted.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let drops = self.show("drops");
        let rows = drops.as_array().expect("a list").iter();
        let rows = rows.map(|row| (row["reason"].as_str().expect("a name").to_owned(), number(&row["packets"])));
        rows.filter(|(_, packets)| *packets > 0).collect()
    }

    /// Packets and bytes by rule.
    pub fn rules(&self) -> BTreeMap<String, (u64, u64)> {
        let rules = self.show("rules");
        let rows = rules.as_array().expect("a list").iter();
        rows.map(|row| {
            let name = row["rule"].as_str().expect("a name").to_owned();
            (name, (number(&row["packets"]), number(&row["bytes"])))
        })
        .collect()
    }

    /// Every worker's account.
    pub fn accounts(&self) -> Vec<Account> {
        accounts(&self.show("workers"))
    }

    /// Waits until `received` packets came in from all ports and each of them is at its end.
    pub fn settled(&self, received: u64) {
        let mut last = Vec::new();
        let since = Instant::now();
        loop {
            last.clone_from(&self.accounts());
            let total = Account::total(&last);
            assert!(total.received <= received, "{} packets came in, {received} were sent in", total.received);
            if total.received == received
                && total.handed_in == total.handed_out
                && total.received + total.created == total.ended()
            {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{received} packets were sent in: {last:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it with SIGINT and holds it to what every run owes: exit code 0, nothing left behind, no buffer missing, the
    /// accounts balanced and drops adding up by reason.
    pub fn stop(self) -> Stopped {
        self.stop_by("INT")
    }

    /// As `stop`, with another signal.
    pub fn stop_by(mut self, name: &str) -> Stopped {
        self.check_laws();
        signal(name, self.pid());
        let status = self.wait();
        let [totals, log] = self.output.each_ref().map(|path| std::fs::read_to_string(path).expect("its output"));
        assert!(status.success(), "flowgate ended with {status}:\n{log}");
        assert!(!self.socket.exists(), "the socket is left behind");
        // Sockets are those of instances that still run.
        let folder = files_below(self.runtime.parent().expect("the test's folder"));
        if !folder.iter().any(|file| file.extension().is_some_and(|kind| kind == "sock")) {
            let left = files_below(&self.runtime);
            assert!(left.is_empty(), "runtime files are left behind: {left:?}");
        }
        let totals: Value = serde_json::from_str(&totals).unwrap_or_else(|error| panic!("totals: {error}: {totals}"));
        assert!(totals["problems"].as_array().expect("a list").is_empty(), "{totals:#}");
        assert_eq!(totals["missing_buffers"], 0, "{totals:#}");
        let accounts: Vec<Account> = totals["workers"].as_array().expect("a list").iter().map(Account::of).collect();
        for account in &accounts {
            assert!(account.balances(), "the account does not balance: {account:?}");
        }
        let total = Account::total(&accounts);
        assert_eq!((total.handed_in, total.held), (total.handed_out, 0), "nothing is on the way: {totals:#}");
        let by_reason: u64 = totals["drops"].as_object().expect("a table").values().map(number).sum();
        assert_eq!(by_reason, total.dropped, "{totals:#}");
        let ports = totals["ports"].as_array().expect("a list");
        let of_ports = |word: &str| ports.iter().map(|port| number(&port[word])).sum::<u64>();
        assert_eq!((of_ports("rx_packets"), of_ports("tx_packets")), (total.received, total.sent), "{totals:#}");
        Stopped { total, log }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_for("flowgate ends", || {
            ended = self.child.try_wait().expect("its own child");
            ended.is_some()
        });
        self.stopped = true;
        ended.expect("waited for")
    }

    /// Kills it as a crash would.
    pub fn crash(mut self) {
        signal("KILL", self.pid());
        self.wait();
    }

    /// The laws, on the counters as published: every worker's account balances, and drops add up by reason.
    pub fn check_laws(&self) {
        let workers = self.show("workers");
        for worker in workers.as_array().expect("a list") {
            assert_eq!(worker["balanced"], true, "the account does not balance: {worker:#}");
        }
        for account in accounts(&workers) {
            assert!(account.balances(), "the account does not balance: {account:?}");
        }
    }
}

impl Drop for Flowgate {
    fn drop(&mut self) {
        if !self.stopped {
            for what in ["workers", "drops"] {
                let shown = Command::new(FLOWGATE).args(["show", what, "--socket"]).arg(&self.socket).output();
                eprintln!(
                    "{}",
                    shown.map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned()).unwrap_or_default()
                );
            }
            eprintln!("flowgate's output:\n{}", self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            _ => files.push(entry.path()),
        }
    }
    files
}

/// A number in JSON.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number, not {value}"))
}

fn accounts(workers: &Value) -> Vec<Account> {
    workers.as_array().expect("a list").iter().map(|worker| Account::of(&worker["account"])).collect()
}

/// A worker's account: the terms of the first law.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub received: u64,
    pub created: u64,
    pub handed_in: u64,
    pub sent: u64,
    pub consumed: u64,
    pub dropped: u64,
    pub merged: u64,
    pub handed_out: u64,
    pub held: u64,
}

impl Account {
    fn of(value: &Value) -> Account {
        let term = |name: &str| number(&value[name]);
        Account {
            received: term("received"),
            created: term("created"),
            handed_in: term("handed-in"),
            sent: term("sent"),
            consumed: term("consumed"),
            dropped: term("dropped"),
            merged: term("merged"),
            handed_out: term("handed-out"),
            held: term("held"),
        }
    }

    /// All workers' accounts added up.
    pub fn total(all: &[Account]) -> Account {
        let add = |term: fn(&Account) -> u64| all.iter().map(term).sum();
        Account {
            received: add(|a| a.received),
            created: add(|a| a.created),
            handed_in: add(|a| a.handed_in),
            sent: add(|a| a.sent),
            consumed: add(|a| a.consumed),
            dropped: add(|a| a.dropped),
            merged: add(|a| a.merged),
            handed_out: add(|a| a.handed_out),
            held: add(|a| a.held),
        }
    }

    fn ended(&self) -> u64 {
        self.sent + self.consumed + self.dropped + self.merged
    }

    /// The first law.
    pub fn balances(&self) -> bool {
        self.received + self.created + self.handed_in == self.ended() + self.handed_out + self.held
    }
}
