"""The whole crictl flow, on each containerd that the tests know."""

import hashlib
import subprocess

import pytest

from harness import netns, settings, testimages
from harness.terminal import Terminal


def test_crictl_flow(any_stack):
    """runp, create, start, logs, exec, execsync, stats, ps, inspect, stop, rm, stopp, rmp."""
    crictl = any_stack.crictl
    pod = any_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "echo out; echo err >&2; exec sleep infinity")

    container.wait_log("out")
    container.wait_log("err")
    logs = container.logs()
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")

    assert container.output("echo", "hello") == "hello\n"
    assert crictl.run("exec", "-s", container.id, "echo", "hello").stdout.rstrip() == "hello"
    assert container.id in crictl.run("ps", "-q").stdout
    assert container.status()["state"] == "CONTAINER_RUNNING"
    assert pod.status()["state"] == "SANDBOX_READY"
    stats = crictl.json("stats", "--id", container.id)["stats"][0]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    pod_stats = crictl.json("statsp", "--id", pod.id)["stats"][0]
    assert int(pod_stats["linux"]["memory"]["workingSetBytes"]["value"]) > 0

    container.stop(1)
    assert container.wait_exit() == 137
    crictl.run("rm", container.id)
    pod.stop()
    assert pod.status()["state"] == "SANDBOX_NOTREADY"
    crictl.run("rmp", pod.id)
    assert pod.id not in crictl.run("pods", "-q").stdout


@pytest.fixture
def echoing(any_stack):
    """A container that serves a page on its loopback and repeats what it is told."""
    with any_stack.pod() as pod:
        container = pod.run("/bin/sh", "-c", "mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; echo up; "
                            "while read line; do echo got $line; done; echo end", stdin=True, stdin_once=True)
        container.wait_log("up")
        yield container


def test_streams(echoing):
    """exec with stdin and with a terminal, attach, logs -f, port-forward: what goes through containerd's streaming."""
    container, crictl = echoing, echoing.crictl
    data = testimages.random_bytes()[:1_000_000]
    result = container.exec("sh", "-c", "cat > /in; wc -c < /in; sha256sum < /in; exit 3", stdin=data, check=False)
    assert result.stdout.split()[:2] == ["1000000", hashlib.sha256(data).hexdigest()] and "exit code 3" in result.stderr

    with Terminal(crictl.command("exec", "-it", container.id, "sh"), rows=33, columns=111) as terminal:
        # containerd sets the size once the process runs.
        terminal.send("until [ \"$(stty size)\" = \"33 111\" ]; do :; done; stty size; tty; exit 4\n")
        assert "33 111" in terminal.expect("/dev/pts/")
        terminal.wait()
        assert b"exit code 4" in terminal.seen

    with container.pod.port_forward(8080) as port:
        assert netns.http_get(container.pod.stack.netns, "127.0.0.1", port) == b"page\n"

    follower = crictl.popen("logs", "-f", container.id, stdout=subprocess.PIPE)
    client = crictl.popen("attach", "-i", container.id, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client.stdin.write(b"one\n")
    assert client.stdout.readline() == b"got one\n"
    client.stdin.write(b"two\n")
    client.stdin.close()
    # Its end has been written before the attached client hears of it, or with the container's end.
    assert client.stdout.read() in (b"got two\nend\n", b"got two\n")
    client.wait(60)
    client.stdout.close()
    assert container.wait_exit() == 0
    assert follower.communicate(timeout=60)[0] == b"up\ngot one\ngot two\nend\n"
    assert follower.returncode == 0


def test_container_runs_in_a_guest(any_stack):
    """The container's kernel is not the host's, unless this is a run with plain containers."""
    with any_stack.pod() as pod:
        container = pod.shell()
        boot_id = container.output("cat", "/proc/sys/kernel/random/boot_id")
        host = open("/proc/sys/kernel/random/boot_id").read()
        assert (boot_id != host) == settings.IS_VM
