"""A container that prints as fast as it can: what that does to the memory of all who carry its output."""

import time

from harness.cri import Cri
from harness.memory import guest_memory, own_memory

from . import memory

MIB = 1 << 20
# Of what QEMU has, the guest's memory and the translated code do not count.
OWN = ("VMM",)
PRINTING = "while :; do cat /data/random; done"


def _reading(stack, shell):
    """{program: MiB} of the largest of each kind."""
    programs = memory.programs(stack.run_dir, stack.daemon.service.pid)
    programs["containerd"] = [stack.containerd.service.pid]
    found = {}
    for name, pids in programs.items():
        sizes = [own_memory(pid) if name in OWN else memory.usage(pid).get("RSS", 0) << 10 for pid in pids]
        found[name] = max(sizes) / MIB
    found["guest"] = guest_memory(shell.output("cat", "/proc/meminfo")) / MIB
    return found


def measure(stack, results, seconds, image):
    """By how much each program has grown at most, while a container prints for so many seconds and its log is rotated."""
    cri = Cri(stack.containerd.socket)
    with stack.pod("magnetar") as pod:
        shell = pod.shell()
        printer = pod.create("/bin/sh", "-c", PRINTING, image=image)
        before = _reading(stack, shell)
        printer.start()
        most, printed, deadline = dict(before), 0, time.monotonic() + seconds
        rotated = printer.log.with_suffix(".rotated")
        while time.monotonic() < deadline:
            time.sleep(1)
            printer.log.rename(rotated)
            cri.call("ReopenContainerLog", container_id=printer.id)
            printed += rotated.stat().st_size
            rotated.unlink()
            for name, size in _reading(stack, shell).items():
                most[name] = max(most[name], size)
        printer.stop(0)
    cri.close()
    results.add("magnetar", "printed in a flood", "MiB/s", printed / MIB / seconds)
    for name, size in most.items():
        results.add("magnetar", f"{name} growth in a flood", "MiB", size - before[name])
