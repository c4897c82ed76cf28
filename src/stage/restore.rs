//! Saved flows put into new tables, before the first packet.
//!
//! Owns whether a file's flows fit the pipeline. A file is read twice: to the end, to see that it is whole and that every rule
//! and port its flows refer to is there, so that a file that does not fit changes nothing; then into the tables.
//!
//! Every flow is judged again, as after a change of rules: what the rules forbid now is left out, and how packets leave is
//! what the pipeline says now. Kept are the protocol's state (windows included), counters, age, and what is left of its time.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::Path;

use crate::config::names::{Names, SELF};
use crate::flow::ORIGINAL;
use crate::flow::entry::{self, Entry, Key as FlowKey, Scope, mark};
use crate::flow::file::{self, Chunk, Reader, Unfit};
use crate::flow::table::Table;
use crate::flow::timeout::{TICK, has_passed, ticks};
use crate::nat::Nat;
use crate::packet::steer::{self, Key, owner};
use crate::packet::{BATCH, Meta, NO_PORT, NO_RULE, SELF_PORT, bits};

use super::conntrack::{Around, Settings, Tables};
use super::pipeline::Blueprint;
use super::track::{judge_again, permits, put};
use super::{Action, FlowPlan, Plan};

/// What a file says of the process whose flows it has; `key` is that by which its packets are steered.
pub fn saved_names(config: &str, names: &Names, blueprint: &Blueprint, key: Key) -> file::Names {
    file::Names {
        config: config.to_owned(),
        rules: rules(blueprint).collect(),
        ports: names.ports.iter().map(|port| port.name.clone()).collect(),
        steering: Some(file::Steering { workers: blueprint.workers, key: key.0 }),
    }
}

fn rules(blueprint: &Blueprint) -> impl Iterator<Item = String> {
    blueprint.rules.all().iter().map(|rule| format!("{}/{}", rule.stage, rule.name))
}

/// What became of a file's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Flows that go on.
    pub flows: u64,
    /// Their time has passed since.
    pub expired: u64,
    /// The rules do not allow them any more, or would translate them otherwise.
    pub denied: u64,
    /// Translated flows whose two ways are different workers' now.
    pub strayed: u64,
    /// Half-open flows beyond the budget.
    pub crowded: u64,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} flows go on", self.flows)?;
        for (count, why) in [
            (self.expired, "have expired since"),
            (self.denied, "are not allowed any more"),
            (self.strayed, "are translated and would be two workers'"),
            (self.crowded, "half-open ones are beyond the budget"),
        ] {
            if count > 0 {
                write!(f, ", {count} {why}")?;
            }
        }
        Ok(())
    }
}

/// A file whose flows fit.
pub struct Saved<'a> {
    path: &'a Path,
    blueprint: &'a Blueprint,
    settings: &'a Settings,
    around: &'a Around,
    /// By the file's index of a port: ours.
    ports: Vec<u8>,
    key: Option<Key>,
}

fn refuse(message: String) -> Unfit {
    Unfit::Content(format!("{message}, or start without --flows"))
}

/// What entries of a file may refer to.
struct Fit<'a> {
    theirs: &'a file::Names,
    missing_rules: Vec<bool>,
    /// By the file's index of a port: ours, if there is one.
    ports: Vec<Option<u8>>,
    /// Translation whose ports were other workers' shares.
    dealt_otherwise: Option<&'a Nat>,
    workers: usize,
}

impl Fit<'_> {
    fn check<E: Entry>(&self, entry: &E) -> Result<(), Unfit> {
        let body = entry.body();
        let unknown = |port: u8| port != NO_PORT && self.ports[usize::from(port)].is_none();
        if let Some(port) = body.ingress.into_iter().chain(body.out).find(|at| unknown(*at)) {
            let name = self.theirs.ports.get(usize::from(port)).map_or(SELF, String::as_str);
            return Err(refuse(format!("it has flows of port {name:?}, which the config does not have: add it")));
        }
        if self.missing_rules[usize::from(body.rule)] {
            let name = &self.theirs.rules[usize::from(body.rule)];
            return Err(refuse(format!("it has flows that rule {name:?} admitted, which is not there: add it")));
        }
        let shared = |nat: &Nat| nat.steering.translates(&entry.leaves(ORIGINAL).src, E::Key::ADDRESS == 16);
        if body.has(mark::TRANSLATED) && self.dealt_otherwise.is_some_and(shared) {
            let (theirs, ours) = (self.theirs.steering.map_or(0, |steering| steering.workers), self.workers);
            return Err(refuse(format!(
                "it has flows with translated sources, whose ports were shared by {theirs} worker(s), and now there are {ours}: \
                 let [worker] have as many cores"
            )));
        }
        Ok(())
    }
}

impl<'a> Saved<'a> {
    /// Reads a file to its end and compares it with the pipeline.
    pub fn check(path: &'a Path, blueprint: &'a Blueprint, names: &Names) -> Result<Saved<'a>, Unfit> {
        let Some((settings, around)) = &blueprint.conntrack else {
            return Err(refuse(
                "the pipeline does not track connections: put \"conntrack\" into [pipeline] stages".into(),
            ));
        };
        let mut reader = open(path)?;
        let theirs = reader.names().clone();
        let ours: HashSet<String> = rules(blueprint).collect();
        let mut missing_rules: Vec<bool> = theirs.rules.iter().map(|name| !ours.contains(name)).collect();
        missing_rules.resize(usize::from(NO_RULE) + 1, false);
        let mut ports: Vec<Option<u8>> = theirs.ports.iter().map(|port| names.port(port)).collect();
        ports.resize(usize::from(NO_PORT), None);
        ports[usize::from(SELF_PORT)] = names.routes.then_some(SELF_PORT);
        let workers = blueprint.workers;
        let otherwise = theirs.steering.is_some_and(|steering| steering.workers != workers);
        let dealt_otherwise = blueprint.nat.as_ref().filter(|_| otherwise);
        let fit = Fit { theirs: &theirs, missing_rules, ports, dealt_otherwise, workers };
        while let Some(chunk) = reader.chunk()? {
            match chunk {
                Chunk::V4(entries) => entries.iter().try_for_each(|entry| fit.check(entry))?,
                Chunk::V6(entries) => entries.iter().try_for_each(|entry| fit.check(entry))?,
            }
        }
        let ports = fit.ports.into_iter().map(|port| port.unwrap_or(NO_PORT)).collect();
        let key = theirs.steering.map(|steering| Key(steering.key));
        Ok(Saved { path, blueprint, settings, around, ports, key })
    }

    /// The key by which packets are to be steered, or translated flows would be no worker's: that of the process that has saved
    /// them, if it is known.
    pub fn key(&self) -> Option<Key> {
        self.key
    }

    /// Puts its flows into the workers' tables, which are those that `key` steers to at `now` (Unix nanoseconds).
    pub fn load(&self, tables: &mut [Tables], key: Key, now: u64) -> Result<Restored, Unfit> {
        tables.iter_mut().for_each(|tables| tables.hash_by(key));
        let mut reader = open(self.path)?;
        let mut restored = Restored::default();
        // Times are compared as numbers that wrap.
        let forgotten = now.saturating_sub(reader.saved()) >> TICK > 1 << 30;
        while let Some(chunk) = reader.chunk()? {
            match chunk {
                Chunk::V4(entries) if forgotten => restored.expired += entries.len() as u64,
                Chunk::V6(entries) if forgotten => restored.expired += entries.len() as u64,
                Chunk::V4(entries) => self.put(entries, tables, |tables| &mut tables.v4, key, now, &mut restored)?,
                Chunk::V6(entries) => self.put(entries, tables, |tables| &mut tables.v6, key, now, &mut restored)?,
            }
        }
        Ok(restored)
    }
}

impl Saved<'_> {
    fn put<E: Entry>(
        &self,
        entries: &[E],
        tables: &mut [Tables],
        family: impl Fn(&mut Tables) -> &mut Table<E>,
        key: Key,
        now: u64,
        restored: &mut Restored,
    ) -> Result<(), Unfit> {
        let now = ticks(now);
        let mut facts = [const { Meta::UNKNOWN }; BATCH];
        let mut actions = [[Action::OPEN; BATCH]; 2];
        for batch in entries.chunks(BATCH) {
            let mut moved: Vec<E> = Vec::with_capacity(BATCH);
            for entry in batch {
                if has_passed(entry.body().expires, now) || entry.body().ingress[ORIGINAL] == NO_PORT {
                    restored.expired += 1;
                    continue;
                }
                let entry = self.moved(entry, key, now);
                let at = moved.len();
                (facts[at], actions[0][at]) = (entry::facts(&entry), Action::OPEN);
                if let Some(nat) = &self.blueprint.nat {
                    nat.call(&mut facts[at], &mut actions[0][at], &entry.leaves(ORIGINAL));
                }
                moved.push(entry);
            }
            let todo = u64::MAX.checked_shr((BATCH - moved.len()) as u32).unwrap_or(0);
            let plans = self.blueprint.stages.iter().filter_map(|stage| match &stage.plan {
                Plan::Flow(plan) => Some((&**plan as &dyn FlowPlan, stage.kind.egress)),
                _ => None,
            });
            let denied = judge_again(plans, todo, &mut facts, &mut actions);
            restored.denied += u64::from(denied.count_ones());
            for i in bits(todo & !denied) {
                let subject = entry::reversed(&facts[i], actions[0][i].out);
                if !permits(self.blueprint.nat.as_ref(), &moved[i], &subject, &actions[0][i]) {
                    restored.denied += 1;
                    continue;
                }
                put(moved[i].body_mut(), [&actions[0][i], &actions[1][i]], self.settings, self.around);
                let Some(worker) = self.owner(&moved[i], key, tables.len()) else {
                    restored.strayed += 1;
                    continue;
                };
                insert(family(&mut tables[worker]), &moved[i], worker, restored)?;
            }
        }
        Ok(())
    }

    /// The worker to which packets of both ways come.
    fn owner<E: Entry>(&self, entry: &E, key: Key, workers: usize) -> Option<usize> {
        let hash = entry.body().hash;
        let Some(nat) = &self.blueprint.nat else { return Some(owner(hash, workers)) };
        let (there, back) = (entry::facts(entry), entry::reply_facts(entry));
        let worker = nat.steering.owner(&there, hash, key, workers);
        (worker == nat.steering.owner(&back, steer::hash(&back, key), key, workers)).then_some(worker)
    }

    /// An entry as this process would have it: its port's number and scope, hash, and no more time than flows have.
    fn moved<E: Entry>(&self, entry: &E, key: Key, now: u32) -> E {
        let mut body = *entry.body();
        let here = |port: u8| self.ports.get(usize::from(port)).copied().unwrap_or(NO_PORT);
        (body.ingress, body.out) = (body.ingress.map(here), body.out.map(here));
        body.flags &= !mark::LIMITED;
        let life = self.settings.timeouts[body.class() as usize];
        body.expires = now.wrapping_add(body.expires.wrapping_sub(now).min(life));
        let here = self.around.scopes[usize::from(body.ingress[ORIGINAL])];
        let there = entry.key().scope();
        let domain = match (here.wire, there.wire) {
            (0, _) => here.domain,
            (_, 0) => 0,
            _ => there.domain,
        };
        let tuple = entry.key().within(Scope { domain, wire: here.wire });
        body.hash = steer::hash(&tuple.facts(), key);
        entry.with(tuple, body)
    }
}

/// Files a flow; of two that have a tuple in common, the later was copied when the earlier had ended.
fn insert<E: Entry>(table: &mut Table<E>, entry: &E, worker: usize, restored: &mut Restored) -> Result<(), Unfit> {
    while let Some(index) = table.rival(entry) {
        table.remove(index);
        restored.flows -= 1;
    }
    let mut evicted = 0;
    let filed = table.insert_entry(*entry, |_| evicted += 1);
    filed.map_err(|_| {
        let entries = table.occupancy().entries;
        let family = if E::Key::ADDRESS == 4 { "IPv4" } else { "IPv6" };
        Unfit::Content(format!(
            "it has more flows than fit: worker {worker} has room for {entries} {family} flows; raise memory.flows, or start \
             without --flows"
        ))
    })?;
    restored.flows += 1;
    restored.flows -= evicted;
    restored.crowded += evicted;
    Ok(())
}

fn open(path: &Path) -> Result<Reader<File>, Unfit> {
    Reader::new(File::open(path)?)
}

#[cfg(test)]
mod tests;
