"""How large a guest is: what a container sees of it, and what the host lets it have."""

import pathlib
import re


def memory_mib(container):
    """What the guest's kernel has."""
    return int(re.search(r"MemTotal:\s+(\d+) kB", container.output("cat", "/proc/meminfo"))[1]) // 1024


def cpus(container):
    return int(container.output("nproc"))


def host_limit_file(pod, above=0):
    """memory.max of the sandbox's cgroup on the host, or of one so many above it, or its form of v1."""
    for line in open(f"/proc/{pod.vmm()}/cgroup"):
        hierarchy, controllers, path = line.rstrip("\n").split(":", 2)
        if hierarchy == "0" and not controllers:
            unified = path
        if "memory" in controllers.split(","):
            return pathlib.Path(f"/sys/fs/cgroup/memory{path}").joinpath(*[".."] * above, "memory.limit_in_bytes")
    return pathlib.Path(f"/sys/fs/cgroup{unified}").joinpath(*[".."] * above, "memory.max")
