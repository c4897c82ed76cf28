//! DPDK's testpmd as generator and sink, on the CPU that the worker does not have.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::appliance::{client_cpu, unique, wait_for};

/// A running testpmd at its prompt.
pub struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    log: PathBuf,
    ports: usize,
}

/// What testpmd counted at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx: u64,
    pub tx: u64,
}

/// Why testpmd cannot be used, if it cannot.
pub fn missing() -> Option<String> {
    let found = Command::new("dpdk-testpmd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.err().map(|error| format!("dpdk-testpmd: {error}"))
}

impl Testpmd {
    /// Starts testpmd over virtual devices, with options such as `--forward-mode=io`, and waits for its prompt. It forwards
    /// nothing until it is told to `start`.
    pub fn start(dir: &Path, devices: &[String], options: &[&str]) -> Testpmd {
        let number = unique();
        let log = dir.join(format!("testpmd{number}.log"));
        let output = File::create(&log).expect("a writable folder");
        let cpu = client_cpu();
        // Its output goes to a file, and is wanted as it comes.
        let mut command = Command::new("stdbuf");
        command.args([
            "-o0",
            "dpdk-testpmd",
            "--no-huge",
            "--no-shconf",
            "--no-pci",
            "-m",
            "192",
            "--log-level",
            "lib.eal:error",
        ]);
        command.args([
            "--lcores",
            &format!("0@{cpu},1@{cpu}"),
            "--file-prefix",
            &format!("fgt{}x{number}", std::process::id()),
        ]);
        for device in devices {
            command.args(["--vdev", device]);
        }
        command.args(["--", "-i", "--no-mlockall", "--no-flush-rx", "--total-num-mbufs=40000", "--mbuf-size=2176"]);
        command.args(options);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .spawn()
            .expect("testpmd starts");
        let stdin = child.stdin.take().expect("piped");
        let mut testpmd = Testpmd { child, stdin, log, ports: devices.len() };
        wait_for("testpmd's prompt", || {
            if let Some(status) = testpmd.child.try_wait().expect("its own child") {
                panic!("testpmd did not start ({status}):\n{}", testpmd.log());
            }
            testpmd.log().contains("testpmd>")
        });
        testpmd
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Gives testpmd a command and returns what it printed, once that holds `until` as often as said.
    pub fn say(&mut self, command: &str, until: &str, times: usize) -> String {
        let before = self.log().len();
        writeln!(self.stdin, "{command}").expect("testpmd listens");
        let mut answer = String::new();
        wait_for(&format!("testpmd answers {command:?} with {until:?}"), || {
            answer = self.log().get(before..).unwrap_or_default().to_owned();
            answer.matches(until).count() >= times
        });
        answer
    }

    /// Lets some ports receive for a moment: a memif offers its peer buffers only from then on, and what the peer would send
    /// before that is lost.
    pub fn prime(&mut self, ports: &str, all: &str) {
        self.say(&format!("set portlist {ports}"), "forwarding ports", 1);
        self.forward("rxonly");
        std::thread::sleep(Duration::from_millis(200));
        self.stop();
        self.say(&format!("set portlist {all}"), "forwarding ports", 1);
    }

    /// Begins forwarding in a mode, once the links of all ports are up.
    pub fn forward(&mut self, mode: &str) {
        wait_for("testpmd's links are up", || {
            let ports = self.ports;
            self.say("show port info all", "Device error handling mode", ports).matches("Link status: up").count()
                == ports
        });
        self.say(&format!("set fwd {mode}"), "packet forwarding mode", 1);
        self.say("start", "TX offloads=", 1);
    }

    /// Ends forwarding.
    pub fn stop(&mut self) {
        self.say("stop", "Done.", 1);
    }

    /// The ports' own counters, since the start.
    pub fn stats(&mut self) -> Vec<PortStats> {
        let answer = self.say("show port stats all", "Tx-bps", self.ports);
        let numbers = |word: &str| -> Vec<u64> {
            let after = answer.split(word).skip(1);
            after.map(|rest| rest.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a count")).collect()
        };
        let (rx, tx) = (numbers("RX-packets:"), numbers("TX-packets:"));
        rx.into_iter().zip(tx).map(|(rx, tx)| PortStats { rx, tx }).collect()
    }

    /// Ends testpmd, so that its files are complete.
    pub fn quit(mut self) {
        writeln!(self.stdin, "quit").expect("testpmd listens");
        wait_for("testpmd ends", || self.child.try_wait().expect("its own child").is_some());
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("testpmd's output:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
