"""Makes small OCI images without a registry: a tar of an OCI layout, the same bytes for the same input.

images.py OUTPUT.tar NAME  writes one image of busybox under NAME.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import pathlib
import platform
import subprocess
import sys
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of a layer. `link`: a symbolic link's target; `same_as`: the path of an earlier entry that this is
    another name of; a path ending in / is a folder."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    same_as: str = ""


@functools.lru_cache(maxsize=None)
def busybox_program(kind="static"):
    """The path of a busybox, static or dynamic; raises CalledProcessError if none can be had."""
    finder = pathlib.Path(__file__).resolve().parent.parent / "busybox"
    return subprocess.run([finder, kind], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def layer(entries):
    """The bytes of an uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path.rstrip("/"))
            info.uid, info.gid, info.mode, info.mtime = entry.uid, entry.gid, entry.mode, 0
            if entry.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                tar.addfile(info)
            elif entry.same_as:
                info.type, info.linkname = tarfile.LNKTYPE, entry.same_as
                tar.addfile(info)
            elif entry.path.endswith("/"):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(entry.content)
                tar.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


def busybox_layer(extra=()):
    """A root file system of a static busybox: its applets, the usual folders, users."""
    program = busybox_program()
    binary = pathlib.Path(program).read_bytes()
    applets = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    folders = ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "run/", "sbin/", "sys/", "usr/", "usr/bin/", "var/"]
    entries = [Entry(folder, mode=0o755) for folder in folders]
    entries.append(Entry("tmp/", mode=0o1777))
    entries.append(Entry("bin/busybox", binary, 0o755))
    entries += [Entry(f"bin/{applet}", link="busybox") for applet in sorted(applets) if applet != "busybox"]
    entries += [Entry("etc/passwd", PASSWD.encode()), Entry("etc/group", GROUP.encode())]
    return layer([*entries, *extra])


@dataclasses.dataclass
class Image:
    name: str
    layers: list
    command: tuple = ("/bin/sh",)
    entrypoint: tuple = ()
    env: tuple = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    user: str = ""
    working_dir: str = ""
    compress: bool = False
    volumes: tuple = ()


def _digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def built(images):
    """Blobs by digest, and the manifests' descriptors in the order of `images`."""
    blobs, manifests = {}, []

    def put(data, media_type):
        blobs[_digest(data)] = data
        return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}

    for image in images:
        descriptors = []
        for data in image.layers:
            blob = gzip.compress(data, 6, mtime=0) if image.compress else data
            suffix = "+gzip" if image.compress else ""
            descriptors.append(put(blob, "application/vnd.oci.image.layer.v1.tar" + suffix))
        settings = {"Cmd": list(image.command), "Entrypoint": list(image.entrypoint), "Env": list(image.env)}
        if image.user:
            settings["User"] = image.user
        if image.working_dir:
            settings["WorkingDir"] = image.working_dir
        if image.volumes:
            settings["Volumes"] = {volume: {} for volume in image.volumes}
        config = put(_json({
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()), "os": "linux",
            "created": "1970-01-01T00:00:00Z", "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [_digest(data) for data in image.layers]},
        }), "application/vnd.oci.image.config.v1+json")
        manifest = put(_json({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": descriptors,
        }), "application/vnd.oci.image.manifest.v1+json")
        manifests.append(manifest)
    return blobs, manifests


def write(path, images):
    """Writes `images` as one OCI layout, for `ctr images import`."""
    blobs, manifests = built(images)
    named = [{**manifest, "annotations": {"io.containerd.image.name": image.name}} for image, manifest in zip(images, manifests)]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 0, 0o644
            tar.addfile(info, io.BytesIO(data))

        add("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        add("index.json", _json({"schemaVersion": 2, "manifests": named}))
        for digest in sorted(blobs):
            add("blobs/sha256/" + digest.split(":")[1], blobs[digest])


def busybox(name):
    return Image(name, [busybox_layer()])


def pause(name, layers=None):
    """A sandbox image for handlers that run one: waits until it is killed. Not by `sleep`: where a pod's containers
    share their processes, that would be taken for one of theirs."""
    return Image(name, layers or [busybox_layer()], command=("/bin/tail", "-f", "/dev/null"))


if __name__ == "__main__":
    write(sys.argv[1], [busybox(sys.argv[2])])
