//! Follows what the kernel has: all of it at start, then news; and all of it again where news were lost or the kernel does not
//! tell. What differs is reported.
//!
//! A dump is read beside the news into tables of its own, and the news that came meanwhile are taken in there behind it: what
//! they say once more does no harm, and what they say last is so. Dumps of links, addresses, objects and routes follow one
//! another. Tables of routes other than `main` are not followed.
//!
//! Of IPv6 the kernel does not tell all: its dumps leave out a route that stands between two ways of one prefix and metric and is
//! none itself, and two routes that are the same in all it tells are taken for one. Such routes are found again with a later
//! dump.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::Event;
use super::message::{News, nexthop, parse};
use super::netlink::{DATAGRAM, Netlink, Request, messages};
use super::tables::{Before, Census, Tables};

/// Room for news that are not read yet, in bytes. A route takes about a thousand.
const ROOM: usize = 128 << 20;
/// The most news kept while a dump is read; with more, it begins anew.
const JOURNAL: usize = 1 << 18;
/// Dumps are at least so far apart.
const PAUSE: Duration = Duration::from_millis(200);
/// `NLM_F_DUMP_INTR`: something changed under the dump, which may lack what did not.
const INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
/// `RTEXT_FILTER_SKIP_STATS` (`linux/rtnetlink.h`).
const NO_STATISTICS: u32 = 1 << 3;

/// What is dumped, in this order.
const STEPS: [Step; 5] = [Step::Links, Step::Addresses, Step::Objects, Step::Routes4, Step::Routes6];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Links,
    Addresses,
    Objects,
    Routes4,
    Routes6,
}

/// What has gone wrong so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishaps {
    /// Times the kernel had to throw news away, which led to a dump.
    pub overruns: u64,
    /// Messages that could not be read.
    pub unreadable: u64,
    /// Dumps that were begun anew.
    pub interrupted: u64,
}

/// Follows the kernel.
pub struct Follower {
    news: Netlink,
    dumps: Netlink,
    routes: bool,
    tables: Tables,
    dump: Option<Dump>,
    /// The tables before the last dump, while it is being told how they differ.
    before: Option<Before>,
    /// A request whose dump was given up: the kernel begins no other before all of it is read.
    rest_of: Option<u32>,
    /// Whether the kernel may have changed more than it told.
    stale: bool,
    not_before: Option<Instant>,
    mishaps: Mishaps,
    buffer: Vec<u8>,
}

/// A dump that is being read.
struct Dump {
    tables: Tables,
    journal: Vec<News>,
    /// What is left to be asked, and the number of the request that is being answered.
    left: std::slice::Iter<'static, Step>,
    number: Option<u32>,
    broken: bool,
}

impl Follower {
    /// Begins to follow the kernel in this thread's namespace, with or without its routes.
    pub fn start(tables: Tables, routes: bool) -> io::Result<Follower> {
        Follower::with_room(tables, routes, ROOM)
    }

    /// The same with so many bytes of room for news.
    pub fn with_room(tables: Tables, routes: bool, room: usize) -> io::Result<Follower> {
        let always = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];
        let of_routes = [libc::RTNLGRP_NEXTHOP, libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE];
        let groups: Vec<u32> = always.iter().chain(of_routes.iter().filter(|_| routes)).copied().collect();
        Ok(Follower {
            news: Netlink::open(&groups, room)?,
            dumps: Netlink::open(&[], 1 << 20)?,
            routes,
            tables,
            dump: None,
            before: None,
            rest_of: None,
            stale: true,
            not_before: None,
            mishaps: Mishaps::default(),
            buffer: vec![0; DATAGRAM],
        })
    }

    /// A port's interface has this index.
    pub fn add_port(&mut self, port: u8, index: u32) {
        self.tables.add_port(port, index);
        if let Some(dump) = &mut self.dump {
            dump.tables.add_port(port, index);
        }
    }

    /// Reads at most `budget` messages of news, and about as many of a dump if one is due or under way or that many of the
    /// routes it has brought, and reports what changed. Returns whether there may be more to read at once. An error means that the kernel cannot be asked; calling again is
    /// right.
    pub fn poll(&mut self, now: Instant, budget: usize, out: &mut dyn FnMut(Event)) -> io::Result<bool> {
        let drained = self.read_news(budget, out)?;
        self.skip_rest(budget)?;
        if self.rest_of.is_some() {
            return Ok(true);
        }
        if let Some(before) = &mut self.before {
            if !self.tables.report_routes(before, budget, out) {
                return Ok(true);
            }
            self.before = None;
            out(Event::Synced);
        }
        if self.dump.is_none() && self.stale && drained && self.not_before.is_none_or(|from| now >= from) {
            // News from before a gap have all been read: the dump knows better than they.
            self.stale = false;
            self.not_before = Some(now + PAUSE);
            let tables = self.tables.emptied();
            self.dump = Some(Dump { tables, journal: Vec::new(), left: STEPS.iter(), number: None, broken: false });
        }
        let busy = match self.dump.take() {
            Some(dump) => {
                let result = self.read_dump(dump, budget, drained, out);
                self.stale |= result.is_err();
                result?
            }
            None => false,
        };
        Ok(busy || !drained)
    }

    /// How long nothing is to be done unless a socket has something to read. None is for ever.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let pause = self.not_before.map_or(Duration::ZERO, |from| from.saturating_duration_since(now));
        (self.stale && self.dump.is_none()).then_some(pause)
    }

    /// The sockets to wait for.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.news.as_fd(), self.dumps.as_fd()]
    }

    /// What has gone wrong so far.
    pub fn mishaps(&self) -> Mishaps {
        self.mishaps
    }

    /// What the kernel's main table holds. Takes a walk over all of it.
    pub fn census(&self) -> Census {
        self.tables.census()
    }

    /// The tables as they are known.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Whether there was nothing left to read.
    fn read_news(&mut self, budget: usize, out: &mut dyn FnMut(Event)) -> io::Result<bool> {
        for _ in 0..budget {
            let Follower { news, buffer, tables, dump, before, stale, mishaps, .. } = self;
            // Routes that will be told of anyway are not told of twice.
            let mut out = |event: Event| match (&event, &*before) {
                (Event::Route { route, .. }, Some(before)) if before.is_due(route.to, route.metric) => {}
                _ => out(event),
            };
            match news.receive(buffer, false) {
                Ok(datagram) => {
                    let whole = messages(datagram, |message| match parse(&message) {
                        Ok(Some(news)) => {
                            if let Some(dump) = dump.as_mut() {
                                dump.journal.push(news.clone());
                            }
                            *stale |= tables.apply(news, &mut out);
                        }
                        Ok(None) => {}
                        Err(_) => mishaps.unreadable += 1,
                    });
                    mishaps.unreadable += u64::from(!whole);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS, or a message larger than any there should be.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) || error.raw_os_error().is_none() => {
                    mishaps.overruns += 1;
                    self.give_up();
                }
                Err(error) => return Err(error),
            }
            if self.dump.as_ref().is_some_and(|dump| dump.journal.len() > JOURNAL) {
                self.mishaps.interrupted += 1;
                self.give_up();
            }
        }
        Ok(false)
    }

    /// The dump under way is of no use, or there has to be one.
    fn give_up(&mut self) {
        if let Some(number) = self.dump.take().and_then(|dump| dump.number) {
            self.rest_of = Some(number);
        }
        self.stale = true;
    }

    /// Reads what is left of a dump that was given up.
    fn skip_rest(&mut self, budget: usize) -> io::Result<()> {
        for _ in 0..budget {
            let Some(number) = self.rest_of else { return Ok(()) };
            match self.dumps.receive(&mut self.buffer, false) {
                Ok(datagram) => {
                    messages(datagram, |message| {
                        if message.sequence == number && message.result().is_some() {
                            self.rest_of = None;
                        }
                    });
                }
                // Nothing more will come.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.rest_of = None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads on; whether there may be more to read at once.
    fn read_dump(
        &mut self,
        mut dump: Dump,
        budget: usize,
        drained: bool,
        out: &mut dyn FnMut(Event),
    ) -> io::Result<bool> {
        let mut read = 0;
        while read < budget {
            let Some(number) = dump.number else {
                match dump.left.next() {
                    Some(step) if !self.routes && *step > Step::Addresses => {}
                    Some(step) => dump.number = Some(self.dumps.send(step.request())?),
                    // News of an interface that is younger than the dump of links may wait among the unread.
                    None if !drained => break,
                    None => {
                        self.finish(dump, out);
                        return Ok(true);
                    }
                }
                continue;
            };
            let datagram = match self.dumps.receive(&mut self.buffer, false) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.dump = Some(dump);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.rest_of = dump.number;
                    return Err(error);
                }
            };
            let mut result = Ok(());
            messages(datagram, |message| {
                read += 1;
                if message.sequence != number {
                    return;
                }
                dump.broken |= message.flags & INTERRUPTED != 0;
                if let Some(end) = message.result() {
                    (result, dump.number) = (end, None);
                    return;
                }
                match parse(&message) {
                    Ok(Some(news)) => _ = dump.tables.load(news),
                    Ok(None) => {}
                    Err(_) => self.mishaps.unreadable += 1,
                }
            });
            match result {
                // A table nobody has used yet; next-hop objects before Linux 5.3.
                Err(error) if ![libc::ENOENT, libc::EOPNOTSUPP].contains(&error.raw_os_error().unwrap_or_default()) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        self.dump = Some(dump);
        Ok(true)
    }

    fn finish(&mut self, dump: Dump, out: &mut dyn FnMut(Event)) {
        if dump.broken {
            self.mishaps.interrupted += 1;
            self.stale = true;
            return;
        }
        let mut tables = dump.tables;
        dump.journal.into_iter().for_each(|news| self.stale |= tables.load(news));
        tables.forget_missing();
        tables.report_from(&self.tables, out);
        self.before = Some(Before::new(std::mem::replace(&mut self.tables, tables)));
    }
}

impl Step {
    fn request(self) -> Request {
        let dump = |kind, header: &[u8]| Request::new(kind, libc::NLM_F_DUMP, header);
        // `rtmsg`: family, lengths and type of service, table.
        let routes =
            |family| dump(libc::RTM_GETROUTE, &[family as u8, 0, 0, 0, libc::RT_TABLE_MAIN, 0, 0, 0, 0, 0, 0, 0]);
        match self {
            Step::Links => dump(libc::RTM_GETLINK, &[0; 16]).with(libc::IFLA_EXT_MASK, &NO_STATISTICS.to_ne_bytes()),
            Step::Addresses => dump(libc::RTM_GETADDR, &[0; 8]),
            Step::Objects => dump(nexthop::GET, &[0; 8]),
            Step::Routes4 => routes(libc::AF_INET),
            Step::Routes6 => routes(libc::AF_INET6),
        }
    }
}
