"""The daemon dies at every journalled step of a pod's life, once: afterwards the pod can be removed,
nothing is left on the host, and pods work again."""

import itertools
import re

import pytest

from harness import ROOT, settings
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


@pytest.fixture(scope="module")
def own_module_stack(request):
    from harness.stackfixture import Stack
    stack = Stack()
    try:
        yield stack.start()
    finally:
        stack.close()


@pytest.mark.parametrize("point, how", cases())
def test_failpoint(own_module_stack, point, how):
    stack = own_module_stack
    if not stack.daemon.service.pid:
        stack.daemon.start()
    before = stack.snapshot()
    stack.daemon.service.stop()
    stack.start_daemon(debug={"failpoints": [point if how == "kill" else f"{point}=error"]})
    daemon = stack.daemon.service
    attempt(life, stack)
    if how == "kill":
        wait_until(lambda: daemon.pid is None, 10, f"the daemon passed {point} alive: nothing leads there")
    daemon.stop()
    stack.start_daemon()
    # containerd dials again within its back-off.
    wait_until(lambda: stack.crictl.run("rmp", "--all", "--force", check=False).returncode == 0, 60, "pods cannot be removed",
               interval=0.5)
    assert stack.pods() == []
    stack.check_unchanged((before[0], None, None), timeout=90 if settings.IS_VM else 10)
    life(stack)
