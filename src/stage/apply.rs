//! Writing what was decided into the packet: the one place where the pipeline changes bytes on behalf of flow stages.

use crate::packet::{BATCH, Batch, Mask, bits};
use crate::wire::ethernet::Rewrite;

use super::Action;

/// How packets of a flow leave, by index: the link-layer rewrite. The first leaves frames as they are.
#[derive(Clone, Debug)]
pub struct Adjacencies(Vec<Rewrite>);

impl Default for Adjacencies {
    fn default() -> Self {
        Adjacencies(vec![Rewrite::NOTHING])
    }
}

impl Adjacencies {
    /// The index of a rewrite, added if it is new.
    pub fn index(&mut self, rewrite: Rewrite) -> u32 {
        let at = self.0.iter().position(|known| *known == rewrite).unwrap_or_else(|| {
            self.0.push(rewrite);
            self.0.len() - 1
        });
        at as u32
    }

    /// The rewrite at an index.
    #[inline]
    pub fn at(&self, index: u32) -> &Rewrite {
        &self.0[index as usize]
    }
}

/// Carries out the actions of the live packets in `todo`: rule, domain and egress go into their facts, and the link-layer
/// header is rewritten.
#[inline]
pub fn apply(todo: Mask, batch: &mut Batch, actions: &[Action; BATCH], adjacencies: &Adjacencies) {
    for i in bits(todo & batch.live) {
        let action = &actions[i];
        let meta = &mut batch.metas[i];
        meta.rule = action.rule;
        meta.domain = action.domain;
        meta.out = action.out;
        if action.adjacency != 0 {
            adjacencies.at(action.adjacency).write(batch.frames[i].bytes_mut());
        }
    }
}

/// Drops the denied for the reasons their actions give.
#[inline]
pub fn refuse(denied: Mask, batch: &mut Batch, actions: &[Action; BATCH]) {
    for i in bits(denied & batch.live) {
        batch.metas[i].rule = actions[i].rule;
        batch.drop(i, actions[i].reason);
    }
}
