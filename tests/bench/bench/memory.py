"""Memory of a stack's programs, from the kernel's own sums."""

import os
import pathlib

NAMES = {"qemu-system": "VMM", "virtiofsd": "file server", "vmm-9p": "file server", "vmm-supervisor": "supervisor"}


def usage(pid):
    """{"PSS": KiB, "RSS": KiB} of a process; empty if it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return {"PSS": int(fields["Pss"].split()[0]), "RSS": int(fields["Rss"].split()[0])}


def programs(run_dir, daemon):
    """{"daemon": [pid], "VMM": [pids], ...} of the stack below `run_dir`."""
    found = {"daemon": [daemon]}
    # A VM's programs get what they use as descriptors: only the sandbox's id names them.
    marks = [str(run_dir).encode(), *(os.fsencode(path.name) for path in pathlib.Path(run_dir, "s").iterdir())]
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        program = os.path.basename(arguments[0]).decode(errors="replace")
        below = any(mark in argument for argument in arguments for mark in marks)
        for prefix, name in NAMES.items():
            if below and program.startswith(prefix):
                found.setdefault(name, []).append(int(entry.name))
    return found
