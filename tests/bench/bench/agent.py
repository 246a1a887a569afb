"""What the agent in the guest takes: until it is ready, and of memory."""

import os
import re
import subprocess

from harness import settings
from stack import images

PROGRAM = settings.BUILD / "guest-agent" / "guest_vm_test"


def ready_ms(log, sandbox):
    """Milliseconds from the daemon's first step of a start to an agent that is set up, as the daemon logs them."""
    return int(re.search(rf" ready sandbox={sandbox} .*?\bms=(\d+)", log.read_text(errors="replace"))[1])


def resident_kib(count):
    """The agent's resident memory in each of `count` VMs, read by the test that holds it to its limit."""
    samples, busybox = [], images.busybox_program()
    for _ in range(count):
        done = subprocess.run([PROGRAM, "--gtest_filter=GuestPodTest.StaysSmall"], capture_output=True, text=True,
                              env={**os.environ, "MAGNETAR_GUEST": str(settings.GUEST), "MAGNETAR_BUSYBOX": str(busybox)})
        found = re.search(r"^VmRSS:\s*(\d+) kB", done.stdout + done.stderr, re.M)
        if not found:
            raise OSError(f"{PROGRAM} tells no memory:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        samples.append(int(found[1]))
    return samples
