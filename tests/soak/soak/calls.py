"""Calls of CRI that are timed, and the list of what went wrong."""

import threading
import time

import grpc

from harness import cri


NOT_FOUND = grpc.StatusCode.NOT_FOUND


class Failed(Exception):
    """A call failed and is in the list: whoever made it cannot go on."""


class Faults:
    """What went wrong. Threads share it."""

    def __init__(self):
        self._lock, self._texts = threading.Lock(), []

    def add(self, text):
        with self._lock:
            self._texts.append(text)

    def texts(self):
        with self._lock:
            return list(self._texts)


class Calls:
    def __init__(self, socket, faults):
        self.cri, self.faults = cri.Cri(socket), faults
        self.messages = self.cri.messages
        self._lock = threading.Lock()
        self._seconds = {}
        # (method, id) of calls whose failure was none.
        self.forgiven = set()

    def __call__(self, method, forgive=None, **fields):
        """The response. `forgive`: a status code that is no fault, or a function that tells whether the error is none; None
        then. Raises Failed."""
        started = time.monotonic()
        try:
            return self.cri.call(method, **fields)
        except grpc.RpcError as error:
            if forgive() if callable(forgive) else error.code() == forgive:
                self.forgiven.add((method, fields.get("container_id") or fields.get("pod_sandbox_id")))
                return None
            self.faults.add(f"{method}: {error.code().name}: {error.details()}")
            raise Failed(method) from None
        finally:
            self._note(method, time.monotonic() - started)

    def _note(self, method, seconds):
        with self._lock:
            self._seconds.setdefault(method, []).append(seconds)

    def seconds(self):
        """{method: how long each call took}."""
        with self._lock:
            return {method: list(values) for method, values in self._seconds.items()}


def ticks(seconds, stop):
    """Yields every so many seconds until `stop` is set. As with the kubelet's tickers, what comes too late is left out."""
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        yield
        due = max(due + seconds, time.monotonic())
