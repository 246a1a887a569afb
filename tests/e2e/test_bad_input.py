"""Bad input: the right code, a message that names the fault, and nothing left behind."""

import os
import pathlib
import re
import socket

import grpc
import pytest

from harness import guestprogram
from harness.controller import Controller
from harness.cri import Cri
from stack.crictl import CrictlError

pytestmark = pytest.mark.vm
CONFIG_TYPE = "runtime.v1.PodSandboxConfig"


@pytest.fixture
def controller(stack):
    controller = Controller(stack.daemon.socket)
    yield controller
    controller.close()


@pytest.mark.parametrize("bad", ["", "a/b", "..", ".", "../x", "a\x01b", "x" * 129, "-/", "ä"])
def test_ids(controller, bad):
    for method in ("Create", "Start", "Stop", "Status", "Shutdown", "Wait", "Platform", "Metrics"):
        code, message = controller.code(method, sandbox_id=bad)
        assert code == "INVALID_ARGUMENT" and message, (method, code, message)


def test_unknown_sandbox(controller):
    for method in ("Start", "Stop", "Status", "Shutdown", "Wait", "Metrics"):
        assert controller.code(method, sandbox_id="unknown")[0] == "NOT_FOUND", method


def test_create_twice(controller):
    fields = {"sandbox_id": "twice", "netns_path": ""}
    controller.call("Create", **fields)
    try:
        assert controller.code("Create", **fields)[0] == "ALREADY_EXISTS"
    finally:
        controller.call("Shutdown", sandbox_id="twice")
    assert controller.code("Status", sandbox_id="twice")[0] == "NOT_FOUND"
    assert controller.code("Shutdown", sandbox_id="twice")[0] == "NOT_FOUND"


def test_stop_of_one_that_never_started(controller):
    controller.call("Create", sandbox_id="idle")
    controller.call("Stop", sandbox_id="idle")
    controller.call("Stop", sandbox_id="idle")
    controller.call("Shutdown", sandbox_id="idle")


def test_options_that_are_none(controller):
    code, message = controller.code("Create", sandbox_id="options", options=controller.any(CONFIG_TYPE, b"\xff\xff\xff"))
    assert code == "INVALID_ARGUMENT" and message
    code, message = controller.code("Create", sandbox_id="options", options=controller.any("example.com/Other", b""))
    assert code == "INVALID_ARGUMENT" and "example.com/Other" in message
    assert controller.code("Status", sandbox_id="options")[0] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/nonexistent", "/etc/passwd", "/proc/1/ns/mnt", "relative"])
def test_netns_path_that_is_none(controller, path):
    try:
        controller.call("Create", sandbox_id="netns", netns_path=path)
    except Exception as error:  # noqa: BLE001
        code, message = error.code().name, error.details()
    else:
        code, message = controller.code("Start", sandbox_id="netns")
        controller.call("Shutdown", sandbox_id="netns")
    assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND") and path in message, (code, message)
    assert controller.code("Status", sandbox_id="netns")[0] == "NOT_FOUND"


def test_platform(controller):
    with_sandbox = {"sandbox_id": "platform"}
    controller.call("Create", **with_sandbox)
    try:
        platform = controller.call("Platform", **with_sandbox).platform
        assert (platform.os, platform.architecture) == ("linux", "amd64")
    finally:
        controller.call("Shutdown", **with_sandbox)


@pytest.mark.parametrize("options, name", [({"network": 2}, "network"), ({"pid": 2}, "pid"), ({"ipc": 2}, "ipc")])
def test_namespaces_of_the_host_are_refused(stack, options, name):
    before = stack.pods()
    with pytest.raises(CrictlError, match=f"(?i)host_?{name}|{name}.*(node|host)"):
        stack.new_pod(linux={"security_context": {"namespace_options": options}})
    assert stack.pods() == before


def test_user_namespace_is_refused(stack):
    ids = [{"host_id": 100000, "container_id": 0, "length": 65536}]
    with pytest.raises(CrictlError, match="(?i)user"):
        stack.new_pod(linux={"security_context": {"namespace_options": {"userns_options": {"mode": 0, "uids": ids, "gids": ids}}}})


def test_unknown_handler(stack):
    with pytest.raises(CrictlError, match="no-such-handler"):
        stack.new_pod(handler="no-such-handler")


SPECIAL = {"socket": "sockets cannot be shared", "fifo": "FIFOs cannot be shared", "device": "devices of the host cannot be given",
           "/": "the host's root directory cannot be shared"}


@pytest.mark.parametrize("source", SPECIAL)
def test_special_host_paths_are_refused(pod, tmp_path, source):
    path = tmp_path / source
    if source == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
    elif source == "fifo":
        os.mkfifo(path)
    elif source == "device":
        path = pathlib.Path("/dev/loop-control")
    with pytest.raises(CrictlError) as error:
        pod.shell(mounts=[{"host_path": str(path), "container_path": "/special", "readonly": True}])
    assert re.search(rf"mounts\[\d+\] /special: {SPECIAL[source]} (with|to) a VM", str(error.value)), error.value
    assert pod.shell().output("echo", "fine") == "fine\n"


def test_host_devices_are_refused(pod):
    with pytest.raises(CrictlError, match="/dev/loop-control"):
        pod.shell(devices=[{"host_path": "/dev/loop-control", "container_path": "/dev/loop-control", "permissions": "rwm"}])
    assert pod.shell().output("echo", "fine") == "fine\n"


def test_a_spec_that_crun_refuses(pod):
    """crun's own message reaches the client."""
    with pytest.raises(CrictlError, match="(?i)chdir|no-such-dir|not a directory"):
        pod.shell(working_dir="/etc/passwd/no-such-dir")


# What of a pod is refused, and by which name.
PODS = {
    "a host name of two lines": ({"hostname": "a\nb"}, "hostname"),
    "a name server of two lines": ({"dns_config": {"servers": ["10.0.0.1\nsearch evil"]}}, "dns"),
    "a search domain of two lines": ({"dns_config": {"searches": ["a\nb"]}}, "dns"),
    "a parent outside": ({"linux": {"cgroup_parent": "/../../outside"}}, "cgroup_parent"),
    "a port that is none": ({"port_mappings": [{"protocol": 0, "container_port": 80, "host_port": 99999}]}, "(?i)port"),
}


@pytest.mark.parametrize("name", PODS)
def test_pods_that_cannot_be(stack, name):
    config, named = PODS[name]
    before = stack.pods()
    with pytest.raises(CrictlError, match=named):
        stack.new_pod(**config)
    assert stack.pods() == before


def security(**context):
    return {"linux": {"security_context": context}}


# The same of a container.
CONTAINERS = {
    "a seccomp profile that is not there": (security(seccomp={"profile_type": 2, "localhost_ref": "localhost//no/such.json"}), "no/such.json"),
    "the processes of none": (security(namespace_options={"pid": 3, "target_id": "nobody"}), "nobody"),
    "a place that is none": ({"mounts": [{"host_path": "/tmp", "container_path": ""}]}, "(?i)container_?path|destination|mount"),
    "a volume of no image": ({"mounts": [{"image": {"image": "magnetar.test/none:1"}, "container_path": "/image"}]}, "magnetar.test/none:1"),
    "a device that is not there": ({"devices": [{"host_path": "/dev/none", "container_path": "/dev/none", "permissions": "rwm"}]}, "/dev/none"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_cannot_be(pod, name):
    config, named = CONTAINERS[name]
    with pytest.raises(CrictlError, match=named):
        pod.shell(**config)
    for container in pod.containers():
        pod.stack.crictl.run("rm", "--force", container)
    assert pod.shell().output("echo", "fine") == "fine\n"


@pytest.mark.parametrize("resources", [{"cpu_quota": 1, "cpu_period": 1}, {"cpu_period": 2**40}, {"unified": {"memory.nonsense": "1"}},
                                       {"unified": {"memory./../../cgroup.procs": "1"}}], ids=str)
def test_updates_that_cannot_be(stack, pod, resources):
    container, cri = pod.shell(), Cri(stack.containerd.socket)
    limits = ("sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max cpuset.cpus.effective")
    before = container.output(*limits)
    try:
        with pytest.raises(grpc.RpcError) as error:
            cri.call("UpdateContainerResources", container_id=container.id, linux=resources)
        assert error.value.details(), error.value
    finally:
        cri.close()
    assert container.output(*limits) == before


@pytest.fixture(scope="module")
def prober(tmp_path_factory):
    return guestprogram.build("dial_vsock", tmp_path_factory.mktemp("prober")).read_bytes()


PRIVILEGED = {"linux": {"security_context": {"privileged": True}}}
# Makes a node for each virtio port of the guest, and opens it both ways.
OPEN_PORTS = """
for port in /sys/class/virtio-ports/*; do
  [ -e $port/dev ] || continue
  number=$(cat $port/dev); node=/${port##*/}
  mknod $node c ${number%:*} ${number#*:} && { (exec 3<>$node) && echo opened $port; }
  echo tried $port
done
"""


@pytest.mark.parametrize("extra", [{}, PRIVILEGED], ids=["plain", "privileged"])
def test_a_container_dials_every_port(stack, prober, extra):
    """No vsock port of host or guest answers a container, and the channels of agent and daemon are not to be had."""
    with stack.pod(**extra) as pod:
        container = pod.shell(**extra)
        devices = container.output("ls", "-R", "/dev").split()
        assert not [name for name in devices if "vsock" in name or "vport" in name or "virtio" in name], devices
        container.exec("sh", "-c", "cat > /dial-vsock && chmod +x /dial-vsock", stdin=prober)
        dialled = container.exec("/dial-vsock", check=False, timeout=120)
        assert dialled.returncode == 0, dialled.stdout + dialled.stderr
        assert "nothing answers" in dialled.stdout, dialled.stdout

        ports = container.exec("sh", "-c", OPEN_PORTS, check=False)
        tried = ports.stdout.count("tried")
        if "no vsock" in dialled.stdout:
            assert tried, "without vsock, the guest is reached by a virtio port"
        assert "opened" not in ports.stdout, ports.stdout
        # The agent holds the port, and the container's cgroup allows it no such device.
        assert sum("busy" in line or "not permitted" in line for line in ports.stderr.splitlines()) >= tried, ports.stderr
        # Nothing of it has disturbed the agent.
        assert container.output("echo", "fine") == "fine\n"
