//! `flowgate test`: whether a file's policy does what its `[[test]]`s say.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::check::examine;
use super::report::Refusal;
use super::{FINDINGS, table};
use crate::policy::{self, Outcome};

/// Run the policy tests of a configuration file: no root, no NIC.
#[derive(Args, Debug)]
pub struct Test {
    /// The file.
    config: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Test {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let (config, blueprint) = match examine(&self.config, Some(1)) {
            Ok(good) => good,
            Err(refusal) => return refusal.print("test"),
        };
        let outcomes = match policy::run(&config, &blueprint) {
            Ok(outcomes) => outcomes,
            Err(mistakes) => return Refusal::Mistakes(config.source, mistakes).print("test"),
        };
        if self.json {
            println!("{:#}", json!(outcomes));
        } else {
            print!("{}", report(&self.config, &outcomes));
        }
        if outcomes.iter().all(Outcome::is_good) { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) }
    }
}

/// The tests as a table, those that do not hold with what is the case instead.
fn report(path: &str, outcomes: &[Outcome]) -> String {
    if outcomes.is_empty() {
        return format!("{path} has no [[test]]\n");
    }
    let rows = outcomes.iter().map(|outcome| {
        let place = format!("{}:{}", outcome.place.file, outcome.place.line);
        let got = outcome.got.clone().unwrap_or_default();
        vec![outcome.result.into(), outcome.test.clone(), place, outcome.expected.clone(), got]
    });
    let mut out = table::render(&["result", "test", "place", "expected", "got"], rows, &[]);
    let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    let packets = bad.iter().filter_map(|outcome| outcome.packet.as_ref());
    for packet in packets {
        out += &format!("\nflowgate explain {path} '{packet}'");
    }
    let held = outcomes.len() - bad.len();
    out + &format!("{}\n{held} of {} tests hold\n", if bad.is_empty() { "" } else { "\n" }, outcomes.len())
}
