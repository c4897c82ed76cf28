/* What dpdk-sys binds. Only functions on build.rs's allow-list come through. */
#include <rte_acl.h>
#include <rte_bpf.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_bond.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_meter.h>
#include <rte_ring.h>
#include <rte_thash.h>
#include <rte_vect.h>
#include <rte_version.h>

#include "shim.h"

/* Bit macros that bindgen cannot evaluate by themselves. */
static const uint64_t FG_RX_CHECKSUM =
	RTE_ETH_RX_OFFLOAD_IPV4_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t FG_RX_VLAN_STRIP = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
static const uint64_t FG_TX_FAST_FREE = RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
static const uint64_t FG_RSS_FLOWS = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_SCTP;
/* In rte_eth_dev_info.dev_flags: the device is a member of a bond. */
#ifdef RTE_ETH_DEV_BONDING_MEMBER
static const uint32_t FG_BONDED = RTE_ETH_DEV_BONDING_MEMBER;
#else
static const uint32_t FG_BONDED = RTE_ETH_DEV_BONDED_SLAVE;
#endif
