//! `cross`: a wire between two ports.
//!
//! What comes in on one end leaves by the other, in both directions, as it came or with other MAC addresses: a transparent
//! firewall is a cross with an `acl` behind it. An appliance may have several wires; each is a domain of its own. Alone in the
//! pipeline, a cross that rewrites nothing forwards frames without reading them.

use crate::config::source::At;
use crate::packet::{BATCH, Batch, Mask, Meta, bits};
use crate::stats::{Lines, Reason};

use super::apply::Adjacency;
use super::{Action, Cx, Depth, FlowCommit, FlowPlan, Plan, PlanCx, Stage};

crate::lines! {
    /// Why a cross drops.
    pub enum Drops {
        /// The port is the end of no wire.
        NoWire = "no-wire",
    }
}

crate::section! {
    /// `[cross]`
    pub struct Config {
        /// The wires.
        pub wire: Vec<Wire>,
    }
}

crate::section! {
    /// `[[cross.wire]]`
    pub struct Wire {
        /// The names of its two ports.
        pub ports: At<Vec<At<String>>>,
        /// Rewrite MAC addresses: each frame leaves with the egress port's MAC as its source and, if `peer` is given, the peer's as its destination.
        pub rewrite_mac: bool = false,
        /// With `rewrite_mac`: the MACs of the stations behind the two ports, in the order of `ports`.
        pub peers: Option<At<Vec<At<String>>>>,
    }
}

/// The stage.
pub struct Cross;

impl Stage for Cross {
    const NAME: &'static str = "cross";
    const DOC: &'static str = "A wire between two ports: what comes in on one leaves by the other.";
    const DEPTH: Depth = Depth::Nothing;
    const REASONS: &'static [crate::stats::Line] = Drops::LINES;
    type Config = Config;

    fn plan(_config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let base = cx.reasons::<Drops>();
        let _ = (Adjacency::default(), base);
        None
    }
}

/// Where each port's frames go.
struct Wires {
    peer: [Action; 256],
    no_wire: Reason,
}

impl FlowPlan for Wires {
    fn judge(&self, todo: Mask, facts: &[Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        let mut denied = 0;
        for i in bits(todo) {
            let to = &self.peer[usize::from(facts[i].port)];
            let action = &mut actions[i];
            (action.out, action.adjacency, action.domain) = (to.out, to.adjacency, to.domain);
            if to.out == crate::packet::NO_PORT {
                action.deny(self.no_wire, crate::packet::NO_RULE);
                denied |= 1 << i;
            }
        }
        denied
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Nothing)
    }
}

/// A cross counts nothing of its own.
struct Nothing;

impl FlowCommit for Nothing {
    fn commit(&mut self, _judged: Mask, _batch: &Batch, _actions: &[Action; BATCH], _cx: &mut Cx<'_>) {}
}
