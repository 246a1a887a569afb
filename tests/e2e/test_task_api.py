"""Nonsense in each field of the Task API's calls, straight to the guest: the right code, a message that names the fault, no call
that hangs, and a container and guest that do not mind."""

import grpc
import pytest

from harness.taskapi import TaskApi, TaskError
from harness.tasks import Tasks
from stack.services import wait_until

pytestmark = pytest.mark.vm

IDS = ["", "/", "a/b", "..", "../x", "a\nb", "-a", "x" * 200, "ä"]
UNKNOWN = ["", "unknown", "../etc", "x" * 5000]
BY_ID = ("State", "Start", "Delete", "Pids", "Pause", "Resume", "Kill", "Exec", "ResizePty", "CloseIO", "Update", "Wait", "Stats")
BY_EXEC = ("State", "Start", "Delete", "Kill", "ResizePty", "CloseIO", "Wait")
PROCESS = {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}


@pytest.fixture
def container(pod):
    container = pod.shell()
    yield container
    assert container.output("echo", "fine") == "fine\n"


@pytest.fixture
def task(pod):
    with TaskApi(pod) as task:
        yield task


def test_a_well_formed_exec(task, container):
    """What the others break: the tests themselves work."""
    task.call("Exec", id=container.id, exec_id="e1", spec=task.spec("Process", PROCESS))
    assert task.call("Start", id=container.id, exec_id="e1").pid
    assert task.call("Wait", id=container.id, exec_id="e1").exit_status == 0
    assert task.call("State", id=container.id, exec_id="e1").exec_id == "e1"
    task.call("Delete", id=container.id, exec_id="e1")


@pytest.mark.parametrize("method", BY_ID)
def test_unknown_containers_and_processes(task, container, method):
    for bad in UNKNOWN:
        error = task.error(method, id=bad)
        assert error.code == "NOT_FOUND" and len(error.message) < 300, (bad[:20], error)
    if method in BY_EXEC:
        for bad in UNKNOWN[1:]:
            error = task.error(method, id=container.id, exec_id=bad)
            assert error.code == "NOT_FOUND" and len(error.message) < 300, (bad[:20], error)


@pytest.mark.parametrize("method", [*BY_ID, "Create", "Checkpoint", "Connect", "Shutdown"])
def test_requests_that_are_none(task, container, method):
    for payload in (b"\xff", b"\x0a\x05ab", b"\x0a" * 100, bytes(range(256)) * 40):
        with pytest.raises(TaskError) as error:
            task.raw(method, payload)
        assert error.value.code == "INVALID_ARGUMENT", error.value


def test_unknown_methods(task, container):
    for service, method in ((("containerd.task.v3.Task", "Nonsense"), ("containerd.task.v2.Task", "State"), ("", ""))):
        with pytest.raises(TaskError) as error:
            task.raw(method, b"", service)
        assert error.value.code == "UNIMPLEMENTED", error.value


@pytest.mark.parametrize("bad", IDS)
def test_ids_of_new_containers_and_processes(task, container, bad):
    assert task.error("Create", id=bad).code == "INVALID_ARGUMENT"
    error = task.error("Exec", id=container.id, exec_id=bad, spec=task.spec("Process", PROCESS))
    assert error.code == "INVALID_ARGUMENT" and "exec_id" in error.message, error


# Of processes, what is refused at once, and what crun refuses.
SPECS = {
    "none": (b"", "INVALID_ARGUMENT"),
    "text": (b"nonsense", "INVALID_ARGUMENT"),
    "cut": (b'{"args": ["/bin/true"', "INVALID_ARGUMENT"),
    "list": ([], "INVALID_ARGUMENT"),
    "number": (7, "INVALID_ARGUMENT"),
    "deep": (b"[" * 100_000, "INVALID_ARGUMENT"),
    "binary": (bytes(range(256)), "INVALID_ARGUMENT"),
    "empty": ({}, "UNKNOWN"),
    "no program": ({**PROCESS, "args": []}, "UNKNOWN"),
    "args are text": ({**PROCESS, "args": "true"}, "UNKNOWN"),
    "args are numbers": ({**PROCESS, "args": [1, 2]}, "UNKNOWN"),
    "an empty name": ({**PROCESS, "args": [""]}, "UNKNOWN"),
    "missing program": ({**PROCESS, "args": ["/no-such-program"]}, "UNKNOWN"),
    "a folder": ({**PROCESS, "args": ["/bin"]}, "UNKNOWN"),
    "missing cwd": ({**PROCESS, "cwd": "/no-such-folder/x/y"}, "UNKNOWN"),
    "limit": ({**PROCESS, "rlimits": [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]}, "UNKNOWN"),
}


@pytest.mark.parametrize("name", SPECS)
def test_processes_that_cannot_be(task, container, name):
    spec, code = SPECS[name]
    identity = {"id": container.id, "exec_id": "nonsense"}
    if code == "INVALID_ARGUMENT":
        error = task.error("Exec", **identity, spec=task.spec("Process", spec))
        assert error.code == code and error.message, error
        assert task.error("State", **identity).code == "NOT_FOUND"
        return
    task.call("Exec", **identity, spec=task.spec("Process", spec))
    error = task.error("Start", **identity)
    assert error.code == code and error.message.startswith("crun exec: "), error
    # Its end is told like that of any other.
    assert task.call("Wait", **identity).exit_status == 255
    assert task.call("State", **identity).exit_status == 255
    assert task.call("Delete", **identity).exit_status == 255


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("uri", ["nonsense", "file:///etc/passwd", "binary:///bin/sh?a=b", "/run/fifo", "ttrpc+hvsock:///x:1024", "\x00",
                                 "ttrpc+hvsock:///x:1024?streaming_id=", "ttrpc+hvsock:///x:1024?streaming_id=../../x-stdout", "?" * 5000])
def test_streams_that_are_none(task, container, stream, uri):
    error = task.error("Exec", id=container.id, exec_id="streams", spec=task.spec("Process", PROCESS), **{stream: uri})
    assert error.code in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION") and error.message, error
    assert task.error("State", id=container.id, exec_id="streams").code == "NOT_FOUND"


def test_processes_out_of_turn(task, container):
    identity = {"id": container.id, "exec_id": "turns"}
    assert task.error("Start", id=container.id).code == "FAILED_PRECONDITION"
    assert task.error("Delete", id=container.id).code == "FAILED_PRECONDITION"
    assert task.error("Resume", id=container.id).code == "FAILED_PRECONDITION"
    assert task.error("Create", id=container.id).code == "ALREADY_EXISTS"
    refused = task.error("Checkpoint", id=container.id, path="/x")
    assert refused.code == "UNIMPLEMENTED" and "checkpoint: the files of a checkpoint would have to leave the VM" in refused.message, refused
    process = task.spec("Process", {**PROCESS, "args": ["/bin/sleep", "1000"]})
    task.call("Exec", **identity, spec=process)
    assert task.error("Exec", **identity, spec=process).code == "ALREADY_EXISTS"
    assert task.error("Kill", **identity, signal=9).code == "FAILED_PRECONDITION"
    task.call("Start", **identity)
    assert task.error("Start", **identity).code == "FAILED_PRECONDITION"
    assert task.error("Delete", **identity).code == "FAILED_PRECONDITION"
    # As with containerd's own shim, nothing that has no terminal minds.
    task.call("ResizePty", **identity, width=80, height=24)
    for signal in (65, 1000, 2**31, 2**32 - 1):
        for everything in (False, True):
            error = task.error("Kill", **identity, signal=signal, all=everything)
            assert error.code == "INVALID_ARGUMENT" and "signal" in error.message, error
            error = task.error("Kill", id=container.id, signal=signal, all=everything)
            assert error.code == "INVALID_ARGUMENT" and "signal" in error.message, error
    task.call("Kill", **identity, signal=0)
    task.call("Pause", id=container.id)
    assert task.error("Pause", id=container.id).code == "FAILED_PRECONDITION"
    assert task.error("Exec", id=container.id, exec_id="paused", spec=process).code == "FAILED_PRECONDITION"
    task.call("Resume", id=container.id)
    task.call("Kill", **identity, signal=9)
    assert task.call("Wait", **identity).exit_status == 137
    assert task.error("Kill", **identity, signal=9).code == "NOT_FOUND"
    assert task.error("Start", **identity).code == "FAILED_PRECONDITION"
    task.call("Delete", **identity)
    assert task.error("Delete", **identity).code == "NOT_FOUND"


def test_what_is_one_for_the_whole_pod(pod, task, container):
    """To the host its processes are the VM's one, and no task's Shutdown ends what is the sandbox's."""
    container.output("sh", "-c", "sleep 1000 > /dev/null 2>&1 &")
    assert [process.pid for process in task.call("Pids", id=container.id).processes] == [pod.vmm()]
    assert task.call("Connect", id=container.id).task_pid == pod.vmm()
    task.call("Shutdown", id=container.id)
    task.call("Shutdown", id=container.id, now=True)
    assert task.call("State", id=container.id).pid == pod.vmm()


def test_through_containerds_tasks(stack, pod, container):
    """As `ctr tasks checkpoint` and `ctr tasks ps` call it."""
    tasks = Tasks(stack.containerd.socket)
    try:
        with pytest.raises(grpc.RpcError) as error:
            tasks.call("Checkpoint", container_id=container.id)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED and "would have to leave the VM" in error.value.details(), error.value
        assert [process.pid for process in tasks.call("ListPids", container_id=container.id).processes] == [pod.vmm()]
    finally:
        tasks.close()


def test_a_paused_container_that_is_killed(pod, task):
    container = pod.shell()
    task.call("Pause", id=container.id)
    task.call("Kill", id=container.id, signal=9)
    assert task.call("Wait", id=container.id).exit_status == 137
    errors = [task.error(method, id=container.id) for method in ("Resume", "Pause")]
    # As soon as containerd knows of its end, the guest forgets it.
    assert all(error.code in ("FAILED_PRECONDITION", "NOT_FOUND") for error in errors), errors
    assert container.wait_exit() == 137


def test_a_signal_to_all(pod, task):
    # The first lives on: with it the second would end, whether it has said its word or not.
    rest = "while :; do sleep 1; done"
    container = pod.run("/bin/sh", "-c", f"trap 'echo first' TERM; sh -c \"trap 'echo second' TERM; echo ready; {rest}\" & {rest}")
    container.wait_log("ready")
    task.call("Kill", id=container.id, signal=15, all=True)
    container.wait_log("first")
    container.wait_log("second")


def test_sizes_of_a_terminal(task, container):
    identity = {"id": container.id, "exec_id": "terminal"}
    task.call("Exec", **identity, terminal=True, spec=task.spec("Process", {**PROCESS, "terminal": True, "args": ["/bin/sleep", "1000"]}))
    for size in (0, 1, 65535, 65536, 2**32 - 1):
        task.call("ResizePty", **identity, width=size, height=size)
    task.call("Start", **identity)
    for size in (0, 1, 65535, 65536, 2**32 - 1):
        task.call("ResizePty", **identity, width=size, height=size)
    task.call("Kill", **identity, signal=9)
    task.call("Wait", **identity)
    task.call("ResizePty", **identity, width=80, height=24)
    task.call("Delete", **identity)


RESOURCES = {
    "text": b"nonsense",
    "list": [],
    "cpu is text": {"cpu": "much"},
    "memory is a list": {"memory": [1]},
    "hugepages": {"hugepageLimits": "x"},
    "unified": {"unified": [1]},
    "unified file": {"unified": {"memory.nonsense": "1"}},
    "unified value": {"unified": {"memory.max": "lots"}},
    "quota": {"cpu": {"quota": 1, "period": 1}},
    "period": {"cpu": {"quota": 1000, "period": 2**60}},
}


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_that_are_none(task, container, name):
    error = task.error("Update", id=container.id, resources=task.spec("LinuxResources", RESOURCES[name]))
    assert error.code in ("INVALID_ARGUMENT", "UNKNOWN") and error.message, error


def test_a_container_that_cannot_be_created(pod, task):
    """Of a container that containerd knows and has not started yet. After all of it, it starts."""
    container = pod.create("/bin/sleep", "infinity")
    nobody = task.error("Create", id="nobody")
    assert nobody.code == "NOT_FOUND" and "nobody" in nobody.message, nobody
    assert task.error("Create", id=container.id, checkpoint="/x").code == "FAILED_PRECONDITION"
    for uri in ("nonsense", "file:///etc/passwd", "ttrpc+hvsock:///x:1024?streaming_id="):
        error = task.error("Create", id=container.id, stdout=uri)
        assert error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND") and error.message, (uri, error)
        assert task.error("State", id=container.id).code == "NOT_FOUND"
    container.start()
    assert container.output("echo", "started") == "started\n"


def test_a_container_of_another_pod(stack, pod, task):
    with stack.pod() as other:
        container = other.create("/bin/sleep", "infinity")
        error = task.error("Create", id=container.id)
        assert error.code in ("NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION") and container.id in error.message, error
        assert container.start().output("echo", "started") == "started\n"


def test_connections_that_say_nonsense(pod, container):
    """They disturb no other."""
    for data in (b"\xff" * 1000, b"\0" * 10_000, b"GET / HTTP/1.1\r\n\r\n", b"\x7f\xff\xff\xff\0\0\0\1\1\0"):
        with TaskApi(pod) as nonsense, TaskApi(pod) as task:
            nonsense.send_bytes(data)
            assert task.call("State", id=container.id).id == container.id


def test_a_caller_that_goes_away(pod, container):
    """What it began runs to its end, and is then nobody's."""
    with TaskApi(pod) as task:
        task.call("Exec", id=container.id, exec_id="left", spec=task.spec("Process", PROCESS))
        task.send("Wait", task.request("Wait", id=container.id, exec_id="left").SerializeToString())
    with TaskApi(pod) as task:

        def gone():
            try:
                task.call("State", id=container.id, exec_id="left")
            except TaskError as error:
                return error.code == "NOT_FOUND"
            return False

        wait_until(gone, 30, "the exec stays")
