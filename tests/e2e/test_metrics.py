"""The daemon's own metrics, as Prometheus gets them."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest

from harness import netns
from stack.crictl import CrictlError
from stack.services import wait_until

pytestmark = pytest.mark.vm

SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
TYPE = "text/plain; version=0.0.4; charset=utf-8"


def parse(text):
    """{(name, label=value, ...): value}; what is no sample must be a comment."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        name, labels, number = SAMPLE.fullmatch(line).groups()
        pairs = re.findall(r'([a-z_]+)="([^"]*)"', labels or "")
        key = (name, *sorted(f"{label}={text}" for label, text in pairs))
        assert key not in samples, line
        samples[key] = float(number)
    return samples


class Endpoint:
    """The daemon's metrics on a socket."""

    def __init__(self, path):
        self.path = path

    def ask(self, request):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            client.sendall(request.encode())
            head, _, body = netns.receive_all(client).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return status, dict(line.split(": ", 1) for line in lines), body.decode()

    def read(self):
        status, headers, body = self.ask("GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert status == "HTTP/1.1 200 OK" and headers["Content-Type"] == TYPE
        return parse(body)


@pytest.fixture
def measured(own_stack):
    """A stack whose daemon has metrics, and where they are."""
    path = own_stack.run_dir / "metrics.sock"
    own_stack.daemon.service.stop()
    own_stack.start_daemon(metrics={"address": f"unix:{path}"})
    return own_stack, Endpoint(path)


def memory_of(pids, field):
    total = 0
    for pid in pids:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        total += int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) << 10
    return total


def test_a_pods_life_in_numbers(measured):
    stack, endpoint = measured
    before = endpoint.read()
    assert before[("magnetar_sandboxes", "state=ready")] == 0
    assert before[("magnetar_sandbox_starts_total", "code=OK")] == 0
    assert ["vmm=qemu" in key for key in before if key[0] == "magnetar_vmm_info"] == [True]
    # start_daemon has had one refused.
    assert before[("magnetar_rpcs_total", "code=INVALID_ARGUMENT", "method=Create")] >= 1

    with stack.pod() as pod:
        container = pod.shell()
        now = endpoint.read()
        assert now[("magnetar_sandboxes", "state=ready")] == 1
        assert now[("magnetar_sandbox_starts_total", "code=OK")] == 1
        assert now[("magnetar_sandbox_start_duration_seconds_count", "code=OK")] == 1
        seconds = {phase: now[("magnetar_sandbox_start_phase_duration_seconds_sum", "code=OK", f"phase={phase}")]
                   for phase in ("host", "network", "launch", "ready", "setup")}
        assert all(value > 0 for value in seconds.values()) and seconds["network"] < seconds["host"]
        phases = sum(seconds.values()) - seconds["network"]
        whole = now[("magnetar_sandbox_start_duration_seconds_sum", "code=OK")]
        assert phases <= whole < phases + 0.5
        assert now[("magnetar_container_prepares_total", "code=OK")] == 1
        assert now[("magnetar_rpcs_total", "code=OK", "method=Start")] == 1
        assert now[("magnetar_rpc_duration_seconds_sum", "method=Start")] >= whole
        assert now[("magnetar_guest_memory_bytes",)] > 100 << 20
        assert not [key for key in now if pod.id in str(key)], "no label tells a pod"

        programs = {"vmm": pod.processes("qemu-system"), "file_server": pod.processes("virtiofsd"),
                    "supervisor": pod.processes("vmm-supervisor")}
        for kind, pids in programs.items():
            assert now[("magnetar_vm_processes", f"process={kind}")] == len(pids), (kind, pids)
            for backing, field in (("anon", "RssAnon"), ("shmem", "RssShmem")):
                told = now[("magnetar_vm_process_resident_memory_bytes", f"backing={backing}", f"process={kind}")]
                assert told == pytest.approx(memory_of(pids, field), rel=0.2, abs=2 << 20), (kind, backing)
        daemon = stack.daemon.service.pid
        assert now[("process_resident_memory_bytes",)] == pytest.approx(memory_of([daemon], "VmRSS"), rel=0.1)
        assert now[("process_open_fds",)] == pytest.approx(len(os.listdir(f"/proc/{daemon}/fd")), abs=5)
        assert 0 < time.time() - now[("process_start_time_seconds",)] < 600

        # A hung guest keeps no scrape waiting.
        vmm = pod.vmm()
        os.kill(vmm, signal.SIGSTOP)
        started = time.monotonic()
        assert endpoint.read()[("magnetar_sandboxes", "state=ready")] == 1
        assert time.monotonic() - started < 2
        os.kill(vmm, signal.SIGKILL)
        wait_until(lambda: endpoint.read()[("magnetar_sandboxes", "state=notready")] == 1, 30, "its end is not counted")
        assert endpoint.read()[("magnetar_vm_exits_total", "reason=died")] == 1
        # containerd removes no pod whose container it takes for running.
        container.wait_exit()

    with stack.pod():
        pass
    after = endpoint.read()
    assert after[("magnetar_vm_exits_total", "reason=asked")] == 1
    assert after[("magnetar_sandbox_teardown_duration_seconds_count",)] == 2
    assert sum(value for key, value in after.items() if key[0] in ("magnetar_sandboxes", "magnetar_vm_processes")) == 0
    assert sum(value for key, value in after.items() if key[0] == "magnetar_teardown_failures_total") == 0


def test_a_start_that_fails_is_counted(own_stack):
    """By what it failed with, and in the phase that it failed in."""
    path = own_stack.run_dir / "metrics.sock"
    own_stack.daemon.service.stop()
    own_stack.start_daemon(metrics={"address": f"unix:{path}"}, vm={"start_timeout_seconds": 5}, guest={"extra_cmdline": "rdinit=/nonexistent panic=0"})
    endpoint = Endpoint(path)
    with pytest.raises(CrictlError):
        own_stack.new_pod()
    counted = {key: value for key, value in endpoint.read().items() if key[0].endswith("_duration_seconds_count") and "_start_" in key[0] and value}
    phase, late = "magnetar_sandbox_start_phase_duration_seconds_count", "code=DEADLINE_EXCEEDED"
    assert counted == {("magnetar_sandbox_start_duration_seconds_count", late): 1, (phase, "code=OK", "phase=host"): 1,
                       (phase, "code=OK", "phase=network"): 1, (phase, "code=OK", "phase=launch"): 1, (phase, late, "phase=ready"): 1}
    assert endpoint.read()[("magnetar_sandbox_starts_total", late)] == 1


def test_a_hung_guest_is_counted(own_stack):
    path = own_stack.run_dir / "metrics.sock"
    own_stack.daemon.service.stop()
    own_stack.start_daemon(metrics={"address": f"unix:{path}"}, guest={"heartbeat_seconds": 2})
    endpoint = Endpoint(path)
    with own_stack.pod() as pod:
        agent = ("magnetar_agent_peak_resident_memory_bytes",)
        wait_until(lambda: 1 << 20 < endpoint.read()[agent] < 16 << 20, 30, "the guest does not tell of its agent's memory")
        os.kill(pod.vmm(), signal.SIGSTOP)
        wait_until(lambda: endpoint.read()[("magnetar_vm_exits_total", "reason=hung")] == 1, 30, "its end is not counted")
        assert endpoint.read()[("magnetar_heartbeats_missed_total",)] >= 2


def test_pods_of_the_daemon_before(measured):
    stack, endpoint = measured
    with stack.pod():
        stack.daemon.service.kill()
        stack.start_daemon(metrics={"address": f"unix:{endpoint.path}"})
        wait_until(lambda: endpoint.read()[("magnetar_sandboxes", "state=ready")] == 1, 30, "it is not found again")
        now = endpoint.read()
        assert now[("magnetar_sandbox_starts_total", "code=OK")] == 0
        assert now[("magnetar_vm_processes", "process=vmm")] == 1


def test_what_is_served(measured):
    endpoint = measured[1]
    ask = lambda line: endpoint.ask(f"{line} HTTP/1.0\r\n\r\n")  # noqa: E731
    assert ask("GET /")[0].split()[1] == "404"
    status, headers, _ = ask("POST /metrics")
    assert status.split()[1] == "405" and headers["Allow"] == "GET, HEAD"
    status, headers, body = ask("HEAD /metrics")
    assert status.split()[1] == "200" and int(headers["Content-Length"]) > 1000 and body == ""
    assert endpoint.path.stat().st_mode & 0o077 == 0, "root alone"
    # Somebody who keeps connections open keeps nobody's pods.
    clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    try:
        for client in clients:
            client.connect(str(endpoint.path))
        with measured[0].pod():
            pass
    finally:
        for client in clients:
            client.close()

    def served():
        try:
            return " 200 " in ask("GET /metrics")[0]
        except OSError:
            return False

    wait_until(served, 10, "their places are not free again")


def test_tcp(own_stack):
    own_stack.daemon.service.stop()
    own_stack.start_daemon(metrics={"address": "127.0.0.1:9477"})
    body = netns.http_get(own_stack.netns, "127.0.0.1", 9477, path="/metrics").decode()
    assert parse(body)[("magnetar_sandboxes", "state=ready")] == 0


def test_without_an_address_there_is_nothing(stack):
    listening = subprocess.run(["ss", "-H", "-l", "-p", "-N", stack.netns], check=True, capture_output=True, text=True).stdout
    own = [line for line in listening.splitlines() if f"pid={stack.daemon.service.pid}," in line]
    assert [line for line in own if str(stack.daemon.socket) in line]
    assert not [line for line in own if line.startswith("tcp") or "metrics" in line], own


@pytest.mark.parametrize("address, complaint", [
    ("192.0.2.1:9477", "metrics.address: bind 192.0.2.1:9477: Cannot assign requested address"),
    ("unix:{tmp}/file", "metrics.address: {tmp}/file is no socket"),
    ("unix:{tmp}/no/socket", "metrics.address: listen on {tmp}/no/socket: No such file or directory"),
])
def test_an_address_that_cannot_be_bound_ends_the_start(stack, tmp_path, address, complaint):
    (tmp_path / "file").touch()
    # Short enough for a run directory.
    run = pathlib.Path(f"/run/mgm{os.getpid()}")
    config = tmp_path / "config.toml"
    config.write_text(f'listen = "{tmp_path}/s"\nrun_dir = "{run}"\n[metrics]\naddress = "{address.format(tmp=tmp_path)}"\n')
    program = stack.daemon.program("vmm-sandboxer")
    assert subprocess.run([program, "--config", config, "--check-config"], capture_output=True).returncode == 0
    try:
        result = subprocess.run([program, "--config", config], capture_output=True, text=True, timeout=30)
    finally:
        subprocess.run(["rm", "-r", run], check=False)
    assert result.returncode == 1
    assert complaint.format(tmp=tmp_path) in result.stderr + result.stdout
    assert not (tmp_path / "s").exists()
    config.write_text('[metrics]\naddress = "9477"\n')
    result = subprocess.run([program, "--config", config, "--check-config"], capture_output=True, text=True)
    assert result.returncode == 1 and f"{config}:2: metrics.address: must be" in result.stderr
