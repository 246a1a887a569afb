"""The root image: an erofs file system with the agent, crun and its libraries, and modules."""

import os
import pathlib
import re
import shutil
import tempfile

from . import BuildError
from .packages import unpack
from .util import run

LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
SEARCH = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def loader(tree):
    """The tree's own dynamic loader, through links that are meant for a root directory."""
    found = sorted(p for p in tree.glob("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2") if not p.is_symlink())
    if not found:
        raise BuildError("libc6 has no ld-linux-x86-64.so.2")
    return found[0]


def closure(tree, program):
    """What the loader would map for a program if `tree` were the root: {soname: path}."""
    path = ":".join(str(tree / s) for s in SEARCH)
    out = run([loader(tree), "--inhibit-cache", "--library-path", path, "--list", program])
    libraries = {}
    for line in out.splitlines():
        words = line.split()
        if words[0].startswith("linux-vdso") or words[0] == str(loader(tree)):
            continue
        if words[0].startswith("/lib64/ld-linux"):
            continue
        if len(words) < 3 or words[1] != "=>" or words[2] == "not":
            raise BuildError(f"{program.name}: cannot resolve {line.strip()}")
        found = pathlib.Path(words[2])
        if not found.is_relative_to(tree):
            raise BuildError(f"{program.name}: {words[0]} comes from outside the packages ({found})")
        libraries[words[0]] = found.resolve()
    return libraries


def check_crun(tree, features):
    """Runs the image's crun with the image's libraries and looks at what it was built with."""
    out = run([tree / LIBRARIES / "ld-linux-x86-64.so.2", "--inhibit-cache", "--library-path", tree / LIBRARIES,
               tree / "usr/bin/crun", "--version"])
    has = set(re.findall(r"\+(\w+)", out))
    lacking = [f for f in features if f not in has]
    if lacking:
        raise BuildError(f"Debian's crun was built without {', '.join(lacking)}")
    return out.splitlines()[0].removeprefix("crun version ")


def put(tree, name, data, mode=0o644):
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def populate(tree, debs, agent, stage, modules, contents):
    """Fills `tree`; returns crun's version."""
    for name in contents["image"]["directories"]:
        (tree / name).mkdir()
    for name in ("lib", "sbin"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "lib64").mkdir()
    (tree / LOADER).symlink_to(f"/{LIBRARIES}/ld-linux-x86-64.so.2")
    for name, text in contents["image"]["files"].items():
        put(tree, name, text.encode())
    put(tree, "usr/sbin/vmm-task", agent, 0o755)
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        unpacked = pathlib.Path(scratch).resolve()
        for deb in debs:
            unpack(deb, unpacked)
        program = unpacked / "usr/bin/crun"
        put(tree, "usr/bin/crun", program.read_bytes(), 0o755)
        put(tree, f"{LIBRARIES}/ld-linux-x86-64.so.2", loader(unpacked).read_bytes(), 0o755)
        for soname, path in closure(unpacked, program).items():
            put(tree, f"{LIBRARIES}/{soname}", path.read_bytes())
    for module in modules["root"]:
        put(tree, f"usr/{module}", (stage / "tree" / module).read_bytes())
    put(tree, "etc/magnetar/modules", "".join(f"/{m}\n" for m in modules["root"]).encode())
    return check_crun(tree, contents["crun"]["features"])


def normalize(tree):
    """Modes and times that do not depend on the builder."""
    for folder, directories, files in os.walk(tree):
        for name in (*directories, *files):
            path = pathlib.Path(folder, name)
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
            os.utime(path, (0, 0), follow_symlinks=False)
    tree.chmod(0o755)
    os.utime(tree, (0, 0))


def contents_of(tree):
    """Sorted list of all that is in the image: files and links, and folders that are empty."""
    found = []
    for path in tree.rglob("*"):
        name = "/" + str(path.relative_to(tree))
        if path.is_symlink():
            found.append(f"{name} -> {os.readlink(path)}")
        elif path.is_dir():
            if not any(path.iterdir()):
                found.append(name + "/")
        else:
            found.append(name)
    return sorted(found)


def make(tree, output, contents):
    run(["mkfs.erofs", "--quiet", "-T0", "-U", contents["image"]["uuid"], "--all-root", "-x-1", output, tree])
    size = output.stat().st_size
    if size > contents["image"]["max_bytes"]:
        raise BuildError(f"the root image has {size} bytes, more than {contents['image']['max_bytes']}")


def build(output, debs, agent, stage, modules, contents):
    """Writes the image; returns crun's version and the list of what is in it."""
    tree = pathlib.Path(tempfile.mkdtemp(dir=output.parent, prefix=".root-")).resolve()
    try:
        version = populate(tree, debs, agent, stage, modules, contents)
        normalize(tree)
        make(tree, output, contents)
        return version, contents_of(tree)
    finally:
        shutil.rmtree(tree)
