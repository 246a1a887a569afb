"""Files of the host in a guest, the same by virtiofs and by 9p: what programs, users and the host see of them."""

import json
import os
import pathlib
import socket

import pytest

from harness import guestprogram
from harness.host import descriptors
from stack.services import wait_until

pytestmark = pytest.mark.vm

SERVERS = {"virtiofs": "virtiofsd", "9p": "vmm-9p"}


def mount(source, target, readonly=False):
    return {"host_path": str(source), "container_path": target, "readonly": readonly}


@pytest.fixture(scope="module")
def sharing_pod(sharing_stack):
    with sharing_stack.pod() as pod:
        yield pod


@pytest.fixture
def pod(sharing_pod):
    yield sharing_pod
    for container in sharing_pod.containers():
        sharing_pod.stack.crictl.run("rm", "--force", container)


def file_share(pod):
    return json.loads((pod.stack.sandbox_record(pod) / "sandbox.json").read_text())["file_share"]


def test_the_back_end_is_the_one_that_is_configured(pod, request):
    share = file_share(pod)
    assert share in request.node.callspec.id
    container = pod.shell()
    root = next(line.split() for line in container.output("cat", "/proc/mounts").splitlines() if line.split()[1] == "/")
    assert root[2] == share
    assert pod.processes(SERVERS[share])
    command = pathlib.Path(f"/proc/{pod.vmm()}/cmdline").read_bytes()
    assert (b"vhost-user-fs" in command) == (b"share=on" in command) == (share == "virtiofs")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return guestprogram.build("files", tmp_path_factory.mktemp("program"))


def test_what_programs_do_with_files(pod, program, tmp_path):
    """In the root file system and in a volume. The program itself comes from one: it is mapped and run."""
    container = pod.shell(mounts=[mount(tmp_path, "/data"), mount(program, "/files", True)])
    for directory in ("/data", "/root"):
        result = container.exec("/files", directory, check=False)
        assert result.stdout == "ok\n", f"{directory}: {result.stdout}{result.stderr}"


def test_what_is_written_is_on_the_host_at_once(pod, tmp_path):
    servers = pod.processes(SERVERS[file_share(pod)])
    held = {pid: sorted(descriptors(pid)) for pid in servers}
    container = pod.shell(mounts=[mount(tmp_path, "/data")])
    container.output("sh", "-c", "echo one > /data/file; mkdir /data/d; echo two >> /data/file")
    assert (tmp_path / "file").read_text() == "one\ntwo\n"
    assert (tmp_path / "d").is_dir()
    container.output("sh", "-c", "head -c 3000000 /dev/zero > /data/big; rm /data/file; mv /data/d /data/e")
    assert (tmp_path / "big").stat().st_size == 3_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "e"]
    container.stop(0)
    container.remove()
    # Nor is it held once the container is gone: what is open keeps the space of deleted files.
    wait_until(lambda: all(len(descriptors(pid)) <= len(held[pid]) for pid in servers), 10,
               f"of {held}, there is now {[sorted(descriptors(pid)) for pid in servers]}")


def test_groups_and_capabilities_count_as_the_guest_has_them(pod, tmp_path):
    """A volume as fsGroup makes it, for a user whom the host does not know."""
    tmp_path.chmod(0o755)
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", 0, 2000)
    os.chmod(tmp_path / "shared", 0o2770)
    (tmp_path / "secret").write_text("secret\n")
    os.chown(tmp_path / "secret", 1234, 1234)
    os.chmod(tmp_path / "secret", 0o600)
    user = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1001}, "supplemental_groups": [2000]}
    container = pod.shell(mounts=[mount(tmp_path, "/data")], linux={"security_context": user})
    made = container.exec("sh", "-c", "echo mine > /data/shared/file; mkdir /data/shared/d; echo more > /data/shared/d/file", check=False)
    assert made.returncode == 0, made.stderr
    info = (tmp_path / "shared" / "file").stat()
    assert (info.st_uid, info.st_gid) == (1000, 2000)
    info = (tmp_path / "shared" / "d" / "file").stat()
    assert (info.st_uid, info.st_gid) == (1000, 2000), "the directory hands its group on"
    for command in ("cat /data/secret", "touch /data/file", "chmod 777 /data/secret"):
        assert container.exec("sh", "-c", command, check=False).returncode != 0, command
    # Root without the capability is nobody special.
    drop = {"capabilities": {"drop_capabilities": ["DAC_OVERRIDE", "DAC_READ_SEARCH"]}}
    plain = pod.shell(mounts=[mount(tmp_path, "/data")], linux={"security_context": drop})
    assert plain.exec("cat", "/data/secret", check=False).returncode != 0
    assert pod.shell(mounts=[mount(tmp_path, "/data")]).output("cat", "/data/secret") == "secret\n"


def test_links_lead_where_they_do_in_the_container(pod, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "beside").write_text("the host's\n")
    (tmp_path / "v" / "absolute").symlink_to("/etc/hostname")
    (tmp_path / "v" / "out").symlink_to("../beside")
    (tmp_path / "v" / "host").symlink_to(tmp_path / "beside")
    container = pod.shell(mounts=[mount(tmp_path / "v", "/data")])
    assert container.output("cat", "/data/absolute") == container.output("cat", "/etc/hostname")
    for name in ("out", "host"):
        assert container.exec("cat", f"/data/{name}", check=False).returncode != 0, name
        assert container.exec("sh", "-c", f"echo x > /data/{name}", check=False).returncode != 0 or name == "out"
    assert (tmp_path / "beside").read_text() == "the host's\n"


def test_files_of_other_kinds(pod, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    container = pod.shell(mounts=[mount(tmp_path, "/data")])
    # A FIFO is the guest's own: both its ends are in there.
    assert container.output("sh", "-c", "echo through > /data/fifo & cat /data/fifo") == "through\n"
    assert container.exec("nc", "-w", "1", "local:/data/socket", check=False).returncode != 0, "nobody reaches the host by it"
    container.output("sh", "-c", "mknod /data/null c 1 3 && echo x > /data/null && mkfifo /data/new")
    info = (tmp_path / "null").stat()
    assert info.st_rdev == os.makedev(1, 3) and (tmp_path / "new").is_fifo()
    listener.close()


def test_the_image_stays_what_it_was(pod):
    """Containers of one image share no file that they write."""
    one, other = pod.shell(), pod.shell()
    one.output("sh", "-c", "echo changed >> /etc/passwd; rm /bin/vi; mv /etc/group /etc/moved; mkdir -p /a/b")
    assert "changed" not in other.output("cat", "/etc/passwd")
    assert other.output("ls", "/bin/vi", "/etc/group") == "/bin/vi\n/etc/group\n"
    assert pod.shell().exec("ls", "/a", check=False).returncode != 0


def test_a_pod_keeps_its_back_end(own_stack, tmp_path):
    """Over a daemon that dies and comes back configured otherwise, which finds its way into the old pod's file server."""
    before = own_stack.snapshot()[0], None, None
    own_stack.daemon.service.stop()
    own_stack.daemon.settings = {"vm": {"file_share": "9p"}}
    own_stack.start_daemon()
    pod = own_stack.new_pod()
    (tmp_path / "file").write_text("of the host\n")
    running = pod.shell(mounts=[mount(tmp_path, "/data")])
    own_stack.daemon.service.kill()
    assert running.output("cat", "/data/file") == "of the host\n", "its files do not come by the daemon"
    own_stack.daemon.settings = {"vm": {"file_share": "virtiofs"}}
    own_stack.start_daemon()
    assert file_share(pod) == "9p" and pod.processes("vmm-9p")
    for container in (running, pod.shell(mounts=[mount(tmp_path, "/data")])):
        assert container.output("cat", "/data/file") == "of the host\n"
    pod.remove()
    own_stack.check_unchanged(before)
