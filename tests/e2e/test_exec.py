"""Exec and attach: with and without a terminal, stdin, resize, exit codes."""

import concurrent.futures
import hashlib
import signal
import subprocess

import pytest

from harness import testimages
from harness.cri import Cri
from harness.terminal import Terminal
from stack.crictl import CrictlError
from stack.services import wait_until


@pytest.fixture
def container(pod):
    return pod.shell()


@pytest.mark.parametrize("code", [0, 1, 42, 137])
def test_exit_code(container, code):
    result = container.exec("sh", "-c", f"echo out; echo err >&2; exit {code}", check=False)
    assert result.stdout == "out\n" and result.stderr.startswith("err\n")
    if code == 0:
        assert result.returncode == 0
    else:
        assert f"exit code {code}" in result.stderr


def test_execsync_timeout_kills_the_process(container):
    """A probe that hangs: its time-out ends it, and the container lives on."""
    with pytest.raises(CrictlError, match="(?i)deadline|timeout|timed out"):
        container.crictl.run("exec", "-s", "--timeout", "2", container.id, "sleep", "7777")
    assert "sleep 7777" not in container.output("ps")
    assert container.output("echo", "alive") == "alive\n"


def test_stdin_to_eof(container):
    data = testimages.random_bytes()[:3_000_000]
    result = container.exec("sh", "-c", "cat > /in; wc -c < /in; sha256sum < /in", stdin=data)
    assert result.stdout.split()[:2] == ["3000000", hashlib.sha256(data).hexdigest()]


def test_stdin_through_cat(container):
    data = testimages.random_bytes()[:3_000_000]
    assert container.exec("cat", stdin=data, text=False).stdout == data


def test_empty_stdin(container):
    assert container.exec("wc", "-c", stdin=b"").stdout == "0\n"


def test_terminal(container):
    with Terminal(container.crictl.command("exec", "-it", container.id, "sh"), rows=33, columns=111) as terminal:
        terminal.send("tty; stty size; echo done-$((40 + 2))\n")
        seen = terminal.expect("done-42")
        assert "/dev/pts/" in seen and "33 111" in seen
        terminal.resize(44, 122)
        terminal.send("sleep 1; stty size; echo resized-$((1 + 1))\n")
        assert "44 122" in terminal.expect("resized-2")
        # The program that is interrupted says itself that it runs. An interrupt that comes while busybox's
        # shell makes the terminal over to a program reaches neither of the two.
        terminal.send("sh -c 'echo going; exec sleep 1000'\n")
        terminal.expect("going\r\n")
        terminal.send("\x03")
        terminal.expect("# ")  # An interrupt also discards what was typed before it.
        terminal.send("echo interrupted-$((2 + 1)); exit 7\n")
        terminal.expect("interrupted-3")
        assert terminal.wait() != 0
        assert b"exit code 7" in terminal.seen


def test_terminal_echoes_bytes_once(container):
    with Terminal(container.crictl.command("exec", "-it", container.id, "cat")) as terminal:
        terminal.send("äöü €\n")
        terminal.expect("äöü €\r\n")  # the terminal's echo
        terminal.expect("äöü €\r\n")  # cat's
        terminal.send("\x04")
        assert terminal.wait() == 0


def test_a_client_that_goes_away(container):
    """Its exec does not stay in the way of others."""
    client = container.popen("sh", "-c", "while :; do echo more; done", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert client.stdout.read(100_000)
    client.send_signal(signal.SIGKILL)
    client.wait()
    client.stdout.close()
    for _ in range(3):
        assert container.output("echo", "fine") == "fine\n"


def test_many_execs(container):
    for number in range(15):
        assert container.output("echo", str(number)) == f"{number}\n"


def test_execs_at_once(container):
    clients = [container.popen("sh", "-c", f"sleep 0.3; echo {n}; exit {n}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for n in range(8)]
    for number, client in enumerate(clients):
        out, err = client.communicate(timeout=120)
        assert out == f"{number}\n".encode()
        assert number == 0 or f"exit code {number}".encode() in err


def test_attach(pod):
    container = pod.run("/bin/sh", "-c", "while read line; do echo got $line; done; echo end", stdin=True, stdin_once=True)
    client = pod.stack.crictl.popen("attach", "-i", container.id, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client.stdin.write(b"one\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"got one\n"
    client.stdin.write(b"two\n")
    client.stdin.close()
    assert client.stdout.readline() == b"got two\n"
    client.wait(timeout=60)
    client.stdout.close()
    assert container.wait_exit() == 0
    assert container.logs().stdout == "got one\ngot two\nend\n"


def test_attach_with_a_terminal(pod):
    container = pod.run("/bin/sh", stdin=True, tty=True)
    with Terminal(pod.stack.crictl.command("attach", "-it", container.id), rows=30, columns=100) as terminal:
        terminal.send("echo sum-$((20 + 3)); tty\n")
        terminal.expect("sum-23")
        terminal.expect("/dev/pts/")
        terminal.send("exit 3\n")
        terminal.wait()
    assert container.wait_exit() == 3


@pytest.mark.vm
def test_containerd_keeps_nothing_of_an_outputs_reader(stack, pod):
    """Its reader (core/transfer/streaming/reader.go, until 2.4) stands still for ever if the end comes before its next grant has been sent."""
    container = pod.shell()
    cri = Cri(stack.containerd.socket)
    run = lambda _: cri.call("ExecSync", container_id=container.id, cmd=["/bin/sh", "-c", "echo out; echo err >&2"], timeout=60)  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {answer.stdout for answer in pool.map(run, range(40))} == {b"out\n"}
    cri.close()
    log, seen = stack.containerd.service.log, stack.containerd.service.log.stat().st_size

    def dump():
        text = log.read_bytes()[seen:].decode(errors="replace")
        return text if "=== END goroutine stack dump ===" in text else None

    stack.containerd.service.signal(signal.SIGUSR1)
    goroutines = wait_until(dump, 30, "containerd tells no goroutines").split("goroutine ")
    stuck = [g for g in goroutines if "ReadByteStream" in g and "[chan send" in g]
    assert "ReadByteStream" in "".join(goroutines) and not stuck, f"{len(stuck)} of them: {stuck[0]}"
