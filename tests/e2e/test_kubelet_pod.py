"""A pod as the kubelet makes it: its mounts, identity, security context, resources and probes."""

import os
import subprocess

import pytest

from harness import settings
from stack.crictl import CrictlError
from stack.services import wait_until


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Host folders and files as the kubelet lays them out."""
    tmp_path = tmp_path_factory.mktemp("volumes")
    token = tmp_path / "token"
    (token / "..2026_01_01").mkdir(parents=True)
    (token / "..2026_01_01" / "token").write_text("secret-1")
    (token / "..data").symlink_to("..2026_01_01")
    (token / "token").symlink_to("..data/token")
    (tmp_path / "etc-hosts").write_text("127.0.0.1 localhost\n10.1.2.3 peer.example peer\n")
    (tmp_path / "termination-log").touch()
    (tmp_path / "resolv.conf").write_text("nameserver 10.9.9.9\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "from-host").write_text("host\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "app.conf").write_text("key = value\n")
    return tmp_path


def mount(source, target, readonly=False):
    return {"host_path": str(source), "container_path": target, "readonly": readonly}


@pytest.fixture(scope="module")
def kubelet_container(shared_stack, volumes):
    config = {
        "hostname": "web-0",
        "dns_config": {"servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local", "svc.cluster.local"],
                       "options": ["ndots:5"]},
        "labels": {"io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "e2e"},
        "annotations": {"kubernetes.io/config.source": "api"},
        "linux": {"security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}},
                  "resources": {"cpu_period": 100000, "cpu_quota": 100000, "memory_limit_in_bytes": 256 << 20},
                  "sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"}},
    }
    with shared_stack.pod(**config) as pod:
        container = pod.run(
            "/bin/sh", "-c", "echo done > /dev/termination-log; exec sleep infinity",
            labels={"io.kubernetes.container.name": "app"},
            mounts=[
                mount(volumes / "etc-hosts", "/etc/hosts"),
                mount(volumes / "termination-log", "/dev/termination-log"),
                mount(volumes / "token", "/var/run/secrets/kubernetes.io/serviceaccount", True),
                mount(volumes / "data", "/data"),
                mount(volumes / "config", "/config", True),
                mount(volumes / "config" / "app.conf", "/etc/app.conf", True),
            ],
            linux={"resources": {"cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512, "memory_limit_in_bytes": 128 << 20,
                                 "oom_score_adj": 985},
                   "security_context": {
                       "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]},
                       "namespace_options": {"pid": 1}, "no_new_privs": True, "seccomp": {"profile_type": 0},
                       "masked_paths": ["/proc/kcore", "/proc/keys"], "readonly_paths": ["/proc/sys", "/proc/bus"]}})
        yield container


@pytest.fixture
def kubelet_pod(kubelet_container, stack):
    """The one container of the kubelet's pod, which all tests look at."""
    return kubelet_container


def test_identity(kubelet_pod):
    assert kubelet_pod.output("hostname") == "web-0\n"
    assert "10.1.2.3 peer.example" in kubelet_pod.output("cat", "/etc/hosts").replace("\t", " ")
    resolv = kubelet_pod.output("cat", "/etc/resolv.conf").split()
    assert "10.96.0.10" in resolv and "svc.cluster.local" in resolv and "ndots:5" in resolv


def test_resolv_conf_of_a_mount_wins(pod, volumes):
    container = pod.shell(mounts=[mount(volumes / "resolv.conf", "/etc/resolv.conf")])
    assert container.output("cat", "/etc/resolv.conf") == "nameserver 10.9.9.9\n"
    assert " /etc/resolv.conf " in container.output("cat", "/proc/mounts")


def test_mounts_reach_both_ways(kubelet_pod, volumes):
    assert kubelet_pod.output("cat", "/data/from-host") == "host\n"
    kubelet_pod.output("sh", "-c", "echo guest > /data/from-guest; sync")
    assert (volumes / "data" / "from-guest").read_text() == "guest\n"
    (volumes / "data" / "later").write_text("later\n")
    assert kubelet_pod.output("cat", "/data/later") == "later\n"
    assert (volumes / "termination-log").read_text() == "done\n"
    # A file that is bound in stays the host's file.
    kubelet_pod.output("sh", "-c", "echo more >> /dev/termination-log; sync")
    assert (volumes / "termination-log").read_text() == "done\nmore\n"


def test_what_changes_on_the_host_is_seen(kubelet_pod, volumes):
    """Within the second for which the guest believes what it knows; the same size, and a listing that it has made before."""
    data = volumes / "data"
    (data / "changing").write_text("one\n")
    (data / "going").touch()
    assert kubelet_pod.output("cat", "/data/changing") == "one\n"
    assert "going" in kubelet_pod.output("ls", "/data").split()
    (data / "changing").write_text("two\n")
    (data / "going").unlink()
    (data / "coming").touch()
    wait_until(lambda: kubelet_pod.output("cat", "/data/changing") == "two\n", 5, "the guest sees the old contents")
    wait_until(lambda: {"coming", "going"} & set(kubelet_pod.output("ls", "/data").split()) == {"coming"}, 5, "the guest lists the old files")
    (data / "changing").unlink()
    (data / "coming").unlink()


def test_files_of_a_volume_keep_owner_mode_and_kind(pod, volumes):
    container = pod.shell(mounts=[mount(volumes / "data", "/data")])
    container.output("sh", "-c", """set -e; cd /data; echo x > f; chmod 4750 f; chown 12:34 f; ln f hard; ln -s f soft; mkfifo p
                                    mkdir d; chmod 1777 d; touch -d '2001-02-03 04:05:06' f; sync""")
    data = volumes / "data"
    info = (data / "f").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777, info.st_nlink) == (12, 34, 0o750, 2)
    assert int(info.st_mtime) == 981173106
    assert os.readlink(data / "soft") == "f" and (data / "p").is_fifo()
    assert (data / "d").stat().st_mode & 0o7777 == 0o1777


def test_read_only_mounts(kubelet_pod, volumes):
    for command in ("echo x > /config/app.conf", "echo x > /etc/app.conf", "touch /config/new", "rm /config/app.conf",
                    "touch /var/run/secrets/kubernetes.io/serviceaccount/x"):
        result = kubelet_pod.exec("sh", "-c", command, check=False)
        assert result.returncode != 0 and "Read-only file system" in result.stderr, command
    assert (volumes / "config" / "app.conf").read_text() == "key = value\n"


def test_file_systems_within_a_volume(pod, tmp_path):
    """They are seen, stay writable below a read-only mount, and their owner can take them away from under a container."""
    disk = tmp_path / "volume" / "disk"
    (disk / "deep").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "disk", str(disk)], check=True)
    try:
        (disk / "file").write_text("on the disk\n")
        container = pod.shell(mounts=[mount(disk.parent, "/rw"), mount(disk.parent, "/ro", True)])
        assert container.output("cat", "/rw/disk/file", "/ro/disk/file") == "on the disk\n" * 2
        container.output("sh", "-c", "echo 1 > /rw/disk/one && echo 2 > /ro/disk/two && ! touch /ro/x")
        assert sorted(path.name for path in disk.iterdir()) == ["file", "one", "two"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    (disk / "deep").rmdir()
    disk.rmdir()
    assert container.output("ls", "/rw").split() in ([], ["disk"]), "the container still has what it had, or nothing"
    container.stop(0)
    container.remove()


@pytest.fixture
def shared_volume(tmp_path):
    """A file system of the host whose mounts others may follow."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "volume", str(volume)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(volume)], check=True)
        yield volume
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", str(volume)], check=True)


def test_what_the_host_mounts_and_unmounts_within_a_volume(pod, shared_volume):
    """HostToContainer: it comes into the container, and nothing keeps the host from unmounting it."""
    earlier, later = shared_volume / "earlier", shared_volume / "later"
    for folder in (earlier, later):
        folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "earlier", str(earlier)], check=True)
    container = pod.shell(mounts=[{**mount(shared_volume, "/data"), "propagation": 1}])
    subprocess.run(["umount", str(earlier)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "later", str(later)], check=True)
    (later / "file").write_text("mounted later\n")
    wait_until(lambda: container.exec("cat", "/data/later/file", check=False).stdout == "mounted later\n", 5, "it does not come in")
    assert container.output("ls", "/data/earlier") == ""
    container.stop(0)
    container.remove()
    subprocess.run(["umount", str(later)], check=True)


@pytest.mark.vm
def test_propagation_that_a_vm_cannot_have(pod, shared_volume):
    """To the host is refused by name. From the host below a read-only volume would come writable: it does not come."""
    later = shared_volume / "later"
    later.mkdir()
    with pytest.raises(CrictlError, match=r'mounts\[\d+\] /data: mount propagation \S*rshared\S*: mounts made in a VM cannot reach the host'):
        pod.shell(mounts=[{**mount(shared_volume, "/data"), "propagation": 2}])
    container = pod.shell(mounts=[{**mount(shared_volume, "/data", True), "propagation": 1}])
    subprocess.run(["mount", "-t", "tmpfs", "later", str(later)], check=True)
    (later / "file").touch()
    assert container.exec("touch", "/data/later/mine", check=False).returncode != 0
    assert "later" in container.output("ls", "/data")
    assert [path.name for path in later.iterdir()] == ["file"]
    container.stop(0)
    container.remove()


@pytest.mark.vm
def test_empty_dir_in_memory_is_the_guests(stack, tmp_path):
    directory = tmp_path / "pods" / "0c1e-4f" / "volumes" / "kubernetes.io~empty-dir" / "cache"
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "cache", str(directory)], check=True)
    try:
        with stack.pod() as pod:
            first, second = (pod.shell(mounts=[mount(directory, "/cache")]) for _ in range(2))
            first.output("sh", "-c", "echo kept > /cache/file")
            assert second.output("cat", "/cache/file") == "kept\n"
            assert second.exec("sh", "-c", "head -c 2000000 /dev/zero > /cache/big", check=False).returncode != 0
            first.stop(0)
            first.remove()
            assert pod.shell(mounts=[mount(directory, "/cache", True)]).output("cat", "/cache/file") == "kept\n"
            assert list(directory.iterdir()) == []
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_projected_token_is_swapped(kubelet_pod, volumes):
    """The kubelet renews a token by swapping the ..data link."""
    path = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert kubelet_pod.output("cat", path) == "secret-1"
    newer = volumes / "token" / "..2026_01_02"
    newer.mkdir()
    (newer / "token").write_text("secret-2")
    (volumes / "token" / "..data_tmp").symlink_to(newer.name)
    os.rename(volumes / "token" / "..data_tmp", volumes / "token" / "..data")
    # The guest may hold on to a link for a second.
    wait_until(lambda: kubelet_pod.output("cat", path) == "secret-2", 30, "the old token is still there")


def test_special_files(kubelet_pod):
    assert "tmpfs" in kubelet_pod.output("grep", " /dev/shm ", "/proc/mounts")
    assert kubelet_pod.output("sh", "-c", "echo ok > /dev/shm/x; cat /dev/shm/x; echo > /dev/null; head -c3 /dev/zero | wc -c") == "ok\n3\n"
    assert kubelet_pod.output("sh", "-c", "head -c16 /dev/urandom | wc -c") == "16\n"


def test_security_context(kubelet_pod):
    status = dict(line.split(":", 1) for line in kubelet_pod.output("cat", "/proc/1/status").splitlines() if ":" in line)
    assert int(status["CapEff"], 16) == 1 << 10, "NET_BIND_SERVICE alone"
    assert status["NoNewPrivs"].strip() == "1"
    assert kubelet_pod.exec("sh", "-c", "echo 1 > /proc/sys/kernel/panic", check=False).returncode != 0
    assert kubelet_pod.output("sh", "-c", "wc -c < /proc/keys") == "0\n"


def test_resources_reach_the_cgroup(kubelet_pod):
    script = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert kubelet_pod.output("sh", "-c", script) == f"{128 << 20}\n"


@pytest.mark.vm
def test_cpu_and_memory_of_the_guest(kubelet_pod):
    assert kubelet_pod.output("nproc") == "1\n"
    total = int(kubelet_pod.output("awk", "/^MemTotal/ { print $2 }", "/proc/meminfo")) >> 10
    assert 200 <= total <= 400, f"{total} MiB of memory for a limit of 256"
    # The container's cgroup is the root of what it sees: nothing of the pod above it.
    assert kubelet_pod.output("cat", "/proc/1/cgroup").strip() == "0::/"


def test_sysctl_of_the_pod(kubelet_pod):
    assert kubelet_pod.output("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0\n"


def test_exec_probe(kubelet_pod):
    for _ in range(3):
        assert kubelet_pod.crictl.run("exec", "-s", kubelet_pod.id, "cat", "/config/app.conf").stdout.strip() == "key = value"


def test_update_of_resources(kubelet_pod):
    if not settings.IS_VM:
        pytest.skip("the path of the cgroup differs")
    # With every update containerd sends what the host's spec has: CPUs that the guest lacks.
    kubelet_pod.crictl.run("update", "--cpuset-cpus", f"0-{os.cpu_count() - 1}", "--memory", str(96 << 20), kubelet_pod.id)
    assert kubelet_pod.output("cat", "/sys/fs/cgroup/memory.max") == f"{96 << 20}\n"
    kubelet_pod.crictl.run("update", "--memory", str(128 << 20), kubelet_pod.id)


@pytest.mark.vm
def test_out_of_memory_is_told(pod):
    container = pod.run("/bin/sh", "-c", "x=a; while :; do x=$x$x; done",
                        linux={"resources": {"memory_limit_in_bytes": 24 << 20}})
    assert container.wait_exit(120) == 137
    assert container.status()["reason"] == "OOMKilled"


def test_read_only_root(pod):
    container = pod.shell(linux={"security_context": {"readonly_rootfs": True}})
    result = container.exec("touch", "/x", check=False)
    assert result.returncode != 0 and "Read-only file system" in result.stderr


def test_privileged(stack):
    with stack.pod(linux={"security_context": {"privileged": True}}) as pod:
        container = pod.shell(linux={"security_context": {"privileged": True}})
        assert container.output("sh", "-c", "mkdir /m && mount -t tmpfs none /m && grep -c ' /m ' /proc/mounts") == "1\n"
