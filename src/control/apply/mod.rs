//! Another config for a running appliance: what would change (`diff`), going over to it without losing a packet (`apply`), and
//! back (`rollback`, or by itself where nobody confirms).
//!
//! A config is read, checked, compiled and tested beside the one that runs; whatever is wrong with it, nothing has changed then.
//! What only a new process can take over is refused before anything is touched. Then routes and addresses that come are added,
//! each worker goes over to its new pipeline between two turns, and routes and addresses that go are taken away. Flows go on and
//! are judged again (`stage::track`).
//!
//! The file the next start reads is replaced when the config runs; with `confirm`, when it is confirmed. `changes` compares files,
//! `history` keeps versions, `sets` knows what was added to sets meanwhile.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;

use super::slow::Order;
use super::{Live, Running};
use crate::arch::Clock;
use crate::config::Config;
use crate::config::source::{Mistake, Source};
use crate::flow::entry::Entry;
use crate::packet::steer::Key;
use crate::policy;
use crate::route::{Route, Source as RouteSource};
use crate::stage::conntrack::Conntrack;
use crate::stage::pipeline::{Blueprint, compile, compile_after};
use crate::stage::preview;
use crate::stage::visit::Task;
use crate::stage::{Action, Stage};
use crate::stats::Carry;
use crate::worker::{Next, Question};

pub mod api;
pub mod changes;
pub mod history;
pub mod sets;

use changes::{Change, changes};
use history::{History, Version};
use sets::{Changed, Sets};

/// The file in the folder of versions that says what was done to sets.
const SETS: &str = "sets.json";
/// How long a worker may take to go over.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing was changed.
#[derive(Debug)]
pub enum Refused {
    /// Mistakes in the file, tests that do not hold among them.
    Mistakes(Vec<Mistake>),
    /// What only a restart can change.
    Restart(Vec<Change>),
    /// There is nothing to do what was asked with.
    Nothing(String),
    /// The machine, or a worker, does not play along.
    Environment(String),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = |f: &mut std::fmt::Formatter<'_>, lines: Vec<String>| f.write_str(&lines.join("\n"));
        match self {
            Refused::Mistakes(list) => lines(f, list.iter().map(ToString::to_string).collect()),
            Refused::Restart(list) => {
                let paths: Vec<&str> = list.iter().map(|change| change.path.as_str()).collect();
                write!(f, "only a restart changes {}; nothing was changed", paths.join(", "))
            }
            Refused::Nothing(message) | Refused::Environment(message) => f.write_str(message),
        }
    }
}

/// What another config would do.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Diff {
    /// The differences of the files.
    pub changes: Vec<Change>,
    /// True if it can be applied without a restart.
    pub live: bool,
    /// Flows there were when they were looked at, and those of them that would end; nothing where flows are not tracked.
    pub flows: Option<Ends>,
}

/// Flows that a config would end.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Ends {
    /// Flows that there were.
    pub of: u64,
    /// Those that would end.
    pub end: u64,
    /// How long ago the first of them was looked at, in seconds.
    pub age: f64,
    /// The first of those that would end, with the reason.
    pub first: Vec<Ending>,
}

/// A flow that would end.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Ending {
    /// The packet that began it, in words.
    pub packet: String,
    /// The rule that admitted it.
    pub admitted_by: Option<String>,
    /// Why it would end: `stage.reason`, or that it would be translated otherwise.
    pub reason: String,
    /// The rule that would deny it.
    pub rule: Option<String>,
}

/// What was applied.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Applied {
    /// False if that config ran already.
    pub changed: bool,
    /// The version that runs now.
    pub version: u64,
    /// The differences.
    pub changes: Vec<Change>,
    /// Microseconds from the first worker's going over to the last's.
    pub swap_us: u64,
    /// Seconds within which it is to be confirmed.
    pub confirm_within: Option<u64>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A config that goes back by itself.
struct Pending {
    until: Instant,
    former: Source,
}

struct State {
    /// What runs, sets as they are in the file; its path is the one that the next start reads.
    source: Source,
    config: Config,
    history: History,
    sets: Sets,
    /// Where `sets` outlive the process.
    sets_file: Option<PathBuf>,
    pending: Option<Pending>,
}

/// Changes what runs.
pub struct Applier {
    live: Live,
    key: Key,
    /// By port with a device.
    macs: Vec<Option<[u8; 6]>>,
    clock: Arc<Clock>,
    /// To the thread that has the kernel's interfaces.
    orders: Option<mpsc::Sender<Order>>,
    state: Mutex<State>,
}

/// What an applier is made of.
pub struct Parts {
    /// What runs.
    pub live: Live,
    /// Hashes tuples in all workers.
    pub key: Key,
    /// By port with a device.
    pub macs: Vec<Option<[u8; 6]>>,
    /// The workers' clock.
    pub clock: Arc<Clock>,
    /// To the thread that has the kernel's interfaces.
    pub orders: Option<mpsc::Sender<Order>>,
}

impl Applier {
    /// For what has just been started from `config`, whose file is read again at the next start, with `sets` put in. Notes say what
    /// is wrong with the folder for versions.
    pub fn new(parts: Parts, config: &Config, sets: Sets) -> (Applier, Vec<String>) {
        let Parts { live, key, macs, clock, orders } = parts;
        let folder = config.control.history.as_deref().map(Path::new);
        let (mut history, note) = folder.map_or_else(|| (History::in_memory(), None), History::open);
        let mut notes: Vec<String> = note.into_iter().collect();
        notes.extend(history.push(config.source.text(), config.source.path()).1);
        let state = State {
            source: config.source.clone(),
            config: config.clone(),
            history,
            sets,
            sets_file: folder.map(|folder| folder.join(SETS)),
            pending: None,
        };
        (Applier { live, key, macs, clock, orders, state: Mutex::new(state) }, notes)
    }

    /// What an earlier process did to sets.
    pub fn saved_sets(config: &Config) -> Result<Sets, String> {
        config.control.history.as_ref().map_or(Ok(Sets::default()), |folder| Sets::load(&Path::new(folder).join(SETS)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text that runs.
    pub fn text(&self) -> String {
        self.lock().source.text().to_owned()
    }

    /// The path of the file that the next start reads.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.lock().source.path())
    }

    /// The versions there are, oldest first, and the seconds left to confirm the last.
    pub fn history(&self) -> (Vec<Version>, Option<u64>) {
        let state = self.lock();
        let left = |pending: &Pending| pending.until.saturating_duration_since(Instant::now()).as_secs();
        (state.history.all().to_vec(), state.pending.as_ref().map(left))
    }

    /// Reads and checks a config; the differences to what runs come with it.
    fn read(&self, state: &State, source: &Source) -> Result<(Config, Vec<Change>), Refused> {
        let mut config = Config::parse(source).map_err(Refused::Mistakes)?;
        let mut list = changes(state.source.text(), source.text());
        if let Some(change) = structural(&state.config, &config) {
            list.push(change);
        }
        state.sets.put(&mut config);
        Ok((config, list))
    }

    /// Compiles and tests it, as a start would.
    fn check(&self, config: &Config, workers: usize) -> Result<(), Refused> {
        let alone = compile(config, workers, &self.macs).map_err(Refused::Mistakes)?;
        let findings = policy::findings(config, &alone);
        if findings.is_empty() { Ok(()) } else { Err(Refused::Mistakes(findings)) }
    }

    /// What a config would change; changes nothing. `list` says how many of the flows that would end are told.
    pub fn diff(&self, source: &Source, list: usize) -> Result<Diff, Refused> {
        let (config, changes, running) = {
            let state = self.lock();
            let (config, changes) = self.read(&state, source)?;
            (config, changes, self.live.now())
        };
        self.check(&config, running.workers.len())?;
        let live = !changes.iter().any(|change| change.restart);
        let flows = match running.blueprint.conntrack.is_some() && live {
            true => {
                let next = compile_after(Some(&running.blueprint), &config, running.workers.len(), &self.macs);
                Some(ends(&running, &next.map_err(Refused::Mistakes)?, list)?)
            }
            false => None,
        };
        Ok(Diff { changes, live, flows })
    }

    /// Goes over to a config. With `confirm`, goes back after that time unless [`Applier::confirm`] is called.
    pub fn apply(&self, source: &Source, origin: &str, confirm: Option<Duration>) -> Result<Applied, Refused> {
        let mut state = self.lock();
        let former = match &state.pending {
            // What is not confirmed is nothing to go back to.
            Some(pending) => pending.former.clone(),
            None => state.source.clone(),
        };
        let applied = self.go_over(&mut state, source, origin)?;
        if !applied.changed && confirm.is_none() && state.pending.is_none() {
            return Ok(applied);
        }
        let mut applied = applied;
        match confirm {
            Some(within) => {
                state.pending = Some(Pending { until: Instant::now() + within, former: former.clone() });
                applied.confirm_within = Some(within.as_secs());
                // An edited file is the old one again until it is confirmed: what starts next is what was good.
                applied.notes.extend(keep(&state.source, former.text()));
            }
            None => {
                state.pending = None;
                applied.notes.extend(keep(&state.source, source.text()));
            }
        }
        Ok(applied)
    }

    fn go_over(&self, state: &mut State, source: &Source, origin: &str) -> Result<Applied, Refused> {
        let (config, changes) = self.read(state, source)?;
        let restart: Vec<Change> = changes.iter().filter(|change| change.restart).cloned().collect();
        if !restart.is_empty() {
            return Err(Refused::Restart(restart));
        }
        let changed = state.source.text() != source.text() || !files_of(&state.config).eq(&files_of(&config));
        if !changed {
            let version = state.history.all().last().map_or(0, |last| last.number);
            let notes = Vec::new();
            return Ok(Applied { changed, version, changes, swap_us: 0, confirm_within: None, notes });
        }
        self.check(&config, self.live.now().workers.len())?;
        let swap_us = self.swap(&state.config, &config)?;
        (state.source, state.config) = (source.clone(), config);
        let (version, note) = state.history.push(source.text(), origin);
        Ok(Applied { changed, version, changes, swap_us, confirm_within: None, notes: note.into_iter().collect() })
    }

    /// Lets the workers go over, and routing with them.
    fn swap(&self, before: &Config, after: &Config) -> Result<u64, Refused> {
        let former = self.live.now();
        let workers = former.workers.len();
        let blueprint =
            compile_after(Some(&former.blueprint), after, workers, &self.macs).map_err(Refused::Mistakes)?;
        let carry = Arc::new(Carry::new(&former.blueprint.layout, &blueprint.layout));
        let mut published = Vec::new();
        let mut nexts = Vec::new();
        for worker in 0..workers {
            let words = Arc::new(blueprint.layout.published());
            let next = Next::new(&blueprint, worker, self.key, carry.clone(), words.clone());
            let memory = |error| Refused::Environment(format!("no memory for the next pipeline: {error}"));
            nexts.push(Box::new(next.map_err(memory)?));
            published.push(words);
        }
        self.route(&former.blueprint, &blueprint, before, after, true);
        let began = Instant::now();
        let mut left = Vec::new();
        for (worker, next) in nexts.into_iter().enumerate() {
            let answer = former.ask(worker, Question::Adopt(next), PATIENCE);
            left.push(answer.map_err(|late| {
                Refused::Environment(format!("{late}, and others may have gone over already: restart flowgate"))
            })?);
        }
        let took = began.elapsed().as_micros() as u64;
        let nexts = left.iter().filter_map(|answer| match &answer.question {
            Question::Adopt(next) => Some(next.tap()),
            _ => None,
        });
        let dropped = former.former_drops(nexts);
        let running = Running::after(&former, after, blueprint, published);
        self.live.replace(Arc::new(Running { former: dropped, ..running }));
        self.route(&former.blueprint, &self.live.now().blueprint, before, after, false);
        // What the workers had is freed here, where nobody waits for a packet.
        drop(left);
        Ok(took)
    }

    /// What routing is told: before the workers go over, of what comes; behind, of what goes.
    fn route(&self, old: &Blueprint, new: &Blueprint, before: &Config, after: &Config, comes: bool) {
        let Some(router) = &new.router else { return };
        let (here, there) = if comes { (after, before) } else { (before, after) };
        let addresses = |config: &Config| -> Vec<(u8, IpNet)> {
            config.names.addresses.iter().map(|address| (address.port, address.net)).collect()
        };
        let had = addresses(there);
        let moved: Vec<(u8, IpNet)> = addresses(here).into_iter().filter(|address| !had.contains(address)).collect();
        let (from, to) = if comes { (new, old) } else { (old, new) };
        let same = |one: &Route, other: &Route| one.to == other.to && one.metric == other.metric;
        let statics = from.statics.iter().filter(|route| match comes {
            true => !to.statics.contains(route),
            // One that has changed was added in its place.
            false => !to.statics.iter().any(|other| same(route, other)),
        });
        let now = self.clock.now();
        {
            let mut router = router.lock().unwrap_or_else(PoisonError::into_inner);
            moved.iter().for_each(|(port, net)| router.address(*port, *net, comes, now));
            statics.for_each(|route| router.route(RouteSource::Static, route, comes));
            let neighbors = |config: &Config| -> Vec<(u8, IpAddr, [u8; 6])> {
                let given = config.neighbor.r#static.iter();
                given
                    .filter_map(|given| Some((config.names.port(&given.port)?, given.address.value, given.mac.value.0)))
                    .collect()
            };
            let others = neighbors(there);
            for (port, ip, mac) in neighbors(here).into_iter().filter(|given| !others.contains(given)) {
                match comes {
                    true => router.add_static(port, ip, mac, now),
                    // One with another MAC address now was given anew.
                    false if others.iter().any(|other| (other.0, other.1) == (port, ip)) => {}
                    false => router.remove_static(port, ip, now),
                }
            }
            if comes {
                let ranges = new.nat.as_ref().map(crate::nat::Nat::addresses).unwrap_or_default();
                let [pools, others] = ranges;
                router.stand_for(pools, others);
                // What flows were told of routes is asked again with the rules.
                router.routing().changed();
            }
        }
        for (port, net) in moved {
            // A thread that is gone has taken the process with it.
            let _ = self.orders.as_ref().map(|orders| orders.send(Order::Address { port, net, added: comes }));
        }
    }

    /// Keeps what runs, and makes it what the next start reads.
    pub fn confirm(&self) -> Result<(u64, Vec<String>), Refused> {
        let mut state = self.lock();
        if state.pending.take().is_none() {
            return Err(Refused::Nothing("there is nothing to confirm".into()));
        }
        let notes = keep(&state.source, state.source.text()).into_iter().collect();
        Ok((state.history.all().last().map_or(0, |last| last.number), notes))
    }

    /// Goes back to an earlier version: the one before what runs, or the one with a number.
    pub fn rollback(&self, number: Option<u64>) -> Result<Applied, Refused> {
        let (source, origin) = {
            let state = self.lock();
            let found = match (number, &state.pending) {
                (Some(number), _) => state.history.get(number).map(|version| version.text.clone()),
                (None, Some(pending)) => Some(pending.former.text().to_owned()),
                (None, None) => {
                    let earlier = state.history.all().iter().rev().skip(1);
                    earlier.map(|version| &version.text).find(|text| *text != state.source.text()).cloned()
                }
            };
            let lacking = || match number {
                Some(number) => format!("there is no version {number}; `flowgate history` lists them"),
                None => "there is no earlier version".into(),
            };
            let text = found.ok_or_else(|| Refused::Nothing(lacking()))?;
            let origin = number.map_or_else(|| "rollback".into(), |number| format!("rollback to {number}"));
            (Source::new(state.source.path(), &text), origin)
        };
        self.apply(&source, &origin, None)
    }

    /// Applies the file that the next start reads, as SIGHUP asks for. Returns what to say.
    pub fn reread(&self) -> Vec<String> {
        let path = self.path();
        let shown = path.display().to_string();
        let source = match Source::read(&shown) {
            Ok(source) => source,
            Err(error) => return vec![format!("{shown}: cannot be read: {error}; what runs keeps running")],
        };
        match self.apply(&source, &shown, None) {
            Ok(applied) if applied.changed => {
                let said =
                    format!("{shown}: applied as version {}, {} change(s)", applied.version, applied.changes.len());
                std::iter::once(said).chain(applied.notes).collect()
            }
            Ok(_) => vec![format!("{shown}: runs already")],
            Err(refused) => vec![format!("{refused}"), format!("{shown}: not applied; what runs keeps running")],
        }
    }

    /// What is due: going back where nobody has confirmed, members of sets whose time has passed. Returns what to say.
    pub fn tick(&self) -> Vec<String> {
        let mut said = Vec::new();
        // Whoever is at work changes things anyway; the next tick is soon.
        let Ok(mut state) = self.state.try_lock() else { return said };
        if state.pending.as_ref().is_some_and(|pending| pending.until <= Instant::now())
            && let Some(pending) = state.pending.take()
        {
            match self.go_over(&mut state, &pending.former, "not confirmed") {
                Ok(applied) => {
                    said.push("nobody confirmed the config: back to the one before".to_owned());
                    said.extend(applied.notes);
                    said.extend(keep(&state.source, pending.former.text()));
                }
                Err(refused) => said.push(format!("nobody confirmed the config, and going back failed: {refused}")),
            }
        }
        let mut sets = state.sets.clone();
        if sets.expire(sets::now()) {
            match self.use_sets(&mut state, sets) {
                Ok(()) => said.push("members of sets have expired".to_owned()),
                Err(refused) => said.push(format!("members of sets have expired, and stay: {refused}")),
            }
        }
        said
    }

    /// What was done to sets, by name.
    pub fn sets(&self) -> Vec<(String, Changed)> {
        self.lock().sets.0.iter().map(|(name, changed)| (name.clone(), changed.clone())).collect()
    }

    /// Changes what sets hold, without another config; true if that changed anything. The closure gets a copy.
    pub fn change_sets<T>(
        &self,
        set: &str,
        change: impl FnOnce(&mut Sets) -> Result<T, String>,
    ) -> Result<(T, bool), Refused> {
        let mut state = self.lock();
        if state.config.names.set(set).is_none() {
            let known = state.config.names.sets.iter().map(|set| set.name.as_str());
            let near = crate::config::source::near_miss(set, known);
            let help = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
            return Err(Refused::Nothing(format!("there is no set {set:?}{help}")));
        }
        let mut sets = state.sets.clone();
        let value = change(&mut sets).map_err(Refused::Nothing)?;
        let changed = sets != state.sets;
        if changed {
            self.use_sets(&mut state, sets)?;
        }
        Ok((value, changed))
    }

    fn use_sets(&self, state: &mut State, sets: Sets) -> Result<(), Refused> {
        let mut config = Config::parse(&state.source).map_err(Refused::Mistakes)?;
        sets.put(&mut config);
        self.swap(&state.config, &config)?;
        state.config = config;
        state.sets = sets;
        if let Some(file) = &state.sets_file {
            let text = serde_json::to_string_pretty(&state.sets).unwrap_or_default();
            history::put(file, &text).map_err(|error| {
                Refused::Environment(format!(
                    "{}: cannot be written: {error}; the change lives until the next start",
                    file.display()
                ))
            })?;
        }
        Ok(())
    }
}

/// The thread that does what is due, and reads the file again when told to.
pub struct Keeper {
    tell: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// How often it looks.
    const TICK: Duration = Duration::from_millis(200);

    /// Starts it; it ends with the result. `log` gets what the operator should know.
    pub fn start(applier: Arc<Applier>, log: impl Fn(&str) + Send + 'static) -> std::io::Result<Keeper> {
        let (tell, told) = mpsc::channel();
        let run = move || {
            loop {
                match told.recv_timeout(Keeper::TICK) {
                    Ok(()) => applier.reread().iter().for_each(|line| log(line)),
                    Err(mpsc::RecvTimeoutError::Timeout) => applier.tick().iter().for_each(|line| log(line)),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("flowgate-apply".into()).spawn(run)?;
        Ok(Keeper { tell: Some(tell), thread: Some(thread) })
    }

    /// Has the file read again.
    pub fn reread(&self) {
        // A thread that is gone has said so.
        let _ = self.tell.as_ref().map(|tell| tell.send(()));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tell = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes the file that the next start reads, if it says something else; what went wrong is for the operator.
fn keep(running: &Source, text: &str) -> Option<String> {
    let path = Path::new(running.path());
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return None;
    }
    let wrong = history::put(path, text).err()?;
    Some(format!("{}: cannot be written: {wrong}; the next start reads what is there", path.display()))
}

/// What the names of a config hold besides its text: lists that are files of their own.
fn files_of(config: &Config) -> impl PartialEq {
    config.names.sets.iter().map(|set| (set.name.clone(), set.v4.clone(), set.v6.clone())).collect::<Vec<_>>()
}

/// What no comparison of keys shows: stages whose tables are made at start.
fn structural(before: &Config, after: &Config) -> Option<Change> {
    let has = |config: &Config, kinds: &[&str]| config.pipeline.iter().any(|stage| kinds.contains(&stage.kind.name));
    let differs = |kinds: &[&str]| has(before, kinds) != has(after, kinds);
    let tracks = has(before, &[Conntrack::NAME]);
    let translates = tracks && !has(before, &["snat", "dnat"]) && has(after, &["snat", "dnat"]);
    (differs(&[Conntrack::NAME]) || differs(&["route"]) || translates).then(|| {
        let list =
            |config: &Config| config.pipeline.iter().map(|stage| stage.instance.clone()).collect::<Vec<_>>().join(", ");
        Change { path: "pipeline.stages".into(), before: Some(list(before)), after: Some(list(after)), restart: true }
    })
}

/// Flows that would end under another pipeline.
fn ends(running: &Running, next: &Blueprint, most: usize) -> Result<Ends, Refused> {
    let (began, mut found) = (Instant::now(), Ends::default());
    let namer = crate::verdict::Namer::new(&running.blueprint, &running.names);
    let visited = running.visit(&super::flows::Selection::default(), Task::copy, |_, visit, _| {
        let Task::Copy { v4, v6 } = &mut visit.task else { return false };
        look(&mut found, v4, running, next, &namer, most);
        look(&mut found, v6, running, next, &namer, most);
        v4.clear();
        v6.clear();
        true
    });
    visited.map_err(|refusal| Refused::Environment(format!("{refusal:?}")))?;
    found.age = began.elapsed().as_secs_f64();
    Ok(found)
}

fn look<E: Entry>(
    found: &mut Ends,
    entries: &[E],
    running: &Running,
    next: &Blueprint,
    namer: &crate::verdict::Namer,
    most: usize,
) {
    found.of += entries.len() as u64;
    for (at, action) in preview::ending(next, entries) {
        found.end += 1;
        if found.first.len() >= most {
            continue;
        }
        let entry = &entries[at];
        let rules = |blueprint: &Blueprint, slot: u16| {
            blueprint.rules.all().get(usize::from(slot)).map(|rule| format!("{}/{}", rule.stage, rule.name))
        };
        let facts = crate::flow::entry::facts(entry);
        let port = namer.port(facts.port).unwrap_or_default();
        let Action { reason, rule, .. } = action;
        found.first.push(Ending {
            packet: format!("{} in {port}", crate::verdict::words(&facts)),
            admitted_by: rules(&running.blueprint, entry.body().rule),
            reason: match reason {
                crate::stats::Reason::NONE => "would be translated otherwise".into(),
                reason => next.layout.reason_name(reason),
            },
            rule: rules(next, rule),
        });
    }
}

/// The addresses of a list in words: addresses, prefixes, ranges.
pub fn addresses(words: &[String]) -> Result<Vec<IpNet>, String> {
    let mut nets = Vec::new();
    for word in words {
        let word = word.trim();
        let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
        nets.push(net.map_err(|_| format!("{word:?}: expected {}", crate::config::names::ADDRESS))?);
    }
    Ok(nets)
}
