//! The packet log in words: what the workers' rings hold, as lines for standard error.

use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use crate::config::machine::LogFormat;
use crate::config::names::Names;
use crate::log::{Entry, Event, Log};
use crate::stage::pipeline::Blueprint;
use crate::verdict::{Namer, Outcome, Time, words};

/// Takes entries from the rings of all workers of a pipeline and names what is in them.
pub struct Scribe {
    logs: Arc<[Log]>,
    namer: Namer,
    format: LogFormat,
}

/// An entry as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: Time,
    event: &'static str,
    stage: Option<&'a str>,
    reason: Option<&'a str>,
    rule: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    #[serde(rename = "in")]
    port: &'a str,
    out: Option<&'a str>,
    packet: &'a str,
}

impl Scribe {
    /// For the pipeline compiled from a config.
    pub fn new(blueprint: &Blueprint, names: &Names, format: LogFormat) -> Scribe {
        Scribe { logs: blueprint.logs.clone(), namer: Namer::new(blueprint, names), format }
    }

    /// The entries that are there now, one line each, by time; each line ends with a line feed.
    pub fn take(&self) -> String {
        let mut entries: Vec<Entry> = self.logs.iter().flat_map(Log::take).collect();
        entries.sort_by_key(|entry| entry.time);
        entries.iter().map(|entry| self.line(entry)).collect()
    }

    fn line(&self, entry: &Entry) -> String {
        let outcome = match entry.event {
            Event::New | Event::Allowed => Outcome::Sent,
            Event::Denied => Outcome::Dropped(entry.reason),
        };
        let packet = words(&entry.facts);
        let record = self.namer.record(0, entry.time, 0, &entry.facts, outcome, packet);
        let event = match entry.event {
            Event::New => "new",
            Event::Allowed => "allowed",
            Event::Denied => "denied",
        };
        let out = self.namer.port(entry.facts.out);
        if self.format == LogFormat::Json {
            let line = Line {
                time: record.time,
                event,
                stage: record.stage,
                reason: record.reason,
                rule: record.rule,
                file: record.file,
                line: record.line,
                port: record.port,
                out,
                packet: &record.packet,
            };
            // Numbers and strings always have a JSON form.
            return serde_json::to_string(&line).map_or(String::new(), |line| line + "\n");
        }
        let mut text = format!("flowgate: {} {event}", record.time);
        // Writing to a string cannot fail.
        if let (Some(stage), Some(reason)) = (record.stage, record.reason) {
            let _ = write!(text, " {stage}.{reason}");
        }
        if let Some(rule) = record.rule {
            let _ = write!(text, " rule={rule:?}");
        }
        let _ = write!(text, " {} in {}", record.packet, record.port);
        if let Some(out) = out {
            let _ = write!(text, " out {out}");
        }
        text + "\n"
    }
}

/// Something that is not about a packet, in the same format: one line, which ends with a line feed.
pub fn message(format: LogFormat, time: Time, text: &str) -> String {
    match format {
        LogFormat::Human => format!("flowgate: {text}\n"),
        LogFormat::Json => format!("{}\n", serde_json::json!({ "time": time, "event": "message", "message": text })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_format_of_packets() {
        assert_eq!(message(LogFormat::Human, Time(1), "port \"lan\": link up"), "flowgate: port \"lan\": link up\n");
        let json: serde_json::Value =
            serde_json::from_str(&message(LogFormat::Json, Time(1), "port \"lan\": link up")).expect("JSON");
        let expected = serde_json::json!({
            "time": "0.000000001", "event": "message", "message": "port \"lan\": link up",
        });
        assert_eq!(json, expected);
    }
}
