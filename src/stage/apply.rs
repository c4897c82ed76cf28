//! Writing what was decided into the packet: the one place where the pipeline changes bytes on behalf of flow stages.

use crate::packet::{BATCH, Batch, Mask, bits};

use super::Action;

/// How packets of a flow leave: the link-layer rewrite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adjacency {
    /// New destination MAC.
    pub destination: Option<[u8; 6]>,
    /// New source MAC.
    pub source: Option<[u8; 6]>,
}

/// All adjacencies of a pipeline, by index. The first leaves the frame as it is.
#[derive(Clone, Debug)]
pub struct Adjacencies(Vec<Adjacency>);

impl Default for Adjacencies {
    fn default() -> Self {
        Adjacencies(vec![Adjacency::default()])
    }
}

impl Adjacencies {
    /// The index of an adjacency, added if it is new.
    pub fn index(&mut self, adjacency: Adjacency) -> u32 {
        let at = self.0.iter().position(|known| *known == adjacency).unwrap_or_else(|| {
            self.0.push(adjacency);
            self.0.len() - 1
        });
        at as u32
    }

    /// True if some adjacency changes a frame.
    pub fn rewrite(&self) -> bool {
        self.0.len() > 1
    }
}

/// Carries out the actions of the live packets in `todo`: rule, domain and egress go into their facts, and the link-layer
/// header is rewritten.
#[inline]
pub fn apply(todo: Mask, batch: &mut Batch, actions: &[Action; BATCH], adjacencies: &Adjacencies) {
    let rewrite = adjacencies.rewrite();
    for i in bits(todo & batch.live) {
        let action = &actions[i];
        let meta = &mut batch.metas[i];
        meta.rule = action.rule;
        meta.domain = action.domain;
        meta.out = action.out;
        if rewrite && action.adjacency != 0 {
            let adjacency = &adjacencies.0[action.adjacency as usize];
            if let Some(header) = batch.frames[i].bytes_mut().first_chunk_mut::<12>() {
                if let Some(destination) = adjacency.destination {
                    header[..6].copy_from_slice(&destination);
                }
                if let Some(source) = adjacency.source {
                    header[6..].copy_from_slice(&source);
                }
            }
        }
    }
}
