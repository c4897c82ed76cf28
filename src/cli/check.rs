//! `flowgate check`: every mistake in a file, without root and without a NIC.

use std::process::ExitCode;

use clap::Args;

use super::FINDINGS;
use super::report::{self, Refusal};
use crate::config::Config;
use crate::config::source::{Mistakes, Place, Source};
use crate::stage::pipeline::{self, Blueprint};

/// Check a configuration file: no root, no NIC, all mistakes at once.
#[derive(Args, Debug)]
pub struct Check {
    /// The file.
    config: String,
    /// Print the mistakes as a JSON list, empty if there are none.
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        match examine(&self.config, None) {
            Ok((config, blueprint)) => {
                if self.json {
                    println!("[]");
                } else {
                    print!("{}", summary(&config, &blueprint));
                }
                ExitCode::SUCCESS
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
