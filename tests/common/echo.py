"""Pings many addresses, evenly paced, and says as JSON what came of it:

    echo.py SECONDS ROUNDS FILE

SECONDS between two requests; ROUNDS over the addresses in FILE, or 0 for as long as standard input is open. `lost` are those
that nothing came back for, each with the second it was sent in; `told` are errors, the last one for each address.
"""

import json
import os
import select
import socket
import struct
import sys
import time

ECHO = {4: (8, 0, 3), 6: (128, 129, 1)}  # request, reply, unreachable
PATIENCE = 20

pace, rounds = float(sys.argv[1]), int(sys.argv[2])
with open(sys.argv[3]) as file:
    targets = file.read().split()
ident = os.getpid() & 0xFFFF
sockets = {
    4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
}
for each in sockets.values():
    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
waiting, told, answered, sent = {}, {}, 0, 0
began = time.monotonic()


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def request(family, number):
    kind = ECHO[family][0]
    head = lambda check: struct.pack("!BBHHHI", kind, 0, check, ident, number & 0xFFFF, number)
    # The kernel fills in that of ICMPv6.
    return head(checksum(head(0)) if family == 4 else 0)


def number_of(icmp):
    if len(icmp) >= 12 and struct.unpack("!H", icmp[4:6])[0] == ident:
        return struct.unpack("!I", icmp[8:12])[0]
    return None


def hear(timeout):
    global answered
    for ready in select.select(list(sockets.values()), [], [], timeout)[0]:
        family = 4 if ready is sockets[4] else 6
        asked, reply, unreachable = ECHO[family]
        data = ready.recv(2048)
        icmp = data[(data[0] & 15) * 4 :] if family == 4 else data
        if icmp[0] == reply:
            answered += waiting.pop(number_of(icmp), None) is not None
        elif icmp[0] == unreachable:
            quoted = icmp[8:]
            quoted = quoted[(quoted[0] & 15) * 4 :] if family == 4 else quoted[40:]
            if quoted[:1] == bytes([asked]):
                about = waiting.pop(number_of(quoted), None)
                if about is not None:
                    told[about[0]] = f"{icmp[0]}/{icmp[1]}"


def goes_on():
    if rounds:
        return sent < rounds * len(targets)
    return not select.select([sys.stdin], [], [], 0)[0]


due = time.monotonic()
while goes_on():
    target = targets[sent % len(targets)]
    family = 6 if ":" in target else 4
    waiting[sent] = (target, round(time.monotonic() - began, 2))
    sockets[family].sendto(request(family, sent), (target, 0))
    sent += 1
    # Late once, it does not hurry to catch up.
    due = max(due + pace, time.monotonic() - pace)
    while (rest := due - time.monotonic()) > 0:
        hear(rest)
    hear(0)
end = time.monotonic() + PATIENCE
while waiting and (rest := end - time.monotonic()) > 0:
    hear(rest)
print(json.dumps({"sent": sent, "answered": answered, "told": told, "lost": list(waiting.values())}))
