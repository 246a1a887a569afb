"""Debian packages: which versions, and their files in a private cache.

Nothing is installed. apt resolves versions against the host's package lists and checks the
archive's signatures; each file is kept under the digest that apt vouches for.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse

from . import BuildError
from .util import canonical_json, run, say, sha256_file, sha256_text, write_atomically

LISTS = pathlib.Path("/var/lib/apt/lists")
URI = re.compile(r"^'[^']*' (?P<file>\S+) (?P<size>\d+) (?:SHA256:(?P<sha256>[0-9a-f]{64}))?")


@dataclasses.dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha256: str
    file: str

    def describe(self):
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "file": self.file}


@dataclasses.dataclass(frozen=True)
class Selection:
    kernel: Package
    programs: tuple

    def all(self):
        return (self.kernel, *self.programs)

    def describe(self):
        return {"kernel": self.kernel.describe(), "programs": [p.describe() for p in self.programs]}

    @staticmethod
    def parse(value):
        return Selection(Package(**value["kernel"]), tuple(Package(**p) for p in value["programs"]))


def lists_state():
    """Changes whenever apt could choose other versions."""
    state = []
    for folder in (LISTS, pathlib.Path("/etc/apt"), pathlib.Path("/etc/apt/sources.list.d"),
                   pathlib.Path("/etc/apt/preferences.d"), pathlib.Path("/etc/apt/apt.conf.d")):
        for path in sorted(folder.glob("*")):
            if path.is_file() and path.name != "lock":
                stat = path.stat()
                state.append([str(path), stat.st_size, stat.st_mtime_ns])
    return sha256_text(canonical_json(state))


def candidate(name):
    policy = run(["apt-cache", "policy", name])
    found = re.search(r"Candidate: (\S+)", policy)
    if not found or found.group(1) == "(none)":
        raise BuildError(f"apt knows no package {name}: run `apt-get update`, with Debian 12's main in sources.list")
    return found.group(1)


def kernel_package(meta):
    depends = run(["apt-cache", "show", f"{meta}={candidate(meta)}"])
    found = re.search(r"^Depends: .*?(linux-image-\S+)", depends, re.M)
    if not found:
        raise BuildError(f"{meta} depends on no linux-image package")
    return found.group(1)


def dependency_closure(names):
    """Names with versions of everything the packages need, as on a machine with nothing installed."""
    with tempfile.TemporaryDirectory() as scratch:
        status = pathlib.Path(scratch, "status")
        status.touch()
        out = run(["apt-get", "-o", f"Dir::State::status={status}", "-o", "Debug::NoLocking=1", "-o",
                   "APT::Install-Recommends=0", "-s", "install", *names])
    # Inst libc6 (2.36-9+deb12u14 Debian:12.13/oldstable [amd64])
    return sorted(set(re.findall(r"^Inst (\S+) \((\S+) ", out, re.M)))


def with_digests(pairs):
    """Looks up file name and SHA-256 of (name, version) pairs."""
    out = run(["apt-get", "--print-uris", "download", *(f"{n}={v}" for n, v in pairs)])
    by_key = {}
    for line in out.splitlines():
        found = URI.match(line)
        if found and found["sha256"]:
            name, version, _ = urllib.parse.unquote(found["file"]).split("_", 2)
            by_key[name, version] = Package(name, version, found["sha256"], found["file"])
    missing = [f"{n}={v}" for n, v in pairs if (n, v) not in by_key]
    if missing:
        raise BuildError(f"apt has no SHA-256 for {', '.join(missing)}")
    return [by_key[p] for p in pairs]


def resolve(contents, cache):
    """The packages that apt would install now. Remembered while apt's lists do not change."""
    if not any(LISTS.glob("*_Packages*")):
        raise BuildError("apt has no package lists: run `apt-get update`")
    key = sha256_text(canonical_json([lists_state(), contents["packages"]]))
    remembered = cache / "selections" / f"{key}.json"
    if remembered.exists():
        return Selection.parse(json.loads(remembered.read_text()))
    kernel = kernel_package(contents["packages"]["kernel"])
    pairs = [(kernel, candidate(kernel)), *dependency_closure(contents["packages"]["programs"])]
    found = with_digests(pairs)
    selection = Selection(found[0], tuple(found[1:]))
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(remembered, canonical_json(selection.describe()))
    return selection


def fetch(packages, cache):
    """Downloads what the cache lacks and returns the path of each package's file."""
    folder = cache / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {p: folder / f"{p.sha256}.deb" for p in packages}
    wanted = [p for p, path in paths.items() if not path.exists()]
    if wanted:
        say(f"downloading {len(wanted)} packages")
        scratch = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
        try:
            # apt's unprivileged downloader may not enter a private cache; then apt downloads as the caller.
            run(["apt-get", "-o", "APT::Sandbox::User=", "download", *(f"{p.name}={p.version}" for p in wanted)],
                cwd=scratch)
            for package in wanted:
                file = scratch / package.file
                if not file.exists() or sha256_file(file) != package.sha256:
                    raise BuildError(f"{package.file} is not what apt's lists promised")
                os.rename(file, paths[package])
        finally:
            shutil.rmtree(scratch)
    return paths


def locked(manifest):
    """The packages of an earlier build; they come from the cache, or from apt if it still has these versions."""
    try:
        return Selection.parse(json.loads(manifest.read_text())["inputs"]["packages"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{manifest} is no manifest of a guest: {error}") from None


def unpack(deb, folder):
    run(["dpkg-deb", "-x", deb, folder])
