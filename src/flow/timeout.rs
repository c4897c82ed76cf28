//! How long a flow may be silent before it is forgotten, by protocol and state.
//!
//! Time in entries is counted in ticks of 2^24 ns (16.8 ms), as a 32-bit number that wraps: two times are compared by the
//! sign of their difference, good for spans up to a year.

use std::time::Duration;

/// A tick in nanoseconds, as a shift.
pub const TICK: u32 = 24;

/// A Unix time in nanoseconds as ticks.
#[inline]
pub fn ticks(now: u64) -> u32 {
    (now >> TICK) as u32
}

/// True if `deadline` is not after `now` (both in ticks).
#[inline]
pub fn has_passed(deadline: u32, now: u32) -> bool {
    now.wrapping_sub(deadline) as i32 >= 0
}

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $class:ident $key:ident = $seconds:literal),* $(,)?) => {
        /// What a flow's life depends on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Class { $($(#[doc = $doc])+ $class),* }

        impl Class {
            /// All of them, by number.
            pub const ALL: &'static [Class] = &[$(Class::$class),*];

            /// The word for it in the file, in `show flows` and in counters (`tcp_established`).
            pub fn word(self) -> &'static str {
                match self { $(Class::$class => stringify!($key)),* }
            }

            /// The class of a number; the last one of a number that is none.
            #[inline]
            pub fn of(number: u8) -> Class {
                Class::ALL[usize::from(number).min(Class::ALL.len() - 1)]
            }
        }

        crate::section! {
            /// `[conntrack.timeout]`
            pub struct Timeouts {
                $($(#[doc = $doc])+ pub $key: Duration = Duration::from_secs($seconds)),*
            }
        }

        impl Default for Timeouts {
            fn default() -> Timeouts {
                Timeouts { $($key: Duration::from_secs($seconds)),* }
            }
        }

        impl Timeouts {
            /// Ticks by class.
            pub fn ticks(&self) -> [u32; Class::ALL.len()] {
                [$(to_ticks(self.$key)),*]
            }
        }
    };
}

/// At least one tick, at most half of what can be compared.
fn to_ticks(life: Duration) -> u32 {
    (life.as_nanos() >> TICK).clamp(1, 1 << 30) as u32
}

classes! {
    /// TCP: a SYN was seen, and no answer. Linux waits as long (its SYN is sent again for 127 s).
    TcpSynSent tcp_syn_sent = 120,
    /// TCP: both SYNs were seen, and not yet the last acknowledgment.
    TcpSynReceived tcp_syn_received = 60,
    /// TCP: open. RFC 5382 REQ-5 asks for 2 hours 4 minutes at least.
    TcpEstablished tcp_established = 86_400,
    /// TCP: one end has closed and the other still sends (half-close).
    TcpHalfClosed tcp_half_closed = 7_440,
    /// TCP: both ends have closed, and acknowledgments are outstanding. RFC 5382 REQ-5: 4 minutes.
    TcpClosing tcp_closing = 240,
    /// TCP: closed; what is still under way may arrive (RFC 9293 section 3.4.2: twice the maximum segment lifetime).
    TcpTimeWait tcp_time_wait = 120,
    /// TCP: reset.
    TcpReset tcp_reset = 10,
    /// UDP: no answer was seen. RFC 4787 REQ-5: 2 minutes at least.
    UdpNew udp_new = 120,
    /// UDP: both directions were seen. RFC 4787 REQ-5 recommends 5 minutes.
    Udp udp = 300,
    /// ICMP and ICMPv6 echo. RFC 5508 REQ-2: 60 seconds at least.
    Icmp icmp = 60,
    /// SCTP: the association is being set up or shut down.
    SctpNew sctp_new = 60,
    /// SCTP: open. Heartbeats come every 30 seconds (RFC 9260 section 16).
    Sctp sctp = 600,
    /// Any other protocol: no answer was seen.
    OtherNew other_new = 60,
    /// Any other protocol: both directions were seen.
    Other other = 600,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_wrap() {
        assert!(has_passed(5, 5) && has_passed(u32::MAX, 3) && !has_passed(3, u32::MAX));
        assert_eq!(ticks(1 << TICK), 1);
    }

    #[test]
    fn every_class_has_its_time() {
        let ticks = Timeouts::default().ticks();
        assert_eq!(ticks[Class::TcpEstablished as usize], (86_400_000_000_000u64 >> TICK) as u32);
        assert!(Class::ALL.iter().enumerate().all(|(i, class)| *class as usize == i && Class::of(i as u8) == *class));
        assert_eq!(to_ticks(Duration::ZERO), 1);
    }
}
