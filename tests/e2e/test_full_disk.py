"""A full disk under the daemon's run directory, or under containerd's snapshots: clear errors, and all of it goes away once there is
room, or before."""

import contextlib
import os
import re
import subprocess

import pytest

from harness.stackfixture import Stack
from stack.crictl import CrictlError
from stack.services import wait_until

pytestmark = pytest.mark.vm

SIZE = 4 << 20
SNAPSHOTS_SIZE = 128 << 20
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


@pytest.fixture
def small_snapshots():
    """A stack whose containers write to a disk of 128 MiB, which all of them share: overlayfs has no limit of its own."""
    stack = Stack()
    try:
        # Not the snapshotter's database, which is beside it.
        snapshots = stack.containerd.data / "root" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
        snapshots.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SNAPSHOTS_SIZE}", "none", snapshots], check=True)
        yield stack.start()
    finally:
        stack.close()


def test_full_root_file_system_of_overlayfs(small_snapshots):
    """Whoever fills it is told so, and so is everybody else who writes; what is deleted is room again; the pod can go while it is full."""
    with small_snapshots.pod() as first:
        first.shell()
    before = small_snapshots.snapshot()
    pod = small_snapshots.new_pod()
    greedy, other = pod.shell(), pod.shell()

    def fill():
        filling = greedy.exec("sh", "-c", "cat /dev/zero > /full", check=False)
        assert filling.returncode == 1 and re.search(FULL, filling.stderr), filling

    fill()
    late = other.exec("dd", "if=/dev/zero", "of=/more", "bs=1M", "count=1", check=False)
    assert late.returncode != 0 and re.search(FULL, late.stderr), late
    assert other.output("echo", "still here") == "still here\n"
    greedy.output("rm", "/full")
    # The file server holds what is deleted until it hears that the guest does not any more.
    writes = lambda: greedy.exec("sh", "-c", "echo again > /file && cat /file", check=False).stdout  # noqa: E731
    wait_until(lambda: writes() == "again\n", 30, "nothing can be written")
    assert other.output("sh", "-c", "head -c 1000000 /dev/zero > /more && wc -c < /more") == "1000000\n"
    fill()
    pod.stop()
    pod.remove()
    assert small_snapshots.pods() == []
    small_snapshots.check_unchanged(before)
