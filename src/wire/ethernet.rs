//! Ethernet II (RFC 894, IEEE 802.3). Owns the header and the EtherTypes.

view! {
    /// An Ethernet header.
    pub Ethernet, EthernetMut: 14 {
        /// Destination MAC.
        destination, set_destination: [u8; 6] @ 0;
        /// Source MAC.
        source, set_source: [u8; 6] @ 6;
        /// EtherType; below [`ethertype::FIRST`] the length of an 802.3 frame.
        ethertype, set_ethertype: u16 @ 12;
    }
}

/// EtherTypes (IANA, IEEE).
pub mod ethertype {
    /// IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IPv6 (RFC 2464).
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag, the outer one of QinQ.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Anything below is not a type but a length: 802.3 with LLC, such as spanning tree.
    pub const FIRST: u16 = 0x0600;
}

/// New MAC addresses for frames, ready to be written: which of a header's first 16 bytes stay, and what the others become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    keep: [u8; 16],
    value: [u8; 16],
}

impl Rewrite {
    /// Leaves frames as they are.
    pub const NOTHING: Rewrite = Rewrite { keep: [0xff; 16], value: [0; 16] };

    /// Writes a destination and a source, each if given.
    pub fn macs(destination: Option<[u8; 6]>, source: Option<[u8; 6]>) -> Rewrite {
        let mut rewrite = Rewrite::NOTHING;
        for (at, mac) in [(0, destination), (6, source)] {
            if let Some(mac) = mac {
                rewrite.keep[at..at + 6].fill(0);
                rewrite.value[at..at + 6].copy_from_slice(&mac);
            }
        }
        rewrite
    }

    /// The mask of the bytes that stay, and the value of the others.
    pub fn words(&self) -> (&[u8; 16], &[u8; 16]) {
        (&self.keep, &self.value)
    }

    /// Writes to a frame. One shorter than a header is changed as far as it goes.
    #[inline]
    pub fn write(&self, frame: &mut [u8]) {
        if let Some(head) = frame.first_chunk_mut::<16>() {
            let (keep, value) = (u128::from_ne_bytes(self.keep), u128::from_ne_bytes(self.value));
            *head = (u128::from_ne_bytes(*head) & keep | value).to_ne_bytes();
        } else {
            for (byte, (keep, value)) in frame.iter_mut().zip(self.keep.iter().zip(&self.value)) {
                *byte = *byte & keep | value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_macs_change() {
        let rewrite = Rewrite::macs(Some([1; 6]), None);
        for len in 0..32 {
            let mut frame: Vec<u8> = (100..100 + len).collect();
            let before = frame.clone();
            rewrite.write(&mut frame);
            let cut = before.len().min(6);
            assert!(frame[..cut].iter().all(|byte| *byte == 1), "{len}");
            assert_eq!(frame[cut..], before[cut..], "{len}");
            Rewrite::macs(None, Some([2; 6])).write(&mut frame);
            assert!(frame.iter().skip(6).take(6).all(|byte| *byte == 2), "{len}");
            assert_eq!(frame.get(12..), before.get(12..), "{len}");
        }
    }
}
