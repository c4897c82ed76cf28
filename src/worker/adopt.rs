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
        })
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
