//! Sets up kernel interfaces by netlink: MAC, MTU, state, carrier and addresses; and what the kernel is to do with them.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{Netlink, Request, word};

/// Index of the interface with this name, if there is one.
pub fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<u32>> {
    let name = [name.as_bytes(), &[0]].concat();
    let request = Request::new(libc::RTM_GETLINK, 0, &[0; 16]).with(libc::IFLA_IFNAME, &name);
    let mut index = None;
    let result = netlink.ask(request.acknowledged(), |message| {
        index = message.payload.get(4..).and_then(word);
    });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        result => result.map(|()| index),
    }
}

/// Sets MAC (in wire order) and MTU (in bytes), and takes it up.
pub fn take_up(netlink: &mut Netlink, index: u32, mac: [u8; 6], mtu: u16) -> io::Result<()> {
    let up = libc::IFF_UP as u32;
    let request = set(index, up, up).with(libc::IFLA_ADDRESS, &mac);
    netlink.change(request.with(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()))
}

/// Sets whether it has a carrier.
pub fn set_carrier(netlink: &mut Netlink, index: u32, carrier: bool) -> io::Result<()> {
    netlink.change(set(index, 0, 0).with(libc::IFLA_CARRIER, &[u8::from(carrier)]))
}

/// Adds an address with the length of its prefix; one that is there already is left there.
pub fn add_address(netlink: &mut Netlink, index: u32, net: IpNet) -> io::Result<()> {
    netlink.change(address(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, index, net))
}

/// Removes an address.
pub fn remove_address(netlink: &mut Netlink, index: u32, net: IpNet) -> io::Result<()> {
    netlink.change(address(libc::RTM_DELADDR, 0, index, net))
}

/// `ifinfomsg`: family and type, index, flags and which of them to change.
fn set(index: u32, flags: u32, which: u32) -> Request {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&which.to_ne_bytes());
    Request::new(libc::RTM_NEWLINK, 0, &header).acknowledged()
}

/// `ifaddrmsg`: family, length of the prefix, flags, scope, index.
fn address(kind: u16, flags: i32, index: u32, net: IpNet) -> Request {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let (family, own) = bytes(net.addr());
    let mut header = [family as u8, net.prefix_len(), 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(kind, flags, &header).acknowledged();
    let request = request.with(libc::IFA_LOCAL, &own).with(libc::IFA_ADDRESS, &own);
    match net {
        // RFC 3021: a prefix of 31 has no broadcast address.
        IpNet::V4(net) if kind == libc::RTM_NEWADDR && net.prefix_len() < 31 => {
            request.with(libc::IFA_BROADCAST, &net.broadcast().octets())
        }
        _ => request,
    }
}

/// Says what the kernel is to do with an interface: nothing beside flowgate. For the namespace of the thread.
pub fn restrain(name: &str, accept_ra: bool) -> Result<(), String> {
    let ra = if accept_ra { "2" } else { "0" };
    let settings = [
        // Packets of the box alone come in here; whether they came by the right port was judged before.
        ("ipv4", "forwarding", "0"),
        ("ipv4", "rp_filter", "0"),
        ("ipv6", "forwarding", "0"),
        // 2 is to accept advertisements even where the host forwards between other interfaces.
        ("ipv6", "accept_ra", ra),
        ("ipv6", "autoconf", if accept_ra { "1" } else { "0" }),
        ("ipv6", "keep_addr_on_down", "1"),
    ];
    for (family, setting, value) in settings {
        let path = format!("/proc/sys/net/{family}/conf/{name}/{setting}");
        match std::fs::write(&path, value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => {}
            result => result.map_err(|error| format!("{path}: {error}"))?,
        }
    }
    Ok(())
}

/// What of the host's own settings is in the way of its interfaces, in words. For the namespace of the thread.
pub fn obstacles() -> Vec<String> {
    let set = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    // ip-sysctl: the larger of this and the interface's own counts.
    let path = "/proc/sys/net/ipv4/conf/all/rp_filter";
    let text = "net.ipv4.conf.all.rp_filter is set: the kernel drops what comes for the box by another port than it would \
                answer by; set it to 0, flowgate checks for itself";
    if set(path) { vec![text.to_owned()] } else { Vec::new() }
}
