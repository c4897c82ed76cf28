//! Bodies of requests as the API reads them, for the fuzz target: whatever comes is understood or refused, without a panic.

use serde::de::DeserializeOwned;

use super::bench::Bench;
use crate::config::Config;
use crate::config::source::Source;
use crate::control::api::explain::Packet;
use crate::control::api::flows::Flush;
use crate::control::apply::api::{Back, Change, Offer};
use crate::control::flows::{Query, Selection};
use crate::control::routes::Routes;
use crate::explain::Explainer;
use crate::stage::visit::Task;

const CONFIG: &str = "\
[memory]\nflows = 64\nflows_v6 = 64\n\
[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
[set]\noffice = ['10.0.0.0/30', '2001:db8::/64']\n\
[service]\nweb = ['tcp/80', 'tcp/440-443']\n\
[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
[[acl.rule]]\nname = 'web'\nfrom = 'inside'\nservice = ['web']\naction = 'allow'\n";

const PORTS: &str = "\
[[port]]\nname = 'lan'\ndevice = 'net_null0'\nzone = 'inside'\n\
[[port]]\nname = 'wan'\ndevice = 'net_null1'\nzone = 'outside'\n";

/// Something that bodies are read for.
pub struct Asked {
    bench: Bench,
    explainer: Explainer,
}

impl Default for Asked {
    fn default() -> Asked {
        let bench = Bench::new(CONFIG);
        let source = Source::new("asked.toml", &(PORTS.to_owned() + CONFIG));
        let config = Config::parse(&source).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let explainer = Explainer::new(&config, bench.blueprint());
        Asked { bench, explainer }
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

impl Asked {
    /// Reads a body as each question that there is, and goes on with what it understands; says whether it was any.
    pub fn ask(&mut self, body: &[u8]) -> bool {
        let mut understood = read::<Routes>(body).is_some() | read::<Offer>(body).is_some();
        understood |= read::<Change>(body).is_some() | read::<Back>(body).is_some() | read::<Flush>(body).is_some();
        let query = read::<Query>(body).map(|query| query.flows);
        for selection in query.into_iter().chain(read::<Selection>(body)) {
            understood = true;
            if let Err(message) = self.bench.visit(&selection, Task::copy(), |_| {}) {
                assert!(!message.is_empty());
            }
        }
        if let Some(packet) = read::<Packet>(body) {
            understood = true;
            match packet.read(&self.explainer) {
                Ok((port, frame)) => drop(self.explainer.json(&self.explainer.explain(port, &frame, 1, &[]))),
                Err(message) => assert!(!message.is_empty()),
            }
        }
        understood
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_begins_with_is_understood() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/api");
        let mut asked = Asked::default();
        let mut files = 0;
        for file in std::fs::read_dir(folder).expect("a corpus") {
            let file = file.expect("readable").path();
            // Those that the fuzzer itself adds have hashes for names.
            if file.extension().is_some_and(|kind| kind == "json") {
                files += 1;
                assert!(asked.ask(&std::fs::read(&file).expect("readable")), "{}", file.display());
            }
        }
        assert!(files >= 8, "{files}");
        assert!(!asked.ask(b"{\"limit\": -1}") && !asked.ask(b"[") && !asked.ask(&[0xff; 20]));
    }
}
