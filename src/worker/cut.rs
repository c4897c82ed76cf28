//! The worker's part in fragmentation: a packet that is too long for the link it leaves by goes in pieces, each in a buffer of
//! its own (RFC 791 section 3.2).

use crate::io::Io;
use crate::packet::cut::Cut;
use crate::stats::{Account, Engine};

use super::{Observer, Worker};

impl<I: Io, O: Observer> Worker<I, O> {
    /// Sends packet `i` of the batch in pieces, if it may be cut. A piece without a buffer is dropped.
    #[cold]
    pub(super) fn cut(&mut self, i: usize, mtu: u16) -> bool {
        let Some(cut) = Cut::plan(&self.batch.frames[i], &self.batch.metas[i], mtu) else { return false };
        let out = self.batch.metas[i].out;
        let mut whole = self.batch.frames[i].take();
        for piece in 0..cut.pieces() {
            // The first stands for the packet itself.
            self.sheet.account(Account::Created, u64::from(piece > 0));
            let Some(mut part) = self.io.create() else {
                self.tally(Engine::NoBuffer.into(), 1);
                continue;
            };
            if !cut.write(piece, &whole, &mut part) {
                self.tally(Engine::TooBig.into(), 1);
                self.io.free(std::slice::from_mut(&mut part));
                continue;
            }
            if O::LISTENS {
                self.observer.sent(&part, &self.batch.metas[i]);
            }
            if self.tap.is_watching() {
                self.tap.left(i, &part, &self.batch.metas[i], self.pipeline.tracker());
            }
            self.put_out(out, part);
        }
        self.io.free(std::slice::from_mut(&mut whole));
        true
    }
}
