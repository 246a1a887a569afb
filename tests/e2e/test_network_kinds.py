"""Kinds of interfaces, and more than one of them, from the start."""

import contextlib
import fcntl
import os
import pathlib
import select
import socket
import struct
import threading

import pytest

from harness import guestprogram, netns
from harness.podnetwork import Guest, PodNetns, cni_network, run
from harness.stackfixture import MTU
from stack.crictl import CrictlError

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def static(*addresses, routes=()):
    return {"type": "static", "addresses": [{"address": address} for address in addresses], "routes": [{"dst": route} for route in routes]}


def serve(guest, text):
    guest.container.output("sh", "-c", f"mkdir -p /www; echo {text} > /www/index.html; httpd -p 8090 -h /www")


@contextlib.contextmanager
def uplink(stack):
    """A device of the node that macvlans lie on, and its peer, 10.67.0.1 and fd67::1: the network behind it."""
    run("ip", "-n", stack.netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    try:
        for name in ("up0", "up1"):
            run("ip", "-n", stack.netns, "link", "set", name, "up")
        run("ip", "-n", stack.netns, "addr", "add", "10.67.0.1/24", "dev", "up1")
        run("ip", "-n", stack.netns, "addr", "add", "fd67::1/64", "dev", "up1", "nodad")
        yield "up0"
    finally:
        run("ip", "-n", stack.netns, "link", "del", "up0")


def test_two_networks_with_several_addresses_and_an_mtu(stack):
    second = {"type": "bridge", "bridge": "second0", "isGateway": True, "mtu": 2800,
              "ipam": static("10.66.0.2/24", "10.66.0.3/24", "fd66::2/64", "fd66::3/64", routes=["10.200.0.0/16"])}
    second["ipam"]["addresses"][0]["gateway"] = "10.66.0.1"
    try:
        with cni_network(stack, "second", second), stack.pod() as pod:
            guest = Guest(pod.shell())
            assert "mtu 2800" in guest.links()["eth1"] and "mtu 1400" in guest.links()["eth0"]
            addresses = guest.addresses("eth1")
            for address in ("10.66.0.2/24", "10.66.0.3/24", "fd66::2/64", "fd66::3/64"):
                assert address in addresses
            routes = guest.routes()
            assert "10.200.0.0/16" in routes and "default via 10.123.0.1 dev eth0" in routes
            serve(guest, "second")
            for address in ("10.66.0.2", "10.66.0.3", pod.addresses()[0]):
                assert b"second" in netns.http_get(stack.netns, address, 8090), address
            # Packets of the whole MTU, unbroken.
            assert guest.container.exec("ping", "-c1", "-W5", "-s", "2772", "10.66.0.1").returncode == 0
    finally:
        run("ip", "-n", stack.netns, "link", "del", "second0", check=False)


def test_ptp(stack):
    """A plugin that leaves no route to the address's own network, but one through its gateway."""
    plugin = {"type": "ptp", "mtu": 1380, "ipam": static("10.65.0.2/24", routes=["10.201.0.0/16"])}
    plugin["ipam"]["addresses"][0]["gateway"] = "10.65.0.1"
    with cni_network(stack, "second", plugin), stack.pod() as pod:
        guest = Guest(pod.shell())
        assert "mtu 1380" in guest.links()["eth1"]
        assert "10.65.0.0/24 via 10.65.0.1 dev eth1" in guest.routes()
        serve(guest, "ptp")
        assert b"ptp" in netns.http_get(stack.netns, "10.65.0.2", 8090)
        assert guest.container.exec("ping", "-c1", "-W5", "10.65.0.1").returncode == 0


def test_macvlan(stack):
    """Traffic with the network behind its device, of both families."""
    with uplink(stack) as device:
        plugin = {"type": "macvlan", "master": device, "mode": "bridge", "ipam": static("10.67.0.2/24", "fd67::2/64")}
        with cni_network(stack, "second", plugin), stack.pod() as pod:
            guest = Guest(pod.shell())
            serve(guest, "macvlan")
            for address in ("10.67.0.2", "fd67::2"):
                assert b"macvlan" in netns.http_get(stack.netns, address, 8090), address
            assert guest.container.exec("ping", "-c1", "-W5", "10.67.0.1").returncode == 0


def test_macvtap(stack):
    """Attached while the pod runs, and found by a later look at its path: the VM has the device's own tap."""
    with uplink(stack) as device, stack.pod() as pod:
        network, guest = PodNetns(pod), Guest(pod.shell())
        network.node_ip("link", "add", "link", device, "name", "mvt0", "type", "macvtap", "mode", "bridge")
        network.node_ip("link", "set", "mvt0", "netns", network.path)
        network.ip("link", "set", "mvt0", "name", "net1")
        for address in ("10.67.0.2/24", "fd67::2/64"):
            network.ip("addr", "add", address, "dev", "net1", *(["nodad"] if ":" in address else []))
        network.ip("link", "set", "net1", "up")
        guest.wait(lambda: guest.addresses("net1"), "fd67::2/64")
        network.wait_nics(2)
        assert len(network.taps()) == 1
        serve(guest, "macvtap")
        for address in ("10.67.0.2", "fd67::2"):
            assert b"macvtap" in netns.http_get(stack.netns, address, 8090), address
        network.ip("link", "del", "net1")
        guest.wait_without(guest.links, "net1")
        network.wait_nics(1)


def test_macvtap_from_the_start(stack):
    with uplink(stack) as device:
        run("ip", "-n", stack.netns, "link", "add", "link", device, "name", "mvt0", "type", "macvtap", "mode", "bridge")
        plugin = {"type": "host-device", "device": "mvt0", "ipam": static("10.67.0.2/24", "fd67::2/64")}
        with cni_network(stack, "second", plugin), stack.pod() as pod:
            guest = Guest(pod.shell())
            assert len(PodNetns(pod).taps()) == 1
            serve(guest, "macvtap")
            for address in ("10.67.0.2", "fd67::2"):
                assert b"macvtap" in netns.http_get(stack.netns, address, 8090), address


IFF_TAP, IFF_NO_PI, TUNSETIFF = 0x2, 0x1000, 0x400454CA


def open_tap(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


@contextlib.contextmanager
def bridging_program(stack, pods, nodes):
    """A program of the host that holds two taps of the node, and carries each frame of the one to the other."""
    with contextlib.ExitStack() as held:
        def hold(fd):
            held.callback(os.close, fd)
            return fd

        taps = [hold(netns.call(stack.netns, open_tap, name)) for name in (pods, nodes)]
        ends, ended = (hold(fd) for fd in os.pipe())
        carrier = threading.Thread(target=carry, args=(taps, ends))
        carrier.start()
        try:
            yield
        finally:
            os.write(ended, b"x")
            carrier.join()


def carry(taps, ends):
    """Until something comes to `ends`."""
    living = list(taps)
    while True:
        ready, _, _ = select.select([*living, ends], [], [])
        if ends in ready:
            return
        for tap in ready:
            try:
                frame = os.read(tap, 1 << 16)
            except OSError:
                # It has gone with the network namespace that it was in.
                living.remove(tap)
                continue
            # One that is down takes nothing: frames are lost, as on a wire.
            with contextlib.suppress(OSError):
                os.write(taps[1 - taps.index(tap)], frame)


def test_a_tap_that_a_program_of_the_host_holds(stack):
    """What the guest sends comes out at the program's end, and the other way round, at a start and at an attach."""
    plugin = {"type": "host-device", "device": "wire0", "ipam": static("10.68.0.2/24")}
    with bridging_program(stack, "wire0", "wire1"), bridging_program(stack, "wire2", "wire3"):
        for name, address in (("wire1", "10.68.0.1/24"), ("wire3", "10.69.0.1/24")):
            run("ip", "-n", stack.netns, "addr", "add", address, "dev", name)
            run("ip", "-n", stack.netns, "link", "set", name, "up")
        with cni_network(stack, "second", plugin), stack.pod() as pod:
            network, guest = PodNetns(pod), Guest(pod.shell())
            serve(guest, "by wire")
            assert b"by wire" in netns.http_get(stack.netns, "10.68.0.2", 8090)
            guest.container.output("ping", "-c1", "-W5", "10.68.0.1")
            network.node_ip("link", "set", "wire2", "netns", network.path)
            network.ip("link", "set", "wire2", "name", "net1")
            network.ip("addr", "add", "10.69.0.2/24", "dev", "net1")
            network.ip("link", "set", "net1", "up")
            guest.wait(lambda: guest.addresses("net1"), "10.69.0.2/24")
            network.wait_nics(3)
            assert b"by wire" in netns.http_get(stack.netns, "10.69.0.2", 8090)


NEIGHBOURS = ["10.66.0.9 dev eth1 lladdr 02:00:00:00:00:99", "fd66::9 dev eth1 lladdr 02:00:00:00:00:98"]
# Of CNI's: one that is not the first of a chain returns what it was given.
PLUGIN = f"""#!/usr/bin/python3
import json, os, subprocess, sys
if os.environ["CNI_COMMAND"] == "ADD":
    for neighbour in {NEIGHBOURS}:
        subprocess.run(["nsenter", "--net=" + os.environ["CNI_NETNS"], "ip", "neigh", "add", *neighbour.split(), "nud", "permanent"], check=True)
    print(json.dumps(json.load(sys.stdin)["prevResult"]))
"""


def test_neighbours_that_a_plugin_has_set(stack):
    """Those that are permanent, of both families, from the start."""
    second = {"type": "bridge", "bridge": "second0", "ipam": static("10.66.0.2/24", "fd66::2/64")}
    program = pathlib.Path(stack.run_dir, "cni.plugins", "neighbours")
    program.parent.mkdir(exist_ok=True)
    program.write_text(PLUGIN)
    program.chmod(0o755)
    try:
        with cni_network(stack, "second", second, {"type": "neighbours"}), stack.pod() as pod:
            told = pod.shell().output("ip", "neigh").splitlines()
            for neighbour in NEIGHBOURS:
                assert any(line.startswith(neighbour) and "PERMANENT" in line for line in told), told
    finally:
        program.unlink()
        run("ip", "-n", stack.netns, "link", "del", "second0", check=False)


@pytest.mark.parametrize("make, reason", [
    # What CNI's tap plugin makes.
    (("tuntap", "add", "mode", "tap", "name", "odd0"), "nobody holds the other end of this tap"),
    (("link", "add", "odd0", "type", "ifb"), "interfaces of kind ifb cannot be tied to a VM; supported are veth"),
], ids=["a tap that leads nowhere", "a kind that is not known"])
def test_what_cannot_be_given_is_refused(stack, make, reason):
    """The pod is not started, and the message says why."""
    run("ip", "-n", stack.netns, *make)
    try:
        with cni_network(stack, "second", {"type": "host-device", "device": "odd0", "ipam": static("10.64.0.2/24")}):
            with pytest.raises(CrictlError) as refused:
                stack.new_pod()
            assert f"eth1: {reason}" in str(refused.value)
    finally:
        run("ip", "-n", stack.netns, "link", "del", "odd0", check=False)
        for pod in stack.pods():
            stack.crictl.run("rmp", "--force", pod["id"], check=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.123.0.1"])
def test_host_port_from_the_host(stack, host):
    """CNI's portmap: a port of the node, its loopback's too, leads to the pod's."""
    with stack.pod(port_mappings=[{"protocol": 0, "container_port": 8090, "host_port": 18090}]) as pod:
        guest = Guest(pod.shell())
        serve(guest, "mapped")
        assert b"mapped" in netns.http_get(stack.netns, host, 18090)


@pytest.fixture(scope="module")
def udp_echo(tmp_path_factory):
    return guestprogram.build("udp_echo", tmp_path_factory.mktemp("program"))


@pytest.mark.parametrize("host", ["127.0.0.1", "10.123.0.1"])
def test_host_port_of_udp(stack, udp_echo, host):
    with stack.pod(port_mappings=[{"protocol": 1, "container_port": 8090, "host_port": 18090}]) as pod:
        echo = pod.run("/udp_echo", "8090", mounts=[{"host_path": str(udp_echo), "container_path": "/udp_echo", "readonly": True}])
        echo.wait_log("listens")
        client = netns.call(stack.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.settimeout(20)
            client.connect((host, 18090))
            # One that fills the packets of the pod's MTU, and one that takes several.
            for size in (10, MTU - 28, 8000):
                client.send(bytes([size % 251]) * size)
                assert client.recv(1 << 16) == bytes([size % 251]) * size
