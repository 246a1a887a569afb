"""A full disk under the daemon's run directory: clear errors, and all of it goes away once there is room, or before."""

import contextlib
import os
import subprocess

import pytest

from harness.stackfixture import Stack
from stack.crictl import CrictlError

pytestmark = pytest.mark.vm

SIZE = 4 << 20
FULL = "(?i)no space left"


@pytest.fixture
def small_stack():
    """A stack whose daemon keeps its state on a disk of 4 MiB."""
    stack = Stack()
    try:
        stack.daemon.state.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0711", "none", stack.daemon.state], check=True)
        yield stack.start()
    finally:
        stack.close()


@contextlib.contextmanager
def full(stack):
    filler = stack.daemon.state / "filler"
    with open(filler, "wb", buffering=0) as out:
        with pytest.raises(OSError, match="No space left"):
            while True:
                out.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


def test_full_disk(small_stack):
    stack = small_stack
    # The connections between containerd and the daemon are made by their first use.
    with stack.pod() as first:
        first.shell()
    before = stack.snapshot()
    with full(stack):
        with pytest.raises(CrictlError, match=FULL):
            stack.new_pod()
        assert stack.pods() == []
    stack.check_unchanged(before)

    pod = stack.new_pod()
    with full(stack):
        with pytest.raises(CrictlError, match=FULL):
            pod.shell()
    assert pod.status()["state"] == "SANDBOX_READY"
    container = pod.shell()
    with full(stack):
        assert container.output("echo", "still here") == "still here\n"
        container.stop(0)
        container.remove()
        pod.stop()
        pod.remove()
        assert not os.path.exists(stack.sandbox_record(pod) / "vmm")
    assert stack.pods() == []
    stack.check_unchanged(before)
