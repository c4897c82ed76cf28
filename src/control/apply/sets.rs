//! Members of sets that come and go while the process runs, beside those of the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::config::names::Set;

/// A member that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Member {
    /// The addresses.
    #[schema(value_type = String)]
    pub address: IpNet,
    /// When it goes, Unix seconds; never if not given.
    pub until: Option<u64>,
}

/// What was done to one set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// True if what the file says of it does not count.
    pub replaced: bool,
    /// Members that were added.
    pub members: Vec<Member>,
}

/// What was done to all sets, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets(pub BTreeMap<String, Changed>);

impl Sets {
    /// What an earlier process has written down; nothing if there is no such file. The error is for the operator.
    pub fn load(file: &Path) -> Result<Sets, String> {
        let wrong = |why: String| format!("{}: {why}; what was done to sets is not taken over", file.display());
        match std::fs::read_to_string(file) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| wrong(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Sets::default()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Adds members; one that is there already gets the new time. True if that changes what the set holds.
    pub fn add(&mut self, set: &str, addresses: &[IpNet], until: Option<u64>) -> bool {
        let changed = self.0.entry(set.to_owned()).or_default();
        let mut new = false;
        for address in addresses.iter().map(IpNet::trunc) {
            match changed.members.iter_mut().find(|member| member.address == address) {
                Some(member) => member.until = until,
                None => {
                    changed.members.push(Member { address, until });
                    new = true;
                }
            }
        }
        new
    }

    /// Takes members away that were added; returns those that were not.
    pub fn remove(&mut self, set: &str, addresses: &[IpNet]) -> Vec<IpNet> {
        let members = &mut self.0.entry(set.to_owned()).or_default().members;
        let mut missing = Vec::new();
        for address in addresses.iter().map(IpNet::trunc) {
            let before = members.len();
            members.retain(|member| member.address != address);
            missing.extend((members.len() == before).then_some(address));
        }
        self.0.retain(|_, changed| changed.replaced || !changed.members.is_empty());
        missing
    }

    /// Puts these members in place of all others.
    pub fn replace(&mut self, set: &str, addresses: &[IpNet]) {
        let members = addresses.iter().map(|address| Member { address: address.trunc(), until: None }).collect();
        self.0.insert(set.to_owned(), Changed { replaced: true, members });
    }

    /// Forgets all that was done to a set: it is the file's again. True if there was anything.
    pub fn reset(&mut self, set: &str) -> bool {
        self.0.remove(set).is_some()
    }

    /// Forgets members whose time has passed; true if there were any.
    pub fn expire(&mut self, now: u64) -> bool {
        let mut gone = false;
        for changed in self.0.values_mut() {
            let before = changed.members.len();
            changed.members.retain(|member| member.until.is_none_or(|until| until > now));
            gone |= changed.members.len() < before;
        }
        self.0.retain(|_, changed| changed.replaced || !changed.members.is_empty());
        gone
    }

    /// Puts what was done into a config that has just been read. What was done to sets it does not have is left out; their names
    /// are returned.
    pub fn put(&self, config: &mut Config) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, changed) in &self.0 {
            match config.names.sets.iter_mut().find(|set| set.name == *name) {
                Some(set) => put(set, changed),
                None => missing.push(name.clone()),
            }
        }
        missing
    }
}

fn put(set: &mut Set, changed: &Changed) {
    if changed.replaced {
        (set.v4, set.v6) = (Vec::new(), Vec::new());
    }
    for member in &changed.members {
        match member.address {
            IpNet::V4(net) => set.v4.push(net),
            IpNet::V6(net) => set.v6.push(net),
        }
    }
    set.v4 = ipnet::Ipv4Net::aggregate(&set.v4);
    set.v6 = ipnet::Ipv6Net::aggregate(&set.v6);
}

/// Now, in Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Source;

    fn net(text: &str) -> IpNet {
        text.parse::<IpNet>().unwrap_or_else(|_| text.parse::<std::net::IpAddr>().expect("an address").into())
    }

    fn held(sets: &Sets) -> Vec<String> {
        let text = "[[port]]\nname = 'a'\ndevice = 'net_null0'\n[[port]]\nname = 'b'\ndevice = 'net_null1'\n\
                    [set]\nbad = ['192.0.2.0/25']\n[pipeline]\nstages = ['cross']\n[cross]\nwire = [{ ports = ['a', 'b'] }]\n";
        let mut config = Config::parse(&Source::new("a.toml", text)).expect("good");
        assert_eq!(sets.put(&mut config), Vec::<String>::new());
        let set = config.names.set("bad").expect("there");
        set.v4.iter().map(ToString::to_string).chain(set.v6.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn members_come_and_go() {
        let mut sets = Sets::default();
        assert!(sets.add("bad", &[net("192.0.2.128/25"), net("2001:db8::1")], None));
        assert_eq!(held(&sets), ["192.0.2.0/24", "2001:db8::1/128"]);
        assert!(!sets.add("bad", &[net("2001:db8::1")], Some(100)), "only its time changes");
        assert!(!sets.expire(99) && sets.expire(100));
        assert_eq!(held(&sets), ["192.0.2.0/24"]);
        assert_eq!(sets.remove("bad", &[net("192.0.2.128/25"), net("192.0.2.0/25")]), [net("192.0.2.0/25")]);
        assert_eq!((held(&sets), sets.clone()), (vec!["192.0.2.0/25".to_owned()], Sets::default()));
    }

    #[test]
    fn a_set_is_replaced_and_given_back_to_the_file() {
        let mut sets = Sets::default();
        sets.replace("bad", &[net("198.51.100.7")]);
        assert_eq!(held(&sets), ["198.51.100.7/32"]);
        sets.remove("bad", &[net("198.51.100.7")]);
        assert_eq!(held(&sets), Vec::<String>::new(), "empty, not the file's");
        assert!(sets.reset("bad") && !sets.reset("bad"));
        assert_eq!(held(&sets), ["192.0.2.0/25"]);
    }
}
