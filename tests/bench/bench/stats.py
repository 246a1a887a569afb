"""How long containerd takes to ask every guest for its containers' counters."""

import time

from . import report


def time_of(stack, results, pods, rounds):
    """`crictl stats` and `statsp` over the `pods` pods that run, each with one container. As JSON: the table is made of two
    samples, a second apart."""
    for number in range(rounds + 1):
        for command in ("stats", "statsp"):
            started = time.monotonic()
            listed = stack.crictl.json(command)["stats"]
            seconds = time.monotonic() - started
            counted = [entry for entry in listed if entry.get("cpu") or entry.get("linux", {}).get("cpu")]
            if len(counted) != pods:
                raise AssertionError(f"{command} tells of {len(counted)} of {pods} pods")
            if number > 0:
                results.add("magnetar", f"crictl {command} over {report.pods(pods)}", "ms", seconds * 1000)
