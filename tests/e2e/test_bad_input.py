"""Bad input: the right code, a message that names the fault, and nothing left behind."""

import os
import pathlib
import socket

import pytest

from harness.controller import Controller
from stack.crictl import CrictlError

pytestmark = pytest.mark.vm
CONFIG_TYPE = "runtime.v1.PodSandboxConfig"


@pytest.fixture
def controller(stack):
    controller = Controller(stack.daemon.socket)
    yield controller
    controller.close()


@pytest.mark.parametrize("bad", ["", "a/b", "..", ".", "../x", "a\x01b", "x" * 129, "-/", "ä"])
def test_ids(controller, bad):
    for method in ("Create", "Start", "Stop", "Status", "Shutdown", "Wait", "Platform", "Metrics"):
        code, message = controller.code(method, sandbox_id=bad)
        assert code == "INVALID_ARGUMENT" and message, (method, code, message)


def test_unknown_sandbox(controller):
    for method in ("Start", "Stop", "Status", "Shutdown", "Wait", "Metrics"):
        assert controller.code(method, sandbox_id="unknown")[0] == "NOT_FOUND", method


def test_create_twice(controller):
    fields = {"sandbox_id": "twice", "netns_path": ""}
    controller.call("Create", **fields)
    try:
        assert controller.code("Create", **fields)[0] == "ALREADY_EXISTS"
    finally:
        controller.call("Shutdown", sandbox_id="twice")
    assert controller.code("Status", sandbox_id="twice")[0] == "NOT_FOUND"
    assert controller.code("Shutdown", sandbox_id="twice")[0] == "NOT_FOUND"


def test_stop_of_one_that_never_started(controller):
    controller.call("Create", sandbox_id="idle")
    controller.call("Stop", sandbox_id="idle")
    controller.call("Stop", sandbox_id="idle")
    controller.call("Shutdown", sandbox_id="idle")


def test_options_that_are_none(controller):
    code, message = controller.code("Create", sandbox_id="options", options=controller.any(CONFIG_TYPE, b"\xff\xff\xff"))
    assert code == "INVALID_ARGUMENT" and message
    code, message = controller.code("Create", sandbox_id="options", options=controller.any("example.com/Other", b""))
    assert code == "INVALID_ARGUMENT" and "example.com/Other" in message
    assert controller.code("Status", sandbox_id="options")[0] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/nonexistent", "/etc/passwd", "/proc/1/ns/mnt", "relative"])
def test_netns_path_that_is_none(controller, path):
    try:
        controller.call("Create", sandbox_id="netns", netns_path=path)
    except Exception as error:  # noqa: BLE001
        code, message = error.code().name, error.details()
    else:
        code, message = controller.code("Start", sandbox_id="netns")
        controller.call("Shutdown", sandbox_id="netns")
    assert code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND") and path in message, (code, message)
    assert controller.code("Status", sandbox_id="netns")[0] == "NOT_FOUND"


def test_platform(controller):
    with_sandbox = {"sandbox_id": "platform"}
    controller.call("Create", **with_sandbox)
    try:
        platform = controller.call("Platform", **with_sandbox).platform
        assert (platform.os, platform.architecture) == ("linux", "amd64")
    finally:
        controller.call("Shutdown", **with_sandbox)


@pytest.mark.parametrize("options, name", [({"network": 2}, "network"), ({"pid": 2}, "pid"), ({"ipc": 2}, "ipc")])
def test_namespaces_of_the_host_are_refused(stack, options, name):
    with pytest.raises(CrictlError, match=f"(?i)host_?{name}|{name}.*(node|host)"):
        stack.new_pod(linux={"security_context": {"namespace_options": options}})
    assert stack.pods() == []


def test_user_namespace_is_refused(stack):
    ids = [{"host_id": 100000, "container_id": 0, "length": 65536}]
    with pytest.raises(CrictlError, match="(?i)user"):
        stack.new_pod(linux={"security_context": {"namespace_options": {"userns_options": {"mode": 0, "uids": ids, "gids": ids}}}})


def test_unknown_handler(stack):
    with pytest.raises(CrictlError, match="no-such-handler"):
        stack.new_pod(handler="no-such-handler")


@pytest.mark.parametrize("source", ["socket", "device", "fifo"])
def test_special_host_paths(stack, tmp_path, source):
    """Either refused with the path in the message, or a mount that is there: never a hang, never a leak."""
    path = tmp_path / source
    if source == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
    elif source == "fifo":
        os.mkfifo(path)
    else:
        path = pathlib.Path("/dev/loop-control")
    with stack.pod() as pod:
        try:
            container = pod.shell(mounts=[{"host_path": str(path), "container_path": "/special"}])
        except CrictlError as error:
            assert str(path) in str(error)
        else:
            assert container.exec("test", "-e", "/special", check=False).returncode == 0


def test_host_root_as_a_volume(stack):
    with stack.pod() as pod:
        try:
            container = pod.shell(mounts=[{"host_path": "/", "container_path": "/host", "readonly": True}])
        except CrictlError as error:
            assert "/" in str(error)
        else:
            assert container.output("cat", "/host/etc/os-release") == pathlib.Path("/etc/os-release").read_text()
            assert container.exec("touch", "/host/tmp/x", check=False).returncode != 0


def test_host_devices_are_refused(stack):
    with stack.pod() as pod:
        with pytest.raises(CrictlError, match="/dev/loop-control"):
            pod.shell(devices=[{"host_path": "/dev/loop-control", "container_path": "/dev/loop-control", "permissions": "rwm"}])
        assert pod.shell().output("echo", "fine") == "fine\n"


def test_a_spec_that_crun_refuses(stack):
    """crun's own message reaches the client."""
    with stack.pod() as pod:
        with pytest.raises(CrictlError, match="(?i)chdir|no-such-dir|not a directory"):
            pod.shell(working_dir="/etc/passwd/no-such-dir")


def test_a_container_dials_vsock(stack):
    """No vsock port of host or guest answers a container."""
    script = "for d in /dev/vsock /dev/virtio-ports /dev/vport0p1; do ls $d 2>/dev/null; done; echo end"
    with stack.pod() as pod:
        container = pod.shell()
        assert container.output("sh", "-c", script) == "end\n"
