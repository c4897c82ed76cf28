//! The worker's part in letting fragments follow: it knows which are its own, holds their frames, and lets them go.
//!
//! Decides nothing about a fragment (`flow::fragments` does) and reads no header (`packet::fragment` does). A fragment comes
//! to the owner of its datagram first, by `steer`. Here it gets its datagram's facts and goes on to the flow's owner, if that
//! is another worker with the facts before its first byte, so that the owner takes it for what it is.

use crate::flow::fragments::{Fate, Fragments, SLOTS};
use crate::io::Io;
use crate::packet::fragment::{Facts, Piece};
use crate::packet::meta::flag;
use crate::packet::steer::{self, owner};
use crate::packet::{BATCH, Frame, Mask, bits};
use crate::stats::{Account, Engine, Reason};

use super::{Observer, Worker, whose};

/// What a worker has where fragments are followed.
pub(super) struct Following {
    fragments: Fragments,
    /// By the number they are held under.
    held: Box<[Frame]>,
}

impl Following {
    pub(super) fn new() -> Following {
        Following { fragments: Fragments::new(), held: (0..SLOTS).map(|_| Frame::EMPTY).collect() }
    }
}

impl<I: Io, O: Observer> Worker<I, O> {
    /// Completes the facts of the batch's fragments, or holds or drops them. The result are those whose hash is final, and of
    /// these those with facts of their datagram.
    #[cold]
    pub(super) fn follow(&mut self, now: u64) -> (Mask, Mask) {
        let Some(Following { fragments, held }) = &mut self.following else { return (0, 0) };
        let (steering, key, mut complete) = (self.steering.as_deref(), self.key, 0);
        let batch = &mut *self.batch;
        let workers = self.handoff.as_ref().map(|handoff| (handoff.me, handoff.to.len()));
        let is_mine = |hash: u32| workers.is_none_or(|(me, workers)| owner(hash, workers) == me);
        for i in bits(batch.fragments & batch.live) {
            let (meta, frame) = (&mut batch.metas[i], &mut batch.frames[i]);
            if let Some(facts) = Facts::stowed(frame) {
                facts.complete(meta);
                complete |= 1 << i;
                continue;
            }
            let hash = steer::datagram(meta, frame, self.key);
            if !is_mine(hash) {
                meta.hash = hash;
                continue;
            }
            let Some(piece) = Piece::of(meta, frame) else {
                batch.drop(i, Engine::Bug.into());
                continue;
            };
            let first = meta.has(flag::FIRST_FRAGMENT);
            let first = first.then(|| Facts::of(meta, steer::flow(meta, frame, self.key)));
            match fragments.judge(meta, &piece, hash, first, now) {
                Fate::Pass(facts) => {
                    facts.complete(meta);
                    complete |= 1 << i;
                    let mine = workers.is_none_or(|(me, workers)| whose(steering, meta, frame, key, workers) == me);
                    // Every port leaves room before its frames.
                    if !mine && !facts.stow(frame) {
                        batch.drop(i, Engine::Bug.into());
                    }
                }
                Fate::Hold(number) => {
                    held[number] = batch.take(i);
                    self.sheet.account(Account::Held, 1);
                }
                Fate::Drop(reason) => batch.drop(i, reason.into()),
            }
        }
        (batch.fragments, complete)
    }

    /// True if there are held frames to let go of.
    #[inline]
    pub(super) fn has_decided(&self) -> bool {
        self.following.as_ref().is_some_and(|following| following.fragments.has_decided())
    }

    /// Takes the held frames that may go on through the pipeline, and drops those that may not; for `reason`, if one is
    /// given. The batch must be done with.
    #[cold]
    pub(super) fn let_go(&mut self, reason: Option<Reason>, now: u64) {
        while let Some(Following { fragments, held }) = &mut self.following {
            let mut reasons = [None; BATCH];
            let mut n = 0;
            while n < BATCH
                && let Some((number, fate)) = fragments.decided()
            {
                let frame = &mut self.batch.frames[n];
                *frame = held[number].take();
                reasons[n] = match fate {
                    Ok(facts) => (!facts.stow(frame)).then_some(Engine::Bug.into()),
                    Err(why) => Some(reason.unwrap_or(why.into())),
                };
                n += 1;
            }
            if n == 0 {
                break;
            }
            self.sheet.release(n as u64);
            self.batch.begin(n);
            self.read();
            let batch = &mut *self.batch;
            for i in bits(batch.live) {
                if let Some(reason) = reasons[i] {
                    batch.drop(i, reason);
                }
            }
            self.process(now);
        }
    }

    /// Gives up what waited too long: a bounded amount of work.
    pub(super) fn expire_fragments(&mut self, now: u64) {
        if let Some(following) = &mut self.following {
            following.fragments.expire(now);
            self.let_go(None, now);
        }
    }

    /// Gives back every frame held.
    pub(super) fn stop_following(&mut self) {
        if let Some(following) = &mut self.following {
            following.fragments.stop();
            self.let_go(Some(Engine::Stopping.into()), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::super::{Handoff, Mailbox, Setup};
    use super::*;
    use crate::config::Config;
    use crate::config::source::Source;
    use crate::dpdk::ring::ring;
    use crate::flow::fragments::LIFE;
    use crate::flow::region::Placement;
    use crate::io::memory::MemoryIo;
    use crate::packet::Meta;
    use crate::packet::steer::Key;
    use crate::stage::pipeline::{Blueprint, Witness, compile};
    use crate::testkit::bench::TWO_PORTS;
    use crate::testkit::packets::Packet;
    use crate::wire::{self, protocol};

    const PASS: &str = "[pipeline]\nstages = ['guard', 'cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";
    const DNS: &str = "[pipeline]\nstages = ['cross', 'acl']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
                       [acl]\n[[acl.rule]]\nname = 'dns'\nservice = ['udp/53', 'icmp/8/0']\naction = 'allow'\n";
    const START: u64 = 1_700_000_000_000_000_000;

    /// What was sent and dropped, in order.
    #[derive(Default)]
    struct Ends(Vec<(Vec<u8>, Meta, Reason)>);

    impl Witness for Ends {}

    impl Observer for Ends {
        const LISTENS: bool = true;
        fn sent(&mut self, frame: &Frame, meta: &Meta) {
            self.0.push((frame.bytes().to_vec(), meta.clone(), Reason::NONE));
        }
        fn dropped(&mut self, frame: &Frame, meta: &Meta, reason: Reason) {
            self.0.push((frame.bytes().to_vec(), meta.clone(), reason));
        }
    }

    type Tested = Worker<MemoryIo, Ends>;

    /// One or two workers with the same blueprint.
    fn workers(toml: &str, count: usize, follows: bool) -> (Vec<Tested>, Blueprint) {
        let config = Config::parse(&Source::new("follow.toml", &format!("{TWO_PORTS}{toml}"))).expect("good");
        let mut blueprint = compile(&config, count, &[]).expect("good");
        blueprint.follows = follows;
        let start = |io: MemoryIo, index: usize, handoff: Option<Handoff>| {
            let (mtus, links) = (vec![1500, 1500], Arc::new(AtomicU64::new(u64::MAX)));
            let tables = blueprint.tables(Placement::default()).expect("memory");
            let (blueprint, key) = (blueprint.clone(), Key::seeded(11));
            let setup = Setup { blueprint, index, burst: 8, mtus, strip: 0, links, key, tables, handoff, own: None };
            Worker::new(io, Ends::default(), setup)
        };
        let io = MemoryIo::new(2, 512, 2000);
        if count == 1 {
            return (vec![start(io, 0, None)], blueprint);
        }
        let ((to_one, from_zero), (to_zero, from_one)) = (ring(256).expect("a ring"), ring(256).expect("a ring"));
        let handoff = |me, to, from| Handoff { me, to, from: vec![from], out: vec![None, None], sends: Vec::new() };
        let beside = io.beside();
        let zero = start(io, 0, Some(handoff(0, vec![None, Some(to_one)], from_one)));
        let one = start(beside, 1, Some(handoff(1, vec![Some(to_zero), None], from_zero)));
        (vec![zero, one], blueprint)
    }

    fn push(worker: &mut Tested, bytes: &[u8], now: u64) {
        assert!(worker.io().push(0, bytes, |_| {}));
        worker.turn(now);
    }

    /// How the packets ended since the last time: `sent`, or the reason.
    fn ends(worker: &mut Tested, blueprint: &Blueprint) -> Vec<String> {
        worker.sheet().check_law(0).expect("every packet is accounted for");
        let name = |reason| if reason == Reason::NONE { "sent".into() } else { blueprint.layout.reason_name(reason) };
        worker.observer().0.drain(..).map(|(_, _, reason)| name(reason)).collect()
    }

    fn nothing_left(workers: &mut [Tested]) {
        for worker in workers {
            worker.sheet().check_law(0).expect("every packet is accounted for");
            assert_eq!(worker.sheet().of(Account::Held), 0);
            for port in 0..2 {
                while worker.io().pull(port, |_| ()).is_some() {}
            }
            assert_eq!(worker.io().waiting(), 0);
        }
    }

    #[test]
    fn rules_see_a_fragment_as_part_of_its_datagram() {
        let (mut workers, blueprint) = workers(DNS, 1, true);
        let worker = &mut workers[0];
        let parts = |to: &str, id| Packet::udp("10.0.0.1:999", to).payload(&[7; 100]).id(id).fragments(48);
        let (good, bad) = (parts("192.0.2.1:53", 1), parts("192.0.2.1:54", 2));
        push(worker, &good[2], START);
        push(worker, &bad[1], START);
        assert!(ends(worker, &blueprint).is_empty());
        assert_eq!(worker.sheet().of(Account::Held), 2);
        push(worker, &good[0], START);
        assert_eq!(ends(worker, &blueprint), ["sent", "sent"]);
        push(worker, &good[1], START);
        push(worker, &bad[0], START);
        push(worker, &bad[2], START);
        let denied = "acl.denied-default";
        assert_eq!(ends(worker, &blueprint), ["sent", denied, denied, denied]);
        let ping = Packet::echo_request("10.0.0.1", "192.0.2.1", 5, 1).payload(&[7; 64]).id(3).fragments(32);
        ping.iter().rev().for_each(|part| push(worker, part, START));
        assert_eq!(ends(worker, &blueprint), ["sent"; 3]);
        nothing_left(&mut workers);
        assert_eq!(workers[0].io().in_use(), 0, "every buffer came back");

        // Where fragments are not followed they show no ports.
        let (mut workers, blueprint) = self::workers(DNS, 1, false);
        good.iter().for_each(|part| push(&mut workers[0], part, START));
        assert_eq!(ends(&mut workers[0], &blueprint), ["sent", denied, denied]);
    }

    #[test]
    fn what_does_not_follow_is_dropped_by_name() {
        let (mut workers, blueprint) = workers(PASS, 1, true);
        let worker = &mut workers[0];
        let whole = Packet::tcp("[2001:db8::1]:1000", "[2001:db8::2]:80").payload(&[7; 200]);
        let fragment = |id, start, more| {
            let body = Packet::ip("2001:db8::1", "2001:db8::2", protocol::TCP).payload(&[9; 40]);
            body.id(id).fragment(start, more).bytes()
        };
        let parts = whole.clone().id(1).fragments(48);
        push(worker, &parts[2], START);
        push(worker, &parts[0], START);
        push(worker, &parts[0], START);
        assert_eq!(ends(worker, &blueprint), ["sent", "sent", "fragment.duplicate"]);
        push(worker, &fragment(1, 80, true), START);
        push(worker, &parts[1], START);
        assert_eq!(ends(worker, &blueprint), ["fragment.overlap"; 2]);
        push(worker, &fragment(2, 8, true), START);
        assert_eq!(ends(worker, &blueprint), ["fragment.tiny"]);
        push(worker, &fragment(3, 400, false), START);
        push(worker, &fragment(3, 480, true), START);
        assert_eq!(ends(worker, &blueprint), ["fragment.bad-end"; 2]);

        // Nobody waits for ever, and nothing is left when all stop.
        push(worker, &fragment(4, 80, true), START);
        push(worker, &fragment(5, 80, true), START + 1);
        let mailbox = Mailbox::default();
        worker.housekeep(START + LIFE - 1, &mailbox);
        assert!(ends(worker, &blueprint).is_empty());
        worker.housekeep(START + LIFE, &mailbox);
        assert_eq!(ends(worker, &blueprint), ["fragment.timeout"]);
        worker.drain();
        assert_eq!(ends(worker, &blueprint), ["engine.stopping"]);
        nothing_left(&mut workers);
        assert_eq!(workers[0].io().in_use(), 0, "every buffer came back");
    }

    #[test]
    fn a_flood_holds_no_more_than_its_room() {
        let (mut workers, blueprint) = workers(PASS, 1, true);
        let worker = &mut workers[0];
        for id in 0..2000u32 {
            let body = Packet::ip("10.0.0.1", "10.0.0.2", protocol::UDP).payload(&[9; 40]).id(id);
            assert!(worker.io().push(0, &body.fragment(64, true).bytes(), |_| {}));
            if id % 64 == 63 {
                while worker.turn(START) > 0 {}
                assert!(worker.sheet().of(Account::Held) <= 256);
            }
        }
        while worker.turn(START) > 0 {}
        let full = blueprint.layout.reason("fragment.hold-full").expect("a reason");
        assert_eq!(worker.sheet().reasons[usize::from(full.0)], 2000 - 256);
        worker.drain();
        nothing_left(&mut workers);
        assert_eq!(workers[0].io().in_use(), 0, "every buffer came back");
    }

    #[test]
    fn flows_take_their_fragments_along() {
        const TRACKED: &str = "[memory]\nflows = 1000\n\
                               [pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
                               [cross]\nwire = [{ ports = ['lan', 'wan'] }]\n\
                               [acl]\n[[acl.rule]]\nfrom = 'inside'\nservice = ['udp/53', 'tcp/80']\naction = 'allow'\n";
        const ROUNDS: u16 = 20;
        for count in [1, 2] {
            let (mut workers, blueprint) = workers(TRACKED, count, true);
            let mut round = |port: u8, frames: Vec<Vec<u8>>, worker: u16| {
                for bytes in frames.iter().rev() {
                    assert!(workers[usize::from(worker) % count].io().push(port, bytes, |_| {}));
                }
                while workers.iter_mut().map(|worker| worker.turn(START)).sum::<usize>() > 0 {}
                let mut all: Vec<String> = workers.iter_mut().flat_map(|worker| ends(worker, &blueprint)).collect();
                all.dedup();
                all
            };
            for n in 0..ROUNDS {
                let (a, v6) = (format!("10.0.0.1:{}", 1000 + n), format!("[2001:db8::1]:{}", 1000 + n));
                let parts =
                    |from: &str, to: &str, id: u32| Packet::udp(from, to).payload(&[7; 100]).id(id).fragments(48);
                let id = u32::from(n);
                for (a, b, c) in [(&a, "192.0.2.1:53", "192.0.2.1:54"), (&v6, "[2001:db8::2]:53", "[2001:db8::2]:54")] {
                    assert_eq!(round(1, parts(b, a, id), n / 2), ["acl.denied-default"], "nobody asked");
                    assert_eq!(round(0, parts(a, b, id), n), ["sent"]);
                    assert_eq!(round(1, parts(b, a, 100 + id), n / 2), ["sent"]);
                    assert_eq!(round(1, parts(c, a, 200 + id), n / 2), ["acl.denied-default"]);
                }
                let segment = Packet::tcp(&a, "192.0.2.1:80").flags(wire::tcp::ACK).payload(&[7; 100]).id(id);
                assert_eq!(round(0, segment.fragments(48), n), ["conntrack.no-flow"]);
            }
            nothing_left(&mut workers);
            assert_eq!(workers[0].io().in_use(), 0);
            let at = blueprint.layout.counter_labels().iter().position(|label| label.name == "new").expect("a counter");
            let flows: u64 = workers.iter().map(|worker| worker.sheet().counters[at]).sum();
            assert_eq!(flows, u64::from(2 * ROUNDS), "one flow for all fragments of both directions");
        }
    }

    /// Datagrams of every kind, all of other flows.
    fn datagram(n: u32) -> Packet {
        let payload = [n as u8; 200];
        match n % 4 {
            0 => Packet::udp(&format!("10.0.0.{}:1000", n + 1), "192.0.2.1:53"),
            1 => Packet::tcp(&format!("[2001:db8::{}]:1000", n + 1), "[2001:db8::ffff]:80")
                .extension(protocol::HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]),
            2 => Packet::echo_request(&format!("10.0.1.{}", n + 1), "192.0.2.1", 77, 1),
            _ => Packet::sctp(&format!("10.0.2.{}:5000", n + 1), "192.0.2.1:5001").vlan(9),
        }
        .payload(&payload)
        .id(n)
    }

    const DATAGRAMS: u32 = 6;

    /// (datagram, fragment, worker it arrives at, how often); in any order.
    fn arrivals() -> impl Strategy<Value = Vec<(u32, usize, usize, usize)>> {
        let all: Vec<(u32, usize)> =
            (0..DATAGRAMS).flat_map(|n| (0..datagram(n).fragments(32).len()).map(move |part| (n, part))).collect();
        let count = all.len();
        let copies = prop_oneof![1 => Just(0usize), 7 => Just(1), 1 => Just(2)];
        (Just(all).prop_shuffle(), prop::collection::vec((0usize..2, copies), count)).prop_map(|(all, rest)| {
            all.into_iter().zip(rest).map(|((n, part), (at, copies))| (n, part, at, copies)).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn whatever_leaves_is_part_of_its_datagram(arrivals in arrivals(), count in 1usize..3, together in 1usize..20) {
            let (mut workers, _) = workers(PASS, count, true);
            let parts: Vec<Vec<Vec<u8>>> = (0..DATAGRAMS).map(|n| datagram(n).fragments(32)).collect();
            let mut pushed = 0;
            // A whole packet of each flow shows whose it is.
            for n in 0..DATAGRAMS {
                assert!(workers[n as usize % count].io().push(0, &datagram(n).bytes(), |_| {}));
                pushed += 1;
            }
            let turn = |workers: &mut Vec<Tested>| while workers.iter_mut().map(|worker| worker.turn(START)).sum::<usize>() > 0 {};
            turn(&mut workers);
            let mut came = vec![vec![0; 20]; DATAGRAMS as usize];
            for (at, (n, part, worker, copies)) in arrivals.iter().enumerate() {
                for _ in 0..*copies {
                    assert!(workers[worker % count].io().push(0, &parts[*n as usize][*part], |_| {}));
                    came[*n as usize][*part] += 1;
                    pushed += 1;
                }
                if at % together == 0 {
                    turn(&mut workers);
                }
            }
            turn(&mut workers);
            workers.iter_mut().for_each(Worker::drain);
            let mut left = vec![vec![0; 20]; DATAGRAMS as usize];
            let mut owners = [None; DATAGRAMS as usize];
            let mut ended = 0;
            for (index, worker) in workers.iter_mut().enumerate() {
                for (bytes, meta, reason) in std::mem::take(&mut worker.observer().0) {
                    ended += 1;
                    let n = (0..DATAGRAMS).find(|n| datagram(*n).bytes() == bytes || parts[*n as usize].contains(&bytes));
                    let n = n.expect("bytes pass unchanged") as usize;
                    if reason != Reason::NONE {
                        continue;
                    }
                    let (mut heap, whole) = (crate::packet::frame::Heap::new(1, 2000), datagram(n as u32).bytes());
                    let mut one = crate::testkit::packets::batch(&mut heap, [&whole]);
                    crate::packet::decode::decode(&mut one, crate::packet::decode::Depth::L4);
                    let whole = one.metas[0].clone();
                    crate::testkit::packets::give_back(&mut heap, &mut one);
                    prop_assert_eq!(
                        (meta.sport, meta.dport, meta.proto, meta.detail, meta.flags & (flag::PORTS | flag::ECHO)),
                        (whole.sport, whole.dport, whole.proto, whole.detail, whole.flags & (flag::PORTS | flag::ECHO))
                    );
                    prop_assert!(meta.any(flag::L4 | flag::BORROWED) && meta.has(flag::LATER_FRAGMENT) != meta.has(flag::L4));
                    // A single worker's whole packets are not hashed here.
                    let hash = if count > 1 { meta.hash } else { 0 };
                    let owner = *owners[n].get_or_insert((index, hash));
                    prop_assert_eq!(owner, (index, hash), "one worker has the flow and all its fragments");
                    if let Some(part) = parts[n].iter().position(|part| *part == bytes) {
                        left[n][part] += 1;
                    }
                }
            }
            prop_assert_eq!(ended, pushed);
            for (came, left) in came.iter().zip(&left) {
                for (came_part, left_part) in came.iter().zip(left) {
                    // Nothing passes without its first, and with it everything that came.
                    prop_assert_eq!(*left_part > 0, *came_part > 0 && came[0] > 0);
                    prop_assert!(left_part <= came_part);
                }
            }
            nothing_left(&mut workers);
            prop_assert_eq!(workers[0].io().in_use(), 0);
        }
    }
}
