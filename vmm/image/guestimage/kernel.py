"""The kernel: an uncompressed vmlinux, and modules with their load order."""

import pathlib
import tempfile

from . import BuildError, vmlinux
from .packages import unpack
from .util import canonical_json, new_directory, run, say, sha256_text, write_atomically

# Changes when the stages of an older build are of no use any more.
FORMAT = 4


def load_order(tree, version, names):
    """Paths below the tree of the modules and all they depend on, soft dependencies included, in load order."""
    order = []
    for name in names:
        # Not as the builder's machine is configured to.
        for line in run(["modprobe", "-C", "/dev/null", "-d", tree, "-S", version, "--show-depends", name]).splitlines():
            action, _, path = line.strip().partition(" ")
            if action == "builtin":
                continue
            if action != "insmod":
                raise BuildError(f"modprobe answers {line!r} for {name}")
            relative = str(pathlib.Path(path.strip()).relative_to(tree))
            if not relative.endswith(".ko"):
                raise BuildError(f"{relative} is compressed: apt's kernel is not Debian 12's")
            if relative not in order:
                order.append(relative)
    return order


def names_of(tree, version, module):
    """The names that the kernel asks for a module by: its own, and those aliases that stand for nothing but it. Not the
    families of generic netlink: any process may ask for one of those, without a privilege."""
    aliases = run(["modinfo", "-b", tree, "-k", version, "-F", "alias", module]).split()
    names = {name.replace("-", "_") for name in (module, *aliases) if not set(name) & set("*?[")}
    return sorted(name for name in names if not name.startswith("net_pf_16_proto_16_family_"))


def request_table(tree, version, names):
    """{name: load order} of the modules that containers may have loaded, and of what these depend on: nftables is asked for by
    the protocol of nfnetlink, which its own modules need."""
    table = {}
    for module in names:
        for path in load_order(tree, version, [module]):
            stem = pathlib.Path(path).stem
            if stem.replace("-", "_") not in table:
                order = load_order(tree, version, [stem])
                table.update((name, order) for name in names_of(tree, version, stem))
    return table


def objcopy_version():
    return run(["objcopy", "--version"]).splitlines()[0]


def modprobe_version():
    """kmod's: it decides which modules a list holds, and in which order."""
    return run(["modprobe", "--version"]).splitlines()[0]


def copy_module(source, target):
    """Without type information, local symbols and signature: nothing in the guest reads them, and
    checking them is most of a module's load time. The manifest's digest covers the image as a whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["objcopy", "--strip-unneeded", "--remove-section=.BTF", source, target])
    target.chmod(0o644)


def prepare(package, deb, contents, cache):
    """A folder with vmlinux, modules and their lists, made once for a package and module list."""
    inputs = [package.sha256, contents["modules"], objcopy_version(), modprobe_version(), FORMAT]
    stage = cache / "kernels" / sha256_text(canonical_json(inputs))
    if stage.is_dir():
        return stage
    say(f"unpacking {package.file}")
    with new_directory(stage) as new, tempfile.TemporaryDirectory(dir=stage.parent, prefix=".unpacked-") as scratch:
        tree = pathlib.Path(scratch).resolve()
        unpack(deb, tree)
        (vmlinuz,) = tree.glob("boot/vmlinuz-*")
        version = vmlinuz.name.removeprefix("vmlinuz-")
        run(["depmod", "-b", tree, version])
        wanted = contents["modules"]
        boot = load_order(tree, version, wanted["boot"])
        root = load_order(tree, version, wanted["root"])
        demand = {name: load_order(tree, version, names) for name, names in wanted["demand"].items()}
        request = request_table(tree, version, wanted["request"]["names"])
        (new / "vmlinux").write_bytes(vmlinux.condense(vmlinux.extract(vmlinuz.read_bytes())))
        for module in sorted({*boot, *root, *(m for lists in (demand, request) for names in lists.values() for m in names)}):
            copy_module(tree / module, new / "tree" / module)
        lists = {"boot": boot, "root": [m for m in root if m not in boot],
                 **{kind: {name: [m for m in names if m not in boot] for name, names in lists.items()}
                    for kind, lists in (("demand", demand), ("request", request))}}
        write_atomically(new / "modules.json", canonical_json({"version": version, **lists}))
    return stage
