"""The OCI spec of a container as its runtime in the guest reads it. No container gets to see that file, so it is sought where the host
has it: in the memory of the VM, as a page of the file system that the agent writes it to."""

import json

PAGE = 4096
CHUNK = 4 << 20


def _mappings(pid):
    """(begin, end) of what may be the guest's memory: large, and writable."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            span, mode = line.split()[:2]
            begin, end = (int(part, 16) for part in span.split("-"))
            if end - begin >= 64 << 20 and mode.startswith("rw"):
                yield begin, end


def pages(pid, start):
    """Every page of a VM's memory that begins with `start`."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for begin, end in _mappings(pid):
            for at in range(begin, end, CHUNK):
                memory.seek(at)
                data = memory.read(min(CHUNK, end - at))
                found = data.find(start)
                while found >= 0:
                    if found % PAGE == 0:
                        yield data[found:found + PAGE]
                    found = data.find(start, found + 1)


def annotations(pod, name):
    """Those of the container called `name`: the agent's file begins with them."""
    start = b'{"annotations":'
    for page in pages(pod.vmm(), start):
        found, _ = json.JSONDecoder().raw_decode(page[len(start):].decode(errors="replace"))
        if found.get("io.kubernetes.cri.container-name") == name:
            return found
    raise LookupError(f"no spec of {name} in the guest's memory")
