"""Block devices of the host in containers: Kubernetes' volumeDevices, on loop devices."""

import contextlib
import os
import re
import subprocess

import pytest

from harness.stackfixture import HOST_DEVICES
from stack.crictl import CrictlError
from stack.services import wait_until

pytestmark = pytest.mark.vm

SIZE = 8 << 20


@contextlib.contextmanager
def loop_device(file, *options):
    device = subprocess.run(["losetup", "--find", "--show", *options, str(file)], check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        # One that a test has detached is not there any more.
        subprocess.run(["losetup", "--detach", device], stderr=subprocess.DEVNULL)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "volume.img"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture
def device(image):
    with loop_device(image) as path:
        yield path


def volume(device, path="/dev/xvda", permissions="mrw"):
    return {"host_path": str(device), "container_path": path, "permissions": permissions}


def claim(device):
    """Opens a device as mount(8) does: nobody else may have it."""
    return os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)


def is_free(device):
    try:
        os.close(claim(device))
    except OSError:
        return False
    return True


def write(text, path):
    return ["sh", "-c", f"echo {text} | dd of={path} conv=notrunc,fsync 2>&1"]


def read(path, size=6):
    return ["dd", f"if={path}", "bs=1", f"count={size}"]


def test_block_volume(any_stack, image, device):
    with any_stack.pod() as pod:
        container = pod.shell(devices=[volume(device)])
        assert container.output("ls", "-l", "/dev/xvda").startswith("b")
        assert container.output("blockdev", "--getsize64", "/dev/xvda") == f"{SIZE}\n"
        container.output(*write("first", "/dev/xvda"))
        assert image.read_bytes().startswith(b"first\n")
        assert not is_free(device), "it could be mounted on the host meanwhile"
        # With an update containerd sends the rules for the host's devices.
        container.crictl.run("update", "--cpu-share", "512", container.id)
        assert container.output(*read("/dev/xvda")) == "first\n"
        # Of the guest's disks it is the only one that the container may use.
        others = container.output("sh", "-c", "cd /sys/class/block && for d in *; do echo $d $(cat $d/dev); done")
        mine = container.output("stat", "-c", "%t:%T", "/dev/xvda").strip()
        for name, number in (line.split() for line in others.splitlines()):
            major, minor = number.split(":")
            if f"{int(major):x}:{int(minor):x}" != mine:
                result = container.exec("sh", "-c", f"mknod /{name} b {major} {minor}; head -c1 /{name}", check=False)
                assert "not permitted" in result.stderr, (name, result.stderr)
        container.stop(0)
        container.remove()
        assert is_free(device)


def test_containers_of_a_pod_share_a_block_volume(pod, image, device):
    first = pod.shell(devices=[volume(device)])
    second = pod.shell(devices=[volume(device, "/data/disk", "rw"), volume(device, "/dev/again", "r")])
    first.output(*write("first", "/dev/xvda"))
    assert second.output(*read("/data/disk")) == "first\n"
    assert second.output(*read("/dev/again")) == "first\n"
    first.stop(0)
    first.remove()
    assert not is_free(device)
    second.output(*write("again", "/data/disk"))
    assert image.read_bytes().startswith(b"again\n")
    third = pod.shell(devices=[volume(device)])
    assert third.output(*read("/dev/xvda")) == "again\n"
    for container in (second, third):
        container.stop(0)
        container.remove()
    assert is_free(device)


def test_read_only_block_volume(pod, image, device):
    """The host holds the VM to it, whatever the guest allows."""
    image.write_bytes(b"there\n" + bytes(SIZE - 6))
    container = pod.shell(devices=[volume(device, permissions="r")])
    assert container.output(*read("/dev/xvda")) == "there\n"
    assert container.output("blockdev", "--getro", "/dev/xvda") == "1\n"
    assert container.exec(*write("never", "/dev/xvda"), check=False).returncode != 0
    with pytest.raises(CrictlError, match=f"/dev/xvda: {device}: another container of the pod has it read-only"):
        pod.shell(devices=[volume(device)])
    container.stop(0)
    container.remove()
    pod.shell(devices=[volume(device)]).output(*write("there", "/dev/xvda"))


def test_a_block_volume_is_one_pods(stack, pod, device):
    holder = pod.shell(devices=[volume(device)])
    with stack.pod() as other:
        with pytest.raises(CrictlError, match=f"linux.devices.* /dev/xvda: .*{device}: it is mounted or attached elsewhere"):
            other.shell(devices=[volume(device)])
        # As the kubelet moves one: it comes once the other has let go.
        holder.stop(0)
        holder.remove()
        assert other.shell(devices=[volume(device)]).output(*read("/dev/xvda", 1)) == "\0"


def test_sectors_are_the_devices(pod, image):
    """On a disk of 4 KiB sectors a partition table is elsewhere."""
    with loop_device(image, "--sector-size", "4096") as device:
        container = pod.shell(devices=[volume(device)])
        assert container.output("blockdev", "--getss", "/dev/xvda") == "4096\n"
        container.stop(0)
        container.remove()


def test_errors_of_the_device_are_the_containers(stack, tmp_path):
    """A device that is full, and one whose file was cut, do not stop the VM."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], check=True)
    try:
        with open(small / "volume.img", "wb") as file:
            file.truncate(SIZE)
        with loop_device(small / "volume.img") as device, stack.pod() as pod:
            container = pod.shell(devices=[volume(device)])
            fill = ["dd", "if=/dev/zero", "of=/dev/xvda", "bs=64k", "count=64", "conv=fsync"]
            result = container.exec(*fill, check=False, timeout=60)
            assert result.returncode != 0 and re.search("(?i)no space|i/o error|input/output error", result.stderr), result
            assert container.output("echo", "alive") == "alive\n"
            os.truncate(small / "volume.img", 4096)
            result = container.exec("dd", "if=/dev/xvda", "of=/dev/null", "bs=64k", "skip=96", check=False, timeout=60)
            assert result.returncode != 0 and re.search("(?i)i/o error|input/output error", result.stderr), result
            assert container.output("echo", "alive") == "alive\n"
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_mounted_device_is_refused(pod, image, device, tmp_path):
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    point = tmp_path / "mounted"
    point.mkdir()
    subprocess.run(["mount", device, point], check=True)
    try:
        with pytest.raises(CrictlError, match=f"linux.devices.* /dev/xvda: .*{device}: it is mounted or attached elsewhere"):
            pod.shell(devices=[volume(device)])
    finally:
        subprocess.run(["umount", point], check=True)
    assert pod.shell().output("echo", "fine") == "fine\n"


def test_a_device_that_vanishes_before_the_start(pod, tmp_path, image):
    link = tmp_path / "link"
    with loop_device(image) as device:
        link.symlink_to(device)
        gone = pod.create("/bin/sleep", "infinity", devices=[volume(link)])
        link.unlink()
        with pytest.raises(CrictlError, match=f"/dev/xvda: .*{link}: open: No such file or directory"):
            gone.start()
        link.symlink_to(device)
        empty = pod.create("/bin/sleep", "infinity", devices=[volume(link)])
        subprocess.run(["losetup", "--detach", device], check=True)
        with pytest.raises(CrictlError, match=f"/dev/xvda: {link}: it has no contents"):
            empty.start()
    assert pod.shell().output("echo", "fine") == "fine\n"


@pytest.mark.parametrize("permissions", ["", "x", "rwx"])
def test_permissions_that_are_none(pod, device, permissions):
    with pytest.raises(CrictlError, match=r"(?i)permissions"):
        pod.shell(devices=[volume(device, permissions=permissions)])
    assert is_free(device)


def test_a_restarted_daemon_knows_whose_a_volume_is(own_stack, image, device):
    stack = own_stack
    with stack.pod() as pod:
        first, second = (pod.shell(devices=[volume(device)]) for _ in range(2))
        stack.daemon.service.kill()
        stack.start_daemon()
        first.output(*write("first", "/dev/xvda"))
        first.stop(0)
        first.remove()
        assert not is_free(device)
        assert second.output(*read("/dev/xvda")) == "first\n"
        third = pod.shell(devices=[volume(device)])
        assert third.output(*read("/dev/xvda")) == "first\n"
        for container in (second, third):
            container.stop(0)
            container.remove()
        wait_until(lambda: is_free(device), 15, "the VM keeps the device")
        # And with the VM it goes in any case.
        pod.shell(devices=[volume(device)])
        stack.daemon.service.kill()
        stack.start_daemon()
    assert is_free(device)


def test_a_handler_that_gives_privileged_containers_all_devices(stack):
    """They are refused, with the setting that is missing; others do not mind it."""
    privileged = {"linux": {"security_context": {"privileged": True}}}
    with stack.pod(HOST_DEVICES, **privileged) as pod:
        with pytest.raises(CrictlError, match=r"linux\.devices\[\d+\] /dev/\S+: .*needs privileged_without_host_devices = true"):
            pod.shell(**privileged)
        assert pod.shell().output("echo", "fine") == "fine\n"
