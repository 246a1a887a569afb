"""A VM that is killed in the middle of each call of the Task API and of the Controller."""

import json
import os
import signal
import time

import pytest

from harness import protos
from harness.controller import Controller
from harness.cri import Cri
from harness.taskapi import TaskApi
from harness.tasks import Tasks
from harness.vmdeath import ANSWER_SECONDS, answer, finish, kill, left

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

SLEEP = {"args": ["/bin/sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
MEMORY = {"memory": {"limit": 64 << 20}}


@pytest.fixture
def before(own_stack):
    """The host with what stays of a first pod: connections, mostly."""
    with own_stack.pod() as earlier:
        earlier.shell()
    return own_stack.snapshot()


def task_calls(pod):
    """(method, its fields, given a TaskApi) of the whole service, with what each needs."""
    created, running = pod.create("/bin/sleep", "infinity").id, pod.shell().id
    with TaskApi(pod) as task:
        for exec_id, begin in {"e1": False, "e2": True}.items():
            task.call("Exec", id=running, exec_id=exec_id, terminal=True, spec=task.spec("Process", {**SLEEP, "terminal": True}))
            if begin:
                task.call("Start", id=running, exec_id=exec_id)
    return {
        "State": lambda task: {"id": running},
        "Create": lambda task: {"id": created},
        "Start": lambda task: {"id": running, "exec_id": "e1"},
        "Delete": lambda task: {"id": running, "exec_id": "e1"},
        "Pids": lambda task: {"id": running},
        "Pause": lambda task: {"id": running},
        "Resume": lambda task: {"id": running},
        "Checkpoint": lambda task: {"id": running, "path": "/x"},
        "Kill": lambda task: {"id": running, "exec_id": "e2", "signal": 9},
        "Exec": lambda task: {"id": running, "exec_id": "e3", "spec": task.spec("Process", SLEEP)},
        "ResizePty": lambda task: {"id": running, "exec_id": "e2", "width": 80, "height": 24},
        "CloseIO": lambda task: {"id": running, "exec_id": "e2", "stdin": True},
        "Update": lambda task: {"id": running, "resources": task.spec("LinuxResources", MEMORY)},
        "Wait": lambda task: {"id": running, "exec_id": "e2"},
        "Stats": lambda task: {"id": running},
        "Connect": lambda task: {"id": running},
        "Shutdown": lambda task: {"id": running},
    }


def test_straight_to_the_guest(own_stack, before):
    """Nobody is left who could answer with a code: the connection ends, which containerd takes for just that."""
    pod = own_stack.new_pod()
    calls = task_calls(pod)
    connections = {method: TaskApi(pod, timeout=120) for method in calls}
    # A call that the guest has begun, beside those that do not reach it.
    begun = TaskApi(pod, timeout=120)
    begun.send("Wait", begun.request("Wait", id=calls["Wait"](begun)["id"]).SerializeToString())
    assert begun.call("State", id=calls["State"](begun)["id"]).pid == pod.vmm()
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    for method, connection in connections.items():
        connection.send(method, connection.request(method, **calls[method](connection)).SerializeToString())
    connections["Wait, begun"] = begun
    killed = kill(vmm)
    for method, connection in connections.items():
        with connection:
            connection.settimeout(left(killed))
            try:
                connection.receive()
            except ConnectionError:
                continue
            except TimeoutError:
                raise AssertionError(f"{method} is not answered {ANSWER_SECONDS} s after the VM's death") from None
        raise AssertionError(f"{method} succeeded")
    finish(own_stack, pod, before)


# What containerd looks for first (core/runtime/v2/process.go and shim.go of 2.1), and does not find without a connection.
LOOKED_FOR = {"Get", "Get of an exec", "Start", "DeleteProcess", "Kill of an exec", "ResizePty", "CloseIO", "Wait for an exec"}


def test_through_containerd(own_stack, before):
    """As ctr and Docker call it."""
    tasks = Tasks(own_stack.containerd.socket)
    pod = own_stack.new_pod()
    running, deleted = pod.shell().id, pod.shell().id
    execs = {name: {"container_id": running, "exec_id": name} for name in ("added", "running", "new")}
    for name in ("added", "running"):
        tasks.call("Exec", terminal=True, spec=tasks.spec("Process", {**SLEEP, "terminal": True}), **execs[name])
    tasks.call("Start", **execs["running"])
    task = {"container_id": running}
    calls = {
        "Get": ("Get", task),
        "Get of an exec": ("Get", execs["running"]),
        "Start": ("Start", execs["added"]),
        "Delete": ("Delete", {"container_id": deleted}),
        "DeleteProcess": ("DeleteProcess", execs["added"]),
        "Kill": ("Kill", {**task, "signal": 9}),
        "Kill of an exec": ("Kill", {**execs["running"], "signal": 9}),
        "Exec": ("Exec", {**execs["new"], "spec": tasks.spec("Process", SLEEP)}),
        "ResizePty": ("ResizePty", {**execs["running"], "width": 80, "height": 24}),
        "CloseIO": ("CloseIO", {**execs["running"], "stdin": True}),
        "Pause": ("Pause", task),
        "Resume": ("Resume", task),
        "ListPids": ("ListPids", task),
        "Checkpoint": ("Checkpoint", task),
        "Update": ("Update", {**task, "resources": tasks.spec("LinuxResources", MEMORY)}),
        "Metrics": ("Metrics", {"filters": [f"id=={running}"]}),
        "Wait": ("Wait", task),
        "Wait for an exec": ("Wait", execs["running"]),
    }
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    under_way = {name: tasks.future(method, **fields) for name, (method, fields) in calls.items()}
    tasks.arrived()
    assert not [name for name, call in under_way.items() if call.done()]
    killed = kill(vmm)
    answers = {name: answer(name, call, killed) for name, call in under_way.items()}
    # It leaves out whom it cannot ask.
    assert answers.pop("Metrics") == ("OK", "") and not under_way["Metrics"].result().metrics
    for name, (code, message) in answers.items():
        if name in LOOKED_FOR:
            assert code == "NOT_FOUND", (name, code, message)
        else:
            assert code == "UNKNOWN" and message.endswith("ttrpc: closed"), (name, code, message)
    tasks.close()
    finish(own_stack, pod, before)


def update(controller, pod, mib):
    """Controller.Update as containerd 2.3 sends it, under way."""
    value = json.dumps({"Overhead": None, "Resources": {"memory_limit_in_bytes": mib << 20}}).encode()
    sandbox = protos.load("containerd/types")[0].Sandbox(sandbox_id=pod.id)
    sandbox.extensions["updated-resources"].CopyFrom(controller.any("io.containerd.cri.v1/UpdatedResources", value))
    return controller.future("Update", timeout=120, sandbox_id=pod.id, sandbox=sandbox, fields=["extensions"])


def test_of_the_controller(own_stack, before):
    """What the host knows is answered while the guest stands still; what waits for the guest or its end, when it ends."""
    controller = Controller(own_stack.daemon.socket)
    pod = own_stack.new_pod()
    pod.shell()
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    waiting = {"Update": update(controller, pod, 800), "Wait": controller.future("Wait", timeout=120, sandbox_id=pod.id)}
    assert controller.call("Status", 5, sandbox_id=pod.id, verbose=True).state == "SANDBOX_READY"
    assert controller.call("Metrics", 5, sandbox_id=pod.id).metrics.id == pod.id
    assert controller.call("Platform", 5, sandbox_id=pod.id).platform.os == "linux"
    assert not [name for name, call in waiting.items() if call.done()]
    asked = time.time()
    killed = kill(vmm)
    known = time.time()
    assert answer("Wait", waiting["Wait"], killed) == ("OK", "")
    ended = waiting["Wait"].result()
    assert ended.exit_status == 128 + signal.SIGKILL
    assert asked <= ended.exited_at.seconds + ended.exited_at.nanos / 1e9 <= known + 1
    code, message = answer("Update", waiting["Update"], killed)
    assert code == "UNAVAILABLE" and message, (code, message)
    # What is asked now finds it dead, and that does not fail.
    assert controller.call("Status", 5, sandbox_id=pod.id, verbose=True).state == "SANDBOX_NOTREADY"
    assert controller.call("Metrics", 5, sandbox_id=pod.id).metrics.id == pod.id
    update(controller, pod, 900).result(ANSWER_SECONDS)
    assert controller.call("Wait", 5, sandbox_id=pod.id).exited_at == ended.exited_at
    controller.close()
    finish(own_stack, pod, before)


def test_a_pod_that_is_resized(newest_stack):
    """UpdatePodSandboxResources, which is Controller.Update since containerd 2.3."""
    before = newest_stack.snapshot()
    cri = Cri(newest_stack.containerd.socket)
    pod = newest_stack.new_pod()
    pod.shell()
    vmm = pod.vmm()
    os.kill(vmm, signal.SIGSTOP)
    call = cri.future("UpdatePodSandboxResources", pod_sandbox_id=pod.id, resources={"memory_limit_in_bytes": 800 << 20})
    cri.call("ListPodSandbox")
    assert not call.done()
    code, message = answer("UpdatePodSandboxResources", call, kill(vmm))
    assert code == "UNAVAILABLE" and message, (code, message)
    cri.close()
    finish(newest_stack, pod, before)


def test_a_container_that_is_stopped_while_it_is_paused(own_stack, before):
    """It waits for what the container, which stands still, makes of its first signal."""
    cri, tasks = Cri(own_stack.containerd.socket), Tasks(own_stack.containerd.socket)
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 1; done")
    container.wait_log("ready")
    tasks.call("Pause", container_id=container.id)
    stop = cri.future("StopContainer", container_id=container.id, timeout=60)
    cri.call("ListPodSandbox")
    assert not stop.done()
    # The signal may just have been on its way.
    assert answer("StopContainer", stop, kill(pod.vmm()))[0] in ("OK", "UNKNOWN")
    assert container.wait_exit() == 255
    cri.close()
    tasks.close()
    finish(own_stack, pod, before)
