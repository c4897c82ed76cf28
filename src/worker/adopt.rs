//! Going on with another pipeline: what control has built takes the place of what there was, between two turns.
//!
//! Flows, held packets, fragments and the numbers counted so far stay. What is replaced goes back to control, which alone frees
//! it. Ports, queues and the size of tables are not replaced: they are the process's.

use std::io;
use std::sync::Arc;

use crate::io::Io;
use crate::log::Log;
use crate::nat::steer::Steering;
use crate::packet::decode::Depth;
use crate::packet::steer::Key;
use crate::stage::apply::Routed;
use crate::stage::bucket::Bucket;
use crate::stage::pipeline::{Blueprint, Pipeline};
use crate::stats::{Account, Carry, Engine, Published, Sheet};
use crate::wire::ethernet::Rewrite;

use super::tap::Tap;
use super::{Observer, TAGS, Worker};

/// What a worker is to go on with; afterwards, what it had.
pub struct Next {
    pipeline: Pipeline,
    sheet: Sheet,
    /// Where the numbers counted so far belong.
    carry: Arc<Carry>,
    published: Arc<Published>,
    log: Log,
    depth: Depth,
    follows: bool,
    relay: Option<Vec<(u8, Rewrite)>>,
    port_counters: Vec<usize>,
    routed: Option<Routed>,
    errors: Bucket,
    steering: Option<Arc<Steering>>,
    tap: Tap,
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next").finish_non_exhaustive()
    }
}

impl Next {
    /// What a worker of a compiled pipeline has of its own, but for flows. `key` hashes tuples; `published` is of the
    /// pipeline's layout.
    pub fn new(
        blueprint: &Blueprint,
        worker: usize,
        key: Key,
        carry: Arc<Carry>,
        published: Arc<Published>,
    ) -> io::Result<Next> {
        let steered = blueprint.workers > 1 && blueprint.depth >= Depth::L3;
        let depth = if steered || blueprint.follows { Depth::L4 } else { blueprint.depth };
        let routed = blueprint.ways.routed.clone();
        Ok(Next {
            pipeline: blueprint.start(worker, blueprint.few_tables()?, key, steered),
            sheet: blueprint.layout.sheet(),
            carry,
            published,
            log: blueprint.logs.get(worker).cloned().unwrap_or(Log::NONE),
            depth,
            follows: blueprint.follows,
            relay: blueprint.relay.clone(),
            port_counters: blueprint.port_counters.clone(),
            errors: Bucket::new(routed.as_ref().map_or(0, |routed| routed.errors), blueprint.workers),
            routed,
            steering: blueprint.nat.as_ref().map(|nat| nat.steering.clone()),
            tap: Tap::new(blueprint, worker),
        })
    }

    /// Where packets could be seen.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }
}

impl<I: Io, O: Observer> Worker<I, O> {
    /// Goes on with `next`, which is afterwards what was there before. To be called between turns.
    pub(super) fn adopt(&mut self, next: &mut Next) {
        debug_assert_eq!(self.following.is_some(), next.follows, "what tracks connections is there from the start");
        next.pipeline.succeed(&mut self.pipeline);
        std::mem::swap(&mut self.pipeline, &mut next.pipeline);
        next.carry.carry(&self.sheet, &mut next.sheet);
        std::mem::swap(&mut self.sheet, &mut next.sheet);
        std::mem::swap(&mut self.log, &mut next.log);
        std::mem::swap(&mut self.depth, &mut next.depth);
        std::mem::swap(&mut self.port_counters, &mut next.port_counters);
        std::mem::swap(&mut self.routed, &mut next.routed);
        std::mem::swap(&mut self.errors, &mut next.errors);
        std::mem::swap(&mut self.steering, &mut next.steering);
        self.tap.flush();
        std::mem::swap(&mut self.tap, &mut next.tap);
        self.unread = if self.depth >= Depth::L2 { 0 } else { TAGS };
        self.steered = self.handoff.is_some() && self.depth >= Depth::L3;
        self.relay_by(next.relay.as_deref());
        if let Some(routed) = &self.routed {
            self.holding.iter_mut().for_each(|holding| holding.count_as(routed.reasons));
            self.desk.iter_mut().for_each(|desk| desk.count_as(routed.reasons));
        }
        self.newly_published = Some(next.published.clone());
    }
}

impl Carry {
    /// Brings the numbers of an old layout's sheet into a new layout's. Drops for reasons that are no more count as former.
    fn carry(&self, from: &Sheet, into: &mut Sheet) {
        for (old, new) in &self.counters {
            into.counters[*new as usize] = from.counters[*old as usize];
        }
        for (old, new) in &self.reasons {
            into.reasons[*new as usize] = from.reasons[*old as usize];
        }
        let kept: u64 = into.reasons.iter().sum();
        into.reasons[Engine::Former as usize] += from.of(Account::Dropped).saturating_sub(kept);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::testkit::bench::Bench;
    use crate::testkit::packets::Packet;
    use crate::wire::tcp::{ACK, SYN};

    const WIRE: &str = "[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";

    fn policy(rules: &[(&str, &str, &str)]) -> String {
        let rule = |(name, service, action): &(&str, &str, &str)| {
            format!("[[acl.rule]]\nname = '{name}'\nfrom = ['inside']\nservice = ['{service}']\naction = '{action}'\n")
        };
        let rules: String = rules.iter().map(rule).collect();
        format!("[pipeline]\nstages = ['conntrack', 'cross', 'acl']\n{WIRE}{rules}")
    }

    fn there(port: u16) -> Packet {
        Packet::tcp(&format!("10.0.0.1:{port}"), "192.0.2.1:443")
    }

    fn back(port: u16) -> Packet {
        Packet::tcp("192.0.2.1:443", &format!("10.0.0.1:{port}"))
    }

    fn open(bench: &mut Bench, port: u16) {
        assert_eq!(bench.push("lan", &there(port).flags(SYN).sequence(1).bytes()).reason(), "sent");
        assert_eq!(
            bench.push("wan", &back(port).flags(SYN | ACK).sequence(9).acknowledgment(2).bytes()).reason(),
            "sent"
        );
        assert_eq!(bench.push("lan", &there(port).flags(ACK).sequence(2).acknowledgment(10).bytes()).reason(), "sent");
    }

    fn say(bench: &mut Bench, port: u16) -> [String; 2] {
        let request = bench.push("lan", &there(port).flags(ACK).sequence(2).acknowledgment(10).bytes());
        let answer = bench.push("wan", &back(port).flags(ACK).sequence(10).acknowledgment(2).bytes());
        [request.reason().to_owned(), answer.reason().to_owned()]
    }

    #[test]
    fn flows_that_stay_allowed_never_notice() {
        let mut bench = Bench::new(&policy(&[("web", "tcp/443", "allow")]));
        open(&mut bench, 1000);
        for (round, name) in ["first", "web", "second", "web"].into_iter().enumerate() {
            // Other rules before it, and another name for its own.
            let before = [("a", "udp/1", "deny"), ("b", "udp/2", "deny")];
            let rules = [&before[..round % 3], &[(name, "tcp/443", "allow")]].concat();
            bench.go_over(&policy(&rules));
            assert_eq!(say(&mut bench, 1000), ["sent", "sent"]);
            open(&mut bench, 2000 + round as u16);
        }
        assert_eq!(bench.tables().expect("tracked").v4.occupancy().used, 5);
    }

    #[test]
    fn flows_that_are_forbidden_now_end() {
        let mut bench = Bench::new(&policy(&[("web", "tcp/443", "allow")]));
        open(&mut bench, 1000);
        open(&mut bench, 1001);
        bench.go_over(&policy(&[("web", "tcp/443", "deny")]));
        // The one that says something, either way, and the one that is silent.
        assert!(say(&mut bench, 1000).iter().all(|reason| reason != "sent"));
        bench.pass(Duration::from_millis(100), true);
        assert_eq!(bench.tables().expect("tracked").v4.occupancy().used, 0);
        assert_eq!(bench.counter("conntrack", "revoked"), 2);
    }

    #[test]
    fn numbers_go_on_under_their_names() {
        let mut bench = Bench::new(&policy(&[("old", "udp/1", "deny"), ("web", "tcp/443", "allow")]));
        open(&mut bench, 1000);
        assert_eq!(bench.push("lan", &Packet::udp("10.0.0.1:5", "192.0.2.1:1").bytes()).reason(), "acl.denied");
        let web = bench.counter("acl/rule", "web");
        assert_eq!(web, 3);
        bench.go_over(&policy(&[("web", "tcp/443", "allow"), ("new", "udp/1", "deny")]));
        assert_eq!((bench.counter("acl/rule", "web"), bench.counter("acl/rule", "new")), (web, 0));
        let dropped = |bench: &Bench, name: &str| {
            let reason = bench.blueprint().layout.reason(name).expect("a reason");
            bench.sheet().reasons[usize::from(reason.0)]
        };
        assert_eq!(dropped(&bench, "acl.denied"), 1);
        // Without the stage there is nobody to have dropped it, and the account still closes.
        bench.go_over(&format!("[pipeline]\nstages = ['conntrack', 'cross']\n{WIRE}"));
        assert_eq!(dropped(&bench, "engine.former"), 1);
        assert_eq!(say(&mut bench, 1000), ["sent", "sent"]);
        bench.sheet().check_law(0).expect("every packet is accounted for");
    }

    #[test]
    fn what_passed_unread_is_read_and_the_other_way_round() {
        let mut bench = Bench::new(&format!("[pipeline]\nstages = ['cross']\n{WIRE}"));
        let udp = Packet::udp("10.0.0.1:5", "192.0.2.1:1").bytes();
        assert_eq!(bench.push("lan", &udp).reason(), "sent");
        let guarded = format!("[pipeline]\nstages = ['guard', 'cross']\n{WIRE}[guard]\ndrop = ['10.0.0.0/8']\n");
        bench.go_over(&guarded);
        assert_eq!(bench.push("lan", &udp).reason(), "guard.blocked-source");
        bench.go_over(&format!("[pipeline]\nstages = ['cross']\n{WIRE}"));
        assert_eq!(bench.push("lan", &udp).reason(), "sent");
    }
}
