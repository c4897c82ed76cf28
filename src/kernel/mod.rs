//! The host's own network stack beside the datapath: a kernel interface for each logical port, and what the kernel knows.
//!
//! Owns the TAP devices, their settings, and the following of links, addresses and routes. Control's slow path calls it; frames
//! between it and the workers, and what becomes of events, are that thread's. Nothing here is reached from a worker.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

use crate::route::Route;

pub mod follow;
pub mod link;
pub mod message;
pub mod namespace;
pub mod netlink;
pub mod poll;
pub mod tables;
pub mod tap;

use follow::Follower;
use namespace::Namespace;
use netlink::Netlink;
use tables::Tables;
use tap::Tap;

/// What was learned from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port has an address flowgate did not give it, or has it no more: a DHCP client's, SLAAC's, an operator's.
    Address {
        /// The port.
        port: u8,
        /// The address, with the length of the prefix that is on its link.
        net: IpNet,
        /// Whether it has come or gone.
        added: bool,
    },
    /// The kernel's route to a prefix with a metric is this one from now on, whatever it was; or there is none any more, and
    /// this is what it was. All gateways name a port.
    Route {
        /// The route.
        route: Route,
        /// Whether it has come or gone.
        added: bool,
    },
    /// The interface of a port is so, for the first time or after a change.
    Link {
        /// The port.
        port: u8,
        /// Whether it was taken up.
        admin_up: bool,
        /// In bytes.
        mtu: u32,
        /// In wire order.
        mac: [u8; 6],
    },
    /// A port's interface was deleted or moved away; [`Kernel::retry`] makes it again.
    Lost {
        /// The port.
        port: u8,
    },
    /// Everything there was to know had been reported, at start or after news were lost.
    Synced,
}

/// A port as the kernel is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, and the interface's.
    pub name: String,
    /// In wire order.
    pub mac: [u8; 6],
    /// In bytes.
    pub mtu: u16,
    /// Its addresses by the file, with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Whether the kernel makes addresses and routes from router advertisements there (SLAAC).
    pub accept_ra: bool,
    /// Whether its link is up.
    pub link: bool,
}

/// The kernel's side of all ports.
pub struct Kernel {
    namespace: Namespace,
    netlink: Netlink,
    ports: Vec<Port>,
    taps: Vec<Option<Tap>>,
    /// Whether the kernel's addresses are known.
    synced: bool,
    follower: Follower,
}

impl Kernel {
    /// Makes an interface for each port, in order, and begins to follow the kernel. The interfaces are up when this returns. An
    /// error says which interface, and what to do.
    pub fn start(namespace: Namespace, ports: Vec<Port>, routes: bool) -> Result<Kernel, String> {
        let own: Vec<(u8, IpAddr)> =
            (0..).zip(&ports).flat_map(|(at, port)| port.addresses.iter().map(move |net| (at, net.addr()))).collect();
        let sockets = namespace.enter(|| {
            let follower = Follower::start(Tables::new(own), routes)?;
            Ok::<_, io::Error>((Netlink::open(&[], 1 << 18)?, follower))
        })?;
        let (netlink, follower) = sockets.map_err(|error| format!("netlink socket: {error}"))?;
        let taps = ports.iter().map(|_| None).collect();
        let mut kernel = Kernel { namespace, netlink, ports, taps, synced: false, follower };
        for port in 0..kernel.ports.len() {
            kernel.open(port)?;
        }
        Ok(kernel)
    }

    /// A port's interface; none while it is lost.
    pub fn tap(&self, port: u8) -> Option<&Tap> {
        self.taps.get(usize::from(port))?.as_ref()
    }

    /// Lets the interface's carrier follow the port's link.
    pub fn set_link(&mut self, port: u8, up: bool) -> Result<(), String> {
        let Some(wanted) = self.ports.get_mut(usize::from(port)) else { return Ok(()) };
        wanted.link = up;
        let Some(tap) = self.taps[usize::from(port)].as_ref() else { return Ok(()) };
        link::set_carrier(&mut self.netlink, tap.index(), up)
            .map_err(|error| format!("kernel interface {:?}: carrier: {error}", wanted.name))
    }

    /// Gives a port's interface an address of the config, or takes it away.
    pub fn set_address(&mut self, port: u8, net: IpNet, added: bool) -> Result<(), String> {
        let Some(wanted) = self.ports.get_mut(usize::from(port)) else { return Ok(()) };
        wanted.addresses.retain(|known| *known != net);
        if added {
            wanted.addresses.push(net);
        }
        let Some(index) = self.taps[usize::from(port)].as_ref().map(Tap::index) else { return Ok(()) };
        if added {
            return self.add_addresses(usize::from(port), index, &[net]);
        }
        match link::remove_address(&mut self.netlink, index, net) {
            // Somebody was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            result => result.map_err(|error| {
                format!("kernel interface {:?}: address {net}: {error}", self.ports[usize::from(port)].name)
            }),
        }
    }

    /// Reads what the kernel has to tell, at most `budget` messages of news and of a dump each. Returns whether there may be more
    /// to read at once.
    pub fn poll(&mut self, now: Instant, budget: usize, out: &mut dyn FnMut(Event)) -> Result<bool, String> {
        let (taps, synced) = (&mut self.taps, &mut self.synced);
        let more = self.follower.poll(now, budget, &mut |event| {
            match &event {
                Event::Lost { port } => taps[usize::from(*port)] = None,
                Event::Synced => *synced = true,
                _ => {}
            }
            out(event);
        });
        more.map_err(|error| format!("netlink: {error}"))
    }

    /// Makes lost interfaces again, and gives addresses back that were taken away: to be called each second. Returns what does not
    /// work yet.
    pub fn retry(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for port in 0..self.ports.len() {
            let result = match &self.taps[port] {
                None => self.open(port),
                Some(tap) if self.synced => {
                    let (index, here) = (tap.index(), self.follower.tables());
                    let lacks = |net: &&IpNet| !here.has_address(port as u8, **net);
                    let lacking: Vec<IpNet> = self.ports[port].addresses.iter().filter(lacks).copied().collect();
                    self.add_addresses(port, index, &lacking)
                }
                Some(_) => Ok(()),
            };
            wrong.extend(result.err());
        }
        wrong
    }

    /// What follows the kernel: its sockets, and what it has counted.
    pub fn follower(&self) -> &Follower {
        &self.follower
    }

    /// What an operator should know of how the kernel is set up and followed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.namespace.enter(link::obstacles).unwrap_or_else(|error| vec![error]);
        let census = self.follower.census();
        let mut say = |count: usize, what: &str| {
            if count > 0 {
                notes.push(format!("{count} of {} routes of the kernel {what}", census.all));
            }
        };
        say(census.foreign, "lead by interfaces that are no ports, and are left to the kernel");
        say(census.unsupported, "are for some traffic only, by tunnels, or of other types, and are left to the kernel");
        notes
    }

    fn open(&mut self, at: usize) -> Result<(), String> {
        let (port, netlink) = (&self.ports[at], &mut self.netlink);
        let wrong = |error: io::Error| format!("kernel interface {:?}: {error}", port.name);
        let tap = self.namespace.enter(|| {
            let tap = Tap::open(netlink, &port.name)?;
            link::restrain(&port.name, port.accept_ra)?;
            Ok::<_, String>(tap)
        })??;
        self.follower.add_port(at as u8, tap.index());
        link::set_carrier(&mut self.netlink, tap.index(), port.link).map_err(wrong)?;
        link::take_up(&mut self.netlink, tap.index(), port.mac, port.mtu).map_err(wrong)?;
        let index = tap.index();
        self.taps[at] = Some(tap);
        let addresses = self.ports[at].addresses.clone();
        self.add_addresses(at, index, &addresses)
    }

    fn add_addresses(&mut self, at: usize, index: u32, addresses: &[IpNet]) -> Result<(), String> {
        for net in addresses {
            link::add_address(&mut self.netlink, index, *net)
                .map_err(|error| format!("kernel interface {:?}: address {net}: {error}", self.ports[at].name))?;
        }
        Ok(())
    }
}
