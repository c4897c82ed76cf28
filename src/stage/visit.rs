//! A visit to a worker's flows on somebody's behalf: to copy, count or remove those that are meant.
//!
//! Owns the share of a worker's time that this may take: of one upkeep, every 5 ms, a visit sees [`SEEN`] entries and removes
//! [`REMOVED`] flows at most. That is about 0.1 ms or two per cent of the worker, and ten million flows are seen in 13 s. The
//! memory for what is copied comes with the visit.

use std::sync::Arc;

use crate::flow::entry::{Entry, EntryV4, EntryV6};
use crate::flow::file::CHUNK;
use crate::flow::filter::{Counts, Filter};
use crate::flow::table::{Occupancy, Sweep, Table};

use super::conntrack::Tables;

/// Entries seen in one upkeep.
pub const SEEN: usize = CHUNK;
/// Flows removed in one upkeep.
pub const REMOVED: usize = 1024;

/// What is done with the flows that are meant.
#[derive(Debug)]
pub enum Task {
    /// They are copied; at most [`SEEN`] at a time.
    Copy {
        /// IPv4 flows, filled up to the capacity.
        v4: Vec<EntryV4>,
        /// IPv6 flows, likewise.
        v6: Vec<EntryV6>,
    },
    /// They are counted.
    Count(Counts),
    /// They are removed.
    Remove,
}

impl Task {
    /// Copying, with room for all that is seen in one upkeep.
    pub fn copy() -> Task {
        Task::Copy { v4: Vec::with_capacity(SEEN), v6: Vec::with_capacity(SEEN) }
    }
}

/// The visit.
#[derive(Debug)]
pub struct Visit {
    /// Who is meant.
    pub filter: Arc<Filter>,
    /// What is done with them.
    pub task: Task,
    /// How many have been removed so far.
    pub removed: u64,
    /// How full the tables were: IPv4, IPv6.
    pub occupancy: [Occupancy; 2],
    /// How far it has come in each.
    cursors: [u32; 2],
}

impl Visit {
    /// A visit that has not begun.
    pub fn new(filter: Arc<Filter>, task: Task) -> Visit {
        Visit { filter, task, removed: 0, occupancy: [Occupancy::default(); 2], cursors: [0; 2] }
    }

    /// Goes on for one upkeep; true if all flows were seen.
    pub fn go_on(&mut self, tables: &mut Tables) -> bool {
        self.occupancy = [tables.v4.occupancy(), tables.v6.occupancy()];
        let Visit { filter, task, removed, cursors: [v4, v6], .. } = self;
        let (mut left, mut room) = (SEEN, REMOVED);
        let done = match task {
            Task::Copy { v4: copies, .. } => copy(&tables.v4, v4, &mut left, filter, copies),
            Task::Count(counts) => count(&tables.v4, v4, &mut left, filter, counts),
            Task::Remove => remove(&mut tables.v4, v4, &mut left, filter, &mut room),
        } && match task {
            Task::Copy { v6: copies, .. } => copy(&tables.v6, v6, &mut left, filter, copies),
            Task::Count(counts) => count(&tables.v6, v6, &mut left, filter, counts),
            Task::Remove => remove(&mut tables.v6, v6, &mut left, filter, &mut room),
        };
        *removed += (REMOVED - room) as u64;
        done
    }
}

fn copy<E: Entry>(table: &Table<E>, at: &mut u32, left: &mut usize, filter: &Filter, copies: &mut Vec<E>) -> bool {
    walk(table, at, left, |entry| {
        if filter.matches(entry) {
            if copies.len() == copies.capacity() {
                return false;
            }
            copies.push(*entry);
        }
        true
    })
}

fn count<E: Entry>(table: &Table<E>, at: &mut u32, left: &mut usize, filter: &Filter, counts: &mut Counts) -> bool {
    walk(table, at, left, |entry| {
        if filter.matches(entry) {
            counts.add(entry);
        }
        true
    })
}

fn walk<E: Entry>(table: &Table<E>, at: &mut u32, left: &mut usize, mut with: impl FnMut(&E) -> bool) -> bool {
    let before = *at;
    let end = table.walk(at, *left, |_, entry| with(entry));
    *left -= (*at - before) as usize;
    end
}

fn remove<E: Entry>(table: &mut Table<E>, at: &mut u32, left: &mut usize, filter: &Filter, room: &mut usize) -> bool {
    let before = *at;
    let end = table.sweep(at, *left, |entry| match (filter.matches(entry), *room) {
        (false, _) => Sweep::Keep,
        (true, 0) => Sweep::Pause,
        (true, _) => {
            *room -= 1;
            Sweep::Remove
        }
    });
    *left -= (*at - before) as usize;
    end
}

#[cfg(test)]
mod tests;
