//! `route`: IPv4 and IPv6 forwarding by longest prefix.
//!
//! The stage decides where a packet goes: onto a link, to the box itself ([`SELF_PORT`]), or nowhere. It judges by facts and by
//! what control has published ([`Routing`]); what depends on the packet's own bytes is done around it: before everything else
//! (`arrival`: VLAN, MAC address, options), and when the packet is written (`stage::apply`: TTL, MTU, the link-layer header).
//!
//! What is refused is told to its sender where the RFCs say so, within a rate ([`answer`]).

use std::sync::Arc;

use crate::packet::meta::flag;
use crate::packet::reply::Answer;
use crate::packet::steer::{self, Key};
use crate::packet::{BATCH, Batch, Mask, Meta, NO_RULE, SELF_PORT, bits};
use crate::route::Routing;
use crate::route::adjacency::{GLEAN, ROUTED, SILENT};
use crate::route::hop::Hop;
use crate::route::rib::ports_of;
use crate::stats::{Line, Lines, ReasonBase};

use super::apply::Routed;
use super::{Action, Cx, Depth, FlowCommit, FlowPlan, Plan, PlanCx, Stage};

pub mod arrival;
pub mod config;
pub mod listed;
pub mod martian;
pub mod statics;

use config::{Config, Rpf};
use martian::Kind;

crate::lines! {
    /// Why routing drops.
    pub enum Drops {
        /// No route leads to the destination.
        NoRoute = "no-route",
        /// The route to the destination is a blackhole.
        Blackhole = "blackhole",
        /// The route to the destination says unreachable.
        Unreachable = "unreachable",
        /// The route to the destination says prohibited.
        Prohibited = "prohibited",
        /// The neighbor does not answer ARP or neighbor solicitations.
        HostUnreachable = "host-unreachable",
        /// TTL or hop limit has run out.
        TtlExpired = "ttl-expired",
        /// Longer than the next link takes, and not to be fragmented.
        TooBig = "too-big",
        /// The source is no address a packet may come from (RFC 1812 section 5.3.7, RFC 6890), one of the box itself among them.
        MartianSource = "martian-source",
        /// The destination is no address a packet may go to.
        MartianDestination = "martian-destination",
        /// The source is reached by another port (`rpf`).
        ReversePath = "reverse-path",
        /// Addresses of a link do not leave it (RFC 3927 section 7, RFC 4291 section 2.5.6).
        LinkLocal = "link-local",
        /// To the broadcast address of another port's subnet (RFC 2644).
        DirectedBroadcast = "directed-broadcast",
        /// To a group beyond the link: multicast is not routed.
        Multicast = "multicast",
        /// To one host, but in a frame to many (RFC 1812 section 5.3.4).
        LinkBroadcast = "link-broadcast",
        /// The frame is for another station.
        OtherStation = "other-station",
        /// A source route, or a routing header of type 0 (RFC 7126 section 4.3, RFC 5095).
        SourceRoute = "source-route",
        /// IP options or extension headers that break their own rules.
        BadOptions = "bad-options",
        /// The neighbor's answer is awaited, and no more packets are held for it.
        HoldFull = "hold-full",
        /// The neighbor's answer did not come in time.
        Unanswered = "unanswered",
        /// For the box itself, beyond what its kernel is given (`kernel.rate`).
        Policed = "policed",
        /// For the box itself, and the queue to its kernel is full or there is none.
        KernelFull = "kernel-full",
        /// An echo request to the box whose checksum is wrong.
        BadEcho = "bad-echo",
    }
}

/// What a packet dropped for one of these becomes. `mtu` is what the next link takes.
pub fn answer(drop: Drops, mtu: u16) -> Answer {
    match drop {
        Drops::NoRoute => Answer::NoRoute,
        Drops::Unreachable => Answer::RejectRoute,
        Drops::Prohibited => Answer::Prohibited,
        Drops::HostUnreachable | Drops::Unanswered => Answer::HostUnreachable,
        Drops::TtlExpired => Answer::TimeExceeded,
        Drops::TooBig => Answer::TooBig { mtu },
        Drops::LinkLocal => Answer::BeyondScope,
        Drops::SourceRoute => Answer::SourceRouteFailed,
        _ => Answer::Nothing,
    }
}

/// The stage.
pub struct Route;

impl Stage for Route {
    const NAME: &'static str = "route";
    const DOC: &'static str = "Routing of IPv4 and IPv6 by longest prefix, between ports with addresses, by the routes of \
                               the file and those of the kernel; what is addressed to the box goes to its kernel. Packets \
                               that cannot go on are answered with ICMP errors.";
    const JUDGES: bool = true;
    const DEPTH: Depth = Depth::L4;
    const EGRESS: bool = true;
    const REASONS: &'static [Line] = Drops::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let reasons = cx.reasons::<Drops>();
        let routing = cx.routing?.clone();
        cx.statics.extend(config.routes(cx.names, cx.mistakes)?);
        *cx.routed = Some(Routed {
            routing: routing.clone(),
            reasons,
            errors: config.icmp_errors.per_second,
            clamp: config.clamp_mss,
            assumed: None,
            used: routing.used.of(usize::MAX),
        });
        let ports = cx.names.ports.len();
        let rpf = config.reverse_path(cx.names);
        let checked = rpf.iter().any(|rpf| *rpf != Rpf::Off);
        Some(Plan::Flow(Arc::new(Judge { routing, reasons, rpf, checked, ports })))
    }
}

/// What judges.
struct Judge {
    routing: Arc<Routing>,
    reasons: ReasonBase,
    /// By port.
    rpf: Vec<Rpf>,
    /// True if any port's sources are checked.
    checked: bool,
    ports: usize,
}

/// Where a packet goes: an adjacency and a port.
type Way = (u32, u8);

impl Judge {
    /// The hops of addresses; what has none, because it is not IP, is the result.
    #[inline(always)]
    fn look_up(
        &self,
        todo: Mask,
        facts: &[Meta; BATCH],
        address: impl Fn(&Meta) -> &[u8; 16],
        hops: &mut [u32; BATCH],
    ) -> Mask {
        let fib = &self.routing.fib;
        let of = |i: usize, family: u16| (facts[i].flags & family != 0).then(|| address(&facts[i]));
        match fib.lookup_batch_v4(todo, |i| of(i, flag::IPV4), hops) {
            0 => 0,
            others => fib.lookup_batch_v6(others, |i| of(i, flag::IPV6), hops),
        }
    }

    /// All that is not the common case, a packet that routes alone decide about and one hop takes.
    #[inline(never)]
    fn decide(&self, meta: &Meta, hop: u32, source: u32) -> Result<Way, Drops> {
        if meta.port == SELF_PORT {
            return self.own(meta, hop);
        }
        if is_spoofed(&self.routing, meta) {
            return Err(Drops::MartianSource);
        }
        let kind = martian::kind(meta);
        if kind != Kind::Plain
            && let Some(way) = self.special(meta, kind)?
        {
            return Ok(way);
        }
        let way = self.lead(meta, hop)?;
        match kind {
            // An address of a link reaches the box and nobody else; which link it is on, no route says.
            Kind::LinkSource if way.1 != SELF_PORT => return Err(Drops::LinkLocal),
            Kind::LinkSource => {}
            _ if self.checked => self.reverse_path(meta, source)?,
            _ => {}
        }
        Ok(way)
    }

    /// Where a hop leads packets of this flow.
    fn lead(&self, meta: &Meta, hop: u32) -> Result<Way, Drops> {
        let mut to = self.routing.hops.at(hop);
        if let Hop::Group { .. } = to {
            to = self.routing.hops.choose(hop, steer::hash(meta, ECMP));
        }
        match to {
            Hop::Forward { adjacency, port } => Ok((ROUTED | adjacency, port)),
            Hop::Glean { port } => Ok((GLEAN, port)),
            Hop::Silent { port } => Ok((SILENT, port)),
            Hop::Local { .. } => Ok((0, SELF_PORT)),
            // RFC 919 section 7: ours if it came from that link. From elsewhere it is not let through (RFC 2644).
            Hop::Broadcast { port } if port == meta.port => Ok((0, SELF_PORT)),
            Hop::Broadcast { .. } => Err(Drops::DirectedBroadcast),
            Hop::Blackhole => Err(Drops::Blackhole),
            Hop::Unreachable => Err(Drops::Unreachable),
            Hop::Prohibit => Err(Drops::Prohibited),
            Hop::None | Hop::Group { .. } => Err(Drops::NoRoute),
        }
    }

    /// What addresses say that are not those of single hosts anywhere; `None` if the routes decide.
    #[cold]
    fn special(&self, meta: &Meta, kind: Kind) -> Result<Option<Way>, Drops> {
        match kind {
            Kind::Plain | Kind::LinkSource => Ok(None),
            Kind::BadSource => Err(Drops::MartianSource),
            Kind::BadDestination => Err(Drops::MartianDestination),
            Kind::Group => Err(Drops::Multicast),
            Kind::LinkDestination if meta.has(flag::IPV4) => Err(Drops::LinkLocal),
            // The frame came to our MAC: whether the address is the box's is for its kernel to know.
            Kind::LinkDestination | Kind::LinkGroup => Ok(Some((0, SELF_PORT))),
        }
    }

    /// Strict: the source is reached by the port it came from. Loose: it is reached at all (RFC 3704 sections 2.2, 2.4).
    fn reverse_path(&self, meta: &Meta, source: u32) -> Result<(), Drops> {
        let rpf = self.rpf.get(usize::from(meta.port)).copied().unwrap_or(Rpf::Off);
        if rpf == Rpf::Off {
            return Ok(());
        }
        let found = ports_of(&self.routing.hops, source).any(|port| rpf == Rpf::Loose || port == meta.port);
        if found { Ok(()) } else { Err(Drops::ReversePath) }
    }

    /// Of what the box itself sends. A first packet leaves as the kernel wrote it, by the port whose interface it was sent on;
    /// the way back of what came to the box is routed.
    #[cold]
    fn own(&self, meta: &Meta, hop: u32) -> Result<Way, Drops> {
        let by = meta.vlan as u8;
        if usize::from(by) >= self.ports {
            return Err(Drops::NoRoute);
        }
        let keep = (ROUTED | u32::from(by), by);
        if meta.vlan & BACK == 0 || martian::kind(meta) != Kind::Plain {
            return Ok(keep);
        }
        self.lead(meta, hop)
    }
}

/// True if a packet claims to come from the box itself, or from all of a subnet at once. Not of an address of a link, which
/// another host may have on another link.
#[inline(always)]
fn is_spoofed(routing: &Routing, meta: &Meta) -> bool {
    routing.own.may_have(&meta.src) && is_from_own(routing, meta)
}

#[cold]
fn is_from_own(routing: &Routing, meta: &Meta) -> bool {
    let v4 = meta.has(flag::IPV4);
    let of_link = !v4 && martian::is_link_local(&meta.src);
    !of_link && matches!(routing.hop(v4, &meta.src), Hop::Local { .. } | Hop::Broadcast { .. })
}

/// In `Meta::vlan` of what the box sends, above the port by which: these are the facts of a way back.
pub const BACK: u16 = 0x8000;

/// The hash by which flows are spread over the ways of a route: not the workers', or each worker would use some ways only.
const ECMP: Key = Key([0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1]);

impl FlowPlan for Judge {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        let (mut hops, mut sources) = ([0; BATCH], [0; BATCH]);
        let mut denied = self.look_up(todo, facts, |meta| &meta.dst, &mut hops);
        if self.checked {
            self.look_up(todo, facts, |meta| &meta.src, &mut sources);
        }
        for i in bits(denied) {
            // Arrival has taken out whatever else there is.
            actions[i].deny(self.reasons.at(Drops::NoRoute), NO_RULE);
        }
        let (words, own, checked) = (self.routing.hops.reader(), &self.routing.own, self.checked);
        for i in bits(todo & !denied) {
            let meta = &facts[i];
            if let Some((adjacency, out)) = words.forward(hops[i])
                && !checked
                && meta.port != SELF_PORT
                && martian::is_plain(meta)
                && !own.may_have(&meta.src)
            {
                (actions[i].adjacency, actions[i].out) = (ROUTED | adjacency, out);
                continue;
            }
            match self.decide(&facts[i], hops[i], sources[i]) {
                Ok((adjacency, out)) => (actions[i].adjacency, actions[i].out) = (adjacency, out),
                Err(drop) => {
                    actions[i].deny(self.reasons.at(drop), NO_RULE);
                    denied |= 1 << i;
                }
            }
        }
        denied
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Told { reasons: self.reasons })
    }

    fn describe(&self) -> Vec<String> {
        let ports = self.ports;
        vec![format!("{ports} port(s), sources checked on {}", self.rpf.iter().filter(|rpf| **rpf != Rpf::Off).count())]
    }

    fn concludes(&self) -> bool {
        true
    }
}

/// A worker's part: lets senders be told.
struct Told {
    reasons: ReasonBase,
}

impl FlowCommit for Told {
    fn commit(&mut self, _judged: Mask, _batch: &Batch, _actions: &[Action; BATCH], _cx: &mut Cx<'_>) {}

    fn conclude(&mut self, judged: Mask, batch: &mut Batch, _actions: &[Action; BATCH], _cx: &mut Cx<'_>) {
        for i in bits(judged & batch.dead) {
            let said = Drops::of(self.reasons, batch.reasons[i]).map_or(Answer::Nothing, |drop| answer(drop, 0));
            if said != Answer::Nothing {
                batch.refuse(i, said);
            }
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;
#[cfg(test)]
mod vlan_tests;
