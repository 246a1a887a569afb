"""Volumes as a kubelet lays them out, and what of them goes wrong."""

import os
import pathlib
import re
import subprocess

import pytest

from harness import settings, testimages
from stack.crictl import CrictlError
from stack.services import wait_until

EMPTY_DIR = "volumes/kubernetes.io~empty-dir"


def mount(source, target, readonly=False, **extra):
    return {"host_path": str(source), "container_path": target, "readonly": readonly, **extra}


class KubeletPod:
    """The directory that a kubelet keeps for a pod."""

    def __init__(self, top):
        self.top = top / "pods" / "0c1e-4f"
        self.mounts = []

    def empty_dir(self, name, fstype=None, options=""):
        directory = self.top / EMPTY_DIR / name
        directory.mkdir(parents=True)
        if fstype is not None:
            self.mount("-t", fstype, "-o", options, name, directory)
        return directory

    def sub_path(self, volume, part, index=0):
        """What a kubelet binds for a subPath: `part`, a path within the volume, which is there."""
        source = self.top / EMPTY_DIR / volume / part
        point = self.top / "volume-subpaths" / volume / "main" / str(index)
        point.parent.mkdir(parents=True, exist_ok=True)
        point.mkdir() if source.is_dir() else point.touch()
        self.mount("--bind", source, point)
        return point

    def mount(self, *arguments):
        subprocess.run(["mount", *map(str, arguments)], check=True)
        self.mounts.append(arguments[-1])

    def close(self):
        for point in reversed(self.mounts):
            subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def kubelet(tmp_path):
    kubelet = KubeletPod(tmp_path)
    yield kubelet
    kubelet.close()


def test_sub_path(pod, kubelet):
    """Of a volume on the disk: a directory, and a file alone."""
    volume = kubelet.empty_dir("data")
    (volume / "in" / "deep").mkdir(parents=True)
    (volume / "in" / "deep" / "file").write_text("deep\n")
    (volume / "app.conf").write_text("key = value\n")
    container = pod.shell(mounts=[mount(kubelet.sub_path("data", "in/deep"), "/deep"),
                                  mount(kubelet.sub_path("data", "app.conf", 1), "/etc/app.conf", True)])
    assert container.output("ls", "/deep") == "file\n"
    container.output("sh", "-c", "echo more > /deep/more; sync")
    assert (volume / "in" / "deep" / "more").read_text() == "more\n"
    assert container.output("cat", "/etc/app.conf") == "key = value\n"
    assert "Read-only" in container.exec("sh", "-c", "echo x > /etc/app.conf", check=False).stderr
    container.stop(0)
    container.remove()


def test_sub_path_of_a_volume_in_memory(stack, kubelet):
    """It is a part of the tmpfs that all containers of the pod have, in the guest or on the host."""
    volume = kubelet.empty_dir("cache", "tmpfs", "size=1m,mode=1777")
    (volume / "a b" / "deep").mkdir(parents=True)
    (volume / "a b" / "deep").chmod(0o2775)
    os.chown(volume / "a b" / "deep", 12, 34)
    (volume / "file").touch()
    deep, file = kubelet.sub_path("cache", "a b/deep"), kubelet.sub_path("cache", "file", 1)
    with stack.pod() as pod:
        part = pod.shell(mounts=[mount(deep, "/deep"), mount(file, "/file"), mount(deep, "/ro", True)])
        assert part.output("stat", "-c", "%a %u %g", "/deep") == "2775 12 34\n"
        assert part.output("stat", "-c", "%F %s", "/file") == "regular empty file 0\n"
        part.output("sh", "-c", "echo deep > /deep/x; echo text > /file")
        assert part.output("cat", "/ro/x") == "deep\n"
        assert "Read-only" in part.exec("touch", "/ro/y", check=False).stderr
        whole = pod.shell(mounts=[mount(volume, "/cache")])
        assert whole.output("sh", "-c", "cat '/cache/a b/deep/x' /cache/file") == "deep\ntext\n"
        part.stop(0)
        part.remove()
        again = pod.shell(mounts=[mount(deep, "/deep")])
        assert again.output("cat", "/deep/x") == "deep\n"
        if settings.IS_VM:
            assert list((volume / "a b" / "deep").iterdir()) == []


@pytest.mark.vm
def test_sub_path_that_a_container_has_turned_into_a_link(stack, kubelet):
    volume = kubelet.empty_dir("cache", "tmpfs", "mode=1777")
    (volume / "part").mkdir()
    part = kubelet.sub_path("cache", "part")
    with stack.pod() as pod:
        whole = pod.shell(mounts=[mount(volume, "/cache")])
        whole.output("ln", "-s", "../../../..", "/cache/part")
        with pytest.raises(CrictlError, match="part"):
            pod.shell(mounts=[mount(part, "/part")])
        whole.output("sh", "-c", "rm /cache/part; mkdir /cache/other; ln -s other /cache/part")
        pod.shell(mounts=[mount(part, "/part")]).output("touch", "/part/file")
        assert whole.output("ls", "/cache/other") == "file\n"


def huge(limit):
    return {"linux": {"resources": {"hugepage_limits": [{"page_size": "2MB", "limit": limit}, {"page_size": "1GB", "limit": 0}]}}}


def pages(container, name="HugePages_Total"):
    return int(container.output("awk", f"/^{name}/ {{ print $2 }}", "/proc/meminfo"))


@pytest.mark.vm
def test_huge_pages(any_stack, kubelet):
    """The guest has those that its containers may use, as long as there are the containers."""
    volume = kubelet.empty_dir("pages", "hugetlbfs", "pagesize=2M")
    with any_stack.pod() as pod:
        plain = pod.shell()
        assert pages(plain) == 0
        memory = int(plain.output("awk", "/^MemTotal/ { print $2 }", "/proc/meminfo"))
        first = pod.shell(mounts=[mount(volume, "/pages")], **huge(8 << 20))
        second = pod.shell(mounts=[mount(volume, "/pages")], **huge(4 << 20))
        assert pages(first) == 6
        assert first.output("stat", "-f", "-c", "%s", "/pages") == f"{2 << 20}\n"
        first.output("fallocate", "-l", str(6 << 20), "/pages/file")
        assert pages(first, "HugePages_Free") == 3
        assert second.output("stat", "-c", "%s", "/pages/file") == f"{6 << 20}\n"
        # There would be pages, but they are the other's.
        result = second.exec("fallocate", "-l", str(6 << 20), "/pages/mine", check=False)
        assert result.returncode != 0, "more than its limit"
        # Update sends the limits again.
        first.crictl.run("update", "--cpu-share", "512", first.id)
        second.output("rm", "-f", "/pages/file", "/pages/mine")
        for container in (first, second):
            container.stop(0)
            container.remove()
        assert pages(plain) == 0

        too_much = huge(memory * 1024)
        with pytest.raises(CrictlError, match=r"mounts\[\d+\] /pages: \d+ KiB in pages of 2048 KiB: the VM has"):
            pod.shell(mounts=[mount(volume, "/pages")], **too_much)
        with pytest.raises(CrictlError, match=r"linux.resources.hugepageLimits\[0\] 2MB: \d+ KiB in pages"):
            pod.shell(**too_much)
        assert pages(plain) == 0


def test_image_volume(any_stack):
    if not settings.IS_VM:
        pytest.skip("containerd's own business")
    newest = any_stack.containerd.service.argv[0].find("2.4") >= 0
    with any_stack.pod() as pod:
        image = {"container_path": "/image", "image": {"image": testimages.DATA}, "readonly": True}
        container = pod.shell(mounts=[image])
        assert container.output("ls", "/image/data") == "random\n"
        size = container.output("stat", "-c", "%s", "/image/data/random").strip()
        assert size == str(testimages.RANDOM_SIZE)
        assert "Read-only" in container.exec("touch", "/image/new", check=False).stderr
        container.stop(0)
        container.remove()
        if newest:
            container = pod.shell(mounts=[{**image, "image_sub_path": "data"}])
            assert container.output("ls", "/image") == "random\n"
            assert "Read-only" in container.exec("touch", "/image/new", check=False).stderr
            container.stop(0)
            container.remove()


def test_config_map_is_swapped(pod, tmp_path):
    """All files of an update come at once, also those of a file that another link hides."""
    volume = tmp_path / "config"

    def write(number, names):
        folder = volume / f"..2026_{number}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(f"{name} {number}\n")
        (volume / "..data_tmp").symlink_to(folder.name)
        os.rename(volume / "..data_tmp", volume / "..data")

    write(1, ["a", "b"])
    for name in ("a", "b"):
        (volume / name).symlink_to(f"..data/{name}")
    container = pod.shell(mounts=[mount(volume, "/config", True)])
    assert container.output("cat", "/config/a", "/config/b") == "a 1\nb 1\n"
    write(2, ["a", "c"])
    (volume / "c").symlink_to("..data/c")
    (volume / "b").unlink()
    wait_until(lambda: container.exec("sh", "-c", "cat /config/*", check=False).stdout == "a 2\nc 2\n", 30, "the old files are still there")
    container.stop(0)
    container.remove()


def test_links_of_a_volume_lead_within_the_container(pod, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("of the host\n")
    (volume / "absolute").symlink_to("/etc/hostname-of-the-image")
    (volume / "upwards").symlink_to("../secret")
    (volume / "host").symlink_to(secret)
    (volume / "dangling").symlink_to("nowhere")
    container = pod.shell(mounts=[mount(volume, "/v")])
    container.output("sh", "-c", "echo of the container > /etc/hostname-of-the-image")
    assert container.output("cat", "/v/absolute") == "of the container\n"
    for name in ("upwards", "host", "dangling"):
        result = container.exec("cat", f"/v/{name}", check=False)
        assert result.returncode != 0 and "No such file" in result.stderr, (name, result)
    # A guest that makes one leads nobody astray either.
    container.output("ln", "-s", str(secret), "/v/made")
    assert container.exec("cat", "/v/made", check=False).returncode != 0
    assert os.readlink(volume / "made") == str(secret)
    container.stop(0)
    container.remove()


def test_a_volume_that_is_a_link(pod, tmp_path):
    """The host follows it, once: what it then names is what the container has."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("elsewhere\n")
    (tmp_path / "volumes").mkdir()
    link = tmp_path / "volumes" / "link"
    link.symlink_to("../elsewhere")
    container = pod.shell(mounts=[mount(link, "/v")])
    assert container.output("cat", "/v/file") == "elsewhere\n"
    link.unlink()
    link.symlink_to("/etc")
    assert container.output("cat", "/v/file") == "elsewhere\n"
    container.stop(0)
    container.remove()


@pytest.mark.vm
@pytest.mark.parametrize("kind", ["vanished", "dangling", "root"])
def test_a_volume_that_is_gone_at_the_start(pod, tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    container = pod.create("/bin/sleep", "infinity", mounts=[mount(source, "/v")])
    source.rmdir()
    if kind != "vanished":
        source.symlink_to("nowhere" if kind == "dangling" else "/")
    with pytest.raises(CrictlError) as error:
        container.start()
    expected = "the host's root directory" if kind == "root" else f"open {re.escape(str(source))}: No such file or directory"
    assert re.search(rf"mounts\[\d+\] /v: {expected}", str(error.value)), error.value
    assert container.status()["state"] == "CONTAINER_EXITED"
    container.remove()
    assert pod.shell().output("echo", "fine") == "fine\n"


@pytest.mark.vm
def test_nothing_of_a_refused_container_stays(stack, tmp_path):
    """Neither the shares before the one that is refused, nor what the journal has of them."""
    good = tmp_path / "good"
    good.mkdir()
    with stack.pod() as pod:
        pod.shell()
        record = stack.sandbox_record(pod) / "sandbox.json"
        before = record.read_text(), stack.host.shared()
        with pytest.raises(CrictlError, match="sockets|/dev/null"):
            pod.shell(mounts=[mount(good, "/good"), mount(pathlib.Path("/dev/null"), "/bad")])
        assert (record.read_text(), stack.host.shared()) == before
