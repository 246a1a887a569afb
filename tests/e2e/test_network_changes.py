"""The network of a pod that runs changes: interfaces come and go as with a dynamic attach, addresses, routes and MTUs change."""

import json
import os
import re
import subprocess
import threading

import pytest

from harness import netns
from harness.host import descriptors
from harness.podnetwork import Guest, PodNetns, run
from stack.services import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture
def running(pod):
    """A pod with its interface of the beginning only, its netns, and a container in it."""
    network = PodNetns(pod)
    yield network, Guest(pod.shell())
    for link in json.loads(network.ip("-json", "link")):
        if link["ifname"].startswith("net"):
            network.ip("link", "del", link["ifname"], check=False)
    network.wait_nics(1)
    assert len(network.taps()) == 1


def serve(guest, text):
    guest.container.output("sh", "-c", f"mkdir -p /www; echo {text} > /www/index.html; httpd -p 8090 -h /www")


def log_of(stack, mark=0):
    return stack.daemon.service.log.read_text(errors="replace")[mark:]


def test_interface_comes_and_goes(running):
    """With addresses of both families, an MTU, a route and a permanent neighbour; and traffic over it, both ways."""
    network, guest = running
    mac = network.add_veth("net1", "10.77.0.2/24", "fd77::2/64", "10.77.0.3/24", node=["10.77.0.1/24", "fd77::1/64"], mtu=1340)
    network.ip("route", "add", "10.88.0.0/16", "via", "10.77.0.1")
    network.ip("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:99", "dev", "net1", "nud", "permanent")
    guest.wait(guest.links, "net1")
    guest.wait(guest.routes, "10.88.0.0/16 via 10.77.0.1 dev net1")
    link = guest.links()["net1"]
    assert mac in link and "mtu 1340" in link and ",UP" in link
    addresses = guest.addresses("net1")
    assert all(address in addresses for address in ("10.77.0.2/24", "10.77.0.3/24", "fd77::2/64"))
    assert "tentative" not in addresses
    guest.wait(lambda: guest.container.output("ip", "neigh"), "02:00:00:00:00:99")
    network.wait_nics(2)
    assert len(network.taps()) == 2
    serve(guest, "over-net1")
    for address in ("10.77.0.2", "10.77.0.3", "fd77::2"):
        assert b"over-net1" in netns.http_get(network.stack.netns, address, 8090), address
    assert guest.container.exec("ping", "-c1", "-W5", "10.77.0.1").returncode == 0

    # As it goes when the node's end is deleted: the interface is gone under its tap.
    network.node_ip("link", "del", "pnet1")
    guest.wait_without(guest.links, "net1")
    network.wait_nics(1)
    assert len(network.taps()) == 1
    assert "10.88.0.0/16" not in guest.routes()
    assert "eth0" in guest.links()


def test_one_takes_the_name_and_the_slot_of_another(running):
    network, guest = running
    first = network.add_veth("net1", "10.77.0.2/24")
    guest.wait(lambda: guest.links().get("net1", ""), first)
    network.wait_nics(2)
    slots = {nic["slot"] for nic in network.nics()}
    # Before anybody can look in between.
    network.batch(["link del net1", f"link add net1 type veth peer name pnet1 netns {network.stack.netns}",
                   "addr add 10.78.0.2/24 dev net1", "link set net1 up"])
    second = network.link("net1")["address"]
    assert second != first
    guest.wait(lambda: guest.links().get("net1", ""), second)
    guest.wait(lambda: guest.addresses("net1"), "10.78.0.2/24")
    assert "10.77.0.2" not in guest.addresses("net1")
    network.wait_nics(2)
    assert {nic["slot"] for nic in network.nics()} == slots


def test_addresses_routes_neighbours_mtu_and_state(running):
    network, guest = running
    network.add_veth("net1", "10.77.0.2/24", node=["10.77.0.1/24"])
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
    network.ip("addr", "add", "10.77.0.4/24", "dev", "net1")
    network.ip("addr", "add", "fd77::4/64", "dev", "net1", "nodad")
    guest.wait(lambda: guest.addresses("net1"), "fd77::4/64")
    assert "10.77.0.4/24" in guest.addresses("net1")
    network.ip("addr", "del", "10.77.0.4/24", "dev", "net1")
    guest.wait_without(lambda: guest.addresses("net1"), "10.77.0.4")
    network.ip("route", "add", "10.99.0.0/16", "via", "10.77.0.1")
    guest.wait(guest.routes, "10.99.0.0/16")
    network.ip("route", "del", "10.99.0.0/16")
    guest.wait_without(guest.routes, "10.99.0.0/16")
    network.ip("neigh", "add", "10.77.0.9", "lladdr", "02:00:00:00:00:99", "dev", "net1", "nud", "permanent")
    neighbours = lambda: guest.container.output("ip", "neigh")  # noqa: E731
    guest.wait(neighbours, "02:00:00:00:00:99")
    network.ip("neigh", "del", "10.77.0.9", "dev", "net1")
    guest.wait_without(neighbours, "02:00:00:00:00:99")

    index = network.link("net1")["ifindex"]
    network.ip("link", "set", "net1", "mtu", "1280")
    guest.wait(lambda: guest.links().get("net1", ""), "mtu 1280")
    assert network.link(f"tap{index:x}_mgt")["mtu"] == 1280
    # More than its NIC was made for: it gets another one.
    network.ip("link", "set", "net1", "mtu", "3000")
    guest.wait(lambda: guest.links().get("net1", ""), "mtu 3000")
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")

    network.ip("link", "set", "net1", "down")
    guest.wait_without(lambda: guest.links().get("net1", "net1 is gone"), ",UP")
    assert "net1" in guest.links()
    network.ip("link", "set", "net1", "up")
    guest.wait(lambda: guest.links().get("net1", ""), ",UP")
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
    serve(guest, "still-there")
    assert b"still-there" in wait_until(lambda: get(network, "10.77.0.2"), 30, "no answer")
    # And the interface of the beginning.
    network.ip("addr", "add", "10.123.250.1/16", "dev", "eth0")
    guest.wait(lambda: guest.addresses("eth0"), "10.123.250.1/16")
    network.ip("addr", "del", "10.123.250.1/16", "dev", "eth0")
    guest.wait_without(lambda: guest.addresses("eth0"), "10.123.250.1/16")


def get(network, address):
    try:
        return netns.http_get(network.stack.netns, address, 8090, 5)
    except OSError:
        return None


def test_what_cannot_be_given_is_named_once(running):
    """A kind that is refused, and a fifth interface: the pod goes on with those that it has."""
    network, guest = running
    mark = len(log_of(network.stack))
    network.ip("link", "add", "net9", "type", "bridge")
    network.ip("link", "set", "net9", "up")
    for i in range(1, 5):
        network.add_veth(f"net{i}", f"10.77.{i}.2/24")
    network.wait_nics(4)
    guest.wait(guest.links, "net3")
    wait_until(lambda: "net4: a VM takes at most 4" in log_of(network.stack, mark), 30, "the fifth is not named")
    # Other changes are no reason to say it again.
    network.ip("addr", "add", "10.77.1.3/24", "dev", "net1")
    guest.wait(lambda: guest.addresses("net1"), "10.77.1.3/24")
    said = log_of(network.stack, mark)
    assert said.count("net4: a VM takes at most 4") == 1
    assert said.count("net9: interfaces of kind bridge cannot be tied to a VM") == 1
    assert "net4" not in guest.links() and "net9" not in guest.links()
    # Many at once do not fill the log.
    mark = len(log_of(network.stack))
    network.batch([f"link add net9{i:02} type bridge" for i in range(40)])
    network.batch([f"link set net9{i:02} up" for i in range(40)])

    def all_accounted():
        said = log_of(network.stack, mark)
        more = re.findall(r"more interfaces of the pod.*? interfaces=(\d+)", said)
        return more and len(re.findall(r"interfaces of kind bridge", said)) + sum(map(int, more)) == 40

    wait_until(all_accounted, 30, "the forty are not accounted for")
    # When there is room, it comes.
    network.ip("link", "del", "net2")
    guest.wait(guest.links, "net4")


def test_a_tap_that_somebody_deletes_is_made_again(running):
    network, guest = running
    network.add_veth("net1", "10.77.0.2/24", node=["10.77.0.1/24"])
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
    network.wait_nics(2)
    serve(guest, "again")
    tap = f"tap{network.link('net1')['ifindex']:x}_mgt"
    network.ip("link", "del", tap)
    assert b"again" in wait_until(lambda: get(network, "10.77.0.2"), 60, "no answer")
    network.wait_nics(2)
    assert tap in network.taps()


def test_a_gateway_on_no_network_of_the_interface(running):
    """The guest takes it as the netns has it, and what is added after it."""
    network, guest = running
    network.add_veth("net1", "10.77.0.2/24")
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
    network.ip("route", "add", "10.90.0.0/16", "via", "172.31.0.1", "dev", "net1", "onlink")
    network.ip("addr", "add", "10.77.0.5/24", "dev", "net1")
    guest.wait(lambda: guest.addresses("net1"), "10.77.0.5/24")
    guest.wait(guest.routes, "10.90.0.0/16 via 172.31.0.1")


def test_a_burst_of_changes_leaves_nothing(running):
    """A hundred interfaces added and removed at once, while others ask the daemon; then one that stays."""
    network, guest = running
    own = network.stack.daemon.service.pid
    before = len(descriptors(own))
    answers = []
    done = threading.Event()

    def ask():
        while not done.is_set():
            started = os.times().elapsed
            assert network.pod.status()["state"] == "SANDBOX_READY"
            answers.append(os.times().elapsed - started)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(10):
            lines = []
            for i in range(10):
                lines += [f"link add net{i} type veth peer name pnet{i} netns {network.stack.netns}", f"addr add 10.79.{i}.2/24 dev net{i}",
                          f"link set net{i} up"]
            network.batch(lines)
            network.batch([f"link del net{i}" for i in range(10)])
        network.add_veth("net1", "10.77.0.2/24", node=["10.77.0.1/24"])
        guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
    finally:
        done.set()
        asking.join()
    assert answers and max(answers) < 10
    network.wait_nics(2)
    wait_until(lambda: len(network.taps()) == 2, 30, "taps are left")
    assert set(guest.links()) == {"lo", "eth0", "net1"}
    wait_until(lambda: len(descriptors(own)) <= before, 30, "the daemon has more descriptors than before", interval=0.1)


def test_a_daemon_that_was_away(own_stack):
    """What changed while it was killed is followed when it comes back."""
    with own_stack.pod() as pod:
        network, guest = PodNetns(pod), Guest(pod.shell())
        network.add_veth("net1", "10.77.0.2/24")
        network.add_veth("net2", "10.78.0.2/24")
        guest.wait(lambda: guest.addresses("net2"), "10.78.0.2/24")
        network.wait_nics(3)
        own_stack.daemon.service.kill()
        network.ip("link", "del", "net1")
        network.add_veth("net3", "10.79.0.2/24", node=["10.79.0.1/24"])
        network.ip("addr", "add", "10.78.0.3/24", "dev", "net2")
        own_stack.start_daemon()
        guest.wait(lambda: guest.addresses("net3"), "10.79.0.2/24")
        guest.wait(lambda: guest.addresses("net2"), "10.78.0.3/24")
        assert set(guest.links()) == {"lo", "eth0", "net2", "net3"}
        network.wait_nics(3)
        assert len(network.taps()) == 3
        serve(guest, "after-all")
        assert b"after-all" in netns.http_get(own_stack.netns, "10.79.0.2", 8090)


def test_a_daemon_killed_amid_a_change(own_stack):
    """At whatever point it was, the one after it brings the VM to what the netns has."""
    with own_stack.pod() as pod:
        network, guest = PodNetns(pod), Guest(pod.shell())
        for attempt in range(4):
            network.add_veth("net1", f"10.77.{attempt}.2/24")
            record = lambda: len(network.nics())  # noqa: E731
            wait_until(lambda: record() == 2 or attempt % 2 == 0, 30, "not begun", interval=0.001)
            own_stack.daemon.service.kill()
            own_stack.start_daemon()
            guest.wait(lambda: guest.addresses("net1"), f"10.77.{attempt}.2/24")  # noqa: B023
            network.wait_nics(2)
            assert len(network.taps()) == 2
            network.ip("link", "del", "net1")
            guest.wait_without(guest.links, "net1")
        network.wait_nics(1)


def test_a_netns_that_is_deleted_under_its_pod(own_stack):
    """As by `ip netns del`: its path leads nowhere, the VM lives on, is followed, also by a daemon that comes then, and the pod can be
    stopped and removed."""
    with own_stack.pod() as pod:
        network, guest = PodNetns(pod), Guest(pod.shell())
        # Nobody keeps it busy.
        run("umount", network.path)
        os.unlink(network.path)
        network.path = f"/proc/{pod.vmm()}/ns/net"
        network.add_veth("net1", "10.77.0.2/24")
        guest.wait(lambda: guest.addresses("net1"), "10.77.0.2/24")
        own_stack.daemon.service.kill()
        network.add_veth("net2", "10.78.0.2/24")
        own_stack.start_daemon()
        guest.wait(lambda: guest.addresses("net2"), "10.78.0.2/24")
        assert pod.status()["state"] == "SANDBOX_READY"
        pod.stop()
        assert pod.status()["state"] == "SANDBOX_NOTREADY"
        assert not subprocess.run(["pgrep", "-f", f"guest={pod.id}"], capture_output=True, text=True).stdout
