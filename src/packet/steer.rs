//! Which worker owns a packet.
