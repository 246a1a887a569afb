"""A whole private stack for tests: containerd, the daemon, crictl, images; and pods in it."""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import time

from . import settings, testimages
from .host import Host, added, descriptors, processes_of
from stack import containerd, crictl, network, sandboxer, teardown
from stack.services import start_time, wait_until

RUN_ROOT = pathlib.Path("/run/magnetar-e2e")
SNAPSHOTTERS = {"": "overlayfs", "-native": "native", "-blockfile": "blockfile"}
MTU = 1400
# A handler whose VMs have a size of their own, and what all of the others' pods may ask for.
SIZED = "magnetar-sized"
SIZES = {"vm": {"annotations": ["vcpus", "memory_mib"]}, f"handlers.{SIZED}": {"vcpus": 2, "memory_mib": 640, "annotations": []}}
# A handler for whose privileged containers containerd names every device of the host.
HOST_DEVICES = "magnetar-host-devices"
# What containerd passes on of a container's; the second are those that command crun.
ANNOTATIONS = ["io.magnetar.*", "run.oci.*"]
# CRI's NamespaceMode CONTAINER, which the kubelet asks for unless a pod shares its processes.
CONTAINER_PIDS = 1
# A pod that every daemon of Magnetar refuses, before it has made anything.
REFUSED = {"linux": {"security_context": {"namespace_options": {"network": 2}}}}

_numbers = itertools.count(1)
_pods = itertools.count(1)


def merge(base, extra):
    """`base` with the nested dictionaries of `extra` laid over it."""
    result = dict(base)
    for key, value in extra.items():
        result[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


class Container:
    def __init__(self, pod, container_id, log):
        self.pod, self.id, self.log = pod, container_id, log
        self.crictl = pod.stack.crictl

    def exec(self, *command, stdin=None, check=True, text=True, timeout=None):
        flags = ["-i"] if stdin is not None else []
        return self.crictl.run("exec", *flags, self.id, *command, stdin=stdin or b"", check=check, text=text, timeout=timeout)

    def output(self, *command, **kwargs):
        return self.exec(*command, **kwargs).stdout

    def popen(self, *command, flags=(), **kwargs):
        return self.crictl.popen("exec", *flags, self.id, *command, **kwargs)

    def status(self):
        return self.crictl.json("inspect", self.id)["status"]

    def wait_state(self, state, timeout=60):
        return wait_until(lambda: (lambda s: s if s["state"] == state else None)(self.status()), timeout,
                          f"container {self.id[:13]} is not {state}", interval=0.1)

    def wait_exit(self, timeout=60):
        """The exit code."""
        return self.wait_state("CONTAINER_EXITED", timeout).get("exitCode", 0)

    def logs(self):
        return self.crictl.run("logs", self.id)

    def raw_log(self):
        return self.log.read_bytes()

    def wait_log(self, text, timeout=60):
        """The log's bytes once `text` stands in it."""
        needle = text.encode() if isinstance(text, str) else text

        def look():
            data = self.raw_log() if self.log.exists() else b""
            return data if needle in data else None

        return wait_until(look, timeout, f"{text!r} is not in the log of {self.id[:13]}")

    def start(self):
        self.crictl.run("start", self.id)
        return self

    def stop(self, timeout):
        self.crictl.run("stop", "--timeout", timeout, self.id)

    def remove(self):
        self.crictl.run("rm", "--force", self.id)


class Pod:
    def __init__(self, stack, handler, config):
        self.stack, self.config = stack, config
        self.logs = pathlib.Path(config["log_directory"])
        self.logs.mkdir(parents=True, exist_ok=True)
        self.id, self.path = stack.crictl.runp(config, handler)
        self._containers = itertools.count(1)

    def create(self, *command, image=testimages.BUSYBOX, name=None, **extra):
        name = name or f"c{next(self._containers)}"
        config = merge({"metadata": {"name": name}, "image": {"image": image}, "log_path": f"{name}.log",
                        "linux": {"security_context": {"namespace_options": {"pid": CONTAINER_PIDS}}}}, extra)
        if command:
            config["command"] = list(command)
        return Container(self, self.stack.crictl.create(self.id, config, self.path), self.logs / f"{name}.log")

    def run(self, *command, **extra):
        return self.create(*command, **extra).start()

    def shell(self, **extra):
        """A container that waits to be exec'ed into."""
        return self.run("/bin/sleep", "infinity", **extra)

    def containers(self):
        return self.stack.crictl.run("ps", "--all", "--quiet", "--pod", self.id).stdout.split()

    def status(self):
        return self.stack.crictl.json("inspectp", self.id)["status"]

    def addresses(self):
        network_status = self.status()["network"]
        return [network_status["ip"], *[extra["ip"] for extra in network_status.get("additionalIps", [])]]

    def netns(self):
        """The path of the network namespace that CNI set up for it."""
        address = self.addresses()[0]
        for point in self.stack.host.mounts():
            if "/netns/" in point:
                shown = subprocess.run(["nsenter", f"--net={point}", "ip", "-o", "addr"], capture_output=True, text=True).stdout
                if f" {address}/" in shown:
                    return point
        raise LookupError(f"no network namespace has {address}")

    @contextlib.contextmanager
    def port_forward(self, port):
        """The local port, in the stack's namespace, that `crictl port-forward` leads to the pod's."""
        client = self.stack.crictl.popen("port-forward", self.id, f":{port}", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            line = client.stdout.readline()
            assert "Forwarding from 127.0.0.1:" in line, line + client.stdout.read()
            yield int(line.split("127.0.0.1:")[1].split(" ")[0])
        finally:
            client.kill()
            client.wait()
            client.stdout.close()

    def processes(self, name):
        """Pids of its processes on the host whose program is called `name`..."""
        return processes_of(name, self.id)

    def vmm(self):
        pids = self.processes("qemu-system")
        assert len(pids) == 1, pids
        return pids[0]

    def stop(self):
        self.stack.crictl.run("stopp", self.id)

    def remove(self, check=True):
        return self.stack.crictl.run("rmp", "--force", self.id, check=check)


class Stack:
    def __init__(self, containerd_tool="containerd-2.1", daemon_settings=None, registry=""):
        self.name = f"{os.getpid()}-{next(_numbers)}"
        self.netns = self.cgroup = f"mge2e-{self.name}"
        self.run_dir = claim_run_dir(self.netns)
        self.data_dir = settings.CACHE / "e2e" / self.run_dir.name
        self.handler = settings.HANDLER
        self.started = False
        network.create(self.netns)
        socket = self.run_dir / "containerd.sock"
        self.daemon = sandboxer.Sandboxer(settings.BUILD, settings.GUEST, self.run_dir, self.netns, socket,
                                           {**SIZES, **(daemon_settings or {})})
        handlers = {f"magnetar{suffix}": snapshotter for suffix, snapshotter in SNAPSHOTTERS.items()}
        handlers[SIZED] = handlers[HOST_DEVICES] = "overlayfs"
        shim_dir = self.daemon.program("containerd-shim-magnetar-v1").parent
        self.containerd = containerd.Containerd(settings.tool(containerd_tool), self.run_dir, self.data_dir, self.netns,
                                                self.daemon.socket, shim_dir, handlers, "debug", MTU, registry=registry,
                                                container_annotations=ANNOTATIONS, host_devices=[HOST_DEVICES],
                                                cni_folders=[self.run_dir / "cni.plugins"])
        self.crictl = crictl.Crictl(settings.tool("crictl") / "crictl", socket, self.netns, self.run_dir / "crictl")
        self.host = Host(self.run_dir, self.data_dir, self.netns, self.cgroup, [self.daemon.service, self.containerd.service])

    def start(self):
        if settings.IS_VM:
            self.daemon.start()
        self.containerd.start()
        archive = self.run_dir / "images.tar"
        testimages.write(archive)
        self.containerd.import_images(archive)
        archive.unlink()
        self.started = True
        return self

    def start_daemon(self, **overrides):
        """Starts the daemon again, and waits until containerd has found it: it dials with a back-off of up to 3 s."""
        self.daemon.start(**overrides)
        if not settings.IS_VM:
            return self
        refused = self.crictl.write("pod", self.pod_config(**REFUSED))

        def reached():
            return "namespace_options.network" in self.crictl.run("runp", "--runtime", self.handler, refused, check=False).stderr

        wait_until(reached, 60, "containerd does not find the daemon", interval=0.2)
        return self

    def start_containerd(self):
        """Starts containerd again, and waits until its CRI plugin answers."""
        self.containerd.service.start().wait_socket(self.containerd.socket, 120)
        wait_until(lambda: self.crictl.run("info", check=False).returncode == 0, 60, "CRI is not up")
        return self

    def renew(self):
        """What a test has killed runs again, with the settings that a new stack has."""
        self.daemon.settings = {}
        self.daemon.service.argv[0] = str(self.daemon.program("vmm-sandboxer"))
        ran_with = self.daemon.config.read_text()
        self.daemon.configure()
        if self.daemon.config.read_text() != ran_with or self.daemon_program() != self.daemon.program("vmm-sandboxer").resolve():
            self.daemon.service.stop()
        if not self.containerd.service.pid:
            self.start_containerd()
        if not self.daemon.service.pid:
            self.start_daemon()
        assert self.pods() == [], "pods of an earlier test"
        return self

    def daemon_program(self):
        """The file that the running daemon is, or None."""
        try:
            return pathlib.Path(f"/proc/{self.daemon.service.pid}/exe").resolve()
        except OSError:
            return None

    def handler_for(self, snapshotter):
        return self.handler + next(suffix for suffix, name in SNAPSHOTTERS.items() if name == snapshotter)

    def pod_config(self, **extra):
        number = next(_pods)
        return merge({
            "metadata": {"name": f"pod{number}", "namespace": "e2e", "uid": f"uid-{number}", "attempt": 0},
            "log_directory": str(self.run_dir / "logs" / f"pod{number}"),
            "linux": {"cgroup_parent": f"/{self.cgroup}",
                      "security_context": {"namespace_options": {"pid": CONTAINER_PIDS}}},
        }, extra)

    def new_pod(self, handler=None, **extra):
        return Pod(self, self.handler if handler is None else handler, self.pod_config(**extra))

    @contextlib.contextmanager
    def pod(self, handler=None, **extra):
        pod = self.new_pod(handler, **extra)
        try:
            yield pod
        finally:
            pod.remove()

    def pods(self):
        return self.crictl.json("pods").get("items", [])

    def sandbox_record(self, pod):
        """The daemon's run directory of a pod."""
        return self.daemon.state / pod.id

    def snapshot(self):
        state = self.host.state()
        pid = self.daemon.service.pid
        return state, sorted(descriptors(pid)) if pid else None, pid

    def check_unchanged(self, before, timeout=15):
        """Raises AssertionError if the host holds more than `before`, a while after a test."""
        state, fds, pid = before
        deadline = time.monotonic() + timeout
        while True:
            extra = added(state, self.host.state())
            now = self.daemon.service.pid
            if pid and pid == now:
                current = sorted(descriptors(pid))
                if len(current) > len(fds):
                    extra["descriptors of vmm-sandboxer"] = [f"{len(fds)} before, {len(current)} now", *current]
            if not extra or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert not extra, "left on the host: " + json.dumps(extra, indent=2)

    def keep_logs(self, label):
        target = settings.LOGS / label
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for log in self.run_dir.glob("*.log"):
            shutil.copy(log, target)
        for config in self.run_dir.glob("*.toml"):
            shutil.copy(config, target)
        for sandbox in self.daemon.state.glob("*/"):
            if (sandbox / "sandbox.json").exists():
                shutil.copy(sandbox / "sandbox.json", target / f"{sandbox.name[:12]}-sandbox.json")
            # Its supervisor has it in memory, if there still is one.
            console = subprocess.run([self.daemon.program("magnetarctl"), "--run-dir", self.daemon.state, "console", sandbox.name],
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
            (target / f"{sandbox.name[:12]}-console.log").write_bytes(console.stdout)
        return target

    def close(self):
        self.containerd.service.stop()
        self.daemon.service.stop()
        teardown.remove(self.run_dir, self.data_dir, self.netns, self.cgroup)


def claim_run_dir(netns):
    """A run directory that no other stack uses, marked with whose it is. Its name is short: sockets below it
    must fit into a socket address."""
    RUN_ROOT.mkdir(exist_ok=True)
    with open(RUN_ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for number in itertools.count():
            path = RUN_ROOT / str(number)
            if not path.exists():
                path.mkdir()
                (path / "owner").write_text(json.dumps({"pid": os.getpid(), "start": start_time(os.getpid()), "netns": netns}))
                return path


def remove_leftovers():
    """Removes the stacks of test runs that were killed."""
    for marker in RUN_ROOT.glob("*/owner"):
        owner = json.loads(marker.read_text())
        if start_time(owner["pid"]) != owner["start"]:
            run_dir = marker.parent
            teardown.remove(run_dir, settings.CACHE / "e2e" / run_dir.name, owner["netns"], owner["netns"])
