#include "shim.h"

#include <errno.h>
#include <string.h>
#include <rte_bpf.h>
#include <rte_cycles.h>
#include <rte_errno.h>
#include <rte_eth_bond.h>
#include <rte_eth_bond_8023ad.h>
#include <rte_lcore.h>
#include <rte_version.h>

_Static_assert(sizeof(struct fg_frame) == 32, "fg_frame is half a cache line");

#define FG_BURST 64

int fg_errno(void) { return rte_errno; }

uint64_t fg_cycles(void) { return rte_get_tsc_cycles(); }

static inline uint16_t rx_flags(const struct rte_mbuf *m)
{
	const uint64_t ol = m->ol_flags;
	uint16_t f = 0;

	if (unlikely(m->nb_segs > 1))
		f |= FG_CHAINED;
	if (likely(ol == 0))
		return f;
	const uint64_t l3 = ol & RTE_MBUF_F_RX_IP_CKSUM_MASK;
	const uint64_t l4 = ol & RTE_MBUF_F_RX_L4_CKSUM_MASK;
	if (l3 == RTE_MBUF_F_RX_IP_CKSUM_GOOD)
		f |= FG_L3_SUM_GOOD;
	else if (l3 == RTE_MBUF_F_RX_IP_CKSUM_BAD)
		f |= FG_L3_SUM_BAD;
	if (l4 == RTE_MBUF_F_RX_L4_CKSUM_GOOD)
		f |= FG_L4_SUM_GOOD;
	else if (l4 == RTE_MBUF_F_RX_L4_CKSUM_BAD)
		f |= FG_L4_SUM_BAD;
	if (ol & RTE_MBUF_F_RX_VLAN_STRIPPED)
		f |= FG_VLAN_STRIPPED;
	return f;
}

uint16_t fg_rx_burst(uint16_t port, uint16_t queue, struct fg_frame *frames, uint16_t n)
{
	struct rte_mbuf *pkts[FG_BURST];
	uint16_t i, got = rte_eth_rx_burst(port, queue, pkts, n < FG_BURST ? n : FG_BURST);

	for (i = 0; i < got; i++) {
		struct rte_mbuf *m = pkts[i];
		struct fg_frame *f = &frames[i];

		if (i + 4 < got)
			rte_prefetch0(rte_pktmbuf_mtod(pkts[i + 4], void *));
		f->data = rte_pktmbuf_mtod(m, uint8_t *);
		f->token = m;
		f->len = m->data_len;
		f->head = m->data_off;
		f->tail = (uint16_t)(m->buf_len - m->data_off - m->data_len);
		f->vlan_tci = m->vlan_tci;
		f->rx_time = 0;
		f->flags = rx_flags(m);
		f->port = (uint8_t)port;
		f->hops = 0;
	}
	return got;
}

/* A bond sorts what it is given by member, and puts what members refused at the end (tx_burst_balance,
 * bond_ethdev_tx_burst_round_robin): frames follow their mbufs. */
static __rte_noinline void follow(struct fg_frame *frames, struct rte_mbuf *const *pkts, uint16_t sent, uint16_t n)
{
	uint16_t i, j;

	for (i = sent; i < n; i++) {
		for (j = 0; j < n && frames[j].token != pkts[i]; j++)
			;
		if (j < n && j != i) {
			struct fg_frame moved = frames[i];

			frames[i] = frames[j];
			frames[j] = moved;
		}
	}
}

uint16_t fg_tx_burst(uint16_t port, uint16_t queue, struct fg_frame *frames, uint16_t n)
{
	struct rte_mbuf *pkts[FG_BURST];
	uint16_t i, sent;

	n = n < FG_BURST ? n : FG_BURST;
	for (i = 0; i < n; i++) {
		struct rte_mbuf *m = frames[i].token;

		m->data_off = frames[i].head;
		/* A difference, so that it stays right for a frame of several segments. */
		m->pkt_len += (uint32_t)frames[i].len - m->data_len;
		m->data_len = frames[i].len;
		/* What the port said on receive means other things on transmit; how the buffer is held must stay. */
		m->ol_flags &= RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL;
		pkts[i] = m;
	}
	sent = rte_eth_tx_burst(port, queue, pkts, n);
	if (unlikely(sent < n))
		follow(frames, pkts, sent, n);
	return sent;
}

void fg_free_bulk(const struct fg_frame *frames, uint16_t n)
{
	struct rte_mbuf *pkts[FG_BURST];
	uint16_t i;

	n = n < FG_BURST ? n : FG_BURST;
	for (i = 0; i < n; i++)
		pkts[i] = frames[i].token;
	rte_pktmbuf_free_bulk(pkts, n);
}

int fg_alloc(struct rte_mempool *pool, struct fg_frame *frame)
{
	struct rte_mbuf *m = rte_pktmbuf_alloc(pool);

	if (m == NULL)
		return -ENOMEM;
	memset(frame, 0, sizeof(*frame));
	frame->data = rte_pktmbuf_mtod(m, uint8_t *);
	frame->token = m;
	frame->head = m->data_off;
	frame->tail = (uint16_t)(m->buf_len - m->data_off);
	return 0;
}

static inline void rewrite(struct rte_mbuf *m, const uint8_t *keep, const uint8_t *value)
{
	uint8_t *at = rte_pktmbuf_mtod(m, uint8_t *);
	uint64_t words[2], k[2], v[2];
	uint16_t i;

	if (likely(m->data_len >= sizeof(words))) {
		memcpy(words, at, sizeof(words));
		memcpy(k, keep, sizeof(k));
		memcpy(v, value, sizeof(v));
		words[0] = (words[0] & k[0]) | v[0];
		words[1] = (words[1] & k[1]) | v[1];
		memcpy(at, words, sizeof(words));
	} else {
		for (i = 0; i < m->data_len; i++)
			at[i] = (at[i] & keep[i]) | value[i];
	}
}

uint32_t fg_relay(uint16_t rx_port, uint16_t rx_queue, uint16_t tx_port, uint16_t tx_queue, uint16_t n,
		  const uint8_t *keep, const uint8_t *value)
{
	struct rte_mbuf *pkts[FG_BURST];
	uint16_t got = rte_eth_rx_burst(rx_port, rx_queue, pkts, n < FG_BURST ? n : FG_BURST);
	uint16_t i, sent;

	if (got == 0)
		return 0;
	if (keep != NULL) {
		for (i = 0; i < got; i++) {
			if (i + 4 < got)
				rte_prefetch0(rte_pktmbuf_mtod(pkts[i + 4], void *));
			rewrite(pkts[i], keep, value);
		}
	}
	sent = rte_eth_tx_burst(tx_port, tx_queue, pkts, got);
	if (unlikely(sent < got))
		rte_pktmbuf_free_bulk(&pkts[sent], got - sent);
	return (uint32_t)got | (uint32_t)sent << 16;
}

int fg_link(uint16_t port, uint32_t *mbps, uint8_t *up, uint8_t *full_duplex)
{
	struct rte_eth_link link;
	int ret;

	memset(&link, 0, sizeof(link));
	ret = rte_eth_link_get_nowait(port, &link);
	*mbps = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	*up = link.link_status == RTE_ETH_LINK_UP;
	*full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	return ret;
}

#if RTE_VERSION >= RTE_VERSION_NUM(23, 11, 0, 0)
#define ACTIVE_GET rte_eth_bond_active_members_get
#define LACP_INFO rte_eth_bond_8023ad_member_info
#else
#define ACTIVE_GET rte_eth_bond_active_slaves_get
#define LACP_INFO rte_eth_bond_8023ad_slave_info
#endif

int fg_bond_active(uint16_t bond, uint16_t *members, uint16_t room) { return ACTIVE_GET(bond, members, room); }

int fg_bond_lacp(uint16_t bond, uint16_t member, struct fg_lacp *lacp)
{
	struct LACP_INFO info;
	int ret;

	memset(&info, 0, sizeof(info));
	ret = LACP_INFO(bond, member, &info);
	lacp->actor = info.actor_state;
	lacp->partner = info.partner_state;
	memcpy(lacp->system, info.partner.system.addr_bytes, sizeof(lacp->system));
	lacp->key = rte_be_to_cpu_16(info.partner.key);
	lacp->port = rte_be_to_cpu_16(info.partner.port_number);
	return ret;
}

int fg_no_link_events(uint16_t port)
{
	struct rte_eth_dev_info info;
	int ret = rte_eth_dev_info_get(port, &info);

	/* They are the port's own flags, to be read by its user; nobody else has it yet. */
	if (ret == 0 && info.dev_flags != NULL)
		*(uint32_t *)(uintptr_t)info.dev_flags &= ~(uint32_t)RTE_ETH_DEV_INTR_LSC;
	return ret;
}

unsigned int fg_ring_enqueue(struct rte_ring *ring, const struct fg_frame *frames, unsigned int n)
{
	return rte_ring_sp_enqueue_burst_elem(ring, frames, sizeof(*frames), n, NULL);
}

unsigned int fg_ring_dequeue(struct rte_ring *ring, struct fg_frame *frames, unsigned int n)
{
	return rte_ring_sc_dequeue_burst_elem(ring, frames, sizeof(*frames), n, NULL);
}

unsigned int fg_ring_count(const struct rte_ring *ring) { return rte_ring_count(ring); }

int fg_srtcm_check(struct rte_meter_srtcm *meter, struct rte_meter_srtcm_profile *profile, uint64_t tsc, uint32_t bytes)
{
	return (int)rte_meter_srtcm_color_blind_check(meter, profile, tsc, bytes);
}

uint64_t fg_bpf_exec_burst(uint64_t (*jit)(void *), const void *bpf, const struct fg_frame *frames, uint64_t mask)
{
	/* The program reads packet bytes through data_off, data_len and, past them, rte_pktmbuf_read(). */
	struct rte_mbuf m;
	uint64_t hits = 0;

	memset(&m, 0, sizeof(m));
	m.nb_segs = 1;
	for (; mask != 0; mask &= mask - 1) {
		const struct fg_frame *f = &frames[__builtin_ctzll(mask)];

		m.buf_addr = f->data;
		m.buf_len = f->len;
		m.data_len = f->len;
		m.pkt_len = f->len;
		if ((jit != NULL ? jit(&m) : rte_bpf_exec(bpf, &m)) != 0)
			hits |= mask & -mask;
	}
	return hits;
}
