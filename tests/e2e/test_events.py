"""What `ctr events`, and with it Docker, hears of the containers in VMs."""

import os
import signal
import subprocess

import pytest

from harness.events import ctr, listen

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def test_life_of_a_container(stack, pod, tmp_path):
    with listen(stack, tmp_path) as events:
        container = pod.run("/bin/sleep", "infinity")
        assert "exit code 3" in container.exec("sh", "-c", "exit 3", check=False).stderr
        exited = [body for topic, body in events.wait(container.id, "exit") if topic == "exit"]
        exec_id = exited[0]["id"]
        assert exec_id != container.id and exited[0]["exit_status"] == 3
        subprocess.run(ctr(stack, "tasks", "pause", container.id), check=True)
        subprocess.run(ctr(stack, "tasks", "resume", container.id), check=True)
        container.stop(0)
        container.remove()
        told = events.wait(container.id, "delete")
    assert [topic for topic, _ in told] == ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"]
    bodies = [body for _, body in told]
    # The one pid that containerd knows of, and that is the host's.
    assert {body["pid"] for body in bodies if "pid" in body} == {pod.vmm()}
    assert [body.get("exec_id") for body in bodies[2:4]] == [exec_id, exec_id]
    assert (bodies[7]["id"], bodies[7]["exit_status"], bodies[8]["exit_status"]) == (container.id, 137, 137)
    assert bodies[7]["exited_at"] == bodies[8]["exited_at"]


def test_out_of_memory(stack, pod, tmp_path):
    with listen(stack, tmp_path) as events:
        container = pod.run("/bin/sh", "-c", "x=a; while :; do x=$x$x; done", linux={"resources": {"memory_limit_in_bytes": 24 << 20}})
        assert container.wait_exit(120) == 137
        told = [topic for topic, _ in events.wait(container.id, "exit")]
    assert told[:4] == ["create", "start", "oom", "exit"]


def test_told_once_the_daemon_is_back(own_stack, tmp_path):
    """What happens while it is away is not lost, and in order."""
    with own_stack.pod() as pod, listen(own_stack, tmp_path) as events:
        container = pod.run("/bin/sleep", "infinity")
        events.wait(container.id, "start")
        own_stack.daemon.service.signal(signal.SIGKILL)
        container.stop(0)
        container.remove()
        assert [topic for topic, _ in events.all(container.id)] == ["create", "start"]
        own_stack.start_daemon()
        told = [topic for topic, _ in events.wait(container.id, "delete")]
    assert told == ["create", "start", "exit", "delete"]



def test_a_vm_that_dies(own_stack, tmp_path):
    """Nobody else tells: its guest cannot, and to containerd it is no shim."""
    with own_stack.pod() as pod, listen(own_stack, tmp_path) as events:
        running, ended = pod.run("/bin/sleep", "infinity"), pod.run("/bin/sh", "-c", "exit 3")
        events.wait(ended.id, "delete")
        # containerd has heard of it, too: what it does not know then, it learns by and by.
        assert ended.wait_exit() == 3
        os.kill(pod.vmm(), signal.SIGKILL)
        told = events.wait(running.id, "delete")
        assert [topic for topic, _ in told] == ["create", "start", "exit", "delete"]
        assert [body["exit_status"] for topic, body in told if topic in ("exit", "delete")] == [255, 255]
        assert [topic for topic, _ in events.all(ended.id)] == ["create", "start", "exit", "delete"]
        # containerd notes it by and by itself.
        assert running.wait_exit() == 255
