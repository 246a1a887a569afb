"""How a run went: what is measured, the bounds it is held to, and the table."""

import dataclasses

from harness.cri import DEADLINE

from . import processes

# Growth within a run that is none: what an allocator or a garbage collector does.
BOUNDS = (
    processes.Bound("memory", "containerd", 16),
    processes.Bound("memory", "daemon", 2),
    processes.Bound("memory", "supervisor", 1),
    processes.Bound("memory", "QEMU", 4),
    processes.Bound("memory", "file server", 1),
    processes.Bound("memory", "guest", 2),
    *(processes.Bound(what, kind, 20, "") for what in ("descriptors", "threads")
      for kind in ("containerd", "daemon", "supervisor", "QEMU", "file server")),
)
# The share of a run after which everything has warmed up.
WARM = 0.25
PROBE_SHARE = 0.95


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclasses.dataclass
class Report:
    text: str
    faults: list


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths))) for row in rows)


def report(node, begun, ended, probe_limit):
    faults = node.faults.texts()
    calls = [("call", "n", "p50 ms", "p95 ms", "p99 ms", "max ms")]
    for method, seconds in sorted(node.calls.seconds().items()):
        calls.append((method, str(len(seconds)), *(f"{percentile(seconds, share) * 1000:.0f}" for share in (0.5, 0.95, 0.99, 1))))
        if max(seconds) > DEADLINE:
            faults.append(f"{method} took {max(seconds):.0f} s")
    probes = node.calls.seconds().get("ExecSync")
    if probes and percentile(probes, PROBE_SHARE) > probe_limit:
        faults.append(f"a probe takes {percentile(probes, PROBE_SHARE):.2f} s (p{PROBE_SHARE * 100:.0f}), more than {probe_limit}")

    trends = [("after warming up", "each of", "samples", "median", "growth", "bound")]
    since = begun + WARM * (ended - begun)
    # The other programs are a VM's.
    bounds = [bound for bound in BOUNDS if node.handler != "runc" or bound.of in ("containerd", "daemon")]
    for bound in bounds:
        trend = node.samples.trend(bound, since, ended)
        name = f"{bound.of}: {bound.what}"
        if not trend:
            faults.append(f"{name}: nothing lived long enough to be measured")
            continue
        trends.append((name, str(trend.members), str(trend.samples), f"{trend.median:.1f} {bound.unit}", f"{trend.growth:+.1f}", f"{bound.growth}"))
        if not trend.kept:
            faults.append(f"{name} grew by {trend.growth:.1f} {bound.unit} in {ended - since:.0f} s, more than {bound.growth}")

    lines = sum(lines for lines, _ in node.logs.values())
    rotations = sum(rotations for _, rotations in node.logs.values())
    facts = [f"{len(node.logs)} logs of {lines} lines, rotated {rotations} times",
             f"{sum(node.codes.values())} containers ended, with {len(node.codes)} exit codes; {node.told} events"]
    return Report("\n\n".join((table(calls), table(trends), "\n".join(facts))), faults)
