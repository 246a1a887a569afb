"""Kinds of interfaces, and more than one of them, from the start."""

import contextlib

import pytest

from harness import netns
from harness.podnetwork import Guest, PodNetns, cni_network, run
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
