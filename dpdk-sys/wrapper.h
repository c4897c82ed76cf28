/* What dpdk-sys binds. Only functions on build.rs's allow-list come through. */
#include <rte_acl.h>
#include <rte_bpf.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
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
