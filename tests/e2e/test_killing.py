"""Killing things: what a container notices of the death of its host's programs, and what is left."""

import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import grpc
import pytest

from harness import crilog
from harness.controller import Controller
from stack.crictl import CrictlError
from stack.services import start_time, wait_dead, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def processes(stack, pod, name):
    """Pids of a sandbox's processes whose program is `name`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.path.basename(arguments[0]).decode(errors="replace").startswith(name) and pod.id.encode() in b" ".join(arguments):
            found.append(int(entry.name))
    return found


def vmm_pid(stack, pod):
    pids = processes(stack, pod, "qemu-system")
    assert len(pids) == 1, pids
    return pids[0]


@pytest.fixture
def before(own_stack):
    # Without descriptors: they are of a daemon that these tests end.
    return own_stack.snapshot()[0], None, None


def finish(stack, pod, before):
    """The pod goes away cleanly and a new one works."""
    pod.stop()
    pod.remove()
    with stack.pod() as fresh:
        assert fresh.shell().output("echo", "works") == "works\n"
    stack.check_unchanged(before)


COUNTING = "i=0; while [ $i -lt {n} ]; do i=$((i + 1)); echo line $i; done; echo last"


def counted(n):
    return "".join(f"line {i}\n" for i in range(1, n + 1)) + "last\n"


def test_daemon_killed_amid_logs_and_exec(own_stack, before, tmp_path):
    """Not a byte is lost, new execs work while it is down, and after its restart the pod goes away cleanly."""
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "sleep 1; " + COUNTING.format(n=60000) + "; sleep infinity")
    # To a file: a pipe that nobody reads would hold the follower back.
    followed = tmp_path / "followed"
    with followed.open("wb") as out:
        follow = own_stack.crictl.popen("logs", "-f", container.id, stdout=out, stderr=subprocess.DEVNULL)
    execing = container.popen("sh", "-c", COUNTING.format(n=60000), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              bufsize=0)
    first = execing.stdout.read(50_000)
    container.wait_log("line 1000\n".encode())
    own_stack.daemon.service.kill()

    assert container.output("echo", "meanwhile") == "meanwhile\n"
    assert own_stack.crictl.run("exec", "-s", container.id, "cat", "/etc/passwd").stdout.startswith("root")
    out, err = execing.communicate(timeout=120)
    assert (first + out).decode() == counted(60000) and execing.returncode == 0, err
    container.wait_log("last", timeout=120)
    assert crilog.parse(container.raw_log())["stdout"].decode() == counted(60000)

    own_stack.start_daemon()
    assert pod.status()["state"] == "SANDBOX_READY"
    assert container.output("echo", "again") == "again\n"
    other = pod.shell()
    assert other.output("echo", "new") == "new\n"
    wait_until(lambda: b"last\n" in followed.read_bytes(), 30, "logs -f does not get to the end")
    follow.kill()
    follow.wait()
    assert followed.read_text() == counted(60000)
    finish(own_stack, pod, before)


def test_container_ends_while_the_daemon_is_down(own_stack, before):
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "read x; echo final; exit 9", stdin=True, stdin_once=True)
    other = pod.shell()
    own_stack.daemon.service.kill()
    own_stack.crictl.run("attach", "-i", container.id, stdin=b"go\n", check=False, timeout=60)
    assert container.wait_exit() == 9
    assert container.logs().stdout == "final\n"
    container.remove()
    own_stack.start_daemon()
    assert other.output("echo", "alive") == "alive\n"
    finish(own_stack, pod, before)


def test_daemon_terminated_finishes_waits(own_stack):
    """SIGTERM: every Wait ends with UNAVAILABLE, the VMs live, the exit code is 0."""
    with own_stack.pod() as pod:
        container = pod.shell()
        controller = Controller(own_stack.daemon.socket)
        result = {}

        def wait():
            try:
                result["answer"] = controller.call("Wait", sandbox_id=pod.id, timeout=60)
            except grpc.RpcError as error:
                result["code"] = error.code().name

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.5)
        assert own_stack.daemon.service.stop(timeout=20), "TERM was not enough"
        waiter.join(30)
        controller.close()
        assert result == {"code": "UNAVAILABLE"}
        assert container.output("echo", "alive") == "alive\n"
        own_stack.start_daemon()
        assert pod.status()["state"] == "SANDBOX_READY"


def test_daemon_binary_replaced_under_load(own_stack, before, tmp_path):
    """An upgrade: three restarts while containers print and are exec'ed into."""
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "sleep 1; " + COUNTING.format(n=40000) + "; sleep infinity")
    service = own_stack.daemon.service
    program = tmp_path / "vmm-sandboxer"
    for turn in range(3):
        service.stop()
        newer = tmp_path / f"new-{turn}"
        shutil.copy(own_stack.daemon.program("vmm-sandboxer"), newer)
        os.rename(newer, program)
        service.argv[0] = str(program)
        own_stack.start_daemon()
        assert container.output("echo", str(turn)) == f"{turn}\n"
    container.wait_log("last", timeout=180)
    assert crilog.parse(container.raw_log())["stdout"].decode() == counted(40000)
    finish(own_stack, pod, before)


def test_containerd_restarted(own_stack, before):
    """kill -9 of containerd: containers go on; their exit codes and new execs come afterwards."""
    pod = own_stack.new_pod()
    container = pod.shell()
    leaver = pod.run("/bin/sh", "-c", "read x; exit 42", stdin=True)
    ended = pod.run("/bin/sh", "-c", "exit 33")
    assert ended.wait_exit() == 33
    pid_before = vmm_pid(own_stack, pod)
    own_stack.containerd.service.kill()
    own_stack.containerd.service.start().wait_socket(own_stack.containerd.socket, 120)
    wait_until(lambda: own_stack.crictl.run("info", check=False).returncode == 0, 60, "CRI is not up")
    assert vmm_pid(own_stack, pod) == pid_before
    assert pod.status()["state"] == "SANDBOX_READY"
    assert container.output("echo", "again") == "again\n"
    assert ended.wait_exit() == 33
    leaver.exec("sh", "-c", "kill -9 -1; true", check=False)
    leaver.stop(0)
    assert leaver.wait_exit() == 137
    finish(own_stack, pod, before)


def test_both_restarted_in_either_order(own_stack, before):
    pod = own_stack.new_pod()
    container = pod.shell()
    for first, second in ((own_stack.daemon.service, own_stack.containerd.service),
                          (own_stack.containerd.service, own_stack.daemon.service)):
        first.kill()
        second.kill()
        own_stack.daemon.start()
        own_stack.containerd.service.start().wait_socket(own_stack.containerd.socket, 120)
        wait_until(lambda: own_stack.crictl.run("info", check=False).returncode == 0, 60, "CRI is not up")
        assert pod.status()["state"] == "SANDBOX_READY"
        assert container.output("echo", "again") == "again\n"
    finish(own_stack, pod, before)


@pytest.mark.parametrize("victim", ["qemu-system", "vmm-supervisor", "virtiofsd"])
def test_part_of_a_sandbox_killed(own_stack, before, victim):
    """VMM, supervisor and file server share one fate: the pod is dead at once, and removable."""
    pod = own_stack.new_pod()
    container = pod.shell()
    pids = processes(own_stack, pod, victim)
    assert pids, f"no {victim} of this sandbox"
    started = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: pod.status()["state"] == "SANDBOX_NOTREADY", 20, "the pod is still ready")
    assert container.wait_exit(20) in (255, 137)
    assert time.monotonic() - started < 20
    for name in ("qemu-system", "vmm-supervisor", "virtiofsd"):
        wait_until(lambda: not processes(own_stack, pod, name), 10, f"{name} lives on")
    finish(own_stack, pod, before)


def test_vm_killed_while_the_daemon_is_down(own_stack, before):
    pod = own_stack.new_pod()
    container = pod.shell()
    own_stack.daemon.service.kill()
    os.kill(vmm_pid(own_stack, pod), signal.SIGKILL)
    own_stack.start_daemon()
    wait_until(lambda: pod.status()["state"] == "SANDBOX_NOTREADY", 30, "the pod is still ready")
    assert container.wait_exit(30) in (255, 137)
    finish(own_stack, pod, before)


@pytest.mark.parametrize("daemon_at_hand", [True, False], ids=["daemon-up", "found-by-a-new-daemon"])
def test_hung_guest_is_killed(own_stack, before, daemon_at_hand):
    """A VMM that is stopped answers no heartbeat: the daemon ends it, and says so."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"heartbeat_seconds": 3}}
    own_stack.start_daemon()
    pod = own_stack.new_pod()
    container = pod.shell()
    hung = vmm_pid(own_stack, pod)
    if not daemon_at_hand:
        own_stack.daemon.service.kill()
    os.kill(hung, signal.SIGSTOP)
    if not daemon_at_hand:
        own_stack.start_daemon()
    assert wait_dead(hung, 60) or start_time(hung) is None
    wait_until(lambda: pod.status()["state"] == "SANDBOX_NOTREADY", 30, "the pod is still ready")
    assert container.wait_exit(30) in (255, 137)
    finish(own_stack, pod, before)


def test_paused_daemon_kills_nobody(own_stack):
    """Time in which the daemon did not run is no guest's fault."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"heartbeat_seconds": 2}}
    own_stack.start_daemon()
    with own_stack.pod() as pod:
        container = pod.shell()
        own_stack.daemon.service.signal(signal.SIGSTOP)
        time.sleep(10)
        own_stack.daemon.service.signal(signal.SIGCONT)
        time.sleep(5)
        assert container.output("echo", "alive") == "alive\n"
        assert pod.status()["state"] == "SANDBOX_READY"


def test_orphans_are_removed(own_stack, before):
    """A sandbox that containerd does not know goes after its grace time, and not while containerd is away."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"containerd": {"orphan_after_seconds": 5}}
    own_stack.start_daemon()
    controller = Controller(own_stack.daemon.socket)
    controller.call("Create", sandbox_id="orphan")
    controller.call("Start", sandbox_id="orphan")
    with own_stack.pod() as pod:
        def gone():
            try:
                controller.call("Status", sandbox_id="orphan")
            except grpc.RpcError as error:
                return error.code().name == "NOT_FOUND"
            return False

        wait_until(gone, 60, "the orphan lives on", interval=0.5)
        assert pod.status()["state"] == "SANDBOX_READY"
        own_stack.containerd.service.kill()
        time.sleep(12)
        assert controller.call("Status", sandbox_id=pod.id).state == "SANDBOX_READY"
        own_stack.containerd.service.start().wait_socket(own_stack.containerd.socket, 120)
        wait_until(lambda: own_stack.crictl.run("info", check=False).returncode == 0, 60, "CRI is not up")
    controller.close()
    own_stack.check_unchanged(before)


def test_pods_while_the_daemon_is_down(own_stack):
    own_stack.daemon.service.kill()
    with pytest.raises(CrictlError):
        own_stack.new_pod()
    own_stack.start_daemon()
    with own_stack.pod() as pod:
        assert pod.shell().output("echo", "works") == "works\n"


@pytest.mark.parametrize("missing", ["kernel", "initrd", "image"])
@pytest.mark.parametrize("how", ["absent", "garbage"])
def test_guest_files_missing_or_broken(own_stack, before, missing, how, tmp_path):
    path = tmp_path / "file"
    if how == "garbage":
        path.write_bytes(b"garbage" * 1000)
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {missing: str(path)}, "vm": {"start_timeout_seconds": 10}}
    try:
        own_stack.start_daemon()
    except Exception:  # noqa: BLE001 (a daemon that refuses to start says why)
        assert str(path) in own_stack.daemon.service.tail()
        return
    with pytest.raises(CrictlError) as failure:
        own_stack.new_pod()
    if how == "absent":
        assert str(path) in str(failure.value)
    own_stack.crictl.run("rmp", "--all", "--force", check=False)
    own_stack.check_unchanged(before)


@pytest.mark.parametrize("program", ["/nonexistent/qemu", "/bin/false"])
def test_vmm_missing_or_dying(own_stack, before, program):
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"vm": {"qemu_path": program, "accel": "tcg", "start_timeout_seconds": 10}}
    try:
        own_stack.start_daemon()
    except Exception:  # noqa: BLE001
        assert program in own_stack.daemon.service.tail()
        return
    started = time.monotonic()
    with pytest.raises(CrictlError):
        own_stack.new_pod()
    assert time.monotonic() - started < 9, "a VMM that ends is noticed, not waited for"
    own_stack.crictl.run("rmp", "--all", "--force", check=False)
    own_stack.check_unchanged(before)


def test_guest_that_never_answers(own_stack, before):
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"extra_cmdline": "rdinit=/nonexistent panic=0"}, "vm": {"start_timeout_seconds": 5}}
    own_stack.start_daemon()
    with pytest.raises(CrictlError, match="(?i)timeout|deadline|did not|not answer|ended|exited"):
        own_stack.new_pod()
    own_stack.crictl.run("rmp", "--all", "--force", check=False)
    own_stack.check_unchanged(before)


