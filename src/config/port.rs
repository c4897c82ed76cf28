//! `[[port]]`: a DPDK device under a name, several bonded to one, or a VLAN of one. Form only; whether the device exists is found out when it is
//! started, and whether the parent does when all ports are known.

use std::fmt;

use super::address::Address;
use super::names::Tags;
use super::neighbor::RouterAdvertisements;
use super::reader::{FromToml, Item, Reader, parsed};
use super::source::At;
use super::units::{Auto, Within};
use crate::wire::ethernet::ethertype;

crate::choice! {
    /// Whether to use what a port can do.
    pub enum Offload {
        /// If the port can do it, else in software.
        Auto = "auto",
        /// Always in software.
        Off = "off",
    }
}

crate::choice! {
    /// What announces a VLAN tag.
    pub enum Tpid {
        /// EtherType 0x8100: a customer's tag.
        Customer = "802.1q",
        /// EtherType 0x88a8: a provider's tag.
        Service = "802.1ad",
    }
}

crate::choice! {
    /// Whether a packet's source must be reached by the port it came from (RFC 3704).
    pub enum Rpf {
        /// It is not checked. RFC 1812 section 5.3.8 wants that to be the default.
        Off = "off",
        /// Some route leads to it.
        Loose = "loose",
        /// The route to it leads by that port.
        Strict = "strict",
    }
}

crate::choice! {
    /// How frames spread over the members of a bond.
    pub enum BondMode {
        /// LACP (IEEE 802.1AX, once 802.3ad) agrees with the peer on the members that carry frames; they share them by `policy`.
        Lacp = "lacp",
        /// One member carries all; another takes over when its link goes down.
        ActiveBackup = "active-backup",
        /// The members share the frames by `policy`.
        BalanceXor = "balance-xor",
        /// One frame after the other by the next member; the order of a flow's frames is lost.
        RoundRobin = "round-robin",
    }
}

crate::choice! {
    /// What a frame's member is chosen by.
    pub enum BondPolicy {
        /// Its MAC addresses.
        L2 = "l2",
        /// Its MAC and IP addresses.
        L23 = "l23",
        /// Its IP addresses and ports.
        L34 = "l34",
    }
}

crate::section! {
    /// `bond` of `[[port]]`
    pub struct Bond {
        /// How frames spread over the members.
        pub mode: BondMode,
        /// The devices, each as `device` of a port would have it; none of them is a port itself. The first gives the bond its MAC address.
        pub members: Vec<At<Device>>,
        /// With "lacp" and "balance-xor": what a frame's member is chosen by; "l34" if left out.
        pub policy: Option<At<BondPolicy>>,
    }
}

impl Bond {
    /// True if the members share the frames by `policy`.
    pub fn shares(&self) -> bool {
        matches!(self.mode, BondMode::Lacp | BondMode::BalanceXor)
    }

    /// The bonding device of DPDK that it is, without its members; `number` tells bonds apart.
    pub fn device(&self, number: usize) -> Device {
        // The modes of Linux's bonding driver, which are DPDK's.
        let mode = match self.mode {
            BondMode::RoundRobin => 0,
            BondMode::ActiveBackup => 1,
            BondMode::BalanceXor => 2,
            BondMode::Lacp => 4,
        };
        let policy = self.policy.as_ref().map_or(BondPolicy::L34, |policy| policy.value).word();
        Device::Virtual(format!("net_bonding{number},mode={mode},xmit_policy={policy}"))
    }
}

/// The MTU of a port that has a device, unless the file says so.
pub const DEFAULT_MTU: u16 = 1500;

crate::section! {
    /// `[[port]]`
    pub struct Port {
        /// Its name everywhere else: a valid Linux interface name.
        pub name: At<String>,
        /// The device: a PCI address (`0000:3b:00.0`) or a DPDK virtual device (`net_tap0,iface=lan0`), device arguments behind a comma. A port has either this, `bond` or `parent`.
        pub device: Option<At<Device>>,
        /// Several devices that are one link together.
        pub bond: Option<At<Bond>>,
        /// The port of which it is a VLAN: what arrives there with the tags of `vlan` arrives on this port, and what leaves by this port leaves there, tagged. Of the keys below it may have `zone`, `address`, `rpf`, `router_advertisements` and `mtu`.
        pub parent: Option<At<String>>,
        /// With `parent`: the VLAN id, or two of them for a VLAN within a VLAN, the outer one first.
        pub vlan: Option<At<Vec<Within<1, 4094>>>>,
        /// With `parent`: what announces the outer tag, "802.1q" (0x8100) unless given; the inner one is always 802.1Q.
        pub tpid: Option<Tpid>,
        /// The zone it belongs to; several ports may share one.
        pub zone: Option<At<String>>,
        /// Its addresses, each with the length of its subnet's prefix, or a table `{ address = "192.0.2.254/24", mac = "00:00:5e:00:01:01" }` of one that neighbors find under another MAC than the port's, as that of a virtual router (RFC 9568): frames to it are taken too, and packets leave from the port's own. Those that the kernel or a DHCP client adds to its interface are used as well.
        pub address: Vec<At<Address>> = Vec::new(),
        /// How the sources of packets from this port are checked, if not as `rpf` of `[route]` says.
        pub rpf: Option<At<Rpf>>,
        /// What the port tells hosts as an IPv6 router (RFC 4861); nothing if left out.
        pub router_advertisements: Option<At<RouterAdvertisements>>,
        /// Largest packet without the Ethernet header and its tags, in bytes: 1500 if left out; of a VLAN, that of its parent.
        pub mtu: Option<At<Within<68, 9600>>>,
        /// Receive queues: one for each worker if the device has as many.
        pub rx_queues: Auto<Within<1, 128>> = Auto::Auto,
        /// Transmit queues: one for each worker if the device has as many.
        pub tx_queues: Auto<Within<1, 128>> = Auto::Auto,
        /// Descriptors of each receive and each transmit queue, as near as the device allows.
        pub descriptors: Within<64, 32768> = Within(1024),
        /// Receive frames for other stations too. Left out, it is true if the pipeline has a `cross`, whose wires need it.
        pub promiscuous: Option<bool>,
        /// Take the outer 802.1Q tag out of received frames: in the port if it can, else in software. Not of a port that has VLANs.
        pub vlan_strip: bool = false,
        /// Checksums of IPv4, TCP and UDP: `auto` leaves to the port what it can do.
        pub checksum: Offload = Offload::Auto,
        /// Spreading of flows over the receive queues with a symmetric hash: `auto` leaves it to the port if it can do it.
        pub rss: Offload = Offload::Auto,
    }
}

/// Keys that only a port with a device can have.
pub(super) const DEVICE_KEYS: &[&str] =
    &["rx_queues", "tx_queues", "descriptors", "promiscuous", "vlan_strip", "checksum", "rss"];
/// Keys that only a VLAN of a port can have, besides `parent`.
pub(super) const VLAN_KEYS: &[&str] = &["vlan", "tpid"];

impl Port {
    /// The tags that its frames have on the parent; none if it has a device, or if what the file says makes no sense.
    pub fn tags(&self) -> Option<Tags> {
        let tpid = match self.tpid.unwrap_or(Tpid::Customer) {
            Tpid::Customer => ethertype::VLAN,
            Tpid::Service => ethertype::SERVICE_VLAN,
        };
        match self.vlan.as_ref()?.as_slice() {
            [id] => Some(Tags { tpid, outer: id.0 as u16, inner: None }),
            [outer, inner] => Some(Tags { tpid, outer: outer.0 as u16, inner: Some(inner.0 as u16) }),
            _ => None,
        }
    }

    /// The MTU that the file gives it, or that of a port nothing is said of.
    pub fn own_mtu(&self) -> u16 {
        self.mtu.as_ref().map_or(DEFAULT_MTU, |mtu| mtu.value.0 as u16)
    }

    /// The name by which DPDK knows the device; empty for a VLAN.
    pub fn device_name(&self) -> &str {
        self.device.as_ref().map_or("", |device| device.name())
    }

    /// The members of a bond, as DPDK's EAL takes them; none of another port.
    pub fn members(&self) -> impl Iterator<Item = &Device> {
        self.bond.iter().flat_map(|bond| &bond.members).map(|member| &member.value)
    }

    /// The device as DPDK's EAL takes it; empty for a VLAN. Of a bond it is DPDK's bonding device.
    pub fn device(&self) -> &str {
        self.device.as_ref().map_or("", |device| device.text())
    }
}

/// A device as DPDK's EAL takes it, arguments included.
#[derive(Clone, PartialEq, Eq)]
pub enum Device {
    /// On the PCI bus: domain:bus:device.function in full and lower case, then the arguments.
    Pci(String),
    /// Virtual: driver and number, then the arguments.
    Virtual(String),
}

impl Device {
    /// Reads what stands in the file.
    pub fn parse(text: &str) -> Option<Device> {
        let (name, arguments) = match text.split_once(',') {
            Some((name, arguments)) => (name, format!(",{arguments}")),
            None => (text, String::new()),
        };
        if text.chars().any(char::is_control) {
            return None;
        }
        if name.contains(':') {
            return Some(Device::Pci(pci_address(name)? + &arguments));
        }
        let word = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let driver = name.starts_with("net_") && name.len() > 4 || name.starts_with("virtio_user");
        (word && driver).then(|| Device::Virtual(text.to_owned()))
    }

    /// The whole text: name and arguments.
    pub fn text(&self) -> &str {
        match self {
            Device::Pci(text) | Device::Virtual(text) => text,
        }
    }

    /// The name by which DPDK knows it: the text without its arguments.
    pub fn name(&self) -> &str {
        self.text().split(',').next().unwrap_or_default()
    }
}

/// A PCI address in full; the domain may be left out.
fn pci_address(text: &str) -> Option<String> {
    let hex = |digits: &str, most: u32| {
        let clean = !digits.is_empty() && digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|n| clean && *n <= most)
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let (domain, bus) = (hex(domain, u32::MAX)?, hex(bus, 0xff)?);
    Some(format!("{domain:04x}:{bus:02x}:{:02x}.{}", hex(device, 0x1f)?, hex(function, 7)?))
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
}

impl FromToml for Device {
    const EXPECTED: &'static str =
        "a PCI address such as \"0000:3b:00.0\" or a DPDK virtual device such as \"net_tap0,iface=lan0\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        parsed(&item, Self::EXPECTED, reader, Device::parse)
    }
}

/// True if Linux would take it as the name of an interface (`dev_valid_name`).
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let device = |text| Device::parse(text).map(|device| device.text().to_owned());
        assert_eq!(device("0000:3B:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(device("3b:0.1,rx_vec_en=1").as_deref(), Some("0000:3b:00.1,rx_vec_en=1"));
        assert_eq!(device("net_tap0,iface=lan0").as_deref(), Some("net_tap0,iface=lan0"));
        assert_eq!(Device::parse("net_pcap0,rx_pcap=a:b.pcap").expect("good").name(), "net_pcap0");
        for wrong in [
            "",
            "eth0",
            "net_",
            "3b:00",
            "0000:3b:20.0",
            "0000:3b:00.8",
            "0000:3b:+1.0",
            ":3b:00.0",
            "Net_tap0",
            "net tap",
        ] {
            assert_eq!(device(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn interface_names() {
        for good in ["lan", "eth0.100", "a", "fifteen-letters"] {
            assert!(is_interface_name(good), "{good:?}");
        }
        for wrong in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters-", "a\n"] {
            assert!(!is_interface_name(wrong), "{wrong:?}");
        }
    }
}
