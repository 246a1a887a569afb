"""crictl stats and statsp against what is really used."""

import os
import signal
import socket
import time

import pytest

from harness import netns
from harness.controller import Controller
from stack.services import wait_until

MIB = 1 << 20
METRICS_V2 = "io.containerd.cgroups.v2.Metrics"

# Until it has used that many hundredths of a second of CPU time itself.
BURN = """while read -r line < /proc/self/stat; do set -- $line; [ $((${14} + ${15})) -lt 200 ] || break; done
          echo burnt; exec sleep infinity"""


def container_stats(container):
    return container.crictl.json("stats", "--id", container.id)["stats"][0]


def pod_stats(pod):
    return pod.stack.crictl.json("statsp", "--id", pod.id)["stats"][0]["linux"]


def value(usage, field):
    return int(usage[field]["value"])


@pytest.mark.vm
def test_cpu_time(any_stack):
    with any_stack.pod() as pod:
        container = pod.run("/bin/sh", "-c", BURN)
        container.wait_log("burnt")

        def counted():
            lines = container.output("cat", "/sys/fs/cgroup/cpu.stat").splitlines()
            return 1000 * int(dict(line.split() for line in lines)["usage_usec"])

        before = counted()
        usage = value(container_stats(container)["cpu"], "usageCoreNanoSeconds")
        assert 2_000_000_000 <= before <= usage <= counted()
        # What the guest did, its VMM did, as far as the host's clock is the guest's; the pod has its boot on top.
        assert value(pod_stats(pod)["cpu"], "usageCoreNanoSeconds") >= 0.8 * usage


@pytest.mark.vm
def test_memory(any_stack):
    limit = 128 * MIB
    with any_stack.pod(linux={"resources": {"memory_limit_in_bytes": limit}}) as pod:
        container = pod.shell(linux={"resources": {"memory_limit_in_bytes": limit}})
        memory = container_stats(container)["memory"]
        before = value(memory, "workingSetBytes")
        assert before < 8 * MIB, "a shell that sleeps"
        assert before + value(memory, "availableBytes") == limit
        container.output("dd", "if=/dev/zero", "of=/dev/shm/file", "bs=1M", "count=40")
        after = container_stats(container)["memory"]
        assert abs(value(after, "workingSetBytes") - before - 40 * MIB) < 4 * MIB
        assert value(after, "usageBytes") >= value(after, "workingSetBytes")
        assert value(after, "rssBytes") < 8 * MIB, "no process has them"
        assert value(pod_stats(pod)["memory"], "workingSetBytes") > 40 * MIB, "the guest's memory is the VMM's"
        container.output("rm", "/dev/shm/file")
        assert value(container_stats(container)["memory"], "workingSetBytes") - before < 4 * MIB
        # Memory of a process.
        hog = pod.run("/bin/sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo full; sleep infinity; :",
                      linux={"resources": {"memory_limit_in_bytes": limit}})
        hog.wait_log("full")
        assert 19 * MIB <= value(container_stats(hog)["memory"], "rssBytes") <= limit


def test_bytes_of_the_pods_network(any_stack):
    size = 3_000_000
    with any_stack.pod() as pod:
        container = pod.run("/bin/sh", "-c", f"mkdir /www; head -c {size} /dev/zero > /www/file; httpd -p 8080 -h /www; "
                            "nc -l -p 9000 > /dev/null & echo up; wait; echo taken; exec sleep infinity")
        container.wait_log("up")
        address = pod.addresses()[0]

        def counters():
            interface = pod_stats(pod)["network"]["defaultInterface"]
            assert interface["name"] == "eth0"
            return value(interface, "rxBytes"), value(interface, "txBytes")

        received, sent = counters()
        assert len(netns.http_get(any_stack.netns, address, 8080, path="/file")) == size
        after_download = counters()
        # Headers of 1400-byte packets, and what answers them.
        assert size <= after_download[1] - sent < 1.1 * size
        assert after_download[0] - received < 0.1 * size
        with netns.connect(any_stack.netns, address, 9000) as connection:
            connection.sendall(bytes(size))
            connection.shutdown(socket.SHUT_WR)
            container.wait_log("taken")
        after_upload = counters()
        assert size <= after_upload[0] - after_download[0] < 1.1 * size
        assert after_upload[1] - after_download[1] < 0.1 * size


def test_writable_layer(any_stack):
    with any_stack.pod() as pod:
        container = pod.shell()
        container.output("sh", "-c", "mkdir /d; for n in 1 2 3 4 5 6 7 8; do head -c 1048576 /dev/zero > /d/$n; done; sync")

        def used():
            layer = container_stats(container)["writableLayer"]
            # containerd looks every ten seconds.
            return layer if value(layer, "usedBytes") >= 8 * MIB else None

        layer = wait_until(used, 40, "the layer does not grow", interval=1)
        assert value(layer, "usedBytes") < 9 * MIB
        assert 9 <= value(layer, "inodesUsed") < 30
        assert layer["fsId"]["mountpoint"]


def test_of_many_pods_in_all_states(any_stack):
    crictl = any_stack.crictl
    pods = [any_stack.new_pod() for _ in range(3)]
    try:
        running = [pod.shell() for pod in pods]
        exited = pods[0].run("/bin/true")
        exited.wait_exit()
        stopped = any_stack.new_pod()
        pods.append(stopped)
        stopped.shell()
        stopped.stop()
        stats = {entry["attributes"]["id"]: entry for entry in crictl.json("stats")["stats"]}
        for container in running:
            assert value(stats[container.id]["cpu"], "usageCoreNanoSeconds") > 0
            assert value(stats[container.id]["memory"], "workingSetBytes") > 0
        sandboxes = {entry["attributes"]["id"]: entry["linux"] for entry in crictl.json("statsp")["stats"]}
        assert {pod.id for pod in pods[:3]} == set(sandboxes)
        for usage in sandboxes.values():
            assert value(usage["cpu"], "usageCoreNanoSeconds") > 0 and value(usage["memory"], "workingSetBytes") > MIB
            # No time of 1970, by which rates would be taken.
            assert abs(int(usage["cpu"]["timestamp"]) / 1e9 - time.time()) < 60
        assert len(sandboxes[pods[0].id]["containers"]) >= 1
    finally:
        for pod in pods:
            pod.remove()


@pytest.mark.vm
def test_a_dying_pod_keeps_nobodys_stats_back(any_stack):
    """The list of all pods' stats fails as a whole if one pod answers with the wrong error."""
    with any_stack.pod() as lives, any_stack.pod() as dies:
        survivor = lives.shell()
        container = dies.shell()
        os.kill(dies.vmm(), signal.SIGKILL)
        while True:
            listed = {entry["attributes"]["id"] for entry in any_stack.crictl.json("statsp")["stats"]}
            assert lives.id in listed
            if dies.status()["state"] == "SANDBOX_NOTREADY":
                break
        assert {entry["attributes"]["id"] for entry in any_stack.crictl.json("statsp")["stats"]} == {lives.id}
        container.wait_exit()
        assert survivor.id in {entry["attributes"]["id"] for entry in any_stack.crictl.json("stats")["stats"]}


@pytest.mark.vm
def test_the_controllers_metrics_in_every_state(stack):
    controller = Controller(stack.daemon.socket)
    try:
        def metric(sandbox):
            started = time.time()
            found = controller.call("Metrics", timeout=5, sandbox_id=sandbox).metrics
            assert found.id == sandbox and found.data.type_url == METRICS_V2
            assert started - 1 <= found.timestamp.seconds + found.timestamp.nanos / 1e9 <= time.time() + 1
            return found.data.value

        with stack.pod() as pod:
            assert metric(pod.id)
            vmm = pod.vmm()
            os.kill(vmm, signal.SIGSTOP)
            try:
                assert metric(pod.id), "no guest is asked"
            finally:
                os.kill(vmm, signal.SIGCONT)
            pod.stop()
            assert metric(pod.id) == b"", "it uses nothing any more"
        assert controller.code("Metrics", sandbox_id=pod.id)[0] == "NOT_FOUND"
        controller.call("Create", sandbox_id="never-started")
        assert metric("never-started") == b""
        controller.call("Shutdown", sandbox_id="never-started")
    finally:
        controller.close()


@pytest.mark.vm
def test_a_killed_containers_counters_are_there(newest_stack):
    """containerd 2.3 and later asks for them after the exit, to tell whether memory was short."""
    with newest_stack.pod() as pod:
        container = pod.run("/bin/sh", "-c", "x=a; while :; do x=$x$x; done",
                            linux={"resources": {"memory_limit_in_bytes": 24 << 20}})
        assert container.wait_exit(120) == 137
        assert container.status()["reason"] == "OOMKilled"
        killed = pod.shell()
        killed.stop(0)
        assert killed.wait_exit() == 137
        assert killed.status()["reason"] == "Error"
