"""What is measured: processes that forward from net_pcap to net_null on one worker core, and how to read their rate."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import traffic

CONTROL_CORE, WORKER_CORE = 0, 1
HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"
# A frame's buffer of 2,176 bytes and its mbuf header, rounded up, in bytes.
BUFFER = 2560


class Missing(Exception):
    """Something the bench needs is not here."""


class Broken(Exception):
    """A process did not do what it should."""


def memory(flows):
    """Megabytes for the source's copy of the capture, queues and caches."""
    return 128 + 2 * (flows + 16384) * BUFFER // 2**20


def buffers(flows):
    """net_pcap copies the whole capture into mbufs before it starts."""
    return flows + 16384


# Megabytes of huge pages for flow tables of the default size.
TABLES = 224


def check(flows, flowgate, generator, tables):
    """Raises Missing for what is not here."""
    if shutil.which("dpdk-testpmd") is None:
        raise Missing("dpdk-testpmd is missing; install the package dpdk (scripts/setup.sh does)")
    if flowgate is not None and not os.access(flowgate, os.X_OK):
        raise Missing(f"{flowgate} is missing; build it with cargo build --release")
    if generator is not None and not os.access(generator, os.X_OK):
        raise Missing(f"{generator} is missing; build it with cargo build --release --example bench-flows")
    if len(os.sched_getaffinity(0)) < 2:
        raise Missing("one core is not enough: a worker needs one to itself beside the control threads'")
    try:
        with open(f"{HUGE_PAGES}/free_hugepages", encoding="ascii") as file:
            free = int(file.read()) * 2
    except OSError:
        free = 0
    need = max(map(memory, flows)) + TABLES * tables
    if free < need:
        raise Missing(f"{need} MB of free 2 MB huge pages are needed, there are {free}; scripts/setup.sh sets them up")
    if os.geteuid() != 0:
        raise Missing("huge pages and priorities need root")


def vdevs(pcap):
    return [f"net_pcap0,rx_pcap={pcap},infinite_rx=1", "net_null0,no-rx=1"]


def favoured():
    """In the child: a session of its own at the highest priority. With the kernel's autogroups, a nice level counts only
    inside its session, so that a build elsewhere would take half of the worker's core."""
    os.setsid()
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write("-20")
    except OSError:
        pass


class Process:
    """A running system. Leaving the context ends it, by its process id."""

    name = ""

    def __init__(self, command):
        self.command = command
        self.output = []
        self.news = threading.Condition()
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            preexec_fn=favoured,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.child.stdout:
            with self.news:
                self.output.append(line)
                self.news.notify_all()
        with self.news:
            self.output.append(None)
            self.news.notify_all()

    def wait_for(self, pattern, start=0, timeout=60.0):
        """The first match of `pattern` in the output from line `start` on, and the line behind it."""
        deadline = time.monotonic() + timeout
        with self.news:
            at = start
            while True:
                while at < len(self.output):
                    line = self.output[at]
                    if line is None:
                        raise self.broken("ended")
                    at += 1
                    if match := re.search(pattern, line):
                        return match, at
                if not self.news.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise self.broken(f"did not say {pattern!r} within {timeout:.0f} s")

    def broken(self, what):
        tail = "".join(line for line in self.output[-15:] if line)
        return Broken(f"{self.name} {what}; its last words:\n{tail}")

    def say(self, line):
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except OSError as error:
            raise self.broken(f"takes no commands ({error})") from error

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for ending in (self.end, lambda: self.child.send_signal(signal.SIGINT), self.child.kill):
            if self.child.poll() is not None:
                break
            try:
                ending()
                self.child.wait(10)
            except (OSError, Broken, subprocess.TimeoutExpired):
                continue
        self.child.wait()
        self.reader.join(5)

    def begin(self):
        """Waits until it forwards."""

    def end(self):
        """Asks it to end."""
        self.child.send_signal(signal.SIGTERM)

    def sent(self):
        """Packets it has transmitted so far, and when that was true."""
        raise NotImplementedError

    def settle(self, flows):
        """Lets it forward until every flow has come twice, and caches know them."""
        before, _ = self.sent()
        deadline = time.monotonic() + 20
        time.sleep(0.2)
        while self.sent()[0] < before + 2 * flows and time.monotonic() < deadline:
            time.sleep(0.1)

    def tracked(self):
        """What connection tracking counted so far, if there is any."""
        return {}

    def rate(self, seconds):
        """Packets transmitted (or received, where nothing leaves) per second over an interval."""
        before, began = self.sent()
        time.sleep(seconds)
        after, ended = self.sent()
        if after <= before:
            raise self.broken("moves nothing")
        return (after - before) / (ended - began)


class Testpmd(Process):
    """testpmd in a forwarding mode."""

    name = "testpmd"

    def __init__(self, mode, pcap, flows):
        devices = [argument for device in vdevs(pcap) for argument in ("--vdev", device)]
        eal = ["-l", f"{CONTROL_CORE},{WORKER_CORE}", "--no-pci", "--in-memory", "-m", str(memory(flows)), *devices]
        own = [f"--forward-mode={mode}", "--burst=64", "-a", "-i", "--no-lsc-interrupt"]
        # Line by line, or its answers would wait in its buffer.
        super().__init__(["stdbuf", "-oL", "dpdk-testpmd", *eal, "--", *own, f"--total-num-mbufs={buffers(flows)}"])

    def begin(self):
        self.wait_for(r"^Done")
        self.sent()

    def end(self):
        self.say("stop")
        self.say("quit")

    def sent(self):
        start = len(self.output)
        self.say("show port stats 1")
        match, _ = self.wait_for(r"TX-packets:\s*(\d+)", start)
        return int(match[1]), time.monotonic()


class Flowgate(Process):
    """The release binary on a configuration."""

    name = "flowgate"

    def __init__(self, program, folder, stages, pcap, flows, table=None, open_flows=None, drops=False, routed=False):
        self.program, self.socket = program, os.path.join(folder, "flowgate.sock")
        self.tracks, self.drops = "conntrack" in stages, drops
        source, sink = vdevs(pcap)
        inside, outside = (f"address = {json.dumps(own)}\n" for own in traffic.ADDRESSES) if routed else ("", "")
        config = os.path.join(folder, "bench.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f"[worker]\ncores = [{WORKER_CORE}]\nmain_core = {CONTROL_CORE}\nburst = 64\n"
                f'[memory]\nhugepages = "require"\npackets = {buffers(flows)}\n'
                f"{f'flows = {table}' if table else ''}\n"
                f'[[port]]\nname = "in"\ndevice = "{source}"\n{inside}'
                f'[[port]]\nname = "out"\ndevice = "{sink}"\n{outside}'
                f'[control]\nsocket = "{self.socket}"\n{stages}'
            )
        super().__init__([program, "run", config] + (["--flows", open_flows] if open_flows else []))

    def begin(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.sent()
            except Broken:
                if self.child.poll() is not None or time.monotonic() > deadline:
                    raise self.broken("does not answer on its socket") from None
                time.sleep(0.2)

    def show(self, what):
        ask = [self.program, "show", what, "--json", "--socket", self.socket]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False)
        try:
            return json.loads(answer.stdout)
        except ValueError as error:
            raise self.broken(f"does not show its {what}: {answer.stderr.strip() or error!r}") from error

    def sent(self):
        ports = {port["name"]: port for port in self.show("ports")}
        count = ports["in"]["rx_packets"] if self.drops else ports["out"]["tx_packets"]
        return count, time.monotonic()

    def tracked(self):
        if not self.tracks:
            return {}
        stages = {stage["stage"]: stage for stage in self.show("pipeline")["stages"]}
        judged = stages["conntrack"]["counters"]["new"] + sum(stages["acl"]["drops"].values())
        return {"judged": judged, "invalid": sum(stages["conntrack"]["drops"].values())}

    def check_translation(self, flows):
        """Raises Broken unless each of the flows is in the table as a translated one, to an address of the pool, and unless all
        packets that pass are theirs: what was measured would be something else."""
        stages = {stage["stage"]: stage for stage in self.show("pipeline")["stages"]}
        counters = stages["conntrack"]["counters"]
        if counters["translated"] < flows or counters["translated"] != counters["flows"]:
            raise self.broken(f"translates {counters['translated']} of {counters['flows']} flows, and there are {flows}")
        seen = self.show("flows")["flows"]
        for flow in seen:
            to = flow["translated"]
            if to is None or not traffic.is_pooled(to["source"]) or to["destination"] != flow["destination"]:
                raise self.broken(f"has a flow that is not translated as it should be: {flow}")
        if not any(flow["packets"][0] > 1 for flow in seen):
            raise self.broken("forwards packets of none of the translated flows")
