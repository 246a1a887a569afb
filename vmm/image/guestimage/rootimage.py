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
# "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)"; the vdso and the loader have no path of their own.
MAPPED = re.compile(r"^\s*(?:linux-vdso\.so\.1|(?P<soname>\S+) => (?P<path>.+)|/.+) \(0x[0-9a-f]+\)$")
SEARCH = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


def loader(tree):
    """The dynamic loader of unpacked packages (theirs is at another path than the image's, where /lib is a link)."""
    path = tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    if not path.is_file():
        raise BuildError("libc6 has no ld-linux-x86-64.so.2")
    return path


def closure(tree, program):
    """What the loader would map for a program if `tree` were the root: {soname: path}."""
    path = ":".join(str(tree / s) for s in SEARCH)
    out = run([loader(tree), "--inhibit-cache", "--library-path", path, "--list", program])
    libraries = {}
    for line in out.splitlines():
        mapped = MAPPED.match(line)
        if not mapped:
            raise BuildError(f"{program.name}: cannot resolve {line.strip()}")
        if not mapped["soname"] or pathlib.Path(mapped["soname"]).name == loader(tree).name:
            continue
        found = pathlib.Path(mapped["path"])
        if not found.is_relative_to(tree):
            raise BuildError(f"{program.name}: {mapped['soname']} comes from outside the packages ({found})")
        libraries[mapped["soname"]] = found.resolve()
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
    lists = {"modules": modules["root"], **{f"modules.d/{n}": names for n, names in modules["demand"].items()}}
    for name, names in lists.items():
        put(tree, f"etc/magnetar/{name}", "".join(f"/{m}\n" for m in names).encode())
        for module in names:
            put(tree, f"usr/{module}", (stage / "tree" / module).read_bytes())
    (tree / "usr/sbin/modprobe").symlink_to("vmm-task")
    put(tree, "etc/magnetar/modules.request",
        "".join(f"{name} {' '.join(f'/{m}' for m in names)}\n" for name, names in sorted(modules["request"].items())).encode())
    for module in {module for names in modules["request"].values() for module in names}:
        put(tree, f"usr/{module}", (stage / "tree" / module).read_bytes())
    return check_crun(tree, contents["crun"]["features"])


def normalize(tree):
    """Modes of folders that do not depend on the builder; times and owners are mkfs.erofs's options."""
    for path in (tree, *tree.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


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
