"""How fast data goes through a port-forward, there and back."""

import time

from harness import netns
from stack.services import wait_until

MIB = 96
# The server's first answer comes after a start of its program, which is no matter of throughput.
FIRST = 1 << 16
SERVERS = f"nc -ll -p 9000 -e dd if=/dev/zero bs=64k count={MIB * 16} & nc -ll -p 9001 -e sh -c 'echo go; exec cat >/dev/null' & wait"


def _connect(namespace, port):
    """A connection to a server that may not listen yet: then there is none, or it ends without a byte."""

    def attempt():
        try:
            connection = netns.connect(namespace, "127.0.0.1", port, 120)
            if connection.recv(FIRST):
                return connection
            connection.close()
        except ConnectionError:
            pass
        return None

    return wait_until(attempt, 30, f"nothing listens at port {port}", interval=0.05)


def download(namespace, port):
    """MiB/s."""
    connection = _connect(namespace, port)
    with connection:
        started, size = time.monotonic(), 0
        while chunk := connection.recv(1 << 20):
            size += len(chunk)
        return size / (1 << 20) / (time.monotonic() - started)


def upload(namespace, port):
    """MiB/s, until the server has read all and hangs up."""
    connection = _connect(namespace, port)
    block = bytes(1 << 20)
    with connection:
        started = time.monotonic()
        for _ in range(MIB):
            connection.sendall(block)
        connection.shutdown(1)
        while connection.recv(1 << 16):
            pass
        return MIB / (time.monotonic() - started)


def measure(stack, handler, name, results, rounds):
    """Through `crictl port-forward`, and dialled in the pod's namespace as containerd does, without crictl's own costs."""
    pod = stack.new_pod(handler)
    try:
        pod.run("/bin/sh", "-c", SERVERS)
        path = pod.netns()
        with pod.port_forward(9000) as down, pod.port_forward(9001) as up:
            for _ in range(rounds):
                results.add(name, "port-forward out of the pod", "MiB/s", download(stack.netns, down))
                results.add(name, "port-forward into the pod", "MiB/s", upload(stack.netns, up))
                results.add(name, "the same without crictl, out", "MiB/s", download(path, 9000))
                results.add(name, "the same without crictl, in", "MiB/s", upload(path, 9001))
    finally:
        pod.remove()
