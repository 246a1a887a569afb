import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from harness import settings  # noqa: E402
from harness.stackfixture import Stack, remove_leftovers  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes on two cores without KVM; left out of the short run")
    config.addinivalue_line("markers", "vm: about Magnetar itself; means nothing with another handler")


def pytest_collection_modifyitems(items):
    if settings.IS_VM:
        return
    skip = pytest.mark.skip(reason=f"handler {settings.HANDLER}: not Magnetar")
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(skip)


def pytest_sessionstart(session):
    if session.config.option.collectonly:
        return
    if settings.IS_VM:
        for path in (settings.BUILD / "src/daemon/vmm-sandboxer", settings.GUEST / "root.erofs"):
            if not path.exists():
                pytest.exit(f"{path} is missing: build first (tests/run does)", 2)
    # Of runs with several workers, one looks for them.
    if not hasattr(session.config, "workerinput"):
        remove_leftovers()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    setattr(item, f"report_{report.when}", report)
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Stack):
                kept = value.keep_logs(item.name.replace("/", "_"))
                report.sections.append(("stack", f"logs are kept in {kept}\n{value.daemon.service.tail(25)}"))


def _closing(stack, warm=False):
    try:
        stack.start()
        if warm:
            # The connections between containerd and the daemon are made by their first use.
            with stack.pod() as pod:
                pod.shell()
        yield stack
    finally:
        stack.close()


def failed(request):
    report = getattr(request.node, "report_call", None)
    return report is None or report.failed


def unchanged(request, stack):
    """Yields `stack`; afterwards compares the host, or just cleans up if the test failed."""
    before = stack.snapshot()
    pods = stack.pods()
    yield stack
    if failed(request):
        for pod in stack.pods():
            if pod["id"] not in {earlier["id"] for earlier in pods}:
                stack.crictl.run("rmp", "--force", pod["id"], check=False)
    else:
        stack.check_unchanged(before)


@pytest.fixture(scope="session")
def shared_stack():
    """One stack for all tests that kill nothing."""
    yield from _closing(Stack(), warm=True)


@pytest.fixture(scope="session")
def newest_stack():
    """The same with the newest containerd."""
    yield from _closing(Stack("containerd-2.4"), warm=True)


@pytest.fixture(scope="session")
def ninep_stack():
    """The same with files by 9p."""
    yield from _closing(Stack(daemon_settings={"vm": {"file_share": "9p"}}), warm=True)


@pytest.fixture(scope="module", params=["shared_stack", "ninep_stack"], ids=["virtiofs", "9p"])
def sharing_stack(request):
    """A stack for each way in which files of the host reach a guest."""
    if request.param != "shared_stack" and not settings.IS_VM:
        pytest.skip("plain containers have one")
    return request.getfixturevalue(request.param)


@pytest.fixture
def stack(request, shared_stack):
    """The shared stack, with the host compared before and after the test."""
    yield from unchanged(request, shared_stack)


@pytest.fixture(scope="module")
def lasting_pod(shared_stack):
    with shared_stack.pod() as pod:
        yield pod


@pytest.fixture
def pod(lasting_pod, stack):
    """A pod for tests that want no more of it than containers: one for all of a module. It starts without containers."""
    yield lasting_pod
    for container in lasting_pod.containers():
        stack.crictl.run("rm", "--force", container)


@pytest.fixture(params=["shared_stack", "newest_stack"], ids=["containerd-2.1", "containerd-2.4"])
def any_stack(request):
    yield from unchanged(request, request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def spare_stacks():
    """The stack that is handed on from one test that kills things to the next."""
    spare = []
    yield spare
    for stack in spare:
        stack.close()


@pytest.fixture
def own_stack(request, spare_stacks):
    """A stack to kill things in. The test compares the host where that means something. After a test that
    passed, the next one goes on with the same stack."""
    stack = spare_stacks.pop() if spare_stacks else Stack()
    try:
        stack.renew() if stack.started else stack.start()
        yield stack
    except BaseException:
        stack.close()
        raise
    if failed(request):
        stack.close()
    else:
        spare_stacks.append(stack)
