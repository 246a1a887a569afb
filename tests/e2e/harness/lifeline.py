"""Processes in guests whose death the host sees when it happens, by its own clock: each holds a connection, which the guest's kernel
ends with it, and sends over it while it lives."""

import contextlib
import os
import select
import socket
import threading
import time

from . import netns

# The stack's bridge: the pods' gateway.
ADDRESS = "10.123.0.1"


def command(port, script):
    """The command of a process that is `script`, a shell's, with the connection as its output."""
    return ["/bin/nc", ADDRESS, str(port), "-e", "/bin/sh", "-c", script]


class Lifeline:
    """Of one process. Times are seconds since 1970."""

    def __init__(self, listener):
        self._listener, self.last_sign, self.ended = listener, None, None
        self._begun, self._thread = threading.Event(), threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self):
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                self.last_sign = time.time()
                self._begun.set()
        self.ended = time.time()

    def wait_begun(self, timeout=60):
        assert self._begun.wait(timeout), "no sign of life"

    def wait_ended(self, timeout=60):
        """When the process died."""
        self._thread.join(timeout)
        assert self.ended, "the connection lasts"
        return self.ended


@contextlib.contextmanager
def listen(stack):
    """(a port for command(), a function that follows the next process which dials it)."""
    listener = netns.call(stack.netns, lambda: socket.create_server(("0.0.0.0", 0)))
    with listener:
        yield listener.getsockname()[1], lambda: Lifeline(listener)


def when_dead(pid):
    """A function that waits for the end of a process of the host, and returns when that was."""
    fd, ended = os.pidfd_open(pid), []

    def follow():
        select.select([fd], [], [])
        ended.append(time.time())
        os.close(fd)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()

    def wait(timeout=60):
        thread.join(timeout)
        assert ended, f"process {pid} lives"
        return ended[0]

    return wait
