"""Removes a private stack completely, whatever state it is in."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

from . import network
from .services import Service, start_time, wait_dead


def processes_below(folder):
    """Pids of the processes whose command line names something below `folder`, this one's family excepted."""
    wanted = str(folder).encode() + b"/"
    family, pid = set(), os.getpid()
    while pid > 1:
        family.add(pid)
        try:
            pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            break
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in family:
            continue
        try:
            if wanted in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def mounts_below(*folders):
    points = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if any(point == str(folder) or point.startswith(f"{folder}/") for folder in folders):
            points.append(point)
    return points


def remove_cgroups(name):
    """Removes the cgroups called `name` at the root of every hierarchy, with all below them."""
    roots = [pathlib.Path("/sys/fs/cgroup"), *pathlib.Path("/sys/fs/cgroup").glob("*")]
    for root in roots:
        top = root / name
        if not top.is_dir():
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            for pid in pathlib.Path(folder, "cgroup.procs").read_text().split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                    wait_dead(int(pid), 5)
                except ProcessLookupError:
                    pass
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def remove(run_dir, data_dir, netns, cgroup):
    run_dir, data_dir = pathlib.Path(run_dir), pathlib.Path(data_dir)
    # containerd first: it would clean up, slowly, what is about to vanish anyway.
    for name in ("containerd", "vmm-sandboxer"):
        Service(name, [], run_dir).kill()
    for _ in range(3):
        pids = processes_below(run_dir) + processes_below(data_dir)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in pids:
            if start_time(pid):
                wait_dead(pid, 5)
        if not pids:
            break
    remove_cgroups(cgroup)
    for point in sorted(mounts_below(run_dir, data_dir), key=len, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, stderr=subprocess.DEVNULL)
    network.delete(netns)
    for leftover in pathlib.Path("/var/lib/cni/results").glob(f"magnetar-{netns}-*"):
        leftover.unlink(missing_ok=True)
    left = mounts_below(run_dir, data_dir)
    if left:
        raise OSError(f"still mounted: {', '.join(left)}")
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.rmtree(data_dir, ignore_errors=True)
