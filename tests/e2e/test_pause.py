"""Containers that are paused, as ctr pauses them."""

import pytest

from harness.cri import Cri
from harness.tasks import Tasks

TRAPS = "trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture
def tasks(stack):
    tasks = Tasks(stack.containerd.socket)
    yield tasks
    tasks.close()


@pytest.fixture
def cri(stack):
    cri = Cri(stack.containerd.socket)
    yield cri
    cri.close()


def test_it_stands_still_and_goes_on(stack, pod, tmp_path):
    """And no other does."""
    neighbour = pod.shell()
    container = pod.run("/bin/sh", "-c", "> /seen/count; echo begun; while :; do echo >> /seen/count; sleep 0.05; done",
                        mounts=[{"host_path": str(tmp_path), "container_path": "/seen"}])

    def counted():
        """How far it comes while its neighbour sleeps."""
        before = (tmp_path / "count").stat().st_size
        neighbour.output("sleep", "1")
        return (tmp_path / "count").stat().st_size - before

    container.wait_log("begun")
    assert counted()
    stack.containerd.ctr("tasks", "pause", container.id)
    assert "PAUSED" in stack.containerd.ctr("tasks", "ls").stdout
    assert not counted()
    # CRI knows of no pause, and must not mind.
    assert container.status()["state"] == "CONTAINER_RUNNING"
    refused = container.exec("true", check=False)
    assert refused.returncode != 0 and "paused" in refused.stderr
    stack.containerd.ctr("tasks", "resume", container.id)
    assert "PAUSED" not in stack.containerd.ctr("tasks", "ls").stdout
    assert counted()
    assert container.output("echo", "fine") == "fine\n"


def test_stopped_while_it_is_paused(pod, cri, tasks):
    """It cannot end when it is asked to; KILL does not wait for it."""
    container = pod.run("/bin/sh", "-c", TRAPS)
    container.wait_log("ready")
    tasks.call("Pause", container_id=container.id)
    cri.call("StopContainer", container_id=container.id, timeout=2)
    assert container.wait_exit() == 137


def test_resumed_while_it_is_stopped(pod, cri, tasks):
    """Then it hears what it has been asked for meanwhile."""
    container = pod.run("/bin/sh", "-c", TRAPS)
    container.wait_log("ready")
    tasks.call("Pause", container_id=container.id)
    stop = cri.future("StopContainer", container_id=container.id, timeout=60)
    cri.call("ListPodSandbox")
    assert not stop.done()
    tasks.call("Resume", container_id=container.id)
    stop.result(60)
    assert container.wait_exit() == 4


def test_killed_and_removed_while_it_is_paused(pod, cri, tasks):
    container = pod.shell()
    tasks.call("Pause", container_id=container.id)
    cri.call("RemoveContainer", container_id=container.id)
    assert pod.containers() == []
