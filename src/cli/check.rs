//! `flowgate check`: every mistake in a file, and rules that do nothing, without root and without a NIC.

use std::process::ExitCode;

use clap::Args;

use super::FINDINGS;
use super::report::{self, Refusal};
use crate::config::Config;
use crate::config::source::{Mistakes, Place, Source};
use crate::policy;
use crate::stage::pipeline::{self, Blueprint};

/// Check a configuration file: no root, no NIC, all mistakes at once.
///
/// In a file without mistakes, rules of an acl that do nothing are warned of, each with a packet that shows it and the other
/// rules concerned: shadowed (earlier rules decide all it matches, some of it otherwise), redundant (without it, every packet
/// is decided alike), never matching, never counting. All rules warned of can be removed together and no packet is decided
/// otherwise. A rule of which that takes too long to find out is named as undecided. Warnings keep a file from nothing.
#[derive(Args, Debug)]
pub struct Check {
    /// The file.
    config: String,
    /// Print the mistakes, or else the warnings (those have a "kind"), as a JSON list, empty if there are none.
    #[arg(long)]
    json: bool,
    /// Exit with 1 if there are warnings, as with mistakes.
    #[arg(long)]
    deny_warnings: bool,
}

impl Check {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let tested = |(config, blueprint): (Config, Blueprint)| match policy::findings(&config, &blueprint) {
            findings if findings.is_empty() => Ok((config, blueprint)),
            findings => Err(Refusal::Mistakes(config.source, findings)),
        };
        match examine(&self.config, None).and_then(tested) {
            Ok((config, blueprint)) => {
                let findings = blueprint.lint(&config);
                if self.json {
                    println!("{:#}", serde_json::json!(findings));
                } else {
                    print!("{}", summary(&config, &blueprint));
                    if !findings.is_empty() {
                        println!();
                        // As below.
                        let _ = report::warn(&mut anstream::stdout(), &config.source, &findings);
                    }
                }
                if self.deny_warnings && !findings.is_empty() { ExitCode::from(FINDINGS) } else { ExitCode::SUCCESS }
            }
            Err(Refusal::Mistakes(source, mistakes)) => {
                if self.json {
                    println!("{:#}", serde_json::json!(mistakes));
                } else {
                    // A reader that has seen enough closes the pipe, which is no error of ours.
                    let _ = report::write(&mut anstream::stdout(), &source, &mistakes);
                }
                ExitCode::from(FINDINGS)
            }
            Err(unreadable) => unreadable.print("check"),
        }
    }
}

/// Reads a file and compiles its pipeline for so many workers, or as for a machine of which nothing is known but how many
/// cores it has. Where the text is wrong, what could be read of it is compiled all the same, for the mistakes that only shows there.
pub fn examine(path: &str, workers: Option<usize>) -> Result<(Config, Blueprint), Refusal> {
    let source = Source::read(path).map_err(|error| Refusal::Unreadable(format!("cannot read {path:?}: {error}")))?;
    let (config, found) = Config::read(&source);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    match (pipeline::compile(&config, workers.unwrap_or_else(|| config.worker.count(cores)), &[]), found.is_empty()) {
        (Ok(blueprint), true) => Ok((config, blueprint)),
        (compiled, good) => {
            let mut mistakes = Mistakes::default();
            found.into_iter().for_each(|mistake| mistakes.push(mistake));
            // What the list of stages lacks as a whole says nothing while one of them could not be read.
            let about_all = |place: Option<&Place>| !good && place == Some(&config.pipeline_place);
            let compile = compiled.err().unwrap_or_default();
            compile.into_iter().filter(|m| !about_all(m.place.as_ref())).for_each(|mistake| mistakes.push(mistake));
            Err(Refusal::Mistakes(source, mistakes.into_sorted()))
        }
    }
}

/// What a good file describes, in a paragraph, and what was compiled.
fn summary(config: &Config, blueprint: &Blueprint) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let ports: Vec<&str> = config.names.ports.iter().map(|port| port.name.as_str()).collect();
    let stages: Vec<&str> = blueprint.stages.iter().map(|stage| stage.instance.as_str()).collect();
    let workers = match config.worker.cores {
        crate::config::machine::Cores::Auto => "a worker for each core but one".to_owned(),
        crate::config::machine::Cores::List(ref list) => count(list.len(), "worker"),
    };
    let mut text = format!(
        "{} is good: {} ({}), {workers}, {} ({}), {}.\n",
        config.source.path(),
        count(ports.len(), "port"),
        ports.join(", "),
        count(stages.len(), "stage"),
        stages.join(", "),
        count(blueprint.rules.all().len(), "rule"),
    );
    for line in blueprint.describe() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}
