"""Small helpers that every step uses."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from . import BuildError


def sha256_file(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value):
    """One value, one spelling: what digests are computed over."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def run(argv, cwd=None, env=None):
    """Runs a command and returns its standard output; its own words are in the error."""
    clean = {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC",
             "SOURCE_DATE_EPOCH": "0"}
    for name in ("http_proxy", "https_proxy", "no_proxy", "TMPDIR"):
        if name in os.environ:
            clean[name] = os.environ[name]
    clean.update(env or {})
    argv = [str(a) for a in argv]
    try:
        done = subprocess.run(argv, cwd=cwd, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError(f"{argv[0]} is not installed") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(argv[:4])}... failed with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def write_atomically(path, text):
    path = pathlib.Path(path)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(fd, "w") as f:
        f.write(text)
    os.chmod(name, 0o644)
    os.rename(name, path)


@contextlib.contextmanager
def new_directory(final):
    """A temporary directory that becomes `final` by rename if the block succeeds, and goes away if not.

    If another build was first, its equal result stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=final.parent, prefix=".new-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def say(text):
    """Progress, for those who wait."""
    print(f"guest image: {text}", file=sys.stderr, flush=True)
