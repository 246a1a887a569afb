"""Killing things: what a container notices of the death of its host's programs, and what is left."""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time

import grpc
import pytest

from harness import crilog
from harness.controller import Controller
from harness.host import FILE_SERVERS, processes_of
from stack.crictl import CrictlError
from stack.services import ServiceError, start_time, wait_dead, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


PARTS = ("qemu-system", "vmm-supervisor", *FILE_SERVERS)


@pytest.fixture
def before(own_stack):
    # Without descriptors: they are of a daemon that these tests end.
    return own_stack.snapshot()[0], None, None


def finish(stack, pod, before):
    """The pod goes away cleanly. That new ones work is seen by the next test, with the same stack."""
    pod.stop()
    pod.remove()
    stack.check_unchanged(before)


# Prints until it is told to end: what happens meanwhile happens amid its output.
COUNTING = "i=0; while [ ! -e /dev/shm/enough ]; do i=$((i + 1)); echo line $i; done; echo last"


def is_whole(text):
    """Whether `text` is what COUNTING prints, all of it."""
    count = text.count("\n") - 1
    return text == "".join(f"line {i}\n" for i in range(1, count + 1)) + "last\n"


def enough(container):
    container.output("touch", "/dev/shm/enough")


def test_daemon_killed_amid_logs_and_exec(own_stack, before, tmp_path):
    """Not a byte is lost, new execs work while it is down, and after its restart the pod goes away cleanly."""
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", COUNTING + "; sleep infinity")
    # To a file: a pipe that nobody reads would hold the follower back.
    followed = tmp_path / "followed"
    with followed.open("wb") as out:
        follow = own_stack.crictl.popen("logs", "-f", container.id, stdout=out, stderr=subprocess.DEVNULL)
    execing = container.popen("sh", "-c", COUNTING, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    first = execing.stdout.read(50_000)
    container.wait_log("line 1000\n".encode())
    wait_until(lambda: followed.stat().st_size > 0, 60, "logs -f follows nothing")
    own_stack.daemon.service.kill()

    assert container.output("echo", "meanwhile") == "meanwhile\n"
    assert own_stack.crictl.run("exec", "-s", container.id, "cat", "/etc/passwd").stdout.startswith("root")
    assert execing.poll() is None and b"last" not in container.raw_log(), "the output ended before the daemon was killed"
    enough(container)
    out, err = execing.communicate(timeout=120)
    assert is_whole((first + out).decode()) and execing.returncode == 0, err
    container.wait_log(" last\n", timeout=120)
    logged = crilog.parse(container.raw_log())["stdout"]
    assert is_whole(logged.decode())

    own_stack.start_daemon()
    assert pod.status()["state"] == "SANDBOX_READY"
    assert container.output("echo", "again") == "again\n"
    other = pod.shell()
    assert other.output("echo", "new") == "new\n"
    wait_until(lambda: followed.stat().st_size >= len(logged), 60, "logs -f does not get to the end")
    follow.kill()
    follow.wait()
    assert followed.read_bytes() == logged
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


def terminate(service, timeout):
    """Sends TERM and returns the exit code, negative for a signal."""
    pid = service.pid
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        assert select.select([fd], [], [], timeout)[0], "TERM is not enough"
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(fd)


def test_daemon_terminated_finishes_waits(own_stack, before):
    """SIGTERM: every Wait ends with UNAVAILABLE, the VMs live, the exit code is 0."""
    with own_stack.pod() as pod, contextlib.closing(Controller(own_stack.daemon.socket)) as controller:
        container = pod.shell()
        controller.call("Status", sandbox_id=pod.id)
        wait = controller.future("Wait", sandbox_id=pod.id)
        # What comes later on the same connection is answered: the Wait has arrived, too.
        assert controller.call("Status", sandbox_id=pod.id).state == "SANDBOX_READY"
        assert not wait.done()
        assert terminate(own_stack.daemon.service, 20) == 0
        with pytest.raises(grpc.RpcError) as ended:
            wait.result(30)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert container.output("echo", "alive") == "alive\n"
        own_stack.start_daemon()
        assert pod.status()["state"] == "SANDBOX_READY"
    own_stack.check_unchanged(before)


def test_daemon_binary_replaced_under_load(own_stack, before, tmp_path):
    """An upgrade: three restarts while a container prints and is exec'ed into."""
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", COUNTING + "; sleep infinity")
    service = own_stack.daemon.service
    program = tmp_path / "vmm-sandboxer"
    for turn in range(3):
        seen = len(container.raw_log())
        service.stop()
        newer = tmp_path / f"new-{turn}"
        shutil.copy(own_stack.daemon.program("vmm-sandboxer"), newer)
        os.rename(newer, program)
        service.argv[0] = str(program)
        own_stack.start_daemon()
        assert own_stack.daemon_program() == program.resolve()
        assert container.output("echo", str(turn)) == f"{turn}\n"
        wait_until(lambda: len(container.raw_log()) > seen, 60, "the container prints no more")
    assert b" last\n" not in container.raw_log()
    enough(container)
    container.wait_log(" last\n", timeout=120)
    assert is_whole(crilog.parse(container.raw_log())["stdout"].decode())
    finish(own_stack, pod, before)


def test_containerd_restarted(own_stack, before):
    """kill -9 of containerd: containers go on; their exit codes and new execs come afterwards."""
    pod = own_stack.new_pod()
    container = pod.shell()
    leaver = pod.run("/bin/sh", "-c", "read x; exit 42", stdin=True)
    ended = pod.run("/bin/sh", "-c", "exit 33")
    assert ended.wait_exit() == 33
    printer = pod.run("/bin/sh", "-c", "n=0; while ! test -e /stop; do n=$((n + 1)); echo $n; done; echo last $n")
    wait_until(lambda: printer.log.stat().st_size > 100_000, 60, "nothing is printed")
    pid_before = pod.vmm()
    own_stack.containerd.service.kill()
    own_stack.start_containerd()
    assert pod.vmm() == pid_before
    assert pod.status()["state"] == "SANDBOX_READY"
    assert container.output("echo", "again") == "again\n"
    assert ended.wait_exit() == 33
    leaver.exec("sh", "-c", "kill -9 -1; true", check=False)
    leaver.stop(0)
    assert leaver.wait_exit() == 137
    # It may be gone before the exec has ended, which then ends with it.
    printer.exec("touch", "/stop", check=False)
    assert printer.wait_exit() == 0
    *numbers, last = crilog.parse(printer.raw_log())["stdout"].decode().splitlines()
    # What the killed containerd had read and not written is lost, which is all that it may hold, and a line that this cut in two.
    missing = int(last.split()[1]) - len(numbers)
    assert last == f"last {numbers[-1]}" and missing * len(numbers[-1]) < 256 << 10
    finish(own_stack, pod, before)


def test_both_restarted_in_either_order(own_stack, before):
    pod = own_stack.new_pod()
    container = pod.shell()
    for first, second in ((own_stack.daemon.service, own_stack.containerd.service),
                          (own_stack.containerd.service, own_stack.daemon.service)):
        first.kill()
        second.kill()
        own_stack.daemon.start()
        own_stack.start_containerd()
        assert pod.status()["state"] == "SANDBOX_READY"
        assert container.output("echo", "again") == "again\n"
    finish(own_stack, pod, before)


def dies(pod, container, codes=(255, 137)):
    """Waits until pod and container are over and nothing of the VM runs."""
    wait_until(lambda: pod.status()["state"] == "SANDBOX_NOTREADY", 60, "the pod is still ready")
    assert container.wait_exit(60) in codes
    for name in PARTS:
        wait_until(lambda: not pod.processes(name), 30, f"{name} lives on")


@pytest.mark.parametrize("victim", PARTS)
def test_part_of_a_sandbox_killed(own_stack, before, victim):
    """VMM, supervisor and file server share one fate: the pod is dead at once, and removable."""
    if victim == "vmm-9p":
        own_stack.daemon.service.stop()
        own_stack.start_daemon(vm={"file_share": "9p"})
    pod = own_stack.new_pod()
    container = pod.shell()
    pids = pod.processes(victim)
    assert pids, f"no {victim} of this sandbox"
    os.kill(pids[0], signal.SIGKILL)
    # By 9p the guest finds its files gone at once, and may get to tell a failure before its VM is killed.
    dies(pod, container, (255, 137, 1) if victim == "vmm-9p" else (255, 137))
    finish(own_stack, pod, before)
    if victim == "vmm-9p":
        own_stack.daemon.service.stop()
        own_stack.start_daemon()


def test_guest_crashes(own_stack, before):
    """The guest's kernel ends as it does when PID 1 of it, the agent, dies: the VM goes with it."""
    privileged = {"linux": {"security_context": {"privileged": True}}}
    pod = own_stack.new_pod(**privileged)
    container = pod.shell(**privileged)
    crash = container.popen("sh", "-c", "echo c > /proc/sysrq-trigger", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    dies(pod, container)
    assert crash.wait(60) != 0
    finish(own_stack, pod, before)


def test_vm_killed_while_the_daemon_is_down(own_stack, before):
    pod = own_stack.new_pod()
    container = pod.shell()
    own_stack.daemon.service.kill()
    os.kill(pod.vmm(), signal.SIGKILL)
    own_stack.start_daemon()
    dies(pod, container)
    finish(own_stack, pod, before)


@pytest.mark.parametrize("daemon_at_hand", [True, False], ids=["daemon-up", "found-by-a-new-daemon"])
def test_hung_guest_is_killed(own_stack, before, daemon_at_hand):
    """A VMM that is stopped answers no heartbeat: the daemon ends it, and says so."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"heartbeat_seconds": 5}}
    own_stack.start_daemon()
    pod = own_stack.new_pod()
    container = pod.shell()
    hung = pod.vmm()
    if not daemon_at_hand:
        own_stack.daemon.service.kill()
    os.kill(hung, signal.SIGSTOP)
    if not daemon_at_hand:
        own_stack.start_daemon()
    assert wait_dead(hung, 90) or start_time(hung) is None
    dies(pod, container)
    finish(own_stack, pod, before)


def test_paused_daemon_kills_nobody(own_stack, before):
    """Time in which the daemon did not run is no guest's fault."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"heartbeat_seconds": 4}}
    own_stack.start_daemon()
    with own_stack.pod() as pod:
        container = pod.shell()
        # Longer than two heartbeats, and then long enough for one that goes unanswered to show.
        own_stack.daemon.service.signal(signal.SIGSTOP)
        time.sleep(10)
        own_stack.daemon.service.signal(signal.SIGCONT)
        time.sleep(6)
        assert container.output("echo", "alive") == "alive\n"
        assert pod.status()["state"] == "SANDBOX_READY"
    own_stack.check_unchanged(before)


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
        # For twice the time after which it would be one.
        own_stack.containerd.service.kill()
        time.sleep(12)
        assert controller.call("Status", sandbox_id=pod.id).state == "SANDBOX_READY"
        own_stack.start_containerd()
    controller.close()
    own_stack.check_unchanged(before)


def test_pods_while_the_daemon_is_down(own_stack, before):
    own_stack.daemon.service.kill()
    with pytest.raises(CrictlError):
        own_stack.new_pod()
    own_stack.start_daemon()
    with own_stack.pod() as pod:
        assert pod.shell().output("echo", "works") == "works\n"
    own_stack.check_unchanged(before)


def test_container_ends_while_its_file_server_stands_still(own_stack, before):
    """What the guest still asks of the file server as a program ends, the release of its file, must not be needed for the end:
    Linux has a BUG where a file system goes that somebody still waits for."""
    pod = own_stack.new_pod()
    container = pod.shell()
    servers = processes_of("virtiofsd", pod.id)
    assert servers
    attached = own_stack.crictl.popen("attach", container.id, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        stopping = own_stack.crictl.popen("stop", "--timeout", "0", container.id, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        attached.wait(60)  # Its output has ended, so it has nothing open any more.
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    assert stopping.wait(60) == 0
    container.remove()
    finish(own_stack, pod, before)


def test_a_guest_that_cannot_end_a_container_keeps_no_pod(own_stack, before):
    """A process that waits in the kernel for a dead file server takes no signal. Whoever asks again is not kept waiting for ever."""
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"guest": {"unkillable_after_seconds": 3}}
    own_stack.start_daemon()
    pod = own_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "while :; do echo x >> /file; done")
    bystander = pod.shell()
    servers = processes_of("virtiofsd", pod.id)
    wait_until(lambda: container.exec("test", "-s", "/file", check=False).returncode == 0, 30, "nothing is written")
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    stop = ("stop", "--timeout", "0", container.id)
    asked = time.monotonic()
    assert own_stack.crictl.popen("--timeout", "2s", *stop, stderr=subprocess.DEVNULL).wait(60) != 0
    # Before the time is over it means nothing: the kubelet's retry may come early.
    assert own_stack.crictl.popen("--timeout", "500ms", *stop, stderr=subprocess.DEVNULL).wait(60) != 0
    assert pod.status()["state"] == "SANDBOX_READY"
    wait_until(lambda: time.monotonic() > asked + 5, 30, "time stands still")
    own_stack.crictl.popen("--timeout", "20s", *stop, stderr=subprocess.DEVNULL).wait(60)
    dies(pod, bystander)
    assert f"the guest does not end container {container.id}" in own_stack.daemon.service.log.read_text()
    finish(own_stack, pod, before)


def start_with(stack, named, **tables):
    """Starts the daemon with other settings. False if it refuses, which it must do with a message that has `named` in it."""
    stack.daemon.service.stop()
    stack.daemon.settings = tables
    size = stack.daemon.service.log.stat().st_size
    try:
        stack.daemon.start()
    except ServiceError:
        complaint = stack.daemon.service.log.read_bytes()[size:].decode()
        assert named in complaint, complaint
        return False
    stack.start_daemon()
    return True


def fails_to_start(stack, before):
    """The message of a pod that cannot start; checks that nothing stays."""
    with pytest.raises(CrictlError) as failure:
        stack.new_pod()
    stack.crictl.run("rmp", "--all", "--force")
    stack.check_unchanged(before)
    return str(failure.value)


# What the message must hold when a file is garbage: QEMU's words where it reads the file, else the guest's.
GARBAGE = {"kernel": "(?i)kernel", "initrd": "(?i)panic|initrd|initramfs", "image": "(?i)panic|mount|erofs|root image"}


@pytest.mark.parametrize("which", GARBAGE)
@pytest.mark.parametrize("how", ["absent", "garbage"])
def test_guest_files_missing_or_broken(own_stack, before, which, how, tmp_path):
    path = tmp_path / "file"
    if how == "garbage":
        path.write_bytes(b"garbage" * 1000)
    if not start_with(own_stack, str(path), guest={which: str(path)}):
        return
    started = time.monotonic()
    message = fails_to_start(own_stack, before)
    assert time.monotonic() - started < 60, "a guest that ends is noticed, not waited for"
    assert re.search(re.escape(str(path)) if how == "absent" else GARBAGE[which], message), message


@pytest.mark.parametrize("program", ["/nonexistent/qemu", "/bin/false"])
def test_vmm_missing_or_dying(own_stack, before, program):
    if not start_with(own_stack, program, vm={"qemu_path": program, "accel": "tcg"}):
        return
    started = time.monotonic()
    message = fails_to_start(own_stack, before)
    assert time.monotonic() - started < 60, "a VMM that ends is noticed, not waited for"
    assert program in message or "exited with status 1" in message, message


def test_guest_that_never_answers(own_stack, before):
    assert start_with(own_stack, "", guest={"extra_cmdline": "rdinit=/nonexistent panic=0"}, vm={"start_timeout_seconds": 5})
    assert re.search("(?i)timeout|deadline|did not|not answer|ended|exited", fails_to_start(own_stack, before))
