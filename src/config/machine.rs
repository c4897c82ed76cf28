//! `[worker]`, `[memory]`, `[control]` and `[eal]`: what the appliance takes of the machine. Form only; whether the machine
//! has it is found out at start.

use std::fmt;

use super::reader::{FromToml, Item, Reader};
use super::source::{At, Mistake, Mistakes};
use super::units::{Auto, Size, Within};

crate::choice! {
    /// What a worker does after a turn that found nothing.
    pub enum Idle {
        /// The next turn at once.
        Poll = "poll",
        /// Let others run first.
        Yield = "yield",
    }
}

crate::section! {
    /// `[worker]`
    pub struct Worker {
        /// One worker is pinned to each core of the list; `"auto"` takes all but the first, which is left to control.
        pub cores: Cores = Cores::Auto,
        /// The core of the control threads. Left out, they run on the cores no worker has.
        pub main_core: Option<At<Core>>,
        /// Packets taken from a port in one call.
        pub burst: Within<1, 64> = Within(32),
        /// After a turn that found nothing: `"poll"` takes the next at once, `"yield"` lets other threads run first.
        pub idle: Idle = Idle::Poll,
        /// Several workers may share a core, for tests. Idle workers then yield.
        pub oversubscribe: bool = false,
    }
}

/// Number of a CPU as Linux counts them.
pub type Core = Within<0, 1023>;

/// The workers' cores.
#[derive(Clone)]
pub enum Cores {
    /// All but the first the process may use.
    Auto,
    /// These, at least one.
    List(Vec<At<Core>>),
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cores::Auto => f.write_str("\"auto\""),
            Cores::List(list) => f.debug_list().entries(list.iter().map(|core| core.0)).finish(),
        }
    }
}

impl FromToml for Cores {
    const EXPECTED: &'static str = "a list of core numbers or \"auto\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if item.as_str() == Some("auto") {
            return Some(Cores::Auto);
        }
        if item.as_str().is_some() || item.is_table() {
            reader.expected(&item, Self::EXPECTED);
            return None;
        }
        let (place, path) = (reader.place(&item), item.path.clone());
        let list = Vec::<At<Core>>::from_toml(item, reader)?;
        if list.is_empty() {
            reader.mistakes.at(&place, &path, format!("expected {}, found an empty one", Self::EXPECTED));
            return None;
        }
        Some(Cores::List(list))
    }
}

impl Worker {
    /// What the file alone shows to be wrong: a core taken twice.
    pub(super) fn check(&self, mistakes: &mut Mistakes) {
        let Cores::List(cores) = &self.cores else { return };
        if self.oversubscribe {
            return;
        }
        let help = "give every worker a core of its own, or set oversubscribe = true";
        for (i, core) in cores.iter().enumerate() {
            if cores[..i].iter().any(|earlier| earlier.value == core.value) {
                mistakes.with_help(&core.place, "worker.cores", format!("core {} is taken twice", core.0), help);
            }
        }
        if let Some(main) = self.main_core.as_ref().filter(|main| cores.iter().any(|core| core.value == main.value)) {
            mistakes.with_help(&main.place, "worker.main_core", format!("core {} is a worker's", main.0), help);
        }
    }

    /// How many workers there are on a machine whose process may use `usable` cores.
    pub fn count(&self, usable: usize) -> usize {
        match &self.cores {
            Cores::Auto => usable.saturating_sub(1).max(1),
            Cores::List(list) => list.len(),
        }
    }

    /// The workers' cores on a machine whose process may use `usable` (ascending, not empty): one for each worker, in order.
    pub fn on(&self, usable: &[u16]) -> Result<Vec<u16>, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let main = self.main_core.as_ref().map(|core| (core, core.0 as u16));
        if let Some((core, number)) = main.filter(|(_, number)| !usable.contains(number)) {
            no_core(core, number, "worker.main_core", usable, &mut mistakes);
        }
        let cores = match &self.cores {
            Cores::Auto => {
                let control = main.map(|(_, number)| number).or(usable.first().copied());
                let rest: Vec<u16> = usable.iter().copied().filter(|core| Some(*core) != control).collect();
                // A machine of one core has to share it.
                if rest.is_empty() { usable.to_vec() } else { rest }
            }
            Cores::List(list) => {
                for core in list.iter().filter(|core| !usable.contains(&(core.0 as u16))) {
                    no_core(core, core.0 as u16, "worker.cores", usable, &mut mistakes);
                }
                list.iter().map(|core| core.0 as u16).collect()
            }
        };
        if mistakes.is_empty() { Ok(cores) } else { Err(mistakes.into_sorted()) }
    }
}

fn no_core(core: &At<Core>, number: u16, key: &str, usable: &[u16], mistakes: &mut Mistakes) {
    let usable: Vec<String> = usable.iter().map(u16::to_string).collect();
    let help = format!("cores this process may use: {}", usable.join(", "));
    mistakes.with_help(&core.place, key, format!("core {number} does not exist here"), help);
}

crate::choice! {
    /// Where packet buffers and tables live.
    pub enum Hugepages {
        /// On huge pages if there are enough, else on ordinary ones.
        Auto = "auto",
        /// On huge pages or not at all.
        Require = "require",
        /// On ordinary pages.
        Off = "off",
    }
}

crate::section! {
    /// `[memory]`
    pub struct Memory {
        /// Huge pages: `"auto"` uses them if there are enough, `"require"` refuses to start without, `"off"` does without.
        pub hugepages: Hugepages = Hugepages::Auto,
        /// Packet buffers on each NUMA node; `"auto"` counts what queues, bursts and caches can hold.
        pub packets: Auto<Within<1024, 16777216>> = Auto::Auto,
        /// IPv4 flows that can be tracked, over all workers; with `conntrack` in the pipeline the memory for them is taken at start (150 bytes each).
        pub flows: Within<64, 1073741824> = Within(1_000_000),
        /// IPv6 flows, likewise (220 bytes each); `"auto"` is a quarter of `flows`.
        pub flows_v6: Auto<Within<64, 1073741824>> = Auto::Auto,
        /// Memory DPDK may take; `"auto"` is what the packet buffers and tables need.
        pub limit: Auto<Size> = Auto::Auto,
    }
}

impl Memory {
    /// IPv4 and IPv6 flows of the whole appliance.
    pub fn all_flows(&self) -> (u32, u32) {
        let v4 = self.flows.0 as u32;
        (v4, self.flows_v6.given().map_or((v4 / 4).max(64), |v6| v6.0 as u32))
    }
}

crate::choice! {
    /// The least important messages that are printed.
    pub enum Log {
        /// What went wrong.
        Error = "error",
        /// What may go wrong.
        Warning = "warning",
        /// What happens.
        Info = "info",
        /// What DPDK has to say.
        Debug = "debug",
    }
}

crate::choice! {
    /// What the lines on standard error look like.
    pub enum LogFormat {
        /// Words.
        Human = "human",
        /// An object on each line.
        Json = "json",
    }
}

crate::section! {
    /// `[control]`
    pub struct Control {
        /// The Unix socket on which the running process answers. Instances side by side need one each.
        pub socket: SocketPath = SocketPath(super::DEFAULT_SOCKET.into()),
        /// The group that may use the socket; if not given, only flowgate's own user. Who may use it may do everything.
        pub socket_group: Option<String>,
        /// The least important messages that are printed: `"error"`, `"warning"`, `"info"` or `"debug"`, which includes DPDK's.
        pub log: Log = Log::Info,
        /// What is printed on standard error while running, packets that rules log included: `"human"`, or `"json"`, an object on each line.
        pub log_format: LogFormat = LogFormat::Human,
        /// Folder in which versions of the config and what was done to sets outlive the process. Without it, `rollback` knows those of this process.
        pub history: Option<String>,
    }
}

/// Path of a Unix socket.
#[derive(Clone, PartialEq, Eq)]
pub struct SocketPath(pub String);

impl fmt::Debug for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromToml for SocketPath {
    // unix(7): sun_path has 108 bytes, the last of them zero.
    const EXPECTED: &'static str = "an absolute path of at most 107 bytes";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        super::reader::parsed(&item, Self::EXPECTED, reader, |text| {
            let good = text.starts_with('/') && text.len() <= 107 && !text.contains('\0');
            good.then(|| SocketPath(text.to_owned()))
        })
    }
}

crate::section! {
    /// `[eal]`
    pub struct Eal {
        /// Arguments for DPDK's EAL behind those flowgate derives from this file.
        pub extra: Vec<String> = Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Place;

    fn worker(cores: Cores, main_core: Option<u64>) -> Worker {
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let main_core = main_core.map(|core| At { value: Within(core), place });
        Worker { cores, main_core, burst: Within(32), idle: Idle::Poll, oversubscribe: false }
    }

    #[test]
    fn auto_leaves_a_core_to_control() {
        let auto = worker(Cores::Auto, None);
        assert_eq!(auto.on(&[0, 1, 2, 3]).expect("good"), [1, 2, 3]);
        assert_eq!(auto.on(&[4, 5]).expect("good"), [5]);
        assert_eq!(auto.on(&[0]).expect("good"), [0]);
        assert_eq!([1, 2, 4].map(|cores| auto.count(cores)), [1, 1, 3]);
        assert_eq!(worker(Cores::Auto, Some(2)).on(&[0, 1, 2]).expect("good"), [0, 1]);
    }

    #[test]
    fn cores_that_are_not_there() {
        let place = Place { file: "t".into(), line: 2, column: 9 };
        let list = Cores::List(vec![At { value: Within(1), place: place.clone() }, At { value: Within(9), place }]);
        let mistakes = worker(list, Some(7)).on(&[0, 1]).expect_err("no core 7 and 9");
        assert_eq!(mistakes.len(), 2);
        assert_eq!(
            mistakes[1].to_string(),
            "t:2:9: worker.cores: core 9 does not exist here; cores this process may use: 0, 1"
        );
    }
}
