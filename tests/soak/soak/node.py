"""A node: its pods, and what a kubelet asks of CRI for all of them."""

import collections
import contextlib
import datetime
import math
import os
import pathlib
import re
import threading
import time

from harness import memory
from harness.host import CGROUPS
from stack.services import wait_until

from . import processes
from .calls import NOT_FOUND, Calls, Failed, Faults, ticks
from .events import Events
from .logs import complaints
from .pods import Pod

RELIST_SECONDS = 1
STATS_SECONDS = 10
IMAGES_SECONDS = 30
SAMPLE_SECONDS = 3
# How containerd tells of a call that failed, and of a container that ended while its figures were asked for or an exec in it was cleared
# away: it closes the container's own connection then, whatever is under way on it.
CALL_FAILED = re.compile(r'level=error msg="(?P<method>\w+) for \\"(?P<name>\w+)\\" failed"')
ENDED_MEANWHILE = re.compile(r'time="(?P<time>[^"]+)" level=error msg="(collecting metrics for |Failed to delete exec process \\"\w+\\" for container \\")'
                             r'(?P<name>\w+)(\\")?" error="ttrpc: closed"')
# For the start of all pods at once.
START_SECONDS = 300
# Of a guest's /proc/meminfo: what leaks, of the agent's or the kernel's, shows there.
GUEST_FIELDS = ("AnonPages", "SUnreclaim", "KernelStack", "PageTables")


def prefer(cgroup):
    """Makes the cgroup of all pods with twice the share of the processors that a kubelet gives it: this machine has other work, too."""
    shares = 2048 * os.cpu_count()
    for folder, file, value in ((CGROUPS / "cpu", "cpu.shares", shares), (CGROUPS, "cpu.weight", 100 * shares // 1024)):
        if (folder / "cgroup.procs").exists():
            made = folder / cgroup
            made.mkdir(exist_ok=True)
            if not (made / file).exists():
                (folder / "cgroup.subtree_control").write_text("+cpu")
            (made / file).write_text(str(value))
            return


class Node:
    def __init__(self, stack, pods, replaced_every, probe_seconds, handler):
        """A quarter of the pods is replaced, each after so many seconds."""
        self._stack, self.handler, self.probe_seconds = stack, handler, probe_seconds
        self.faults = Faults()
        self.calls = Calls(stack.containerd.socket, self.faults)
        self.events = Events(self.calls.cri, self.faults)
        self.samples = processes.Samples()
        self.codes = collections.Counter()
        self.logs = {}
        self._lock = threading.Lock()
        self._made, self._ready, self._running = [], {}, set()
        # When containers began to end.
        self._leaving = {}
        self._pods = [Pod(self, f"pod{number}", replaced_every if number < max(1, pods // 4) else None) for number in range(pods)]

    # What pods tell.

    def pod_config(self, name, attempt):
        config = self._stack.pod_config(metadata={"name": name, "uid": f"uid-{name}", "attempt": attempt}, hostname=name,
                                        log_directory=str(self._stack.run_dir / "logs" / f"{name}-{attempt}"),
                                        linux={"resources": {"memory_limit_in_bytes": 256 << 20}})
        pathlib.Path(config["log_directory"]).mkdir(parents=True, exist_ok=True)
        return config

    def log_directory(self, config):
        return pathlib.Path(config["log_directory"])

    def made(self, name):
        with self._lock:
            self._made.append(name)

    def ready(self, pod):
        with self._lock:
            self._ready[pod.id] = pod

    def leaving(self, pod):
        with self._lock:
            self._ready.pop(pod.id)

    def runs(self, container):
        with self._lock:
            self._running.add(container)

    def stops(self, container):
        """From here on it may end at any time."""
        with self._lock:
            self._running.discard(container)
            self._leaving[container] = time.time()

    def is_running(self, container):
        with self._lock:
            return container in self._running

    def exits(self, code):
        with self._lock:
            self.codes[code] += 1

    def lines(self, log):
        self.logs[log.path] = (log.lines, log.rotations)

    def exec(self, container, command, timeout):
        """The answer; None if the container is being stopped meanwhile: what comes then is no fault."""
        answer = self.calls("ExecSync", forgive=lambda: not self.is_running(container), container_id=container, cmd=command, timeout=timeout)
        return answer if self.is_running(container) else None

    def guest(self, name, meminfo):
        """A guest's /proc/meminfo."""
        self.samples.add("memory", "guest", name, time.monotonic(), memory.guest_memory(meminfo.decode()) / processes.MIB)

    # The kubelet's loops.

    def _relist(self, stop):
        messages = self.calls.messages
        for _ in ticks(RELIST_SECONDS, stop):
            with self._lock:
                ready, running = set(self._ready), set(self._running)
            pods = {pod.id for pod in self.calls("ListPodSandbox").items if pod.state == messages.SANDBOX_READY}
            containers = {container.id: container.state for container in self.calls("ListContainers").containers}
            statuses = [self.calls("PodSandboxStatus", forgive=NOT_FOUND, pod_sandbox_id=pod) for pod in pods]
            states = [self.calls("ContainerStatus", forgive=NOT_FOUND, container_id=container) for container in containers]
            pods &= {answer.status.id for answer in statuses if answer and answer.status.state == messages.SANDBOX_READY}
            alive = {answer.status.id for answer in states if answer and answer.status.state == messages.CONTAINER_RUNNING}
            with self._lock:
                lost = (ready & set(self._ready)) - pods, (running & self._running) - alive
            if any(lost):
                self.faults.add(f"not ready: pods {sorted(lost[0])}; not running: containers {sorted(lost[1])}")

    def _stats(self, stop):
        for _ in ticks(STATS_SECONDS, stop):
            with self._lock:
                ready, running = set(self._ready), set(self._running)
            containers = {stats.attributes.id: stats for stats in self.calls("ListContainerStats").stats}
            pods = {stats.attributes.id: stats.linux for stats in self.calls("ListPodSandboxStats").stats}
            with self._lock:
                ready, running = ready & set(self._ready), running & self._running
            for kind, wanted, found in (("pod", ready, pods), ("container", running, containers)):
                silent = [name[:13] for name in wanted if name not in found or not found[name].cpu.usage_core_nano_seconds.value
                          or not found[name].memory.working_set_bytes.value]
                if silent:
                    self.faults.add(f"no {kind} stats of {', '.join(silent)}")

    def _images(self, stop):
        for _ in ticks(IMAGES_SECONDS, stop):
            if not self.calls("ListImages").images or not self.calls("ImageFsInfo").image_filesystems:
                self.faults.add("no images, or no file system of images")
            conditions = self.calls("Status").status.conditions
            if not conditions or not all(condition.status for condition in conditions):
                self.faults.add(f"containerd is not ready: {conditions}")

    # What is measured.

    def _sample(self, stop):
        for _ in ticks(SAMPLE_SECONDS, stop):
            now = time.monotonic()
            with self._lock:
                sandboxes = list(self._ready)
            # What containerd and the daemon have for a pod is nothing that grows.
            if len(sandboxes) < len(self._pods):
                continue
            programs = processes.program_pids(self._stack.containerd.service.pid, self._stack.daemon.service.pid, sandboxes)
            for kind, pids in programs.items():
                for name, pid in pids.items():
                    # A process may be gone by now.
                    with contextlib.suppress(OSError):
                        self.samples.add("memory", kind, name, now, memory.own_memory(pid) / processes.MIB)
                        self.samples.add("descriptors", kind, name, now, processes.descriptors(pid))
                        self.samples.add("threads", kind, name, now, processes.threads(pid))

    def _justified(self, line):
        """Whether a complaint of containerd's is of a call that came too late, as the kubelet's do."""
        failed, ended = CALL_FAILED.search(line), ENDED_MEANWHILE.search(line)
        if failed and (failed["method"], failed["name"]) in self.calls.forgiven:
            return True
        told = ended and datetime.datetime.fromisoformat(ended["time"][:26] + "+00:00").timestamp()
        return bool(told) and told >= self._leaving.get(ended["name"], math.inf)

    def _thread(self, function, stop):
        def body():
            try:
                function(stop)
            except Failed:
                pass
            except BaseException as error:  # noqa: BLE001 (a fault of these tests is one, too)
                self.faults.add(f"{function.__name__}: {error!r}")

        return threading.Thread(target=body, name=function.__name__)

    def run(self, seconds):
        """All pods live for so many seconds from when the last of them runs; then all are removed. Returns the times between
        which there was load."""
        pods_stop, stop = threading.Event(), threading.Event()
        lives = [self._thread(pod.run, pods_stop) for pod in self._pods]
        loops = [self._thread(loop, stop) for loop in (self._relist, self._stats, self._images, self._sample)]
        for thread in lives + loops:
            thread.start()
        try:
            wait_until(lambda: len(self._ready) == len(lives) or not all(life.is_alive() for life in lives), START_SECONDS, "pods do not start", 0.2)
            begun = time.monotonic()
            for _ in ticks(1, stop):
                if time.monotonic() > begun + seconds or not all(life.is_alive() for life in lives):
                    break
            ended = time.monotonic()
        finally:
            pods_stop.set()
            for life in lives:
                life.join()
            stop.set()
            for loop in loops:
                loop.join()
        for name in self._made:
            if not self.events.wait(name, "DELETED", 30):
                break
        self.told = self.events.check(self._made)
        self.events.close()
        for service in (self._stack.containerd.service, self._stack.daemon.service):
            for line in complaints(service.name, service.log):
                if not self._justified(line):
                    self.faults.add(f"{service.name}: {line}")
        return begun, ended
