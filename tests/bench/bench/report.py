"""Samples, and how they are told."""

import math
import statistics

from harness.cri import DEADLINE

# What a program may grow by that carries a flood of output.
GROWTH_MIB = 32


def percentile(samples, share):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def pods(count):
    return "1 pod" if count == 1 else f"{count} pods"


class Results:
    def __init__(self):
        self.samples = {}

    def add(self, mode, metric, unit, value):
        self.samples.setdefault((mode, metric, unit), []).append(value)

    def median(self, mode, metric):
        for (found_mode, found_metric, _), values in self.samples.items():
            if (found_mode, found_metric) == (mode, metric):
                return statistics.median(values)
        return None

    def objects(self):
        return [{"bench": "pod", "vmm": {"runc": "none"}.get(mode, "qemu"), "mode": mode, "metric": metric, "unit": unit,
                 "n": len(values), "p50": statistics.median(values), "p95": percentile(values, 0.95),
                 "p99": percentile(values, 0.99)} for (mode, metric, unit), values in self.samples.items()]

    def table(self):
        rows = [("mode", "metric", "unit", "n", "p50", "p95", "p99")]
        rows += [(o["mode"], o["metric"], o["unit"], str(o["n"]), *(f"{o[p]:.1f}" for p in ("p50", "p95", "p99")))
                 for o in self.objects()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) if column < 3 else cell.rjust(width)
                                   for column, (cell, width) in enumerate(zip(row, widths))) for row in rows)

    def ratios(self):
        """The comparisons that matter, one line each."""
        lines = []
        boot = self.median("qemu alone", "boot to PID 1")
        for metric in ("agent ready", "runp"):
            ours = self.median("magnetar", metric)
            if boot and ours:
                lines.append(f"{metric} / bare boot of the same kernel: {ours / boot:.2f}")
        by_hand, ours = self.median("crun by hand", "exec true"), self.median("magnetar", "exec true")
        if by_hand and ours:
            lines.append(f"exec true through crictl: {ours:.0f} ms; twice crun exec by hand plus 50 ms: {2 * by_hand + 50:.0f} ms")
        for metric in ("runp", "create+start", "first exec true", "exec true", "stats", "stop", "stopp", "rmp", "log throughput of blocks", "log throughput of lines",
                       "port-forward out of the pod", "port-forward into the pod"):
            ours, yardstick = self.median("magnetar", metric), self.median("runc", metric)
            if ours and yardstick:
                lines.append(f"{metric}: magnetar / runc = {ours / yardstick:.2f}")
        return lines

    def limits(self, count):
        """(what, value, limit, whether it is kept) of each figure that has a limit. One that was not measured (nan) keeps none."""
        median = lambda metric, mode="magnetar": self.median(mode, metric)  # noqa: E731
        boot, by_hand = median("boot to PID 1", "qemu alone"), median("exec true", "crun by hand")
        known = [
            ("agent ready / bare boot", median("agent ready") and boot and median("agent ready") / boot, 2, False),
            ("exec true, ms", median("exec true"), by_hand and 2 * by_hand + 50, False),
            ("agent RSS, MiB", median("agent RSS"), 4, False),
            (f"supervisor PSS with {pods(count)}, MiB", median(f"supervisor PSS, {pods(count)}"), 2, False),
            (f"daemon RSS with {pods(count)}, MiB", median(f"daemon RSS, {pods(count)}"), 25, False),
            (f"crictl stats over {pods(count)}, ms", median(f"crictl stats over {pods(count)}"), 1000, False),
            ("log throughput of blocks, MiB/s", median("log throughput of blocks"), 50, True),
            ("log throughput of lines, MiB/s", median("log throughput of lines"), 50, True),
            (f"longest call, {pods(count)} at once, s", median(f"longest call, {pods(count)} at once"), DEADLINE, False),
            *((f"{name} growth in a flood, MiB", median(f"{name} growth in a flood"), GROWTH_MIB, False)
              for name in ("containerd", "daemon", "supervisor", "VMM", "file server", "guest")),
        ]
        figures = [(text, math.nan if value is None else value, limit or math.nan, least) for text, value, limit, least in known]
        kept = [(text, value, limit, value >= limit if least else value <= limit) for text, value, limit, least in figures]
        failures = median(f"failures, {pods(count)} at once")
        return [*kept, (f"failures, {pods(count)} at once", math.nan if failures is None else failures, 0, failures == 0)]
