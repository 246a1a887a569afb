"""Containers that take what they can get: the pod, its other containers and those who ask for their end do not mind."""

import subprocess
import time

import grpc
import pytest

from harness.cri import Cri
from harness.taskapi import TaskApi
from harness.terminal import Terminal
from stack.services import wait_until

# How long the end of a container may take whose guest is busy, on an emulated processor.
STOP_SECONDS = 60


@pytest.fixture
def cri(stack):
    cri = Cri(stack.containerd.socket)
    yield cri
    cri.close()


def exec_sync(cri, container, script, timeout=60):
    return cri.call("ExecSync", container_id=container.id, cmd=["/bin/sh", "-c", script], timeout=timeout)


def ends(container, code=137):
    started = time.monotonic()
    container.stop(0)
    assert time.monotonic() - started < STOP_SECONDS
    assert container.wait_exit() == code


def test_a_hundred_execs_at_once(pod, cri):
    container = pod.shell()
    under_way = [cri.future("ExecSync", container_id=container.id, timeout=110,
                            cmd=["/bin/sh", "-c", f"echo out {number}; echo err {number} >&2; exit {number}"]) for number in range(100)]
    for number, call in enumerate(under_way):
        answer = call.result()
        assert (answer.exit_code, answer.stdout, answer.stderr) == (number, b"out %d\n" % number, b"err %d\n" % number)


@pytest.mark.vm
def test_a_fork_bomb_within_a_limit(pod, cri):
    # What is forked stays; a shell that cannot fork ends, and the first process forks no more.
    script = "b() { sleep 1000 & b & b; }; mkfifo /go; echo ready; read _ < /go; b & exec sleep infinity"
    bomb, other = pod.run("/bin/sh", "-c", script), pod.shell()
    bomb.wait_log("ready")
    with TaskApi(pod) as task:
        task.call("Update", id=bomb.id, resources=task.spec("LinuxResources", {"pids": {"limit": 40}}))
    bomb.exec("sh", "-c", "echo > /go")
    bomb.wait_log("fork")
    assert exec_sync(cri, other, "echo fine").stdout == b"fine\n"
    # The last shell that ended has left room for one process, and for no three: that is told.
    wait_until(lambda: exec_sync_fails(cri, bomb), 30, "40 processes are no limit")
    ends(bomb)
    assert exec_sync(cri, other, "echo fine").stdout == b"fine\n"


def exec_sync_fails(cri, container):
    try:
        return exec_sync(cri, container, "cat /dev/null | cat | cat").exit_code != 0
    except grpc.RpcError as error:
        assert error.details()
        return True


def test_a_fork_bomb_within_the_memory(pod, cri):
    bomb, other = pod.run("/bin/sh", "-c", "b() { b | b & }; echo begins; while :; do b; done",
                          linux={"resources": {"memory_limit_in_bytes": 32 << 20}}), pod.shell()
    bomb.wait_log("begins")
    assert exec_sync(cri, other, "echo fine").stdout == b"fine\n"
    if bomb.status()["state"] == "CONTAINER_RUNNING":
        bomb.stop(0)
    assert bomb.wait_exit() != 0
    assert exec_sync(cri, other, "echo fine").stdout == b"fine\n"


@pytest.mark.vm
def test_a_full_root_disk(stack, cri):
    """Of the snapshotter whose root file systems have a size of their own."""
    with stack.pod(handler=stack.handler_for("blockfile")) as pod:
        greedy, other = pod.shell(), pod.shell()
        answer = exec_sync(cri, greedy, "cat /dev/zero > /full")
        assert answer.exit_code == 1 and b"No space left on device" in answer.stderr
        # A few blocks may come free again once the journal has been written.
        assert exec_sync(cri, greedy, "head -c 4000000 /dev/zero > /more").exit_code != 0
        assert exec_sync(cri, other, "echo fine > /file && cat /file").stdout == b"fine\n"
        assert exec_sync(cri, greedy, "rm /full && echo again > /file && cat /file").stdout == b"again\n"
        ends(greedy)


def test_a_full_volume(pod, cri, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(tmp_path)], check=True)
    try:
        container = pod.shell(mounts=[{"host_path": str(tmp_path), "container_path": "/small"}])
        answer = exec_sync(cri, container, "cat /dev/zero > /small/full")
        assert answer.exit_code == 1 and b"No space left on device" in answer.stderr
        assert exec_sync(cri, container, "rm /small/full").exit_code == 0
        # The file server holds what is deleted until it hears that the guest does not any more.
        writes = lambda: exec_sync(cri, container, "echo again > /small/file && cat /small/file").stdout  # noqa: E731
        wait_until(lambda: writes() == b"again\n", 30, "nothing can be written")
        ends(container)
        container.remove()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_flooded_terminal(pod, cri):
    """Of a container, and of an exec whose client reads no more."""
    flood = pod.run("/bin/sh", "-c", "while :; do echo flood; done", tty=True)
    flood.wait_log("flood")
    with Terminal(pod.stack.crictl.command("attach", "-it", flood.id)) as attached:
        attached.expect("flood")
        with Terminal(pod.stack.crictl.command("exec", "-it", flood.id, "sh", "-c", "while :; do echo more; done")) as client:
            client.expect("more")
            assert exec_sync(cri, flood, "echo fine").stdout == b"fine\n"
            # The interrupt comes through whatever is on its way the other way.
            client.send("\x03")
            client.expect("^C", timeout=60)
            assert client.wait(60) != 0
        ends(flood)


def test_a_closed_output(pod, cri):
    """The end of its output is not its end."""
    container = pod.run("/bin/sh", "-c", "mkfifo /go; echo last words; exec >&- 2>&-; read _ < /go; exit 6")
    container.wait_log("last words")
    assert exec_sync(cri, container, "echo fine; ls -l /proc/1/fd | grep -c pipe").stdout.startswith(b"fine\n")
    assert container.status()["state"] == "CONTAINER_RUNNING"
    cri.call("ReopenContainerLog", container_id=container.id)
    # Which ends with the container, maybe before it has ended itself.
    container.exec("sh", "-c", "echo > /go", check=False)
    assert container.wait_exit() == 6
    assert container.logs().stdout == "last words\n"


def test_grace_of_nothing(pod):
    """Nobody waits, whatever the process does with TERM."""
    ready = "trap 'sleep 1000' TERM; trap '' INT HUP QUIT; echo ready; while :; do sleep 1; done"
    container = pod.run("/bin/sh", "-c", ready)
    container.wait_log("ready")
    started = time.monotonic()
    container.stop(0)
    assert time.monotonic() - started < 10
    assert container.wait_exit() == 137


def outcome(cri, method, **fields):
    try:
        cri.call(method, **fields)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_calls_that_come_too_late_end_as_with_runc(stack, cri):
    """With the same code, and the same words but for the name."""
    if stack.handler == "runc":
        pytest.skip("it is compared with runc")
    told = {}
    for handler in (stack.handler, "runc"):
        with stack.pod(handler=handler) as pod:
            container = pod.shell()
            container.stop(0)
            created = pod.create("/bin/true")
            answers = {
                "exec": outcome(cri, "ExecSync", container_id=container.id, cmd=["/bin/true"]),
                "exec before the start": outcome(cri, "ExecSync", container_id=created.id, cmd=["/bin/true"]),
                "update": outcome(cri, "UpdateContainerResources", container_id=container.id, linux={"memory_limit_in_bytes": 64 << 20}),
                "start": outcome(cri, "StartContainer", container_id=container.id),
                "log": outcome(cri, "ReopenContainerLog", container_id=container.id),
            }
            told[handler] = {name: (code, details.replace(container.id, "ID").replace(created.id, "CREATED"))
                             for name, (code, details) in answers.items()}
    assert told[stack.handler] == told["runc"]
    # Of a stopped container's limits containerd only makes a note.
    assert {name for name, (code, _) in told["runc"].items() if code == grpc.StatusCode.OK} == {"update"}


def test_a_memory_limit_below_what_is_in_use(pod, cri):
    """Refused, or the container is killed for it: never a limit that does not hold, or a pod that suffers."""
    container = pod.run("/bin/sh", "-c", "head -c 40000000 /dev/zero | tail -c 39000000 | (sleep 1000; cat)",
                        linux={"resources": {"memory_limit_in_bytes": 100 << 20}})
    other = pod.shell()
    counted = "cat /sys/fs/cgroup/memory.current 2>/dev/null || cat /sys/fs/cgroup/memory/memory.usage_in_bytes"
    wait_until(lambda: int(exec_sync(cri, container, counted).stdout) > 36 << 20, 60, "nothing is in use")
    try:
        cri.call("UpdateContainerResources", container_id=container.id, linux={"memory_limit_in_bytes": 12 << 20})
    except grpc.RpcError as error:
        assert "memory" in error.details() or "busy" in error.details(), error
    else:
        def holds():
            try:
                return int(exec_sync(cri, container, counted).stdout) <= 12 << 20
            except grpc.RpcError:
                return container.status()["state"] == "CONTAINER_EXITED"

        wait_until(holds, 60, "the limit does not hold")
    assert exec_sync(cri, other, "echo fine").stdout == b"fine\n"


def test_calls_that_race_an_end(pod, cri):
    """None of them hangs, whichever comes first, and the end is what it was."""
    for turn in range(8):
        container = pod.run("/bin/sh", "-c", f"until [ -e /go ]; do :; done; exit {turn}")
        name = {"container_id": container.id}
        batch = {
            "ExecSync": {**name, "cmd": ["/bin/true"], "timeout": 50},
            "ContainerStats": name,
            "UpdateContainerResources": {**name, "linux": {"cpu_shares": 512}},
            "ContainerStatus": name,
            "ReopenContainerLog": name,
        }
        under_way = [("ExecSync", cri.future("ExecSync", deadline=60, **name, cmd=["/bin/touch", "/go"]))]
        for _ in range(4):
            under_way += [(method, cri.future(method, deadline=60, **fields)) for method, fields in batch.items()]
            # Its answer says that the others have arrived.
            cri.call("ContainerStatus", **name)
        for method, call in under_way:
            error = call.exception()
            late = error and error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)
            assert not late, (method, error)
        assert container.wait_exit() == turn
        container.remove()
