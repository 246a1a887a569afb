"""Memory, descriptors and threads of the programs and guests, as lines through their samples."""

import dataclasses
import os
import pathlib
import statistics
import threading

MIB = 1 << 20


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


@dataclasses.dataclass(frozen=True)
class Bound:
    """How much more of something may be there at the end of a run than after its warming up."""

    what: str
    of: str
    growth: float
    unit: str = "MiB"


@dataclasses.dataclass
class Trend:
    """What one kind of thing has done in a run; the worst of its kind counts."""

    bound: Bound
    members: int
    samples: int
    median: float
    growth: float

    @property
    def kept(self):
        return self.growth <= self.bound.growth


def growth(samples):
    """By how much the line through (time, value) pairs rises from the first to the last. Of each tenth of the time it takes the
    lowest: what a call under way has meanwhile is not what is kept."""
    first, last = samples[0][0], samples[-1][0]
    width = max((last - first) / 10, 1e-9)
    lowest = {}
    for time, value in samples:
        tenth = min(9, int((time - first) / width))
        if tenth not in lowest or value < lowest[tenth][1]:
            lowest[tenth] = (time, value)
    points = list(lowest.values())
    if len(points) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*points)).slope * (last - first)


class Samples:
    """Values of named things over time. Threads share it while it is filled."""

    def __init__(self):
        self._lock, self._values = threading.Lock(), {}

    def add(self, what, of, name, time, value):
        with self._lock:
            self._values.setdefault((what, of), {}).setdefault(name, []).append((time, value))

    def trend(self, bound, since, until):
        """Of what was there from before `since` until just before `until`; None if nothing was."""
        kept = []
        for samples in self._values.get((bound.what, bound.of), {}).values():
            if samples[0][0] <= since and samples[-1][0] >= until - (until - since) / 4:
                kept.append([pair for pair in samples if since <= pair[0] <= until])
        kept = [samples for samples in kept if len(samples) >= 3]
        if not kept:
            return None
        values = [value for samples in kept for _, value in samples]
        return Trend(bound, len(kept), len(values), statistics.median(values), max(growth(samples) for samples in kept))


def program_pids(containerd, daemon, sandboxes):
    """{kind: {name: pid}} of a stack's programs."""
    found = {"containerd": {"containerd": containerd}, "daemon": {"daemon": daemon}}
    kinds = {"qemu-system": "QEMU", "vmm-supervisor": "supervisor", "virtiofsd": "file server",
             "vmm-9p": "file server"}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        program = os.path.basename(arguments.split(b"\0")[0]).decode(errors="replace")
        kind = next((kind for prefix, kind in kinds.items() if program.startswith(prefix)), None)
        if kind and any(sandbox.encode() in arguments for sandbox in sandboxes):
            found.setdefault(kind, {})[entry.name] = int(entry.name)
    return found
