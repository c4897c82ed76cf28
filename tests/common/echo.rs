//! Many addresses pinged from a host, once each or in a steady stream.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::appliance::unique;
use super::host::{Host, Lab, inside};

const SCRIPT: &str = include_str!("echo.py");

/// A stream of pings that goes on until it is ended.
pub struct Stream(Child);

/// What came of pings.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Outcome {
    /// Requests.
    pub sent: usize,
    /// Replies to them.
    pub answered: usize,
    /// By address, type and code of the last error.
    pub told: BTreeMap<String, String>,
    /// What nothing came back for, and when it was sent, in seconds from the start.
    pub lost: Vec<(String, f64)>,
}

fn file(lab: &Lab, addresses: &[String]) -> PathBuf {
    let file = lab.file(&format!("addresses{}", unique()));
    std::fs::write(&file, addresses.join("\n")).expect("a writable folder");
    file
}

fn outcome(output: &[u8]) -> Outcome {
    let said: Value = serde_json::from_slice(output).expect("JSON");
    serde_json::from_value(said).expect("what the script says")
}

/// Pings each address once, every few milliseconds one.
pub fn ping_each(lab: &Lab, host: &Host, addresses: &[String]) -> Outcome {
    let file = file(lab, addresses);
    let said = host.python(SCRIPT, &["0.002", "1", file.to_str().expect("a name")]);
    outcome(said.as_bytes())
}

impl Stream {
    /// Begins to ping addresses one after the other, 100 a second.
    pub fn start(lab: &Lab, host: &Host, addresses: &[String]) -> Stream {
        let file = file(lab, addresses);
        let command = ["/usr/bin/python3", "-c", SCRIPT, "0.01", "0", file.to_str().expect("a name")];
        let mut command = inside(&host.name, &command);
        Stream(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python"))
    }

    /// Ends it, and waits for what is on its way.
    pub fn end(mut self) -> Outcome {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().expect("its own child");
        assert!(output.status.success(), "{}", output.status);
        outcome(&output.stdout)
    }
}

impl Outcome {
    /// Every ping was answered.
    pub fn is_whole(&self) -> bool {
        self.sent > 0 && self.answered == self.sent
    }
}
