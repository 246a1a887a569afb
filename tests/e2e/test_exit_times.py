"""When a container is said to have ended: by the host's clock, and when it did."""

import os
import signal
import time

import pytest

from harness.cri import Cri
from stack.services import wait_until

TOLERANCE = 0.05
# One measurement may be late on a busy machine.
TURNS = 5


@pytest.fixture
def cri(stack):
    cri = Cri(stack.containerd.socket)
    yield cri
    cri.close()


def end(cri, container):
    """(its end as it is told, when it was known here) in seconds, once it has ended."""
    def ended():
        status = cri.call("ContainerStatus", container_id=container.id).status
        return status if status.state == cri.messages.CONTAINER_EXITED else None

    status = wait_until(ended, 60, "the container does not end", interval=0.005)
    return status.finished_at / 1e9, time.time()


def judge(times):
    """(when the last was done, the end as it is told, when that was known) of some containers: none ended before or after it can
    have, and not all are told late."""
    for done, told, known in times:
        assert done - TOLERANCE <= told <= known + TOLERANCE, times
    assert min(told - done for done, told, _ in times) <= TOLERANCE, times


def test_by_itself(pod, cri, tmp_path):
    """The last thing that it does is seen on the host."""
    times = []
    for turn in range(TURNS):
        container = pod.run("/bin/sh", "-c", f": > /seen/{turn}; exit 3", mounts=[{"host_path": str(tmp_path), "container_path": "/seen"}])
        told, known = end(cri, container)
        times.append(((tmp_path / str(turn)).stat().st_mtime, told, known))
    judge(times)


def test_when_asked_to(pod, cri, tmp_path):
    times = []
    for turn in range(TURNS):
        container = pod.run("/bin/sh", "-c", f"trap ': > /seen/{turn}; exit 4' TERM; echo ready; sleep infinity & wait",
                            mounts=[{"host_path": str(tmp_path), "container_path": "/seen"}])
        container.wait_log("ready")
        cri.call("StopContainer", container_id=container.id, timeout=60)
        told, known = end(cri, container)
        assert container.wait_exit() == 4
        times.append(((tmp_path / str(turn)).stat().st_mtime, told, known))
    judge(times)


def test_when_killed(pod, cri):
    """It cannot leave a sign: somewhere between what was asked for and what is known."""
    for _ in range(TURNS):
        container = pod.shell()
        asked = time.time()
        cri.call("StopContainer", container_id=container.id, timeout=0)
        told, known = end(cri, container)
        assert container.wait_exit() == 137
        assert asked - TOLERANCE <= told <= known + TOLERANCE


@pytest.mark.vm
def test_out_of_memory(pod, cri, tmp_path):
    """Killed between a sign of life and when that is known."""
    script = ": > /seen/alive; x=a; while :; do x=$x$x; done"
    container = pod.run("/bin/sh", "-c", script, mounts=[{"host_path": str(tmp_path), "container_path": "/seen"}],
                        linux={"resources": {"memory_limit_in_bytes": 24 << 20}})
    told, known = end(cri, container)
    assert container.status()["reason"] == "OOMKilled"
    assert (tmp_path / "alive").stat().st_mtime - TOLERANCE <= told <= known + TOLERANCE


@pytest.mark.vm
def test_with_its_vm(own_stack):
    cri = Cri(own_stack.containerd.socket)
    with own_stack.pod() as pod:
        container = pod.shell()
        killed = time.time()
        os.kill(pod.vmm(), signal.SIGKILL)
        told, known = end(cri, container)
        assert killed - TOLERANCE <= told <= known + TOLERANCE
        assert told - killed <= 2, "containerd is told at once"
    cri.close()
