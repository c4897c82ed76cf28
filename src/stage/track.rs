//! What a worker does at `conntrack`: finds each packet's flow, follows its protocol, replays its action; and makes entries of
//! what the flow stages decided for the first packets of new flows.
//!
//! Owns the way from a batch to the tables of `flow` and back. Which segments a connection allows is `flow::tcp`'s matter, and
//! which flows are allowed is the flow stages'.
//!
//! - A packet that finds its flow on another port than expected is judged as fresh for that direction.
//! - Several packets of one new flow in a batch: the first makes the entry, the others then find it, in order.
//! - An ICMP error belongs to the flow it quotes and passes with it alone (RFC 5927).
//! - What is not IP is judged packet by packet.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable;

use crate::flow::entry::{self, Body, Entry, Key as FlowKey, Scope, mark, opposite};
use crate::flow::filter::Filter;
use crate::flow::limits::{Ledger, Limits, Token};
use crate::flow::table::{Candidate, Table};
use crate::flow::tcp::{self, Segment, States, Tcp};
use crate::flow::timeout::{Class, has_passed, ticks};
use crate::flow::{Drops, ORIGINAL, REPLY, Tracking};
use crate::nat::Nat;
use crate::packet::batch::Await;
use crate::packet::meta::flag;
use crate::packet::steer::{self, Key};
use crate::packet::translate::{translate, translate_error};
use crate::packet::{BATCH, Batch, Frame, Mask, Meta, NO_FLOW, NO_RULE, SELF_PORT, bits};
use crate::route::adjacency::State;
use crate::stats::{Lines, Reason};
use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::tcp::{ACK, SYN};
use crate::wire::udp::Udp;
use crate::wire::{checksum, icmpv6, protocol};

use super::apply::{Stop, Way, Ways, apply, halt, refuse};
use super::conntrack::{Around, Counters, Settings, Tables};
use super::route::BACK;
use super::synproxy::{self, Note, Notes};
use super::visit::Visit;
use super::{Action, Cx, FlowCommit, FlowPlan, Row, rule_counter};

mod nat;
mod proxy;

pub use nat::permits;
use nat::{Fault, Translator};
use proxy::{Proxy, challenge, toward_client, toward_server};

/// Entries the hand visits in one upkeep at least, and how many upkeeps a round may take at most: with one every 5 ms, a
/// table of ten million is gone over in 10 s.
const VISITS: usize = 1024;
const ROUND: usize = 2000;

/// Room for all classes: a power of two, so that a number is brought into it without a comparison.
const CLASSES: usize = Class::ALL.len().next_power_of_two();

/// A flow stage with its worker's part, and whether it decides the egress.
pub type FlowStage = (Arc<dyn FlowPlan>, Box<dyn FlowCommit>, bool);

/// Connection tracking in one worker.
pub struct Tracker {
    settings: Arc<Settings>,
    around: Around,
    tables: Tables,
    key: Key,
    /// True if steering has hashed the packets already.
    hashed: bool,
    proxy: Option<Proxy>,
    nat: Option<Translator>,
    /// Packets of our own to be sent.
    notes: Notes,
    /// Facts by which fresh packets are judged: those of the batch stay as they came.
    subjects: Box<[Meta; BATCH]>,
    /// Facts of ways back, and of flows that are judged again.
    facts: Box<[Meta; BATCH]>,
    back: Box<[Action; BATCH]>,
    /// How far the flows of former rules have been judged again, IPv4 and IPv6; none if all have.
    renewing: Option<[u32; 2]>,
}

/// Flows judged again in one upkeep, one by one: a worker that receives must not be kept from it for long.
const RENEWED: usize = 64;

/// Packets of one rule in a row, counted together.
struct Run {
    rule: u16,
    packets: u64,
    bytes: u64,
}

/// What the tables' owner lends while packets are looked at.
struct Desk<'a> {
    settings: &'a Settings,
    around: &'a Around,
    ways: &'a Ways,
    proxy: Option<&'a Proxy>,
    nat: Option<&'a mut Translator>,
    notes: &'a mut Notes,
    /// In ticks.
    now: u32,
    /// By class: when a flow is forgotten that is seen now.
    deadlines: [u32; CLASSES],
    run: Run,
    ignored: u64,
}

/// What a packet of a flow comes to.
enum Found {
    /// It passes by what its entry says.
    Passes,
    /// It does not pass.
    Refused(Drops),
    /// It does not go on now.
    Stops(Stop, Await),
    /// Its entry was made by other rules than there are now.
    Stale,
    /// It did not come in where its entry expects it.
    Elsewhere,
    /// Its entry is no more: it is the first of a new flow.
    Over,
}

impl Tracker {
    /// A worker's own tracking. `nat`: what is translated, which of the workers this is, and how many there are. `hashed`:
    /// steering has set every packet's hash with this key.
    pub fn new(
        settings: Arc<Settings>,
        around: Around,
        nat: Option<(&Nat, usize, usize)>,
        mut tables: Tables,
        key: Key,
        hashed: bool,
    ) -> Tracker {
        if let Some(limits) = &around.limits {
            count_flows(&mut tables.v4, limits);
            count_flows(&mut tables.v6, limits);
        }
        tables.hash_by(key);
        let proxy = Proxy::new(&settings, key);
        let nat = nat.map(|(nat, worker, workers)| Translator::new(nat, worker, workers, key, &mut tables));
        let [subjects, facts] = std::array::from_fn(|_| Box::new([const { Meta::UNKNOWN }; BATCH]));
        let back = Box::new([Action::OPEN; BATCH]);
        let notes = Notes::default();
        let renewing = None;
        Tracker { settings, around, tables, key, hashed, proxy, nat, notes, subjects, facts, back, renewing }
    }

    /// Takes over the flows of the worker's tracking that this one follows, which gets these tables. Routes have been changed
    /// `changes` times.
    pub fn succeed(&mut self, former: &mut Tracker, changes: u32) {
        std::mem::swap(&mut self.tables, &mut former.tables);
        self.around.succeed(&former.around, changes);
        let same = |a: &Option<Arc<Limits>>, b: &Option<Arc<Limits>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if !same(&self.around.limits, &former.around.limits) {
            // Of former rules nobody knows the flows by now: they are counted for their sources, and for rules as they are judged.
            match &self.around.limits {
                Some(limits) => {
                    count_flows(&mut self.tables.v4, limits);
                    count_flows(&mut self.tables.v6, limits);
                }
                None => {
                    self.tables.v4.keep_ledger(None);
                    self.tables.v6.keep_ledger(None);
                }
            }
        }
        if let Some(nat) = &mut self.nat {
            nat.take_over(self.key, &mut self.tables);
        }
        self.renewing = Some([0; 2]);
    }

    /// A packet to be sent besides those that came.
    #[inline]
    pub fn take_note(&mut self) -> Option<Note> {
        self.notes.take()
    }

    /// The flows.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The flows, to be changed between turns.
    pub fn tables_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// Copies the entry of the flow that packets with these facts belong to, if there is one, into the room `rows` has left.
    pub fn copy(&self, facts: &Meta, rows: &mut Vec<Row>) {
        fn copy<E: Entry>(table: &Table<E>, hash: u32, key: &E::Key, rows: &mut Vec<Row>) {
            let Some(flow) = table.lookup(hash, key) else { return };
            let words = bytemuck::bytes_of(table.entry(flow >> 1)).chunks_exact(size_of::<Row>());
            if rows.capacity() - rows.len() >= words.len() {
                rows.extend(words.map(bytemuck::pod_read_unaligned::<Row>));
            }
        }
        let (hash, scope) = (steer::hash(facts, self.key), self.around.scope(facts));
        if facts.has(flag::IPV4) {
            copy(&self.tables.v4, hash, &FlowKey::of(facts, scope), rows);
        } else if facts.has(flag::IPV6) {
            copy(&self.tables.v6, hash, &FlowKey::of(facts, scope), rows);
        }
    }

    /// True if a packet is of a flow that is meant; if it has none, it is taken for the first of one.
    pub fn meets(&self, facts: &Meta, filter: &Filter) -> bool {
        match facts.flow {
            NO_FLOW => filter.matches_packet(facts),
            flow if facts.has(flag::IPV4) => filter.matches(self.tables.v4.entry(flow >> 1)),
            flow if facts.has(flag::IPV6) => filter.matches(self.tables.v6.entry(flow >> 1)),
            _ => false,
        }
    }

    /// Files the copy of an entry that another worker's [`copy`](Tracker::copy) made for these facts; false if it is none, or
    /// if there is no room. For those who explain.
    pub fn adopt(&mut self, facts: &Meta, rows: &[Row]) -> bool {
        fn adopt<E: Entry>(table: &mut Table<E>, hash_key: Key, rows: &[Row]) -> bool {
            let bytes: &[u8] = bytemuck::cast_slice(rows);
            if bytes.len() != size_of::<E>() {
                return false;
            }
            let entry: E = bytemuck::pod_read_unaligned(bytes);
            let hash = steer::hash(&entry.key().facts(), hash_key);
            table.insert_entry(entry.with(*entry.key(), Body { hash, ..*entry.body() }), |_| ()).is_ok()
        }
        match facts.has(flag::IPV4) {
            true => adopt(&mut self.tables.v4, self.key, rows),
            false => adopt(&mut self.tables.v6, self.key, rows),
        }
    }

    /// Finds the flows of all live packets. Those that have one are replayed or dropped; the rest are `batch.fresh`.
    #[inline]
    pub fn replay(&mut self, batch: &mut Batch, stages: &[FlowStage], ways: &Ways, cx: &mut Cx<'_>) {
        if let Some(routed) = &ways.routed {
            self.around.routed(routed.routing.generation.load(Ordering::Acquire));
        }
        let (mut v4, mut v6, mut errors): (Mask, Mask, Mask) = (0, 0, 0);
        let mut buckets = [0; BATCH];
        for i in bits(batch.live) {
            let meta = &mut batch.metas[i];
            match meta.flags & (flag::IPV4 | flag::IPV6 | flag::ICMP_ERROR) {
                flag::IPV4 => {
                    v4 |= 1 << i;
                    if !self.hashed {
                        meta.hash = steer::hash(meta, self.key);
                    }
                    buckets[i] = self.tables.v4.prefetch(meta.hash);
                }
                flag::IPV6 => {
                    v6 |= 1 << i;
                    if !self.hashed {
                        meta.hash = steer::hash(meta, self.key);
                    }
                    buckets[i] = self.tables.v6.prefetch(meta.hash);
                }
                0 => {}
                _ => errors |= 1 << i,
            }
        }
        batch.fresh = batch.live & !errors;
        let mut desk =
            Desk::new(&self.settings, &self.around, ways, self.proxy.as_ref(), self.nat.as_mut(), &mut self.notes, cx);
        if v4 != 0 {
            look_up(&mut self.tables.v4, v4, &buckets, batch, &mut desk, cx);
        }
        if v6 != 0 {
            look_up(&mut self.tables.v6, v6, &buckets, batch, &mut desk, cx);
        }
        desk.settle(cx);
        if errors != 0 {
            self.errors(errors, batch, stages, ways, cx);
        }
    }

    /// Judges the fresh packets, makes entries for those that begin a flow, and applies what was decided.
    pub fn admit(
        &mut self,
        batch: &mut Batch,
        stages: &mut [FlowStage],
        actions: &mut [Action; BATCH],
        ways: &Ways,
        cx: &mut Cx<'_>,
        judged: &mut impl FnMut(usize, Mask, Mask, &[Meta; BATCH], &[Action; BATCH]),
    ) {
        let fresh = batch.fresh;
        let later = followers(fresh, batch);
        let mut todo = 0;
        // What passes without an entry, and of that what passes without a rule.
        let (mut stateless, mut unruled): (Mask, Mask) = (0, 0);
        for i in bits(fresh) {
            actions[i] = Action::OPEN;
            let (frame, meta) = (&batch.frames[i], &batch.metas[i]);
            if !meta.any(flag::IPV4 | flag::IPV6) {
                stateless |= 1 << i;
            } else if self.settings.neighbor_discovery && self.is_link_upkeep(frame, meta) {
                stateless |= 1 << i;
                unruled |= 1 << i;
            } else if meta.flow == NO_FLOW
                && later & (1 << i) == 0
                && !self.may_begin(meta)
                && !self.proves(frame, meta, cx.now)
            {
                batch.drop(i, self.settings.reasons.at(Drops::NoFlow));
                continue;
            }
            todo |= 1 << i;
        }
        for i in bits(todo) {
            self.subjects[i].clone_from(&batch.metas[i]);
        }
        if let Some(nat) = &mut self.nat {
            nat.prepare(todo, &self.tables, batch, &mut self.subjects, actions);
        }
        let mut denied = judge(stages, todo, unruled, &mut self.subjects, actions, judged);
        // What the box answers itself, at once, needs no flow.
        for i in bits(todo & !denied) {
            let own = actions[i].out == SELF_PORT && self.subjects[i].dst == batch.metas[i].dst;
            stateless |= Mask::from(own && is_asking(&batch.metas[i])) << i;
        }
        let allowed = todo & !denied & !stateless;
        for i in bits(allowed) {
            self.facts[i] = way_back(&self.subjects[i], actions[i].out);
            self.back[i] = Action::OPEN;
        }
        // The way back is not judged: whoever may ask may be answered. But it must be known where it leads.
        for (plan, _, _) in stages.iter().filter(|(_, _, egress)| *egress) {
            plan.judge(allowed, &mut self.facts, &mut self.back);
        }
        let firsts = (allowed & !later).count_ones() as usize;
        self.tables.v4.prefetch_oldest(firsts);
        self.tables.v6.prefetch_oldest(firsts);
        let mut admitted = stateless & !denied;
        let mut desk =
            Desk::new(&self.settings, &self.around, ways, self.proxy.as_ref(), self.nat.as_mut(), &mut self.notes, cx);
        for i in bits(todo & !stateless) {
            let meta = &batch.metas[i];
            let case = Case { i, denied: denied & (1 << i) != 0, later: later & (1 << i) != 0 };
            let outcome = if meta.has(flag::IPV4) {
                first(&mut self.tables.v4, case, batch, &self.subjects, stages, actions, &self.back, &mut desk, cx)
            } else {
                first(&mut self.tables.v6, case, batch, &self.subjects, stages, actions, &self.back, &mut desk, cx)
            };
            match outcome {
                First::Begins => admitted |= 1 << i,
                First::Passes | First::Answered => denied &= !(1 << i),
                First::Stops(stop, awaited) => {
                    denied &= !(1 << i);
                    halt(stop, i, batch, awaited);
                }
                First::Denied => denied |= 1 << i,
                First::Refused(reason) => {
                    denied &= !(1 << i);
                    batch.drop(i, reason);
                }
            }
        }
        desk.settle(cx);
        let admitted = admitted & !apply(admitted, batch, Some(&self.subjects), actions, ways);
        for (_, commit, _) in stages.iter_mut() {
            commit.commit(admitted | denied, batch, actions, cx);
        }
        refuse(denied, batch, actions);
        let sourceless = self.nat.as_ref().map_or(0, Translator::sourceless);
        conclude(stages, admitted | denied | sourceless, batch, actions, cx);
        // At last, so that stages count and log what came.
        if let Some(nat) = &mut self.nat {
            let failed = nat.apply(batch);
            batch.drop_all(failed, self.settings.reasons.at(Drops::Untranslatable));
        }
        batch.fresh = 0;
    }

    /// True for a packet that may be a flow's first, as far as that does not depend on the rule that admits it.
    fn may_begin(&self, meta: &Meta) -> bool {
        if self.around.mid_stream {
            return true;
        }
        match meta.proto {
            protocol::TCP => meta.detail[0] & SYN != 0,
            _ => !is_unasked(meta),
        }
    }

    /// True for a segment that acknowledges a cookie.
    #[cold]
    fn proves(&self, frame: &Frame, meta: &Meta, now: u64) -> bool {
        let proof = |proxy: &Proxy| proxy.prove(frame, meta, self.around.scope(meta), now);
        meta.proto == protocol::TCP && self.proxy.as_ref().and_then(proof).is_some()
    }

    /// True for messages without which the hosts on a link do not find each other: neighbor discovery, which must come from the
    /// link itself (RFC 4861 section 7.1: hop limit 255), and multicast listener discovery (RFC 2710 section 3, RFC 3810 section
    /// 5: hop limit 1). A redirect is not among them.
    fn is_link_upkeep(&self, frame: &Frame, meta: &Meta) -> bool {
        if meta.proto != protocol::ICMPV6 || self.around.scopes[usize::from(meta.port)].wire == 0 {
            return false;
        }
        // RFC 6980 section 5: it never comes in fragments.
        if meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT) {
            return false;
        }
        let hops = frame.bytes().get(meta.l3() + 7).copied();
        match meta.detail[0] {
            133..=136 | 141 | 142 => hops == Some(255),
            130..=132 | 143 | 151..=153 => hops == Some(1),
            _ => false,
        }
    }

    /// ICMP errors: each belongs to the flow that it quotes a packet of, and goes the way back of that packet.
    #[cold]
    fn errors(&mut self, errors: Mask, batch: &mut Batch, stages: &[FlowStage], ways: &Ways, cx: &mut Cx<'_>) {
        let mut desk =
            Desk::new(&self.settings, &self.around, ways, self.proxy.as_ref(), self.nat.as_mut(), &mut self.notes, cx);
        for i in bits(errors) {
            let (frame, meta) = (&mut batch.frames[i], &mut batch.metas[i]);
            let passes = if meta.has(flag::IPV4) {
                error(&mut self.tables.v4, frame, meta, self.key, stages, &mut desk, cx)
            } else {
                error(&mut self.tables.v6, frame, meta, self.key, stages, &mut desk, cx)
            };
            match passes {
                Ok(()) => cx.sheet.counters[desk.settings.counters + Counters::Errors.index()] += 1,
                Err(Refusal::Drop(reason)) => batch.drop(i, desk.settings.reasons.at(reason)),
                Err(Refusal::Stop(stop, awaited)) => halt(stop, i, batch, awaited),
            }
        }
        desk.settle(cx);
    }

    /// Goes on with a visit to the flows.
    pub fn visit(&mut self, visit: &mut Visit, cx: &mut Cx<'_>) -> bool {
        let removed = visit.removed;
        let done = visit.go_on(&mut self.tables);
        cx.sheet.counters[self.settings.counters + Counters::Flushed.index()] += visit.removed - removed;
        done
    }

    /// Goes on judging the flows that former rules admitted, those too of which no packet comes.
    pub fn renew(&mut self, stages: &[FlowStage], ways: &Ways, cx: &mut Cx<'_>) {
        let Some(mut cursors) = self.renewing else { return };
        let mut desk =
            Desk::new(&self.settings, &self.around, ways, self.proxy.as_ref(), self.nat.as_mut(), &mut self.notes, cx);
        let mut left = RENEWED;
        let Tables { v4, v6 } = &mut self.tables;
        let done = renew_some(v4, &mut cursors[0], &mut left, stages, &mut desk, cx)
            && renew_some(v6, &mut cursors[1], &mut left, stages, &mut desk, cx);
        desk.settle(cx);
        self.renewing = (!done).then_some(cursors);
    }

    /// Upkeep: the hand moves on, and what is in the tables is noted.
    pub fn housekeep(&mut self, cx: &mut Cx<'_>) {
        let now = ticks(cx.now);
        let visits = |used: u32| VISITS.max(used as usize / ROUND);
        let Tables { v4, v6 } = &mut self.tables;
        let around = &self.around;
        let is_old = |generation| around.is_old(generation);
        let gone = v4.expire_and_age(now, visits(v4.occupancy().entries), is_old, |_| ());
        let gone = gone + v6.expire_and_age(now, visits(v6.occupancy().entries), is_old, |_| ());
        let (v4, v6) = (v4.occupancy(), v6.occupancy());
        let base = self.settings.counters;
        let counters = &mut cx.sheet.counters;
        counters[base + Counters::Expired.index()] += gone as u64;
        counters[base + Counters::Flows.index()] = u64::from(v4.used) + u64::from(v6.used);
        counters[base + Counters::HalfOpen.index()] = u64::from(v4.half_open) + u64::from(v6.half_open);
        counters[base + Counters::Translated.index()] = u64::from(v4.translated) + u64::from(v6.translated);
        self.nat.iter_mut().for_each(Translator::housekeep);
    }
}

/// Lets flow stages tell of `judged` what became of them.
#[inline]
pub fn conclude(stages: &mut [FlowStage], judged: Mask, batch: &mut Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
    for (plan, commit, _) in stages {
        if plan.concludes() {
            commit.conclude(judged, batch, actions, cx);
        }
    }
}

/// The packets of `fresh` that have another of the same hash before them: of the same flow, most likely.
fn followers(fresh: Mask, batch: &Batch) -> Mask {
    const PLACES: usize = 2 * BATCH;
    // Packet and one.
    let mut places = [0u8; PLACES];
    let mut later = 0;
    for i in bits(fresh) {
        let hash = batch.metas[i].hash;
        let mut at = hash as usize % PLACES;
        loop {
            match places[at] {
                0 => {
                    places[at] = i as u8 + 1;
                    break;
                }
                other if batch.metas[usize::from(other - 1) % BATCH].hash == hash => {
                    later |= 1 << i;
                    break;
                }
                _ => at = (at + 1) % PLACES,
            }
        }
    }
    later
}

/// Lets all flow stages judge `todo`, of `unruled` those alone that decide the egress, and tells `judged` which stage was
/// asked about whom and denied whom. Returns the denied.
fn judge(
    stages: &[FlowStage],
    todo: Mask,
    unruled: Mask,
    facts: &mut [Meta; BATCH],
    actions: &mut [Action; BATCH],
    judged: &mut impl FnMut(usize, Mask, Mask, &[Meta; BATCH], &[Action; BATCH]),
) -> Mask {
    let mut denied = 0;
    for (at, (plan, _, egress)) in stages.iter().enumerate() {
        let asked = if *egress { todo & !denied } else { todo & !unruled & !denied };
        let refused = plan.judge(asked, facts, actions);
        judged(at, asked, refused, facts, actions);
        denied |= refused;
    }
    denied
}

/// A fresh packet that was judged.
struct Case {
    i: usize,
    denied: bool,
    /// Another of its flow was before it in the batch.
    later: bool,
}

/// What becomes of it.
enum First {
    /// It begins a flow.
    Begins,
    /// It passes as a packet of a flow that there is.
    Passes,
    /// It has become the answer to itself.
    Answered,
    /// The stages deny it.
    Denied,
    /// It is dropped.
    Refused(Reason),
    /// It does not go on now.
    Stops(Stop, Await),
}

#[expect(clippy::too_many_arguments, reason = "all that a packet's fate depends on, borrowed from a worker's parts")]
fn first<E: Entry>(
    table: &mut Table<E>,
    case: Case,
    batch: &mut Batch,
    subjects: &[Meta; BATCH],
    stages: &[FlowStage],
    actions: &mut [Action; BATCH],
    back: &[Action; BATCH],
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> First {
    let i = case.i;
    let key = E::Key::of(&batch.metas[i], desk.around.scope(&batch.metas[i]));
    if case.later || batch.metas[i].flow != NO_FLOW {
        // Only now is it known whether there is an entry: those before it may have made or ended one.
        let mut tries = 0;
        while let Some(flow) = table.lookup(batch.metas[i].hash, &key).filter(|_| tries < 3) {
            tries += 1;
            match replay(table, flow, &mut batch.frames[i], &mut batch.metas[i], desk, cx) {
                Found::Passes => return First::Passes,
                Found::Refused(reason) => return First::Refused(desk.settings.reasons.at(reason)),
                Found::Stops(stop, awaited) => return First::Stops(stop, awaited),
                Found::Stale => {
                    if let Err(action) = renew(table, flow >> 1, stages, desk, cx) {
                        actions[i] = action;
                        return First::Denied;
                    }
                }
                Found::Elsewhere if case.denied => return First::Denied,
                Found::Elsewhere => {
                    let direction = (flow & 1) as usize;
                    if let Some(nat) = &desk.nat {
                        match nat.goes_on(table.entry(flow >> 1), direction, &subjects[i], &actions[i]) {
                            true => {}
                            // Of this port the flow would be another.
                            false if direction == ORIGINAL => {
                                table.remove(flow >> 1);
                                break;
                            }
                            false => return First::Refused(desk.settings.reasons.at(Drops::NoFlow)),
                        }
                    }
                    let body = table.entry_mut(flow >> 1).body_mut();
                    body.ingress[direction] = batch.metas[i].port;
                    (body.out[direction], body.adjacency[direction]) = (actions[i].out, actions[i].adjacency);
                }
                Found::Over => break,
            }
        }
        batch.metas[i].flow = NO_FLOW;
    }
    if case.denied {
        return First::Denied;
    }
    // Who waits for its neighbor begins no flow: a scan of an empty network makes none.
    let Action { adjacency, out, .. } = actions[i];
    if let Err(stop) = desk.ways.look(adjacency, &batch.frames[i], &batch.metas[i]) {
        return First::Stops(stop, Await { adjacency, out, neighbor: subjects[i].dst });
    }
    let subject = (i, &subjects[i]);
    match begin(table, key, &mut batch.frames[i], &mut batch.metas[i], subject, &actions[i], &back[i], desk, cx) {
        Ok(true) => First::Begins,
        Ok(false) => First::Answered,
        Err(fault) => First::Refused(fault.reason(desk.settings, desk.nat.as_deref())),
    }
}

/// Makes the entry of a flow from its first packet; false if the packet has become a question to its sender instead.
#[expect(clippy::too_many_arguments, reason = "as `first`")]
fn begin<E: Entry>(
    table: &mut Table<E>,
    key: E::Key,
    frame: &mut Frame,
    meta: &mut Meta,
    (i, subject): (usize, &Meta),
    action: &Action,
    back: &Action,
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> Result<bool, Fault> {
    // Its first fragment was here before it, and has begun none.
    if meta.has(flag::LATER_FRAGMENT) {
        return Err(Drops::NoFlow.into());
    }
    let base = desk.settings.counters;
    let tracking = action.tracking.unwrap_or(desk.settings.tracking);
    let mut proof = None;
    // A proxy must see both ways.
    if let Some(proxy) = desk.proxy.filter(|_| meta.proto == protocol::TCP && tracking != Tracking::Sloppy) {
        if meta.detail[0] & (SYN | ACK) == SYN && proxy.is_due(table) && challenge(proxy, frame, meta, key.scope(), cx)
        {
            cx.sheet.counters[base + Counters::Challenged.index()] += 1;
            meta.rule = action.rule;
            return Ok(false);
        }
        proof = proxy.prove(frame, meta, key.scope(), cx.now);
        if let Some(proof) = &proof
            && !synproxy::open(frame, meta, proof)
        {
            return Err(Drops::NoFlow.into());
        }
    }
    let (mut states, mut numbers, mut class) = (States::default(), Tcp::default(), unanswered(meta.proto));
    let mut flags = mark::HALF_OPEN;
    if meta.proto == protocol::TCP {
        let segment = frame.bytes().get(meta.l4()..meta.end());
        let segment = segment.and_then(Segment::read).ok_or(Drops::NoFlow)?;
        (states, numbers, class) = tcp::open(&segment, tracking)?;
        if !tcp::is_half_open(states) {
            flags = 0;
        }
    } else if is_unasked(meta) && !matches!(tracking, Tracking::Loose | Tracking::Sloppy) {
        return Err(Drops::NoFlow.into());
    }
    if matches!(meta.proto, protocol::TCP | protocol::UDP) && !sum_is_good(frame, meta) {
        return Err(Drops::BadChecksum.into());
    }
    let mut body = Body {
        adjacency: [action.adjacency, back.adjacency],
        expires: desk.deadline(class as u8),
        generation: desk.around.generation,
        rule: action.rule,
        ingress: [meta.port, action.out],
        out: [action.out, back.out],
        states,
        flags,
        class: class as u8,
        tracking: tracking as u8,
        tcp: numbers,
        hash: meta.hash,
        created: desk.now,
        ..Body::zeroed()
    };
    if let Some(proof) = &proof {
        // Its client is no forgery: it does not count as half-open.
        body.flags = mark::PROXIED | mark::CONNECTING | if proof.offer.scale.is_some() { mark::SCALED } else { 0 };
        body.delta = proof.cookie;
        body.set_stamp(proof.stamps.map_or(0, |(_, ours)| ours));
    }
    body.count(ORIGINAL, frame.len());
    let limits = desk.around.limits.as_deref();
    let token = limits.map(|limits| limits.admit(meta, action.rule, cx.now)).transpose()?;
    let mut evicted = 0;
    let entry = E::new(key, body);
    let index = match &mut desk.nat {
        Some(nat) => nat.file(table, entry, (i, meta, subject), action, &mut evicted),
        None => table.insert_entry(entry, |_| evicted += 1).map_err(Fault::from),
    };
    cx.sheet.counters[base + Counters::Evicted.index()] += evicted;
    let index = match index {
        Ok(index) => index,
        Err(fault) => {
            if let (Some(limits), Some(token)) = (limits, token) {
                limits.release(token);
            }
            return Err(fault);
        }
    };
    if let Some(token) = token.filter(|token| *token != Token::UNLIMITED) {
        table.charge(index, token);
        cx.sheet.counters[base + Counters::Crowded.index()] += u64::from(token.is_crowded());
    }
    meta.flow = index << 1;
    cx.sheet.counters[base + Counters::New.index()] += 1;
    cx.sheet.counters[base + Counters::Proven.index()] += u64::from(proof.is_some());
    if let Some(counters) = desk.around.rules.get(usize::from(action.rule)) {
        cx.sheet.counters[counters + rule_counter::FLOWS] += 1;
    }
    Ok(true)
}

/// Counts the flows of a table against limits.
fn count_flows<E: Entry>(table: &mut Table<E>, limits: &Arc<Limits>) {
    table.keep_ledger(Ledger::new(limits.clone(), table.occupancy().entries as usize));
    let (mut cursor, mut tokens) = (0, Vec::new());
    while !table.walk(&mut cursor, 1 << 16, |index, entry| {
        tokens.push((index, limits.restore(&entry.key().facts(), entry.body().rule, 0)));
        true
    }) {}
    tokens.into_iter().for_each(|(index, token)| table.charge(index, token));
}

/// Judges the next flows again whose rules are not those of now, at most so many; true if no more are left.
#[cold]
fn renew_some<E: Entry>(
    table: &mut Table<E>,
    cursor: &mut u32,
    left: &mut usize,
    stages: &[FlowStage],
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> bool {
    let (mut old, most, generation) = (Vec::with_capacity(*left), *left, desk.around.generation);
    let done = table.walk(cursor, VISITS, |index, entry| {
        if entry.body().generation != generation {
            old.push(index);
        }
        old.len() < most
    });
    *left -= old.len();
    for index in old {
        // The worker's turn is bounded: what it says of the flow's end is for the next packet.
        let _ = renew(table, index, stages, desk, cx);
    }
    done && *left > 0
}

/// Judges a flow again that older rules admitted. If it is forbidden now it ends, and the action says why.
#[cold]
fn renew<E: Entry>(
    table: &mut Table<E>,
    index: u32,
    stages: &[FlowStage],
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> Result<(), Action> {
    let mut facts = [const { Meta::UNKNOWN }; BATCH];
    let mut actions = [[Action::OPEN; BATCH]; 2];
    let plans = stages.iter().map(|(plan, _, egress)| (&**plan, *egress));
    // Of other routes alone: as long as the ports stay the same, so do the rules' verdicts.
    if desk.around.only_routes_changed(table.entry(index).body().generation) {
        facts[0] = nat::subject(table.entry(index));
        let denied = judge_again(plans.clone().filter(|(_, egress)| *egress), 1, &mut facts, &mut actions);
        let [there, back] = [actions[0][0], actions[1][0]];
        let entry = table.entry_mut(index);
        let same = denied == 0
            && entry.body().out == [there.out, back.out]
            && desk.nat.as_ref().is_none_or(|nat| nat.is_current(entry, there.out));
        if same {
            let body = entry.body_mut();
            body.adjacency = [there.adjacency, back.adjacency];
            body.generation = desk.around.generation;
            return Ok(());
        }
    }
    facts[0] = entry::facts(table.entry(index));
    actions[0][0] = Action::OPEN;
    if let Some(nat) = &desk.nat {
        nat.again(table.entry(index), &mut facts[0], &mut actions[0][0]);
    }
    let denied = judge_again(plans, 1, &mut facts, &mut actions);
    let [mut there, back] = [actions[0][0], actions[1][0]];
    let nat = desk.nat.as_deref().map(Translator::nat);
    let kept = denied == 0 && {
        let subject = entry::reversed(&facts[0], there.out);
        permits(nat, table.entry(index), &subject, &there)
    };
    if !kept {
        table.remove(index);
        cx.sheet.counters[desk.settings.counters + Counters::Revoked.index()] += 1;
        if denied == 0 {
            // Its packets are another flow's now.
            there.deny(desk.settings.reasons.at(Drops::NoFlow), NO_RULE);
        }
        return Err(there);
    }
    if let Some(limits) = &desk.around.limits
        && table.entry(index).body().rule != there.rule
    {
        table.charge(index, limits.restore(&table.entry(index).key().facts(), there.rule, cx.now));
    }
    put(table.entry_mut(index).body_mut(), [&there, &back], desk.settings, desk.around);
    Ok(())
}

/// What flow stages (and whether they decide the egress) decide now of flows that there are, by the facts of their first
/// packets and the actions they begin with: the way there and the way back, whose facts are left. Returns those that are denied.
pub fn judge_again<'p>(
    plans: impl Iterator<Item = (&'p dyn FlowPlan, bool)> + Clone,
    todo: Mask,
    facts: &mut [Meta; BATCH],
    [there, back]: &mut [[Action; BATCH]; 2],
) -> Mask {
    let mut denied = 0;
    bits(todo).for_each(|i| back[i] = Action::OPEN);
    for (plan, _) in plans.clone() {
        denied |= plan.judge(todo & !denied, facts, there);
    }
    bits(todo & !denied).for_each(|i| facts[i] = way_back(&facts[i], there[i].out));
    for (plan, _) in plans.filter(|(_, egress)| *egress) {
        plan.judge(todo & !denied, facts, back);
    }
    denied
}

/// Puts what was decided again into a flow's entry.
pub fn put(body: &mut Body, [there, back]: [&Action; 2], settings: &Settings, around: &Around) {
    body.generation = around.generation;
    body.rule = there.rule;
    body.adjacency = [there.adjacency, back.adjacency];
    body.ingress[REPLY] = there.out;
    body.out = [there.out, back.out];
    body.tracking = there.tracking.unwrap_or(settings.tracking) as u8;
}

/// Why an ICMP error does not pass.
enum Refusal {
    Drop(Drops),
    Stop(Stop, Await),
}

impl From<Drops> for Refusal {
    fn from(reason: Drops) -> Refusal {
        Refusal::Drop(reason)
    }
}

/// Finds the flow that an ICMP error is about, and sends the error the way back if the quote is believable: the packet quoted
/// has that flow's tuple, the error goes to its source, and a TCP segment quoted is one that may be under way (RFC 5927
/// section 4.1).
fn error<E: Entry>(
    table: &mut Table<E>,
    frame: &mut Frame,
    meta: &mut Meta,
    hash_key: Key,
    stages: &[FlowStage],
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> Result<(), Refusal> {
    let message = frame.bytes().get(meta.l4()..meta.end()).ok_or(Drops::BadError)?;
    let whole = if meta.has(flag::IPV4) {
        checksum::is_good(message)
    } else {
        checksum::transport_is_good(checksum::pseudo(&meta.src, &meta.dst, meta.proto, message.len()), message)
    };
    if !whole && !meta.has(flag::FIRST_FRAGMENT) {
        return Err(Drops::BadChecksum.into());
    }
    let quote = message.get(Icmpv4::LEN..).ok_or(Drops::BadError)?;
    let quoted = steer::quoted(meta, quote).filter(|quoted| !quoted.later_fragment).ok_or(Drops::BadError)?;
    let hash = steer::hash(&quoted.facts, hash_key);
    // A packet of its way back would have come in where the error does.
    let key = E::Key::of(&quoted.facts, desk.around.scope(meta)).reversed();
    let flow = table.lookup(hash, &key).ok_or(Drops::BadError)?;
    let (index, direction) = (flow >> 1, (flow & 1) as usize);
    if table.entry(index).body().generation != desk.around.generation {
        renew(table, index, stages, desk, cx).map_err(|_| Drops::BadError)?;
    }
    let leaves = table.entry(index).leaves(direction);
    let body = table.entry_mut(index).body_mut();
    let known = !has_passed(body.expires, desk.now);
    if !known || body.ingress[direction] != meta.port || quoted.facts.src != meta.dst {
        return Err(Drops::BadError.into());
    }
    let adjacency = body.adjacency[direction];
    let awaited = Await { adjacency, out: body.out[direction], neighbor: leaves.dst };
    let way = desk.ways.look(adjacency, frame, meta).map_err(|stop| Refusal::Stop(stop, awaited))?;
    if quoted.facts.proto == protocol::TCP && body.tracking() != Tracking::Sloppy {
        let sequence = quote.get(quoted.transport + 4..).and_then(|rest| rest.first_chunk().copied());
        let mut sequence = u32::from_be_bytes(sequence.ok_or(Drops::BadError)?);
        // The client quotes what it was told.
        let at = Icmpv4::LEN + quoted.transport + 4;
        let moved = body.has(mark::PROXIED) && opposite(direction) == REPLY;
        if moved {
            sequence = sequence.wrapping_sub(body.delta);
        }
        if !tcp::quotes(&body.tcp, opposite(direction), sequence) {
            return Err(Drops::BadError.into());
        }
        if moved {
            let (l4, end) = (meta.l4(), meta.end());
            synproxy::requote(&mut frame.bytes_mut()[l4..end], at, body.delta);
        }
    }
    if body.has(mark::TRANSLATED) && !translate_error(frame, meta, &leaves) {
        return Err(Drops::Untranslatable.into());
    }
    body.count(direction, frame.len());
    meta.flow = index << 1 | direction as u32;
    meta.rule = body.rule;
    meta.out = body.out[direction];
    desk.hit(meta.rule, frame.len(), cx);
    desk.ways.write(way, frame, meta);
    Ok(())
}

/// The second and third pass over the packets of one family. What is not settled is `fresh`, with `Meta::flow` set if it has
/// an entry nevertheless.
#[inline(always)]
fn look_up<E: Entry>(
    table: &mut Table<E>,
    mask: Mask,
    buckets: &[u32; BATCH],
    batch: &mut Batch,
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) {
    // A translation is in the second line.
    let translates = desk.nat.is_some();
    let mut candidates = [Candidate::NONE; BATCH];
    for i in bits(mask) {
        let meta = &batch.metas[i];
        candidates[i] = table.candidate(buckets[i], meta.hash, translates || meta.proto == protocol::TCP);
    }
    let mut flows = [NO_FLOW; BATCH];
    let mut known: Mask = 0;
    for i in bits(mask) {
        let meta = &batch.metas[i];
        let key = E::Key::of(meta, desk.around.scope(meta));
        if let Some(flow) = table.find(meta.hash, candidates[i], &key) {
            flows[i] = flow;
            known |= 1 << i;
        }
    }
    let mut settled: Mask = 0;
    for i in bits(known) {
        match replay(table, flows[i], &mut batch.frames[i], &mut batch.metas[i], desk, cx) {
            Found::Passes => settled |= 1 << i,
            Found::Refused(reason) => {
                settled |= 1 << i;
                batch.drop(i, desk.settings.reasons.at(reason));
            }
            Found::Stops(stop, awaited) => {
                settled |= 1 << i;
                halt(stop, i, batch, awaited);
            }
            Found::Stale | Found::Elsewhere => batch.metas[i].flow = flows[i],
            Found::Over => {}
        }
    }
    batch.fresh &= !settled;
}

/// Holds a packet to its flow, and if it passes does to it what the entry says.
#[inline(always)]
fn replay<E: Entry>(
    table: &mut Table<E>,
    flow: u32,
    frame: &mut Frame,
    meta: &mut Meta,
    desk: &mut Desk<'_>,
    cx: &mut Cx<'_>,
) -> Found {
    let (index, direction) = (flow >> 1, (flow & 1) as usize);
    let body = table.entry_mut(index).body_mut();
    let is_current = !has_passed(body.expires, desk.now) && body.generation == desk.around.generation;
    if !is_current || !body.has(mark::USED) || body.ingress[direction] != meta.port {
        return unexpected(table, index, desk, cx);
    }
    let adjacency = body.adjacency[direction];
    let way = match desk.ways.look(adjacency, frame, meta) {
        // The kernel has changed its mind about the port it sends this flow by.
        Ok(Way::Routed(stored)) if stored.state() == State::Keep && stored.port() != meta.vlan as u8 => {
            return Found::Elsewhere;
        }
        Ok(way) => way,
        Err(stop) => {
            let out = body.out[direction];
            return Found::Stops(stop, Await { adjacency, out, neighbor: table.entry(index).leaves(direction).dst });
        }
    };
    // Whether it leaves the budget of half-open flows, and whether the packet goes back where it came from.
    let (mut opens, mut back) = (false, false);
    if meta.proto == protocol::TCP && !meta.has(flag::LATER_FRAGMENT) {
        let proxied = body.has(mark::PROXIED);
        if proxied && let Err(reason) = toward_server(body, direction, frame, meta, desk, cx) {
            return Found::Refused(reason);
        }
        let (states, tracking) = (body.states, body.tracking());
        let segment = frame.bytes().get(meta.l4()..meta.end()).unwrap_or_default();
        if tcp::follow_common(states, &mut body.tcp, direction, segment, tracking) {
            body.expires = desk.deadline(body.class);
        } else {
            match follow(body, direction, frame, meta) {
                tcp::Verdict::Valid(class) => {
                    body.class = class as u8;
                    body.expires = desk.deadline(class as u8);
                    opens = body.has(mark::HALF_OPEN) && !tcp::is_half_open(body.states);
                }
                tcp::Verdict::Ignore => desk.ignored += 1,
                tcp::Verdict::Reopen => {
                    table.remove(index);
                    return Found::Over;
                }
                tcp::Verdict::Invalid(reason) => return Found::Refused(reason),
            }
        }
        if proxied && direction == REPLY {
            match toward_client(body, frame, meta, desk) {
                Ok(to_server) => back = to_server,
                Err(reason) => {
                    if opens {
                        table.establish(index);
                    }
                    return Found::Refused(reason);
                }
            }
        }
    } else {
        if direction == REPLY && !body.has(mark::REPLIED) {
            body.flags |= mark::REPLIED;
            body.class = answered(meta.proto) as u8;
            opens = body.has(mark::HALF_OPEN);
        }
        body.expires = desk.deadline(body.class);
    }
    let len = frame.len();
    body.count(direction, len);
    meta.flow = flow;
    meta.rule = body.rule;
    let translated = body.has(mark::TRANSLATED) && !back;
    let (out, way) = if back { (meta.port, Way::Fixed(0)) } else { (body.out[direction], way) };
    meta.out = out;
    desk.hit(meta.rule, len, cx);
    if opens {
        table.establish(index);
    }
    if translated && !translate(frame, meta, &table.entry(index).leaves(direction)) {
        return Found::Refused(Drops::Untranslatable);
    }
    desk.ways.write(way, frame, meta);
    Found::Passes
}

/// A packet that its entry does not expect: its time has passed, its rules are not those of now, or it is from elsewhere.
#[cold]
fn unexpected<E: Entry>(table: &mut Table<E>, index: u32, desk: &Desk<'_>, cx: &mut Cx<'_>) -> Found {
    let body = table.entry(index).body();
    if !body.has(mark::USED) {
        // A packet before it in the batch has ended the flow.
        return Found::Over;
    }
    if has_passed(body.expires, desk.now) {
        table.remove(index);
        cx.sheet.counters[desk.settings.counters + Counters::Expired.index()] += 1;
        return Found::Over;
    }
    if body.generation != desk.around.generation { Found::Stale } else { Found::Elsewhere }
}

/// Holds any TCP segment to its connection.
#[inline(never)]
fn follow(body: &mut Body, direction: usize, frame: &Frame, meta: &Meta) -> tcp::Verdict {
    let Some(segment) = frame.bytes().get(meta.l4()..meta.end()).and_then(Segment::read) else {
        return tcp::Verdict::Invalid(Drops::BadState);
    };
    if tcp::needs_checksum(segment.flags) && !sum_is_good(frame, meta) {
        return tcp::Verdict::Invalid(Drops::BadChecksum);
    }
    let (class, tracking) = (body.class(), body.tracking());
    tcp::follow(&mut body.states, &mut body.tcp, class, direction, &segment, tracking)
}

impl<'a> Desk<'a> {
    fn new(
        settings: &'a Settings,
        around: &'a Around,
        ways: &'a Ways,
        proxy: Option<&'a Proxy>,
        nat: Option<&'a mut Translator>,
        notes: &'a mut Notes,
        cx: &Cx<'_>,
    ) -> Desk<'a> {
        let run = Run { rule: NO_RULE, packets: 0, bytes: 0 };
        let now = ticks(cx.now);
        let mut deadlines = [now; CLASSES];
        for (deadline, timeout) in deadlines.iter_mut().zip(&settings.timeouts) {
            *deadline = now.wrapping_add(*timeout);
        }
        Desk { settings, around, ways, proxy, nat, notes, now, deadlines, run, ignored: 0 }
    }

    /// When a flow of this class is forgotten that is seen now.
    #[inline(always)]
    fn deadline(&self, class: u8) -> u32 {
        self.deadlines[usize::from(class) % CLASSES]
    }

    /// Counts a packet for its rule.
    #[inline(always)]
    fn hit(&mut self, rule: u16, bytes: usize, cx: &mut Cx<'_>) {
        if rule != self.run.rule {
            self.flush(cx);
            self.run.rule = rule;
        }
        self.run.packets += 1;
        self.run.bytes += bytes as u64;
    }

    #[inline(always)]
    fn flush(&mut self, cx: &mut Cx<'_>) {
        if let Some(counters) = self.around.rules.get(usize::from(self.run.rule)) {
            let words = cx.sheet.range(*counters..counters + rule_counter::COUNT);
            words[rule_counter::PACKETS] += self.run.packets;
            words[rule_counter::BYTES] += self.run.bytes;
            if self.run.packets > 0 {
                words[rule_counter::LAST_HIT] = cx.now;
            }
        }
        (self.run.packets, self.run.bytes) = (0, 0);
    }

    fn settle(&mut self, cx: &mut Cx<'_>) {
        self.flush(cx);
        cx.sheet.counters[self.settings.counters + Counters::Ignored.index()] += self.ignored;
    }
}

impl Around {
    /// Where a packet's addresses are valid. On a wire each VLAN is a network of its own.
    #[inline(always)]
    pub fn scope(&self, meta: &Meta) -> Scope {
        let scope = self.scopes[usize::from(meta.port)];
        if meta.has(flag::VLAN) { tagged(scope, meta.vlan) } else { scope }
    }
}

/// The scope of packets of a VLAN.
#[cold]
fn tagged(scope: Scope, vlan: u16) -> Scope {
    if scope.wire == 0 { scope } else { Scope { domain: vlan + 1, ..scope } }
}

/// The facts of the first packet of the way back; what the box will send knows by which port it was asked.
fn way_back(facts: &Meta, out: u8) -> Meta {
    let mut back = entry::reversed(facts, out);
    if out == SELF_PORT {
        back.vlan = BACK | u16::from(facts.port);
    }
    back
}

/// True for a whole echo request.
fn is_asking(meta: &Meta) -> bool {
    let fragment = meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT);
    meta.has(flag::ECHO) && !fragment && matches!(meta.detail[0], icmpv4::ECHO_REQUEST | icmpv6::ECHO_REQUEST)
}

/// True for an echo reply, which without a flow nobody has asked for.
fn is_unasked(meta: &Meta) -> bool {
    meta.has(flag::ECHO) && matches!(meta.detail[0], icmpv4::ECHO_REPLY | icmpv6::ECHO_REPLY)
}

/// The class of a flow without states of its own whose answer was seen.
fn answered(proto: u8) -> Class {
    match proto {
        protocol::UDP | protocol::UDP_LITE => Class::Udp,
        protocol::ICMP | protocol::ICMPV6 => Class::Icmp,
        protocol::SCTP => Class::Sctp,
        _ => Class::Other,
    }
}

/// The class of a flow without states of its own whose first packet this is.
fn unanswered(proto: u8) -> Class {
    match proto {
        protocol::UDP | protocol::UDP_LITE => Class::UdpNew,
        protocol::ICMP | protocol::ICMPV6 => Class::Icmp,
        protocol::SCTP => Class::SctpNew,
        _ => Class::OtherNew,
    }
}

/// True if the TCP or UDP checksum of a whole packet is right, or if there is none: a UDP datagram over IPv4 may do without
/// (RFC 768), and of a fragment it covers what is not here.
fn sum_is_good(frame: &Frame, meta: &Meta) -> bool {
    if meta.any(flag::L4_SUM_GOOD | flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT) {
        return true;
    }
    let Some(segment) = frame.bytes().get(meta.l4()..meta.end()) else { return false };
    let ipv6 = meta.has(flag::IPV6);
    let addresses = if ipv6 { 16 } else { 4 };
    let pseudo = |len| checksum::pseudo(&meta.src[..addresses], &meta.dst[..addresses], meta.proto, len);
    if meta.proto == protocol::UDP {
        let datagram = Udp::parse(segment).and_then(|udp| segment.get(..usize::from(udp.length())));
        return datagram.is_some_and(|datagram| checksum::udp_is_good(pseudo(datagram.len()), datagram, ipv6));
    }
    checksum::transport_is_good(pseudo(segment.len()), segment)
}

#[cfg(test)]
mod defence;
#[cfg(test)]
mod tests;
