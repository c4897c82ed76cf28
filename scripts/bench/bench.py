"""Measures each case at each number of flows: round after round, each round one run of testpmd `io`, of the case's peer and of
flowgate, so that what else the machine does falls on all of them. A figure is the median of its rounds."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import Callable, NamedTuple, Optional

import traffic
from systems import Broken, Flowgate, Missing, Testpmd, check

FLOWS = (1, 1000, 65536, 262144)
WIRE = '[pipeline]\nstages = ["cross"]\n[cross]\nwire = [{ ports = ["in", "out"] }]\n'
WIRE_MAC = WIRE.replace("] }", '], rewrite_mac = true, peers = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"] }')
WIRE_ACL = WIRE.replace('["cross"]', '["cross", "acl"]')
TRACKED = WIRE.replace('["cross"]', '["conntrack", "cross", "acl"]')
# Ports with addresses, and no kernel beside them, whose frames would be counted.
ROUTED = '[pipeline]\nstages = ["route"]\n[kernel]\nenabled = false\n[neighbor]\ndad_probes = 0\n' + traffic.neighbors()
ROUTER = ROUTED.replace('["route"]', '["conntrack", "route", "acl"]')
NAT = ROUTED.replace('["route"]', '["conntrack", "route", "acl", "snat"]')
# A million from the Internet's tables; of IPv6 as many as are expected there.
MANY = {"udp": 1000000, "tcp": 1000000, "udp6": 250000, "tcp6": 250000}


class Point(NamedTuple):
    """Where a case is measured."""

    rules: int
    flows: int
    # What the frames are: udp, tcp, udp6, tcp6.
    kind: str = "udp"
    # Prefixes that routes lead to. Of one, all flows go to the same host; of several, each goes to a random one.
    routes: int = 0


class Case(NamedTuple):
    """What flowgate is to do, and with whom to compare it."""

    # The configuration behind [worker], [memory], [[port]] in and out, and [control], at a point.
    config: Callable[[Point], str]
    # testpmd's forwarding mode to compare with, besides io.
    peer: Optional[str] = None
    # What to measure, and what in a quick run.
    points: tuple = tuple(Point(0, flows) for flows in FLOWS)
    quick: tuple = tuple(Point(0, flows) for flows in FLOWS)
    # The flows are in the table from the start, open at both ends.
    open: bool = False
    # IPv4 flows the table has room for, if not the default.
    table: Optional[int] = None
    # Nothing leaves: the rate is that of the packets received.
    drops: bool = False
    # Every flow is to be translated, and the packets counted are those of such flows.
    translates: bool = False
    # Ratios to io that are asked for, by what the frames are, flows, and whether routes are many.
    floors: dict = {}

    def floor(self, at):
        return self.floors.get((at.kind, at.flows, at.routes > 1))


RULES = (1, 100, 1000, 10000)
ALL_RULES = tuple(Point(rules, flows) for rules in RULES for flows in FLOWS)
SOME_RULES = tuple(Point(rules, 1000) for rules in RULES) + (Point(1000, 65536),)
STATEFUL = (
    tuple(Point(1000, flows, kind) for kind in ("udp", "tcp") for flows in FLOWS)
    + tuple(Point(1000, 1000, kind) for kind in ("udp6", "tcp6"))
    + tuple(Point(rules, 1000) for rules in (10, 10000))
)
NEW = tuple(Point(1000, 262144, kind) for kind in ("udp", "tcp"))


def routed(kinds, routes, flows=FLOWS, rules=0):
    return tuple(Point(rules, count, kind, routes) for kind in kinds for count in flows)


def many(kinds, rules=0):
    return tuple(Point(rules, 65536, kind, MANY[kind]) for kind in kinds)


ROUTE = routed(("udp",), 1) + routed(("udp6",), 1, (1, 1000, 65536)) + many(("udp", "udp6"))
ROUTE_FLOORS = {(kind, flows, False): 0.55 for kind in ("udp",) for flows in (1, 1000, 65536)}
ROUTER_POINTS = (
    routed(("udp",), 1, rules=1000) + routed(("tcp", "udp6"), 1, (1000, 65536), rules=1000) + many(("udp", "udp6"), rules=1000)
)
NAT_POINTS = routed(("udp",), 1, rules=1000) + routed(("udp6",), 1, (1000,), rules=1000)
NAT_FLOORS = {("udp", flows, False): floor for flows, floor in zip(FLOWS, (0.40, 0.37, 0.24, 0.37))}

CASES = {
    "cross": Case(lambda at: WIRE),
    "cross-mac": Case(lambda at: WIRE_MAC, peer="mac"),
    "acl": Case(lambda at: WIRE_ACL + traffic.acl(at.rules), points=ALL_RULES, quick=SOME_RULES),
    "acl-wild": Case(lambda at: WIRE_ACL + traffic.acl(at.rules, wild=True), points=ALL_RULES, quick=SOME_RULES),
    "stateful": Case(
        lambda at: TRACKED + traffic.acl(at.rules, kind=at.kind), points=STATEFUL, quick=STATEFUL, open=True
    ),
    # Twice as many flows come in turn as there are entries: when one comes again, its entry is another's by then.
    "new-flows": Case(
        lambda at: TRACKED + traffic.acl(at.rules, kind=at.kind) + '[conntrack.limit]\nhalf_open = "100%"\nsyn_proxy = "off"\n',
        points=NEW,
        quick=NEW,
        table=131072,
    ),
    "denied-flood": Case(
        lambda at: TRACKED + traffic.acl(at.rules, kind=at.kind, action="deny"), points=NEW, quick=NEW, drops=True
    ),
    "route": Case(lambda at: ROUTED, points=ROUTE, quick=ROUTE, floors={**ROUTE_FLOORS, ("udp", 65536, True): 0.27}),
    "router": Case(
        lambda at: ROUTER + traffic.acl(at.rules, kind=at.kind, anywhere=at.routes > 1),
        points=ROUTER_POINTS,
        quick=ROUTER_POINTS,
        open=True,
    ),
    # The flows are those of the packets themselves, and have one end: a file of flows has no translated ones. The pool has
    # ports enough for each flow to have its own.
    "nat": Case(
        lambda at: NAT + traffic.acl(at.rules, kind=at.kind) + traffic.POOL + '[conntrack.limit]\nhalf_open = "100%"\n',
        points=NAT_POINTS,
        quick=NAT_POINTS,
        floors=NAT_FLOORS,
        translates=True,
    ),
}


def note(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the bench: its captures and what was measured."""

    def __init__(self, folder, program, generator, rounds, seconds):
        self.folder, self.program, self.generator = folder, program, generator
        self.rounds, self.seconds = rounds, seconds
        # Rates in Mpps by (system, case, point), one a round.
        self.rates = {}
        # Packets that tracking judged or found invalid while they were counted, by case and point, over all rounds.
        self.tracked = {}

    def capture(self, case, at):
        """The capture of a point. Frames of UDP over IPv4 alone need no generator."""
        first = not case.open and at.kind.startswith("tcp")
        path = os.path.join(self.folder, f"{source(at)}{'-first' * first}.pcap")
        if os.path.exists(path):
            return path
        if at.kind == "udp" and at.routes <= 1:
            traffic.write_pcap(path, at.flows)
        else:
            run_generator(self.generator, [*flows(at), "--pcap", path] + ["--first"] * first)
        return path

    def open_flows(self, at):
        """A file of the point's flows, which fits its rules."""
        path = os.path.join(self.folder, f"{source(at)}.flows")
        if not os.path.exists(path):
            run_generator(self.generator, [*flows(at), "--flows", path, "--rule", traffic.LAST])
        return path

    def routes(self, at):
        """What leads to the point's prefixes."""
        if at.routes <= 1:
            return traffic.route(at.kind)
        path = os.path.join(self.folder, f"{at.kind}-{at.routes}.routes")
        if not os.path.exists(path):
            run_generator(self.generator, [*flows(at), "--routes", path, "--via", traffic.gateway(at.kind)])
        return f'[route]\nfile = "{path}"\n'

    def measure(self, system, name, at, start):
        with start() as process:
            process.settle(at.flows)
            before = process.tracked()
            mpps = process.rate(self.seconds) / 1e6
            after = process.tracked()
            if name in CASES and CASES[name].translates and system == "flowgate":
                process.check_translation(at.flows)
        where = f"rules {at.rules:>6}  {at.kind:<4} flows {at.flows:>7}  routes {at.routes:>7}"
        note(f"  {system:<9} {name:<12} {where}  {mpps:7.2f} Mpps")
        self.rates.setdefault((system, name, at), []).append(mpps)
        if after:
            counts = self.tracked.setdefault((name, at), {key: 0 for key in after})
            for key in after:
                counts[key] += after[key] - before[key]

    def testpmd(self, mode, case, at):
        at = at._replace(rules=0)
        self.measure("testpmd", control(mode, case, at), at, lambda: Testpmd(mode, self.capture(case, at), at.flows))

    def flowgate(self, name, case, at):
        stages = case.config(at)
        if at.routes:
            stages += self.routes(at)
        saved = self.open_flows(at) if case.open else None
        options = {"table": case.table, "open_flows": saved, "drops": case.drops, "routed": at.routes > 0}
        capture = self.capture(case, at)
        self.measure("flowgate", name, at, lambda: Flowgate(self.program, self.folder, stages, capture, at.flows, **options))

    def run(self, name, case, points):
        sources = sorted({(at.kind, at.flows, at.routes) for at in points})
        for number in range(self.rounds):
            note(f"{name}, round {number + 1} of {self.rounds}")
            for same in sources:
                here = sorted(at for at in points if (at.kind, at.flows, at.routes) == same)
                self.testpmd("io", case, here[0])
                if case.peer:
                    self.testpmd(case.peer, case, here[0])
                for at in here if self.program else ():
                    self.flowgate(name, case, at)

    def rows(self):
        """The figures. Those of one run of the bench share their controls."""
        median = {key: statistics.median(rates) for key, rates in self.rates.items()}
        result = []
        for (system, name, at), rates in self.rates.items():
            mpps = median[system, name, at]
            case = CASES[name] if system == "flowgate" else None
            of_testpmd = lambda mode: median["testpmd", control(mode, case, at), at._replace(rules=0)]
            io = of_testpmd("io") if case else median["testpmd", name.replace(name.split()[0], "io"), at]
            row = {
                "system": system,
                "case": name,
                "proto": at.kind[:3],
                "family": "ipv6" if at.kind.endswith("6") else "ipv4",
                "flows": at.flows,
                "rules": at.rules,
                "routes": at.routes,
                "workers": 1,
                "mpps": round(mpps, 3),
                "spread": round((max(rates) - min(rates)) / mpps, 3),
                "ratio_to_io": round(mpps / io, 3),
            }
            if case and case.peer:
                row["peer"] = f"testpmd {case.peer}"
                row["ratio_to_peer"] = round(mpps / of_testpmd(case.peer), 3)
            if case and (floor := case.floor(at)):
                row["floor"] = floor
                row["short"] = "SHORT" if mpps / io < floor else ""
            if (name, at) in self.tracked:
                row.update(self.tracked[name, at])
            result.append(row)
        return result


def control(mode, case, at):
    """The name of a control: TCP's first segments are other frames than its later ones."""
    return f"{mode} SYN" if at.kind.startswith("tcp") and not case.open else mode


def source(at):
    """The name of what the traffic of a point is made from."""
    return f"{at.kind}-{at.flows}-{at.routes}" if at.routes > 1 else f"{at.kind}-{at.flows}"


def flows(at):
    """The generator's first arguments."""
    return [at.kind, str(at.flows)] + (["--prefixes", str(at.routes)] if at.routes > 1 else [])


def run_generator(generator, arguments):
    done = subprocess.run([generator, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Broken(f"{generator} {' '.join(arguments)}: {done.stderr.strip()}")


def print_table(rows):
    columns = ["system", "case", "proto", "family", "flows", "rules", "routes", "workers", "mpps", "spread", "ratio_to_io",
               "floor", "short", "peer", "ratio_to_peer", "judged", "invalid"]  # fmt: skip
    cells = [columns] + [
        [f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
         for value in (row.get(column, "") for column in columns)]
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells)]
    words = {"system", "case", "proto", "family", "short", "peer"}
    for line in cells:
        aligned = [
            cell.ljust(width) if column in words else cell.rjust(width)
            for cell, width, column in zip(line, widths, columns)
        ]
        print("  ".join(aligned).rstrip())


def main():
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measures flowgate against testpmd.")
    parser.add_argument("case", nargs="*", help="cases to measure, all by default")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--quick", action="store_true", help="fewer points and rounds: within two minutes a case")
    parser.add_argument("--smoke", action="store_true", help="one short round at 1,000 flows: that it works, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON, - for standard output")
    parser.add_argument("--svg", metavar="DIR", help="draw the rates into DIR (docs in a full run of all cases)")
    parser.add_argument("--rounds", type=int, help="rounds to take the median of")
    parser.add_argument("--flowgate", default="target/release/flowgate", help="the program to measure")
    parser.add_argument("--generator", default="target/release/examples/bench-flows", help="the program that makes flows")
    parser.add_argument("--controls", action="store_true", help="measure testpmd alone, to see what the machine gives")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CASES))
        return 0
    for name in options.case:
        if name not in CASES:
            parser.error(f'there is no case "{name}"; there are: {", ".join(CASES)}')
    names = options.case or list(CASES)
    points = {name: CASES[name].quick if options.quick else CASES[name].points for name in names}
    rounds, seconds = (3, 0.5) if options.quick else (5, 2.0)
    if options.smoke:
        points = {name: [points[name][0]._replace(flows=1000)] for name in names}
        rounds, seconds = 1, 0.2
    program = None if options.controls else options.flowgate
    draw = options.svg or ("docs" if not (options.quick or options.smoke or options.case or options.controls) else None)

    generator = options.generator if any(CASES[name].open or at.kind != "udp" or at.routes > 1 for name in names for at in points[name]) else None
    check({at.flows for name in names for at in points[name]}, program, generator, any(CASES[name].open for name in names))
    if draw:
        try:
            import plot
        except ImportError as error:
            raise Missing(f"matplotlib is missing ({error}); install python3-matplotlib") from error
    # So that an end by signal ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="flowgate-bench.") as folder:
        bench = Bench(folder, program, generator, options.rounds or rounds, seconds)
        for name in names:
            bench.run(name, CASES[name], points[name])
    rows = bench.rows()
    if options.json == "-":
        json.dump(rows, sys.stdout, indent=1)
        print()
    else:
        print_table(rows)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
                file.write("\n")
    if draw:
        plot.draw(rows, draw)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as error:
        note(f"bench.sh: {error}")
        sys.exit(3)
    except Broken as error:
        note(f"bench.sh: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
