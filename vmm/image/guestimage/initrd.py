"""The initrd: an uncompressed cpio archive, because unpacking costs more than reading under emulation."""

import stat


class Cpio:
    """Writes the "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst."""

    def __init__(self):
        self._parts = []
        self._inode = 0
        self._directories = set()

    def _entry(self, name, mode, data=b""):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % f for f in fields) + encoded
        self._parts += [header, b"\0" * (-len(header) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        if name in self._directories:
            return
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._directories.add(name)
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)
        self._entry(name, stat.S_IFREG | mode, data)

    def finish(self):
        self._entry("TRAILER!!!", 0)
        size = sum(len(p) for p in self._parts)
        return b"".join(self._parts) + b"\0" * (-size % 512)


def build(agent, stage, modules, contents):
    archive = Cpio()
    for name in contents["image"]["initrd_directories"]:
        archive.directory(name)
    archive.file("init", agent, 0o755)
    archive.file("etc/magnetar/modules.boot", "".join(f"/{m}\n" for m in modules["boot"]).encode())
    for module in modules["boot"]:
        archive.file(module, (stage / "tree" / module).read_bytes())
    return archive.finish()
