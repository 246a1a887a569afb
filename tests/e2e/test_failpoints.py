"""The daemon dies at every journalled step of a pod's life, once, and so does each other program while the
daemon stands at that step: afterwards the pod can be removed, nothing is left on the host, and pods work again."""

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import re
import signal

import pytest

from harness import ROOT
from harness.host import FILE_SERVERS, processes_of
from stack.crictl import CrictlError
from stack.services import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


def points():
    """The names that stand in the daemon's sources; `teardown.` has one for each step of a record."""
    sources = [path for folder in ("src/daemon", "vmm") for path in (ROOT / folder).glob("**/*.cc")
               if not path.name.endswith("_test.cc")]
    texts = [path.read_text() for path in sources]
    names = set(itertools.chain.from_iterable(re.findall(r'Failpoint\(\s*"([^"]+)"', text) for text in texts))
    if any("teardown.\", StepName" in text for text in texts):
        table = next(re.search(r"kStepNames = \{\{(.*?)\}\};", text, re.S) for text in texts if "kStepNames = {{" in text)
        names.update(f"teardown.{name}" for name in re.findall(r'"(\w+)"', table.group(1)))
    return sorted(names)


POINTS = points()
# One for each kind of trouble, for the short run.
SHORT = {"create.record", "start.network", "start.supervisor", "start.guest", "container.prepare.after", "storage.step.before",
         "container.release.before", "teardown.supervisor", "teardown.shared", "forget.directory"}


def cases():
    for point in POINTS:
        for how in ("kill", "error"):
            slow = [] if how == "kill" and point in SHORT else [pytest.mark.slow]
            yield pytest.param(point, how, marks=slow, id=f"{point}-{how}")


def attempt(function, *args):
    """Its result, or None: what a client sees when the daemon dies under its call is an error."""
    try:
        return function(*args)
    except CrictlError:
        return None


def refusal(function, *args):
    """What its caller is told, if it fails."""
    try:
        function(*args)
    except CrictlError as error:
        return str(error)
    return ""


def life(stack):
    """All that a failpoint may lie on: a pod, a container, its removal."""
    pod = stack.new_pod()
    container = pod.shell()
    container.stop(0)
    container.remove()
    pod.stop()
    pod.remove()


def test_the_points_are_known():
    """The list below is taken from the sources: it must not become empty unnoticed."""
    assert len(POINTS) >= 10
    assert SHORT <= set(POINTS)
    assert {point for point, _ in SHORT_MEETINGS} <= set(POINTS)


def settle(stack, before):
    """All pods can be removed, and then nothing is left."""
    # containerd dials again within its back-off.
    wait_until(lambda: stack.crictl.run("rmp", "--all", "--force", check=False).returncode == 0, 60, "pods cannot be removed",
               interval=0.5)
    assert stack.pods() == []
    stack.check_unchanged((before, None, None), timeout=90)


# A sandbox whose Create containerd did not see the end of is an orphan: it goes after so many seconds.
FEW = {"orphan_after_seconds": 5}


# That pods work again is seen by the next test, with the same stack, and by the last one.
@pytest.mark.parametrize("point, how", cases())
def test_failpoint(own_stack, point, how):
    stack = own_stack
    before = stack.snapshot()[0]
    stack.daemon.service.stop()
    stack.start_daemon(debug={"failpoints": [point if how == "kill" else f"{point}=error"]})
    daemon = stack.daemon.service
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        living = pool.submit(refusal, life, stack)
        if how == "kill":
            wait_until(lambda: daemon.pid is None or living.done(), 120, f"the daemon does not come to {point}")
            assert daemon.pid is None, f"the daemon passed {point} alive: nothing leads there"
            stack.start_daemon(containerd=FEW)
    if how == "error":
        assert f"failpoint {point}" in living.result() + daemon.log.read_text(), f"nothing leads to {point}"
        daemon.stop()
        stack.start_daemon(containerd=FEW)
    settle(stack, before)


PARTS = ("qemu-system", "vmm-supervisor", *FILE_SERVERS)
# The points at which a VM runs.
WITH_VM = ("start.supervisor", "start.ready", "start.hello", "start.guest", "container.", "storage.", "teardown.asked",
           "teardown.guest", "teardown.supervisor")
SHORT_MEETINGS = {("create.record", "containerd"), ("start.supervisor", "vmm-supervisor"), ("start.guest", "qemu-system"),
                  ("container.prepare.after", "virtiofsd"), ("container.prepare.before", "containerd"),
                  ("teardown.supervisor", "qemu-system")}


def meetings():
    for point in POINTS:
        for victim in ("containerd", *(PARTS if point.startswith(WITH_VM) else ())):
            slow = [] if (point, victim) in SHORT_MEETINGS else [pytest.mark.slow]
            yield pytest.param(point, victim, marks=slow, id=f"{point}-{victim}")


def is_stopped(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


@pytest.mark.parametrize("point, victim", meetings())
def test_another_dies_at_a_point(own_stack, point, victim):
    """The daemon stands still at a step while a part of the sandbox, or containerd, is killed; then it goes on."""
    stack = own_stack
    before = stack.snapshot()[0]
    stack.daemon.service.stop()
    share = {"file_share": "9p"} if victim == "vmm-9p" else {}
    stack.start_daemon(debug={"failpoints": [f"{point}=stop"]}, containerd=FEW, vm=share)
    daemon = stack.daemon.service.pid
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        living = pool.submit(attempt, life, stack)
        try:
            wait_until(lambda: is_stopped(daemon) or living.done(), 120, f"the daemon does not come to {point}")
            assert is_stopped(daemon), f"nothing leads to {point}"
            if victim == "containerd":
                stack.containerd.service.kill()
            else:
                sandbox = next(path.parent.name for path in stack.daemon.state.glob("*/sandbox.json"))
                # A guest that has been asked ends its VM by itself: then there may be nobody left to kill.
                found = processes_of(victim, sandbox)
                if point != "teardown.asked":
                    found = found or wait_until(lambda: processes_of(victim, sandbox), 30, f"no {victim}")
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        finally:
            os.kill(daemon, signal.SIGCONT)
        if victim == "containerd":
            stack.start_containerd()
        living.result()
    assert stack.daemon.service.pid == daemon, "the daemon did not survive it"
    settle(stack, before)


def test_pods_work_after_all(own_stack):
    life(own_stack)
