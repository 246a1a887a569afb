"""A VM that is killed in the middle of a call: the caller is told soon, and nothing is left."""

import contextlib
import os
import signal
import subprocess

import pytest

from harness import netns
from harness.controller import Controller
from harness.cri import Cri
from harness.host import processes_of
from harness.vmdeath import ANSWER_SECONDS, answer, finish, kill, left, removed
from stack.services import wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

# Calls that end what has died anyway may succeed; so may those that only look, with what containerd knows itself, and an update, which is
# nothing for a container that has ended.
MAY_SUCCEED = {"UpdateContainerResources", "StopContainer", "StopContainer with grace", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
               "ListContainerStats", "ListPodSandboxStats", "PodSandboxStatus", "CreateContainer"}


@pytest.fixture
def before(own_stack):
    """The host alone: a daemon that has had no pod yet has fewer connections."""
    return own_stack.snapshot()[0], None, None


@pytest.fixture
def cri(own_stack):
    cri = Cri(own_stack.containerd.socket)
    yield cri
    cri.close()


def calls(cri, pod):
    """Each call, by what it is called here, under way with a container of its own."""
    created = pod.create("/bin/sleep", "infinity")
    names = ("ExecSync", "StopContainer", "StopContainer with grace", "RemoveContainer", "ContainerStats", "UpdateContainerResources")
    running = {name: pod.shell(name=name.lower().replace(" ", "-")).id for name in names}
    config = {"metadata": {"name": "late"}, "image": {"image": "magnetar.test/busybox:1"}, "command": ["/bin/true"], "log_path": "late.log"}
    return {
        "CreateContainer": lambda: cri.future("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config),
        "StartContainer": lambda: cri.future("StartContainer", container_id=created.id),
        "ExecSync": lambda: cri.future("ExecSync", container_id=running["ExecSync"], cmd=["/bin/true"]),
        "StopContainer": lambda: cri.future("StopContainer", container_id=running["StopContainer"], timeout=0),
        "StopContainer with grace": lambda: cri.future("StopContainer", container_id=running["StopContainer with grace"], timeout=60),
        "RemoveContainer": lambda: cri.future("RemoveContainer", container_id=running["RemoveContainer"]),
        "ContainerStats": lambda: cri.future("ContainerStats", container_id=running["ContainerStats"]),
        "UpdateContainerResources": lambda: cri.future("UpdateContainerResources", container_id=running["UpdateContainerResources"],
                                                       linux={"memory_limit_in_bytes": 64 << 20}),
        "ListContainerStats": lambda: cri.future("ListContainerStats"),
        "ListPodSandboxStats": lambda: cri.future("ListPodSandboxStats"),
        "PodSandboxStatus": lambda: cri.future("PodSandboxStatus", pod_sandbox_id=pod.id, verbose=True),
    }


def check(name, call, killed):
    """That a call has been answered in time, and how."""
    code, message = answer(name, call, killed)
    assert code != "OK" or name in MAY_SUCCEED, f"{name} succeeded"
    return f"{code}: {message}"


def test_in_the_middle_of_every_call(own_stack, cri):
    """The guest stands still, so that none of them is answered, until its VM dies under them all."""
    with own_stack.pod() as earlier:
        earlier.shell()
    before = own_stack.snapshot()
    pod = own_stack.new_pod()
    begin = calls(cri, pod)
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    under_way = {name: call() for name, call in begin.items()}
    # What comes later on the same connection is answered: they have all arrived.
    cri.call("ListPodSandbox")
    waiting = {name for name, call in under_way.items() if not call.done()}
    assert waiting >= {"StartContainer", "ExecSync", "StopContainer", "ContainerStats", "UpdateContainerResources"}, waiting
    killed = kill(vmm)
    answers = {name: check(name, call, killed) for name, call in under_way.items()}
    print(answers)
    finish(own_stack, pod, before)


def kill_the_new_one(stack):
    """When it was done: a VM that boots, as soon as it runs."""
    (record,) = wait_until(lambda: list(stack.daemon.state.glob("*/sandbox.json")), 60, "no sandbox is made", interval=0.01)
    (vmm,) = wait_until(lambda: processes_of("qemu-system", f"guest={record.parent.name}"), 60, "no VM is started", interval=0.01)
    return kill(vmm)


def test_in_the_middle_of_its_start(own_stack, before, cri):
    """The pod is not there, nor is anything of it, and the message says what has become of the VM."""
    call = cri.future("RunPodSandbox", config=own_stack.pod_config(), runtime_handler=own_stack.handler)
    code, message = answer("RunPodSandbox", call, kill_the_new_one(own_stack))
    assert code == "FAILED_PRECONDITION" and "VM ended: qemu: killed by SIGKILL" in message, (code, message)
    assert own_stack.pods() == []
    own_stack.check_unchanged(before)
    # Whoever asks again has one.
    with own_stack.pod() as pod:
        assert pod.shell().output("echo", "fine") == "fine\n"


def test_in_the_middle_of_the_controllers_start(own_stack, before):
    with contextlib.closing(Controller(own_stack.daemon.socket)) as controller:
        controller.call("Create", sandbox_id="short")
        call = controller.future("Start", timeout=120, sandbox_id="short")
        code, message = answer("Start", call, kill_the_new_one(own_stack))
        assert code == "FAILED_PRECONDITION" and "VM ended: qemu: killed by SIGKILL" in message, (code, message)
        assert controller.code("Status", sandbox_id="short")[0] == "NOT_FOUND"
    own_stack.check_unchanged(before)


@pytest.mark.parametrize("method", ["StopPodSandbox", "RemovePodSandbox"])
def test_in_the_middle_of_the_pods_end(own_stack, before, cri, method):
    pod = own_stack.new_pod()
    pod.shell()
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    call = cri.future(method, pod_sandbox_id=pod.id)
    cri.call("ListPodSandbox")
    check(method, call, kill(vmm))
    if method == "StopPodSandbox":
        pod.stop()
    removed(pod)
    own_stack.check_unchanged(before)


def test_in_the_middle_of_streams(own_stack, before):
    """exec, attach, logs -f and port-forward with data on their way."""
    pod = own_stack.new_pod()
    printer = pod.run("/bin/sh", "-c", "httpd -p 127.0.0.1:8080 -h /; while :; do echo line; done")
    crictl = own_stack.crictl
    pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    clients = {"exec": printer.popen("sh", "-c", "while :; do echo line; done", **pipe), "attach": crictl.popen("attach", printer.id, **pipe),
               "exec -i": printer.popen("cat", flags=["-i"], **{**pipe, "stdin": subprocess.PIPE})}
    for name in ("exec", "attach"):
        assert clients[name].stdout.read(1000)
    clients["exec -i"].stdin.write(b"x")
    assert clients["exec -i"].stdout.read(1) == b"x"
    with pod.port_forward(8080) as port:
        connection = netns.connect(own_stack.netns, "127.0.0.1", port)
        connection.sendall(b"GET /bin/busybox HTTP/1.0\r\n\r\n")
        assert connection.recv(1000)
        killed = kill(pod.vmm())
        with connection, contextlib.suppress(ConnectionError):
            connection.settimeout(ANSWER_SECONDS)
            while connection.recv(1 << 16):
                pass
    for name, client in clients.items():
        # With nobody who reads them they would stand still.
        client.communicate(timeout=left(killed))
    finish(own_stack, pod, before)
