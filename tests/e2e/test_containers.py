"""Containers: several in a pod, exit codes, signals, users, images, pods side by side."""

import concurrent.futures
import datetime
import time

import pytest

from harness import settings, testimages
from harness.host import descriptors, processes_of
from harness.stackfixture import SNAPSHOTTERS
from stack.crictl import CrictlError
from stack.services import wait_until


def test_two_containers_share_a_pod(stack):
    with stack.pod(hostname="twin") as pod:
        server = pod.run("/bin/sh", "-c", "mkdir -p /www; echo shared > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www")
        client = pod.shell()
        assert client.output("sh", "-c", "for i in 1 2 3 4 5; do wget -qO- http://127.0.0.1:8080/ && exit; sleep 0.2; done") == "shared\n"
        assert server.output("hostname") == client.output("hostname") == "twin\n"
        assert "httpd" not in client.output("ps"), "each container has a pid namespace of its own"
        # One goes, the other stays.
        server.stop(0)
        server.remove()
        assert client.output("echo", "alive") == "alive\n"


POD_PIDS = {"linux": {"security_context": {"namespace_options": {"pid": 0}}}}


def test_pid_namespace_of_the_pod(stack):
    with stack.pod(**POD_PIDS) as pod:
        first = pod.run("/bin/sleep", "4321", **POD_PIDS)
        second = pod.shell(**POD_PIDS)
        assert "sleep 4321" in second.output("ps")
        first.stop(0)
        assert "sleep 4321" not in second.output("ps")


NET_ADMIN = {"linux": {"security_context": {"capabilities": {"add_capabilities": ["NET_ADMIN"]}}}}


@pytest.mark.vm
def test_the_guests_kernel_loads_modules_for_containers(stack):
    with stack.pod() as pod:
        plain, admin = pod.shell(), pod.shell(**NET_ADMIN)
        links = ["brctl addbr bridge7", "ip link add veth7 type veth", "ip link add vxlan7 type vxlan id 7 dstport 4789"]
        for link in links:
            result = plain.exec("sh", "-c", link, check=False)
            assert result.returncode != 0 and "not permitted" in result.stderr, (link, result.stderr)
        for link in links:
            admin.output("sh", "-c", link)
        assert {"bridge7", "veth7", "vxlan7"} <= set(admin.output("ls", "/sys/class/net").split())


def sees(container):
    return {"linux": {"security_context": {"namespace_options": {"pid": 3, "target_id": container.id}}}}


def test_a_container_sees_the_processes_of_another(pod):
    """kubectl debug --target."""
    target, other = pod.run("/bin/sleep", "4321"), pod.run("/bin/sleep", "1234")
    debugger = pod.shell(**sees(target))
    seen = debugger.output("ps")
    assert "sleep 4321" in seen and "sleep infinity" in seen and "sleep 1234" not in seen
    assert "sleep infinity" in target.output("ps"), "and the other way round"
    debugger.stop(0)
    debugger.remove()
    # With the first process of the namespace all others end.
    debugger = pod.shell(**sees(target))
    target.stop(0)
    assert debugger.wait_exit() == 137
    with pytest.raises(CrictlError, match="not running"):
        pod.shell(**sees(target))
    assert "sleep 1234" in other.output("ps")


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(pod, code):
    container = pod.run("/bin/sh", "-c", f"echo last; exit {code}")
    assert container.wait_exit() == code
    status = container.status()
    assert status["reason"] == ("Completed" if code == 0 else "Error")
    ended = datetime.datetime.fromisoformat(status["finishedAt"][:19] + "+00:00").timestamp()
    assert abs(ended - time.time()) < 60, "the guest's clock is the host's"
    assert container.logs().stdout == "last\n"


def test_killed_by_its_own_signal(stack):
    with stack.pod(**POD_PIDS) as pod:
        assert pod.run("/bin/sh", "-c", "kill -9 $$; sleep 9", **POD_PIDS).wait_exit() == 137
        assert pod.run("/bin/sh", "-c", "kill -SEGV $$; sleep 9", **POD_PIDS).wait_exit() == 139


def test_stop_sends_the_signal(pod):
    container = pod.run("/bin/sh", "-c", "trap 'echo got term; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
    container.wait_log("ready")
    started = time.monotonic()
    container.stop(60)
    assert time.monotonic() - started < 30, "it did not wait for the time-out"
    assert container.wait_exit() == 5
    assert container.logs().stdout == "ready\ngot term\n"


def test_stop_kills_after_the_timeout(pod):
    container = pod.run("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    container.wait_log("ready")
    started = time.monotonic()
    container.stop(2)
    assert time.monotonic() - started >= 2
    assert container.wait_exit() == 137


def test_stop_and_remove_again(stack):
    pod = stack.new_pod()
    container = pod.shell()
    for _ in range(2):
        container.stop(0)
    for _ in range(2):
        pod.stop()
    pod.remove()
    pod.remove(check=False)
    assert pod.id not in stack.crictl.run("pods", "-q").stdout


def test_a_stopped_pod_runs_nothing_more(stack):
    with stack.pod() as pod:
        pod.stop()
        with pytest.raises(CrictlError):
            pod.shell()


def test_command_that_does_not_exist(pod):
    with pytest.raises(CrictlError, match="(?i)no-such-program.*(no such file|not found)"):
        pod.run("/no-such-program")
    assert pod.shell().output("echo", "fine") == "fine\n"


def test_exec_of_a_command_that_does_not_exist(pod):
    container = pod.shell()
    with pytest.raises(CrictlError, match="(?i)no-such-program.*(no such file|not found)"):
        container.exec("/no-such-program")
    assert container.output("echo", "fine") == "fine\n"


def test_user_and_working_directory_of_the_image(pod):
    container = pod.run("/bin/sleep", "infinity", image=testimages.USER)
    assert container.output("id", "-u") == "1000\n"
    assert container.output("pwd") == "/home/app\n"
    assert container.output("cat", "owned") == "mine\n"
    assert container.exec("touch", "/not-mine", check=False).returncode != 0


def test_environment_and_arguments(pod):
    container = pod.run("/bin/sh", "-c", 'echo "$GREETING|$1|$2"', "sh", args=["a b", "ä'\"$"],
                        envs=[{"key": "GREETING", "value": "grüß dich\tx"}])
    assert container.wait_exit() == 0
    assert container.logs().stdout == "grüß dich\tx|a b|ä'\"$\n"


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS.values())
def test_snapshotter(stack, snapshotter):
    """Reads, writes, links, owners and a big file on each snapshotter; two containers do not see each other's changes."""
    if not settings.IS_VM and snapshotter != "overlayfs":
        pytest.skip("plain containers have one handler")
    with stack.pod(handler=stack.handler_for(snapshotter)) as pod:
        container = pod.shell()
        script = """set -e
            echo new > /etc/new; echo x >> /etc/group; rm /etc/passwd; mkdir /d; ln /etc/new /d/hard; ln -s ../etc/new /d/soft
            chmod 640 /d/hard; chown 7:8 /d/hard; mkfifo /d/fifo
            dd if=/dev/zero of=/d/big bs=1M count=8 2>/dev/null; sync
            cat /d/soft; stat -c '%a %u %g %h %s' /d/hard; stat -c %F /d/fifo; stat -c %s /d/big; ls /etc/passwd 2>&1 || true; df / > /dev/null"""
        assert container.output("sh", "-c", script).splitlines() == [
            "new", "640 7 8 2 4", "fifo", str(8 << 20), "ls: /etc/passwd: No such file or directory"]
        root = next(line.split() for line in container.output("cat", "/proc/mounts").splitlines() if line.split()[1] == "/")
        if snapshotter == "blockfile":
            assert root[0].startswith("/dev/sd") and root[2] == "ext4", "a disk, not shared files"
        elif settings.IS_VM:
            assert root[2] == "virtiofs", root
        other = pod.shell()
        assert other.output("sh", "-c", "ls /d 2>&1; head -c4 /etc/passwd") == "ls: /d: No such file or directory\nroot"


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_image_of_sixty_layers(stack, snapshotter):
    if not settings.IS_VM and snapshotter != "overlayfs":
        pytest.skip("plain containers have one handler")
    with stack.pod(handler=stack.handler_for(snapshotter)) as pod:
        container = pod.run("/bin/sleep", "infinity", image=testimages.LAYERS)
        last = testimages.LAYER_COUNT - 1
        assert container.output("cat", "/layers/last") == f"{last}\n"
        names = container.output("ls", "/layers").split()
        assert sorted(int(name) for name in names if name != "last") == list(range(last - 8, last + 1))


def test_ten_pods_at_once(stack):
    def whole_life(number):
        pod = stack.new_pod(hostname=f"host{number}")
        container = pod.run("/bin/sh", "-c", f"hostname; echo number {number}; exec sleep infinity")
        container.wait_log(f"number {number}", timeout=120)
        return pod, container, number

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        lives = list(pool.map(whole_life, range(10)))
        for pod, container, number in lives:
            assert container.logs().stdout == f"host{number}\nnumber {number}\n"
        assert len({address for pod, _, _ in lives for address in pod.addresses()}) == 20
        list(pool.map(lambda life: life[0].remove(), lives))
    assert not {pod["id"] for pod in stack.pods()} & {pod.id for pod, _, _ in lives}


@pytest.mark.vm
def test_nothing_of_a_removed_container_is_held(stack, tmp_path):
    """A file system that is still open somewhere keeps the space of its deleted files: a pod whose container crashes over and over
    would fill the disk."""
    with stack.pod() as pod:
        pod.shell()
        held = {pid: sorted(descriptors(pid)) for pid in processes_of("virtiofsd", pod.id)}
        for _ in range(3):
            container = pod.shell(mounts=[{"host_path": str(tmp_path), "container_path": "/data"}])
            container.output("sh", "-c", "head -c 1000000 /dev/zero > /big; mkdir -p /data/a/b; cp /big /data/a/b; ls -lR /data /etc")
            container.stop(0)
            container.remove()
        # The guest tells it to the file server in its own time.
        wait_until(lambda: all(len(descriptors(pid)) <= len(before) for pid, before in held.items()), 10,
                   f"of {held}, there is now {[sorted(descriptors(pid)) for pid in held]}")


def test_create_and_remove_over_and_over(stack):
    """What leaks once a pod shows."""
    for _ in range(5):
        with stack.pod() as pod:
            pod.shell()
