"""Python code of the project's protos, and of those that only the tests speak, made when it is needed."""

import fcntl
import hashlib
import importlib
import subprocess
import sys

from . import ROOT, settings

FOLDERS = (ROOT / "proto", ROOT / "tests" / "e2e" / "proto")
FILES = ("wire/wkt", "wire/ttrpc", "containerd/types", "containerd/sandbox", "containerd/task_types", "containerd/task", "cri/runtime",
         "containerd/tasks", "cri/service", "containerd/containers", "containerd/container_update")


def _generated():
    """The folder of the Python code, which is named after what it was made of."""
    sources = [path for path in (folder / f"{name}.proto" for name in FILES for folder in FOLDERS) if path.exists()]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    out = settings.CACHE / "e2e-protos" / digest
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "done").exists():
            subprocess.run(["protoc", *(f"-I{folder}" for folder in FOLDERS), f"--python_out={out}", *map(str, sources)], check=True)
            (out / "done").touch()
    return out


def load(*names):
    """The modules of some of FILES."""
    folder = str(_generated())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return tuple(importlib.import_module(f"{name.replace('/', '.')}_pb2") for name in names)
