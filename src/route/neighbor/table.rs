//! The neighbors of a port in one family, within limits (RFC 6583): those being asked for, those silent and those known are
//! counted apart, and in each the oldest is found at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::nud::{Entry, State};

/// Which limit an entry counts under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Being asked for.
    Asked,
    /// Did not answer.
    Silent,
    /// Known and not in use: makes room.
    Idle,
    /// Known and in use: stays.
    Live,
    /// Given: under no limit.
    Given,
}

fn class(entry: &Entry) -> Class {
    match entry.state {
        State::Incomplete => Class::Asked,
        State::Silent => Class::Silent,
        State::Stale => Class::Idle,
        _ if !entry.wanted => Class::Idle,
        State::Reachable | State::Delay | State::Probe => Class::Live,
        State::Static => Class::Given,
    }
}

/// Entries by address, and by age within their class.
#[derive(Default)]
pub struct Table {
    entries: BTreeMap<IpAddr, Entry>,
    ages: BTreeSet<(Class, u64, IpAddr)>,
    counts: [usize; 5],
}

impl Table {
    /// An entry.
    pub fn get(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.get(&address)
    }

    /// Entries in a class.
    pub fn count(&self, class: Class) -> usize {
        self.counts[class as usize]
    }

    /// Entries that are known and not given.
    pub fn known(&self) -> usize {
        self.count(Class::Idle) + self.count(Class::Live)
    }

    /// The entry that has been longest in a class, `but` one.
    pub fn oldest(&self, class: Class, but: Option<IpAddr>) -> Option<IpAddr> {
        let first = (class, 0, IpAddr::from([0, 0, 0, 0]));
        let mut of_class = self.ages.range(first..).take_while(|(c, ..)| *c == class).map(|(.., address)| *address);
        of_class.find(|address| Some(*address) != but)
    }

    /// Puts an entry in the place of what is there.
    pub fn put(&mut self, address: IpAddr, entry: Entry) {
        self.remove(address);
        let class = class(&entry);
        self.counts[class as usize] += 1;
        self.ages.insert((class, entry.since, address));
        self.entries.insert(address, entry);
    }

    /// Takes an entry out.
    pub fn remove(&mut self, address: IpAddr) -> Option<Entry> {
        let entry = self.entries.remove(&address)?;
        let class = class(&entry);
        self.counts[class as usize] -= 1;
        self.ages.remove(&(class, entry.since, address));
        Some(entry)
    }

    /// All entries, by address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Entry)> {
        self.entries.iter().map(|(address, entry)| (*address, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_class() {
        let mut table = Table::default();
        let at = |n: u8| IpAddr::from([192, 0, 2, n]);
        for (n, since) in [(1, 30), (2, 10), (3, 20)] {
            table.put(at(n), Entry::incomplete(since));
        }
        table.put(at(9), Entry::given([2; 6], 0));
        assert_eq!(table.oldest(Class::Asked, None), Some(at(2)));
        assert_eq!(table.oldest(Class::Asked, Some(at(2))), Some(at(3)));
        table.put(at(2), Entry::incomplete(40));
        assert_eq!((table.oldest(Class::Asked, None), table.count(Class::Asked)), (Some(at(3)), 3));
        assert_eq!(table.oldest(Class::Idle, None), None);
        table.remove(at(3));
        assert_eq!((table.count(Class::Asked), table.known(), table.count(Class::Given)), (2, 0, 1));
    }
}
