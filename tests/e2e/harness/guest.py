"""What a container sees of its guest's size."""

import re


def memory_mib(container):
    """What the guest's kernel has."""
    return int(re.search(r"MemTotal:\s+(\d+) kB", container.output("cat", "/proc/meminfo"))[1]) // 1024


def cpus(container):
    return int(container.output("nproc"))
