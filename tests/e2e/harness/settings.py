"""What the environment says about this run."""

import functools
import os
import pathlib
import subprocess

from . import ROOT

CACHE = pathlib.Path(os.environ.get("MAGNETAR_CACHE") or pathlib.Path.home() / ".cache" / "magnetar")
BUILD = pathlib.Path(os.environ.get("MAGNETAR_BUILD", ROOT / "build" / "release"))
GUEST = pathlib.Path(os.environ.get("MAGNETAR_GUEST", ROOT / "build" / "guest" / "current"))
# "runc" tries the tests themselves: what they expect of Magnetar, containers have too.
HANDLER = os.environ.get("MAGNETAR_E2E_HANDLER", "magnetar")
# How often the byte-for-byte tests are repeated.
REPEAT = int(os.environ.get("MAGNETAR_E2E_REPEAT", "20"))
# Where logs of failed tests are kept.
LOGS = pathlib.Path(os.environ.get("MAGNETAR_E2E_LOGS", ROOT / "build" / "e2e-logs"))
IS_VM = HANDLER != "runc"


@functools.lru_cache(maxsize=None)
def tool(name):
    """The folder of a program that tests/tools builds."""
    out = subprocess.run([ROOT / "tests" / "tools" / "build", name], check=True, stdout=subprocess.PIPE, text=True)
    return pathlib.Path(out.stdout.strip())
