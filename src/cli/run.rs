//! `flowgate run`: the appliance in the foreground, until a signal.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::report::Refusal;
use super::table::{self, grouped};
use super::{ENVIRONMENT, FINDINGS};
use crate::appliance::{Appliance, Failure, Stopped};
use crate::config::Config;
use crate::config::machine::Log;
use crate::config::source::Source;
use crate::control::api::account;
use crate::control::apply::sets::Sets;
use crate::control::apply::{Applier, Keeper};
use crate::control::listen::Doors;
use crate::control::log::{Scribe, message};
use crate::control::serve::{End, Socket, serve};
use crate::stage::pipeline::port_counter;
use crate::stats::Sheet;
use crate::verdict::Time;

/// Start the appliance in the foreground; SIGINT and SIGTERM stop it.
#[derive(Args, Debug)]
pub struct Run {
    /// The configuration file.
    config: String,
    /// Go on with the flows of a file that "flowgate flows save" wrote. It is refused whole if it does not fit the config.
    #[arg(long, value_name = "FILE")]
    flows: Option<PathBuf>,
    /// Print the totals at the end as JSON.
    #[arg(long)]
    json: bool,
}

impl Run {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        match self.start() {
            Ok(code) => code,
            Err(refusal) => refusal,
        }
    }

    fn start(&self) -> Result<ExitCode, ExitCode> {
        let environment = |message: String| {
            eprintln!("flowgate run: {message}");
            ExitCode::from(ENVIRONMENT)
        };
        let source = Source::read(&self.config)
            .map_err(|error| environment(format!("cannot read {:?}: {error}", self.config)))?;
        let refuse = |mistakes| Refusal::Mistakes(source.clone(), mistakes).print("run");
        let config = Config::parse(&source).map_err(refuse)?;
        let (level, format) = (config.control.log, config.control.log_format);
        let log = move |text: &str| {
            if matches!(level, Log::Info | Log::Debug) {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
                print(&message(format, Time(now), text));
            }
        };
        // Before anything is touched: a socket that is taken means that this appliance runs already.
        let group = config.control.socket_group.as_deref();
        let socket = Socket::bind(Path::new(&config.control.socket.0), group).map_err(environment)?;
        let doors = Doors::open(&config.api).map_err(environment)?;
        let (sets, wrong) = match Applier::saved_sets(&config) {
            Ok(sets) => (sets, None),
            Err(wrong) => (Sets::default(), Some(wrong)),
        };
        let mut config = config;
        let gone = sets.put(&mut config).into_iter().map(|set| format!("set {set:?} is not in the file any more"));
        wrong.into_iter().chain(gone).for_each(|note| log(&note));
        let mut appliance = Appliance::start(&config, self.flows.as_deref()).map_err(|failure| match failure {
            Failure::Findings(mistakes) => refuse(mistakes),
            Failure::Flows(message) => {
                eprintln!("flowgate run: {message}");
                ExitCode::from(FINDINGS)
            }
            Failure::Environment(message) => environment(message),
        })?;
        for note in &appliance.notes {
            log(note);
        }
        let live = appliance.live();
        let running = live.now();
        let cores: Vec<String> = running.workers.iter().map(|worker| worker.core.to_string()).collect();
        let ready = || {
            let (ports, cores) = (running.ports.len(), cores.join(", "));
            log(&format!(
                "{}: {ports} ports, workers on cores {cores}, answering on {}",
                self.config, config.control.socket.0
            ));
            doors.addresses().for_each(|address| log(&format!("api: answering on {address}")));
        };
        let parts = appliance.take_parts().expect("taken once");
        let (applier, notes) = Applier::new(parts, &config, sets);
        notes.iter().for_each(|note| log(note));
        let applier = Arc::new(applier);
        live.changed_by(&applier);
        let keeper = Keeper::start(applier.clone(), log)
            .map_err(|error| environment(format!("cannot start the thread that applies configs: {error}")))?;
        // What the rings hold speaks of the pipeline whose they are.
        let scribe = RefCell::new((running.clone(), Scribe::new(&running.blueprint, &running.names, format)));
        let write = || {
            let mut scribe = scribe.borrow_mut();
            print(&scribe.1.take());
            let now = live.now();
            if !Arc::ptr_eq(&scribe.0, &now) {
                let next = Scribe::new(&now.blueprint, &now.names, format);
                *scribe = (now, next);
            }
        };
        let tick = || {
            appliance.correct_clock();
            write();
            appliance.gone()
        };
        let end = serve(&socket, &doors, &live, &keeper, ready, tick, log);
        drop((keeper, applier, running, socket));
        write();
        let (_, last) = scribe.into_inner();
        drop(live);
        let stopped = appliance.stop();
        print(&last.take());
        let mut good = stopped.report(self.json);
        match end {
            Ok(End::Signal) => {}
            Ok(End::Gone(thread)) => {
                eprintln!("flowgate: {thread} is gone; everything was stopped");
                good = false;
            }
            Err(message) => {
                eprintln!("flowgate: {message}");
                good = false;
            }
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(ENVIRONMENT) })
    }
}

/// Writes to standard error. That nobody reads it any more is no reason to stop.
fn print(lines: &str) {
    let _ = io::stderr().write_all(lines.as_bytes());
}

impl Stopped {
    /// Prints the totals; false if something is wrong with them.
    fn report(&self, as_json: bool) -> bool {
        let layout = &self.blueprint.layout;
        let mut total = layout.sheet();
        let mut problems = self.troubles.clone();
        for (index, sheet) in self.all_sheets().enumerate() {
            let Some(sheet) = sheet else { continue };
            if let Err(why) = sheet.check_law(0) {
                let whose = if index < self.sheets.len() { format!("worker {index}") } else { "the slow path".into() };
                problems.push(format!("{whose}: {why}; this is a defect of flowgate, report it"));
            }
            total.merge(sheet, layout);
        }
        if self.missing_buffers > 0 {
            problems.push(format!(
                "{} packet buffers did not come back; this is a defect of flowgate, report it",
                self.missing_buffers
            ));
        }
        if as_json {
            println!("{:#}", self.json(&total, &problems));
        } else {
            self.tables(&total);
        }
        for problem in &problems {
            eprintln!("flowgate: {problem}");
        }
        problems.is_empty()
    }

    /// Those of the workers, and the slow path's behind them.
    fn all_sheets(&self) -> impl Iterator<Item = Option<&Sheet>> {
        self.sheets.iter().map(Option::as_ref).chain(self.slow.iter().map(Some))
    }

    /// (port, received, sent, not taken by the port, lost before flowgate).
    fn ports(&self, total: &Sheet) -> impl Iterator<Item = (&str, [u64; 4])> {
        let counters = total.counters.clone();
        self.ports.iter().zip(&self.blueprint.port_counters).map(move |(port, first)| {
            let missed = port.device_counters.rx_missed + port.device_counters.rx_no_buffer;
            let of = |which: usize| counters[first + which];
            (port.name.as_str(), [of(port_counter::RX), of(port_counter::TX), of(port_counter::TX_DROPPED), missed])
        })
    }

    fn drops<'a>(&'a self, total: &'a Sheet) -> impl Iterator<Item = (String, u64)> + 'a {
        let labels = self.blueprint.layout.reason_labels().iter().zip(&total.reasons);
        labels.filter(|(_, n)| **n > 0).map(|(label, n)| (format!("{}.{}", label.scope, label.name), *n))
    }

    fn json(&self, total: &Sheet, problems: &[String]) -> Value {
        let ports: Vec<Value> = self
            .ports(total)
            .map(|(name, [rx, tx, dropped, missed])| {
                json!({ "name": name, "rx_packets": rx, "tx_packets": tx, "tx_dropped": dropped, "missed": missed })
            })
            .collect();
        json!({
            "ports": ports,
            "drops": self.drops(total).map(|(name, n)| (name, Value::from(n))).collect::<serde_json::Map<_, _>>(),
            "account": account(total),
            "workers": self.all_sheets().map(|sheet| sheet.map(account)).collect::<Vec<_>>(),
            "missing_buffers": self.missing_buffers,
            "problems": problems,
        })
    }

    fn tables(&self, total: &Sheet) {
        let ports = self.ports(total).map(|(name, words)| {
            let mut row = vec![name.to_owned()];
            row.extend(words.map(grouped));
            row
        });
        table::print(&["port", "received", "sent", "not taken", "missed by the device"], ports, &[1, 2, 3, 4]);
        let drops: Vec<Vec<String>> = self.drops(total).map(|(name, n)| vec![name, grouped(n)]).collect();
        if !drops.is_empty() {
            println!();
            table::print(&["dropped because", "packets"], drops.into_iter(), &[1]);
        }
    }
}
