"""Measures each case at each number of flows: round after round, each round one run of testpmd `io`, of the case's peer and of
flowgate, so that what else the machine does falls on all of them. A figure is the median of its rounds."""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from typing import Callable, NamedTuple, Optional

import traffic
from systems import Broken, Flowgate, Missing, Testpmd, check

FLOWS = (1, 1000, 65536, 262144)
WIRE = '[pipeline]\nstages = ["cross"]\n[cross]\nwire = [{ ports = ["in", "out"] }]\n'
WIRE_MAC = WIRE.replace("] }", '], rewrite_mac = true, peers = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"] }')
WIRE_ACL = WIRE.replace('["cross"]', '["cross", "acl"]')


class Case(NamedTuple):
    """What flowgate is to do, and with whom to compare it."""

    # The configuration behind [worker], [memory], [[port]] in and out, and [control], for a number of rules.
    config: Callable[[int], str]
    # testpmd's forwarding mode to compare with, besides io.
    peer: Optional[str] = None
    # (rules, flows) to measure, and those of a quick run.
    points: tuple = tuple((0, flows) for flows in FLOWS)
    quick: tuple = tuple((0, flows) for flows in FLOWS)


RULES = (1, 100, 1000, 10000)
ALL_RULES = tuple((rules, flows) for rules in RULES for flows in FLOWS)
SOME_RULES = tuple((rules, 1000) for rules in RULES) + ((1000, 65536),)

CASES = {
    "cross": Case(lambda rules: WIRE),
    "cross-mac": Case(lambda rules: WIRE_MAC, peer="mac"),
    "acl": Case(lambda rules: WIRE_ACL + traffic.acl(rules), points=ALL_RULES, quick=SOME_RULES),
    "acl-wild": Case(lambda rules: WIRE_ACL + traffic.acl(rules, wild=True), points=ALL_RULES, quick=SOME_RULES),
}


def note(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run of the bench: its captures and what was measured."""

    def __init__(self, folder, program, rounds, seconds):
        self.folder, self.program, self.rounds, self.seconds = folder, program, rounds, seconds
        # Rates in Mpps by (system, case, rules, flows), one a round.
        self.rates = {}

    def pcap(self, flows):
        path = os.path.join(self.folder, f"{flows}.pcap")
        if not os.path.exists(path):
            traffic.write_pcap(path, flows)
        return path

    def measure(self, system, case, rules, flows, start):
        with start() as process:
            process.rate(0.2)
            mpps = process.rate(self.seconds) / 1e6
        note(f"  {system:<9} {case:<10} rules {rules:>6}  flows {flows:>7}  {mpps:7.2f} Mpps")
        self.rates.setdefault((system, case, rules, flows), []).append(mpps)

    def testpmd(self, mode, flows):
        self.measure("testpmd", mode, 0, flows, lambda: Testpmd(mode, self.pcap(flows), flows))

    def run(self, name, case, points):
        flows_of = sorted({flows for _, flows in points})
        for at in range(self.rounds):
            note(f"{name}, round {at + 1} of {self.rounds}")
            for flows in flows_of:
                self.testpmd("io", flows)
                if case.peer:
                    self.testpmd(case.peer, flows)
                for rules in sorted(rules for rules, at_flows in points if at_flows == flows and self.program):
                    config = case.config(rules)
                    start = lambda: Flowgate(self.program, self.folder, config, self.pcap(flows), flows)
                    self.measure("flowgate", name, rules, flows, start)

    def rows(self):
        """The figures. Those of one run of the bench share their controls."""
        median = {key: statistics.median(rates) for key, rates in self.rates.items()}
        result = []
        for (system, case, rules, flows), rates in self.rates.items():
            mpps = median[system, case, rules, flows]
            row = {
                "system": system,
                "case": case,
                "proto": "udp",
                "family": "ipv4",
                "flows": flows,
                "rules": rules,
                "routes": 0,
                "workers": 1,
                "mpps": round(mpps, 3),
                "spread": round((max(rates) - min(rates)) / mpps, 3),
                "ratio_to_io": round(mpps / median["testpmd", "io", 0, flows], 3),
            }
            peer = CASES[case].peer if system == "flowgate" else None
            if peer:
                row["peer"] = f"testpmd {peer}"
                row["ratio_to_peer"] = round(mpps / median["testpmd", peer, 0, flows], 3)
            result.append(row)
        return result


def print_table(rows):
    columns = ["system", "case", "proto", "family", "flows", "rules", "routes", "workers", "mpps", "spread", "ratio_to_io",
               "peer", "ratio_to_peer"]  # fmt: skip
    cells = [columns] + [
        [f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
         for value in (row.get(column, "") for column in columns)]
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells)]
    words = {"system", "case", "proto", "family", "peer"}
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
        points = {name: [next(point for point in points[name] if point[1] == 1000)] for name in names}
        rounds, seconds = 1, 0.2
    program = None if options.controls else options.flowgate
    draw = options.svg or ("docs" if not (options.quick or options.smoke or options.case or options.controls) else None)

    check({flows for name in names for _, flows in points[name]}, program)
    if draw:
        try:
            import plot
        except ImportError as error:
            raise Missing(f"matplotlib is missing ({error}); install python3-matplotlib") from error
    # So that an end by signal ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="flowgate-bench.") as folder:
        bench = Bench(folder, program, options.rounds or rounds, seconds)
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
