//! `[[port]]`: a DPDK device under a name. Form only; whether the device exists is found out when it is started.

use std::fmt;

use super::reader::{FromToml, Item, Reader, parsed};
use super::source::At;
use super::units::{Auto, Within};

crate::choice! {
    /// Whether to use what a port can do.
    pub enum Offload {
        /// If the port can do it, else in software.
        Auto = "auto",
        /// Always in software.
        Off = "off",
    }
}

crate::section! {
    /// `[[port]]`
    pub struct Port {
        /// Its name everywhere else: a valid Linux interface name.
        pub name: At<String>,
        /// The device: a PCI address (`0000:3b:00.0`) or a DPDK virtual device (`net_tap0,iface=lan0`), device arguments behind a comma.
        pub device: At<Device>,
        /// The zone it belongs to; several ports may share one.
        pub zone: Option<At<String>>,
        /// Largest packet without the Ethernet header, in bytes.
        pub mtu: Within<68, 9600> = Within(1500),
        /// Receive queues: one for each worker if the device has as many.
        pub rx_queues: Auto<Within<1, 128>> = Auto::Auto,
        /// Transmit queues: one for each worker if the device has as many.
        pub tx_queues: Auto<Within<1, 128>> = Auto::Auto,
        /// Descriptors of each receive and each transmit queue, as near as the device allows.
        pub descriptors: Within<64, 32768> = Within(1024),
        /// Receive frames for other stations too. Left out, it is true if the pipeline has a `cross`, whose wires need it.
        pub promiscuous: Option<bool>,
        /// Take the outer 802.1Q tag out of received frames: in the port if it can, else in software.
        pub vlan_strip: bool = false,
        /// Checksums of IPv4, TCP and UDP: `auto` leaves to the port what it can do.
        pub checksum: Offload = Offload::Auto,
        /// Spreading of flows over the receive queues with a symmetric hash: `auto` leaves it to the port if it can do it.
        pub rss: Offload = Offload::Auto,
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
