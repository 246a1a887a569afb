"""What the host looks like, as far as a stack may change it; compared before and after each test."""

import os
import pathlib
import subprocess

from . import ROOT  # noqa: F401
from stack import network, teardown

CGROUPS = pathlib.Path("/sys/fs/cgroup")
FILE_SERVERS = ("virtiofsd", "vmm-9p")


def _netns_inode(path):
    try:
        return pathlib.Path(path).stat().st_ino
    except OSError:
        return None


class Host:
    """Looks for everything that belongs to one stack."""

    def __init__(self, run_dir, data_dir, netns, cgroup, services):
        self.run, self.data = pathlib.Path(run_dir), pathlib.Path(data_dir)
        self.netns, self.cgroup, self.services = netns, cgroup, services

    def processes(self):
        """Processes that the stack's services have started: by command line, cgroup or network namespace."""
        own = {service.pid for service in self.services}
        private = _netns_inode(f"/run/netns/{self.netns}")
        default = _netns_inode("/proc/1/ns/net")
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in own:
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if not command or "crictl" in command.split(" ")[0] or "--config" in command and "/crictl" in command:
                    continue
                mine = f"{self.run}/" in command or f"{self.data}/" in command
                mine = mine or f"/{self.cgroup}/" in (entry / "cgroup").read_text()
                inode = _netns_inode(entry / "ns/net")
                mine = mine or (inode == private and inode != default)
                if mine:
                    found[int(entry.name)] = command[:160]
            except OSError:
                continue
        return {f"{pid} {command}" for pid, command in found.items()}

    def mounts(self):
        return set(teardown.mounts_below(self.run, self.data))

    def shared(self):
        """What file servers have mounted for containers, in their own namespaces."""
        found = set()
        for name in FILE_SERVERS:
            for pid in processes_of(name, f"{self.run}/"):
                try:
                    lines = pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                except OSError:
                    continue
                found.update(f"{line.split()[4]} of {name} {pid}" for line in lines if line.split()[4].count("/") > 1)
        return found

    def links(self):
        out = subprocess.run(["ip", "-n", self.netns, "-o", "link"], capture_output=True, text=True).stdout
        return {line.split(":")[1].strip() for line in out.splitlines()} - {network.BRIDGE}

    def cgroups(self):
        found = set()
        for top in [CGROUPS / self.cgroup, *CGROUPS.glob(f"*/{self.cgroup}")]:
            found.update(str(path) for path in top.glob("**/") if path != top)
        return found

    def loops(self):
        found = set()
        for backing in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                path = backing.read_text().strip()
            except OSError:
                continue
            if path.startswith((str(self.run), str(self.data))):
                found.add(f"{backing.parts[3]} {path}")
        return found

    def files(self):
        """Files of the daemon and containerd's bundles; what is mounted below them is somebody else's."""
        found, mounted = set(), self.mounts()
        for top in (self.run / "s", self.run / "c" / "io.containerd.runtime.v2.task"):
            for directory, directories, names in os.walk(top):
                found.update(os.path.join(directory, name) for name in [*directories, *names] if name != "k8s.io")
                directories[:] = [name for name in directories if os.path.join(directory, name) not in mounted]
        return found

    def state(self):
        return {"processes": self.processes(), "mounts": self.mounts(), "shared mounts": self.shared(), "links": self.links(), "cgroups": self.cgroups(),
                "loop devices": self.loops(), "files": self.files()}


def processes_of(name, needle):
    """Pids of the processes whose program is called `name`... and whose command line holds `needle`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        program = command.split(b"\0")[0].rpartition(b"/")[2].decode(errors="replace")
        if program.startswith(name) and str(needle).encode() in command:
            found.append(int(entry.name))
    return found


def descriptors(pid):
    """What the open descriptors of a process refer to, as a list."""
    found = []
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(fd.readlink()))
        except OSError:
            continue
    return found


def added(before, after):
    """{category: what is there now that was not} of two states."""
    extra = {name: after[name] - before[name] for name in after}
    return {name: sorted(items) for name, items in extra.items() if items}
