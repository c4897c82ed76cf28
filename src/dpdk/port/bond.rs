//! Bonds: devices that are one port together, by DPDK's bonding driver.
//!
//! Owns how members join and what is known of each; not which devices they are, nor how frames spread over them.

use super::{CONTROL, Errno, Error, Port, lock};
use crate::dpdk::eal::Eal;

/// Drivers that say they would tell of changes of the link, and tell nobody but themselves: `tap_nl_msg_handler`, from DPDK
/// 22.11 to 25.11. A bond looks after a member of its own accord only if the member does not promise to speak up.
const SILENT: &[&str] = &["net_tap"];

/// What a member of a bond does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its link is down.
    Down,
    /// Its link is up, and it carries nothing: another one does, or LACP has not come to terms with the peer.
    Standby,
    /// It carries frames.
    Active,
}

impl Role {
    /// Its word in `show ports`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Down => "down",
            Role::Standby => "standby",
            Role::Active => "active",
        }
    }
}

/// A member of a bond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The device, as the user wrote it.
    pub device: String,
    /// What it does.
    pub role: Role,
    /// What LACP says of it, in a bond with LACP and with its link up.
    pub lacp: Option<Lacp>,
}

/// What LACP says of a member of a bond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacp {
    /// Its own state, bits as on the wire (IEEE 802.1AX-2014 section 6.4.2.3).
    pub actor: u8,
    /// Its peer's state, as above.
    pub partner: u8,
    /// MAC address of the peer's system; zeros as long as there is no peer.
    pub system: [u8; 6],
    /// The peer's key: what may be one link together has the same.
    pub key: u16,
    /// The peer's number of the port.
    pub port: u16,
}

impl Lacp {
    const COLLECTING: u8 = 0x10;
    const DISTRIBUTING: u8 = 0x20;
    /// The words for a state's bits, from the lowest.
    const WORDS: [&str; 8] = [
        "active",
        "short-timeout",
        "aggregation",
        "synchronization",
        "collecting",
        "distributing",
        "defaulted",
        "expired",
    ];

    /// The words for the bits of a state.
    pub fn words(state: u8) -> impl Iterator<Item = &'static str> {
        Lacp::WORDS.into_iter().enumerate().filter(move |(bit, _)| state & 1 << bit != 0).map(|(_, word)| word)
    }

    /// True if frames are taken from the peer and sent to it.
    pub fn carries(&self) -> bool {
        let both = Lacp::COLLECTING | Lacp::DISTRIBUTING;
        self.actor & both == both
    }
}

impl Port {
    /// Makes a bonding device (`net_bonding0,mode=1`) of others and takes all of them for this port.
    pub fn bond<'a>(eal: &'static Eal, device: &str, members: impl Iterator<Item = &'a str>) -> Result<Port, Error> {
        let members = members.map(|member| Port::probe(eal, member)).collect::<Result<Vec<_>, _>>()?;
        for Port { inner, .. } in members.iter().filter(|member| SILENT.contains(&&*member.abilities.driver)) {
            let _control = lock(&CONTROL);
            // SAFETY: no pointers; the port was just found and no bond has it yet.
            inner.step("watch its link", unsafe { dpdk_sys::fg_no_link_events(inner.id) })?;
        }
        let named = |member: &Port| format!(",{}={}", dpdk_sys::BOND_MEMBER, member.inner.name);
        let device = device.to_owned() + &members.iter().map(named).collect::<String>();
        let mut port = Port::take(eal, &device, members)?;
        port.join()?;
        Ok(port)
    }

    /// Lets the members of a bond join it, which those named in its arguments do when it is first configured; before, its
    /// abilities and its MAC address are not known.
    fn join(&mut self) -> Result<(), Error> {
        let inner = &self.inner;
        inner.eal().log();
        let control = lock(&CONTROL);
        let conf = dpdk_sys::rte_eth_conf::default();
        // SAFETY: `conf` lives through the call, which copies it.
        inner.step("join its members", unsafe { dpdk_sys::rte_eth_dev_configure(inner.id, 1, 1, &conf) })?;
        drop(control);
        for member in &inner.members {
            let info = member.inner.info()?;
            // The driver tells of a member that it refuses in the log only.
            // SAFETY: `dev_flags` points into the port's data, which lives as long as the port.
            if info.dev_flags.is_null() || unsafe { *info.dev_flags } & dpdk_sys::FG_BONDED == 0 {
                return Err(Error::Device {
                    device: member.inner.device.clone(),
                    step: "join the bond",
                    errno: Errno(libc::EINVAL),
                    log: inner.eal().log(),
                });
            }
        }
        // SAFETY: no pointers.
        self.mode = u32::try_from(unsafe { dpdk_sys::rte_eth_bond_mode_get(inner.id) }).ok();
        if self.speaks_lacp() {
            self.share_mac();
        }
        self.abilities = super::abilities(self.inner.id, &self.inner.info()?);
        Ok(())
    }

    /// True for a bond whose driver has something to say to the peer.
    pub(super) fn speaks_lacp(&self) -> bool {
        self.mode == Some(dpdk_sys::BONDING_MODE_8023AD)
    }

    /// Gives the members the bond's MAC address, which the driver does in all modes but this: its
    /// `bond_mode_8023ad_mac_address_update` visits active members, and runs when there are none yet.
    fn share_mac(&self) {
        let mut mac = dpdk_sys::rte_ether_addr { addr_bytes: self.mac() };
        let _control = lock(&CONTROL);
        for member in &self.inner.members {
            // What cannot be given an address receives everything, if it can choose.
            // SAFETY: reads an address of ours.
            unsafe {
                if dpdk_sys::rte_eth_dev_default_mac_addr_set(member.inner.id, &mut mac) != 0 {
                    dpdk_sys::rte_eth_promiscuous_enable(member.inner.id);
                }
            }
        }
    }

    /// The members of a bond as they are now; none of another port.
    pub fn members(&self) -> Vec<Member> {
        let Some(mode) = self.mode else { return Vec::new() };
        let mut active = [0; dpdk_sys::RTE_MAX_ETHPORTS as usize];
        let _control = lock(&CONTROL);
        // SAFETY: writes as many numbers as there is room for.
        let count = unsafe { dpdk_sys::fg_bond_active(self.inner.id, active.as_mut_ptr(), active.len() as u16) };
        let active = active.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
        // SAFETY: no pointers.
        let primary = unsafe { dpdk_sys::rte_eth_bond_primary_get(self.inner.id) };
        let state = |member: &Port| {
            let id = member.inner.id;
            let up = active.contains(&id);
            let lacp = if up && self.speaks_lacp() { self.lacp(id) } else { None };
            let carries = match mode {
                dpdk_sys::BONDING_MODE_ACTIVE_BACKUP => primary == i32::from(id),
                dpdk_sys::BONDING_MODE_8023AD => lacp.is_some_and(|lacp| lacp.carries()),
                _ => true,
            };
            let role = match (up, carries) {
                (false, _) => Role::Down,
                (true, false) => Role::Standby,
                (true, true) => Role::Active,
            };
            Member { device: member.inner.device.clone(), role, lacp }
        };
        self.inner.members.iter().map(state).collect()
    }

    /// What LACP says of an active member.
    fn lacp(&self, member: u16) -> Option<Lacp> {
        let mut lacp = dpdk_sys::fg_lacp::default();
        // SAFETY: writes a structure of ours.
        let known = unsafe { dpdk_sys::fg_bond_lacp(self.inner.id, member, &mut lacp) } == 0;
        let dpdk_sys::fg_lacp { actor, partner, system, key, port } = lacp;
        known.then_some(Lacp { actor, partner, system, key, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_words() {
        let lacp = |actor| Lacp { actor, partner: 0, system: [0; 6], key: 0, port: 0 };
        assert!(lacp(0x3d).carries() && !lacp(0x1d).carries() && !lacp(0x2d).carries());
        assert_eq!(Lacp::words(0x45).collect::<Vec<_>>(), ["active", "aggregation", "defaulted"]);
        assert_eq!(Lacp::words(0xff).count(), 8);
    }
}
