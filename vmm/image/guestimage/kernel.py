"""The kernel: an uncompressed vmlinux, and modules with their load order."""

import pathlib
import shutil
import tempfile

from . import BuildError, vmlinux
from .packages import unpack
from .util import canonical_json, publish_directory, run, sha256_text, write_atomically

# Changes when the stages of an older build are of no use any more.
FORMAT = 1


def load_order(tree, version, names):
    """Paths below the tree of the modules and all they depend on, soft dependencies included, in load order."""
    order = []
    for name in names:
        for line in run(["modprobe", "-d", tree, "-S", version, "--show-depends", name]).splitlines():
            action, _, path = line.strip().partition(" ")
            if action == "builtin":
                continue
            if action != "insmod":
                raise BuildError(f"modprobe answers {line!r} for {name}")
            relative = str(pathlib.Path(path.strip()).relative_to(tree))
            if relative not in order:
                order.append(relative)
    return order


def prepare(package, deb, contents, cache):
    """A folder with vmlinux, modules and their lists, made once for a package and module list."""
    stage = cache / "kernels" / sha256_text(canonical_json([package.sha256, contents["modules"], FORMAT]))
    if stage.is_dir():
        return stage
    stage.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stage.parent, prefix=".unpacked-") as scratch:
        tree = pathlib.Path(scratch).resolve()
        unpack(deb, tree)
        (vmlinuz,) = tree.glob("boot/vmlinuz-*")
        version = vmlinuz.name.removeprefix("vmlinuz-")
        run(["depmod", "-b", tree, version])
        boot = load_order(tree, version, contents["modules"]["boot"])
        root = [m for m in load_order(tree, version, contents["modules"]["root"]) if m not in boot]
        new = pathlib.Path(tempfile.mkdtemp(dir=stage.parent, prefix=".new-"))
        (new / "vmlinux").write_bytes(vmlinux.condense(vmlinux.extract(vmlinuz.read_bytes())))
        for module in (*boot, *root):
            target = new / "tree" / module
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / module, target)
        write_atomically(new / "modules.json", canonical_json({"version": version, "boot": boot, "root": root}))
    publish_directory(new, stage)
    return stage
