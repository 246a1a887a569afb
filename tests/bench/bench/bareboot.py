"""What QEMU itself needs to bring the guest's kernel to PID 1: the yardstick of a cold start."""

import io
import os
import pathlib
import select
import subprocess
import tempfile
import time

COMMAND_LINE = ("console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr cryptomgr.notests "
                "random.trust_cpu=on rcupdate.rcu_expedited=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd")
MARK = b"pid-1-is-here"
LIMIT = 60


def _cpio(entries):
    """An initrd of (name, mode, content) entries, in cpio's newc format."""
    out = io.BytesIO()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4))
        out.write(content)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def _initrd():
    busybox = pathlib.Path("/bin/busybox").read_bytes()
    script = b"#!/bin/busybox sh\necho " + MARK + b" > /dev/console\n/bin/busybox reboot -f\n"
    return _cpio([("bin", 0o40755, b""), ("dev", 0o40755, b""), ("bin/busybox", 0o100755, busybox), ("init", 0o100755, script)])


def boot(kernel):
    """Seconds from QEMU's exec to the first line of PID 1."""
    with tempfile.NamedTemporaryFile() as initrd:
        initrd.write(_initrd())
        initrd.flush()
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel",
                   os.environ.get("MAGNETAR_BENCH_ACCEL", "tcg,thread=multi"), "-cpu", "max", "-M", "q35", "-m", "512M",
                   "-kernel", str(kernel), "-initrd", initrd.name, "-append", COMMAND_LINE, "-serial", "stdio"]
        started = time.monotonic()
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            seen = b""
            while MARK not in seen:
                if time.monotonic() - started > LIMIT or not select.select([qemu.stdout], [], [], LIMIT)[0]:
                    raise TimeoutError(f"the kernel did not reach PID 1 within {LIMIT} s: {seen[-500:]!r}")
                chunk = os.read(qemu.stdout.fileno(), 4096)
                if not chunk:
                    raise OSError(f"QEMU ended: {seen[-500:]!r}")
                seen += chunk
            return time.monotonic() - started
        finally:
            qemu.kill()
            qemu.wait()
            qemu.stdout.close()
