//! The command line: one file per subcommand, and the exit codes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod apply;
pub mod capture;
pub mod check;
pub mod describe;
pub mod explain;
pub mod flows;
pub mod replay;
pub mod report;
mod routes;
pub mod run;
pub mod show;
pub mod table;
pub mod test;
mod token;
pub mod top;

/// Exit code: there are findings, such as mistakes in the file.
pub const FINDINGS: u8 = 1;
/// Exit code: the command line is wrong.
pub const USAGE: u8 = 2;
/// Exit code: something outside of flowgate is missing or not allowed.
pub const ENVIRONMENT: u8 = 3;

/// A firewall and router in user space, on DPDK, from one TOML file.
#[derive(Parser, Debug)]
#[command(name = "flowgate", version, max_term_width = 120)]
#[command(after_help = "Exit codes: 0 good, 1 findings, 2 usage, 3 environment.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Show(show::Show),
    #[command(long_flag = "describe")]
    Describe(describe::Describe),
    Replay(replay::Replay),
    Explain(explain::Explain),
    Capture(capture::Capture),
    Test(test::Test),
    Flush(flows::Flush),
    Flows(flows::Flows),
    Token(token::Token),
    Diff(apply::Diff),
    Apply(apply::Apply),
    Confirm(apply::Confirm),
    Rollback(apply::Rollback),
    History(apply::History),
    Set(apply::Set),
    Top(top::Top),
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Show(show) => show.run(),
        Command::Describe(describe) => describe.run(),
        Command::Replay(replay) => replay.run(),
        Command::Explain(explain) => explain.run(),
        Command::Capture(capture) => capture.run(),
        Command::Test(test) => test.run(),
        Command::Flush(flush) => flush.run(),
        Command::Flows(flows) => flows.run(),
        Command::Token(token) => token.run(),
        Command::Diff(diff) => diff.run(),
        Command::Apply(apply) => apply.run(),
        Command::Confirm(confirm) => confirm.run(),
        Command::Rollback(rollback) => rollback.run(),
        Command::History(history) => history.run(),
        Command::Set(set) => set.run(),
        Command::Top(top) => top.run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["flowgate", "--describe"]).is_ok());
        assert!(Cli::try_parse_from(["flowgate", "--describe", "a.toml", "--json"]).is_ok());
        let wrong = Cli::try_parse_from(["flowgate", "check"]).expect_err("the file is missing");
        assert_eq!(wrong.exit_code(), i32::from(USAGE));
    }
}
