"""What an operator sees: magnetarctl, log levels, configuration errors, the shim's answers."""

import json
import signal
import subprocess

import pytest

from stack.services import wait_until

pytestmark = pytest.mark.vm


def ctl(stack, *args, check=True):
    return subprocess.run([stack.daemon.program("magnetarctl"), "--run-dir", stack.daemon.state, *args], check=check,
                          capture_output=True, text=True)


def test_magnetarctl(stack):
    with stack.pod() as pod:
        pod.shell()
        listed = ctl(stack, "list").stdout
        assert pod.id[:12] in listed and "qemu" in listed
        rows = json.loads(ctl(stack, "list", "--json").stdout)
        row = next(row for row in rows if row["id"] == pod.id)
        assert row["vmm"] == "qemu"
        assert json.loads(ctl(stack, "inspect", pod.id, "--json").stdout)["id"] == pod.id
        assert ctl(stack, "console", pod.id).returncode == 0
    assert pod.id not in ctl(stack, "list").stdout
    assert ctl(stack, "inspect", "unknown", check=False).returncode != 0


def test_sighup_reads_the_log_level_again(own_stack):
    before = own_stack.snapshot()[0]
    service = own_stack.daemon.service
    service.stop()
    own_stack.start_daemon(log_level="error")
    size = service.log.stat().st_size
    new = lambda: service.log.read_bytes()[size:]  # noqa: E731
    with own_stack.pod():
        pass
    assert b" info created" not in new(), "a pod's life is no error"
    own_stack.daemon.configure(log_level="info")
    service.signal(signal.SIGHUP)
    wait_until(lambda: b"log level level=info" in new(), 30, "SIGHUP is not logged")
    with own_stack.pod():
        pass
    assert b" info created" in new()
    own_stack.check_unchanged((before, None, None))


@pytest.mark.parametrize("text, complaint", [("listen = 5\n", ":1: listen"), ("\n[vm]\nvcpu = 1\n", ":3: vm.vcpu"), ("[[[", ":1")])
def test_configuration_errors_name_file_line_and_key(stack, tmp_path, text, complaint):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    result = subprocess.run([stack.daemon.program("vmm-sandboxer"), "--config", path], capture_output=True, text=True, timeout=20)
    assert result.returncode != 0
    assert f"{path}{complaint}" in result.stderr


def test_daemon_refuses_a_second_instance(stack):
    result = subprocess.run([stack.daemon.program("vmm-sandboxer"), "--config", stack.daemon.config], capture_output=True, text=True,
                            timeout=20)
    assert result.returncode != 0 and result.stderr
    with stack.pod() as pod:
        assert pod.shell().output("echo", "works") == "works\n"


def test_verbose_status_is_json(stack):
    with stack.pod() as pod:
        assert isinstance(stack.crictl.json("inspectp", pod.id)["info"], dict)
