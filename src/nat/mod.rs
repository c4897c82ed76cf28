//! Address translation: what destinations and sources become, and which worker owns a translated packet.
//!
//! Owns rules and targets (`rules`, `destination`), the choice of addresses and ports (`source`, `pool`, `mapping`), and the
//! worker of a packet (`steer`). It sees no frames but the quotes of ICMP errors, and files no flows: the stages `dnat` and
//! `snat` judge by it, the flow table says which candidates are free, and `apply` writes the bytes.
//!
//! Ports are drawn when a flow is admitted, after all judging, so that what is denied costs none.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::source::{Mistakes, Place};
use crate::packet::Meta;
use crate::packet::meta::flag;
use crate::packet::translate::Tuple;
use crate::route::Addresses;
use crate::stage::Action;
use crate::stage::ingress::Ports;
use crate::stats::Reason;

pub mod destination;
pub mod mapping;
pub mod pool;
pub mod rules;
pub mod source;
pub mod steer;

use destination::Destinations;
use rules::Spans;
use source::{Filtering, Fixed, Mapping, Refusal, Slot, Sources};
use steer::Steering;

/// `Action::snat` behind `dnat`, of a packet whose new destination may share a network with its source: `snat` then decides,
/// knowing where it leaves. Where no stage does, it keeps its source.
pub const HAIRPIN: u16 = u16::MAX - 1;

/// Hosts that are known outside by addresses of their own.
#[derive(Clone, Debug)]
pub struct OneToOne {
    /// Ports to the outside.
    pub outside: Ports,
    /// From inside to outside.
    pub fixed: Fixed,
    /// Slot of its rule.
    pub rule: u16,
}

/// What the source stage's plan says to those who translate.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// By `Action::snat`: what the source becomes.
    pub sources: Arc<Sources>,
    /// Addresses of pools.
    pub pools: Spans,
    /// Ports whose own addresses translate.
    pub masquerade: Ports,
    /// Sources mapped endpoint-independently.
    pub independent: Spans,
    /// By `Action::snat`: the slot of its rule, `NO_RULE` of those who come back to where they came from.
    pub rules: Vec<u16>,
    /// Drop reasons: exhausted, and no address.
    pub reasons: [Reason; 2],
}

/// What the stages of a pipeline say of translation while they are compiled.
#[derive(Debug)]
pub struct Draft {
    /// What ports have for addresses.
    pub addresses: Arc<Addresses>,
    /// Rules for destinations.
    pub destinations: Option<Arc<Destinations>>,
    /// One-to-one translations, from the stage for destinations to that for sources.
    pub one_to_one: Vec<OneToOne>,
    /// The first of them, until a stage for sources has taken them over.
    pub pairs_at: Option<(Place, String)>,
    /// What sources become.
    pub outbound: Option<Outbound>,
}

impl Default for Draft {
    fn default() -> Draft {
        Draft::new(Arc::new(Addresses::new(0)))
    }
}

/// Translation in a pipeline, compiled.
#[derive(Clone, Debug)]
pub struct Nat {
    /// Whose a packet is.
    pub steering: Arc<Steering>,
    /// What sources become, if they are translated.
    pub outbound: Option<Outbound>,
}

impl Draft {
    /// Nothing said yet. `addresses` are those of the running ports; where there are none, of none.
    pub fn new(addresses: Arc<Addresses>) -> Draft {
        Draft { addresses, destinations: None, one_to_one: Vec::new(), pairs_at: None, outbound: None }
    }

    /// What the stages have said; `None` if none of them translates. Notes what one of them lacks.
    pub fn finish(self, mistakes: &mut Mistakes) -> Option<Nat> {
        let Draft { addresses, destinations, one_to_one, pairs_at, outbound } = self;
        if let Some((place, stage)) = pairs_at {
            let help = "add \"snat\" to the pipeline, behind \"route\"";
            mistakes.with_help(
                &place,
                &format!("{stage}.one_to_one"),
                "what the hosts send is translated by \"snat\"",
                help,
            );
        }
        if destinations.is_none() && outbound.is_none() {
            return None;
        }
        let destinations =
            destinations.unwrap_or_else(|| Arc::new(Destinations { rules: Vec::new(), addresses: addresses.clone() }));
        let (mut pools, mut masquerade, mut independent) = (Spans::default(), Ports::default(), Spans::default());
        if let Some(outbound) = &outbound {
            pools = outbound.pools.clone();
            masquerade = outbound.masquerade;
            independent = outbound.independent.clone();
        }
        let shares = !pools.is_empty() || masquerade.iter().next().is_some();
        let steering = Steering {
            destinations,
            fixed: one_to_one.iter().map(|pair| pair.fixed.reversed()).collect(),
            pools,
            masquerade,
            independent,
            addresses,
            shares,
        };
        Some(Nat { steering: Arc::new(steering), outbound })
    }
}

impl Nat {
    /// Addresses that stand for others outside, first and last of ranges: those of pools and one-to-one translations, and those
    /// by which rules for destinations are reached.
    pub fn addresses(&self) -> [Vec<(IpAddr, IpAddr)>; 2] {
        let ranges = |spans: &Spans| {
            let of = |v6: bool| {
                spans.family(v6).iter().map(move |(first, last)| match v6 {
                    true => (IpAddr::V6((*first).into()), IpAddr::V6((*last).into())),
                    false => {
                        let short = |number: &u128| IpAddr::V4(((number >> 96) as u32).into());
                        (short(first), short(last))
                    }
                })
            };
            of(false).chain(of(true)).collect::<Vec<_>>()
        };
        let mut pools = self.outbound.as_ref().map(|outbound| ranges(&outbound.pools)).unwrap_or_default();
        pools.extend(self.steering.fixed.iter().map(|Fixed { from, host, v6, .. }| match v6 {
            true => (IpAddr::V6((*from).into()), IpAddr::V6((from | host).into())),
            false => {
                let short = |number: u128| IpAddr::V4(((number >> 96) as u32).into());
                (short(*from), short(from | host))
            }
        }));
        let rules = self.steering.destinations.rules.iter();
        let rules = rules.filter(|rule| !matches!(rule.change, destination::Change::Nothing));
        [pools, rules.filter_map(|rule| rule.asks.destination.as_ref()).flat_map(ranges).collect()]
    }

    /// True for an address that sources become where flows leave by `out`.
    pub fn is_ours(&self, address: &[u8; 16], v6: bool, out: u8) -> bool {
        let outside = |fixed: &Fixed| fixed.translate(address, v6).is_some();
        self.steering.fixed.iter().any(outside)
            || self.outbound.as_ref().is_some_and(|outbound| {
                outbound.pools.contains(address, v6) || outbound.sources.of_port(out, v6) == Some(*address)
            })
    }
}

impl Nat {
    /// Gives the facts of a saved flow's first packet the destination it went to, if that can have been by a mapping that
    /// everyone may use: mappings are known only when their flows are.
    pub fn call(&self, facts: &mut Meta, action: &mut Action, to: &Tuple) {
        let Some(outbound) = &self.outbound else { return };
        let (outside, v6, port) = (facts.dst, facts.has(flag::IPV6), facts.port);
        let open = |slot: &Slot| {
            let open = slot.mapping == Mapping::Independent && slot.filtering == Filtering::Independent;
            open && outbound.sources.is_of(slot, &outside, v6, port)
        };
        let called = to.dst != facts.dst && facts.has(flag::PORTS) && outbound.sources.slots.iter().any(open);
        if called && self.steering.destinations.find(facts).is_none() {
            (facts.dst, action.snat) = (to.dst, HAIRPIN);
            if !facts.has(flag::ECHO) {
                facts.dport = to.dport;
            }
        }
    }
}

impl Outbound {
    /// Why a flow without a source is dropped.
    pub fn reason(&self, refusal: Refusal) -> Reason {
        self.reasons[match refusal {
            Refusal::Exhausted => 0,
            Refusal::NoAddress => 1,
        }]
    }
}
