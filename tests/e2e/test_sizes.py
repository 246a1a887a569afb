"""How large a VM is when its pod's limits do not say: by handler, and by what a pod asks for in annotations."""

import pytest

from harness.guest import cpus, host_limit_file, memory_mib
from harness.stackfixture import SIZED
from stack.crictl import CrictlError

pytestmark = pytest.mark.vm

VCPUS, MEMORY = "io.magnetar.vm.vcpus", "io.magnetar.vm.memory_mib"
MIB = 1 << 20
# What of the memory the guest's kernel keeps.
KERNEL_MIB = 96


def check(container, vcpus, mib):
    assert cpus(container) == vcpus
    assert mib - KERNEL_MIB < memory_mib(container) <= mib


def test_a_handler_has_its_own(stack):
    with stack.pod(handler=SIZED) as pod:
        check(pod.shell(), 2, 640)
    with stack.pod() as pod:
        check(pod.shell(), 1, 512)


def test_a_pod_asks_for_more(stack):
    with stack.pod(annotations={VCPUS: "3", MEMORY: "700"}) as pod:
        check(pod.shell(), 3, 700)


def test_limits_need_more_than_the_annotations(stack):
    limits = {"resources": {"memory_limit_in_bytes": 600 * MIB, "cpu_quota": 200000, "cpu_period": 100000}}
    with stack.pod(annotations={VCPUS: "1", MEMORY: "128"}, linux=limits) as pod:
        check(pod.shell(), 2, 664)


def test_overhead(own_stack):
    """The daemon's is around the pod's limit in the guest and on the host, a RuntimeClass's around it on the host if it is more."""
    own_stack.daemon.service.stop()
    own_stack.start_daemon(vm={"overhead_mib": 128})
    limits, host = {"resources": {"memory_limit_in_bytes": 600 * MIB}}, []
    for overhead in (0, 100, 500):
        with own_stack.pod(linux={**limits, "overhead": {"memory_limit_in_bytes": overhead * MIB}}) as pod:
            check(pod.shell(), 1, 728)
            host.append(int(host_limit_file(pod).read_text()) // MIB)
    assert host == [host[0], host[0], host[0] + 500 - 128] and host[0] > 728


@pytest.mark.parametrize("annotation, value", [(VCPUS, "9"), (VCPUS, "0"), (VCPUS, "many"), (MEMORY, "99999999"), (MEMORY, "64"), (MEMORY, "512M"),
                                               ("io.magnetar.vm.kernel", "/etc/passwd")])
def test_nonsense(stack, annotation, value):
    with pytest.raises(CrictlError, match=annotation.replace(".", r"\.")):
        stack.new_pod(annotations={annotation: value})
    assert stack.pods() == []


def test_more_than_the_pods_cgroup_holds(stack):
    """It would start, and be killed for it later."""
    parent = f"/{stack.cgroup}/tight"
    with stack.pod(linux={"cgroup_parent": parent}) as pod:
        # While a pod is in it, the cgroup stays.
        host_limit_file(pod, above=1).write_text(str(900 * MIB))
        with pytest.raises(CrictlError, match="io.magnetar.vm.memory_mib: the pod's cgroup is limited to 900 MiB"):
            stack.new_pod(annotations={MEMORY: "700"}, linux={"cgroup_parent": parent})
        assert pod.shell().output("echo", "fine") == "fine\n"


def test_what_is_not_allowed(stack):
    with pytest.raises(CrictlError, match="io.magnetar.vm.vcpus: the daemon's configuration does not allow it"):
        stack.new_pod(handler=SIZED, annotations={VCPUS: "2"})
