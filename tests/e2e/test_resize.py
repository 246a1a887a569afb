"""Pods and containers that are given more, and less, while they run."""

import json
import pathlib
import subprocess

import grpc
import pytest

from harness import protos
from harness.controller import Controller
from harness.cri import Cri
from harness.guest import cpus, host_limit_file, memory_mib
from stack.services import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

MIB = 1 << 20
# Larger than what the tests give a pod to begin with, smaller than what they give it then.
MUCH_MIB = 600


def record(pod):
    """What the daemon knows of the VM's size."""
    return json.loads((pod.stack.sandbox_record(pod) / "sandbox.json").read_text())


def wait_memory(container, fits, what):
    return wait_until(lambda: fits(memory_mib(container)), 120, f"the guest has no {what}, but {memory_mib(container)} MiB", interval=0.2)


def hold(container, mib):
    """Whether a process of the container can have so much memory: a block that dd fills."""
    held = container.exec("dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1", check=False, timeout=120)
    return held.returncode == 0 and "1+0 records out" in held.stderr


def test_a_container_is_given_more_and_less(pod):
    container = pod.shell(linux={"resources": {"memory_limit_in_bytes": 100 * MIB}})
    before = memory_mib(container)
    assert before < MUCH_MIB
    container.crictl.run("update", "--memory", str(1000 * MIB), container.id)
    # At once in its cgroup, by and by in the VM.
    assert container.output("cat", "/sys/fs/cgroup/memory.max") == f"{1000 * MIB}\n"
    wait_memory(container, lambda mib: mib > 900, "more memory")
    assert hold(container, MUCH_MIB)
    container.crictl.run("update", "--memory", str(100 * MIB), container.id)
    wait_memory(container, lambda mib: mib < before + 64, "less memory")
    wait_until(lambda: record(pod)["memory_bytes"] == record(pod)["wanted_memory_bytes"] == record(pod)["boot_memory_bytes"], 60,
               "the guest has not given all of it back", interval=0.2)


def test_a_container_is_given_processors(any_stack):
    with any_stack.pod() as pod:
        container = pod.shell()
        assert cpus(container) == 1
        container.crictl.run("update", "--cpu-period", "100000", "--cpu-quota", "250000", container.id)
        wait_until(lambda: cpus(container) == 3, 60, "the guest has no third processor", interval=0.2)
        assert container.output("cat", "/sys/fs/cgroup/cpu.max") == "250000 100000\n"
        # How far it is, whatever containerd makes of the rest.
        told = any_stack.crictl.json("inspectp", pod.id)["magnetar"]
        assert (told["vcpus"], told["wantedVcpus"]) == (3, 3) and told["memoryBytes"] == told["wantedMemoryBytes"]


def test_a_container_that_needs_more_than_the_pod_has(stack):
    """crictl's pods, unlike the kubelet's, do not say what their containers will need."""
    with stack.pod() as pod:
        first = pod.shell(linux={"resources": {"memory_limit_in_bytes": 200 * MIB}})
        assert memory_mib(first) < MUCH_MIB
        second = pod.shell(linux={"resources": {"memory_limit_in_bytes": 800 * MIB}})
        wait_memory(second, lambda mib: mib > 900, "room for both")
        assert hold(second, MUCH_MIB)
        second.remove()
        wait_memory(first, lambda mib: mib < MUCH_MIB, "memory to give back")


def update_pod(stack, pod, **resources):
    """Controller.Update as containerd 2.3 sends it."""
    controller = Controller(stack.daemon.socket)
    try:
        value = json.dumps({"Overhead": None, "Resources": resources}).encode()
        sandbox = protos.load("containerd/types")[0].Sandbox(sandbox_id=pod.id)
        sandbox.extensions["updated-resources"].CopyFrom(controller.any("io.containerd.cri.v1/UpdatedResources", value))
        controller.call("Update", sandbox_id=pod.id, sandbox=sandbox, fields=["extensions"])
    finally:
        controller.close()


def host_limit(pod):
    return int(host_limit_file(pod).read_text())


def host_cpus(pod):
    """How many processors' time the sandbox's cgroup lets it have on the host."""
    for line in open(f"/proc/{pod.vmm()}/cgroup"):
        hierarchy, controllers, path = line.rstrip("\n").split(":", 2)
        if hierarchy == "0" and not controllers:
            unified = path
        if "cpu" in controllers.split(","):
            cgroup = pathlib.Path(f"/sys/fs/cgroup/{controllers}{path}")
            return int((cgroup / "cpu.cfs_quota_us").read_text()) / int((cgroup / "cpu.cfs_period_us").read_text())
    quota, period = pathlib.Path(f"/sys/fs/cgroup{unified}/cpu.max").read_text().split()
    return int(quota) / int(period)


def test_a_pod_is_given_more_and_less(stack):
    with stack.pod(linux={"resources": {"memory_limit_in_bytes": 200 * MIB}}) as pod:
        container = pod.shell()
        limit = host_limit(pod)
        update_pod(stack, pod, memory_limit_in_bytes=800 * MIB, cpu_quota=200000, cpu_period=100000)
        assert cpus(container) == 2
        assert host_limit(pod) >= limit + 600 * MIB
        assert host_cpus(pod) == 2
        wait_memory(container, lambda mib: mib > 700, "more memory")
        assert hold(container, MUCH_MIB)
        update_pod(stack, pod, memory_limit_in_bytes=200 * MIB)
        wait_memory(container, lambda mib: mib < 300, "less memory")
        wait_until(lambda: host_limit(pod) == limit, 30, f"the host keeps a limit of {host_limit(pod)}, not {limit}", interval=0.2)


def test_limits_that_add_up_to_more_than_the_pods(stack):
    """As pod-level resources allow: it is a process in the guest that is killed for it, not the VM."""
    with stack.pod(linux={"cgroup_parent": f"/{stack.cgroup}/tight"}) as pod:
        shell = pod.shell()
        # 256 MiB are the VMM's.
        host_limit_file(pod, above=1).write_text(str((memory_mib(shell) + 512) * MIB))
        limits = {"resources": {"memory_limit_in_bytes": MUCH_MIB * MIB}}
        greedy = [pod.shell(linux=limits), pod.shell(linux=limits)]
        wait_memory(shell, lambda mib: mib > MUCH_MIB, "more memory")
        assert record(pod)["wanted_memory_bytes"] < 2 * MUCH_MIB * MIB
        allocate = ("dd", "if=/dev/zero", "of=/dev/null", f"bs={MUCH_MIB - 50}M", "count=3")
        under_way = [container.popen(*allocate, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for container in greedy]
        assert any([client.wait(200) != 0 for client in under_way]), "both had room"
        assert shell.output("echo", "fine") == "fine\n"


def test_more_than_it_can_have(stack):
    with stack.pod() as pod:
        with pytest.raises(grpc.RpcError) as error:
            update_pod(stack, pod, memory_limit_in_bytes=1 << 45)
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "Resources.memory_limit_in_bytes" in error.value.details()
        assert record(pod)["wanted_memory_bytes"] in (0, record(pod)["memory_bytes"])


def test_through_the_newest_containerd(newest_stack):
    """UpdatePodSandboxResources, with which a kubelet resizes a pod in place."""
    with newest_stack.pod(linux={"resources": {"memory_limit_in_bytes": 200 * MIB}}) as pod:
        container = pod.shell()
        cri = Cri(newest_stack.containerd.socket)
        try:
            cri.call("UpdatePodSandboxResources", pod_sandbox_id=pod.id,
                     resources={"memory_limit_in_bytes": 800 * MIB, "cpu_quota": 200000, "cpu_period": 100000})
        finally:
            cri.close()
        assert (cpus(container), host_cpus(pod)) == (2, 2)
        container.crictl.run("update", "--memory", str(800 * MIB), container.id)
        wait_memory(container, lambda mib: mib > 700, "more memory")


# A process that has so much memory until it is killed: what dd has read so far.
HOLDING = "(dd if=/dev/zero bs=1M count={mib}; exec sleep infinity) | dd of=/dev/null bs={more}M count=1 iflag=fullblock"


def test_memory_that_is_in_use_is_not_taken(any_stack):
    """A VM that is to be smaller than what its containers use: the status says so until they let go of it, and none is killed."""
    def told():
        size = any_stack.crictl.json("inspectp", pod.id)["magnetar"]
        return int(size["memoryBytes"]), int(size["wantedMemoryBytes"])

    with any_stack.pod() as pod:
        sized = pod.shell(linux={"resources": {"memory_limit_in_bytes": 100 * MIB}})
        sized.crictl.run("update", "--memory", str(1000 * MIB), sized.id)
        wait_memory(sized, lambda mib: mib > 900, "more memory")
        holder = pod.run("/bin/sh", "-c", HOLDING.format(mib=MUCH_MIB + 100, more=MUCH_MIB + 200))

        def held():
            """MiB; the kernel counts some of it late."""
            counters = holder.output("cat", "/sys/fs/cgroup/memory.stat").split()
            return int(counters[counters.index("anon") + 1]) // MIB

        # All of it: what still grows is killed for it.
        wait_until(lambda: held() > MUCH_MIB + 95, 100, "it does not take its memory", interval=0.5)
        sized.crictl.run("update", "--memory", str(100 * MIB), sized.id)
        wait_until(lambda: told()[0] > told()[1], 30, "the status does not say that it wants less", interval=0.1)
        assert hold(sized, 8) and told()[0] > MUCH_MIB * MIB > told()[1]
        assert held() > MUCH_MIB + 95
        holder.stop(0)
        wait_until(lambda: told()[0] == told()[1], 120, "what has been let go is not given back", interval=0.5)


def test_the_next_daemon_goes_on(own_stack):
    with own_stack.pod() as pod:
        container = pod.shell(linux={"resources": {"memory_limit_in_bytes": 100 * MIB}})
        own_stack.daemon.service.kill()
        # Straight into the guest; the daemon hears of it when it is back.
        container.crictl.run("update", "--memory", str(1000 * MIB), container.id)
        own_stack.start_daemon()
        wait_memory(container, lambda mib: mib > 900, "more memory")
