"""`crun exec` by hand, the yardstick of an exec: in the same guest without Magnetar, with the process that CRI makes, in a
container whose root file system comes as a pod's does."""

import contextlib
import io
import itertools
import json
import pathlib
import tarfile
import tempfile
import time

import harness  # noqa: F401  finds the stack
from stack import images

from . import guestbox

SCRIPT = """
export PATH=/bin _LIBCONTAINER_CLONED_BINARY=1
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev; mount -t proc none /proc; mount -t sysfs none /sys
exec > /dev/ttyS0 2>&1 < /dev/null
while read -r module; do insmod "/${module#/}"; done < /etc/magnetar/modules.boot
mount -t erofs -o ro /dev/vda /sysroot || echo no-root
mount -t proc none /sysroot/proc; mount -t sysfs none /sysroot/sys; mount -t cgroup2 none /sysroot/sys/fs/cgroup
mount -t devtmpfs none /sysroot/dev; mount -t tmpfs none /sysroot/run; mount -t tmpfs none /sysroot/tmp
while read -r module; do insmod "/sysroot/${module#/}"; done < /sysroot/etc/magnetar/modules
mkdir -p /sysroot/run/b /sysroot/run/shared
mount -t virtiofs shared /sysroot/run/shared || echo no-shared
cp /config.json /sysroot/run/b/
chroot /sysroot /usr/bin/crun --root /run/crun run -d --bundle /run/b box || echo crun-failed
chroot /sysroot /usr/bin/crun --root /run/crun exec box true || echo exec-failed
stty -echo < /dev/ttyS0
echo exec-begin
while read -r n; do chroot /sysroot /usr/bin/crun --root /run/crun exec box true; echo "exec-done-$n."; done < /dev/ttyS0
reboot -f
"""

CAPABILITIES = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
                                           "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")]
CONFIG = {
    "ociVersion": "1.0.0",
    "process": {"args": ["/bin/busybox", "sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=box"],
                "capabilities": {name: CAPABILITIES for name in ("bounding", "effective", "permitted")}, "oomScoreAdj": 0},
    "root": {"path": "/run/shared/rootfs"},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
               {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}],
    "linux": {"cgroupsPath": "/pod/box", "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "cgroup")]},
}


@contextlib.contextmanager
def by_hand(guest):
    """Gives a function that execs true once and returns the seconds that it took."""
    guest = pathlib.Path(guest)
    added = guestbox.overlay(SCRIPT, [("config.json", 0o100644, json.dumps(CONFIG).encode()), ("sys", 0o40755, b""),
                                      ("proc", 0o40755, b""), ("sysroot", 0o40755, b"")])
    initrd = (guest / "initrd.img").read_bytes()
    initrd += b"\0" * (-len(initrd) % 512) + added
    with tempfile.TemporaryDirectory() as shared, guestbox.Box(guest / "vmlinux", initrd, guest / "root.erofs", shared) as box:
        with tarfile.open(fileobj=io.BytesIO(images.busybox_layer())) as layer:
            layer.extractall(f"{shared}/rootfs")
        box.wait_for("exec-begin")
        numbers = itertools.count(1)

        def exec_true():
            number = next(numbers)
            started = time.monotonic()
            box.send(str(number))
            return box.wait_for(f"exec-done-{number}.") - started

        yield exec_true
