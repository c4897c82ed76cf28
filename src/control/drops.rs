//! The last drops of a running appliance: why was it dropped, asked afterwards.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::flows::{Refusal, reasons};
use super::pcapng::{Packet, Section, Teller};
use super::{Live, Running};
use crate::worker::Question;
use crate::worker::tap::{COPIED, Dropped, HEADER, Seen, Tap};

/// How long a worker may take for a part of an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Drops kept of pipelines that were replaced.
const FORMER: usize = 1000;

/// Which of the last drops are meant: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Last {
    /// How many, the latest first.
    pub limit: usize,
    /// Reasons: `acl.denied`, or a stage: `acl`.
    pub reason: Vec<String>,
    /// The name of the rule that decided.
    pub rule: Option<String>,
    /// The port it came by, or was to leave by.
    pub port: Option<String>,
}

impl Last {
    fn means(&self, row: &Value) -> bool {
        let stage = row["stage"].as_str().unwrap_or_default();
        let reason = format!("{stage}.{}", row["reason"].as_str().unwrap_or_default());
        (self.reason.is_empty() || self.reason.iter().any(|wanted| *wanted == reason || wanted == stage))
            && self.rule.as_ref().is_none_or(|rule| row["rule"] == **rule)
            && self.port.as_ref().is_none_or(|port| row["port"] == **port || row["out"] == **port)
    }
}

/// A drop with its names.
fn row(teller: &mut Teller, worker: usize, dropped: &Dropped) -> Value {
    let packet = packet(dropped);
    let mut row = teller.json(&packet);
    for key in ["number", "direction", "id", "verdict"] {
        row.as_object_mut().map(|row| row.remove(key));
    }
    row["worker"] = worker.into();
    row["packets"] = dropped.packets.into();
    row["first"] = json!(crate::verdict::Time(dropped.first));
    row["header"] = dropped.bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    row
}

fn packet(dropped: &Dropped) -> Packet<'_> {
    Packet {
        time: dropped.time,
        id: 0,
        facts: &dropped.facts,
        len: dropped.len.into(),
        bytes: dropped.bytes(),
        seen: Seen::Dropped(dropped.reason),
    }
}

/// Rows by time, the latest first.
fn latest_first(rows: &mut [Value]) {
    // Of one length, but for the seconds of a clock that was never set.
    let key = |row: &Value| row["time"].as_str().map(|time| (time.len(), time.to_owned()));
    rows.sort_by_cached_key(|row| std::cmp::Reverse(key(row)));
}

impl Running {
    /// The drops that a pipeline's workers kept before they went over to the next, with those kept before that.
    pub fn former_drops<'a>(&self, taps: impl Iterator<Item = &'a Tap>) -> Vec<Value> {
        let mut teller = Teller::new(self);
        let mut rows = Vec::new();
        for (worker, tap) in taps.enumerate() {
            let mut cursor = 0;
            loop {
                let mut part = Vec::with_capacity(COPIED);
                let done = tap.copy_drops(&mut None, &mut cursor, &mut part);
                rows.extend(part.iter().map(|dropped| row(&mut teller, worker, dropped)));
                if done {
                    break;
                }
            }
        }
        rows.reverse();
        rows.extend(self.former.iter().cloned());
        latest_first(&mut rows);
        rows.truncate(FORMER);
        rows
    }

    /// What all workers keep. None if a worker has gone over to another pipeline.
    fn ask_drops(&self) -> Result<Option<Vec<(usize, Dropped)>>, Refusal> {
        let mut all = Vec::new();
        for worker in 0..self.workers.len() {
            let mut cursor = 0;
            loop {
                let question = Question::Drops { layout: None, cursor, rows: Vec::with_capacity(COPIED) };
                let answer = self.ask(worker, question, PATIENCE).map_err(Refusal::Late)?;
                let Question::Drops { layout, cursor: behind, rows } = answer.question else { break };
                if !layout.is_some_and(|layout| Arc::ptr_eq(&layout, &self.blueprint.layout)) {
                    return Ok(None);
                }
                all.extend(rows.into_iter().map(|dropped| (worker, dropped)));
                if answer.done {
                    break;
                }
                cursor = behind;
            }
        }
        Ok(Some(all))
    }

    fn check(&self, last: &Last) -> Result<(), Refusal> {
        reasons(&last.reason, self).map_err(Refusal::Question)?;
        Ok(())
    }
}

/// What runs, and the drops by worker.
type Found = (Arc<Running>, Vec<(usize, Dropped)>);

/// Asks what runs, again if it has just been replaced.
fn ask(live: &Live) -> Result<Found, Refusal> {
    for _ in 0..100 {
        let running = live.now();
        if let Some(all) = running.ask_drops()? {
            return Ok((running, all));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Refusal::Late("the pipeline is being replaced; ask again".into()))
}

/// The last drops that are meant, the latest first.
pub fn last(live: &Live, last: &Last) -> Result<Value, Refusal> {
    let (running, all) = ask(live)?;
    running.check(last)?;
    let mut teller = Teller::new(&running);
    let mut rows: Vec<Value> = all.iter().map(|(worker, dropped)| row(&mut teller, *worker, dropped)).collect();
    // Of those at the same time, the last ones came last.
    rows.reverse();
    rows.extend(running.former.iter().cloned());
    rows.retain(|row| last.means(row));
    latest_first(&mut rows);
    rows.truncate(last.limit);
    Ok(json!({ "drops": rows, "dropped": running.total().reasons.iter().sum::<u64>() }))
}

/// The same as pcapng, the oldest first; those of the running pipeline only.
pub fn file(live: &Live, last: &Last) -> Result<Vec<u8>, Refusal> {
    let (running, mut all) = ask(live)?;
    running.check(last)?;
    let mut teller = Teller::new(&running);
    all.retain(|(worker, dropped)| last.means(&row(&mut teller, *worker, dropped)));
    all.reverse();
    all.sort_by_key(|(_, dropped)| std::cmp::Reverse(dropped.time));
    all.truncate(last.limit);
    let mut section = Section::new(&running, HEADER, "").map_err(Refusal::Question)?;
    for (_, dropped) in all.iter().rev() {
        let packet = packet(dropped);
        let alike = match dropped.packets {
            1 => String::new(),
            many => format!("; {many} alike"),
        };
        section.packet(&packet, teller.comment(&packet) + &alike).map_err(Refusal::Question)?;
    }
    Ok(section.take())
}
