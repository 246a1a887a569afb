"""What processes and guests use of memory."""

# Of a guest's /proc/meminfo: what leaks, of the agent's, of containers' or the kernel's, shows there.
GUEST_FIELDS = ("AnonPages", "SUnreclaim", "KernelStack", "PageTables")


def own_memory(pid):
    """Bytes that a process has for itself: neither files, nor a guest's memory, which is a shared file here, nor QEMU's
    translated code, a cache of a fixed size in the one place that can be both written and executed."""
    total, counts = 0, False
    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            first, _, rest = line.partition(" ")
            if not first.endswith(":"):
                counts = not rest.startswith("rwx")
            elif counts and first == "Anonymous:":
                total += int(rest.split()[0]) << 10
    return total


def guest_memory(meminfo):
    """Bytes that its processes and kernel have for themselves, of the text of a guest's /proc/meminfo."""
    fields = dict(line.split(":") for line in meminfo.splitlines())
    return sum(int(fields[field].split()[0]) << 10 for field in GUEST_FIELDS)
