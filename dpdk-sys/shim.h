/*
 * The C side of the fast path: DPDK's inline functions, called once per burst, and the one place that knows how an mbuf
 * is laid out. Rust sees packets as fg_frame; struct rte_mbuf stays opaque to it, so a new DPDK release that moves mbuf
 * fields changes nothing above this file.
 */
#ifndef FLOWGATE_SHIM_H
#define FLOWGATE_SHIM_H

#include <stdint.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_meter.h>
#include <rte_ring.h>

/* What the port said about a received frame (fg_frame.flags). */
#define FG_CHAINED 0x0001      /* more than one segment: the first is all that is visible */
#define FG_L3_SUM_GOOD 0x0002  /* IPv4 header checksum verified by the port */
#define FG_L3_SUM_BAD 0x0004
#define FG_L4_SUM_GOOD 0x0008  /* TCP or UDP checksum verified by the port */
#define FG_L4_SUM_BAD 0x0010
#define FG_VLAN_STRIPPED 0x0020 /* the port removed an 802.1Q tag; it is in vlan_tci */

/* One packet's bytes; the same layout as flowgate's packet::frame::Frame (asserted there). */
struct fg_frame {
	uint8_t *data;   /* first byte of the frame */
	void *token;     /* the mbuf */
	uint16_t len;    /* bytes of the frame in this buffer */
	uint16_t head;   /* bytes free before data */
	uint16_t tail;   /* bytes free behind data + len */
	uint16_t vlan_tci; /* host order; valid with FG_VLAN_STRIPPED */
	uint32_t rx_time; /* low 32 bits of the receiver's clock, filled by the worker */
	uint16_t flags;
	uint8_t port;    /* port it came from, filled by the worker */
	uint8_t hops;    /* handoffs between workers so far */
};

int fg_errno(void);
uint64_t fg_cycles(void);

/* Link state without waiting; speed 0 if unknown. struct rte_eth_link differs between releases. */
int fg_link(uint16_t port, uint32_t *mbps, uint8_t *up, uint8_t *full_duplex);

/* What LACP says of a member of a bond: its own state and its peer's, as on the wire (IEEE 802.1AX section 6.4.2.3), and
 * its peer's system, key and port, host order. */
struct fg_lacp {
	uint8_t actor;
	uint8_t partner;
	uint8_t system[6];
	uint16_t key;
	uint16_t port;
};

/* The active members of a bond, those of up to room; a negative number is an error. */
int fg_bond_active(uint16_t bond, uint16_t *members, uint16_t room);
/* What LACP says of an active member; a negative number if it is not active. */
int fg_bond_lacp(uint16_t bond, uint16_t member, struct fg_lacp *lacp);
/* Says that a device does not tell of changes of its link, so that a bond that it joins afterwards looks by itself. */
int fg_no_link_events(uint16_t port);

/* Receive up to n frames. */
uint16_t fg_rx_burst(uint16_t port, uint16_t queue, struct fg_frame *frames, uint16_t n);
/* Send frames in order; returns how many the port took: afterwards the first ones, whose places a bond may have changed.
 * The rest stay the caller's. */
uint16_t fg_tx_burst(uint16_t port, uint16_t queue, struct fg_frame *frames, uint16_t n);
/* Give frames back to their pool, one call. */
void fg_free_bulk(const struct fg_frame *frames, uint16_t n);
/* Take one empty frame from a pool; 0 or -ENOMEM. */
int fg_alloc(struct rte_mempool *pool, struct fg_frame *frame);
/* Receive a burst on one queue and send it, unread, on another. With keep, the first 16 bytes of every frame become
 * (bytes & keep) | value (a shorter frame as far as it goes). What the port refuses is freed.
 * Returns received | sent << 16. */
uint32_t fg_relay(uint16_t rx_port, uint16_t rx_queue, uint16_t tx_port, uint16_t tx_queue, uint16_t n,
		  const uint8_t *keep, const uint8_t *value);

/* Rings of frames between two workers: one producer, one consumer, elements of sizeof(struct fg_frame). */
unsigned int fg_ring_enqueue(struct rte_ring *ring, const struct fg_frame *frames, unsigned int n);
unsigned int fg_ring_dequeue(struct rte_ring *ring, struct fg_frame *frames, unsigned int n);
unsigned int fg_ring_count(const struct rte_ring *ring);

/* rte_meter: single rate three color marker, color blind; 0 green, 1 yellow, 2 red. */
int fg_srtcm_check(struct rte_meter_srtcm *meter, struct rte_meter_srtcm_profile *profile, uint64_t tsc, uint32_t bytes);

/* Run a program converted from cBPF on the frames of mask, through an mbuf header of its own: it sees only their bytes and
 * lengths. Returns those for which it gave non-zero. Without jit, bpf is interpreted. */
uint64_t fg_bpf_exec_burst(uint64_t (*jit)(void *), const void *bpf, const struct fg_frame *frames, uint64_t mask);

#endif
