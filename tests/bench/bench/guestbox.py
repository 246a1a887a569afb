"""The guest's kernel and root image booted without Magnetar: with a script of busybox as PID 1."""

import io
import os
import pathlib
import select
import socket
import subprocess
import tempfile
import time

import harness  # noqa: F401  finds the stack
from stack import images

COMMAND_LINE = ("console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr norandmaps cryptomgr.notests "
                "random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd")
LIMIT = 120
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"


def cpio(entries):
    """An archive of (name, mode, content) entries, in cpio's newc format."""
    out = io.BytesIO()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4))
        out.write(content)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def overlay(script, files=()):
    """An initrd whose PID 1 runs `script` with busybox; also as an addition behind another initrd."""
    busybox = pathlib.Path(images.busybox_program()).read_bytes()
    program = b"#!/bin/busybox sh\n" + script.encode()
    return cpio([("bin", 0o40755, b""), ("dev", 0o40755, b""), ("bin/busybox", 0o100755, busybox), ("init", 0o100755, program), *files])


class Box:
    """A QEMU whose console is read line by line, each line with the time at which it came."""

    def __init__(self, kernel, initrd, image=None, shared=None):
        """`image`: the disk vda. `shared`: a folder, given by virtiofs as the tag "shared"."""
        self._initrd = tempfile.NamedTemporaryFile()
        self._initrd.write(initrd)
        self._initrd.flush()
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel",
                   os.environ.get("MAGNETAR_BENCH_ACCEL", "tcg,thread=multi"), "-cpu", "max,-erms,-fsrm", "-M", "q35", "-m", "512M",
                   "-kernel", str(kernel), "-initrd", self._initrd.name, "-append", COMMAND_LINE, "-serial", "stdio"]
        if image:
            command += ["-drive", f"file={image},if=none,id=root,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=root"]
        self._sharing = self._share(shared, command) if shared else None
        self.started = time.monotonic()
        self._qemu = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._seen = b""

    def _share(self, folder, command):
        """Starts a file server as a pod has it, and gives its folder to the guest."""
        listener = socket.socket(socket.AF_UNIX)
        self._runtime = tempfile.TemporaryDirectory()
        path = f"{self._runtime.name}/shared.sock"
        listener.bind(path)
        listener.listen()
        command += ["-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-machine", "memory-backend=ram",
                    "-chardev", f"socket,id=shared,path={path}", "-device", "vhost-user-fs-pci,chardev=shared,tag=shared"]
        with listener:
            return subprocess.Popen([VIRTIOFSD, f"--fd={listener.fileno()}", "-o",
                                     f"source={folder},cache=always,timeout=1,xattr,announce_submounts,log_level=warn"],
                                    pass_fds=[listener.fileno()])

    def send(self, line):
        """Gives the script a line to read."""
        self._qemu.stdin.write(line.encode() + b"\n")
        self._qemu.stdin.flush()

    def wait_for(self, mark):
        """The time at which the line `mark` came."""
        while mark.encode() not in self._seen:
            if time.monotonic() - self.started > LIMIT or not select.select([self._qemu.stdout], [], [], LIMIT)[0]:
                raise TimeoutError(f"{mark!r} did not come within {LIMIT} s: {self._seen[-800:]!r}")
            chunk = os.read(self._qemu.stdout.fileno(), 4096)
            if not chunk:
                raise OSError(f"the guest ended before {mark!r}: {self._seen[-800:]!r}")
            self._seen += chunk
        self._seen = self._seen.split(mark.encode(), 1)[1]
        return time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._sharing:
            self._sharing.kill()
            self._sharing.wait()
            self._runtime.cleanup()
        self._qemu.kill()
        self._qemu.wait()
        self._qemu.stdin.close()
        self._qemu.stdout.close()
        self._initrd.close()
