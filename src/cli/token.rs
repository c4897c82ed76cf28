//! `flowgate token`: a new caller of the API.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ENVIRONMENT;
use crate::config::api::Role;
use crate::control::access::new_token;

/// Make a token for the API. It is printed once; the file of [api] tokens keeps only its hash.
#[derive(Args, Debug)]
pub struct Token {
    /// Who it is for.
    #[arg(value_parser = name)]
    name: String,
    /// The file of [api] tokens; a running flowgate reads it again by itself.
    file: PathBuf,
    /// It may change what runs; if not given, only ask.
    #[arg(long)]
    write: bool,
}

fn name(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '#');
    good.then(|| text.to_owned()).ok_or_else(|| "expected a word".to_owned())
}

impl Token {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        match self.make() {
            Ok(token) => {
                println!("{token}");
                ExitCode::SUCCESS
            }
            Err(message) => {
                eprintln!("flowgate token: {message}");
                ExitCode::from(ENVIRONMENT)
            }
        }
    }

    fn make(&self) -> Result<String, String> {
        let (token, line) = new_token(&self.name, if self.write { Role::Write } else { Role::Read })?;
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", self.file.display());
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.file).map_err(failed)?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(failed)?;
        Ok(token)
    }
}
