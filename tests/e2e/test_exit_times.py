"""When a container is said to have ended: by the host's clock, and when it did."""

import os
import signal
import statistics
import subprocess
import time

import pytest

from harness import lifeline
from harness.controller import Controller
from harness.cri import Cri
from harness.events import listen
from harness.taskapi import TaskApi
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


# Sends a sign of life every few milliseconds.
BEATING = "while :; do echo; usleep 2000; done"


def close(times):
    """That most of some ends are told within the tolerance of when they were seen, and none before its process's last sign of life:
    (last sign, end as it was seen, end as it is told)."""
    for last_sign, _, told in times:
        assert told >= last_sign - TOLERANCE, times
    assert statistics.median(abs(told - seen) for _, seen, told in times) <= TOLERANCE, times


def kill_some(stack, pod, cri):
    """The times of containers that are killed, for close()."""
    times = []
    with lifeline.listen(stack) as (port, follow):
        for _ in range(TURNS):
            life = follow()
            container = pod.run(*lifeline.command(port, BEATING))
            life.wait_begun()
            cri.call("StopContainer", container_id=container.id, timeout=0)
            seen = life.wait_ended()
            told, known = end(cri, container)
            assert container.wait_exit() == 137
            assert told <= known + TOLERANCE
            times.append((life.last_sign, seen, told))
    return times


def test_when_killed(stack, pod, cri):
    close(kill_some(stack, pod, cri))


@pytest.mark.vm
def test_in_a_guest_that_began_on_a_busy_host(stack, cri):
    """Its clock is the host's nevertheless."""
    busy = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(2 * os.cpu_count())]
    try:
        pod = stack.new_pod()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    times = kill_some(stack, pod, cri)
    pod.remove()
    close(times)


@pytest.mark.vm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL])
def test_an_exec_that_a_signal_ends(stack, pod, number):
    container, times = pod.shell(), []
    with lifeline.listen(stack) as (port, follow), TaskApi(pod) as task:
        process = {"args": lifeline.command(port, BEATING), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
        for turn in range(TURNS):
            identity = {"id": container.id, "exec_id": f"turn{turn}"}
            life = follow()
            task.call("Exec", **identity, spec=task.spec("Process", process))
            task.call("Start", **identity)
            life.wait_begun()
            task.call("Kill", **identity, signal=number)
            ended = task.call("Wait", **identity)
            assert ended.exit_status == 128 + number
            task.call("Delete", **identity)
            times.append((life.last_sign, life.wait_ended(), ended.exited_at.seconds + ended.exited_at.nanos / 1e9))
    close(times)


@pytest.mark.vm
def test_out_of_memory(stack, pod, cri):
    times = []
    with lifeline.listen(stack) as (port, follow):
        for _ in range(TURNS):
            life = follow()
            container = pod.run(*lifeline.command(port, "x=a; while :; do x=$x$x; echo; done"),
                                linux={"resources": {"memory_limit_in_bytes": 24 << 20}})
            seen = life.wait_ended()
            told, known = end(cri, container)
            assert container.status()["reason"] == "OOMKilled"
            assert told <= known + TOLERANCE
            times.append((life.last_sign, seen, told))
    close(times)


@pytest.mark.vm
def test_with_its_vm(own_stack, tmp_path):
    """As CRI tells it of the container, containerd's events of its task, and the Controller of the sandbox."""
    cri, controller = Cri(own_stack.containerd.socket), Controller(own_stack.daemon.socket)
    times = {"container": [], "event": [], "sandbox": []}
    for turn in range(TURNS):
        with own_stack.pod() as pod, listen(own_stack, tmp_path) as events:
            container = pod.shell()
            wait = controller.future("Wait", sandbox_id=pod.id)
            dead = lifeline.when_dead(pod.vmm())
            asked = time.time()
            os.kill(pod.vmm(), signal.SIGKILL)
            seen = dead()
            told = {"container": end(cri, container)[0]}
            exited_at = [body["exited_at"] for topic, body in events.wait(container.id, "exit") if topic == "exit"][0]
            told["event"] = exited_at["seconds"] + exited_at["nanos"] / 1e9
            told["sandbox"] = wait.result().exited_at.seconds + wait.result().exited_at.nanos / 1e9
            for who, at in told.items():
                times[who].append((asked, seen, at))
    cri.close()
    controller.close()
    for who in times:
        close(times[who])
