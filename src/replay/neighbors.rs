//! Control's side of routing in a replay: who answers for neighbors where there is no network.
//!
//! Routes are those of the file, all links are up, and what is given in the file as a neighbor is one. For the others: see
//! [`Neighbors`]. Nothing that control itself would send (its questions, its answers to ARP) is written.
//!
//! Captures do not know the MAC addresses that the box would have, so a frame to a single station is taken to be for the box.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::packet::meta::flag;
use crate::packet::{Frame, Meta, SELF_PORT};
use crate::route::neighbor::stand_in;
use crate::route::{Routing, router};
use crate::stage::pipeline::Blueprint;

/// Between two changes that control tells workers of, in nanoseconds.
const PAUSE: u64 = 10_000_000;
/// How long the box has been up when the first packet arrives, in nanoseconds: its addresses are in use.
const UP: u64 = 10_000_000_000;
/// How often what is held is looked at before the next packets arrive.
pub const ROUNDS: usize = 4;
/// Packets taken at a time, so that no neighbor is waited for by more than are held for it.
const FEW: usize = 8;

/// Who answers for a neighbor that is not given in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Neighbors {
    /// It answers at once, with the MAC 02:00 and the last four bytes of its address; what ARP and neighbor discovery in the captures say is heard too.
    #[default]
    Assume,
    /// Only who answers in the captures, behind the packet that waits for it.
    Capture,
}

/// A frame for control.
pub struct Heard {
    port: u8,
    bytes: Vec<u8>,
}

impl Heard {
    /// What control hears of what the box has taken: all that is not IPv4, without tags.
    pub fn of(frame: &Frame, meta: &Meta) -> Option<Heard> {
        if meta.out != SELF_PORT || meta.port == SELF_PORT || meta.has(flag::IPV4) {
            return None;
        }
        let bytes = [frame.bytes().get(..12)?, frame.bytes().get(meta.l3() - 2..)?].concat();
        Some(Heard { port: meta.port, bytes })
    }
}

/// Control.
pub struct Router {
    /// Who answers.
    pub neighbors: Neighbors,
    router: Arc<Mutex<router::Router>>,
    routing: Arc<Routing>,
    carriers: Vec<u8>,
    /// Its time, which runs ahead of the captures'; none before it has started.
    clock: Option<u64>,
}

impl Router {
    /// That of a pipeline, if it routes.
    pub fn of(blueprint: &Blueprint) -> Option<Router> {
        let (router, routed) = (blueprint.router.clone()?, blueprint.ways.routed.as_ref()?);
        let (routing, carriers) = (routed.routing.clone(), blueprint.carriers.clone());
        Some(Router { neighbors: Neighbors::default(), router, routing, carriers, clock: None })
    }

    /// Packets to be taken at a time.
    pub fn most(&self) -> usize {
        match self.neighbors {
            Neighbors::Assume => FEW,
            Neighbors::Capture => crate::packet::BATCH,
        }
    }

    /// True if what waits goes on before the next packets arrive.
    pub fn is_waited_for(&self) -> bool {
        self.neighbors == Neighbors::Assume
    }

    /// Makes a frame one for the box, if it is for a single station.
    pub fn address(&self, frame: &mut Frame, port: u8) {
        if let (Some(mac), Some(station)) = (self.routing.macs.of(port), frame.bytes_mut().first_chunk_mut::<6>())
            && station[0] & 1 == 0
        {
            *station = mac;
        }
    }

    fn lock(&self) -> MutexGuard<'_, router::Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets it hear frames, and do what is due at a time of the captures.
    pub fn attend(&mut self, time: u64, heard: Vec<Heard>) {
        let now = self.pass(time);
        for Heard { port, bytes } in heard {
            self.lock().receive(port, &bytes, now);
        }
        self.serve(now);
    }

    /// Lets so much time pass that workers are told of what has changed.
    pub fn settle(&mut self, time: u64) {
        let now = self.pass(time) + PAUSE;
        self.clock = Some(now);
        self.serve(now);
    }

    /// Its time; it starts if it has not.
    fn pass(&mut self, time: u64) -> u64 {
        let now = match self.clock {
            Some(clock) => clock.max(time.saturating_add(UP)),
            None => {
                self.lock().start(u64::MAX, &self.carriers, time);
                let ticks = (time..=time.saturating_add(UP)).step_by(PAUSE as usize * 10);
                ticks.for_each(|now| self.serve(now));
                time.saturating_add(UP)
            }
        };
        self.clock = Some(now);
        now
    }

    /// Does what is due; questions are answered if that is wanted.
    fn serve(&self, now: u64) {
        let mut router = self.lock();
        router.serve(now);
        router.notes.clear();
        let sends = std::mem::take(&mut router.sends);
        if self.neighbors == Neighbors::Assume {
            for (port, answer) in sends.iter().filter_map(|(port, frame)| Some((*port, stand_in::answer(frame)?))) {
                router.receive(port, &answer, now);
            }
        }
    }
}
