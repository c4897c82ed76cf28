//! Mistakes on the terminal: each with its place, the line it is in, and a caret under it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::{ENVIRONMENT, FINDINGS};
use crate::config::source::{Mistake, Source};

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
    let (bold, red, dim) = (Style::new().bold(), AnsiColor::Red.on_default().bold(), AnsiColor::Cyan.on_default());
    let mut others: HashMap<&str, Option<Source>> = HashMap::new();
    for mistake in mistakes {
        let Mistake { place, key, message, help } = mistake;
        let about = if key.is_empty() { String::new() } else { format!("{key}: ") };
        let Some(place) = place else {
            writeln!(out, "{bold}{about}{message}{bold:#}\n")?;
            continue;
        };
        writeln!(out, "{bold}{place}:{bold:#} {about}{bold}{message}{bold:#}")?;
        let quoted = match &*place.file == source.path() {
            true => Some(source),
            false => others.entry(&place.file).or_insert_with(|| Source::read(&place.file).ok()).as_ref(),
        };
        let number = place.line.to_string();
        let gap = " ".repeat(number.len());
        if let Some(line) = quoted.map(|source| source.line(place.line)) {
            // Tabs stay tabs, so that the caret stands where the terminal puts the column.
            let before: String =
                line.chars().take(place.column as usize - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
            writeln!(out, " {dim}{number} |{dim:#} {}", line.trim_end())?;
            writeln!(out, " {dim}{gap} |{dim:#} {before}{red}^{red:#}")?;
        }
        if let Some(help) = help {
            writeln!(out, " {dim}{gap} ={dim:#} {help}")?;
        }
        writeln!(out)?;
    }
    let (n, s) = (mistakes.len(), if mistakes.len() == 1 { "" } else { "s" });
    writeln!(out, "{red}{n} mistake{s}{red:#} in {}", source.path())
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
