"""Unit tests of the guest image's build: no network, no root, no VM. `python3 -m unittest` runs them."""

import json
import lzma
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from guestimage import BuildError, initrd, output, packages, rootimage, vmlinux  # noqa: E402


def elf(segments):
    """An ELF file of (type, data, memory size) segments, each at a multiple of 64 KiB."""
    body = bytearray(vmlinux.EHDR.size + len(segments) * vmlinux.PHDR.size)
    for i, (kind, data, memory) in enumerate(segments):
        body += bytes(-len(body) % 65536)
        vmlinux.PHDR.pack_into(body, vmlinux.EHDR.size + i * vmlinux.PHDR.size, kind, 5, len(body), 0x1000 * i,
                               0x100000 * i, len(data), memory, 65536)
        body += data
    vmlinux.EHDR.pack_into(body, 0, b"\x7fELF" + bytes(12), 2, 62, 1, 0x1000, vmlinux.EHDR.size, 0, 0,
                           vmlinux.EHDR.size, vmlinux.PHDR.size, len(segments), 64, 0, 0)
    return bytes(body)


def bzimage(payload):
    image = bytearray(1024)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"what follows"


class Vmlinux(unittest.TestCase):
    def test_extracts_each_compression(self):
        kernel = elf([(vmlinux.PT_LOAD, b"code" * 100, 400)])
        for packed in (lzma.compress(kernel, lzma.FORMAT_XZ),
                       subprocess.run(["gzip", "-c"], input=kernel, stdout=subprocess.PIPE, check=True).stdout):
            with self.subTest(magic=packed[:4]):
                self.assertEqual(vmlinux.extract(bzimage(packed + struct.pack("<I", len(kernel)))), kernel)

    def test_refuses_what_is_no_kernel(self):
        for image in (bytes(4096), bzimage(b"unknown"), bzimage(lzma.compress(b"no program"))):
            with self.subTest(image=image[:8]), self.assertRaises(BuildError):
                vmlinux.extract(image)

    def test_condenses_without_changing_what_is_loaded(self):
        code, data = bytes(range(1, 256)) * 100, b"data" + bytes(300000)
        small = vmlinux.condense(elf([(vmlinux.PT_LOAD, code, len(code)), (vmlinux.PT_LOAD, data, 400000)]))
        self.assertLess(len(small), 64 << 10)
        header = vmlinux.EHDR.unpack_from(small)
        loaded = [vmlinux.PHDR.unpack_from(small, header[5] + i * header[9]) for i in range(header[10])]
        self.assertEqual([(s[4], s[6]) for s in loaded], [(0, len(code)), (0x100000, 400000)])
        for segment, expected in zip(loaded, (code, data)):
            self.assertEqual(small[segment[2] : segment[2] + segment[5]], expected.rstrip(b"\0"))


class Initrd(unittest.TestCase):
    def test_cpio_reads_it(self):
        archive = initrd.Cpio()
        archive.directory("proc")
        archive.file("init", b"program", 0o755)
        archive.file("lib/modules/a.ko", b"odd")
        data = archive.finish()
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=folder, check=True)
            self.assertEqual(pathlib.Path(folder, "lib/modules/a.ko").read_bytes(), b"odd")
            self.assertEqual(pathlib.Path(folder, "init").stat().st_mode & 0o777, 0o755)
            self.assertTrue(pathlib.Path(folder, "proc").is_dir())


class Packages(unittest.TestCase):
    def test_a_manifest_gives_its_selection_back(self):
        kernel = packages.Package("linux-image", "6.1-1", "ab" * 32, "linux-image_6.1-1_amd64.deb")
        chosen = packages.Selection(kernel, (packages.Package("crun", "1.8", "cd" * 32, "crun_1.8_amd64.deb"),))
        with tempfile.TemporaryDirectory() as folder:
            manifest = pathlib.Path(folder, "manifest.json")
            manifest.write_text(json.dumps({"inputs": {"packages": chosen.describe()}}))
            self.assertEqual(packages.locked(manifest), chosen)
            manifest.write_text("{}")
            with self.assertRaises(BuildError):
                packages.locked(manifest)


class Loader(unittest.TestCase):
    def test_lines_of_the_loader(self):
        lines = {
            "\tlinux-vdso.so.1 (0x00007ffe)": (None, None),
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)": (None, None),
            "\tlibc.so.6 => /with space/libc.so.6 (0x00007f)": ("libc.so.6", "/with space/libc.so.6"),
        }
        for line, expected in lines.items():
            mapped = rootimage.MAPPED.match(line)
            self.assertEqual((mapped["soname"], mapped["path"]), expected)
        self.assertIsNone(rootimage.MAPPED.match("\tlibmissing.so.1 => not found"))


class Output(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name, "out")
        self.out.mkdir()
        self.sources = {name: pathlib.Path(folder.name, name) for name in output.FILES}
        self.write("first")

    def write(self, text):
        for name, path in self.sources.items():
            path.write_text(name if name == "vmlinux" else name + text)

    def install(self, inputs):
        guest = output.install(self.out, self.sources, {"inputs": inputs})
        output.make_current(self.out, guest)
        return guest

    def test_equal_guests_are_one(self):
        first = self.install("a")
        self.assertEqual(self.install("a"), first)
        self.assertEqual(output.find(self.out, "a"), first)
        self.assertIsNone(output.find(self.out, "b"))

    def test_a_new_guest_leaves_the_old_one(self):
        first = self.install("a")
        self.write("second")
        second = self.install("b")
        self.assertEqual((first / "root.erofs").read_text(), "root.erofsfirst")
        self.assertEqual(os.readlink(self.out / "current"), second.name)
        self.assertTrue((first / "vmlinux").samefile(second / "vmlinux"))

    def test_a_damaged_guest_is_replaced(self):
        first = self.install("a")
        (first / "initrd.img").write_text("damaged")
        self.assertIsNone(output.find(self.out, "a"))
        self.assertEqual(self.install("a"), first)
        self.assertEqual((first / "initrd.img").read_text(), "initrd.imgfirst")


if __name__ == "__main__":
    unittest.main()
