//! Views over header bytes that somebody else owns: one file per header, and the checksums.
//!
//! A view borrows an array, so that its length is proven once, where it is made, and no accessor can panic or checks a bound
//! again. Byte order is converted here and nowhere else: numbers go in and out in host order. A view says what the bytes
//! are, not whether they make sense; that is decode's part. Nothing here allocates, or knows of batches or counters.

/// Declares a view over a header of fixed length and its writable twin: `pub Name, NameMut: LENGTH { field, setter: type @
/// offset; }`, where a type is `u8`, `u16`, `u32` or `[u8; N]`. Fields without a setter are `field: type @ offset;`.
macro_rules! view {
    (
        $(#[$meta:meta])*
        pub $name:ident, $name_mut:ident: $len:literal {
            $($(#[doc = $doc:literal])* $field:ident $(, $set:ident)?: $kind:tt @ $at:literal;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<'a>(&'a [u8; $len]);

        impl<'a> $name<'a> {
            /// Bytes of the header, options not included.
            pub const LEN: usize = $len;

            /// The header at the front of `bytes`; `None` if there are fewer bytes than that.
            #[inline(always)]
            pub fn parse(bytes: &'a [u8]) -> Option<Self> {
                bytes.first_chunk().map($name)
            }

            /// The header's bytes.
            #[inline(always)]
            pub fn bytes(self) -> &'a [u8; $len] {
                self.0
            }

            $(
                $(#[doc = $doc])*
                #[inline(always)]
                pub fn $field(self) -> view!(@type $kind) {
                    view!(@read $kind, self.0, $at)
                }
            )*
        }

        #[doc = concat!("[`", stringify!($name), "`], to be written. Checksums are the caller's to bring up to date.")]
        #[derive(Debug)]
        pub struct $name_mut<'a>(&'a mut [u8; $len]);

        impl<'a> $name_mut<'a> {
            /// The header at the front of `bytes`; `None` if there are fewer bytes than that.
            #[inline(always)]
            pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
                bytes.first_chunk_mut().map($name_mut)
            }

            /// The header, to be read.
            #[inline(always)]
            pub fn view(&self) -> $name<'_> {
                $name(self.0)
            }

            $($(
                #[doc = concat!("Writes [`", stringify!($field), "`](", stringify!($name), "::", stringify!($field), ").")]
                #[inline(always)]
                pub fn $set(&mut self, value: view!(@type $kind)) {
                    view!(@write $kind, self.0, $at, value)
                }
            )?)*
        }
    };
    (@type [u8; $n:literal]) => { [u8; $n] };
    (@type $int:ident) => { $int };
    (@type [$byte:ident; $n:literal]) => { [$byte; $n] };
    (@read u8, $bytes:expr, $at:literal) => { $bytes[$at] };
    (@read u16, $bytes:expr, $at:literal) => { u16::from_be_bytes([$bytes[$at], $bytes[$at + 1]]) };
    (@read u32, $bytes:expr, $at:literal) => {
        u32::from_be_bytes([$bytes[$at], $bytes[$at + 1], $bytes[$at + 2], $bytes[$at + 3]])
    };
    (@read [u8; $n:literal], $bytes:expr, $at:literal) => {{
        let mut field = [0; $n];
        field.copy_from_slice(&$bytes[$at..$at + $n]);
        field
    }};
    (@write u8, $bytes:expr, $at:literal, $value:expr) => { $bytes[$at] = $value };
    (@write $kind:ident, $bytes:expr, $at:literal, $value:expr) => {
        $bytes[$at..$at + size_of::<$kind>()].copy_from_slice(&$value.to_be_bytes())
    };
    (@write [u8; $n:literal], $bytes:expr, $at:literal, $value:expr) => {
        $bytes[$at..$at + $n].copy_from_slice(&$value)
    };
}

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod gre;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod vlan;

/// Protocol numbers (IANA) of IPv4's protocol and IPv6's next header field.
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// Encapsulating security payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// Authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6: nothing follows (RFC 8200 section 4.7).
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION: u8 = 60;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// Mobility header (RFC 6275).
    pub const MOBILITY: u8 = 135;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// Host identity protocol (RFC 7401).
    pub const HIP: u8 = 139;
    /// Shim6 (RFC 5533).
    pub const SHIM6: u8 = 140;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setters_write_what_readers_read() {
        let mut bytes = [0xa5u8; 20];
        let mut header = tcp::TcpMut::parse(&mut bytes).expect("20 bytes");
        header.set_source_port(0x0102);
        header.set_sequence(0xdead_beef);
        header.set_checksum(0x0304);
        assert_eq!(header.view().source_port(), 0x0102);
        assert_eq!(bytes, *b"\x01\x02\xa5\xa5\xde\xad\xbe\xef\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\x03\x04\xa5\xa5");
        let mut bytes = [0u8; 14];
        let mut header = ethernet::EthernetMut::parse(&mut bytes).expect("14 bytes");
        header.set_source([2, 0, 0, 0, 0, 9]);
        assert_eq!(header.view().source(), [2, 0, 0, 0, 0, 9]);
        assert_eq!(bytes, *b"\0\0\0\0\0\0\x02\0\0\0\0\x09\0\0");
    }

    #[test]
    fn a_byte_too_few_is_no_header() {
        assert!(ethernet::Ethernet::parse(&[0; 13]).is_none());
        assert!(arp::Arp::parse(&[0; 27]).is_none() && arp::Arp::parse(&[0; 28]).is_some());
        assert!(ipv4::Ipv4::parse(&[0; 19]).is_none());
        assert!(ipv6::Ipv6::parse(&[0; 39]).is_none());
        assert!(tcp::TcpMut::parse(&mut [0; 19]).is_none());
    }
}
