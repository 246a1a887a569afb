"""The images that the tests use, made here."""

import random

from . import ROOT  # noqa: F401 (the path of `stack`)
from stack import images
from stack.containerd import PAUSE_IMAGE

BUSYBOX = "magnetar.test/busybox:1"
DATA = "magnetar.test/data:1"
LAYERS = "magnetar.test/layers:60"
USER = "magnetar.test/user:1"
LAYER_COUNT = 60
RANDOM_SIZE = 10_000_000
NUMBERS = 1_300_000  # `seq` of this many is 10 MB


def random_bytes():
    """The content of /data/random: 10 MB that no pattern hides a fault in. No carriage return:
    containerd's log writer drops it at the end of a line."""
    return random.Random(20240229).randbytes(RANDOM_SIZE - 1).replace(b"\r", b"\0") + b"\n"


def numbered_bytes():
    """What `seq 1 NUMBERS` prints."""
    return "".join(f"{n}\n" for n in range(1, NUMBERS + 1)).encode()


def layered(base):
    """60 layers: each adds a file, replaces another, and from the tenth on deletes an older one."""
    layers = [base]
    for n in range(1, LAYER_COUNT):
        entries = [images.Entry("layers/", mode=0o755), images.Entry(f"layers/{n}", f"{n}\n".encode()),
                   images.Entry("layers/last", f"{n}\n".encode())]
        if n >= 10:
            entries.append(images.Entry(f"layers/.wh.{n - 9}"))
        layers.append(images.layer(entries))
    return layers


def write(path):
    base = images.busybox_layer()
    data = images.layer([images.Entry("data/", mode=0o755), images.Entry("data/random", random_bytes())])
    user = images.layer([images.Entry("home/app/", mode=0o755, uid=1000, gid=1000),
                         images.Entry("home/app/owned", b"mine\n", uid=1000, gid=1000, mode=0o600),
                         images.Entry("etc/passwd", (images.PASSWD + "app:x:1000:1000:app:/home/app:/bin/sh\n").encode()),
                         images.Entry("etc/group", b"root:x:0:\napp:x:1000:\nfirst:x:2000:app\nsecond:x:2001:other,app\n")])
    images.write(path, [
        images.Image(BUSYBOX, [base]),
        images.pause(PAUSE_IMAGE, [base]),
        images.Image(DATA, [base, data]),
        images.Image(LAYERS, layered(base), compress=True),
        images.Image(USER, [base, user], user="app", working_dir="/home/app"),
    ])
