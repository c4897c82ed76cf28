//! The first look at a packet of a routed port, before any stage: whether the frame is for this box, by which logical port it
//! came, and what is not for routes to decide.
//!
//! What hosts of a link say to each other to be found (ARP, neighbor and router discovery) goes straight to control; so does
//! what is not IP, for whoever listens on the kernel's interface (LLDP, IS-IS).

use std::sync::Arc;

use crate::packet::decode::Malformed;
use crate::packet::meta::flag;
use crate::packet::options::{self, Options};
use crate::packet::reply::Answer;
use crate::packet::{Batch, Frame, Mask, Meta, SELF_PORT, bits, forward};
use crate::route::Routing;
use crate::route::adjacency::ROUTED;
use crate::route::hop::Hop;
use crate::stats::ReasonBase;
use crate::wire::{checksum, protocol};

use super::{Drops, answer, is_spoofed, martian};

/// What the first look goes by.
#[derive(Clone)]
pub struct Arrival {
    routing: Arc<Routing>,
    reasons: ReasonBase,
}

/// UDP ports of DHCP (RFC 2131 section 4.1).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

impl Arrival {
    /// `reasons` are those of [`Drops`].
    pub fn new(routing: Arc<Routing>, reasons: ReasonBase) -> Arrival {
        Arrival { routing, reasons }
    }

    /// Looks at all live packets; what is for control leaves for the box itself at once.
    #[inline]
    pub fn process(&self, batch: &mut Batch) {
        // Those that decode read at a glance have neither tags nor options, and are TCP or UDP.
        let mut closer = batch.live & batch.uncommon;
        let macs = self.routing.macs.first();
        for i in bits(batch.live & !batch.uncommon) {
            let meta = &batch.metas[i];
            closer |= Mask::from(!is_for(macs, meta.port, &batch.frames[i]) | (meta.dport == DHCP_CLIENT)) << i;
        }
        if closer | batch.dead != 0 {
            self.look(closer, batch);
        }
    }

    #[inline(never)]
    fn look(&self, closer: Mask, batch: &mut Batch) {
        let mut own: Mask = 0;
        for i in bits(closer) {
            let (frame, meta) = (&batch.frames[i], &mut batch.metas[i]);
            if meta.port == SELF_PORT {
                own |= 1 << i;
                continue;
            }
            match self.look_closer(frame, meta) {
                Ok(true) => {}
                Ok(false) => {
                    meta.out = SELF_PORT;
                    batch.leave(1 << i);
                }
                Err((drop, answer)) => {
                    let told = answer != Answer::Nothing && self.may_be_told(meta);
                    batch.drop(i, self.reasons.at(drop));
                    if told {
                        batch.refuse(i, answer);
                    }
                }
            }
        }
        if own != 0 {
            self.own(own, batch);
        }
        if batch.dead != 0 {
            self.malformed(batch);
        }
    }

    /// Of what decode has refused: whose IPv4 options cannot be read is told where (RFC 1812 section 4.3.3.5, RFC 1122 section
    /// 3.2.2.5).
    #[cold]
    fn malformed(&self, batch: &mut Batch) {
        for i in bits(batch.dead & !batch.refused) {
            let (frame, meta) = (&batch.frames[i], &batch.metas[i]);
            let for_us = frame.bytes().first_chunk::<6>().is_some_and(|mac| self.routing.macs.is_one(meta.port, *mac));
            if batch.reasons[i] == Malformed::BadOption.into()
                && for_us
                && self.may_be_told(meta)
                && let Options::Malformed { pointer } = options::options(frame, meta)
            {
                batch.refuse(i, Answer::ParameterProblem { code: 0, pointer });
            }
        }
    }

    /// RFC 1812 section 4.3.2.7: nobody is told of a packet to a broadcast address, nor is one who cannot have sent it.
    fn may_be_told(&self, meta: &Meta) -> bool {
        let broadcast = matches!(self.hop(meta), Hop::Broadcast { .. });
        !broadcast && !self.has_bad_source(meta)
    }

    fn has_bad_source(&self, meta: &Meta) -> bool {
        martian::kind(meta) == martian::Kind::BadSource || is_spoofed(&self.routing, meta)
    }

    /// True if stages are to see the packet, false if it is for control.
    fn look_closer(&self, frame: &Frame, meta: &mut Meta) -> Result<bool, (Drops, Answer)> {
        let Some(&station) = frame.bytes().first_chunk::<6>() else {
            return Err((Drops::OtherStation, Answer::Nothing));
        };
        let group = station[0] & 1 != 0;
        if !group && !self.routing.macs.is_one(meta.port, station) {
            return Err((Drops::OtherStation, Answer::Nothing));
        }
        if !meta.any(flag::IPV4 | flag::IPV6) {
            return Ok(false);
        }
        // RFC 1122 section 3.3.6, RFC 1812 section 5.3.4: whoever says all on the link must say all in the packet.
        if group && !is_group(meta) && !matches!(self.hop(meta), Hop::Broadcast { .. }) {
            return Err((Drops::LinkBroadcast, Answer::Nothing));
        }
        if self.is_discovery(frame, meta) {
            return Ok(false);
        }
        // Nobody judges an error about a flow that there is: it goes where the flow comes from.
        if meta.has(flag::ICMP_ERROR) && self.has_bad_source(meta) {
            return Err((Drops::MartianSource, Answer::Nothing));
        }
        if meta.has(flag::OPTIONS) {
            match options::options(frame, meta) {
                // RFC 6398 section 3: an alert is for whoever asked to be alerted, and in transit nobody here has. What is
                // for the box or a group on the link gets there anyway.
                Options::None | Options::Plain | Options::RouterAlert => {}
                Options::SourceRoute { pointer } => {
                    // RFC 5095 section 3: a routing header of type 0 is a problem; RFC 1812 section 5.2.7.1: a source route fails.
                    let said = Answer::ParameterProblem { code: 0, pointer };
                    let v4 = meta.has(flag::IPV4);
                    return Err((Drops::SourceRoute, if v4 { answer(Drops::SourceRoute, 0) } else { said }));
                }
                Options::Malformed { pointer } => {
                    return Err((Drops::BadOptions, Answer::ParameterProblem { code: 0, pointer }));
                }
            }
        }
        if meta.dport == DHCP_CLIENT && self.is_lease(frame, meta) {
            // It is judged as the broadcast it might as well be, which its checksum knows nothing of.
            meta.dst = [0; 16];
            meta.dst[..4].fill(255);
            meta.flags |= flag::L4_SUM_GOOD;
        }
        Ok(true)
    }

    /// Whether a DHCP server tells the box's own client something, in a frame to it (RFC 2131 section 4.1): to the address it is to
    /// have, which it has not yet.
    fn is_lease(&self, frame: &Frame, meta: &Meta) -> bool {
        // RFC 2131 section 2: BOOTREPLY, Ethernet, six bytes of address; at byte 28 the client's address.
        let datagram = frame.bytes().get(meta.l4()..meta.end()).unwrap_or_default();
        let message = datagram.get(8..).unwrap_or_default();
        let client = message.get(28..).and_then(|rest| rest.first_chunk::<6>());
        meta.has(flag::IPV4 | flag::PORTS)
            && (meta.proto, meta.sport) == (protocol::UDP, DHCP_SERVER)
            && message.starts_with(&[2, 1, 6])
            && client.is_some_and(|client| self.routing.macs.is_one(meta.port, *client))
            && !matches!(self.hop(meta), Hop::Local { .. })
            && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT)
            // RFC 768: none was made.
            && (datagram[6..8] == [0, 0] || {
                let pseudo = checksum::pseudo(&meta.src[..4], &meta.dst[..4], protocol::UDP, datagram.len());
                checksum::transport_is_good(pseudo, datagram)
            })
    }

    fn hop(&self, meta: &Meta) -> Hop {
        self.routing.hop(meta.has(flag::IPV4), &meta.dst)
    }

    /// Router and neighbor discovery with a host of this link (RFC 4861 section 7.1: hop limit 255, so that it has passed no
    /// router), never in fragments (RFC 6980 section 5).
    fn is_discovery(&self, frame: &Frame, meta: &Meta) -> bool {
        meta.has(flag::IPV6)
            && meta.proto == protocol::ICMPV6
            && matches!(meta.detail[0], 133..=137)
            && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT)
            && forward::hops_left(frame, meta) == 255
            && (matches!(martian::kind(meta), martian::Kind::LinkGroup | martian::Kind::LinkDestination)
                || matches!(self.hop(meta), Hop::Local { .. }))
    }

    /// What the box's own kernel sends: what is not IP, and discovery, leaves as it is by the port it is meant for.
    #[cold]
    fn own(&self, own: Mask, batch: &mut Batch) {
        for i in bits(own) {
            let (frame, meta) = (&mut batch.frames[i], &mut batch.metas[i]);
            let by = frame.vlan_tci as u8;
            meta.vlan = by.into();
            if meta.any(flag::IPV4 | flag::IPV6) && !self.is_discovery(frame, meta) {
                continue;
            }
            let adjacency = self.routing.adjacencies.at(ROUTED | u32::from(by));
            meta.out = by;
            forward::retag(frame, meta, &adjacency.tags);
            batch.leave(1 << i);
        }
    }
}

/// True if a frame is for the first MAC address of its port, which the box's own ([`SELF_PORT`]) has none of.
#[inline(always)]
fn is_for(macs: &[u64], port: u8, frame: &Frame) -> bool {
    let (Some(front), Some(mac)) = (frame.bytes().first_chunk(), macs.get(usize::from(port))) else { return false };
    (u64::from_le_bytes(*front) ^ mac) << 16 == 0
}

/// True if a packet is for a group of hosts.
fn is_group(meta: &Meta) -> bool {
    match meta.has(flag::IPV4) {
        true => meta.dst[0] & 0xf0 == 0xe0 || meta.dst[..4] == [255; 4],
        false => meta.dst[0] == 0xff,
    }
}
