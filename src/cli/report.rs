//! Mistakes on the terminal: each with its place, the line it is in, and a caret under it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::{ENVIRONMENT, FINDINGS};
use crate::config::source::{Mistake, Place, Source};
use crate::stage::{Finding, Involved};

/// Why there is nothing to go on with.
#[derive(Debug)]
pub enum Refusal {
    /// The file could not be read at all.
    Unreadable(String),
    /// What is wrong with it.
    Mistakes(Source, Vec<Mistake>),
}

impl Refusal {
    /// Says it on standard error; returns the exit code that goes with it.
    pub fn print(&self, command: &str) -> ExitCode {
        match self {
            Refusal::Unreadable(message) => {
                eprintln!("flowgate {command}: {message}");
                ExitCode::from(ENVIRONMENT)
            }
            Refusal::Mistakes(source, mistakes) => {
                let _ = write(&mut anstream::stderr(), source, mistakes);
                ExitCode::from(FINDINGS)
            }
        }
    }
}

/// Writes mistakes as people read them. Lines of other files than `source` (lists it names) are read where they are.
pub fn write(out: &mut impl Write, source: &Source, mistakes: &[Mistake]) -> io::Result<()> {
    let (bold, red) = (Style::new().bold(), AnsiColor::Red.on_default().bold());
    let mut quotes = Quotes { source, others: HashMap::new() };
    for mistake in mistakes {
        let Mistake { place, key, message, help } = mistake;
        let about = if key.is_empty() { String::new() } else { format!("{key}: ") };
        match place {
            Some(place) => {
                let title = format!("{about}{bold}{message}{bold:#}");
                quotes.write(out, place, red, &title, help.iter().map(String::as_str))?;
            }
            None => writeln!(out, "{bold}{about}{message}{bold:#}\n")?,
        }
    }
    summed_up(out, red, mistakes.len(), "mistake", source)
}

/// The most other rules that are listed with a warning.
const INVOLVED: usize = 10;

/// Writes findings as people read them: warnings.
pub fn warn(out: &mut impl Write, source: &Source, findings: &[Finding]) -> io::Result<()> {
    let (bold, yellow) = (Style::new().bold(), AnsiColor::Yellow.on_default().bold());
    let mut quotes = Quotes { source, others: HashMap::new() };
    for finding in findings {
        let Finding { kind: _, place, key, rule, message, witness, involved, help } = finding;
        let named = if key.ends_with(rule.as_str()) { String::new() } else { format!(" {rule:?}") };
        let title = format!("{yellow}warning:{yellow:#} {key}{named}: {bold}{message}{bold:#}");
        let mut notes: Vec<String> = witness.iter().map(|packet| format!("such as {packet}")).collect();
        let line = |other: &Involved| format!("see {}: {:?} ({})", other.place, other.rule, other.action);
        notes.extend(involved.iter().take(INVOLVED).map(line));
        if involved.len() > INVOLVED {
            notes.push(format!("and {} more rules; --json lists them", involved.len() - INVOLVED));
        }
        quotes.write(out, place, yellow, &title, notes.iter().chain(help).map(String::as_str))?;
    }
    summed_up(out, yellow, findings.len(), "warning", source)
}

fn summed_up(out: &mut impl Write, colour: Style, n: usize, what: &str, source: &Source) -> io::Result<()> {
    let s = if n == 1 { "" } else { "s" };
    writeln!(out, "{colour}{n} {what}{s}{colour:#} in {}", source.path())
}

/// The lines of files, to be quoted.
struct Quotes<'s> {
    source: &'s Source,
    others: HashMap<String, Option<Source>>,
}

impl Quotes<'_> {
    /// Writes what there is to say about a place, with its line, a caret under it, and notes.
    fn write<'n>(
        &mut self,
        out: &mut impl Write,
        place: &Place,
        colour: Style,
        title: &str,
        notes: impl Iterator<Item = &'n str>,
    ) -> io::Result<()> {
        let (bold, dim) = (Style::new().bold(), AnsiColor::Cyan.on_default());
        writeln!(out, "{bold}{place}:{bold:#} {title}")?;
        let quoted = match &*place.file == self.source.path() {
            true => Some(self.source),
            false => {
                self.others.entry(place.file.to_string()).or_insert_with(|| Source::read(&place.file).ok()).as_ref()
            }
        };
        let number = place.line.to_string();
        let gap = " ".repeat(number.len());
        if let Some(line) = quoted.map(|source| source.line(place.line)) {
            // Tabs stay tabs, so that the caret stands where the terminal puts the column.
            let before: String =
                line.chars().take(place.column as usize - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
            writeln!(out, " {dim}{number} |{dim:#} {}", line.trim_end())?;
            writeln!(out, " {dim}{gap} |{dim:#} {before}{colour}^{colour:#}")?;
        }
        for note in notes {
            writeln!(out, " {dim}{gap} ={dim:#} {note}")?;
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Mistakes;

    #[test]
    fn a_caret_stands_under_the_place() {
        let source = Source::new("a.toml", "x = 1\n\ty = \"é\" # 2\n");
        let mut mistakes = Mistakes::default();
        mistakes.with_help(&source.place(11), "y", "is wrong", "do better");
        let mut out = anstream::StripStream::new(Vec::new());
        write(&mut out, &source, &mistakes.into_sorted()).expect("memory takes all");
        let text = String::from_utf8(out.into_inner()).expect("text");
        let expected =
            "a.toml:2:6: y: is wrong\n 2 | \ty = \"é\" # 2\n   | \t    ^\n   = do better\n\n1 mistake in a.toml\n";
        assert_eq!(text, expected);
    }
}
