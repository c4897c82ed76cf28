//! Hosts for flowgate to stand between: network namespaces behind veth pairs, and bare veth ends for frames by hand.
//!
//! All names hold the process id and a number; whatever was made is removed when the lab is dropped, a panic included.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::appliance::{client_cpu, signal, unique, wait_for};
use super::frames::Frame;

/// Namespaces, interfaces and processes of one test.
pub struct Lab {
    tag: String,
    namespaces: Vec<String>,
    links: Vec<String>,
    processes: Vec<Child>,
    /// A folder for the test's files.
    pub dir: tempfile::TempDir,
}

/// A namespace with an interface whose other end is for DPDK.
#[derive(Clone)]
pub struct Host {
    /// The namespace.
    pub name: String,
    /// The end for DPDK.
    pub port: String,
    /// The end in the namespace.
    pub interface: String,
}

/// Runs a command that has to work.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().expect("a command"));
    let output = process.args(words).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn quiet(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().expect("a command"));
    process.args(words).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Lab {
    /// An empty lab, or why there can be none: namespaces need root.
    pub fn new() -> Result<Lab, String> {
        let tag = format!("fg{}x{}", std::process::id() % 1_000_000, unique());
        let mut lab = Lab {
            tag,
            namespaces: Vec::new(),
            links: Vec::new(),
            processes: Vec::new(),
            dir: tempfile::tempdir().expect("a folder"),
        };
        let probe = format!("{}p", lab.tag);
        if !quiet(&format!("ip netns add {probe}")) {
            return Err("network namespaces cannot be made here (ip netns add; root is needed)".into());
        }
        lab.namespaces.push(probe);
        Ok(lab)
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}{}", self.tag, self.links.len())
    }

    /// A namespace.
    pub fn namespace(&mut self) -> String {
        let name = format!("{}n{}", self.tag, self.namespaces.len());
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        self.namespaces.push(name.clone());
        name
    }

    /// A host with addresses (with prefix lengths) on `eth0`, behind a veth pair.
    pub fn host(&mut self, addresses: &[&str], mtu: u16) -> Host {
        let name = self.namespace();
        let port = self.name("d");
        run(&format!("ip link add {port} mtu {mtu} type veth peer name eth0 netns {name} mtu {mtu}"));
        self.links.push(port.clone());
        dpdk_end(None, &port);
        host_end(&name, "eth0", addresses);
        Host { name, port, interface: "eth0".into() }
    }

    /// A veth pair with both ends here: the end for DPDK, and the one for frames by hand.
    pub fn wire(&mut self) -> (String, Tap) {
        let (port, far) = (self.name("d"), self.name("f"));
        run(&format!("ip link add {port} type veth peer name {far}"));
        self.links.push(port.clone());
        dpdk_end(None, &port);
        dpdk_end(None, &far);
        let tap = Tap::open(&far);
        (port, tap)
    }

    /// A veth pair with both ends here, both for DPDK.
    pub fn pair(&mut self) -> [String; 2] {
        let ends = [self.name("d"), self.name("f")];
        run(&format!("ip link add {} type veth peer name {}", ends[0], ends[1]));
        self.links.push(ends[0].clone());
        ends.iter().for_each(|end| dpdk_end(None, end));
        ends
    }

    /// Starts a program in a namespace, on the CPU for clients, to be killed with the lab. Returns its process.
    pub fn spawn(&mut self, namespace: &str, program: &[&str]) -> u32 {
        let log = self.dir.path().join(format!("process{}.log", unique()));
        let log = std::fs::File::create(log).expect("a writable folder");
        let mut command = inside(namespace, program);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        self.processes.push(child);
        self.processes.last().map_or(0, Child::id)
    }

    /// Sends a signal, by name, to a program that was started, and waits for its end.
    pub fn end(&mut self, process: u32, name: &str) {
        let at = self.processes.iter().position(|child| child.id() == process).expect("started here");
        signal(name, process);
        let child = &mut self.processes[at];
        wait_for(&format!("process {process} ends"), || child.try_wait().expect("its own child").is_some());
        let _ = self.processes.remove(at).wait();
    }

    /// Starts a server in a namespace and waits until it listens on a TCP port.
    pub fn serve(&mut self, namespace: &str, port: u16, program: &[&str]) {
        self.spawn(namespace, program);
        let listening = format!("ss -Hltn sport = :{port}");
        let words: Vec<&str> = listening.split(' ').collect();
        wait_for(&format!("{program:?} listens"), || {
            !inside(namespace, &words).output().expect("ss").stdout.is_empty()
        });
    }

    /// A web server over a folder on a port, IPv4 and IPv6.
    pub fn web(&mut self, namespace: &str, folder: &Path, port: u16) {
        let (folder, text) = (folder.to_str().expect("a name"), port.to_string());
        let command = ["/usr/bin/python3", "-m", "http.server", "--bind", "::", "--directory", folder, &text];
        self.serve(namespace, port, &command);
    }

    /// A file in the lab's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// What DPDK's end of a veth pair wants: the kernel must not answer beside it, nor send super-frames.
pub fn dpdk_end(namespace: Option<&str>, name: &str) {
    let inside = namespace.map_or(String::new(), |namespace| format!("ip netns exec {namespace} "));
    run(&format!("{inside}sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"));
    run(&format!("{inside}ip link set {name} arp off up"));
    no_offloads(&inside, name);
}

/// Addresses for a host's interface. No kernel will fill in checksums or cut super-frames on the way.
pub fn host_end(namespace: &str, name: &str, addresses: &[&str]) {
    let inside = format!("ip netns exec {namespace} ");
    run(&format!("{inside}sysctl -qw net.ipv6.conf.{name}.accept_dad=0"));
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        run(&format!("{inside}ip addr add {address} dev {name}{nodad}"));
    }
    no_offloads(&inside, name);
    run(&format!("{inside}ip link set {name} up"));
}

fn no_offloads(inside: &str, name: &str) {
    for offload in ["tx", "rx", "gso", "tso", "gro"] {
        quiet(&format!("{inside}ethtool -K {name} {offload} off"));
    }
}

/// A program in a namespace, on the CPU for clients: a busy worker would starve it.
pub fn inside(namespace: &str, program: &[&str]) -> Command {
    let cpu = client_cpu().to_string();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "taskset", "-c", &cpu]).args(program);
    command
}

/// Sends echo requests 50 ms apart and waits until each is answered, once and with its own data; a minute in all. ping(8) is no
/// use for that: when it has seen one reply it waits for the last one no longer than twice the longest round trip.
const PING: &str = r"
import os, select, socket, struct, sys, time
to, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
six = ':' in to
family, protocol, ask, answer = (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129) if six else (socket.AF_INET, 1, 8, 0)
s = socket.socket(family, socket.SOCK_RAW, protocol)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
def request(body):
    words = struct.pack('!BBH', ask, 0, 0) + body
    n = 0 if six else sum(struct.unpack('!%dH' % ((len(words) + 1) // 2), words + bytes(len(words) % 2)))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    # The kernel fills in the checksum of ICMPv6.
    return struct.pack('!BBH', ask, 0, ~n & 0xffff) + body
data = bytes(i & 255 for i in range(size))
bodies = [struct.pack('!HH', os.getpid() & 0xffff, number) + data for number in range(count)]
left, sent, due = set(range(count)), 0, time.monotonic()
end = due + 60
while left and time.monotonic() < end:
    if sent < count and time.monotonic() >= due:
        try:
            s.sendto(request(bodies[sent]), (to, 0))
        except OSError as error:
            sys.exit(f'{to}, {size} bytes, request {sent}: {error}')
        sent, due = sent + 1, due + 0.05
    if select.select([s], [], [], max(0, due - time.monotonic()) if sent < count else 1)[0]:
        got = s.recv(1 << 16)
        got = got if six else got[(got[0] & 15) * 4:]
        if got[0] == answer and got[4:] in bodies:
            left.remove(bodies.index(got[4:]))
if left: sys.exit(f'{to}, {size} bytes: no answer to {sorted(left)} of {count}')
";

impl Host {
    /// Pings so many times with so many bytes, and fails unless every request is answered.
    pub fn pings(&self, to: &str, count: usize, size: usize) {
        self.python(PING, &[to, &count.to_string(), &size.to_string()]);
    }

    /// Runs a program to its end.
    pub fn output(&self, program: &[&str]) -> Output {
        inside(&self.name, program).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program:?}: {error}"))
    }

    /// Runs a program that has to work, and returns what it printed.
    pub fn does(&self, program: &[&str]) -> String {
        let output = self.output(program);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{program:?}: {}\n{out}{err}", output.status);
        out
    }

    /// Runs a program that has to fail.
    pub fn fails(&self, program: &[&str]) {
        let output = self.output(program);
        assert!(!output.status.success(), "{program:?} worked: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// Runs a Python script, which has to work.
    pub fn python(&self, script: &str, arguments: &[&str]) -> String {
        self.does(&[&["/usr/bin/python3", "-c", script], arguments].concat())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        for link in &self.links {
            quiet(&format!("ip link del {link}"));
        }
        for namespace in &self.namespaces {
            quiet(&format!("ip netns del {namespace}"));
        }
    }
}

/// An interface for frames by hand.
pub struct Tap {
    capture: pcap::Capture<pcap::Active>,
    /// Its name.
    pub name: String,
}

impl Tap {
    /// Over an interface that is there.
    pub fn open(name: &str) -> Tap {
        let inactive = pcap::Capture::from_device(name).expect("an interface");
        let capture = inactive.promisc(true).immediate_mode(true).timeout(10).snaplen(65_535).buffer_size(16 << 20);
        let capture = capture.open().unwrap_or_else(|error| panic!("{name}: {error}"));
        capture.direction(pcap::Direction::In).expect("a direction");
        Tap { capture: capture.setnonblock().expect("not blocking"), name: name.to_owned() }
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.capture.sendpacket(frame).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits for so many frames.
    pub fn receive(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        wait_for(&format!("{count} frames at {}", self.name), || {
            frames.extend(self.waiting());
            frames.len() >= count
        });
        frames
    }

    /// Frames that have arrived.
    pub fn waiting(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(packet) = self.capture.next_packet() {
            frames.push(packet.data.to_vec());
        }
        frames
    }
}
