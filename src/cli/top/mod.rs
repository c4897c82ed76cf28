//! `flowgate top`: what the running process does, live in a terminal.

mod shot;
mod view;

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue};
use serde_json::Value;

use super::{ENVIRONMENT, USAGE};
use crate::control::client;
use shot::Shot;
use view::{Choice, Line, Look, VIEWS, View};

/// Watch the running flowgate: rates, drops, rules, flows, talkers, workers.
///
/// Keys: 1 to 7 or Tab change the view, s and S the column it is sorted by, r the direction, arrows scroll, p pauses, q ends.
#[derive(Args, Debug)]
pub struct Top {
    /// What to begin with.
    #[arg(long, value_enum, default_value_t = View::Overview)]
    view: View,
    /// Seconds from one look to the next.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Print once, of two looks, and end.
    #[arg(long)]
    once: bool,
    /// Print JSON: what /v1/overview says, with `rates`; without --once an object on a line for each look.
    #[arg(long)]
    json: bool,
    /// No colours; nor are there any with NO_COLOR in the environment.
    #[arg(long)]
    no_color: bool,
    /// The running process's control socket.
    #[arg(long, default_value = crate::config::DEFAULT_SOCKET)]
    socket: PathBuf,
}

fn seconds(text: &str) -> Result<f64, String> {
    let good = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    good.ok_or_else(|| "expected seconds from 0.1 to 3600".into())
}

/// Rates that are remembered.
const KEPT: usize = 240;

impl Top {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        if !(self.once || self.json || io::stdout().is_terminal()) {
            eprintln!(
                "flowgate top: standard output is no terminal; --once prints once, --json an object for each look"
            );
            return ExitCode::from(USAGE);
        }
        let watched = match self.once || self.json {
            true => self.print(),
            false => self.watch(),
        };
        match watched {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("flowgate top: {message}");
                ExitCode::from(ENVIRONMENT)
            }
        }
    }

    fn ask(&self) -> Result<Value, String> {
        client::ask(&self.socket, "/v1/overview")
    }

    fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.interval)
    }

    fn print(&self) -> Result<(), String> {
        let mut then = self.ask()?;
        loop {
            std::thread::sleep(self.interval());
            let shot = Shot::new(self.ask()?, then);
            let text = if self.json {
                let mut all = shot.now.clone();
                all["rates"] = shot.json();
                if self.once { format!("{all:#}\n") } else { format!("{all}\n") }
            } else {
                let choice = Choice { view: self.view, sort: None, reverse: false, from: 0 };
                let lines = view::lines(&shot, &choice, None, usize::MAX);
                lines.iter().map(|line| plain(line) + "\n").collect()
            };
            // Who reads no more has seen enough.
            let written = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
            if self.once || written.is_err() {
                return Ok(());
            }
            then = shot.now;
        }
    }

    fn watch(&self) -> Result<(), String> {
        let failed = |error: io::Error| format!("the terminal: {error}");
        let mut shot = Shot::new(self.ask()?, Value::Null);
        let terminal = Terminal::take(!self.no_color).map_err(failed)?;
        let mut choice = Choice { view: self.view, sort: None, reverse: false, from: 0 };
        let (mut rates, mut trouble, mut paused) = (VecDeque::new(), None, false);
        let mut next = Instant::now() + self.interval();
        loop {
            terminal.draw(&shot, &choice, &rates, trouble.as_deref(), paused).map_err(failed)?;
            let left = next.saturating_duration_since(Instant::now());
            if event::poll(left).map_err(failed)? {
                match event::read().map_err(failed)? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        let ends = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                        if ends || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                            return Ok(());
                        }
                        paused ^= key.code == KeyCode::Char('p');
                        choose(&mut choice, key.code, &shot);
                    }
                    _ => {}
                }
                continue;
            }
            next = Instant::now() + self.interval();
            if paused {
                continue;
            }
            trouble = match self.ask() {
                Ok(now) => {
                    shot = Shot::new(now, std::mem::take(&mut shot.now));
                    rates.extend(shot.rate_at("/account/received"));
                    rates.drain(..rates.len().saturating_sub(KEPT));
                    None
                }
                Err(message) => Some(message),
            };
        }
    }
}

/// What a key changes.
fn choose(choice: &mut Choice, key: KeyCode, shot: &Shot) {
    let at = VIEWS.iter().position(|view| *view == choice.view).unwrap_or(0);
    let other = match key {
        KeyCode::Char(digit @ '1'..='7') => Some(digit as usize - '1' as usize),
        KeyCode::Tab => Some((at + 1) % VIEWS.len()),
        KeyCode::BackTab => Some((at + VIEWS.len() - 1) % VIEWS.len()),
        _ => None,
    };
    if let Some(other) = other {
        *choice = Choice { view: VIEWS[other], sort: None, reverse: false, from: 0 };
    }
    let columns = view::columns(choice.view, shot);
    match key {
        KeyCode::Char('s') => choice.sort = Some(choice.sort.map_or(0, |sort| (sort + 1) % columns)),
        KeyCode::Char('S') => {
            choice.sort = Some(choice.sort.map_or(columns - 1, |sort| (sort + columns - 1) % columns))
        }
        KeyCode::Char('r') => choice.reverse = !choice.reverse,
        KeyCode::Down => choice.from += 1,
        KeyCode::Up => choice.from = choice.from.saturating_sub(1),
        KeyCode::PageDown => choice.from += 10,
        KeyCode::PageUp => choice.from = choice.from.saturating_sub(10),
        KeyCode::Home => choice.from = 0,
        _ => {}
    }
}

fn plain(line: &Line) -> String {
    line.iter().map(|(_, text)| text.as_str()).collect::<String>().trim_end().to_owned()
}

/// The terminal while it is ours. It is given back as it was, whatever happens.
struct Terminal {
    colours: bool,
    ascii: bool,
}

impl Terminal {
    fn take(colours: bool) -> io::Result<Terminal> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|kind| kind == "dumb" || kind.starts_with("vt1"));
        let language = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_uppercase();
        let terminal = Terminal {
            colours: colours && !dumb && set("NO_COLOR").is_none(),
            ascii: !(language.contains("UTF-8") || language.contains("UTF8")),
        };
        terminal::enable_raw_mode()?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(terminal)
    }

    fn draw(
        &self,
        shot: &Shot,
        choice: &Choice,
        rates: &VecDeque<f64>,
        trouble: Option<&str>,
        paused: bool,
    ) -> io::Result<()> {
        let (width, height) = terminal::size()?;
        let (width, height) = (usize::from(width), usize::from(height));
        let bars = view::bars(rates, width.saturating_sub(4), self.ascii);
        let mut lines = view::lines(shot, choice, (height >= 20).then_some(bars), height.saturating_sub(1));
        lines.resize(height.saturating_sub(1), Line::new());
        lines.push(match trouble {
            Some(message) => vec![(Look::Bad, format!("no answer: {}", message.replace('\n', " ")))],
            None => keys(choice.view, paused),
        });
        let mut out = Vec::new();
        queue!(out, cursor::MoveTo(0, 0))?;
        for (at, line) in lines.iter().take(height).enumerate() {
            queue!(out, cursor::MoveTo(0, at as u16))?;
            for (look, text) in view::cut(line, width) {
                self.look(&mut out, look)?;
                queue!(out, Print(text), SetAttribute(Attribute::Reset))?;
            }
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()
    }

    fn look(&self, out: &mut Vec<u8>, look: Look) -> io::Result<()> {
        let (attribute, colour) = match look {
            Look::Plain => (None, None),
            Look::Soft => (None, Some(Color::DarkGrey)),
            Look::Bold => (Some(Attribute::Bold), None),
            Look::Good => (None, Some(Color::Green)),
            Look::Bad => (Some(Attribute::Bold), Some(Color::Red)),
            Look::Chosen => (Some(Attribute::Reverse), None),
        };
        if let Some(attribute) = attribute {
            queue!(out, SetAttribute(attribute))?;
        }
        if let Some(colour) = colour.filter(|_| self.colours) {
            queue!(out, SetForegroundColor(colour))?;
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Gone with the terminal, if it does not work.
        let _ = execute!(
            io::stdout(),
            ResetColor,
            SetAttribute(Attribute::Reset),
            cursor::Show,
            terminal::LeaveAlternateScreen
        );
        let _ = terminal::disable_raw_mode();
    }
}

/// The line of keys.
fn keys(shown: View, paused: bool) -> Line {
    let names = ["overview", "ports", "drops", "rules", "flows", "talkers", "workers"];
    let mut line: Line = Vec::new();
    for (at, (view, name)) in VIEWS.iter().zip(names).enumerate() {
        line.push((if *view == shown { Look::Chosen } else { Look::Plain }, format!("{}{name}", at + 1)));
        line.push((Look::Plain, " ".into()));
    }
    line.push((Look::Soft, " s/r sort p pause q end".into()));
    if paused {
        line.insert(0, (Look::Bad, "PAUSED ".into()));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_change_what_is_shown() {
        let shot = Shot::new(Value::Null, Value::Null);
        let mut choice = Choice { view: View::Overview, sort: None, reverse: false, from: 3 };
        choose(&mut choice, KeyCode::Char('3'), &shot);
        assert_eq!((choice.view, choice.from), (View::Drops, 0));
        choose(&mut choice, KeyCode::Char('S'), &shot);
        choose(&mut choice, KeyCode::Char('s'), &shot);
        choose(&mut choice, KeyCode::Char('r'), &shot);
        assert_eq!((choice.sort, choice.reverse), (Some(0), true));
        (0..4).for_each(|_| choose(&mut choice, KeyCode::Down, &shot));
        choose(&mut choice, KeyCode::Up, &shot);
        assert_eq!(choice.from, 3);
        choose(&mut choice, KeyCode::BackTab, &shot);
        assert_eq!((choice.view, choice.sort, choice.reverse), (View::Ports, None, false));
        (0..VIEWS.len()).for_each(|_| choose(&mut choice, KeyCode::Tab, &shot));
        assert_eq!(choice.view, View::Ports);
    }

    #[test]
    fn the_line_of_keys_fits_a_small_terminal() {
        assert!(plain(&keys(View::Overview, false)).chars().count() <= 80);
    }
}
