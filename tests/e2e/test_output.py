"""Output, byte for byte, also while a sibling stream stalls; and log files."""

import hashlib
import subprocess

import pytest

from harness import crilog, settings, testimages


@pytest.fixture
def data_container(pod):
    yield pod.run("/bin/sleep", "infinity", image=testimages.DATA)


def first_difference(left, right):
    """Where two outputs part, for a message that a person can read."""
    if left == right:
        return None
    position = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    return f"{len(left)} bytes came, {len(right)} were sent; first difference at {position}"


def stalled(container):
    """An exec whose output nobody reads."""
    client = container.popen("sh", "-c", "while :; do echo stalled stalled stalled; done", stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
    client.stdout.read(1)
    return client


@pytest.mark.timeout(1800)
def test_ten_megabytes_beside_a_stalled_stream(data_container):
    expected = {"random": testimages.random_bytes(), "numbers": testimages.numbered_bytes()}
    commands = {"random": ("cat", "/data/random"), "numbers": ("seq", "1", str(testimages.NUMBERS))}
    sibling = stalled(data_container)
    try:
        for turn in range(settings.REPEAT):
            for kind, command in commands.items():
                got = data_container.exec(*command, text=False).stdout
                assert first_difference(got, expected[kind]) is None, f"{kind}, turn {turn}"
        assert sibling.poll() is None
    finally:
        sibling.kill()
        sibling.wait()
        sibling.stdout.close()


def test_both_streams_of_one_process(data_container):
    numbers = testimages.numbered_bytes()[:2_000_000]
    lines = numbers.count(b"\n")
    result = data_container.exec("sh", "-c", f"seq 1 {lines} & seq 1 {lines} >&2; wait", text=False)
    assert result.stdout == numbers[:numbers.rindex(b"\n") + 1] == result.stderr


@pytest.mark.parametrize("kind", ["random", "numbers"])
def test_log_file(pod, kind):
    """What a container prints until its very end stands in its log."""
    command = {"random": "cat /data/random", "numbers": f"seq 1 {testimages.NUMBERS}"}[kind]
    expected = {"random": testimages.random_bytes, "numbers": testimages.numbered_bytes}[kind]()
    container = pod.run("/bin/sh", "-c", f"{command}; echo fin >&2", image=testimages.DATA)
    assert container.wait_exit(120) == 0
    streams = crilog.parse(container.raw_log())
    assert first_difference(streams["stdout"], expected) is None
    assert streams["stderr"] == b"fin\n"


def test_two_containers_log_at_once(pod):
    containers = [pod.run("/bin/sh", "-c", f"seq {n}000000 {n}200000") for n in (1, 2, 3)]
    for number, container in zip((1, 2, 3), containers):
        assert container.wait_exit(120) == 0
        wanted = "".join(f"{line}\n" for line in range(number * 1_000_000, number * 1_000_000 + 200_001)).encode()
        assert first_difference(crilog.parse(container.raw_log())["stdout"], wanted) is None


def test_long_lines_and_missing_newline(pod):
    container = pod.run("/bin/sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'no newline'")
    assert container.wait_exit() == 0
    assert crilog.parse(container.raw_log())["stdout"].rstrip(b"\n") == b"x" * 100_000 + b"\nno newline"


def test_terminal_container_logs(pod):
    container = pod.run("/bin/sh", "-c", "tty; echo err >&2; seq 1 1000", tty=True)
    assert container.wait_exit() == 0
    lines = crilog.parse(container.raw_log())["stdout"].replace(b"\r\n", b"\n").decode().splitlines()
    assert lines[0].startswith("/dev/")
    assert lines[1:] == ["err", *[str(n) for n in range(1, 1001)]]


def test_logs_follow(pod):
    container = pod.run("/bin/sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done")
    follow = pod.stack.crictl.run("logs", "-f", container.id, timeout=60)
    assert follow.stdout == "".join(f"line {n}\n" for n in range(1, 6))


def test_a_background_process_does_not_keep_the_container(pod):
    """The init exits; a child that still holds its stdout changes nothing."""
    container = pod.run("/bin/sh", "-c", "sleep 1000 & echo bye; exit 4")
    assert container.wait_exit(30) == 4
    assert container.logs().stdout == "bye\n"


def test_digest_of_a_file_that_the_image_holds(data_container):
    """The root filesystem delivers the image's bytes."""
    wanted = hashlib.sha256(testimages.random_bytes()).hexdigest()
    assert data_container.output("sha256sum", "/data/random").split()[0] == wanted
