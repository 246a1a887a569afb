"""Pods on a dual-stack bridge with hairpin and an MTU of 1400; port mappings; port-forward."""

import contextlib
import hashlib
import pathlib
import socket
import subprocess

import pytest

from harness import netns, settings, testimages
from harness.stackfixture import MTU
from stack.services import wait_until

FAMILIES = {"ipv4": 0, "ipv6": 1}


def localhost_has_ipv6():
    """Whether containerd, which dials `localhost`, gets an IPv6 address for it on this host."""
    return any("localhost" in line.split() and line.split()[0] == "::1"
               for line in pathlib.Path("/etc/hosts").read_text().splitlines() if line.strip())


def web_server(pod, content, *options, **extra):
    # httpd goes to the background once it listens: only then is it up.
    container = pod.run("/bin/sh", "-c", f"mkdir -p /www; echo {content} > /www/index.html; "
                        f"httpd -h /www {' '.join(options)}; echo up; exec sleep infinity", **extra)
    container.wait_log("up")
    return container


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_reach_each_other(stack, family):
    with stack.pod() as first, stack.pod() as second:
        web_server(first, "hello-from-first", "-p", "80")
        client = second.shell()
        address = first.addresses()[FAMILIES[family]]
        host = f"[{address}]" if ":" in address else address
        got = wait_until(lambda: client.exec("wget", "-qO-", f"http://{host}/", check=False).stdout, 30, "no answer")
        assert got == "hello-from-first\n"
        # A neighbour on the bridge, the host's side, reaches it too.
        assert b"hello-from-first" in netns.http_get(stack.netns, address, 80)


def test_interface_is_what_cni_made(pod):
    container = pod.shell()
    links = container.output("ip", "-o", "link")
    assert f"mtu {MTU}" in next(line for line in links.splitlines() if " eth0" in line)
    made = subprocess.run(["nsenter", f"--net={pod.netns()}", "ip", "-o", "link", "show", "eth0"], check=True,
                          capture_output=True, text=True).stdout
    mac = made.split("link/ether ")[1].split()[0]
    assert f"link/ether {mac}" in links
    addresses = container.output("ip", "-o", "addr", "show", "dev", "eth0")
    for address in pod.addresses():
        assert address in addresses
    assert "tentative" not in addresses
    routes = container.output("ip", "route") + container.output("ip", "-6", "route")
    assert "default via 10.123.0.1" in routes and "default via fd00:4d:61:67::1" in routes
    assert "127.0.0.1/8" in container.output("ip", "-o", "addr", "show", "dev", "lo")


@pytest.mark.parametrize("family", FAMILIES)
def test_bulk_transfer(stack, family):
    """10 MB each way, with segments above the MTU on the way in and out of the guest."""
    wanted = hashlib.sha256(testimages.random_bytes()).hexdigest()
    with stack.pod() as pod, stack.pod() as other:
        server = pod.run("/bin/sh", "-c", "httpd -h /data -p 9000; exec nc -ll -p 9001 -e sha256sum", image=testimages.DATA)
        address = pod.addresses()[FAMILIES[family]]
        host = f"[{address}]" if ":" in address else address

        def upload():
            try:
                return netns.connect(stack.netns, address, 9001, 60)
            except ConnectionRefusedError:
                return None

        connection = wait_until(upload, 60, "nothing listens")
        connection.sendall(testimages.random_bytes())
        connection.shutdown(socket.SHUT_WR)
        assert netns.receive_all(connection).split()[0].decode() == wanted
        assert hashlib.sha256(netns.http_get(stack.netns, address, 9000, path="/random")).hexdigest() == wanted
        client = other.shell()
        assert client.output("sh", "-c", f"wget -qO- http://{host}:9000/random | sha256sum").split()[0] == wanted
        assert server.status()["state"] == "CONTAINER_RUNNING"


def test_hairpin_to_its_own_port_mapping(stack):
    mapping = [{"protocol": 0, "container_port": 80, "host_port": 18080}]
    with stack.pod(port_mappings=mapping) as pod:
        container = web_server(pod, "mapped", "-p", "80")
        gateway = "10.123.0.1"
        assert b"mapped" in netns.http_get(stack.netns, gateway, 18080)
        got = container.exec("wget", "-qO-", f"http://{gateway}:18080/", check=False)
        assert got.stdout == "mapped\n", got.stderr


def test_no_other_pod_sees_the_traffic(stack):
    """A pod's own loopback is its own."""
    with stack.pod() as first, stack.pod() as second:
        web_server(first, "private", "-p", "127.0.0.1:80")
        result = second.shell().exec("wget", "-qO-", f"http://{first.addresses()[0]}/", check=False)
        assert result.returncode != 0
        with pytest.raises(OSError):
            netns.http_get(stack.netns, first.addresses()[0], 80, timeout=3)


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8080"])
def test_port_forward(pod, listen):
    # Magnetar tries both, whatever address of localhost containerd has dialled.
    if listen.startswith("[") and not settings.IS_VM and not localhost_has_ipv6():
        pytest.skip("this host's /etc/hosts has no IPv6 localhost")
    web_server(pod, "forwarded", "-p", listen)
    with pod.port_forward(8080) as port:
        for _ in range(3):
            assert b"forwarded" in netns.http_get(pod.stack.netns, "127.0.0.1", port)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_of_the_pod_reaches_the_guest(pod, address):
    """What port-forward dials in the pod's namespace: a server on either loopback of the guest answers."""
    web_server(pod, "looped", "-p", f"[{address}]:8080" if ":" in address else f"{address}:8080")
    assert b"looped" in netns.http_get(pod.netns(), address, 8080)


@pytest.mark.parametrize("way", ["crictl", "netns"])
def test_port_forward_of_a_hundred_connections_at_once(pod, way):
    """All are open before the first is used."""
    web_server(pod, "forwarded", "-p", "127.0.0.1:8080")
    with contextlib.ExitStack() as stack:
        if way == "crictl":
            namespace, port = pod.stack.netns, stack.enter_context(pod.port_forward(8080))
        else:
            namespace, port = pod.netns(), 8080
        connections = [stack.enter_context(netns.connect(namespace, "127.0.0.1", port, 120)) for _ in range(100)]
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answers = [netns.receive_all(connection) for connection in connections]
    assert [b"forwarded" in answer for answer in answers] == [True] * 100


def test_port_forward_of_much_data(pod):
    container = pod.run("/bin/sh", "-c", "httpd -p 127.0.0.1:9000 -h /data; echo up; sleep infinity", image=testimages.DATA)
    container.wait_log("up")
    with pod.port_forward(9000) as port:
        assert netns.http_get(pod.stack.netns, "127.0.0.1", port, path="/random", timeout=60) == testimages.random_bytes()


def test_port_forward_to_a_closed_port(pod):
    pod.shell()
    with pod.port_forward(4444) as port:
        with contextlib.suppress(ConnectionError):
            assert netns.http_get(pod.stack.netns, "127.0.0.1", port) == b""
    assert pod.status()["state"] == "SANDBOX_READY"
