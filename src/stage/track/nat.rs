//! A worker's part in translation: what the first packet of a flow becomes, and whether a flow there is keeps what it became.
//!
//! Which addresses and ports there are to choose from is `nat`'s matter, which of them are free the table's. A port is taken
//! here and nowhere else: when all stages have allowed a flow, together with its entry. What is for the box keeps its source.

use crate::flow::entry::{self, Entry, Key as FlowKey, mark};
use crate::flow::table::{Refused, Table};
use crate::flow::{Drops, ORIGINAL, REPLY};
use crate::nat::mapping::{End, Lease};
use crate::nat::source::{Filtering, Inward, Mapped, Origin, Refusal, Slot, Snat};
use crate::nat::{HAIRPIN, Nat};
use crate::packet::meta::flag;
use crate::packet::steer::Key;
use crate::packet::translate::{Tuple, translate};
use crate::packet::{BATCH, Batch, Mask, Meta, NO_FLOW, SELF_PORT, bits};
use crate::stage::conntrack::{Settings, Tables};
use crate::stage::{Action, NO_SNAT};
use crate::stats::Reason;
use crate::wire::protocol;

/// Translation in one worker.
pub(super) struct Translator {
    nat: Nat,
    /// Which of how many workers this is.
    worker: usize,
    workers: usize,
    snat: Option<Snat>,
    /// First packets of the batch that leave translated, and with what.
    first: Mask,
    /// Fresh packets that were judged as packets of a flow's way back.
    back: Mask,
    leaves: Box<[Tuple; BATCH]>,
    /// First packets for which there is no source.
    sourceless: Mask,
}

/// Why a flow does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// For a reason of tracking.
    Drop(Drops),
    /// There is no source for it.
    Source(Refusal),
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Fault {
        Fault::Drop(match refused {
            Refused::Full => Drops::TableFull,
            Refused::Taken => Drops::Taken,
        })
    }
}

impl From<Drops> for Fault {
    fn from(reason: Drops) -> Fault {
        Fault::Drop(reason)
    }
}

impl Fault {
    /// The reason by which its packet is dropped.
    pub(super) fn reason(self, settings: &Settings, translator: Option<&Translator>) -> Reason {
        match self {
            Fault::Drop(reason) => settings.reasons.at(reason),
            Fault::Source(refusal) => {
                let outbound = translator.and_then(|translator| translator.nat.outbound.as_ref());
                outbound.map_or(settings.reasons.at(Drops::NoFlow), |outbound| outbound.reason(refusal))
            }
        }
    }
}

impl Translator {
    /// A worker's own. The flows in its tables hold on to their mappings.
    pub(super) fn new(nat: &Nat, worker: usize, workers: usize, key: Key, tables: &mut Tables) -> Translator {
        const NOTHING: Tuple = Tuple { src: [0; 16], dst: [0; 16], sport: 0, dport: 0 };
        let (first, back, sourceless) = (0, 0, 0);
        let leaves = Box::new([NOTHING; BATCH]);
        let mut translator =
            Translator { nat: nat.clone(), worker, workers, snat: None, first, back, sourceless, leaves };
        translator.take_over(key, tables);
        translator
    }

    /// Begins anew with these tables, whose flows hold on to their mappings.
    pub(super) fn take_over(&mut self, key: Key, tables: &mut Tables) {
        let entries = [tables.v4.occupancy().entries, tables.v6.occupancy().entries].map(|entries| entries as usize);
        let start = |outbound: &crate::nat::Outbound| {
            Snat::new(outbound.sources.clone(), self.worker, self.workers, key, entries[0] + entries[1])
        };
        self.snat = self.nat.outbound.as_ref().map(start);
        if let Some(snat) = &mut self.snat {
            lease_again(&mut tables.v4, entries[0], snat, &self.nat);
            lease_again(&mut tables.v6, entries[1], snat, &self.nat);
        }
    }

    /// What is translated.
    pub(super) fn nat(&self) -> &Nat {
        &self.nat
    }

    /// Packets of the batch that were dropped because there is no source for them.
    pub(super) fn sourceless(&self) -> Mask {
        self.sourceless
    }

    /// Gives fresh packets the facts by which they are judged, before the stages translate destinations.
    pub(super) fn prepare(
        &mut self,
        todo: Mask,
        tables: &Tables,
        batch: &Batch,
        subjects: &mut [Meta; BATCH],
        actions: &mut [Action; BATCH],
    ) {
        (self.back, self.sourceless) = (0, 0);
        for i in bits(todo) {
            let (meta, subject) = (&batch.metas[i], &mut subjects[i]);
            if meta.flow != NO_FLOW && (meta.flow & 1) as usize == REPLY {
                // Of a way back that came in elsewhere: where it goes is the flow's.
                let known = match meta.has(flag::IPV4) {
                    true => way_back(tables.v4.entry(meta.flow >> 1)),
                    false => way_back(tables.v6.entry(meta.flow >> 1)),
                };
                if let Some(to) = known {
                    redirect(subject, &to);
                    self.back |= 1 << i;
                }
            } else if let Some(inward) = self.inward(meta) {
                redirect(subject, &Tuple { dst: inward.dst, dport: inward.dport, ..Tuple::of(meta) });
                actions[i].snat = HAIRPIN;
            }
        }
    }

    /// Where a packet that no flow expects goes, if that is the outside of a mapping that everyone may use. Rules come first: a
    /// host inside does not take what they forward by sending from its port.
    fn inward(&self, meta: &Meta) -> Option<Inward> {
        let inward = self.snat.as_ref()?.inward(meta)?;
        self.nat.steering.destinations.find(meta).is_none().then_some(inward)
    }

    /// True if a flow goes on as it is though a packet of it came in elsewhere, about which the stages have decided.
    pub(super) fn goes_on<E: Entry>(&self, entry: &E, direction: usize, subject: &Meta, action: &Action) -> bool {
        match direction {
            ORIGINAL => permits(Some(&self.nat), entry, subject, action),
            _ => leads_to(subject, &entry.leaves(REPLY)),
        }
    }

    /// Files the entry of a flow, translated as was judged: its destination is the subject's, and its source is drawn.
    pub(super) fn file<E: Entry>(
        &mut self,
        table: &mut Table<E>,
        mut entry: E,
        (i, meta, subject): (usize, &Meta, &Meta),
        action: &Action,
        evicted: &mut u64,
    ) -> Result<u32, Fault> {
        // The flow that it was judged as a packet of is no more.
        if self.back & (1 << i) != 0 {
            return Err(Drops::NoFlow.into());
        }
        let scope = entry.key().scope();
        let slot = slot_of(action).filter(|_| self.snat.is_some());
        let mut attempt = 0;
        let (index, tuple) = loop {
            let Mapped { src, sport, lease } = match (slot, &mut self.snat) {
                (Some(slot), Some(snat)) => {
                    let candidate = snat.candidate(slot, subject, action.out, attempt);
                    self.sourceless |= Mask::from(candidate.is_err()) << i;
                    candidate.map_err(Fault::Source)?
                }
                _ if attempt > 0 => return Err(Drops::Taken.into()),
                _ => Mapped { src: subject.src, sport: subject.sport, lease: self.lease_inward(meta, subject) },
            };
            let echo = subject.has(flag::ECHO);
            let leaves = Meta { src, sport, dport: if echo { sport } else { subject.dport }, ..subject.clone() };
            // Its checksum depends on bytes that are not here.
            if meta.proto == protocol::SCTP
                && meta.has(flag::FIRST_FRAGMENT)
                && (leaves.sport, leaves.dport) != (meta.sport, meta.dport)
            {
                return Err(Drops::Untranslatable.into());
            }
            entry.set_translation(E::Key::of(&leaves, scope));
            match table.insert_entry(entry, |_| *evicted += 1) {
                Ok(index) => {
                    table.lease(index, lease);
                    break (index, Tuple::of(&leaves));
                }
                Err(Refused::Taken) => attempt += 1,
                Err(refused) => return Err(refused.into()),
            }
        };
        if table.entry(index).body().has(mark::TRANSLATED) {
            self.first |= 1 << i;
            self.leaves[i] = tuple;
        }
        Ok(index)
    }

    /// The hold of a flow on the mapping that its destination is the outside of. By the time it begins the mapping may be no
    /// more. (A flow that has a source of its own too holds on to that one alone.)
    fn lease_inward(&self, meta: &Meta, subject: &Meta) -> Lease {
        let changed = (meta.dst, meta.dport) != (subject.dst, subject.dport);
        let found = if changed { self.inward(meta) } else { None };
        let found = found.filter(|inward| (inward.dst, inward.dport) == (subject.dst, subject.dport));
        found.map_or(Lease::NONE, |inward| inward.lease)
    }

    /// Translates the first packets of the batch that go on, and returns those for which it cannot be done.
    pub(super) fn apply(&mut self, batch: &mut Batch) -> Mask {
        let mut failed = 0;
        for i in bits(std::mem::take(&mut self.first) & batch.live) {
            if !translate(&mut batch.frames[i], &mut batch.metas[i], &self.leaves[i]) {
                failed |= 1 << i;
            }
        }
        failed
    }

    /// True if a flow was translated to what it would be now, if it leaves by `out`: asked where rules have not changed.
    pub(super) fn is_current<E: Entry>(&self, entry: &E, out: u8) -> bool {
        let mut facts = entry::facts(entry);
        let before = Tuple::of(&facts);
        match self.inward(&facts) {
            Some(inward) => redirect(&mut facts, &Tuple { dst: inward.dst, dport: inward.dport, ..before }),
            None => {
                if let Some((dst, dport)) = self.nat.steering.destinations.find(&facts).and_then(|found| found.to) {
                    redirect(&mut facts, &Tuple { dst, dport, ..before });
                }
            }
        }
        let to = entry.leaves(ORIGINAL);
        leads_to(&facts, &to) && (to.src == facts.src || self.nat.is_ours(&to.src, facts.has(flag::IPV6), out))
    }

    /// The facts by which a flow's stages judge again, and what is known before they do.
    pub(super) fn again<E: Entry>(&self, entry: &E, facts: &mut Meta, action: &mut Action) {
        if entry.body().has(mark::TRANSLATED)
            && let Some(inward) = self.inward(facts)
        {
            redirect(facts, &Tuple { dst: inward.dst, dport: inward.dport, ..Tuple::of(facts) });
            action.snat = HAIRPIN;
        }
    }

    /// A bounded amount of upkeep.
    pub(super) fn housekeep(&mut self) {
        self.snat.iter_mut().for_each(Snat::housekeep);
    }
}

/// What packets of a translated flow's way back leave with.
fn way_back<E: Entry>(entry: &E) -> Option<Tuple> {
    entry.body().has(mark::USED | mark::TRANSLATED).then(|| entry.leaves(REPLY))
}

/// Gives facts another destination.
fn redirect(facts: &mut Meta, to: &Tuple) {
    facts.dst = to.dst;
    // Both fields hold an echo's identifier, which is its source's.
    if facts.has(flag::PORTS) && !facts.has(flag::ECHO) {
        facts.dport = to.dport;
    }
}

/// True if packets of a subject go to the destination of a tuple.
fn leads_to(subject: &Meta, to: &Tuple) -> bool {
    let ports = subject.has(flag::PORTS) && !subject.has(flag::ECHO);
    subject.dst == to.dst && (!ports || subject.dport == to.dport)
}

/// The facts of a flow's first packet with the destination it was given.
pub(super) fn subject<E: Entry>(entry: &E) -> Meta {
    let mut facts = entry::facts(entry);
    redirect(&mut facts, &entry.leaves(ORIGINAL));
    facts
}

/// The slot by which an action translates the source, if it does.
fn slot_of(action: &Action) -> Option<u16> {
    (!matches!(action.snat, NO_SNAT | HAIRPIN) && action.out != SELF_PORT).then_some(action.snat)
}

/// True if a flow may stay translated, or untranslated, as it is: by what was judged again.
pub fn permits<E: Entry>(nat: Option<&Nat>, entry: &E, subject: &Meta, action: &Action) -> bool {
    let (from, to) = (entry.key().tuple(), entry.leaves(ORIGINAL));
    if !leads_to(subject, &to) {
        return false;
    }
    let sources = nat.and_then(|nat| nat.outbound.as_ref()).map(|outbound| &outbound.sources);
    let slot = slot_of(action).zip(sources).and_then(|(slot, sources)| sources.slots.get(usize::from(slot)));
    let Some((Slot { origin, ports, .. }, sources)) = slot.zip(sources) else {
        return (from.src, from.sport) == (to.src, to.sport);
    };
    let v6 = subject.has(flag::IPV6);
    let free = subject.has(flag::ECHO) || !subject.has(flag::PORTS);
    let owned = match origin {
        Origin::Fixed(fixed) => fixed.translate(&from.src, v6) == Some(to.src) && from.sport == to.sport,
        Origin::Masquerade => sources.of_port(action.out, v6) == Some(to.src),
        Origin::Pool(pool) => pool.contains(&to.src, v6),
    };
    owned && (free || ports.as_ref().is_none_or(|ports| ports.contains(&to.sport)))
}

/// Lets the flows of a table hold on to their mappings, those it has and those to come.
fn lease_again<E: Entry>(table: &mut Table<E>, entries: usize, snat: &mut Snat, nat: &Nat) {
    let Some(leases) = snat.leases(entries) else { return };
    table.keep_leases(leases);
    let Some(outbound) = &nat.outbound else { return };
    let (mut cursor, mut held) = (0, Vec::new());
    while !table.walk(&mut cursor, 1 << 16, |index, entry| {
        let (from, to) = (entry.key().tuple(), entry.leaves(ORIGINAL));
        let (proto, body) = (entry.key().protocol(), entry.body());
        let ends = [(from.src, from.sport), (to.src, to.sport)];
        if ends[0] != ends[1] {
            held.push((index, ends, proto, body.out[ORIGINAL], false));
        } else if body.has(mark::TRANSLATED) && nat.steering.destinations.find(&entry::facts(entry)).is_none() {
            held.push((index, [(to.dst, to.dport), (from.dst, from.dport)], proto, body.ingress[ORIGINAL], true));
        }
        true
    }) {}
    let v6 = E::Key::ADDRESS == 16;
    for (index, [inside, outside], proto, port, called) in held {
        let end = |(address, port)| End { address, port, proto, v6 };
        let fits = |slot: &Slot| {
            outbound.sources.is_of(slot, &outside.0, v6, port) && (!called || slot.filtering == Filtering::Independent)
        };
        let slots = outbound.sources.slots.iter().enumerate().filter(|(_, slot)| fits(slot));
        let lease = slots
            .map(|(slot, _)| snat.restore(slot as u16, end(inside), end(outside)))
            .find(|lease| *lease != Lease::NONE);
        table.lease(index, lease.unwrap_or(Lease::NONE));
    }
}

#[cfg(test)]
mod tests;
