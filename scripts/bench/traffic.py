"""The frames that are replayed and the rules they meet: seeded, so that every run has the same."""

import functools
import ipaddress
import random
import struct

SEED = 20260101
# The MAC of net_pcap's first port, which cannot be set: a forwarder that checks it takes the frames.
DESTINATION_MAC = bytes.fromhex("027063617000")
SOURCE_MAC = bytes.fromhex("020000000001")
FRAME = 60

SOURCES = ipaddress.ip_network("10.1.0.0/16")
DESTINATION = ipaddress.ip_address("192.0.2.1")
DESTINATION_PORT = 4789
FIRST_SOURCE_PORT = 10000
# The same over IPv6, of which `bench-flows` makes the frames.
SOURCES_V6 = "2001:db8:1::/48"
DESTINATION_V6 = "2001:db8:2::1"
# Where flowgate routes: what its ports have, in and out, and the router behind the second.
ADDRESSES = (("10.0.0.1/24", "2001:db8:a::1/64"), ("203.0.113.1/24", "2001:db8:b::1/64"))
GATEWAYS = {"ipv4": "203.0.113.2", "ipv6": "2001:db8:b::2"}
GATEWAY_MAC = "02:00:00:00:00:0b"
# Addresses that sources become, IPv4 and IPv6: ports enough for a flow each.
POOLS = (ipaddress.ip_network("203.0.113.16/28"), ipaddress.ip_network("2001:db8:b::100/124"))
POOL = "".join(
    f'[[snat.rule]]\nsource = "{source}"\nto = "out"\nto_source = "{pool}"\n'
    for source, pool in zip(("10.0.0.0/8", SOURCES_V6), POOLS)
)
# The last rule as files of flows name it.
LAST = "acl/traffic"


def checksum(header):
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def frame(flow):
    """The frame of a flow, UDP over IPv4: addresses of SOURCES first, then source ports."""
    source = SOURCES[flow % SOURCES.num_addresses].packed
    port = FIRST_SOURCE_PORT + flow // SOURCES.num_addresses
    payload = FRAME - 14 - 20 - 8
    udp = struct.pack(">HHHH", port, DESTINATION_PORT, 8 + payload, 0) + bytes(payload)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + source + DESTINATION.packed
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return DESTINATION_MAC + SOURCE_MAC + b"\x08\x00" + ip + udp


def write_pcap(path, flows):
    """One frame of each flow, in random order, so that neighbours share nothing."""
    order = list(range(flows))
    random.Random(SEED).shuffle(order)
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for flow in order:
            file.write(struct.pack("<IIII", 0, 0, FRAME, FRAME) + frame(flow))


def gateway(kind):
    return GATEWAYS["ipv6" if kind.endswith("6") else "ipv4"]


def is_pooled(address):
    return any(ipaddress.ip_address(address) in pool for pool in POOLS)


def neighbors():
    """The gateways as they are given."""
    given = (f'{{ port = "out", address = "{address}", mac = "{GATEWAY_MAC}" }}' for address in GATEWAYS.values())
    return f"static = [{', '.join(given)}]\n"


def route(kind):
    """One route that leads to the traffic's destination."""
    to = f"{DESTINATION_V6}/64" if kind.endswith("6") else f"{DESTINATION}/24"
    to = ipaddress.ip_network(to, strict=False)
    return f'[[route.static]]\nto = "{to}"\nvia = "{gateway(kind)}"\n'


def prefix(rng, lengths, within):
    """A random prefix with a length from `lengths`, in or around `within`."""
    length = rng.randint(*lengths)
    address = int(within.network_address) | rng.getrandbits(32 - within.prefixlen)
    return ipaddress.ip_network((address, length), strict=False)


def covers(rule):
    """True if a rule could match a frame of the traffic."""
    low, high = rule["ports"] or (0, 65535)
    source_low, source_high = rule["source_ports"] or (0, 65535)
    return (
        rule["source"].overlaps(SOURCES)
        and DESTINATION in rule["destination"]
        and low <= DESTINATION_PORT <= high
        and source_low <= FIRST_SOURCE_PORT + 15
        and source_high >= FIRST_SOURCE_PORT
    )


def ports(rng):
    low, high = sorted(rng.sample(range(1, 65536), 2))
    return low, high


def rules(count, wild=False):
    """`count` rules of which the last matches all of the traffic, and no other any of it.

    Plain: both prefixes /16 to /32 around the traffic's, every second rule with a range of destination ports.
    Wild: both prefixes /1 to /32 of anything and both ports in ranges, so that most rules overlap many others.
    """
    rng = random.Random(SEED + count)
    near = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("192.0.0.0/8"))
    anywhere = (ipaddress.ip_network("0.0.0.0/0"),) * 2
    lengths, (sources, destinations) = ((1, 32), anywhere) if wild else ((16, 32), near)
    result = []
    while len(result) < count - 1:
        rule = {
            "source": prefix(rng, lengths, sources),
            "destination": prefix(rng, lengths, destinations),
            "ports": ports(rng) if wild or len(result) % 2 else None,
            "source_ports": ports(rng) if wild else None,
            "action": rng.choice(["allow", "deny"]),
        }
        if not covers(rule):
            result.append(rule)
    result.append(
        {
            "source": SOURCES,
            "destination": ipaddress.ip_network(DESTINATION),
            "ports": None,
            "source_ports": None,
            "action": "allow",
        }
    )
    return result


@functools.lru_cache
def acl(count, wild=False, kind="udp", action="allow", anywhere=False):
    """The same as TOML, for frames of `kind`; the last rule does `action`, and if the frames go `anywhere`, whatever their
    destination."""
    proto = kind[:3]
    lines = ['[acl]\ndefault = "deny"\n']
    chosen = rules(count, wild)
    chosen[-1]["action"] = action
    if kind.endswith("6"):
        chosen[-1].update(source=SOURCES_V6, destination=DESTINATION_V6)
    if anywhere:
        chosen[-1]["destination"] = "::/0" if kind.endswith("6") else "0.0.0.0/0"
    for rule in chosen:
        low, high = rule["ports"] or (0, 0)
        service = f"{proto}/{low}-{high}" if rule["ports"] else proto
        lines.append(
            f'[[acl.rule]]\nsource = "{rule["source"]}"\ndestination = "{rule["destination"]}"\n'
            f'service = "{service}"\naction = "{rule["action"]}"\n'
        )
        if rule["source_ports"]:
            lines.append('source_port = "{}-{}"\n'.format(*rule["source_ports"]))
    lines.append(f'name = "{LAST.removeprefix("acl/")}"\n')
    return "".join(lines)
