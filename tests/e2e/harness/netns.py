"""Sockets inside another network namespace, for a test that talks to pods as a neighbour would."""

import ctypes
import os
import socket
import threading

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def call(netns, function, *args):
    """The result of `function(*args)` run by a thread in a namespace: /run/netns/<netns>, or a path."""
    result = {}

    def body():
        try:
            fd = os.open(os.path.join("/run/netns", netns), os.O_RDONLY)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            result["value"] = function(*args)
        except BaseException as error:  # noqa: BLE001 (handed to the caller)
            result["error"] = error

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if "error" in result:
        raise result["error"]
    return result["value"]


def receive_all(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def http_get(netns, address, port, timeout=20, path="/"):
    """The body of the answer; empty if the connection closes without one."""
    connection = connect(netns, address, port, timeout)
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return receive_all(connection).partition(b"\r\n\r\n")[2]


def connect(netns, host, port, timeout=20):
    """A TCP connection made in that namespace."""
    return call(netns, socket.create_connection, (host, port), timeout)
