//! Which addresses are the box's own, as far as a glance tells: nobody else may send from one of them.
//!
//! A filter beside the forwarding table, so that to ask it of every packet's source costs no lookup. What it says no to is none
//! of the box's; what it says yes to is looked up. Control alone changes it, and no address that stays is missing meanwhile.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

/// Bits: of 300 addresses, one in fourteen foreign ones is looked up in vain.
const BITS: usize = 1 << 12;
/// More addresses of a prefix than these are not marked one by one: then everything is looked up.
const MOST: usize = 256;

/// The filter.
#[derive(Debug)]
pub struct Own([AtomicU64; BITS / 64]);

impl Default for Own {
    fn default() -> Own {
        Own(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Own {
    /// False for what is no address of the box's; an IPv4 address is the first four bytes.
    #[inline(always)]
    pub fn may_have(&self, address: &[u8; 16]) -> bool {
        let bit = bit(address);
        self.0[bit / 64].load(Ordering::Relaxed) >> (bit % 64) & 1 != 0
    }

    /// Sets the addresses that are the box's.
    pub fn set(&self, nets: impl IntoIterator<Item = IpNet>) {
        let mut words = [0; BITS / 64];
        for net in nets {
            let mut hosts = hosts(net);
            hosts.by_ref().take(MOST).map(|address| bit(&address)).for_each(|bit| words[bit / 64] |= 1 << (bit % 64));
            if hosts.next().is_some() {
                words = [u64::MAX; BITS / 64];
            }
        }
        self.0.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }
}

#[inline(always)]
fn bit(address: &[u8; 16]) -> usize {
    let [a, b]: [u64; 2] = bytemuck::cast(*address);
    ((a ^ b.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS.ilog2())) as usize
}

/// All addresses under a prefix.
fn hosts(net: IpNet) -> impl Iterator<Item = [u8; 16]> {
    let (first, last) = (number(net.network()), number(net.broadcast()));
    (first..=last).map(move |address| match net {
        IpNet::V4(_) => {
            let [a, b, c, d] = (address as u32).to_be_bytes();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpNet::V6(_) => address.to_be_bytes(),
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(address: &str) -> [u8; 16] {
        hosts(IpNet::from(address.parse::<IpAddr>().expect("an address"))).next().expect("itself")
    }

    #[test]
    fn no_address_of_the_box_is_missed() {
        let own = Own::default();
        assert!(!own.may_have(&bytes("192.0.2.1")));
        let nets = |list: &[&str]| list.iter().map(|net| net.parse::<IpNet>().expect("a prefix")).collect::<Vec<_>>();
        own.set(nets(&["192.0.2.1/32", "2001:db8::1/128", "198.51.100.0/24"]));
        for address in ["192.0.2.1", "2001:db8::1", "198.51.100.0", "198.51.100.255"] {
            assert!(own.may_have(&bytes(address)), "{address}");
        }
        let others = (0..4096_u32).filter(|n| own.may_have(&bytes(&format!("10.7.{}.{}", n >> 8, n & 255)))).count();
        assert!(others < 600, "{others} of 4096 are looked up in vain");
        own.set(nets(&["192.0.2.2/32"]));
        assert!(own.may_have(&bytes("192.0.2.2")) && !own.may_have(&bytes("2001:db8::1")));
        own.set(nets(&["2001:db8::/64"]));
        assert!(own.may_have(&bytes("10.9.9.9")), "too many to mark");
    }
}
