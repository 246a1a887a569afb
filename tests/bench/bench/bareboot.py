"""What QEMU itself needs to bring the guest's kernel to PID 1: the yardstick of a cold start."""

from . import guestbox

SCRIPT = "echo pid-1-is-here > /dev/console\n/bin/busybox reboot -f\n"


def boot(kernel):
    """Seconds from QEMU's exec to the first line of PID 1."""
    with guestbox.Box(kernel, guestbox.overlay(SCRIPT)) as box:
        return box.wait_for("pid-1-is-here") - box.started
