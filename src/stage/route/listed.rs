//! `route.file`: routes in a file of their own, more than a configuration should hold.
//!
//! One a line, as `ip route` has them: `198.51.100.0/24 via 203.0.113.1`. `#` begins a comment.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::names::address_or_prefix;
use crate::config::reader::{FromToml, Item, Reader};
use crate::config::source::{At, Place};
use crate::config::units::Within;
use crate::route::{Gateway, Route, Target};

use super::statics::{Check, Prefix, StaticRoute, Via, Weighted};

/// Lines reported of one file; a file of some other kind would otherwise bury all else.
const MOST: usize = 20;

/// The routes of a file, as written.
#[derive(Clone, Debug)]
pub struct Listed {
    file: Arc<str>,
    lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    to: IpNet,
    via: IpAddr,
    /// From 1.
    number: u32,
}

impl FromToml for Listed {
    const EXPECTED: &'static str = "the name of a file of routes";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let key = item.path.clone();
        let file = At::<String>::from_toml(item, reader)?;
        let path = Path::new(reader.source.path()).parent().unwrap_or(Path::new("")).join(&file.value);
        let shown = path.display().to_string();
        // Only what has an end: reading a pipe or a device might never return.
        let text = match std::fs::metadata(&path) {
            Ok(metadata) if !metadata.is_file() => Err("it is not a regular file".to_owned()),
            Ok(_) => std::fs::read_to_string(&path).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                reader.mistakes.at(&file.place, &key, format!("cannot read {shown:?}: {error}"));
                return None;
            }
        };
        let mut listed = Listed { file: shown.into(), lines: Vec::new() };
        let mut wrong = 0;
        for (number, line) in (1..).zip(text.lines()) {
            match read(line.split('#').next().unwrap_or_default().trim()) {
                Ok(None) => {}
                Ok(Some((to, via))) => listed.lines.push(Line { to, via, number }),
                Err(message) => {
                    wrong += 1;
                    if wrong <= MOST {
                        reader.mistakes.at(&listed.place(number), &key, message);
                    }
                }
            }
        }
        if wrong > MOST {
            let message = format!("{} more lines of {:?} are wrong", wrong - MOST, listed.file);
            reader.mistakes.at(&file.place, &key, message);
        }
        (wrong == 0).then_some(listed)
    }
}

/// What a line says, if it says anything.
fn read(line: &str) -> Result<Option<(IpNet, IpAddr)>, String> {
    if line.is_empty() {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(to), Some("via"), Some(via), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err("expected PREFIX via ADDRESS".into());
    };
    let to = address_or_prefix(to).map_err(|_| format!("{to:?} is no prefix, or has bits behind its length"))?;
    let via = via.parse().map_err(|_| format!("{via:?} is no IP address"))?;
    Ok(Some((to, via)))
}

impl Listed {
    fn place(&self, line: u32) -> Place {
        Place { file: self.file.clone(), line, column: 1 }
    }

    /// The routes; those about which something was noted are left out.
    pub(super) fn routes(&self, check: &mut Check<'_>) -> Vec<Route> {
        let mut known = HashMap::<(IpAddr, bool), Option<Gateway>>::new();
        let mut first = HashMap::<IpNet, u32>::with_capacity(self.lines.len());
        let mut routes = Vec::with_capacity(self.lines.len());
        for line in &self.lines {
            if let Some(first) = first.insert(line.to, line.number) {
                let message = format!("{} has a route already, in line {first}", line.to);
                check.mistakes.at(&self.place(line.number), "route.file", message);
            }
            check.destination(line.to, || (self.place(line.number), "route.file".into()));
            let gateway = known.entry((line.via, line.to.addr().is_ipv4())).or_insert_with(|| {
                let place = self.place(line.number);
                let via = Some(At { value: line.via, place: place.clone() });
                let via = At { value: Via(Weighted { via, port: None, weight: Within(1) }), place: place.clone() };
                let to = At { value: Prefix(line.to), place };
                check.gateway(
                    &StaticRoute { to, via: None, port: None, r#type: None, metric: 0 },
                    &via,
                    None,
                    "route.file",
                )
            });
            let target = gateway.clone().map(|gateway| Target::Via(vec![gateway]));
            routes.extend(target.map(|target| Route { to: line.to, target, metric: 0 }));
        }
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;
    use crate::config;
    use crate::config::source::{Mistakes, Source};

    const PORT: &str = "\
[[port]]
name = 'wan'
device = 'net_null1'
address = ['192.0.2.1/24', '2001:db8::1/64']
[pipeline]
stages = ['route']
[route]
file = 'routes'
";

    /// The routes of a file as text, or what is wrong with them.
    fn routes(text: &str) -> Result<Vec<String>, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("routes"), text).expect("written");
        let path = folder.path().join("t.toml");
        let (config, list) = config::Config::read(&Source::new(path.to_str().expect("UTF-8"), PORT));
        let short =
            |text: &dyn std::fmt::Display| text.to_string().replace(&format!("{}/", folder.path().display()), "");
        if !list.is_empty() {
            return Err(list.iter().map(|mistake| short(mistake)).collect());
        }
        let route: &Config = config.pipeline[0].config.as_ref().expect("read").downcast_ref().expect("a route stage's");
        let mut mistakes = Mistakes::default();
        let routes = route.routes(&config.names, &mut mistakes);
        let list = mistakes.into_sorted();
        match routes {
            Some(routes) => Ok(routes.iter().map(|route| format!("{} {:?}", route.to, route.target)).collect()),
            None => Err(list.iter().map(|mistake| short(mistake)).collect()),
        }
    }

    #[test]
    fn a_line_each() {
        let read = routes("# ours\n198.51.100.0/24 via 192.0.2.2\n\n2001:db8:9::/48  via 2001:db8::2 # theirs\n")
            .expect("good");
        assert_eq!(read.len(), 2);
        assert!(read[0].starts_with("198.51.100.0/24 Via([Gateway { via: Some(192.0.2.2), port: Some(0)"), "{read:?}");
        assert!(
            read[1].starts_with("2001:db8:9::/48 Via([Gateway { via: Some(2001:db8::2), port: Some(0)"),
            "{read:?}"
        );
    }

    #[test]
    fn what_is_wrong_and_in_which_line() {
        for (text, wrong) in [
            ("\n198.51.100.0/24", "routes:2:1: route.file: expected PREFIX via ADDRESS"),
            (
                "198.51.100.1/24 via 192.0.2.2",
                "routes:1:1: route.file: \"198.51.100.1/24\" is no prefix, or has bits behind its length",
            ),
            ("198.51.100.0/24 via me", "routes:1:1: route.file: \"me\" is no IP address"),
            ("127.0.0.0/8 via 192.0.2.2", "routes:1:1: route.file: 127.0.0.0/8 are loopback addresses"),
            ("198.51.100.0/24 via 192.0.2.1", "routes:1:1: route.file: 192.0.2.1 is an address of the box itself"),
            ("198.51.100.0/24 via 10.0.0.1", "routes:1:1: route.file: 10.0.0.1 is on no port's subnet"),
            (
                "1.0.0.0/8 via 192.0.2.2\n1.0.0.0/8 via 192.0.2.3",
                "routes:2:1: route.file: 1.0.0.0/8 has a route already, in line 1",
            ),
        ] {
            let list = routes(text).expect_err(text);
            assert!(list.len() == 1 && list[0].contains(wrong), "{list:?}, not {wrong}");
        }
        let many = routes(&"x\n".repeat(50)).expect_err("all wrong");
        assert_eq!(many.len(), super::MOST + 1);
    }
}
