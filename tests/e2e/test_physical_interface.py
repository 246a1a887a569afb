"""An interface that is hardware, in a pod's network namespace. The host's own is not to be played with: a VM's is as good, so
the daemon runs in a privileged container."""

import base64

import pytest

from harness import protos, settings
from harness.podnetwork import cni_network, run
from harness.stackfixture import SIZED
from stack.sandboxer import PROGRAMS, toml
from stack.services import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

SOCKET, STATE = "/run/inner.sock", "/run/inner"
# What a dynamic program of the host needs, and what the daemon does.
HOST_FOLDERS = {"/usr": "/usr", "/usr/lib": "/lib", "/usr/lib64": "/lib64", str(settings.BUILD): str(settings.BUILD),
                str(settings.GUEST.resolve()): str(settings.GUEST)}
BEGIN = f"""
mount -t tmpfs none /run && mkdir {STATE} /sys/fs/cgroup/own && echo $$ > /sys/fs/cgroup/own/cgroup.procs
exec {settings.BUILD / PROGRAMS["vmm-sandboxer"]} --config /config/daemon.toml
"""
# Not busybox's, which is in the image.
IP = "/usr/bin/ip"
NETNS = (f"{IP} netns add inner && {IP} link set eth1 netns inner && {IP} -n inner addr add 10.64.0.2/24 dev eth1 && "
         f"{IP} -n inner link set eth1 up")
# METHOD REQUEST: the code and message with which the daemon answers.
CALL = f"""
import base64, grpc, os, sys
# The daemon gives this process's cgroup children, which one with processes cannot have.
with open("/sys/fs/cgroup/own/cgroup.procs", "w") as own:
    own.write(str(os.getpid()))
call = grpc.insecure_channel("unix://{SOCKET}").unary_unary("/containerd.services.sandbox.v1.Controller/" + sys.argv[1])
try:
    call(base64.b64decode(sys.argv[2]), timeout=100)
    print("OK")
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


@pytest.fixture
def daemon(stack, tmp_path):
    """The container in whose guest eth1 is hardware; its daemon listens."""
    guest = {name: str(settings.GUEST / file) for name, file in (("kernel", "vmlinux"), ("initrd", "initrd.img"), ("image", "root.erofs"))}
    tools = {f"{name}_path": str(settings.BUILD / PROGRAMS[program]) for name, program in (("supervisor", "vmm-supervisor"), ("vmm_9p", "vmm-9p"))}
    (tmp_path / "daemon.toml").write_text(toml({"listen": SOCKET, "run_dir": STATE, "containerd": {"address": "/run/none.sock"},
                                                "guest": guest, "vm": tools}))
    mounts = [{"host_path": host, "container_path": path, "readonly": True} for host, path in {**HOST_FOLDERS, str(tmp_path): "/config"}.items()]
    privileged = {"linux": {"security_context": {"privileged": True}}}
    second = {"type": "bridge", "bridge": "second0", "ipam": {}}
    try:
        with cni_network(stack, "second", second), stack.pod(SIZED, **privileged) as pod:
            container = pod.run("/bin/sh", "-c", BEGIN, mounts=mounts, **privileged)
            container.wait_log("listening")
            yield container
    finally:
        run("ip", "-n", stack.netns, "link", "del", "second0", check=False)


def test_it_is_refused(daemon):
    """By name, at the pod's start; nothing is left, in the network namespace either."""
    messages = protos.load("containerd/sandbox")[0]

    def call(method, **fields):
        request = getattr(messages, f"Controller{method}Request")(sandbox_id="inner", **fields)
        return daemon.output("/usr/bin/python3", "-c", CALL, method, base64.b64encode(request.SerializeToString()).decode()).strip()

    daemon.output("sh", "-c", NETNS)
    link = daemon.output(IP, "-n", "inner", "-d", "-o", "link", "show", "dev", "eth1")
    assert "parentbus virtio" in link
    assert call("Create", netns_path="/run/netns/inner") == "OK"
    assert call("Start") == ("FAILED_PRECONDITION attach the pod's network: network namespace /run/netns/inner: eth1: physical interfaces "
                             "cannot be given to a VM: there is no passthrough of devices (VFIO, SR-IOV); supported are veth, macvlan, macvtap, "
                             "and taps whose other end a program on the host holds")
    assert call("Status").startswith("NOT_FOUND ")
    assert daemon.output(IP, "-n", "inner", "-d", "-o", "link", "show", "dev", "eth1") == link
    assert daemon.output("sh", "-c", f"ls -A {STATE}/inner 2>/dev/null; {IP} -n inner -o link | grep -v -e ' lo:' -e ' eth1:'; true") == ""
